//! What the layer is measured against: the timeouts that people run, and a task for every request.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use tokio::task::{JoinError, JoinHandle};
use tower::Service;

use crate::{
    BUDGET,
    service::{Handler, Handling},
};

/// tower-http's timeout, as its users put it around their routes.
pub fn http_timeout() -> tower_http::timeout::TimeoutLayer {
    tower_http::timeout::TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, BUDGET)
}

/// tower's timeout, which answers with an error.
pub fn timeout() -> tower::timeout::TimeoutLayer {
    tower::timeout::TimeoutLayer::new(BUDGET)
}

/// What a layer would be that spawns a task for every request, to have it when it is slow.
#[derive(Debug, Clone, Copy)]
pub struct TaskPerRequest<const SIZE: usize>(pub Handler<SIZE>);

impl<const SIZE: usize> Service<Request<Body>> for TaskPerRequest<SIZE>
where
    Handling<SIZE>: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = JoinError;
    type Future = Joined;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Joined {
        Joined(tokio::spawn(self.0.call(request)))
    }
}

/// The task's answer.
pub struct Joined(JoinHandle<Result<Response<Body>, Infallible>>);

impl Future for Joined {
    type Output = Result<Response<Body>, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_ok(|answer| {
            let Ok(response) = answer;
            response
        })
    }
}
