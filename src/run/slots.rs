//! What is counted: the jobs that run, and the bytes of buffered request bodies.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::{Refusal, State};
use crate::job::JobId;

/// The jobs that run, and the places that are left.
#[derive(Debug)]
pub(crate) struct Slots {
    running: Mutex<Running>,
    max: usize,
    idle: Notify,
}

#[derive(Debug, Default)]
struct Running {
    /// Places that are taken: by jobs, and by requests that are about to become jobs.
    taken: usize,
    /// The jobs that were promised to somebody.
    jobs: HashSet<JobId>,
    /// How many were ever promised.
    promised: u64,
    /// No more places are given.
    draining: bool,
    /// No more jobs are promised either: a drain has reached its deadline.
    over: bool,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { running: Mutex::default(), max, idle: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // Nothing that can panic runs under the lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a job.
    pub(crate) fn take(state: &Arc<State>) -> Result<Slot, Refusal> {
        let mut running = state.slots.lock();
        state.slots.room(&running)?;
        running.taken += 1;
        Ok(Slot { state: Arc::clone(state), job: None })
    }

    /// Whether there is a place just now.
    pub(crate) fn look(&self) -> Result<(), Refusal> {
        self.room(&self.lock())
    }

    fn room(&self, running: &Running) -> Result<(), Refusal> {
        if running.draining {
            return Err(Refusal::Draining);
        }
        if running.taken == self.max {
            return Err(Refusal::Full("max_running"));
        }
        Ok(())
    }

    /// Gives no more places from now on. Tells how many jobs have ended until now.
    pub(super) fn close(&self) -> u64 {
        let mut running = self.lock();
        running.draining = true;
        running.promised - running.jobs.len() as u64
    }

    /// Resolves when no place is taken any more.
    pub(super) async fn idle(&self) {
        loop {
            let changed = self.idle.notified();
            if self.lock().taken == 0 {
                return;
            }
            changed.await;
        }
    }

    /// How many jobs were ever promised.
    pub(super) fn promised(&self) -> u64 {
        self.lock().promised
    }

    /// The jobs that still run at a drain's deadline. Whoever has a place, but has promised nothing
    /// yet, cannot any more: nobody would be there to interrupt such a job.
    pub(super) fn cut_off(&self) -> Vec<JobId> {
        let mut running = self.lock();
        running.over = true;
        running.jobs.iter().copied().collect()
    }
}

/// A place for a job; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) state: Arc<State>,
    job: Option<JobId>,
}

impl Slot {
    /// The place is a promised job's from now on.
    pub(super) fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        let mut running = self.state.slots.lock();
        if running.over {
            return Err(Refusal::Draining);
        }
        running.promised += 1;
        running.jobs.insert(id);
        self.job = Some(id);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut running = self.state.slots.lock();
        running.taken -= 1;
        if let Some(id) = self.job {
            running.jobs.remove(&id);
        }
        if running.taken == 0 {
            if running.jobs.capacity() > 1024 {
                running.jobs.shrink_to_fit();
            }
            drop(running);
            self.state.slots.idle.notify_waiters();
        }
    }
}

/// The bytes of all request bodies that are buffered.
#[derive(Debug)]
pub(crate) struct BodyBytes {
    used: AtomicUsize,
    max: usize,
}

impl BodyBytes {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Whether there is room for more at all.
    pub(crate) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }

    /// Counts bytes that have come. The last frame may go over the limit: it is here already.
    pub(crate) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
