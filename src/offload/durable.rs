//! Jobs that outlive their process: the request is kept before the 202, and whoever serves durable
//! jobs takes it, here or elsewhere.
//!
//! ```text
//!  request ──▶ body in whole ──▶ sealed, in the store ──▶ 202
//!                                     │  ▲
//!             a place, and it is due  ▼  │ its process is lost, or shuts down
//!                       restored, through the whole service, its outcome in the store
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;
use tracing::Span;

use super::{
    deferred::{Deferred, runtime, turn},
    layer::Route,
    watch::target_of,
    whole::Whole,
};
use crate::{
    body::RequestBody,
    error::{BoxError, Error, ErrorKind},
    job::{
        Asked, Change, Claim, End, Failure, JobId, Record, request_from_bytes, request_to_bytes,
    },
    run::{Backoff, Durable, Place, Refusal, Registered, Reserved, State, Work, kept, undo},
};

/// In a request that is run from the store, by the desk with this identity: its layer lets it through,
/// also in another task than the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAgain(pub(super) usize);

/// How long a worker waits for the store before it looks whether its route is still served.
const LOOK: Duration = Duration::from_secs(1);

/// The pause after a look that found nothing, though the store said that there may be something:
/// a store that says so again and again must not keep a permit from others.
const AGAIN: Duration = Duration::from_millis(10);

impl Deferred {
    /// Keeps a job with its request. One that nobody is told of is undone: when it may not be there, and
    /// when its client leaves in the midst of it.
    pub(super) async fn enqueue(
        &self,
        mut head: Parts,
        body: &Bytes,
        claim: Option<Claim>,
        attempts: u16,
    ) -> Result<Record, Refusal> {
        self.look_in()?;
        let state = Arc::clone(&self.route.state);
        let reserved = self.reserve().await?;
        let record = self.new_record(Record::queued, claim).map_err(Refusal::Store)?;
        let record = record.with_attempts(attempts);
        state.seal(&mut head.headers);
        let request = request_to_bytes(&head, body).ok_or_else(|| {
            Refusal::Store(Error::new(ErrorKind::StoreUnavailable, "a request beyond all bounds"))
        })?;
        let undone = Untold { runtime: runtime()?, of: Some((Arc::clone(&state), record.id())) };
        let is_keyed = record.claim().is_some();
        let enqueued = async move {
            let outcome_bytes = state.limits.max_outcome_bytes;
            let enqueued = kept(state.store.enqueue(record.clone(), request, outcome_bytes).await);
            if let Ok(()) | Err(Refusal::Store(_)) = enqueued {
                reserved.into_iter().for_each(Reserved::enqueued);
            }
            match enqueued {
                Err(Refusal::Store(_)) => drop(undone),
                _ => undone.disarm(),
            }
            enqueued.map(|()| record)
        };
        self.carried_on(is_keyed, enqueued).await
    }

    /// Room among the durable jobs that wait: those of the route, and all.
    async fn reserve(&self) -> Result<[Reserved; 2], Refusal> {
        let Route { state, backlog, .. } = &*self.route;
        let own = backlog.reserve(&*state.store).await?;
        Ok([own, state.backlog.reserve(&*state.store).await?])
    }
}

/// A durable job that may be in the store, and whose own request was not told of it: dropped, it is
/// taken back.
struct Untold {
    runtime: Handle,
    of: Option<(Arc<State>, JobId)>,
}

impl Untold {
    fn disarm(mut self) {
        self.of = None;
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some((state, id)) = self.of.take() {
            self.runtime.spawn(undo(state, id));
        }
    }
}

/// Runs the jobs of a durable route through this service, until its layer has gone or the process
/// shuts down.
pub(crate) async fn serve<S, ReqB, ResB>(
    state: Arc<State>,
    name: Arc<str>,
    route: Durable,
    service: S,
) where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
    ReqB: RequestBody,
    ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let mut backoff = Backoff::new();
    while route.is_served() {
        // No permit is held while there is nothing to do.
        match tokio::time::timeout(LOOK, state.store.arrival(Arc::clone(&name))).await {
            Ok(Ok(())) => {}
            Err(_elapsed) => continue,
            Ok(Err(error)) => {
                failed(&name, &error);
                backoff.wait().await;
                continue;
            }
        }
        let Some(place) = route.place().await else { return };
        let (Some(cut), take) = (route.cut(), state.store.take(Arc::clone(&name))) else { return };
        // After that nothing is begun any more.
        let Some(taken) = cut.run_until_cancelled(take).await else { return };
        match taken {
            Ok(Some((record, request))) => {
                backoff = Backoff::new();
                begin::<_, ReqB, _>(place, record, &request, route.run_time, service.clone());
            }
            Ok(None) => {
                drop(place);
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => {
                drop(place);
                failed(&name, &error);
                backoff.wait().await;
            }
        }
    }
}

fn failed(policy: &str, error: &Error) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(policy, error, "cannot take durable jobs, trying again");
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
    let request = match request_from_bytes(request) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(job = %id, error = &error as &dyn std::error::Error, "the request of a durable job cannot be read");
            return registered.end(Change::Finish(End::Failure(Failure::Corrupt)));
        }
    };
    let (mut head, body) = request.into_parts();
    if let Some(restore) = &state.restore {
        restore(&mut head);
    }
    head.extensions.insert(RunAgain(state.identity()));
    let request = Request::from_parts(head, Whole::kept(body, &state).into_body::<ReqB>());
    let target = target_of(&request);
    let span = Span::current();
    Work { future: turn(service, request, None), asked, target, span, run_time }.spawn(registered);
}
