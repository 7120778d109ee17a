//! A request that is watched: what becomes of it while its handler is pending.
//!
//! Its stages, and how they follow each other: `stage.rs`.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, Version, uri::PathAndQuery};

use super::{
    answer::body_timed_out,
    body_timer::BodyTimer,
    control::{Standing, Upload},
    layer::Route,
    rescue::Rescue,
    stage::{Stage, Step},
    upload,
};
use crate::{
    body::RequestBody,
    caught::log,
    deadlines::Deadline,
    error::Error,
    job::{Asked, JobId, Owner, Record, watched_by},
    policy::{Plan, Start},
    run::{Admission, Lane, Refusal, Registering},
    system,
};

/// A request that is watched. Each is moved with room for this, so it is kept small: see the assertion
/// below.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) route: Arc<Route>,
    of: Of,
    special: Option<Box<Special>>,
    stage: Stage,
}

/// With a handler's future of 64 bytes it makes a response future of 128, the most that rustc moves
/// without a call of `memcpy`.
const _: () = assert!(size_of::<Watch>() <= 64);

/// What is watched of a request.
#[derive(Debug)]
enum Of {
    /// Its path alone: the body was over at the call, or is not watched any more.
    Target(PathAndQuery),
    /// Its body, which has the path.
    Upload(Upload),
}

/// What nearly no request has.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// What the handler has asked for of its job.
    pub(super) asked: Asked,
    /// How it is watched, where its policy does not say so.
    plan: Option<Plan>,
    /// Whose it is, where owners are told apart.
    owner: Option<Owner>,
    /// How its handler is finished if the client leaves; `None` where it is not.
    pub(super) rescue: Option<Rescue>,
    registering: Option<Registering>,
    /// How long the body of an `always` route's request may take.
    timer: Option<BodyTimer>,
}

/// The path that references in the response are relative to.
pub(super) fn target_of<B>(request: &Request<B>) -> PathAndQuery {
    path_of(request.uri())
}

/// The path of the request for this URI.
pub(super) fn path_of(uri: &Uri) -> PathAndQuery {
    // Only `CONNECT` has none (RFC 9112, section 3.2.3), and is never watched.
    let none = || PathAndQuery::from_static("/");
    uri.path_and_query().map_or_else(none, Clone::clone)
}

impl Watch {
    #[inline]
    pub(super) fn new(route: Arc<Route>, target: PathAndQuery, stage: Stage) -> Self {
        Self { route, of: Of::Target(target), special: None, stage }
    }

    /// A request that has something of its own.
    pub(super) fn special(
        route: Arc<Route>,
        target: PathAndQuery,
        plan: Plan,
        owner: Option<Owner>,
        rescue: Option<Rescue>,
    ) -> Self {
        let mut watch = Self::new(route, target, Stage::Started);
        let special = Special { plan: Some(plan), owner, rescue, ..Special::default() };
        watch.special = Some(Box::new(special));
        if watch.start() == Start::Spawned {
            watch.stage = Stage::Unbegun;
        }
        watch
    }

    /// Watches this body.
    pub(super) fn upload<B: RequestBody>(&mut self, body: B, version: Version) -> B {
        let target = self.target().clone();
        let (state, hold_end) = (&self.route.state, self.is_unbegun());
        let (body, upload) = upload::watch(body, target, version, state, hold_end);
        self.of = Of::Upload(upload);
        body
    }

    pub(super) fn lane(&self) -> &Arc<Lane> {
        &self.route.lane
    }

    pub(super) fn target(&self) -> &PathAndQuery {
        match &self.of {
            Of::Target(target) => target,
            Of::Upload(upload) => upload.target(),
        }
    }

    pub(super) fn identity(&self) -> usize {
        self.route.state.identity()
    }

    fn start(&self) -> Start {
        let own = self.special.as_ref().and_then(|special| special.plan);
        // Without a plan of its own a request is watched because its policy says so.
        let start = own.map(|plan| plan.start).or_else(|| self.route.policy.usual_start());
        start.unwrap_or(Start::FirstPoll)
    }

    /// The preference to confirm in the 202.
    pub(super) fn applied(&self) -> Option<Option<Duration>> {
        self.special.as_ref()?.plan?.applied
    }

    /// Whether there is nothing to do but to poll the handler.
    #[inline]
    pub(super) fn is_simple(&self) -> bool {
        let poll =
            matches!(self.stage, Stage::Started | Stage::Armed { .. } | Stage::Attached { .. });
        poll && self.special.is_none()
    }

    /// What is special about it, from here on.
    pub(super) fn special_mut(&mut self) -> &mut Special {
        self.special.get_or_insert_default()
    }

    /// What the handler has asked for of its job.
    pub(super) fn take_asked(&mut self) -> Asked {
        self.special.as_mut().map(|special| std::mem::take(&mut special.asked)).unwrap_or_default()
    }

    /// How the handler is finished, where it can be now.
    pub(super) fn take_rescue(&mut self) -> Option<Rescue> {
        self.special.as_mut()?.rescue.take()
    }

    /// Whether the handler is to begin as a job, and has not.
    #[inline]
    pub(super) fn is_unbegun(&self) -> bool {
        matches!(self.stage, Stage::Unbegun)
    }

    /// Whether an outer layer watches the request already. Asked when it is about to become a job; one for
    /// the status service was let through before (`Route::first_look`).
    fn is_seen_to(&self) -> bool {
        watched_by(self.identity())
    }

    /// Whether the request's body is over on the wire.
    pub(super) fn is_over(&self) -> bool {
        match (&self.of, &self.stage) {
            (Of::Upload(upload), _) => upload.is_over(),
            (_, Stage::Attached { is_open }) => !is_open,
            _ => true,
        }
    }

    /// Whether there was no room for its job, and that was counted: only a request whose body is over
    /// asks for room.
    pub(super) fn was_refused(&self) -> bool {
        matches!(self.stage, Stage::Attached { .. }) && self.is_over()
    }

    /// The end of all watching.
    pub(super) fn detach(&mut self) {
        self.enter(self.attached());
    }

    /// The id under which a job is being registered.
    pub(super) fn registering(&self) -> Option<JobId> {
        Some(self.special.as_ref()?.registering.as_ref()?.id())
    }

    /// Whether the handler is to be spawned without having been polled here.
    pub(super) fn is_unpolled(&self) -> bool {
        matches!((&self.stage, &self.of), (Stage::Registering, Of::Target(_)))
            && self.start() == Start::Spawned
    }

    /// An `always` route: begins its handler only where there is room for its job.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        let begun = match &self.of {
            _ if self.is_seen_to() => Ok(self.attached()),
            // The place itself is taken when the upload is over: one that stalls must not hold it.
            Of::Upload(_) => self.lane().look().map(|()| Stage::UPLOADING),
            Of::Target(_) => self.register(cx),
        };
        match begun {
            Ok(stage) => self.enter(stage),
            Err(refusal) => return Some(refusal),
        }
        None
    }

    pub(super) fn enter(&mut self, next: Stage) {
        if let Stage::Attached { .. } = next {
            if let Of::Upload(upload) = &self.of {
                self.of = Of::Target(upload.target().clone());
            }
            if let Some(special) = &mut self.special {
                special.registering = None;
                special.timer = None;
            }
        }
        self.enter_quietly(next);
    }

    fn attached(&self) -> Stage {
        Stage::Attached { is_open: !self.is_over() }
    }

    /// The handler is ready: a deadline is given up, a registration taken back, and the body is no
    /// concern of the layer any more.
    #[inline]
    pub(super) fn end(&mut self) {
        match (&self.of, &self.special) {
            (Of::Target(_), None) => self.enter_quietly(Stage::Attached { is_open: false }),
            _ => {
                self.take_asked().finished();
                self.detach();
            }
        }
    }

    /// As `enter`, where neither a body nor a registration has to be let go of.
    #[inline]
    fn enter_quietly(&mut self, next: Stage) {
        if let Stage::Armed { shard, slot } = std::mem::replace(&mut self.stage, next) {
            self.route.state.deadlines.release(Deadline { shard, slot });
        }
    }

    /// Whether there is nothing to do yet while the handler is pending: its budget has just begun, or
    /// has not run out, or nothing is watched.
    #[inline]
    pub(super) fn is_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        match self.stage {
            Stage::Armed { shard, slot } => {
                !self.route.state.deadlines.poll(Deadline { shard, slot }, cx.waker())
            }
            Stage::Started => match self.start() {
                Start::Budget(budget) => {
                    self.stage = self.arm(budget, cx);
                    true
                }
                _ => false,
            },
            Stage::Attached { .. } => true,
            _ => false,
        }
    }

    /// Looks at what the stage waits for, the handler being pending.
    pub(super) fn step(&mut self, cx: &mut Context<'_>) -> Step {
        if self.is_waiting(cx) {
            return Step::Wait;
        }
        match &mut self.stage {
            Stage::Attached { .. } => Step::Wait,
            Stage::Unbegun | Stage::Started | Stage::Armed { .. } => self.due(),
            Stage::Uploading { drain } => {
                let standing = match &self.of {
                    Of::Upload(upload) => upload.poll_over(cx, drain),
                    Of::Target(_) => Standing::Over { late: false },
                };
                self.uploaded(standing, cx)
            }
            Stage::Registering => self.registered(cx),
        }
    }

    /// The request is to be a job, once its body is over.
    fn due(&self) -> Step {
        Step::Next(if self.is_seen_to() { self.attached() } else { Stage::UPLOADING })
    }

    fn uploaded(&mut self, standing: Standing, cx: &mut Context<'_>) -> Step {
        match (standing, self.start()) {
            (Standing::Open, Start::Spawned) => self.stalled(cx).map_or(Step::Wait, Step::Answer),
            (Standing::Open, _) => Step::Wait,
            (Standing::Broken, _) => Step::Next(self.attached()),
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

    /// The answer to a request of an `always` route whose client has stopped to send its body. It
    /// is not bounded in all: a handler may read a stream for as long as that comes. Those of other
    /// routes are attached, as if the layer were not there; what their handlers do not read is not
    /// theirs to wait for.
    fn stalled(&mut self, cx: &Context<'_>) -> Option<Box<Response<Bytes>>> {
        let Of::Upload(upload) = &self.of else { return None };
        let (arrived, is_http1) = (upload.arrived_while_awaited(), upload.is_http1());
        let state = &self.route.state;
        let timer = &mut self.special.get_or_insert_default().timer;
        let timer = timer.get_or_insert_with(|| BodyTimer::new(state, None));
        match timer.poll(arrived, cx) {
            Poll::Pending => None,
            Poll::Ready(_) => Some(Box::new(body_timed_out(is_http1))),
        }
    }

    fn registered(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(registering) = &mut self.special_mut().registering else {
            return Step::Next(self.attached());
        };
        match Pin::new(registering).poll(cx) {
            Poll::Pending => Step::Wait,
            Poll::Ready(Ok(registered)) => Step::Detach(registered),
            Poll::Ready(Err(refusal)) => self.refused(refusal),
        }
    }

    fn arm(&self, budget: Duration, cx: &Context<'_>) -> Stage {
        let Deadline { shard, slot } = self.route.state.deadlines.arm(budget, cx.waker());
        Stage::Armed { shard, slot }
    }

    /// Takes a place, and registers a job for it.
    fn register(&mut self, cx: &mut Context<'_>) -> Result<Stage, Refusal> {
        let place = self.lane().take()?;
        let record = self.record().map_err(Refusal::Store)?;
        let registering = Registering::start(Admission::Now(place), record, cx)?;
        self.special_mut().registering = Some(registering);
        Ok(Stage::Registering)
    }

    fn record(&self) -> Result<Record, Error> {
        let none = Special::default();
        let Special { asked, owner, .. } = self.special.as_deref().unwrap_or(&none);
        let mut record = Record::running(asked.id()?, system::now(), self.route.ttl())
            .with_policy(Arc::clone(self.lane().name()));
        if let Some(owner) = owner {
            record = record.with_owner(owner.digest());
        }
        Ok(match asked.said().and_then(|said| said.take()) {
            Some(progress) => record.with_progress(progress),
            None => record,
        })
    }

    /// There is no room for a job, or the store fails: what has begun stays as it is.
    fn refused(&self, refusal: Refusal) -> Step {
        if self.start() == Start::Spawned {
            return Step::Refuse(refusal);
        }
        log(|| tracing::debug!(?refusal, "a slow request stays attached"));
        self.lane().refuse();
        Step::Next(self.attached())
    }
}

impl Drop for Watch {
    /// The request has its answer, or its client has left.
    #[inline]
    fn drop(&mut self) {
        self.enter_quietly(Stage::Attached { is_open: false });
    }
}
