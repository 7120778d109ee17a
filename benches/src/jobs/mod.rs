//! What the bench of jobs measures, one file a table.

pub mod maps;
pub mod operations;
pub mod pause;
pub mod rivals;

use axum::body::Body;
use http::{Method, Request, Response, header};

/// A request with this method for this path.
fn request(method: Method, path: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    request
}

/// Where the job is, by its 202.
fn location<B>(response: &Response<B>) -> String {
    assert_eq!(response.status(), 202);
    response.headers()[header::LOCATION].to_str().unwrap().to_owned()
}
