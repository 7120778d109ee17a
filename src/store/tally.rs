//! What the store in memory keeps of each policy's jobs, counted as it changes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Usage;

/// What is kept of one policy's jobs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    jobs: AtomicUsize,
    bytes: AtomicUsize,
}

impl Tally {
    pub(super) fn add(&self, bytes: usize) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A job counts with other bytes from now on.
    pub(super) fn recount(&self, before: usize, after: usize) {
        self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }
}

/// One for each policy. They stay: policies are few.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<HashMap<Option<Arc<str>>, Arc<Tally>>>);

impl Tallies {
    fn lock(&self) -> MutexGuard<'_, HashMap<Option<Arc<str>>, Arc<Tally>>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, policy: Option<&Arc<str>>) -> Arc<Tally> {
        Arc::clone(self.lock().entry(policy.cloned()).or_default())
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let tallies = self.lock();
        let usage = tallies.iter().map(|(policy, tally)| Usage {
            policy: policy.clone(),
            jobs: load(&tally.jobs),
            bytes: load(&tally.bytes),
        });
        usage.collect()
    }
}
