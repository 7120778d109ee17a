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
    answer::{plain, refused},
    deferred::{Deferred, turn},
    watch::target_of,
    whole::Whole,
};
use crate::{
    body::{RequestBody, StatusBody},
    error::{BoxError, Error, ErrorKind},
    job::{Asked, Change, Claim, End, Failure, Record, request_from_bytes, request_to_bytes},
    run::{Backoff, Durable, Place, Refusal, Registered, State, Work, kept, undo},
};

/// In a request that is run from the store, by the desk with this identity: its layer lets it through,
/// also in another task than the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAgain(pub(super) usize);

/// So long after it was told of nothing, a process looks for jobs all the same.
const LOOK: Duration = Duration::from_secs(1);

impl Deferred {
    /// The answer to a request of a durable route. Whether there is a place for its job just now does
    /// not matter: it waits in the store.
    pub(super) async fn answer_durable<B: RequestBody>(
        self,
        request: Request<B>,
        attempts: u16,
    ) -> Response<StatusBody> {
        if let Err(refusal @ Refusal::Draining) = self.lane().look_in() {
            return plain(refused(refusal, self.lane()));
        }
        let (head, body) = request.into_parts();
        let whole = match Whole::of(body, &self.route.state).await {
            Ok(whole) => whole,
            Err(problem) => return plain(self.unread(problem)),
        };
        let claim = self.claim(&head.method, &whole);
        match self.enqueue(head, whole.data(), claim.clone(), attempts).await {
            Ok(record) => self.told(record).await,
            Err(Refusal::Claimed(record)) => self.follow(*record, claim.as_ref()).await,
            Err(refusal) => plain(refused(refusal, self.lane())),
        }
    }

    /// Keeps a job with its request. When the client leaves in the midst of it, the job may be there all
    /// the same, as one whose 202 is lost.
    async fn enqueue(
        &self,
        mut head: Parts,
        body: &Bytes,
        claim: Option<Claim>,
        attempts: u16,
    ) -> Result<Record, Refusal> {
        let state = &self.route.state;
        let record = self.new_record(Record::queued, claim).map_err(Refusal::Store)?;
        let record = record.with_attempts(attempts);
        state.seal(&mut head.headers);
        let request = request_to_bytes(&head, body).ok_or_else(|| {
            Refusal::Store(Error::new(ErrorKind::StoreUnavailable, "a request beyond all bounds"))
        })?;
        let outcome_bytes = state.limits.max_outcome_bytes;
        let enqueued = kept(state.store.enqueue(record.clone(), request, outcome_bytes).await);
        if let Err(Refusal::Store(_)) = &enqueued {
            tokio::spawn(undo(Arc::clone(state), record.clone()));
        }
        enqueued.map(|()| record)
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
    while let Some(place) = route.place().await {
        let (Some(cut), take) = (route.cut(), state.store.take(Arc::clone(&name))) else { return };
        // After that nothing is begun any more.
        let Some(taken) = cut.run_until_cancelled(take).await else { return };
        match taken {
            Ok(Some((record, request))) => {
                backoff = Backoff::new();
                begin::<_, ReqB, _>(place, record, &request, route.run_time, service.clone());
            }
            Ok(None) => {
                // Others may have the place meanwhile.
                drop(place);
                let arrival = state.store.arrival();
                if let Ok(Err(error)) = tokio::time::timeout(LOOK, arrival).await {
                    failed(&name, &error);
                    backoff.wait().await;
                }
            }
            Err(error) => {
                drop(place);
                failed(&name, &error);
                backoff.wait().await;
            }
        }
        if !route.is_served() {
            return;
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
            tracing::error!(job = %id, error = &error as &dyn std::error::Error, "a durable request is lost");
            return registered.end(Change::Finish(End::Failure(Failure::ServiceError)));
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
    Work { future: turn(service, request), asked, target, span, run_time }.spawn(registered);
}
