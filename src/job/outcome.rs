//! The outcome of a job: the handler's response, head, body and trailers in one slice of bytes.
//!
//! One slice, since a header map with a small body takes five times the memory of its bytes, and
//! outcomes are kept by the hundred thousand. Layout (integers little-endian):
//!
//! ```text
//! version u8 │ status u16 │ head u32 │ body u64 │ head bytes │ body bytes │ trailer bytes
//! field: name length u16 │ value length u32 │ name │ value
//! ```

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, response::Parts};

use crate::error::{Error, ErrorKind};

const VERSION: u8 = 1;
const PREFIX: usize = 1 + 2 + 4 + 8;

/// No more than this is allocated for a body that is only announced.
const AHEAD: usize = 1 << 20;

/// The response of a handler, kept to be replayed: status, headers, body and trailers.
#[derive(Clone)]
pub struct Outcome {
    bytes: Bytes,
}

impl Outcome {
    /// Keeps this response. Bytes are copied, so that a small slice of a large buffer does not
    /// hold the buffer.
    pub fn new(head: &Parts, body: &[u8], trailers: Option<&HeaderMap>) -> Self {
        let mut writer = OutcomeWriter::new(head, body.len());
        writer.push(body);
        writer.finish(trailers)
    }

    /// The whole outcome as bytes, for a store to keep.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same outcome in other bytes, which must be equal.
    pub(crate) fn in_bytes(self, other: impl FnOnce(Bytes) -> Bytes) -> Self {
        Self { bytes: other(self.bytes) }
    }

    /// Reads an outcome back from [`as_bytes`](Self::as_bytes).
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if these are not the bytes of an outcome.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Error> {
        let outcome = Self { bytes };
        outcome.check().then_some(outcome).ok_or_else(no_outcome)
    }

    fn check(&self) -> bool {
        let end = |head: OutcomeHead| (head.len as u64).checked_add(head.body_len);
        let Ok(Some(end)) = OutcomeHead::read(&self.bytes).map(|head| head.and_then(end)) else {
            return false;
        };
        let rest = usize::try_from(end).ok().and_then(|end| self.bytes.get(end..));
        rest.and_then(read_fields).is_some()
    }

    fn body_start(&self) -> usize {
        PREFIX + number(&self.bytes, 3, 4) as usize
    }

    fn body_end(&self) -> usize {
        self.body_start() + number(&self.bytes, 7, 8) as usize
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        // Written from a `StatusCode`, or checked by `from_bytes`.
        StatusCode::from_u16(number(&self.bytes, 1, 2) as u16)
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The response's headers, repeated ones too, in the handler's order for each name.
    pub fn headers(&self) -> HeaderMap {
        read_fields(&self.bytes[PREFIX..self.body_start()]).unwrap_or_default()
    }

    /// The response's body. It shares memory with the outcome; nothing is copied.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(self.body_start()..self.body_end())
    }

    /// The response's trailers, where it had any.
    pub fn trailers(&self) -> Option<HeaderMap> {
        let fields = &self.bytes[self.body_end()..];
        (!fields.is_empty()).then(|| read_fields(fields).unwrap_or_default())
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome")
            .field("status", &self.status())
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

fn no_outcome() -> Error {
    Error::new(ErrorKind::Corrupt, "not the bytes of an outcome")
}

/// The little-endian number of `len` bytes at `at`, in the prefix.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut number = [0; 8];
    number[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(number)
}

/// What an outcome begins with: all of it but the body and the trailers.
#[derive(Debug)]
pub(crate) struct OutcomeHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The bytes of the head itself.
    pub(crate) len: usize,
    pub(crate) body_len: u64,
}

impl OutcomeHead {
    /// Reads it from the first bytes of an outcome; `None` where there are too few.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if no outcome begins like that.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, Error> {
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(no_outcome());
        }
        if bytes.len() < PREFIX {
            return Ok(None);
        }
        let status = StatusCode::from_u16(number(bytes, 1, 2) as u16).map_err(|_| no_outcome())?;
        let len = PREFIX + number(bytes, 3, 4) as usize;
        let Some(fields) = bytes.get(PREFIX..len) else { return Ok(None) };
        let headers = read_fields(fields).ok_or_else(no_outcome)?;
        Ok(Some(Self { status, headers, len, body_len: number(bytes, 7, 8) }))
    }

    /// Reads the trailers, which are what follows the body.
    pub(crate) fn trailers(bytes: &[u8]) -> Result<HeaderMap, Error> {
        read_fields(bytes).ok_or_else(no_outcome)
    }
}

/// Writes an outcome while its body arrives, so that the body is copied once only.
pub(crate) struct OutcomeWriter {
    bytes: Vec<u8>,
    body_start: usize,
}

impl OutcomeWriter {
    /// Makes room for the head and a body of so many bytes, up to a megabyte; a longer one is fine.
    pub(crate) fn new(head: &Parts, body: usize) -> Self {
        let room = PREFIX + fields_len(&head.headers) + body.min(AHEAD);
        let mut bytes = Vec::with_capacity(room);
        bytes.resize(PREFIX, 0);
        bytes[0] = VERSION;
        bytes[1..3].copy_from_slice(&head.status.as_u16().to_le_bytes());
        write_fields(&head.headers, &mut bytes);
        let head_len = bytes.len() - PREFIX;
        bytes[3..7].copy_from_slice(&(head_len as u32).to_le_bytes());
        let body_start = bytes.len();
        Self { bytes, body_start }
    }

    /// The bytes so far, head included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    pub(crate) fn finish(mut self, trailers: Option<&HeaderMap>) -> Outcome {
        let body_len = (self.bytes.len() - self.body_start) as u64;
        self.bytes[7..15].copy_from_slice(&body_len.to_le_bytes());
        if let Some(trailers) = trailers {
            write_fields(trailers, &mut self.bytes);
        }
        // Exactly as large as it must be: it is kept for long.
        let bytes = Bytes::from(self.bytes.into_boxed_slice());
        Outcome { bytes }
    }
}

/// What `write_fields` writes.
pub(super) fn fields_len(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| 6 + name.as_str().len() + value.len()).sum()
}

pub(super) fn write_fields(fields: &HeaderMap, bytes: &mut Vec<u8>) {
    for (name, value) in fields {
        // Neither can be longer: `http` holds names under 64 KiB, and a map is held in memory.
        bytes.extend_from_slice(&(name.as_str().len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(value.as_bytes());
    }
}

pub(super) fn read_fields(mut bytes: &[u8]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    while !bytes.is_empty() {
        let (lengths, rest) = bytes.split_at_checked(6)?;
        let name_len = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
        let value_len =
            u32::from_le_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]) as usize;
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (value, rest) = rest.split_at_checked(value_len)?;
        let name = HeaderName::from_bytes(name).ok()?;
        // No map holds more than 32,768 names.
        fields.try_append(name, HeaderValue::from_bytes(value).ok()?).ok()?;
        bytes = rest;
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(status: u16, headers: &[(&'static str, &[u8])]) -> Parts {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            parts.headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        parts
    }

    #[test]
    fn keeps_repeated_headers_body_and_trailers() {
        let head = parts(
            201,
            &[("set-cookie", b"a=1"), ("set-cookie", b"b=2"), ("x", b"\xff\xfe"), ("e", b"")],
        );
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let kept = Outcome::new(&head, b"body", Some(&trailers));
        let kept = Outcome::from_bytes(kept.as_bytes().clone()).unwrap();
        assert_eq!(kept.status(), 201);
        assert_eq!(kept.headers(), head.headers);
        assert_eq!(kept.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(kept.body(), "body");
        assert_eq!(kept.trailers(), Some(trailers));
        assert_eq!(Outcome::new(&head, b"", None).trailers(), None);
    }

    #[test]
    fn is_allocated_once_where_its_size_is_known_and_not_for_what_is_only_announced() {
        let head = parts(200, &[("content-type", b"text/plain"), ("set-cookie", b"a")]);
        let mut writer = OutcomeWriter::new(&head, 64);
        let room = writer.bytes.capacity();
        assert_eq!(room, writer.len() + 64);
        writer.push(&[b'x'; 64]);
        assert_eq!(writer.bytes.capacity(), room);
        assert_eq!(writer.finish(None).as_bytes().len(), room);
        assert!(OutcomeWriter::new(&head, usize::MAX).bytes.capacity() < 2 * AHEAD);
    }

    #[test]
    fn more_fields_than_a_map_holds_are_refused() {
        let whole = Outcome::new(&parts(200, &[]), b"", None);
        for (count, holds) in [(1 << 14, true), (1 << 16, false)] {
            let mut bytes = whole.as_bytes().to_vec();
            for number in 0..count {
                bytes.extend_from_slice(&[5, 0, 0, 0, 0, 0]);
                bytes.extend_from_slice(format!("{number:05x}").as_bytes());
            }
            assert_eq!(Outcome::from_bytes(bytes.into()).is_ok(), holds, "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(outcome) = Outcome::from_bytes(bytes.into()) {
                let _ = (outcome.status(), outcome.headers(), outcome.body(), outcome.trailers());
            }
        }

        #[test]
        fn every_damaged_outcome_is_refused_or_read(at in 0usize..80, byte in any::<u8>(), cut in 0usize..80) {
            let whole = Outcome::new(&parts(200, &[("a", b"b"), ("c", b"d")]), b"hello", None);
            let mut bytes = whole.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            if let Ok(outcome) = Outcome::from_bytes(bytes.into()) {
                let _ = (outcome.status(), outcome.headers(), outcome.body(), outcome.trailers());
            }
        }
    }
}
