//! A request as bytes, for a store to keep until its job is begun, and begun again.
//!
//! ```text
//! version u8 │ method length u8 │ URI length u32 │ head length u32 │ method │ URI │ head │ body
//! ```
//!
//! The head is laid out as an outcome's is.

use bytes::Bytes;
use http::{Method, Request, Uri, request::Parts};

use super::outcome::{fields_len, read_fields, write_fields};
use crate::error::{Error, ErrorKind};

const VERSION: u8 = 1;
const PREFIX: usize = 1 + 1 + 4 + 4;

/// A request with this head and body. Its extensions and its version stay behind: they are of the
/// connection.
pub(crate) fn to_bytes(head: &Parts, body: &[u8]) -> Option<Bytes> {
    let (method, uri) = (head.method.as_str(), head.uri.to_string());
    let fields = fields_len(&head.headers);
    let mut bytes = Vec::with_capacity(PREFIX + method.len() + uri.len() + fields + body.len());
    bytes.extend([VERSION, u8::try_from(method.len()).ok()?]);
    bytes.extend(u32::try_from(uri.len()).ok()?.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend_from_slice(method.as_bytes());
    bytes.extend_from_slice(uri.as_bytes());
    let start = bytes.len();
    write_fields(&head.headers, &mut bytes);
    let head_len = u32::try_from(bytes.len() - start).ok()?;
    bytes[6..PREFIX].copy_from_slice(&head_len.to_le_bytes());
    bytes.extend_from_slice(body);
    Some(bytes.into())
}

/// Reads a request back from [`to_bytes`].
///
/// # Errors
/// [`ErrorKind::Corrupt`] if these are not the bytes of a request.
pub(crate) fn from_bytes(bytes: &Bytes) -> Result<Request<Bytes>, Error> {
    read(bytes).ok_or_else(|| Error::new(ErrorKind::Corrupt, "not the bytes of a request"))
}

fn read(bytes: &Bytes) -> Option<Request<Bytes>> {
    let (prefix, rest) = bytes.split_at_checked(PREFIX)?;
    let length = |at: usize| {
        let bytes = [prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]];
        u32::from_le_bytes(bytes) as usize
    };
    if prefix[0] != VERSION {
        return None;
    }
    let (method, rest) = rest.split_at_checked(usize::from(prefix[1]))?;
    let (uri, rest) = rest.split_at_checked(length(2))?;
    let (head, body) = rest.split_at_checked(length(6))?;
    let mut request = Request::new(bytes.slice_ref(body));
    *request.method_mut() = Method::from_bytes(method).ok()?;
    *request.uri_mut() = Uri::try_from(uri).ok()?;
    *request.headers_mut() = read_fields(head)?;
    Some(request)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn request(uri: &str, body: &'static [u8]) -> Request<Bytes> {
        let mut request = Request::new(Bytes::from_static(body));
        *request.method_mut() = Method::PATCH;
        *request.uri_mut() = uri.parse().unwrap();
        for (name, value) in [("x", "1"), ("set-cookie", "a"), ("x", "2")] {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn the_bytes_take_no_more_memory_than_they_need() {
        let (head, body) = request("/a?b", &[7; 1000]).into_parts();
        let bytes = to_bytes(&head, &body).unwrap();
        let len = bytes.len();
        assert_eq!(bytes.try_into_mut().unwrap().capacity(), len);
    }

    #[test]
    fn a_request_comes_back_as_it_was() {
        for uri in [
            "/",
            "/a/b?c=d%20e&f",
            "http://host:81/path?q",
            "*",
            "//evil.example/x",
            "http://host//evil.example/x",
            "/\\evil.example/[b]?f[]={|}",
        ] {
            for body in [&b""[..], b"\x00\xff body"] {
                let (head, body) = request(uri, body).into_parts();
                let back = from_bytes(&to_bytes(&head, &body).unwrap()).unwrap();
                assert_eq!((back.method(), back.uri()), (&head.method, &head.uri));
                assert_eq!((back.headers(), back.body()), (&head.headers, &body));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_bytes(&bytes.into());
        }

        #[test]
        fn a_changed_byte_is_read_or_refused(at in 0..60_usize, byte: u8) {
            let (head, body) = request("/a?b", b"body").into_parts();
            let mut bytes = to_bytes(&head, &body).unwrap().to_vec();
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
            let _ = from_bytes(&bytes.into());
        }
    }
}
