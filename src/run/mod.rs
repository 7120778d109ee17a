//! The state that layers and status services share, and the running of detached jobs.
//!
//! Knows the store and what a job is; of requests and policies it knows nothing. Nothing here calls
//! back up: what must be told upward goes through the store.

mod collect;
mod drain;
mod insist;
mod limits;
mod register;
mod slots;
mod task;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

pub use drain::Drained;
pub(crate) use drain::drain;
pub(crate) use limits::{Limits, MAX_STORED_BYTES, RETRY_AFTER};
pub(crate) use register::{Refusal, Registered, Registering};
pub(crate) use slots::{BodyBytes, Slots};
pub(crate) use task::Work;

use crate::{deadlines::Deadlines, store::Store, wire::Urls};

/// What all clones of one `Offload` share.
pub(crate) struct State {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    pub(crate) urls: Urls,
    pub(crate) deadlines: Deadlines,
    /// Jobs that run.
    pub(crate) slots: Slots,
    /// Requests that wait for a job to end.
    pub(crate) waiters: Semaphore,
    /// Bytes of request bodies that are buffered.
    pub(crate) body_bytes: BodyBytes,
}

impl State {
    pub(crate) fn new(store: Arc<dyn Store>, limits: Limits, urls: Urls) -> Self {
        Self {
            deadlines: Deadlines::new(),
            slots: Slots::new(limits.max_running),
            waiters: Semaphore::new(limits.max_waiters.min(Semaphore::MAX_PERMITS)),
            body_bytes: BodyBytes::new(limits.max_buffered_bytes),
            store,
            limits,
            urls,
        }
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
