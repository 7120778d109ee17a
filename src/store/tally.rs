//! What the store in memory keeps of each policy's jobs, counted as it changes, and what all of it takes of
//! the store's budget.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

use super::{Usage, budget::Budget};
use crate::job::Outcome;

/// What is kept of one policy's jobs.
#[derive(Debug)]
pub(super) struct Tally {
    policy: Option<Arc<str>>,
    jobs: AtomicUsize,
    bytes: AtomicUsize,
    budget: Arc<Budget>,
}

impl Tally {
    /// Counts a job whose bytes were reserved.
    pub(super) fn add(&self, bytes: usize) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a job no more that could not be kept; its bytes stay reserved.
    pub(super) fn withdraw(&self, bytes: usize) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a job no more, and gives back what it took.
    pub(super) fn remove(&self, bytes: usize) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
        self.give_back(bytes);
    }

    /// A job counts with other bytes from now on.
    pub(super) fn recount(&self, before: usize, after: usize) {
        if after != before {
            self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
            self.budget.recount(before, after);
        }
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(bytes);
    }

    /// The outcome of a job, whose bytes are counted already. They are given back when the last slice of
    /// them is dropped: a client that still reads an outcome holds all of its memory, also after the
    /// store has let go of it.
    pub(super) fn counted(self: &Arc<Self>, outcome: Outcome) -> Outcome {
        let tally = Arc::clone(self);
        outcome.in_bytes(|bytes| Bytes::from_owner(Counted { bytes, tally }))
    }
}

/// Bytes that are counted until they are dropped.
struct Counted {
    bytes: Bytes,
    tally: Arc<Tally>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally.give_back(self.bytes.len());
    }
}

/// One for each policy. They stay: policies are few, so that looking through a list of them takes less
/// than to hash a name.
#[derive(Debug)]
pub(super) struct Tallies {
    all: Mutex<Vec<Arc<Tally>>>,
    budget: Arc<Budget>,
}

impl Tallies {
    /// None yet, of what is kept within this budget.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { all: Mutex::default(), budget }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        // Nothing that can panic runs under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, policy: Option<&Arc<str>>) -> Arc<Tally> {
        let mut tallies = self.lock();
        if let Some(tally) = tallies.iter().find(|tally| tally.policy.as_ref() == policy) {
            return Arc::clone(tally);
        }
        let (jobs, bytes) = Default::default();
        let budget = Arc::clone(&self.budget);
        let tally = Arc::new(Tally { policy: policy.cloned(), jobs, bytes, budget });
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
