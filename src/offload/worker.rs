//! The workers of durable routes: each takes its route's jobs from the store, and gives each to a task
//! of its own.
//!
//! ```text
//!  ┌▶ the store says that there may be a job ──▶ a permit ──▶ the job ──▶ its task, with the permit
//!  └────────────────────────────────────────────────┴─ there is none ────────────┘
//! ```
//!
//! What is the app's own and belongs to one job (`restore`, its body's type, the handler) runs in that
//! job's task. A panic of the store is an error of its call (`store/guarded.rs`). A clone of the service
//! may panic here all the same: the worker is started again then, after a pause.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tower_service::Service;
use tracing::Span;

use super::{deferred::turn, durable::RunAgain, watch::path_of, whole::Whole};
use crate::{
    body::RequestBody,
    caught::{caught, log, until_caught},
    error::{BoxError, Error, ErrorKind},
    job::{Asked, Change, End, Failure, Record, request_from_bytes},
    run::{Backoff, Durable, Place, Registered, State, StopReason, Work},
};

/// The first pause after a look that found nothing, though the store said that there may be something:
/// a store that says so again and again must not keep a permit from others. It is also the first pause
/// after a job that the store could not read, which others need not wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The longest pause where jobs are damaged.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// The longest one where others were faster: jobs come, and the next may be for this process.
const OTHERS_FASTER: Duration = Duration::from_millis(100);

/// An arrival that took so long was not made up: another process may have been faster.
const ARRIVED: Duration = Duration::from_millis(100);

/// A worker that has run for so long before it panicked is started again at once, or nearly.
const STEADY: Duration = Duration::from_secs(60);

/// Runs the jobs of a durable route through this service, until it is not served any more.
pub(crate) async fn serve<S, ReqB, ResB>(
    state: Arc<State>,
    name: Arc<str>,
    route: Durable,
    service: S,
) -> StopReason
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
    ReqB: RequestBody,
    ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let _running = route.account.worker();
    let mut backoff = Backoff::new();
    let reason = loop {
        let begun = Instant::now();
        let worked = match caught(|| service.clone()) {
            Ok(service) => {
                let worker = Worker { state: &state, name: &name, route: &route, service };
                until_caught(worker.run::<ReqB, ResB>()).await
            }
            Err(panicked) => Err(panicked),
        };
        let panicked = match worked {
            Ok(reason) => break reason,
            Err(panicked) => panicked,
        };
        route.account.restart_worker();
        log(|| {
            let (policy, panic) = (&*name, panicked.message());
            tracing::error!(policy, panic, "a worker of durable jobs panicked, starting it again");
        });
        if begun.elapsed() >= STEADY {
            backoff = Backoff::new();
        }
        if let Err(reason) = route.while_served(backoff.wait()).await {
            break reason;
        }
    };
    log(|| tracing::info!(policy = &*name, ?reason, "a worker of durable jobs has stopped"));
    let _ = caught(|| drop(service));
    reason
}

/// Looks at the store, one after another, of which none has found a job.
#[derive(Default)]
struct Fruitless {
    since: Option<Instant>,
}

impl Fruitless {
    /// Pauses for a tenth of the time for which nothing was found, so that a store that goes on like this
    /// costs little.
    async fn wait(&mut self, longest: Duration) {
        let since = self.since.get_or_insert_with(Instant::now);
        sleep((since.elapsed() / 10).clamp(LOOK_AGAIN, longest)).await;
    }
}

struct Worker<'a, S> {
    state: &'a Arc<State>,
    name: &'a Arc<str>,
    route: &'a Durable,
    service: S,
}

impl<S> Worker<'_, S> {
    async fn run<ReqB, ResB>(mut self) -> StopReason
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut backoff, mut fruitless) = (Backoff::new(), Fruitless::default());
        loop {
            let failed = match self.step::<ReqB, ResB>(&mut fruitless).await {
                Ok(Ok(())) => {
                    backoff = Backoff::new();
                    continue;
                }
                Ok(Err(error)) => error,
                Err(reason) => return reason,
            };
            log(|| {
                let error = &failed as &dyn std::error::Error;
                tracing::warn!(policy = &**self.name, error, "cannot take durable jobs");
            });
            let paused = match failed.kind() {
                ErrorKind::Config => return StopReason::Store(failed),
                // One job is damaged, which the others need not wait for.
                ErrorKind::Corrupt => self.route.while_served(fruitless.wait(LOOK_AGAIN_MAX)).await,
                _ => self.route.while_served(backoff.wait()).await,
            };
            if let Err(reason) = paused {
                return reason;
            }
        }
    }

    /// Waits for a job, and begins it. The error of a store that fails is within.
    async fn step<ReqB, ResB>(
        &mut self,
        fruitless: &mut Fruitless,
    ) -> Result<Result<(), Error>, StopReason>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let (store, route) = (&self.state.store, self.route);
        let asked = Instant::now();
        // No permit is held while there is nothing to do.
        if let Err(error) = route.while_served(store.arrival(Arc::clone(self.name))).await? {
            return Ok(Err(error));
        }
        if asked.elapsed() >= ARRIVED {
            *fruitless = Fruitless::default();
        }
        // Before a job is taken: a panic here harms none.
        let service = self.service.clone();
        let place = route.while_served(route.place()).await??;
        // Not called where the process shuts down: what it gives at once would be lost.
        let take = async { store.take(Arc::clone(self.name)).await };
        match route.while_served(take).await? {
            Ok(Some((record, request))) => {
                *fruitless = Fruitless::default();
                begin::<_, ReqB, _>(place, record, &request, route.run_time, service);
            }
            Ok(None) => {
                drop(place);
                route.while_served(fruitless.wait(OTHERS_FASTER)).await?;
            }
            Err(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }
}

fn begin<S, ReqB, ResB>(
    place: Place,
    record: Record,
    request: &Bytes,
    run_time: Duration,
    service: S,
) where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
    ReqB: RequestBody,
    ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let state = Arc::clone(place.state());
    let asked = Asked::of_attempt(record.id(), record.attempt().unwrap_or(1));
    let id = record.id();
    // Dropped, it gives the job back.
    let Ok(registered) = Registered::taken(record, Handle::current(), place) else { return };
    let (head, body) = match request_from_bytes(request) {
        Ok(request) => request.into_parts(),
        Err(error) => {
            log(|| {
                let error = &error as &dyn std::error::Error;
                tracing::error!(job = %id, error, "the request of a durable job cannot be read");
            });
            return registered.end(Change::Finish(End::Failure(Failure::Corrupt)));
        }
    };
    let target = path_of(&head.uri);
    // The body is a part of the request, and holds all of it.
    let kept = Whole::kept(body, request.len(), &state);
    let future = restored::<_, ReqB>(service, head, kept, state);
    Work { future, asked, target, span: Span::current(), run_time }.spawn(registered);
}

/// The handler, with what its request has lost.
async fn restored<S, ReqB>(
    service: S,
    mut head: Parts,
    body: Whole,
    state: Arc<State>,
) -> Result<S::Response, S::Error>
where
    S: Service<Request<ReqB>>,
    ReqB: RequestBody,
{
    if let Some(restore) = &state.restore {
        restore(&mut head);
    }
    head.extensions.insert(RunAgain(state.identity()));
    drop(state);
    turn(service, Request::from_parts(head, body.into_body::<ReqB>()), None).await
}
