//! The shortest way through: a slow request becomes a job, and its response is replayed.

mod support;

use std::time::Duration;

use axum::{Router, routing::post};
use support::{Client, Server};
use tower_offload::{Offload, Policy};

#[tokio::test]
async fn a_slow_request_becomes_a_job() {
    let offload = Offload::new("/jobs");
    let slow = |body: String| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        ([("x-own", "1")], body)
    };
    let app = Router::new()
        .route("/slow", post(slow).layer(offload.layer(Policy::after(Duration::from_millis(20)))))
        .nest_service("/jobs", offload.status());
    let server = Server::axum(app).await;
    for client in [Client::http1(), Client::http2()] {
        let accepted = client.post(&server, "/slow", "hello").await;
        let job = accepted.location();
        assert_eq!(client.ended(&server, job).await["status"], "succeeded");
        let found = client.get(&server, job).await;
        assert_eq!(found.status, 303);
        let result = client.get(&server, found.header("location")).await;
        assert_eq!((result.status.as_u16(), result.text()), (200, "hello"));
        assert_eq!((result.header("x-own"), result.header("asyncresult")), ("1", "200"));
    }
}
