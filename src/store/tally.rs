//! What the store in memory keeps of each policy's jobs, counted as it changes.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use super::Usage;

/// What is kept of one policy's jobs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    policy: Option<Arc<str>>,
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

/// One for each policy. They stay: policies are few, so that looking through a list of them takes less
/// than to hash a name.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<Vec<Arc<Tally>>>);

impl Tallies {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, policy: Option<&Arc<str>>) -> Arc<Tally> {
        let mut tallies = self.lock();
        if let Some(tally) = tallies.iter().find(|tally| tally.policy.as_ref() == policy) {
            return Arc::clone(tally);
        }
        let tally = Arc::new(Tally { policy: policy.cloned(), ..Tally::default() });
        tallies.push(Arc::clone(&tally));
        tally
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let tallies = self.lock();
        let usage = tallies.iter().map(|tally| Usage {
            policy: tally.policy.clone(),
            jobs: load(&tally.jobs),
            bytes: load(&tally.bytes),
        });
        usage.collect()
    }
}
