//! The response future: it polls the handler in place, and moves it into a task when it must.
//!
//! ```text
//!                     handler ready: its response, whatever the stage
//!  Started ──▶ Armed ──budget──▶ Uploading ──body over──▶ Registering ──▶ detached: 202
//!     │           ▲                 │    │                     │
//!     │           └─one more budget─┘    │ body broken         │ refused
//!     │                                  ▼                     ▼
//!     │                               Attached ◀───(after)─────┴──(always)──▶ 503
//!     └──(always, body over at the call)──────▶ Registering, the handler not yet polled
//! ```
//!
//! In each poll the handler comes first: a response that is there is never thrown away. `Attached`
//! is the end of all watching: the request goes on as if the layer were not there.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, uri::PathAndQuery};
use http_body::Body;
use tracing::Span;

use super::{
    layer::Shared,
    movable::Movable,
    upload::{Standing, Upload},
};
use crate::{
    body::ResponseBody,
    deadlines::Deadline,
    error::BoxError,
    job::{Asked, JobId, within},
    policy::{Plan, Start},
    run::{RETRY_AFTER, Refusal, Registered, Registering, Slots, Work},
    wire::{self, Problem},
};

/// The future of [`OffloadService`](super::OffloadService).
#[derive(Debug)]
pub struct ResponseFuture<F> {
    /// `None` where the request is not watched. Dropped first, so that what the handler has started
    /// elsewhere is told to stop before the handler's own drop may wait for it.
    watch: Option<Watch>,
    /// `None` once it is ready or was moved.
    handler: Option<F>,
}

/// A request that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) shared: Arc<Shared>,
    /// The policy's place in the table.
    pub(super) policy: usize,
    pub(super) plan: Plan,
    pub(super) target: Option<PathAndQuery>,
    /// The span that was current at the call.
    pub(super) span: Span,
    /// `None` where the body was over at the call.
    pub(super) upload: Option<Upload>,
    pub(super) asked: Asked,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Started,
    Armed(Deadline),
    /// Waits for the body to be over; with `drain`, the wire is still read into the buffer.
    Uploading {
        drain: bool,
    },
    /// Boxed, since nearly no request comes to it, and each is moved with room for it.
    Registering(Box<Registering>),
    Attached,
}

/// What one look at a stage comes to.
enum Step {
    Wait,
    Next(Stage),
    Detach(Registered),
    Refuse(Refusal),
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(handler: F, watch: Option<Watch>) -> Self {
        Self { watch, handler: Some(handler) }
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
            let polled = within(identity, id, &mut watch.asked, || Pin::new(handler).poll(cx));
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
        let Shared { state, policies } = &*watch.shared;
        let policy = policies.get(watch.policy);
        let answer =
            wire::accepted(&state.urls, registered.record(), RETRY_AFTER, watch.plan.applied);
        let limit = state.limits.max_run_time;
        let work = Work {
            future,
            asked: std::mem::take(&mut watch.asked),
            target: watch.target.take(),
            span: std::mem::replace(&mut watch.span, Span::none()),
            run_time: policy.run_time().map_or(limit, |own| own.min(limit)),
            name: policy.label().cloned(),
        };
        work.spawn(registered);
        // Its drop lets the handler see the end of its body.
        drop(watch);
        made(answer)
    }

    fn refuse(&mut self, refusal: Refusal) -> Response<ResB> {
        self.watch = None;
        self.handler = None;
        made(refused(refusal))
    }
}

/// The 503 of an `always` route.
fn refused(refusal: Refusal) -> Response<Bytes> {
    let problem = match refusal {
        Refusal::Full(limit) => Problem::FULL.with_limit(limit),
        Refusal::Draining => Problem::DRAINING,
        Refusal::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot accept a job");
            Problem::STORE
        }
    };
    wire::problem_answer(problem, Some(RETRY_AFTER))
}

/// An answer of ours in the service's own type.
fn made<ResB: ResponseBody>(answer: Response<Bytes>) -> Response<ResB> {
    answer.map(|data| ResB::from_bytes(data, None))
}

impl Watch {
    pub(super) fn new(
        shared: Arc<Shared>,
        policy: usize,
        plan: Plan,
        target: Option<PathAndQuery>,
    ) -> Self {
        let (span, asked) = (Span::current(), Asked::default());
        Self { shared, policy, plan, target, span, upload: None, asked, stage: Stage::Started }
    }

    /// The id under which a job is being registered.
    fn registering(&self) -> Option<JobId> {
        match &self.stage {
            Stage::Registering(registering) => Some(registering.id()),
            _ => None,
        }
    }

    /// Whether the handler is to be spawned without having been polled here.
    fn is_unpolled(&self) -> bool {
        matches!(self.stage, Stage::Registering(_))
            && self.plan.start == Start::Spawned
            && self.upload.is_none()
    }

    /// An `always` route: begins its handler only where there is room for its job.
    fn start(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        if !matches!(self.stage, Stage::Started) || self.plan.start != Start::Spawned {
            return None;
        }
        let begun = match self.upload {
            // The place itself is taken when the upload is over: one that stalls must not hold it.
            Some(_) => self.shared.state.slots.look().map(|()| Stage::UPLOADING),
            None => self.register(cx),
        };
        match begun {
            Ok(stage) => self.enter(stage),
            Err(refusal) => return Some(refusal),
        }
        None
    }

    fn enter(&mut self, next: Stage) {
        if matches!(next, Stage::Attached) {
            self.upload = None;
        }
        if let Stage::Armed(deadline) = std::mem::replace(&mut self.stage, next) {
            self.shared.state.deadlines.release(deadline);
        }
    }

    /// Looks at what the stage waits for, the handler being pending.
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        match &mut self.stage {
            Stage::Attached => Step::Wait,
            Stage::Started => match self.plan.start {
                Start::Budget(budget) => Step::Next(self.arm(budget, cx)),
                Start::FirstPoll | Start::Spawned => Step::Next(Stage::UPLOADING),
            },
            Stage::Armed(deadline) => {
                match self.shared.state.deadlines.poll(deadline, cx.waker()) {
                    true => Step::Next(Stage::UPLOADING),
                    false => Step::Wait,
                }
            }
            Stage::Uploading { drain } => {
                let standing = match &self.upload {
                    Some(upload) => upload.poll_over(cx, drain),
                    None => Standing::Over { late: false },
                };
                self.uploaded(standing, cx)
            }
            Stage::Registering(registering) => match Pin::new(&mut **registering).poll(cx) {
                Poll::Pending => Step::Wait,
                Poll::Ready(Ok(registered)) => Step::Detach(registered),
                Poll::Ready(Err(refusal)) => self.refused(refusal),
            },
        }
    }

    fn uploaded(&self, standing: Standing, cx: &mut Context<'_>) -> Step {
        match (standing, self.plan.start) {
            (Standing::Open, _) => Step::Wait,
            (Standing::Broken, _) => Step::Next(Stage::Attached),
            // The handler could not go on before it had its body: it has one more budget from here.
            (Standing::Over { late: true }, Start::Budget(budget)) => {
                Step::Next(self.arm(budget, cx))
            }
            (Standing::Over { .. }, _) => match self.register(cx) {
                Ok(stage) => Step::Next(stage),
                Err(refusal) => self.refused(refusal),
            },
        }
    }

    fn arm(&self, budget: Duration, cx: &Context<'_>) -> Stage {
        Stage::Armed(self.shared.state.deadlines.arm(budget, cx.waker()))
    }

    /// Takes a place, and registers a job for it.
    fn register(&self, cx: &mut Context<'_>) -> Result<Stage, Refusal> {
        let slot = Slots::take(&self.shared.state)?;
        let ttl = self.shared.policies.get(self.policy).kept_for();
        let ttl = ttl.unwrap_or(self.shared.state.limits.ttl);
        let id = self.asked.id().map_err(Refusal::Store)?;
        Ok(Stage::Registering(Box::new(Registering::start(slot, id, ttl, cx)?)))
    }

    /// There is no room for a job, or the store fails: what has begun stays as it is.
    fn refused(&self, refusal: Refusal) -> Step {
        if self.plan.start == Start::Spawned {
            return Step::Refuse(refusal);
        }
        tracing::debug!(?refusal, "a slow request stays attached");
        Step::Next(Stage::Attached)
    }
}

impl Stage {
    const UPLOADING: Self = Self::Uploading { drain: true };
}

impl Drop for Watch {
    /// The request has its answer, or its client has left.
    fn drop(&mut self) {
        self.enter(Stage::Attached);
    }
}
