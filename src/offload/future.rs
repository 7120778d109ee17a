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
    bound::Bound,
    movable::Movable,
    rescue::Rescue,
    stage::Step,
    watch::Watch,
};
use crate::{
    body::{ResponseBody, StatusBody},
    error::BoxError,
    job::{Asked, within},
    run::{Refusal, Registered, Work},
    wire,
};

/// The future of [`OffloadService`](super::OffloadService).
// The bounds are those of its drop, which may have to spawn the handler.
pub struct ResponseFuture<F: Future<Output: Send> + Send + 'static> {
    source: Source<F>,
}

/// Where the response comes from.
enum Source<F> {
    /// The handler of a request that the layer has nothing to do with.
    Through(F),
    Watched {
        /// Dropped first, so that what the handler has started elsewhere is told to stop before the
        /// handler's own drop may wait for it.
        watch: Watch,
        handler: F,
    },
    /// The handler of a request that cannot be a job, with its permit.
    Bound(Box<Bound<F>>),
    /// The answer is ours; no handler is polled for it.
    Ours(Pin<Box<dyn Future<Output = Response<StatusBody>> + Send>>),
    /// It is there, or the handler was moved.
    Given,
}

impl<F: Future<Output: Send> + Send + 'static> ResponseFuture<F> {
    #[inline]
    pub(super) fn through(handler: F) -> Self {
        Self { source: Source::Through(handler) }
    }

    #[inline]
    pub(super) fn watched(watch: Watch, handler: F) -> Self {
        Self { source: Source::Watched { watch, handler } }
    }

    pub(super) fn bound(bound: Bound<F>) -> Self {
        Self { source: Source::Bound(Box::new(bound)) }
    }

    pub(super) fn ours(
        answer: impl Future<Output = Response<StatusBody>> + Send + 'static,
    ) -> Self {
        Self { source: Source::Ours(Box::pin(answer)) }
    }

    /// Finishes the handler of a client that has left.
    #[cold]
    fn finish(&mut self, rescue: Rescue) {
        if let Source::Watched { watch, handler } =
            std::mem::replace(&mut self.source, Source::Given)
        {
            if watch.is_over() {
                return rescue.finish(handler, watch);
            }
            // As `Source` has it: the handler's own drop may wait for what the watch tells to stop.
            drop(watch);
            drop(handler);
        }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ResponseFuture<F> {
    /// The client has left, or has its answer: then there is no rescue any more.
    #[inline]
    fn drop(&mut self) {
        if let Source::Watched { watch, .. } = &mut self.source {
            if let Some(rescue) = watch.take_rescue() {
                self.finish(rescue);
            }
        }
    }
}

impl<F: Future<Output: Send> + Send + 'static> std::fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let watch = match &self.source {
            Source::Watched { watch, .. } => Some(watch),
            _ => None,
        };
        f.debug_struct("ResponseFuture").field("watch", &watch).finish_non_exhaustive()
    }
}

impl<F, ResB, E> Future for ResponseFuture<F>
where
    F: Movable<Output = Result<Response<ResB>, E>> + Send + 'static,
    ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    type Output = Result<Response<ResB>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (watch, handler) = match &mut this.source {
            Source::Through(handler) => return Pin::new(handler).poll(cx),
            Source::Watched { watch, handler } if watch.is_simple() => (watch, handler),
            _ => return this.poll_more(cx),
        };
        let mut asked = Asked::default();
        let polled = within(watch.identity(), None, &mut asked, || Pin::new(handler).poll(cx));
        if polled.is_ready() {
            asked.finished();
            watch.end();
            return polled;
        }
        if asked.is_something() {
            watch.special_mut().asked = asked;
        }
        match watch.is_waiting(cx) {
            true => Poll::Pending,
            false => this.pending(cx),
        }
    }
}

impl<F, ResB, E> ResponseFuture<F>
where
    F: Movable<Output = Result<Response<ResB>, E>> + Send + 'static,
    ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    /// Polls where there is more to do than to poll a handler.
    #[inline(never)]
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResB>, E>> {
        let (watch, handler) = match &mut self.source {
            Source::Watched { watch, handler } => (watch, handler),
            Source::Bound(bound) => {
                let polled = Pin::new(&mut **bound).poll(cx);
                if polled.is_ready() {
                    self.source = Source::Given;
                }
                return polled;
            }
            Source::Ours(answer) => return answer.as_mut().poll(cx).map(|answer| Ok(made(answer))),
            Source::Through(_) | Source::Given => panic!("polled after it was ready"),
        };
        if watch.is_unbegun() {
            if let Some(refusal) = watch.begin(cx) {
                return Poll::Ready(Ok(self.refuse(refusal)));
            }
        }
        if !watch.is_unpolled() {
            let (identity, id) = (watch.identity(), watch.registering());
            let special = watch.special_mut();
            // Not there while the handler is polled: a panic unwinds through here, and a future that
            // has panicked must not be polled again.
            let rescue = special.rescue.take();
            let polled = within(identity, id, &mut special.asked, || Pin::new(handler).poll(cx));
            if polled.is_ready() {
                watch.end();
                return polled;
            }
            special.rescue = rescue;
        }
        self.pending(cx)
    }

    /// What is to be done while the handler is pending.
    fn pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResB>, E>> {
        while let Source::Watched { watch, .. } = &mut self.source {
            match watch.step(cx) {
                Step::Wait => break,
                Step::Next(stage) => watch.enter(stage),
                Step::Detach(registered) => return Poll::Ready(Ok(self.detach(registered))),
                Step::Refuse(refusal) => return Poll::Ready(Ok(self.refuse(refusal))),
                Step::Answer(answer) => {
                    self.source = Source::Given;
                    return Poll::Ready(Ok(made(plain(*answer))));
                }
            }
        }
        Poll::Pending
    }

    /// The move: nothing here can fail or wait, so the job is promised and runs, or neither.
    fn detach(&mut self, registered: Registered) -> Response<ResB> {
        let source = std::mem::replace(&mut self.source, Source::Given);
        let Source::Watched { mut watch, handler } = source else {
            unreachable!("only a watched handler that is still there is detached");
        };
        let state = &watch.route.state;
        let record = registered.record();
        let outlook = state.outlook(record);
        let answer = wire::accepted(&state.urls, record, &outlook, watch.applied());
        let work = Work {
            future: handler,
            asked: watch.take_asked(),
            target: watch.target().clone(),
            // Whatever polls a handler does so in its span.
            span: Span::current(),
            run_time: watch.route.run_time(),
        };
        work.spawn(registered);
        // Its drop lets the handler see the end of its body.
        drop(watch);
        made(plain(answer))
    }

    /// The handler is dropped, or was never begun.
    fn refuse(&mut self, refusal: Refusal) -> Response<ResB> {
        let answer = match std::mem::replace(&mut self.source, Source::Given) {
            Source::Watched { watch, .. } => refused(refusal, watch.lane()),
            _ => Response::new(Bytes::new()),
        };
        made(plain(answer))
    }
}
