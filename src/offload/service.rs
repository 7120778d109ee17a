//! The service: decides for each request whether it is watched, and how.

use std::{
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
    answer::{plain, refused},
    bound::Bound,
    deferred::{Deferred, key_of},
    durable::RunAgain,
    layer::{FirstLook, Route, Shared},
    rescue::Rescue,
    watch::{Watch, target_of},
    whole_path::whole_path,
};
use crate::{
    body::{RequestBody, ResponseBody},
    error::BoxError,
    job::{Asked, Current, Owner, watched_by},
    policy::{Attached, Head},
    run::{OwnerOf, Place, State},
    wire::{self, Preferences, Problem},
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

    /// What becomes of a request where there is more to ask.
    fn way<B>(&self, route: &Arc<Route>, head: Head, request: Request<B>) -> (Way, Request<B>) {
        let Route { state, policy, .. } = &**route;
        if head == Head::Exempt {
            return (Way::of_exempt(route, &request), request);
        }
        let prefers = match head {
            Head::Prefers => Preferences::of(request.headers()),
            _ => Preferences::default(),
        };
        let plan = policy.plan(prefers, state.limits.max_wait);
        let key = policy.key(&request);
        if plan.is_none() && key == Ok(None) || is_seen_to(state, &request) {
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
        let target = target_of(&request);
        let key = key.and_then(|key| Some(key_of(owner.as_ref()?, &key)));
        let route = Arc::clone(route);
        let way = match plan {
            Some(plan) if key.is_none() && !policy.is_deferred() => {
                let rescue = if policy.finishes() { Rescue::here() } else { None };
                Way::Watched(Watch::special(route, target, plan, owner, rescue))
            }
            plan => Way::Deferred(Box::new(Deferred {
                patience: plan.map(|plan| plan.start.budget()),
                applied: plan.and_then(|plan| plan.applied),
                span: Span::current(),
                route,
                owner,
                key,
                target,
            })),
        };
        (way, request)
    }
}

/// Whether this is a request for the status service, or one that an outer layer watches already.
fn is_seen_to<B>(state: &Arc<State>, request: &Request<B>) -> bool {
    let (method, path) = (request.method(), request.uri().path());
    // Hardly any path looks like one, so that the whole path is seldom looked up.
    let is_poll = state.urls.is_status_path(path)
        && state.urls.is_status_request(method, path, whole_path(request));
    is_poll
        || watched_by(state.identity())
        || request.extensions().get() == Some(&RunAgain(state.identity()))
}

/// What becomes of a request.
enum Way {
    /// The layer has nothing to do with it.
    Through,
    Watched(Watch),
    Deferred(Box<Deferred>),
    /// It can't be a job, and is attached with a permit.
    Bound(Place),
    Answered(Box<Response<Bytes>>),
}

impl Way {
    fn refused(problem: Problem) -> Self {
        Self::Answered(Box::new(wire::problem_answer(problem, None)))
    }

    /// Of a request that can't be a job.
    fn of_exempt<B>(route: &Arc<Route>, request: &Request<B>) -> Self {
        if is_seen_to(&route.state, request) {
            return Self::Through;
        }
        match route.policy.attach(request) {
            Ok(Attached::Freely) => Self::Through,
            Ok(Attached::WithPermit) => match route.lane.take() {
                Ok(permit) => Self::Bound(permit),
                Err(refusal) => Self::Answered(Box::new(refused(refusal, &route.lane))),
            },
            Err(problem) => Self::refused(problem),
        }
    }
}

/// Whose request it is.
fn owner<B>(owner_of: Option<&OwnerOf>, request: Request<B>) -> (Option<Owner>, Request<B>) {
    let Some(owner_of) = owner_of else { return (None, request) };
    let (head, body) = request.into_parts();
    (owner_of(&head), Request::from_parts(head, body))
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

    /// The cheapest is asked first: nearly every request is answered within its budget, and what
    /// matters only to the others waits until then (`watch.rs`). A request is some 250 bytes, so it is
    /// moved no more than it must be.
    #[inline]
    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let route = self.shared.route(self.shared.policies.find(&request));
        match route.first_look(&request) {
            FirstLook::Through => ResponseFuture::through(self.inner.call(request)),
            // A body that is over at the call needs no watching, and is passed on as it is. Asked here
            // and not in `watched`: one function for both moves the request once more.
            FirstLook::Watched(stage) if request.body().is_end_stream() => {
                let watch = Watch::new(Arc::clone(route), target_of(&request), stage);
                watched(&mut self.inner, watch, request)
            }
            FirstLook::Watched(stage) => {
                let watch = Watch::new(Arc::clone(route), target_of(&request), stage);
                uploading(&mut self.inner, watch, request)
            }
            FirstLook::Asked(head) => {
                let route = Arc::clone(route);
                self.asked(&route, head, request)
            }
        }
    }
}

impl<S> OffloadService<S> {
    /// Calls the service, or not, where there is more to ask.
    #[inline(never)]
    fn asked<ReqB, ResB>(
        &mut self,
        route: &Arc<Route>,
        head: Head,
        request: Request<ReqB>,
    ) -> ResponseFuture<S::Future>
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: ResponseBody + Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        match self.way(route, head, request) {
            (Way::Through, request) => ResponseFuture::through(self.inner.call(request)),
            (Way::Watched(watch), request) if request.body().is_end_stream() => {
                watched(&mut self.inner, watch, request)
            }
            (Way::Watched(watch), request) => uploading(&mut self.inner, watch, request),
            (Way::Deferred(deferred), request) => {
                // What was readied may hold a permit: it is given back, and the job's turn readies
                // another.
                let service = self.inner.clone();
                self.inner = service.clone();
                ResponseFuture::ours(deferred.answer(service, request))
            }
            (Way::Bound(permit), request) => {
                ResponseFuture::bound(Bound::call(&mut self.inner, route, permit, request))
            }
            (Way::Answered(answer), _) => ResponseFuture::ours(std::future::ready(plain(*answer))),
        }
    }
}

/// Calls the service with a request that is watched. Not by `within`, whose closure would move the
/// request as well.
#[inline]
fn watched<S, B>(inner: &mut S, mut watch: Watch, request: Request<B>) -> ResponseFuture<S::Future>
where
    S: Service<Request<B>, Future: Future<Output: Send> + Send + 'static>,
{
    let mut asked = Asked::default();
    let current = Current::enter(watch.identity(), None, &mut asked);
    let handler = inner.call(request);
    drop(current);
    if asked.is_something() {
        watch.special_mut().asked = asked;
    }
    ResponseFuture::watched(watch, handler)
}

/// The same for one whose body is not over.
#[inline(never)]
fn uploading<S, B>(
    inner: &mut S,
    mut watch: Watch,
    request: Request<B>,
) -> ResponseFuture<S::Future>
where
    S: Service<Request<B>, Future: Future<Output: Send> + Send + 'static>,
    B: RequestBody,
{
    let version = request.version();
    let request = request.map(|body| watch.upload(body, version));
    watched(inner, watch, request)
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
