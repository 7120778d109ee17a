//! The service: decides for each request whether it is watched, and how.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;
use tracing::Span;

use super::{
    Answers, Movable, ResponseFuture,
    answer::plain,
    deferred::{Deferred, key_of},
    layer::Shared,
    rescue::Rescue,
    upload,
    watch::Watch,
};
use crate::{
    body::{RequestBody, ResponseBody},
    error::BoxError,
    job::{Owner, watched_by, within},
    policy::{Keys, Policy, Start, is_exempt},
    run::OwnerOf,
    wire::{self, Problem},
};

/// Takes slow requests off their connection. Made by [`OffloadLayer`](super::OffloadLayer).
#[derive(Debug, Clone)]
pub struct OffloadService<
    // No `Service`? If the future of `S` is not `Unpin`, call `offload.layer(policy).boxed()`.
    S,
> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> OffloadService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// The policy's place in the table, if it may take this request off its connection. The cheapest
    /// first: `never` looks at nothing.
    fn policy<B>(&self, request: &Request<B>) -> Option<usize> {
        let policies = &self.shared.policies;
        let index = policies.find(request);
        (!policies.get(index).is_never() && !is_exempt(request)).then_some(index)
    }

    /// Whether this is a request for the status service, or one that an outer layer watches already.
    fn is_seen_to<B>(&self, request: &Request<B>) -> bool {
        let state = &self.shared.state;
        state.urls.is_status_path(request.uri().path()) || watched_by(state.identity())
    }

    /// What becomes of a request that its policy may take off its connection.
    fn way<B>(&self, index: usize, request: Request<B>) -> (Way, Request<B>) {
        let Shared { state, policies, .. } = &*self.shared;
        let policy = policies.get(index);
        let plan = policy.plan(request.headers(), state.limits.max_wait);
        let key = key(policy, &request);
        if plan.is_none() && key == Ok(None) || self.is_seen_to(&request) {
            return (Way::Through, request);
        }
        let key = match key {
            Ok(key) => key,
            Err(problem) => return (Way::refused(problem), request),
        };
        let (owner, request) = owner(state.owner_of.as_deref(), request);
        if state.owner_of.is_some() && owner.is_none() {
            // RFC 9110, section 15.5.2, wants a challenge with a 401; which scheme it would be, only
            // the layer for authentication knows, which stands outside of this one.
            return match policy.is_always() || key.is_some() {
                true => (Way::refused(Problem::NO_OWNER), request),
                false => (Way::Through, request),
            };
        }
        let target = request.uri().path_and_query().cloned();
        let key = key.and_then(|key| Some(key_of(owner.as_deref()?, &key)));
        let shared = Arc::clone(&self.shared);
        let way = match plan {
            Some(plan) if key.is_none() && !(policy.is_always() && policy.waiting() > 0) => {
                Way::Watched(Watch::new(shared, index, plan, target, owner))
            }
            plan => Way::Deferred(Deferred {
                patience: plan.map(|plan| plan.start.budget()),
                applied: plan.and_then(|plan| plan.applied),
                span: Span::current(),
                policy: index,
                shared,
                owner,
                key,
                target,
            }),
        };
        (way, request)
    }
}

/// What becomes of a request.
enum Way {
    /// The layer has nothing to do with it.
    Through,
    Watched(Watch),
    Deferred(Deferred),
    Answered(Response<Bytes>),
}

impl Way {
    fn refused(problem: Problem) -> Self {
        Self::Answered(wire::problem_answer(problem, None))
    }
}

/// The `Idempotency-Key`, where the policy honours it.
fn key<B>(policy: &Policy, request: &Request<B>) -> Result<Option<String>, Problem> {
    if policy.keys() == Keys::Ignored {
        return Ok(None);
    }
    match wire::idempotency_key(request.headers()) {
        Ok(None) if policy.keys() == Keys::Required && !request.method().is_safe() => {
            Err(Problem::KEY_MISSING)
        }
        Ok(key) => Ok(key.map(Cow::into_owned)),
        Err(bad) => Err(Problem::KEY_MALFORMED.with_detail(bad.detail())),
    }
}

/// Whose request it is.
fn owner<B>(owner_of: Option<&OwnerOf>, request: Request<B>) -> (Option<Box<Owner>>, Request<B>) {
    let Some(owner_of) = owner_of else { return (None, request) };
    let (head, body) = request.into_parts();
    (owner_of(&head).map(Box::new), Request::from_parts(head, body))
}

impl<S, ReqB, ResB> Service<Request<ReqB>> for OffloadService<S>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Movable<Output = Result<Response<ResB>, S::Error>> + Send + 'static,
    ReqB: RequestBody,
    ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    Self: Answers<Request<ReqB>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let Some(policy) = self.policy(&request) else {
            return ResponseFuture::through(self.inner.call(request));
        };
        match self.way(policy, request) {
            (Way::Through, request) => ResponseFuture::through(self.inner.call(request)),
            (Way::Watched(watch), request) => self.watched(watch, request),
            (Way::Deferred(deferred), request) => {
                // What was readied may hold a permit: it is given back, and the job's turn readies
                // another.
                let service = self.inner.clone();
                self.inner = service.clone();
                ResponseFuture::ours(deferred.answer(service, request))
            }
            (Way::Answered(answer), _) => ResponseFuture::ours(std::future::ready(plain(answer))),
        }
    }
}

impl<S> OffloadService<S> {
    /// Calls the service with a request that is watched.
    fn watched<ReqB, ResB>(
        &mut self,
        mut watch: Watch,
        request: Request<ReqB>,
    ) -> ResponseFuture<S::Future>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>>,
        S::Error: Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Send + 'static,
    {
        // A body that is over at the call needs no watching, and is passed on as it is.
        let request = match request.body().is_end_stream() {
            true => request,
            false => request.map(|body| {
                let hold_end = watch.plan.start == Start::Spawned;
                let (body, upload) = upload::watch(body, &self.shared.state, hold_end);
                watch.upload = Some(upload);
                body
            }),
        };
        let finishes = self.shared.policies.get(watch.policy).finishes();
        let identity = self.shared.state.identity();
        let inner = &mut self.inner;
        let handler = within(identity, None, &mut watch.asked, || inner.call(request));
        let rescue = if finishes { Rescue::here() } else { None };
        ResponseFuture::watched(handler, watch, rescue)
    }
}

/// The service inside, with its futures boxed.
#[derive(Debug, Clone)]
pub struct Boxed<S> {
    inner: S,
}

impl<S> Boxed<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, R> Service<R> for Boxed<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        Box::pin(self.inner.call(request))
    }
}
