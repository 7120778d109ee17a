//! The requests: with an empty head, as a client sends it, and with bodies.

use std::sync::LazyLock;

use axum::body::Body;
use http::{Method, Request, Uri};

/// What an outer layer puts into a request, as axum's `ConnectInfo` and others do.
#[derive(Debug, Clone)]
pub struct Extension(pub u64);

/// `GET /` with neither headers nor a body.
pub fn empty() -> Request<Body> {
    Request::new(Body::empty())
}

/// `POST /reports` with neither headers nor a body.
pub fn post() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri();
    request
}

/// A URI as hyper makes it: its bytes are shared, so that a clone allocates nothing.
fn uri() -> Uri {
    static URI: LazyLock<Uri> = LazyLock::new(|| "/reports".to_owned().try_into().unwrap());
    URI.clone()
}

/// `POST /reports` with the headers of a browser, which the layer has to look at, and an extension.
pub fn ten_headers() -> Request<Body> {
    let headers = [
        ("host", "api.example"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "application/json"),
        ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("content-type", "application/json"),
        ("origin", "https://app.example"),
        ("referer", "https://app.example/reports"),
        ("cookie", "session=0123456789abcdef0123456789abcdef"),
        ("priority", "u=0"),
    ];
    let mut request = post();
    for (name, value) in headers {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    request.extensions_mut().insert(Extension(7));
    request
}

/// `POST /reports` with a body of 1 KiB, which the layer has to watch.
pub fn upload() -> Request<Body> {
    static DATA: [u8; 1024] = [b'x'; 1024];
    let mut request = post();
    *request.body_mut() = Body::from(bytes::Bytes::from_static(&DATA));
    request
}

/// `POST /reports`, to be a job at once.
pub fn respond_async() -> Request<Body> {
    let mut request = post();
    let value = http::HeaderValue::from_static("respond-async");
    request.headers_mut().insert("prefer", value);
    request
}
