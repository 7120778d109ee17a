//! The service that everything is measured around: one that reads its request's body, waits as it is
//! told to, and answers 200.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use http_body::Body as _;
use tokio::time::Sleep;
use tower::Service;

/// How long the handler takes.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    /// It answers at its first poll.
    Nothing,
    /// It is pending once, as nearly every handler is in production.
    OnePending,
    /// It waits for a timer.
    Timer(Duration),
}

/// The service. Its future has `SIZE` bytes beside the 32 of its body and its timer.
#[derive(Debug, Clone, Copy)]
pub struct Handler<const SIZE: usize = 32> {
    takes: Takes,
}

impl<const SIZE: usize> Handler<SIZE> {
    pub fn new(takes: Takes) -> Self {
        Self { takes }
    }
}

impl<const SIZE: usize> Service<Request<Body>> for Handler<SIZE> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Handling<SIZE>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Handling<SIZE> {
        let waits = match self.takes {
            Takes::Nothing => Waits::No,
            Takes::OnePending => Waits::Once,
            Takes::Timer(time) => Waits::For(Box::pin(tokio::time::sleep(time))),
        };
        Handling { body: request.into_body(), waits, room: [0; SIZE] }
    }
}

/// The handler's future: `SIZE` bytes more than the body and the timer that it holds.
pub struct Handling<const SIZE: usize> {
    body: Body,
    waits: Waits,
    /// What it would hold of its own.
    room: [u8; SIZE],
}

enum Waits {
    No,
    Once,
    For(Pin<Box<Sleep>>),
}

impl<const SIZE: usize> Future for Handling<SIZE> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        black_box(&mut self.room);
        while let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            drop(black_box(frame));
        }
        match &mut self.waits {
            Waits::No => {}
            Waits::Once => {
                self.waits = Waits::No;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Waits::For(timer) => ready!(timer.as_mut().poll(cx)),
        }
        Poll::Ready(Ok(Response::new(Body::empty())))
    }
}
