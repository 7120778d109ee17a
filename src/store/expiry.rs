//! The expiry of the store in memory: a queue ordered by time, and the task that empties it.
//!
//! Jobs that are not due cost nothing: the task sleeps until the first of them is, and ends when
//! the queue is empty. The next job that ends starts another, on whatever runtime that one runs on,
//! and so it does when the task was dropped with its runtime.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::job::JobId;

/// So many jobs are dropped before others of the runtime get their turn, and so often is memory
/// given back in a long run of expiries.
const BATCH: usize = 256;

/// Memory is given back when this many have gone and they were more than half of all.
const WORTH_SHRINKING: usize = 4096;

/// What is emptied by an [`Expiry`].
pub(super) trait Expire: Send + Sync + 'static {
    fn expiry(&self) -> &Expiry;
    fn expire(&self, id: JobId);
    fn shrink(&self);
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    queue: Mutex<Queue>,
    /// Tells the task that something is due earlier than it thinks.
    earlier: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    due: BinaryHeap<Reverse<(Instant, JobId)>>,
    has_task: bool,
}

impl Expiry {
    /// Lets `id` expire in `owner` at `at`.
    pub(super) fn push<E: Expire>(&self, at: Instant, id: JobId, owner: Weak<E>) {
        let mut queue = self.lock();
        let first = queue.due.peek().is_none_or(|Reverse((due, _))| at < *due);
        queue.due.push(Reverse((at, id)));
        if queue.has_task {
            if first {
                self.earlier.notify_one();
            }
        } else if let Ok(runtime) = Handle::try_current() {
            // Elsewhere nothing is swept until the next job ends on a runtime; readers do not see
            // what has expired all the same.
            queue.has_task = true;
            drop(queue);
            let alive = Alive { owner, ended: false };
            runtime.spawn(sweep(alive, Arc::clone(&self.earlier)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is due, at most [`BATCH`] of it; or else the time of what is due next. With
    /// nothing left the task ends, which is noted under the same lock.
    fn take(&self, batch: &mut Vec<JobId>) -> Next {
        let mut queue = self.lock();
        let now = Instant::now();
        while let Some(Reverse((due, id))) = queue.due.peek().copied() {
            if batch.len() == BATCH {
                return Next::Batch;
            }
            if due > now {
                return if batch.is_empty() { Next::At(due) } else { Next::Batch };
            }
            queue.due.pop();
            batch.push(id);
        }
        if !batch.is_empty() {
            return Next::Batch;
        }
        queue.has_task = false;
        Next::Nothing
    }

    fn shrink(&self) -> bool {
        let mut queue = self.lock();
        let much = queue.due.capacity() > 2 * queue.due.len() + WORTH_SHRINKING;
        if much {
            queue.due.shrink_to_fit();
        }
        much
    }
}

enum Next {
    Batch,
    At(Instant),
    Nothing,
}

/// The task. It holds the store weakly, so that a store that is dropped takes its task with it.
async fn sweep<E: Expire>(mut alive: Alive<E>, earlier: Arc<Notify>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut gone = 0;
    loop {
        let next = {
            let Some(owner) = alive.owner.upgrade() else { return };
            let next = owner.expiry().take(&mut batch);
            gone += batch.len();
            batch.drain(..).for_each(|id| owner.expire(id));
            if !matches!(next, Next::Batch) {
                if owner.expiry().shrink() || gone >= WORTH_SHRINKING {
                    owner.shrink();
                }
                gone = 0;
            }
            next
        };
        match next {
            Next::Batch => tokio::task::yield_now().await,
            Next::At(due) => drop(tokio::time::timeout_at(due, earlier.notified()).await),
            Next::Nothing => {
                alive.ended = true;
                return;
            }
        }
    }
}

/// Notes that there is no task any more when it is dropped with its runtime, be it before its first
/// poll.
struct Alive<E: Expire> {
    owner: Weak<E>,
    ended: bool,
}

impl<E: Expire> Drop for Alive<E> {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade().filter(|_| !self.ended) {
            owner.expiry().lock().has_task = false;
        }
    }
}
