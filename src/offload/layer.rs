//! The layers: one that moves the service's future as it is, one that boxes it first.

use std::{sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{Boxed, OffloadService};
use crate::{
    policy::{Policies, Policy},
    run::{Lane, State},
};

/// Puts an [`OffloadService`] around a service. Made by [`Offload::layer`](crate::Offload::layer).
///
/// Cloning it, and layering it, allocates nothing: axum does so for each route and connection.
#[derive(Debug, Clone)]
pub struct OffloadLayer {
    pub(super) shared: Arc<Shared>,
}

/// What all services of one layer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Arc<State>,
    pub(super) policies: Policies,
    /// The share of the places that each policy has, in the order of the policies.
    lanes: Box<[Arc<Lane>]>,
}

impl Shared {
    pub(super) fn lane(&self, policy: usize) -> &Arc<Lane> {
        &self.lanes[policy]
    }

    /// How long a job may run.
    pub(super) fn run_time(&self, policy: usize) -> Duration {
        let limit = self.state.limits.max_run_time;
        self.policies.get(policy).run_time().map_or(limit, |own| own.min(limit))
    }

    /// How long a job is kept after its end.
    pub(super) fn ttl(&self, policy: usize) -> Duration {
        self.policies.get(policy).kept_for().unwrap_or(self.state.limits.ttl)
    }
}

impl OffloadLayer {
    pub(crate) fn new(state: Arc<State>, policies: Policies) -> Self {
        let lanes = policies.all().map(|policy| lane(&state, policy)).collect();
        Self { shared: Arc::new(Shared { state, policies, lanes }) }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.shared.state
    }

    /// The same layer for services whose future is not [`Unpin`] (an `async` block, say, or one with
    /// a tokio timer in it): it boxes the future of each request, watched or not.
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
    /// let layer = offload.layer(Policy::after(Duration::from_millis(250))).boxed();
    /// let service = layer.layer(tower::service_fn(hello));
    /// # let _ = service;
    /// ```
    pub fn boxed(self) -> BoxedOffloadLayer {
        BoxedOffloadLayer { layer: self }
    }
}

fn lane(state: &Arc<State>, policy: &Policy) -> Arc<Lane> {
    // The table has named each of them.
    let name = policy.label().cloned().unwrap_or_default();
    Lane::new(state, state.accounts.open(&name), policy.places(), policy.waiting())
}

impl<S> Layer<S> for OffloadLayer {
    type Service = OffloadService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OffloadService::new(inner, Arc::clone(&self.shared))
    }
}

/// An [`OffloadLayer`] for any future. Made by [`OffloadLayer::boxed`].
#[derive(Debug, Clone)]
pub struct BoxedOffloadLayer {
    layer: OffloadLayer,
}

impl BoxedOffloadLayer {
    pub(crate) fn state(&self) -> &Arc<State> {
        self.layer.state()
    }
}

impl<S> Layer<S> for BoxedOffloadLayer {
    type Service = OffloadService<Boxed<S>>;

    fn layer(&self, inner: S) -> Self::Service {
        self.layer.layer(Boxed::new(inner))
    }
}
