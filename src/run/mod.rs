//! The state that layers and status services share, and the running of detached jobs.
//!
//! Knows the store and what a job is; of policies it knows nothing but their names. Nothing here
//! calls back up: what must be told upward goes through the store.

mod account;
mod backlog;
mod beside;
mod bytes;
mod collect;
mod drain;
mod durable;
mod end;
mod handler;
mod insist;
mod leave;
mod ledger;
mod limits;
mod outlook;
mod places;
mod register;
mod report;
mod task;
mod times;
mod turn;
mod wait;

use std::{
    sync::{Arc, atomic},
    time::Duration,
};

use http::request::Parts;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use account::{Account, stats};
pub use account::{PolicyStats, Stats};
pub(crate) use backlog::{Backlog, Reserved};
pub(crate) use bytes::BodyBytes;
pub use drain::{Drain, Drained};
pub use durable::StopReason;
pub(crate) use durable::{Durable, Durables, Restore, Seal};
pub(crate) use leave::Left;
pub(crate) use limits::{Limits, MAX_STORED_BYTES, RETRY_AFTER};
pub(crate) use places::{Admission, Lane, Place, Places};
pub(crate) use register::{Refusal, Registered, Registering, kept, undo};
pub(crate) use task::Work;

use self::account::Accounts;
use crate::{deadlines::Deadlines, job::Owner, store::Store, wire::Urls};

/// The function that names whoever asks.
pub(crate) type OwnerOf = dyn Fn(&Parts) -> Option<Owner> + Send + Sync;

/// What all clones of one `Offload` share.
pub(crate) struct State {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    pub(crate) urls: Urls,
    /// Who sends a request; `None` where owners are not told apart.
    pub(crate) owner_of: Option<Arc<OwnerOf>>,
    pub(crate) deadlines: Deadlines,
    /// Jobs that run, and those that wait for their turn.
    pub(crate) places: Places,
    /// What is remembered of each policy.
    pub(crate) accounts: Accounts,
    /// Requests that wait for a job to end.
    pub(crate) waiters: Semaphore,
    /// Bytes of request bodies that are buffered.
    pub(crate) body_bytes: BodyBytes,
    /// The durable routes.
    pub(crate) durables: Durables,
    /// The durable jobs that wait, of all policies.
    pub(crate) backlog: Arc<Backlog>,
    seal: Option<Arc<Seal>>,
    pub(crate) restore: Option<Arc<Restore>>,
    /// Canceled when a drain has come to its end.
    drained: CancellationToken,
}

impl State {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        limits: Limits,
        urls: Urls,
        owner_of: Option<Arc<OwnerOf>>,
    ) -> Self {
        Self {
            deadlines: Deadlines::new(),
            places: Places::new(limits.max_running),
            accounts: Accounts::default(),
            waiters: Semaphore::new(limits.max_waiters.min(Semaphore::MAX_PERMITS)),
            body_bytes: BodyBytes::new(limits.max_buffered_bytes),
            drained: CancellationToken::new(),
            durables: Durables::default(),
            backlog: Backlog::new(None, limits.max_queued),
            seal: None,
            restore: None,
            owner_of,
            store,
            limits,
            urls,
        }
    }

    /// How the requests of durable routes are kept, and put back.
    pub(crate) fn with_hooks(
        mut self,
        seal: Option<Arc<Seal>>,
        restore: Option<Arc<Restore>>,
    ) -> Self {
        (self.seal, self.restore) = (seal, restore);
        self
    }

    /// What tells this state from others, for as long as it lives.
    pub(crate) fn identity(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("limits", &self.limits)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// How long to wait before a store that has failed is asked once more: from 100 ms, doubled each
/// time up to 10 s, so that a store that comes back is not met by all at once.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(100))
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(10));
    }
}
