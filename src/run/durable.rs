//! The durable routes of a desk, as far as their jobs are run: by their names, for whoever serves them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{HeaderMap, header, request::Parts};
use tokio_util::sync::CancellationToken;

use super::{Lane, Place, Refusal, State};

/// Decides which headers of a request are kept, and how.
pub(crate) type Seal = dyn Fn(&mut HeaderMap) + Send + Sync;

/// Puts back what a request has lost.
pub(crate) type Restore = dyn Fn(&mut Parts) + Send + Sync;

/// A durable route.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    /// The layer's, which may go.
    lane: Weak<Lane>,
    pub(crate) run_time: Duration,
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
        let durable = Durable { lane: Arc::downgrade(lane), run_time };
        self.lock().insert(Arc::clone(lane.name()), durable);
    }

    pub(crate) fn all(&self) -> Vec<(Arc<str>, Durable)> {
        self.lock().iter().map(|(name, durable)| (Arc::clone(name), durable.clone())).collect()
    }
}

impl Durable {
    /// Waits for a place for one of its jobs. `None` where there is none to come any more: the layer
    /// has gone, or the process shuts down.
    pub(crate) async fn place(&self) -> Option<Place> {
        loop {
            let lane = self.lane.upgrade()?;
            match lane.enter() {
                Ok(admission) => {
                    let place = admission.turn().await;
                    // It may have shut down in the meantime.
                    let draining = matches!(lane.look_in(), Err(Refusal::Draining));
                    return (!draining).then_some(place);
                }
                Err(Refusal::Draining) => return None,
                // Somebody else serves the route too, and waits.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Canceled when what runs is cut off, at a drain's deadline; `None` where the layer has gone.
    pub(crate) fn cut(&self) -> Option<CancellationToken> {
        Some(self.lane.upgrade()?.state.places.cut())
    }

    /// Whether its jobs are still to be served.
    pub(crate) fn is_served(&self) -> bool {
        let lane = self.lane.upgrade();
        lane.is_some_and(|lane| !matches!(lane.look_in(), Err(Refusal::Draining)))
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
