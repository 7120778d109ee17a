//! A request that is watched: what becomes of it while its handler is pending.
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
//! `Attached` is the end of all watching: the request goes on as if the layer were not there.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use http::uri::PathAndQuery;
use tracing::Span;

use super::{
    layer::Shared,
    upload::{Standing, Upload},
};
use crate::{
    deadlines::Deadline,
    error::Error,
    job::{Asked, JobId, Owner, Record},
    policy::{Plan, Start},
    run::{Admission, Lane, Refusal, Registered, Registering},
};

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
    /// Whose it is, where owners are told apart. Boxed, since it is moved with each request, and
    /// hashed for few.
    owner: Option<Box<Owner>>,
    /// `None` where the body was over at the call, or is not watched any more.
    pub(super) upload: Option<Upload>,
    /// The body is not over, or was not when its watching ended.
    is_open: bool,
    pub(super) asked: Asked,
    stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
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
pub(super) enum Step {
    Wait,
    Next(Stage),
    Detach(Registered),
    Refuse(Refusal),
}

impl Watch {
    pub(super) fn new(
        shared: Arc<Shared>,
        policy: usize,
        plan: Plan,
        target: Option<PathAndQuery>,
        owner: Option<Box<Owner>>,
    ) -> Self {
        Self {
            shared,
            policy,
            plan,
            target,
            span: Span::current(),
            owner,
            upload: None,
            is_open: false,
            asked: Asked::default(),
            stage: Stage::Started,
        }
    }

    pub(super) fn lane(&self) -> &Arc<Lane> {
        self.shared.lane(self.policy)
    }

    /// Whether the request's body is over on the wire.
    pub(super) fn is_over(&self) -> bool {
        self.upload.as_ref().map_or(!self.is_open, Upload::is_over)
    }

    /// Whether there was no room for its job, and that was counted: only a request whose body is over
    /// asks for room.
    pub(super) fn was_refused(&self) -> bool {
        matches!(self.stage, Stage::Attached) && self.is_over()
    }

    /// The end of all watching.
    pub(super) fn detach(&mut self) {
        self.enter(Stage::Attached);
    }

    /// The id under which a job is being registered.
    pub(super) fn registering(&self) -> Option<JobId> {
        match &self.stage {
            Stage::Registering(registering) => Some(registering.id()),
            _ => None,
        }
    }

    /// Whether the handler is to be spawned without having been polled here.
    pub(super) fn is_unpolled(&self) -> bool {
        matches!(self.stage, Stage::Registering(_))
            && self.plan.start == Start::Spawned
            && self.upload.is_none()
    }

    /// An `always` route: begins its handler only where there is room for its job.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        if !matches!(self.stage, Stage::Started) || self.plan.start != Start::Spawned {
            return None;
        }
        let begun = match self.upload {
            // The place itself is taken when the upload is over: one that stalls must not hold it.
            Some(_) => self.lane().look().map(|()| Stage::UPLOADING),
            None => self.register(cx),
        };
        match begun {
            Ok(stage) => self.enter(stage),
            Err(refusal) => return Some(refusal),
        }
        None
    }

    pub(super) fn enter(&mut self, next: Stage) {
        if matches!(next, Stage::Attached) {
            self.is_open = !self.is_over();
            self.upload = None;
        }
        if let Stage::Armed(deadline) = std::mem::replace(&mut self.stage, next) {
            self.shared.state.deadlines.release(deadline);
        }
    }

    /// Looks at what the stage waits for, the handler being pending.
    pub(super) fn step(&mut self, cx: &mut Context<'_>) -> Step {
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
        let place = self.lane().take()?;
        let record = self.record().map_err(Refusal::Store)?;
        let registering = Registering::start(Admission::Now(place), record, cx)?;
        Ok(Stage::Registering(Box::new(registering)))
    }

    fn record(&self) -> Result<Record, Error> {
        let id = self.asked.id()?;
        let mut record = Record::running(id, SystemTime::now(), self.shared.ttl(self.policy))
            .with_policy(Arc::clone(self.lane().name()));
        if let Some(owner) = &self.owner {
            record = record.with_owner(owner.digest());
        }
        Ok(match self.asked.said().and_then(|said| said.take()) {
            Some(progress) => record.with_progress(progress),
            None => record,
        })
    }

    /// There is no room for a job, or the store fails: what has begun stays as it is.
    fn refused(&self, refusal: Refusal) -> Step {
        if self.plan.start == Start::Spawned {
            return Step::Refuse(refusal);
        }
        tracing::debug!(?refusal, "a slow request stays attached");
        self.lane().refuse();
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
