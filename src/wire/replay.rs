//! The headers of a kept response: what of them is kept, and what is added when it is replayed.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response::Parts,
    uri::PathAndQuery,
};

use super::{document::NO_STORE, reference};

/// `AsyncResult` (OData 4.01, part 1, section 8.3.1): the status of the handler's own response.
const ASYNC_RESULT: HeaderName = HeaderName::from_static("asyncresult");

/// What is not kept: fields of the one connection (RFC 9110, section 7.6.1; those that RFC 2616
/// named besides), and what frames the body anew at each replay.
static DROPPED: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
];

/// What is kept, but not replayed: what would make a shared cache keep the replay, and a promise of
/// ranges that it does not serve.
static NOT_REPLAYED: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::EXPIRES,
    header::AGE,
    HeaderName::from_static("cdn-cache-control"),
    HeaderName::from_static("surrogate-control"),
    header::ACCEPT_RANGES,
];

/// Headers that refer to something relative to the original request.
static REFERRING: [HeaderName; 2] = [header::LOCATION, header::CONTENT_LOCATION];

/// Makes the head of a response ready to be stored. `target` is the path and query of the original
/// request, against which relative references are resolved: at the URL of the replay they would mean
/// something else.
pub(crate) fn prepare(head: &mut Parts, target: &PathAndQuery) {
    // Most responses have none of these: one look tells.
    let (mut drops, mut refers) = (false, false);
    for name in head.headers.keys() {
        drops |= DROPPED.contains(name);
        refers |= REFERRING.contains(name);
    }
    if drops {
        drop_of_connection(&mut head.headers);
    }
    if refers {
        let references = head.headers.iter_mut().filter(|(name, _)| REFERRING.contains(name));
        for (_, value) in references {
            if let Some(resolved) = reference::resolve(value.as_bytes(), target) {
                *value = resolved;
            }
        }
    }
}

fn drop_of_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&DROPPED) {
        headers.remove(name);
    }
}

/// The response that replays an outcome with this status and these headers. A handler's own 202 is
/// replayed as 200: whoever polls until it is not 202 would go round for ever.
pub(crate) fn replayed<B>(status: StatusCode, headers: HeaderMap, body: B) -> Response<B> {
    let mut response = answered(status, headers, body);
    *response.status_mut() = match status {
        StatusCode::ACCEPTED => StatusCode::OK,
        status => status,
    };
    let headers = response.headers_mut();
    for name in &NOT_REPLAYED {
        headers.remove(name);
    }
    headers.insert(ASYNC_RESULT, HeaderValue::from(status.as_u16()));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// The handler's answer to the request itself, whose client has waited for it.
pub(crate) fn answered<B>(status: StatusCode, headers: HeaderMap, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &'static str)]) -> Parts {
        let mut head = Response::new(()).into_parts().0;
        for (name, value) in headers {
            head.headers.append(*name, HeaderValue::from_static(value));
        }
        head
    }

    #[test]
    fn drops_what_belongs_to_the_connection_or_to_caches() {
        let mut head = head(&[
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("cache-control", "public, max-age=600"),
            ("expires", "Thu, 01 Dec 2044 16:00:00 GMT"),
            ("age", "3"),
            ("cdn-cache-control", "max-age=60"),
            ("surrogate-control", "max-age=60"),
            ("accept-ranges", "bytes"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-type", "text/csv"),
            ("trailer", "x-sum"),
            ("etag", "\"1\""),
        ]);
        prepare(&mut head, &PathAndQuery::from_static("/"));
        let names = |headers: &HeaderMap| {
            let mut names: Vec<_> = headers.keys().map(|name| name.to_string()).collect();
            names.sort_unstable();
            names.join(" ")
        };
        let replay = replayed(head.status, head.headers.clone(), ());
        assert_eq!(
            names(replay.headers()),
            "asyncresult cache-control content-type etag set-cookie trailer"
        );
        assert_eq!(replay.headers()["cache-control"], "no-store");
        assert_eq!(replay.headers().get_all("set-cookie").iter().count(), 2);
        let answer = answered(head.status, head.headers, ());
        assert_eq!(
            names(answer.headers()),
            "accept-ranges age cache-control cdn-cache-control content-type etag expires set-cookie \
             surrogate-control trailer"
        );
    }

    #[test]
    fn relative_references_are_resolved_against_the_request() {
        for (target, location, expected) in [
            ("/a/b?q=1", "c", "/a/c"),
            ("/a/b/", "c?d=e#f", "/a/b/c?d=e#f"),
            ("/a/b/c", "../d", "/a/d"),
            ("/a/b/c", "../../../../d", "/d"),
            ("/a/b?q=1", "?page=2", "/a/b?page=2"),
            ("/a/b?q=1", "", "/a/b?q=1"),
            ("/", "x", "/x"),
            ("/a/b", "/c", "/c"),
            ("/a/b", "//other/c", "//other/c"),
            ("/a/b", "https://other/c", "https://other/c"),
            ("/a/b", "not a reference", "/a/not%20a%20reference"),
            ("//evil.example/b", "c", "/.//evil.example/c"),
        ] {
            let mut head = head(&[]);
            let value = HeaderValue::from_str(location).unwrap();
            head.headers.insert("location", value.clone());
            head.headers.insert("content-location", value);
            prepare(&mut head, &PathAndQuery::from_static(target));
            assert_eq!(head.headers["location"], expected, "{target} {location}");
            assert_eq!(head.headers["content-location"], expected);
        }
    }

    #[test]
    fn each_line_of_a_repeated_header_is_resolved() {
        let mut head = head(&[("location", "/c"), ("location", "d"), ("location", "e")]);
        prepare(&mut head, &PathAndQuery::from_static("/a/b"));
        let lines: Vec<_> = head.headers.get_all("location").iter().collect();
        assert_eq!(lines, ["/c", "/a/d", "/a/e"]);
    }

    #[test]
    fn a_202_of_the_handler_is_replayed_as_200() {
        for (own, replay) in [(202, 200), (201, 201), (404, 404), (303, 303)] {
            let mut head = head(&[]);
            head.status = StatusCode::from_u16(own).unwrap();
            let response = replayed(head.status, head.headers, ());
            assert_eq!(response.status(), replay);
            assert_eq!(response.headers()["asyncresult"], own.to_string());
            assert_eq!(response.headers()["cache-control"], "no-store");
        }
    }
}
