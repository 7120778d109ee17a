//! The layers: one that moves the service's future as it is, one that boxes it first.

use std::{sync::Arc, time::Duration};

use http::Request;
use tower_layer::Layer;

use super::{Boxed, OffloadService, stage::Stage};
use crate::{
    policy::{Head, Keys, Policies, Policy, Start},
    run::{Backlog, Lane, State},
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
    /// What goes with each policy, in their order.
    routes: Box<[Arc<Route>]>,
}

/// What goes with a policy. Each request that is watched has a hold of its own, to last until its
/// end.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) state: Arc<State>,
    pub(super) policy: Policy,
    /// The share of the places that the policy has.
    pub(super) lane: Arc<Lane>,
    /// Its durable jobs that wait.
    pub(super) backlog: Arc<Backlog>,
    usual: Usual,
}

/// What becomes of a request whose head says nothing special: known from the start, so that the
/// service has to ask one thing only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usual {
    /// Passed on, whatever its head says.
    Never,
    /// Passed on.
    Through,
    /// Watched.
    Watched,
    /// Watched, and a job from the start.
    Spawned,
    /// There is more to ask: owners, keys, a queue, clients that leave.
    Asked,
}

/// What the policy and the head of a request say of it.
pub(super) enum FirstLook {
    Through,
    /// Watched as its policy says, from this stage on.
    Watched(Stage),
    /// There is more to ask.
    Asked(Head),
}

impl Usual {
    fn of(policy: &Policy, state: &State) -> Self {
        let asked = state.owner_of.is_some()
            || policy.keys() != Keys::Ignored
            || policy.finishes()
            || policy.waiting() > 0
            || policy.attempts().is_some();
        match policy.usual_start() {
            _ if policy.is_never() => Self::Never,
            _ if asked => Self::Asked,
            None => Self::Through,
            Some(Start::Spawned) => Self::Spawned,
            Some(_) => Self::Watched,
        }
    }
}

impl Shared {
    #[inline]
    pub(super) fn route(&self, policy: usize) -> &Arc<Route> {
        &self.routes[policy]
    }
}

impl Route {
    /// What becomes of a request, if its policy and its head are enough to say so.
    #[inline]
    pub(super) fn first_look<B>(&self, request: &Request<B>) -> FirstLook {
        if self.usual == Usual::Never {
            return FirstLook::Through;
        }
        match (Head::of(request), self.usual) {
            (Head::Exempt, _) if self.policy.promises_nothing() => FirstLook::Through,
            (Head::Plain, Usual::Through) => FirstLook::Through,
            // Its method and its whole path tell whether it is a poll, and a watch has neither.
            (Head::Plain, _) if self.looks_like_a_poll(request) => FirstLook::Asked(Head::Plain),
            (Head::Plain, Usual::Watched) => FirstLook::Watched(Stage::Started),
            (Head::Plain, Usual::Spawned) => FirstLook::Watched(Stage::Unbegun),
            (head, _) => FirstLook::Asked(head),
        }
    }

    #[inline]
    fn looks_like_a_poll<B>(&self, request: &Request<B>) -> bool {
        self.state.urls.is_status_path(request.uri().path())
    }

    /// How long a job may run.
    pub(super) fn run_time(&self) -> Duration {
        let limit = self.state.limits.max_run_time;
        self.policy.run_time().map_or(limit, |own| own.min(limit))
    }

    /// How long a job is kept after its end.
    pub(super) fn ttl(&self) -> Duration {
        self.policy.kept_for().unwrap_or(self.state.limits.ttl)
    }
}

impl OffloadLayer {
    pub(crate) fn new(state: Arc<State>, policies: Policies) -> Self {
        let route = |policy: &Policy| {
            let (state, usual) = (Arc::clone(&state), Usual::of(policy, &state));
            let lane = lane(&state, policy);
            let name = Some(Arc::clone(lane.name()));
            let backlog = Backlog::new(name, policy.max_waiting_in_store());
            let route = Route { state, policy: policy.clone(), lane, backlog, usual };
            if policy.attempts().is_some() {
                route.state.durables.add(&route.lane, route.run_time());
            }
            Arc::new(route)
        };
        let routes = policies.all().map(route).collect();
        Self { shared: Arc::new(Shared { state, policies, routes }) }
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
    // Of a durable route only whoever serves it waits here; its jobs do so in the store.
    let waiting = if policy.attempts().is_some() { 1 } else { policy.waiting() };
    Lane::new(state, state.accounts.open(&name), policy.places(), waiting)
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
