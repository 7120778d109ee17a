//! The mounted form keeps tower's contract, also for a service that is kept and called again and again
//! (hyper's own adapter clones its service for each request, which hides much).

mod support;

use std::{
    convert::Infallible,
    io,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use support::soon;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_offload::{Offload, Policy};

const UNKNOWN: &str = "/jobs/00000000000000000000000000000000";

fn request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// Gives others a chance to queue up behind it, and answers.
async fn brief(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    Ok(Response::default())
}

fn with_one_permit()
-> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone {
    let offload = Offload::new("/jobs");
    ServiceBuilder::new()
        .layer(offload.layer(Policy::after(Duration::from_secs(3600))).boxed().mounted())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(brief))
}

#[tokio::test]
async fn a_permit_goes_to_the_request_that_waits_for_it() {
    let mut kept = with_one_permit();
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(tokio::spawn(kept.ready().await.unwrap().call(request("/a"))));
    }
    for answer in answers {
        let answer = soon("each request has its turn", answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test]
async fn a_poll_keeps_no_permit() {
    let mut polled = with_one_permit();
    let mut other = polled.clone();
    let poll = polled.ready().await.unwrap().call(request(UNKNOWN)).await.unwrap();
    assert_eq!(poll.status(), 404);
    let answer = async { other.ready().await.unwrap().call(request("/a")).await.unwrap() };
    assert_eq!(soon("the permit is free", answer).await.status(), 200);
    drop(polled);
}

/// A service that has failed for good.
#[derive(Clone)]
struct Dead;

impl Service<Request<Body>> for Dead {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Response<Body>, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Err(io::Error::other("dead")))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[tokio::test]
async fn polls_are_answered_when_the_service_inside_has_failed() {
    let offload = Offload::new("/jobs");
    let service = offload.layer(Policy::never()).mounted().layer(Dead);
    assert_eq!(service.clone().oneshot(request(UNKNOWN)).await.unwrap().status(), 404);
    assert_eq!(service.oneshot(request("/a")).await.unwrap_err().to_string(), "dead");
}
