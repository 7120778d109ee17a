//! What is never offloaded, whatever the policy.

use http::{HeaderMap, HeaderName, Method, Request, header};

/// A `GET` with one of these has an answer that only its own connection can use.
const PARTIAL: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// Whether this request must stay on its connection. The cheapest checks come first; a request
/// without headers is done after the method.
pub(crate) fn is_exempt<B>(request: &Request<B>) -> bool {
    let (method, headers) = (request.method(), request.headers());
    // A 202 to CONNECT is a 2xx: the tunnel would open that the handler may be about to refuse
    // (RFC 9110, section 9.3.6). That covers extended CONNECT (RFC 8441) too, and with it every
    // upgrade that comes without an `Upgrade` header.
    if *method == Method::CONNECT || *method == Method::HEAD || *method == Method::OPTIONS {
        return true;
    }
    if headers.is_empty() {
        return false;
    }
    is_upgrade(headers) || is_grpc(headers) || *method == Method::GET && is_bound_get(headers)
}

/// `Upgrade: h2c` alone is none: Java's client and `curl --http2` send it with every cleartext
/// request, and a server that does not speak it that way ignores it (RFC 9113, section 3.1).
fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|protocol| {
            let protocol = protocol.trim_ascii();
            !protocol.is_empty() && !protocol.eq_ignore_ascii_case(b"h2c")
        })
    })
}

/// A gRPC client takes a 202 for an internal error.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let kind = b"application/grpc";
        value.as_bytes().get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind))
    })
}

fn is_bound_get(headers: &HeaderMap) -> bool {
    PARTIAL.iter().any(|name| headers.contains_key(name))
        || headers.get_all(header::ACCEPT).iter().any(|line| {
            line.as_bytes().split(|byte| *byte == b',').any(|range| {
                let kind = range.split(|byte| *byte == b';').next().unwrap_or_default();
                kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
            })
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
            let request = Request::post("/").header("upgrade", upgrade).body(()).unwrap();
            assert_eq!(is_exempt(&request), exempt, "{upgrade}");
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
            assert_eq!(is_exempt(&request), exempt, "{method} {name}: {value}");
        }
    }
}
