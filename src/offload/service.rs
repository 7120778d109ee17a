//! The service: decides for each request whether it is watched, and how.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{Answers, Movable, ResponseFuture, future::Watch, layer::Shared, upload};
use crate::{
    body::{RequestBody, ResponseBody},
    error::BoxError,
    job::{watched_by, within},
    policy::{Start, is_exempt},
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

    /// How this request is watched; `None` where it is not.
    fn watch<B>(&self, request: &Request<B>) -> Option<Watch> {
        let Shared { state, policies } = &*self.shared;
        let index = policies.find(request);
        let policy = policies.get(index);
        // The cheapest first: `never` looks at nothing.
        if policy.is_never() || is_exempt(request) {
            return None;
        }
        let plan = policy.plan(request.headers(), state.limits.max_wait)?;
        let uri = request.uri();
        if state.urls.is_status_path(uri.path()) || watched_by(state.identity()) {
            return None;
        }
        let target = uri.path_and_query().cloned();
        Some(Watch::new(Arc::clone(&self.shared), index, plan, target))
    }
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
        let Some(mut watch) = self.watch(&request) else {
            return ResponseFuture::new(self.inner.call(request), None);
        };
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
        let identity = self.shared.state.identity();
        let inner = &mut self.inner;
        let handler = within(identity, None, &mut watch.asked, || inner.call(request));
        ResponseFuture::new(handler, Some(watch))
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
