//! Requests that are jobs before their handler begins: those of a route with a queue, and those
//! with an `Idempotency-Key`.
//!
//! ```text
//!  body in whole ──▶ a place, or a place in the queue ──▶ in the store ──▶ a task ──▶ 202
//!       │                        │                            │      with a key: after its budget,
//!       ▼ 413                    ▼ 503                        ▼      or its response before that
//!                                                   the key is another job's: that one's answer,
//!                                                   or 422
//! ```
//!
//! The service that was readied for the request is given back at once: it may hold a permit, and a
//! request in the queue would starve its own route. A fresh clone is readied at the job's turn.

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use http::{Request, Response, Version, uri::PathAndQuery};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;
use tracing::Span;

use super::{
    answer::{body_timed_out, plain, refused},
    layer::Route,
    whole::{Counted, Whole},
};
use crate::{
    body::{RequestBody, ResponseBody, StatusBody},
    error::{BoxError, Error, ErrorKind},
    job::{Asked, Claim, Digest, JobId, Owner, Record},
    run::{Admission, Lane, Refusal, Registering, Work},
    system,
    wire::{self, Problem},
};

/// A request that is a job before its handler begins.
pub(super) struct Deferred {
    pub(super) route: Arc<Route>,
    /// How long the client waits for the response; `None`: until it is there.
    pub(super) patience: Option<Duration>,
    /// The preference to confirm in the 202.
    pub(super) applied: Option<Option<Duration>>,
    pub(super) owner: Option<Owner>,
    /// The hash of the owner and the `Idempotency-Key`.
    pub(super) key: Option<Digest>,
    pub(super) target: PathAndQuery,
    /// The span that was current at the call.
    pub(super) span: Span,
}

/// The hash of an owner and their key.
pub(super) fn key_of(owner: &Owner, key: &str) -> Digest {
    Digest::of("key", &[owner.digest().as_bytes(), key.as_bytes()])
}

impl Deferred {
    pub(super) fn lane(&self) -> &Arc<Lane> {
        &self.route.lane
    }

    /// The answer to the request, with a body that the service's own can be made of. `service` is not
    /// readied.
    pub(super) async fn answer<S, ReqB, ResB>(
        self,
        service: S,
        request: Request<ReqB>,
    ) -> Response<StatusBody>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let lane = Arc::clone(self.lane());
        let (head, body) = self.answer_of(service, request).await.into_parts();
        match body.fit_for::<ResB>().await {
            Ok(body) => Response::from_parts(head, body),
            Err(error) => plain(refused(Refusal::Store(error), &lane)),
        }
    }

    async fn answer_of<S, ReqB, ResB>(
        self,
        service: S,
        request: Request<ReqB>,
    ) -> Response<StatusBody>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        // A request whose key is a job's has its answer there, whether there is room or not.
        if self.key.is_none() {
            if let Err(refusal) = self.look_in() {
                return plain(refused(refusal, self.lane()));
            }
        }
        let (head, body) = request.into_parts();
        let state = &self.route.state;
        // Before its body, so that a request that finds no room is not read.
        let taken_in = match Counted::head(&head, state) {
            Ok(counted) => Whole::of(body, state).await.map(|whole| (counted, whole)),
            Err(problem) => Err(problem),
        };
        let (counted, whole) = match taken_in {
            Ok(taken_in) => taken_in,
            Err(problem) => return plain(self.unread(problem, head.version)),
        };
        let claim = self.claim(&head.method, &whole);
        // The insertion tells whether the key is another job's, so the store is asked once.
        let made = match self.route.policy.attempts() {
            Some(attempts) => self.enqueue(head, (counted, whole), claim.clone(), attempts).await,
            None => {
                let request = Request::from_parts(head, whole.into_body::<ReqB>());
                self.launch(service, request, counted, claim.clone()).await
            }
        };
        match made {
            Ok(record) => self.told(record).await,
            Err(Refusal::Claimed(record)) => self.follow(*record, claim.as_ref()).await,
            Err(refusal @ (Refusal::Full(_) | Refusal::Draining)) => {
                match self.claimed(claim.as_ref()).await {
                    Some(record) => self.follow(record, claim.as_ref()).await,
                    None => plain(refused(refusal, self.lane())),
                }
            }
            Err(refusal) => plain(refused(refusal, self.lane())),
        }
    }

    /// Whether there can be a job. A durable one waits in the store, so whether there is a place for it
    /// just now does not matter.
    pub(super) fn look_in(&self) -> Result<(), Refusal> {
        match self.lane().look_in() {
            Err(Refusal::Full(_)) if self.route.policy.attempts().is_some() => Ok(()),
            looked => looked,
        }
    }

    /// The answer to a request whose body is not to be had.
    fn unread(&self, problem: Problem, version: Version) -> Response<bytes::Bytes> {
        if problem == Problem::BODY_TIMEOUT {
            return body_timed_out(version <= Version::HTTP_11);
        }
        let full = problem == Problem::FULL.with_limit("max_buffered_bytes");
        if full {
            self.lane().refuse();
        }
        wire::problem_answer(problem, full.then(|| self.lane().retry_after()))
    }

    /// The claim on the request's key. The policy's name is part of what must be the same: under
    /// nested routers a layer sees the end of the path only.
    fn claim(&self, method: &http::Method, whole: &Whole) -> Option<Claim> {
        let key = self.key?;
        let target = self.target.as_str();
        let name = self.route.policy.label().map_or("", |name| name);
        let parts = [method.as_str().as_bytes(), name.as_bytes(), target.as_bytes(), whole.data()];
        Some(Claim::new(key, Digest::of("request", &parts)))
    }

    /// Registers the job and starts its task.
    async fn launch<S, ReqB, ResB>(
        &self,
        service: S,
        request: Request<ReqB>,
        counted: Counted,
        claim: Option<Claim>,
    ) -> Result<Record, Refusal>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let admission = self.lane().enter()?;
        let is_keyed = claim.is_some();
        let record = self.record(&admission, claim).map_err(Refusal::Store)?;
        let work = Work {
            future: turn(service, request, Some(counted)),
            asked: Asked::default(),
            target: self.target.clone(),
            span: self.span.clone(),
            run_time: self.route.run_time(),
        };
        let launched = async move {
            let mut parts = Some((admission, record));
            // The store in memory is done with the first poll.
            let registering = poll_fn(|cx| {
                Poll::Ready(parts.take().map(|(place, job)| Registering::start(place, job, cx)))
            });
            let Some(registering) = registering.await else { unreachable!("polled once") };
            let registered = registering?.await?;
            let record = registered.record().clone();
            work.spawn(registered);
            Ok(record)
        };
        self.carried_on(is_keyed, launched).await
    }

    /// Comes to the end of a registration also when the client leaves in the midst of it, where another
    /// request may have been told of it already, since it has a key, and where the policy finishes what
    /// was begun.
    pub(super) async fn carried_on(
        &self,
        is_keyed: bool,
        registered: impl Future<Output = Result<Record, Refusal>> + Send + 'static,
    ) -> Result<Record, Refusal> {
        if !is_keyed && !self.route.policy.finishes() {
            return Box::pin(registered).await;
        }
        runtime()?.spawn(registered).await.map_err(|gone| cut_off(gone.into()))?
    }

    fn record(&self, admission: &Admission, claim: Option<Claim>) -> Result<Record, Error> {
        match (admission, claim) {
            (Admission::Now(_), None) => self.new_record(Record::running, None),
            // Whether its handler has begun decides whether its key is free again.
            (_, claim) => self.new_record(Record::queued, claim),
        }
    }

    pub(super) fn new_record(
        &self,
        make: fn(JobId, SystemTime, Duration) -> Record,
        claim: Option<Claim>,
    ) -> Result<Record, Error> {
        let id = match &claim {
            Some(claim) => JobId::random_beside(claim.key())?,
            None => JobId::random()?,
        };
        let mut record = make(id, system::now(), self.route.ttl());
        if let Some(claim) = claim {
            record = record.with_claim(claim);
        }
        if let Some(owner) = &self.owner {
            record = record.with_owner(owner.digest());
        }
        Ok(record.with_policy(Arc::clone(self.lane().name())))
    }

    /// The job that has the claim on this key, if there is one.
    async fn claimed(&self, claim: Option<&Claim>) -> Option<Record> {
        self.route.state.store.claimed(*claim?.key()).await.ok()?
    }

    /// The answer of a job that was there before.
    async fn follow(&self, record: Record, claim: Option<&Claim>) -> Response<StatusBody> {
        match record.claim().map(Claim::fingerprint) == claim.map(Claim::fingerprint) {
            true => self.told(record).await,
            false => plain(wire::problem_answer(Problem::KEY_REUSED, None)),
        }
    }

    /// The answer of this job: its response, if there is one while the client waits; else 202.
    async fn told(&self, record: Record) -> Response<StatusBody> {
        if self.key.is_none() {
            return self.accepted(&record);
        }
        let state = &self.route.state;
        if !record.status().is_end() {
            self.wait(record.id()).await;
        }
        match state.store.fetch(record.id(), None).await {
            Ok(Some((record, _))) if record.is_removed() => {
                plain(wire::problem_answer(Problem::REMOVED, None))
            }
            Ok(Some((_, Some(outcome)))) => {
                wire::answered(outcome.status(), outcome.headers(), outcome.into_body())
            }
            Ok(Some((record, None))) => match wire::of_record(&record) {
                Some(problem) => plain(wire::problem_answer(problem, None)),
                // The store has lost its outcome.
                None if record.status().is_end() => {
                    plain(wire::problem_answer(Problem::CORRUPT, None))
                }
                None => self.accepted(&record),
            },
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                plain(wire::problem_answer(Problem::CORRUPT, None))
            }
            // Expired while its client waited, or the store fails: the request may be sent again.
            Ok(None) | Err(_) => {
                plain(wire::problem_answer(Problem::STORE, Some(self.lane().retry_after())))
            }
        }
    }

    async fn wait(&self, id: JobId) {
        let state = &self.route.state;
        match self.patience {
            None => state.ended(id, None).await,
            Some(Duration::ZERO) => {}
            // Past the bound on waiters nobody waits.
            Some(patience) => {
                if let Ok(_waiter) = state.waiters.try_acquire() {
                    state.ended(id, Some(patience)).await;
                }
            }
        }
    }

    fn accepted(&self, record: &Record) -> Response<StatusBody> {
        let state = &self.route.state;
        plain(wire::accepted(&state.urls, record, &state.outlook(record), self.applied))
    }
}

/// The runtime that goes on when a request's own future is dropped.
pub(super) fn runtime() -> Result<Handle, Refusal> {
    Handle::try_current().map_err(|none| cut_off(none.into()))
}

fn cut_off(error: BoxError) -> Refusal {
    let error =
        Error::new(ErrorKind::StoreUnavailable, "registration was cut off").with_source(error);
    Refusal::Store(error)
}

/// The handler, once it is its turn. Until then the request's head counts as buffered.
pub(super) async fn turn<S, R>(
    mut service: S,
    request: R,
    counted: Option<Counted>,
) -> Result<S::Response, S::Error>
where
    S: Service<R>,
{
    poll_fn(|cx| service.poll_ready(cx)).await?;
    drop(counted);
    service.call(request).await
}
