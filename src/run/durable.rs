//! The durable routes of a desk, as far as their jobs are run: by their names, for whoever serves them.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{HeaderMap, header, request::Parts};
use tokio_util::sync::CancellationToken;

use super::{Account, Lane, Place, Refusal, State};
use crate::error::Error;

/// Decides which headers of a request are kept, and how.
pub(crate) type Seal = dyn Fn(&mut HeaderMap) + Send + Sync;

/// Puts back what a request has lost.
pub(crate) type Restore = dyn Fn(&mut Parts) + Send + Sync;

/// A durable route.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    /// The layer's, which may go.
    lane: Weak<Lane>,
    /// Canceled when it is gone.
    gone: CancellationToken,
    draining: CancellationToken,
    pub(crate) account: Arc<Account>,
    pub(crate) run_time: Duration,
}

/// Why the jobs of a durable route are not served any more.
#[derive(Debug)]
#[non_exhaustive]
pub enum StopReason {
    /// The process shuts down ([`Offload::drain`](crate::Offload::drain)).
    Drained,
    /// The route's layer was dropped, and all services made by it.
    LayerDropped,
    /// The runtime that the worker ran on has shut down.
    RuntimeShutDown,
    /// The store refuses what the worker asks for, and always will.
    Store(Error),
}

/// By the names of their policies.
#[derive(Debug, Default)]
pub(crate) struct Durables(Mutex<BTreeMap<Arc<str>, Durable>>);

impl Durables {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Durable>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a route of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|durable| durable.lane.strong_count() > 0)
    }

    pub(crate) fn add(&self, lane: &Arc<Lane>, run_time: Duration) {
        let durable = Durable {
            lane: Arc::downgrade(lane),
            gone: lane.gone.clone(),
            draining: lane.state.places.draining(),
            account: Arc::clone(&lane.account),
            run_time,
        };
        self.lock().insert(Arc::clone(lane.name()), durable);
    }

    pub(crate) fn all(&self) -> Vec<(Arc<str>, Durable)> {
        self.lock().iter().map(|(name, durable)| (Arc::clone(name), durable.clone())).collect()
    }
}

impl Durable {
    /// Waits for a permit for one of its jobs.
    pub(crate) async fn place(&self) -> Result<Place, StopReason> {
        loop {
            let Some(lane) = self.lane.upgrade() else { return Err(StopReason::LayerDropped) };
            match lane.enter() {
                Ok(admission) => return Ok(admission.turn().await),
                Err(Refusal::Draining) => return Err(StopReason::Drained),
                // Another worker serves the route too, and waits.
                Err(_) => {}
            }
            drop(lane);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What comes of `work`, or why the route is not served any more before that.
    pub(crate) async fn while_served<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, StopReason> {
        // Where it is not served any more, the work is dropped without another poll.
        let until_gone = self.gone.run_until_cancelled(work);
        match self.draining.run_until_cancelled(until_gone).await {
            Some(Some(done)) => Ok(done),
            _ if self.draining.is_cancelled() => Err(StopReason::Drained),
            _ => Err(StopReason::LayerDropped),
        }
    }
}

/// What a request has that is nobody's affair but the handler's is not kept, unless a function was
/// given that knows how to.
pub(crate) fn without_credentials(headers: &mut HeaderMap) {
    for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
}

impl State {
    /// A request's headers, as they are kept.
    pub(crate) fn seal(&self, headers: &mut HeaderMap) {
        match &self.seal {
            Some(seal) => seal(headers),
            None => without_credentials(headers),
        }
    }
}
