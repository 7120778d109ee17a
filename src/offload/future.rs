//! The response future: it polls the handler in place, and moves it into a task when it must.
//!
//! In each poll the handler comes first: a response that is there is never thrown away. What is to be
//! done while the handler is pending, its watch says (`watch.rs`).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use tracing::Span;

use super::{
    answer::{made, plain, refused},
    layer::Shared,
    movable::Movable,
    rescue::Rescue,
    watch::{Step, Watch},
};
use crate::{
    body::{ResponseBody, StatusBody},
    error::BoxError,
    job::within,
    run::{Refusal, Registered, Work},
    wire,
};

/// The future of [`OffloadService`](super::OffloadService).
pub struct ResponseFuture<F> {
    /// `None` where the request is not watched. Dropped first, so that what the handler has started
    /// elsewhere is told to stop before the handler's own drop may wait for it.
    watch: Option<Watch>,
    /// `None` once it is ready or was moved, and where the answer is ours from the start.
    handler: Option<F>,
    /// How the handler is finished if the client leaves; `None` where it is not. Boxed, since most
    /// have none.
    rescue: Option<Box<Rescue<F>>>,
    /// The answer, where no handler is polled for it.
    ours: Option<Pin<Box<dyn Future<Output = Response<StatusBody>> + Send>>>,
}

impl<F> ResponseFuture<F> {
    /// Of a request that the layer has nothing to do with.
    pub(super) fn through(handler: F) -> Self {
        Self { watch: None, handler: Some(handler), rescue: None, ours: None }
    }

    pub(super) fn watched(handler: F, watch: Watch, rescue: Option<Box<Rescue<F>>>) -> Self {
        Self { watch: Some(watch), handler: Some(handler), rescue, ours: None }
    }

    pub(super) fn ours(
        answer: impl Future<Output = Response<StatusBody>> + Send + 'static,
    ) -> Self {
        Self { watch: None, handler: None, rescue: None, ours: Some(Box::pin(answer)) }
    }
}

impl<F> Drop for ResponseFuture<F> {
    /// The client has left, or has its answer: then there is no handler any more.
    fn drop(&mut self) {
        let rescue = self.rescue.take().filter(|_| self.watch.as_ref().is_some_and(Watch::is_over));
        if let Some(rescue) = rescue {
            if let (Some(handler), Some(watch)) = (self.handler.take(), self.watch.take()) {
                rescue.finish(handler, watch);
            }
        }
    }
}

impl<F> std::fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl<F, ResB, E> Future for ResponseFuture<F>
where
    F: Movable<Output = Result<Response<ResB>, E>> + Send + 'static,
    ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    type Output = Result<Response<ResB>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(answer) = &mut this.ours {
            return answer.as_mut().poll(cx).map(|answer| Ok(made(answer)));
        }
        #[expect(clippy::expect_used, reason = "as every future")]
        let handler = this.handler.as_mut().expect("polled after it was ready");
        let Some(watch) = &mut this.watch else {
            return Pin::new(handler).poll(cx);
        };
        if let Some(refusal) = watch.start(cx) {
            return Poll::Ready(Ok(this.refuse(refusal)));
        }
        if !watch.is_unpolled() {
            let (identity, id) = (watch.shared.state.identity(), watch.registering());
            // Not there while the handler is polled: a panic unwinds through here, and a future that
            // has panicked must not be polled again.
            let rescue = this.rescue.take();
            let polled = within(identity, id, &mut watch.asked, || Pin::new(handler).poll(cx));
            this.rescue = rescue;
            if let Poll::Ready(response) = polled {
                watch.asked.finished();
                // Also takes back a registration.
                this.watch = None;
                this.handler = None;
                return Poll::Ready(response);
            }
        }
        loop {
            match watch.step(cx) {
                Step::Wait => return Poll::Pending,
                Step::Next(stage) => watch.enter(stage),
                Step::Detach(registered) => return Poll::Ready(Ok(this.detach(registered))),
                Step::Refuse(refusal) => return Poll::Ready(Ok(this.refuse(refusal))),
            }
        }
    }
}

impl<F, ResB, E> ResponseFuture<F>
where
    F: Movable<Output = Result<Response<ResB>, E>> + Send + 'static,
    ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    /// The move: nothing here can fail or wait, so the job is promised and runs, or neither.
    fn detach(&mut self, registered: Registered) -> Response<ResB> {
        let (Some(future), Some(mut watch)) = (self.handler.take(), self.watch.take()) else {
            unreachable!("only a watched handler that is still there is detached");
        };
        let Shared { state, .. } = &*watch.shared;
        let record = registered.record();
        let outlook = state.outlook(record);
        let answer = wire::accepted(&state.urls, record, &outlook, watch.plan.applied);
        let work = Work {
            future,
            asked: std::mem::take(&mut watch.asked),
            target: watch.target.take(),
            span: std::mem::replace(&mut watch.span, Span::none()),
            run_time: watch.shared.run_time(watch.policy),
        };
        work.spawn(registered);
        // Its drop lets the handler see the end of its body.
        drop(watch);
        made(plain(answer))
    }

    /// The handler is dropped, or was never begun.
    fn refuse(&mut self, refusal: Refusal) -> Response<ResB> {
        let watch = self.watch.take();
        self.handler = None;
        let answer = watch.map(|watch| refused(refusal, watch.lane()));
        made(plain(answer.unwrap_or_else(|| Response::new(Bytes::new()))))
    }
}
