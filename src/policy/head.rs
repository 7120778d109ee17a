//! What a request's head says before anything else is asked: whether it is never offloaded, whatever
//! the policy, and whether there are preferences to read.
//!
//! Every request of a watched route comes through here, so it is one pass over the names of the
//! headers: each look-up in the map costs as much as several of its steps.

use http::{HeaderName, Method, Request, Version, header};

use crate::wire::PREFER;

/// What the head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// The request must stay on its connection.
    Exempt,
    /// It has a `Prefer` header.
    Prefers,
    Plain,
}

impl Head {
    #[inline]
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let (method, headers) = (request.method(), request.headers());
        // A 202 to CONNECT is a 2xx: the tunnel would open that the handler may be about to refuse
        // (RFC 9110, section 9.3.6). That covers extended CONNECT (RFC 8441) too, and with it every
        // upgrade that comes without an `Upgrade` header.
        if *method == Method::CONNECT || *method == Method::HEAD || *method == Method::OPTIONS {
            return Self::Exempt;
        }
        match headers.is_empty() {
            true => Self::Plain,
            false => Self::of_headers(request, *method == Method::GET),
        }
    }

    fn of_headers<B>(request: &Request<B>, is_get: bool) -> Self {
        let mut head = Self::Plain;
        for (name, value) in request.headers() {
            let value = value.as_bytes();
            let exempt = match Says::of(name) {
                Says::Nothing => false,
                Says::Preferences => {
                    head = Self::Prefers;
                    false
                }
                Says::Upgrade => is_upgrade(value) && is_upgradable(request),
                Says::Type => is_grpc(value),
                Says::Accept => is_get && is_events(value),
                Says::Partial => is_get,
            };
            if exempt {
                return Self::Exempt;
            }
        }
        head
    }
}

/// What a header is about.
enum Says {
    Nothing,
    Preferences,
    Upgrade,
    Type,
    Accept,
    /// A `GET` with one has an answer that only its own connection can use.
    Partial,
}

impl Says {
    #[inline]
    fn of(name: &HeaderName) -> Self {
        // Standard names are a number, so that all of these are one look into a table.
        if *name == header::CONTENT_TYPE {
            Self::Type
        } else if *name == header::ACCEPT {
            Self::Accept
        } else if *name == header::UPGRADE {
            Self::Upgrade
        } else if *name == header::RANGE
            || *name == header::IF_RANGE
            || *name == header::IF_MATCH
            || *name == header::IF_NONE_MATCH
            || *name == header::IF_MODIFIED_SINCE
            || *name == header::IF_UNMODIFIED_SINCE
        {
            Self::Partial
        } else if *name == PREFER {
            Self::Preferences
        } else {
            Self::Nothing
        }
    }
}

/// `Upgrade: h2c` alone is none: Java's client and `curl --http2` send it with every cleartext
/// request, and a server that does not speak it that way ignores it (RFC 9113, section 3.1).
fn is_upgrade(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|protocol| {
        let protocol = protocol.trim_ascii();
        !protocol.is_empty() && !protocol.eq_ignore_ascii_case(b"h2c")
    })
}

/// Without `Connection: upgrade` there is no upgrade, and in HTTP/1.0 none either (RFC 9110, section
/// 7.8); HTTP/2 has neither header (RFC 9113, section 8.2.2). Looked up, since hardly any request
/// comes to this.
#[cold]
fn is_upgradable<B>(request: &Request<B>) -> bool {
    let options = request.headers().get_all(header::CONNECTION).into_iter();
    let mut options = options.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    request.version() == Version::HTTP_11
        && options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// A gRPC client takes a 202 for an internal error.
fn is_grpc(value: &[u8]) -> bool {
    let kind = b"application/grpc";
    value.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind))
}

fn is_events(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|range| {
        let kind = range.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_4_5_h2c_alone_is_no_upgrade() {
        for (upgrade, exempt) in [
            ("h2c", false),
            ("H2C", false),
            (" h2c , h2c", false),
            ("", false),
            ("websocket", true),
            ("h2c, websocket", true),
            ("TLS/1.2", true),
        ] {
            let request = Request::post("/").header("connection", "upgrade");
            let request = request.header("upgrade", upgrade).body(()).unwrap();
            assert_eq!(Head::of(&request) == Head::Exempt, exempt, "{upgrade}");
        }
    }

    #[test]
    fn upgrade_needs_its_connection_option_and_http_1_1() {
        for (version, connection, exempt) in [
            (Version::HTTP_11, &["upgrade"][..], true),
            (Version::HTTP_11, &["keep-alive, Upgrade"], true),
            (Version::HTTP_11, &["keep-alive", "x ,\tUPGRADE"], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["keep-alive"], false),
            (Version::HTTP_11, &["upgrades"], false),
            (Version::HTTP_10, &["upgrade"], false),
            (Version::HTTP_2, &["upgrade"], false),
        ] {
            let mut request = Request::get("/").version(version).header("upgrade", "websocket");
            for value in connection {
                request = request.header("connection", *value);
            }
            let head = Head::of(&request.body(()).unwrap());
            assert_eq!(head == Head::Exempt, exempt, "{version:?} {connection:?}");
        }
    }

    #[test]
    fn by_method_and_headers() {
        for (method, name, value, exempt) in [
            ("CONNECT", "x", "y", true),
            ("HEAD", "x", "y", true),
            ("OPTIONS", "x", "y", true),
            ("GET", "x", "y", false),
            ("DELETE", "x", "y", false),
            ("POST", "content-type", "application/grpc", true),
            ("POST", "content-type", "Application/gRPC-web+proto", true),
            ("POST", "content-type", "application/json", false),
            ("POST", "content-type", "app", false),
            ("GET", "range", "bytes=0-", true),
            ("POST", "range", "bytes=0-", false),
            ("GET", "if-none-match", "\"1\"", true),
            ("GET", "if-modified-since", "x", true),
            ("PUT", "if-match", "\"1\"", false),
            ("GET", "accept", "application/json, text/event-stream;q=0.9", true),
            ("GET", "accept", "*/*", false),
            ("POST", "accept", "text/event-stream", false),
        ] {
            let request =
                Request::builder().method(method).uri("/").header(name, value).body(()).unwrap();
            assert_eq!(Head::of(&request) == Head::Exempt, exempt, "{method} {name}: {value}");
        }
    }
}
