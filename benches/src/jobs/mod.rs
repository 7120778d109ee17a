//! What the bench of jobs measures, one file a table.

pub mod maps;
pub mod operations;
pub mod pause;
pub mod rivals;

use std::time::Instant;

use axum::body::Body;
use http::{Method, Request, Response, header};

use crate::measure::{Dice, Times, is_trial};

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

/// How many operations a batch has, and how many batches there are.
fn batches() -> (usize, usize) {
    if is_trial() { (16, 2) } else { (200, 25) }
}

/// The time of one `get` of random ones of these.
async fn gets(urls: &[String], get: impl AsyncFn(Request<Body>)) -> Times {
    let mut dice = Dice::default();
    let mut times = Times::default();
    let (size, batches) = batches();
    for _ in 0..batches {
        let one = || request(Method::GET, &urls[dice.below(urls.len())]);
        let requests: Vec<_> = std::iter::repeat_with(one).take(size).collect();
        let start = Instant::now();
        for request in requests {
            get(request).await;
        }
        times.push(start.elapsed(), size);
    }
    times
}
