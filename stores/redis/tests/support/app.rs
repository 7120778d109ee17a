//! Requests to an app, and what its jobs come to.

use std::time::Duration;

use axum::{Router, body::Body};
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

/// How long a job may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The answer to a request without a body.
pub async fn send(app: &Router, method: &str, path: &str) -> Response<String> {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(body.to_vec()).unwrap())
}

/// A job's document, once the store answers.
pub async fn poll(app: &Router, job: &str) -> Value {
    let begun = Instant::now();
    loop {
        let answer = send(app, "GET", &format!("{job}/status")).await;
        if answer.status() == 200 {
            return serde_json::from_str(answer.body()).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "{}", answer.body());
        sleep(Duration::from_millis(20)).await;
    }
}

/// The document of a job that has ended.
pub async fn ended(app: &Router, job: &str) -> Value {
    let begun = Instant::now();
    loop {
        let document = poll(app, job).await;
        if !["queued", "running"].contains(&document["status"].as_str().unwrap()) {
            return document;
        }
        assert!(begun.elapsed() < PATIENCE, "{document}");
        sleep(Duration::from_millis(20)).await;
    }
}
