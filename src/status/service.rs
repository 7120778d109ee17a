//! The status service: one row of the contract for each method and resource.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower_service::Service;

use crate::{
    body::{ResponseBody, StatusBody},
    caught::log,
    error::{Error, ErrorKind},
    job::{Change, Digest, JobId, Record, Status},
    run::{RETRY_AFTER, State},
    store::{Changed, Fetched},
    wire::{self, Preferences, Problem, Resource},
};

/// The methods of this resource, or of a path that is none.
fn allow(resource: Option<Resource>) -> HeaderValue {
    HeaderValue::from_static(match resource {
        Some(Resource::Status) => "GET, HEAD, OPTIONS",
        _ => "GET, HEAD, DELETE, OPTIONS",
    })
}

/// Answers below the status path: how far a job is, its outcome, and its cancellation. Made by
/// [`Offload::status`](crate::Offload::status).
///
/// Mount it with axum's `nest_service`, at the status path that the `Offload` was made with. In a
/// plain hyper service give it the requests whose path begins with the status path, or use the
/// mounted form of the layer ([`OffloadLayer::mounted`](crate::OffloadLayer::mounted)), which does
/// that. It is never an error, and always ready.
#[derive(Debug, Clone)]
pub struct StatusService {
    state: Arc<State>,
}

/// The future of [`StatusService`].
pub struct StatusFuture {
    answer: Pin<Box<dyn Future<Output = Response<StatusBody>> + Send>>,
}

impl Future for StatusFuture {
    type Output = Result<Response<StatusBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for StatusFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusFuture").finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for StatusService {
    type Response = Response<StatusBody>;
    type Error = Infallible;
    type Future = StatusFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> StatusFuture {
        self.answer::<_, StatusBody>(request)
    }
}

impl StatusService {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// The answer to this request, with a body that `ResB` can be made of.
    pub(crate) fn answer<ReqB, ResB: ResponseBody>(&self, request: Request<ReqB>) -> StatusFuture {
        let asked = Asked::of(&request, &self.state);
        let asker = Asker::of(request, &self.state);
        let state = Arc::clone(&self.state);
        let answer = async move {
            let (head, body) = answer(&state, asker, asked).await.into_parts();
            match body.fit_for::<ResB>().await {
                Ok(body) => Response::from_parts(head, body),
                Err(error) => store_failed(error),
            }
        };
        StatusFuture { answer: Box::pin(answer) }
    }

    /// Whether a request for this path is one for the status service, where no router has stripped
    /// anything of it.
    pub(crate) fn is_for(&self, path: &str) -> bool {
        path == self.state.urls.path() || self.state.urls.below(path).is_some()
    }
}

/// What a request asks for.
enum Asked {
    Get {
        id: JobId,
        resource: Resource,
        wait: Option<Duration>,
        head: bool,
    },
    Delete {
        id: JobId,
        resource: Resource,
    },
    Options {
        resource: Option<Resource>,
    },
    /// A method that is not served.
    Other {
        resource: Option<Resource>,
    },
    /// No path of a job.
    Nothing {
        head: bool,
    },
}

impl Asked {
    fn of<B>(request: &Request<B>, state: &State) -> Self {
        let method = request.method();
        let head = *method == Method::HEAD;
        let asked = state.urls.resource(request.uri().path());
        let resource = asked.map(|(_, resource)| resource);
        match (asked, method) {
            (_, &Method::OPTIONS) => Self::Options { resource },
            (Some((_, Resource::Status)), &Method::DELETE) => Self::Other { resource },
            (Some((id, resource)), &Method::GET | &Method::HEAD) => {
                let wait = Preferences::of(request.headers()).wait;
                let wait =
                    wait.map(|wait| wait.min(state.limits.max_wait)).filter(|wait| !wait.is_zero());
                Self::Get { id, resource, wait, head }
            }
            (Some((id, resource)), &Method::DELETE) => Self::Delete { id, resource },
            (None, &Method::GET | &Method::HEAD | &Method::DELETE) => Self::Nothing { head },
            _ => Self::Other { resource },
        }
    }
}

/// Whoever asks.
enum Asker {
    /// Owners are not told apart: whoever knows the id may ask.
    Anybody,
    Owner(Digest),
    /// A request that has no owner.
    Nobody,
}

impl Asker {
    fn of<B>(request: Request<B>, state: &State) -> Self {
        let Some(owner_of) = &state.owner_of else { return Self::Anybody };
        let (head, _) = request.into_parts();
        owner_of(&head).map_or(Self::Nobody, |owner| Self::Owner(owner.digest()))
    }
}

async fn answer(state: &State, asker: Asker, asked: Asked) -> Response<StatusBody> {
    let (answer, head) = match asked {
        Asked::Get { id, resource, wait, head } => {
            (get(state, &asker, id, resource, wait).await, head)
        }
        Asked::Delete { id, resource } => (delete(state, &asker, id, resource).await, false),
        Asked::Options { resource } => (Ok(options(resource)), false),
        Asked::Other { resource } => (Ok(method_not_allowed(resource)), false),
        Asked::Nothing { head } => (Ok(problem(Problem::UNKNOWN)), head),
    };
    let answer = answer.unwrap_or_else(|error| match error.kind() {
        // Whose it is cannot be read either, so it is nobody's.
        ErrorKind::Corrupt if state.owner_of.is_some() => problem(Problem::UNKNOWN),
        _ => store_failed(error),
    });
    if head { without_body(answer) } else { answer }
}

/// The job, if it is there and whoever asks may know of it, with its outcome where that is asked for:
/// a store on another machine is asked once. The store compares the owner, before it reads anything
/// else: a client must not learn from the time of an answer that another owner has a job.
async fn seen(
    state: &State,
    asker: &Asker,
    id: JobId,
    resource: Resource,
) -> Result<Option<(Record, Option<Fetched>)>, Error> {
    let owner = match asker {
        Asker::Anybody => None,
        Asker::Owner(owner) => Some(*owner),
        Asker::Nobody => return Ok(None),
    };
    match resource {
        Resource::Result => match state.store.fetch(id, owner).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && owner.is_some() => {
                // If only the outcome is damaged, the record still says who owns the job.
                Ok(state.store.read(id, owner).await?.map(|record| (record, None)))
            }
            found => found,
        },
        _ => Ok(state.store.read(id, owner).await?.map(|record| (record, None))),
    }
}

/// `GET` and `HEAD`.
async fn get(
    state: &State,
    asker: &Asker,
    id: JobId,
    resource: Resource,
    wait: Option<Duration>,
) -> Result<Response<StatusBody>, Error> {
    let mut found = seen(state, asker, id, resource).await?;
    let runs = found.as_ref().is_some_and(|(record, _)| !record.status().is_end());
    if let Some(wait) = wait.filter(|_| runs) {
        wait_for_end(state, id, wait).await;
        found = seen(state, asker, id, resource).await?;
    }
    let Some((record, outcome)) = found else {
        return Ok(problem(Problem::UNKNOWN));
    };
    if record.is_removed() {
        return Ok(problem(Problem::REMOVED));
    }
    Ok(match (resource, record.status().is_end()) {
        (Resource::Result, true) => result(&record, outcome),
        (Resource::Status, _) => {
            bytes(wire::document(&state.urls, &record, &state.outlook(&record)))
        }
        (_, true) => bytes(wire::see_other(&state.urls, &record)),
        (_, false) => bytes(wire::in_progress(&state.urls, &record, &state.outlook(&record))),
    })
}

fn result(record: &Record, outcome: Option<Fetched>) -> Response<StatusBody> {
    match (outcome, wire::of_record(record)) {
        (Some(outcome), _) => {
            wire::replayed(outcome.status(), outcome.headers(), outcome.into_body())
        }
        (None, Some(of_job)) => problem(of_job),
        // A store that has the end of a job has its outcome, or has lost it, or cannot read it.
        (None, None) => problem(Problem::CORRUPT),
    }
}

/// `DELETE`: cancels what has not ended; on the result's own URL it removes what has.
async fn delete(
    state: &State,
    asker: &Asker,
    id: JobId,
    resource: Resource,
) -> Result<Response<StatusBody>, Error> {
    // Whose it is never changes.
    if seen(state, asker, id, Resource::Status).await?.is_none() {
        return Ok(problem(Problem::UNKNOWN));
    }
    let removes = resource == Resource::Result;
    let document = |record| bytes(wire::document(&state.urls, &record, &state.outlook(&record)));
    Ok(match state.store.change(id, Change::Cancel).await? {
        Changed::Unknown => problem(Problem::UNKNOWN),
        Changed::Applied(record) => document(record),
        Changed::Refused(_) if removes => match state.store.change(id, Change::Remove).await? {
            // Expired between the two.
            Changed::Unknown => problem(Problem::UNKNOWN),
            Changed::Applied(_) | Changed::Refused(_) => no_content(),
        },
        Changed::Refused(record) if record.status() == Status::Canceled => document(record),
        Changed::Refused(record) => bytes(wire::conflict(&state.urls, &record)),
    })
}

/// `Prefer: wait`: returns when the job ends, when the time is over or, past the bound on waiters,
/// at once.
async fn wait_for_end(state: &State, id: JobId, wait: Duration) {
    let Ok(_waiter) = state.waiters.try_acquire() else { return };
    state.ended(id, Some(wait)).await;
}

fn bytes(response: Response<Bytes>) -> Response<StatusBody> {
    response.map(|data| StatusBody::new(data, None))
}

fn problem(problem: Problem) -> Response<StatusBody> {
    bytes(wire::problem_answer(problem, None))
}

/// A failure of the monitor, never to be taken for one of the work.
fn store_failed(error: Error) -> Response<StatusBody> {
    log(|| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the store does not answer a poll");
    });
    // What is damaged stays so: nobody is asked to come back for it.
    bytes(match error.kind() {
        ErrorKind::Corrupt => wire::problem_answer(Problem::CORRUPT, None),
        _ => wire::problem_answer(Problem::STORE, Some(RETRY_AFTER)),
    })
}

fn no_content() -> Response<StatusBody> {
    let mut response = Response::new(StatusBody::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::CACHE_CONTROL, wire::NO_STORE);
    response
}

fn options(resource: Option<Resource>) -> Response<StatusBody> {
    let mut response = no_content();
    response.headers_mut().insert(header::ALLOW, allow(resource));
    response
}

fn method_not_allowed(resource: Option<Resource>) -> Response<StatusBody> {
    let mut response = problem(Problem::METHOD);
    response.headers_mut().insert(header::ALLOW, allow(resource));
    response
}

/// The answer to `HEAD`: the length that the body would have, and none of it. Where a status has no
/// content, or names that of another response, there is no length to tell (RFC 9110, section 8.6).
fn without_body(response: Response<StatusBody>) -> Response<StatusBody> {
    let (mut head, body) = response.into_parts();
    let has_length = !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if let Some(length) = body.size_hint().exact().filter(|_| has_length) {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, StatusBody::default())
}
