//! This crate, as its README shows it: a layer on each route, or one around the router that answers
//! polls itself. Limits and expiry are on.

use std::{future::Future, time::Duration};

use axum::{Router, routing::post};
use tower::Layer;
use tower_offload::{MemoryStore, MountedService, Offload, OffloadService, Policies, Policy};

use super::{BRIEF, Desk, ENDLESS, KEPT, brief, endless};

/// How long brief jobs are kept.
const BRIEFLY: Duration = Duration::from_millis(100);

/// Limits that millions of jobs fit into.
pub fn roomy(store: &MemoryStore) -> Offload {
    Offload::builder("/jobs")
        .store(store.clone())
        .max_running(1 << 24)
        .max_outcome_bytes(4 << 20)
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A store that never is full.
pub fn roomy_store() -> MemoryStore {
    MemoryStore::new(1 << 50)
}

/// A layer on each route, and the status service nested in the router.
pub struct OnRoute {
    store: MemoryStore,
    app: Router,
}

impl Desk for OnRoute {
    const NAME: &'static str = "ours, on the route";
    type App = Router;

    fn new() -> Self {
        let store = roomy_store();
        let offload = roomy(&store);
        let layer = |policy| offload.layer(policy);
        let app = Router::new()
            .route(BRIEF, post(brief).layer(layer(Policy::always().ttl(BRIEFLY))))
            .route(KEPT, post(brief).layer(layer(Policy::always())))
            .route(ENDLESS, post(endless).layer(layer(Policy::always())))
            .nest_service("/jobs", offload.status());
        Self { store, app }
    }

    fn app(&self) -> Router {
        self.app.clone()
    }

    fn status_of(location: &str) -> String {
        format!("{location}/status")
    }

    fn jobs(&self) -> usize {
        self.store.jobs()
    }

    fn forget(&self, _: &[String], left: usize) -> impl Future<Output = ()> {
        expired(&self.store, left)
    }
}

/// One layer around the router, with a table of policies, in its mounted form.
pub struct Around {
    store: MemoryStore,
    app: MountedService<OffloadService<Router>>,
}

impl Desk for Around {
    const NAME: &'static str = "ours, around the router";
    type App = MountedService<OffloadService<Router>>;

    fn new() -> Self {
        let store = roomy_store();
        let router = Router::new()
            .route(BRIEF, post(brief))
            .route(KEPT, post(brief))
            .route(ENDLESS, post(endless));
        let policies = Policies::otherwise(Policy::always())
            .at(&format!("POST {BRIEF}"), Policy::always().ttl(BRIEFLY));
        let app = roomy(&store).layer(policies).mounted().layer(router);
        Self { store, app }
    }

    fn app(&self) -> Self::App {
        self.app.clone()
    }

    fn status_of(location: &str) -> String {
        format!("{location}/status")
    }

    fn jobs(&self) -> usize {
        self.store.jobs()
    }

    fn forget(&self, _: &[String], left: usize) -> impl Future<Output = ()> {
        expired(&self.store, left)
    }
}

/// Waits until so many of the store's jobs are left.
async fn expired(store: &MemoryStore, left: usize) {
    while store.jobs() > left {
        tokio::time::sleep(BRIEFLY / 4).await;
    }
}
