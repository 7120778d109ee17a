//! What is remembered of each policy, by its name: how long its jobs take, and how many requests
//! found no room. And the numbers that are told of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{State, times::Times};
use crate::{error::Error, store::Usage};

/// What is remembered of one policy.
#[derive(Debug)]
pub(crate) struct Account {
    name: Arc<str>,
    refused: AtomicU64,
    workers: AtomicUsize,
    worker_restarts: AtomicU64,
    times: Mutex<Times>,
}

impl Account {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A request that could have been a job found no room.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker of its durable jobs runs until what this gives is dropped.
    pub(crate) fn worker(self: &Arc<Self>) -> RunningWorker {
        self.workers.fetch_add(1, Ordering::Relaxed);
        RunningWorker(Arc::clone(self))
    }

    /// A worker is started again after a panic.
    pub(crate) fn restart_worker(&self) {
        self.worker_restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// A job has come to its end by itself.
    pub(super) fn took(&self, time: Duration) {
        self.times().record(time);
    }

    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        // Nothing that can panic runs under the lock.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker of a policy's durable jobs, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct RunningWorker(Arc<Account>);

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.0.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All accounts. They stay: the names of policies are few, so few that comparing them is cheaper
/// than to hash one.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<BTreeMap<Arc<str>, Arc<Account>>>);

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Account>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of the policy with this name.
    pub(crate) fn open(&self, name: &Arc<str>) -> Arc<Account> {
        let new = || {
            Arc::new(Account {
                name: Arc::clone(name),
                refused: AtomicU64::new(0),
                workers: AtomicUsize::new(0),
                worker_restarts: AtomicU64::new(0),
                times: Mutex::default(),
            })
        };
        Arc::clone(self.lock().entry(Arc::clone(name)).or_insert_with(new))
    }

    /// The account of this name, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Account>> {
        self.lock().get(name).cloned()
    }
}

/// Numbers of one policy: what runs and waits in this process, and what the store keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyStats {
    /// Jobs that run, requests that are about to become jobs, requests that can't be jobs and hold a
    /// permit while they are attached, and handlers that are finished after their client has left.
    pub running: usize,
    /// Requests that wait for their turn.
    pub queued: usize,
    /// Jobs that the store keeps: queued, running and ended. A store that is shared counts those of
    /// all its processes.
    pub stored: usize,
    /// The bytes that they count with; for one that has not ended, those of the largest outcome.
    pub bytes: usize,
    /// Requests that found no room for a job since the process began: those that were answered 503,
    /// and those that stayed attached or were dropped for that reason.
    pub refused: u64,
    /// Workers of a [durable](crate::Policy::durable) policy that run in this process: one for each
    /// call of [`serve_durable`](crate::Offload::serve_durable), until it stops.
    pub workers: usize,
    /// How often a worker was started again since the process began, because a clone of its service
    /// panicked. A store that panics fails one call, and restarts no worker.
    pub worker_restarts: u64,
}

/// The numbers of all policies, by their names. Made by `Offload::stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    policies: BTreeMap<Arc<str>, PolicyStats>,
}

impl Stats {
    /// The numbers of the policy with this name; `None` where no layer has one.
    pub fn policy(&self, name: &str) -> Option<&PolicyStats> {
        self.policies.get(name)
    }

    /// All policies, in the order of their names.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &PolicyStats)> {
        self.policies.iter().map(|(name, stats)| (&**name, stats))
    }

    /// The numbers of all policies together.
    pub fn total(&self) -> PolicyStats {
        self.policies.values().fold(PolicyStats::default(), |sum, policy| PolicyStats {
            running: sum.running + policy.running,
            queued: sum.queued + policy.queued,
            stored: sum.stored + policy.stored,
            bytes: sum.bytes + policy.bytes,
            refused: sum.refused + policy.refused,
            workers: sum.workers + policy.workers,
            worker_restarts: sum.worker_restarts + policy.worker_restarts,
        })
    }
}

/// # Errors
/// If the store does not answer.
pub(crate) async fn stats(state: &State) -> Result<Stats, Error> {
    let usage = state.store.usage().await?;
    let mut policies: BTreeMap<Arc<str>, PolicyStats> = BTreeMap::new();
    for (name, account) in &*state.accounts.lock() {
        let stats = policies.entry(Arc::clone(name)).or_default();
        stats.refused = account.refused.load(Ordering::Relaxed);
        stats.workers = account.workers.load(Ordering::Relaxed);
        stats.worker_restarts = account.worker_restarts.load(Ordering::Relaxed);
    }
    for (account, load) in state.places.loads() {
        let stats = policies.entry(Arc::clone(&account.name)).or_default();
        stats.running += load.running;
        stats.queued += load.queued;
    }
    for Usage { policy, jobs, bytes } in usage {
        let stats = policies.entry(policy.unwrap_or_default()).or_default();
        stats.stored += jobs;
        stats.bytes += bytes;
    }
    Ok(Stats { policies })
}
