//! A handler that waits for its test: the test sees each call, and says when it ends and how.

use std::convert::Infallible;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use bytes::Bytes;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};

use super::soon;

/// The handler's side and the test's.
pub fn gated() -> (Gated, Calls) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Gated(sender), Calls(receiver))
}

/// The handler.
#[derive(Clone)]
pub struct Gated(mpsc::UnboundedSender<Call>);

impl Gated {
    /// Reads the request's body, tells the test of the call, and answers what the test says.
    pub async fn run(self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let (answer, told) = oneshot::channel();
        // A test that has dropped its side wants no more calls.
        let _ = self.0.send(Call { head, body, answer });
        match told.await {
            Ok(Told::Response(response)) => *response,
            Ok(Told::Panic) => panic!("told to"),
            Err(_) => std::future::pending().await,
        }
    }

    /// It as a route, for any method.
    pub fn route(&self) -> MethodRouter<(), Infallible> {
        let gated = self.clone();
        any(move |request: Request| gated.clone().run(request))
    }
}

enum Told {
    Response(Box<Response>),
    Panic,
}

/// A call of the handler that waits. Dropped, it waits for ever.
pub struct Call {
    pub head: Parts,
    pub body: Bytes,
    answer: oneshot::Sender<Told>,
}

impl Call {
    pub fn answer(self, response: impl IntoResponse) {
        let _ = self.answer.send(Told::Response(Box::new(response.into_response())));
    }

    pub fn panic(self) {
        let _ = self.answer.send(Told::Panic);
    }

    /// Resolves when the handler's future was dropped.
    pub async fn gone(mut self) {
        soon("the handler's future is dropped", self.answer.closed()).await;
    }

    pub fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }
}

/// The test's side.
pub struct Calls(mpsc::UnboundedReceiver<Call>);

impl Calls {
    /// The next call, when it comes.
    pub async fn next(&mut self) -> Call {
        soon("the handler is called", self.0.recv()).await.unwrap()
    }

    /// Whether there was no call that was not seen yet.
    pub fn is_empty(&mut self) -> bool {
        self.0.is_empty()
    }
}

/// A response with trailers, named in its `Trailer` header as HTTP/1.1 wants it.
pub fn with_trailers(data: &'static str, name: &'static str, value: &'static str) -> Response {
    let trailers = [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect();
    let frames = [
        Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(data))),
        Ok(http_body::Frame::trailers(trailers)),
    ];
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    ([("trailer", name)], Body::new(body)).into_response()
}
