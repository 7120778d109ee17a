//! The mounted form of the layer, for a stack without a router: its service answers below the status
//! path itself, and passes everything else on.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{ResponseBody, StatusBody},
    offload::{BoxedOffloadLayer, OffloadLayer},
    status::{StatusFuture, StatusService},
};

impl OffloadLayer {
    /// The layer whose service answers requests below the status path itself. For hyper, and any
    /// other stack without a router:
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{Full, combinators::UnsyncBoxBody};
    /// use tower_layer::Layer;
    /// use tower_offload::{Offload, Policy};
    ///
    /// async fn hello(
    ///     _: Request<UnsyncBoxBody<Bytes, Infallible>>,
    /// ) -> Result<Response<Full<Bytes>>, Infallible> {
    ///     Ok(Response::new(Full::from("hello")))
    /// }
    ///
    /// let offload = Offload::new("/jobs");
    /// let layer = offload.layer(Policy::after(Duration::from_millis(250))).boxed().mounted();
    /// let service = layer.layer(tower::service_fn(hello));
    /// # let _ = service;
    /// ```
    pub fn mounted(self) -> MountedLayer<Self> {
        let status = StatusService::new(Arc::clone(self.state()));
        MountedLayer { layer: self, status }
    }
}

impl BoxedOffloadLayer {
    /// The layer whose service answers requests below the status path itself, as
    /// [`OffloadLayer::mounted`] does.
    pub fn mounted(self) -> MountedLayer<Self> {
        let status = StatusService::new(Arc::clone(self.state()));
        MountedLayer { layer: self, status }
    }
}

/// A layer whose service answers below the status path itself. Made by [`OffloadLayer::mounted`].
#[derive(Debug, Clone)]
pub struct MountedLayer<L> {
    layer: L,
    status: StatusService,
}

impl<S, L: Layer<S>> Layer<S> for MountedLayer<L> {
    type Service = MountedService<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        MountedService {
            inner: self.layer.layer(inner),
            is_ready: false,
            status: self.status.clone(),
        }
    }
}

/// Answers below the status path, and passes everything else on. Made by [`MountedLayer`].
///
/// It is always ready: a poll, or a `DELETE` that is to cancel a job, must not wait for a service
/// whose last permit that very job holds. A request for such a service waits in its future instead.
#[derive(Debug)]
pub struct MountedService<S> {
    inner: S,
    is_ready: bool,
    status: StatusService,
}

impl<S: Clone> Clone for MountedService<S> {
    /// The readiness of a service is not its clone's.
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), is_ready: false, status: self.status.clone() }
    }
}

impl<S, ReqB, ResB> Service<Request<ReqB>> for MountedService<S>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqB: Send + 'static,
    ResB: ResponseBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MountedFuture<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // An error of the service inside is told to the request that is for it, when that asks again.
        self.is_ready = matches!(self.inner.poll_ready(cx), Poll::Ready(Ok(())));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let was_ready = std::mem::take(&mut self.is_ready);
        if self.status.is_for(request.uri().path()) {
            // What was asked whether it is ready may hold a permit, or a place in the queue for one.
            self.inner = self.inner.clone();
            return Inner::Status { answer: self.status.answer::<_, ResB>(request) }.into();
        }
        if was_ready {
            return Inner::Called { answer: self.inner.call(request) }.into();
        }
        // The one that was asked already has its place in the queue; a clone would stand behind it.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answer = Box::pin(async move {
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(request).await
        });
        Inner::Waiting { answer }.into()
    }
}

pin_project_lite::pin_project! {
    #[project = InnerProjection]
    enum Inner<F, R, E> {
        Status { #[pin] answer: StatusFuture },
        Called { #[pin] answer: F },
        Waiting { answer: Pin<Box<dyn Future<Output = Result<R, E>> + Send>> },
    }
}

pin_project_lite::pin_project! {
    /// The future of [`MountedService`].
    pub struct MountedFuture<F, R, E> {
        #[pin]
        inner: Inner<F, R, E>,
    }
}

impl<F, R, E> From<Inner<F, R, E>> for MountedFuture<F, R, E> {
    fn from(inner: Inner<F, R, E>) -> Self {
        Self { inner }
    }
}

impl<F, ResB, E> Future for MountedFuture<F, Response<ResB>, E>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    ResB: ResponseBody,
{
    type Output = Result<Response<ResB>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.project() {
            InnerProjection::Called { answer } => answer.poll(cx),
            InnerProjection::Waiting { answer } => answer.as_mut().poll(cx),
            InnerProjection::Status { answer } => answer.poll(cx).map(|answer| {
                let Ok(answer) = answer;
                Ok(answer.map(StatusBody::made))
            }),
        }
    }
}

impl<F, R, E> std::fmt::Debug for MountedFuture<F, R, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedFuture").finish_non_exhaustive()
    }
}
