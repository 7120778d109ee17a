//! The bytes of requests that are buffered, all together.

use http::{HeaderMap, request::Parts};

use super::atomic::{AtomicUsize, Ordering};

/// What `http::HeaderMap` takes for a field beside its text: two handles of shared bytes, a hash and
/// links (http, src/header/map.rs, `Bucket`).
const FIELD_BYTES: usize = 104;

/// What a request takes beside its fields and body: `http::request::Parts`.
const HEAD_BYTES: usize = 256;

/// The bytes of all requests that are buffered. A count and no more: nothing else is read or
/// written on the strength of it, so its order to other memory does not matter.
#[derive(Debug)]
pub(crate) struct BodyBytes {
    used: AtomicUsize,
    max: usize,
}

impl BodyBytes {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Whether there is room for more at all.
    pub(crate) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }

    /// Counts bytes that have come. The last frame may go over the limit: it is here already.
    pub(crate) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// About what a request's head takes: its method, URI, and the names and values of its headers.
    pub(crate) fn of_head(head: &Parts) -> usize {
        let uri = head.uri.path_and_query().map_or(0, |path| path.as_str().len())
            + head.uri.authority().map_or(0, |authority| authority.as_str().len());
        HEAD_BYTES + head.method.as_str().len() + uri + Self::of_fields(&head.headers)
    }

    /// About what headers or trailers take.
    pub(crate) fn of_fields(fields: &HeaderMap) -> usize {
        let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            FIELD_BYTES + name.as_str().len() + value.len()
        };
        fields.iter().map(field).sum()
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_head_counts_with_its_method_uri_and_fields() {
        let head = |request: http::request::Builder| request.body(()).unwrap().into_parts().0;
        let plain = head(Request::put("http://host/path?query"));
        assert_eq!(BodyBytes::of_head(&plain), HEAD_BYTES + 3 + 4 + 11);
        let fields = head(Request::put("/").header("name", "value").header("name", "2"));
        let expected = HEAD_BYTES + 3 + 1 + 2 * (FIELD_BYTES + 4) + 6;
        assert_eq!(BodyBytes::of_head(&fields), expected);
    }
}
