//! A request that can't be a job, on a route that promises a bound: it is attached, and holds a
//! permit until its response's head is there.
//!
//! What comes after the head (a stream, a tunnel) holds none: a client that reads slowly would
//! otherwise block the route. For the same reason the permit is held for the run-time limit of the
//! route at the most, and not past a body that stalls.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use super::{
    answer::{body_timed_out, made, plain},
    body_timer::{BodyTimer, Expired},
    control::Upload,
    layer::Route,
    upload,
    watch::target_of,
};
use crate::{
    body::{RequestBody, ResponseBody},
    job::{Asked, Current, within},
    run::Place,
    wire::{self, Problem},
};

/// The handler of such a request. Its fields are dropped in this order: the permit is released when
/// the handler's future is gone.
#[derive(Debug)]
pub(super) struct Bound<F> {
    /// What the handler has asked for of its job, which there will not be.
    asked: Asked,
    handler: F,
    /// The request's body, where it was not over at the call.
    upload: Option<Upload>,
    timer: BodyTimer,
    permit: Place,
}

impl<F> Bound<F> {
    pub(super) fn call<S, B>(
        inner: &mut S,
        route: &Arc<Route>,
        permit: Place,
        mut request: Request<B>,
    ) -> Self
    where
        S: Service<Request<B>, Future = F>,
        B: RequestBody,
    {
        let mut upload = None;
        if !request.body().is_end_stream() {
            let (target, version) = (target_of(&request), request.version());
            request = request.map(|body| {
                let (body, watched) = upload::watch(body, target, version, &route.state, false);
                upload = Some(watched);
                body
            });
        }
        let timer = BodyTimer::new(&route.state, Some(route.run_time()));
        let mut asked = Asked::default();
        // A layer of the same `Offload` further inside leaves this request alone.
        let current = Current::enter(route.state.identity(), None, &mut asked);
        let handler = inner.call(request);
        drop(current);
        Self { asked, handler, upload, timer, permit }
    }

    /// Ready when the handler is to be dropped, with the answer in its place.
    fn expired(&mut self, cx: &Context<'_>) -> Poll<Response<Bytes>> {
        let upload = self.upload.as_ref();
        let arrived = upload.and_then(Upload::arrived_while_awaited);
        self.timer.poll(arrived, cx).map(|expired| match expired {
            Expired::Idle => body_timed_out(upload.is_some_and(Upload::is_http1)),
            Expired::End => {
                let problem = Problem::TIMED_OUT.with_detail(
                    "The request reached the run-time limit of its route, and was stopped.",
                );
                wire::problem_answer(problem, None)
            }
        })
    }
}

impl<F, ResB, E> Future for Bound<F>
where
    F: Future<Output = Result<Response<ResB>, E>> + Unpin,
    ResB: ResponseBody,
{
    type Output = F::Output;

    /// The handler comes first: a response that is there is never thrown away.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (identity, handler) = (this.permit.state().identity(), &mut this.handler);
        let polled = within(identity, None, &mut this.asked, || Pin::new(handler).poll(cx));
        if polled.is_ready() {
            this.asked.finished();
            return polled;
        }
        this.expired(cx).map(|answer| Ok(made(plain(answer))))
    }
}
