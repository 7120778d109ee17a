//! The expiry of the store in memory: a queue ordered by time, and the task that empties it.
//!
//! Jobs that are not due cost nothing: the task sleeps until the first of them is, and ends when
//! the queue is empty. The next job that ends starts another, on whatever runtime that one runs on,
//! and so it does when the task was dropped with its runtime. A store that is full does not wait
//! for the task, which may be on a runtime that nobody drives: it empties the queue itself.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::job::JobId;

/// So many jobs are dropped before others of the runtime get their turn: some 20 µs.
const BATCH: usize = 16;

/// The map is shrunk when more than half of all have gone, and this many beside, so that each job
/// pays for it once; and when all have gone.
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

/// What is due, by slices of time. In one heap for all, changes would wait while a million jobs are
/// moved to where there is room for two, and its memory would not come back by itself.
#[derive(Debug)]
struct Queue {
    slices: BTreeMap<u64, BinaryHeap<Reverse<(Instant, JobId)>>>,
    begun: Instant,
    len: usize,
    /// The most jobs that there were since the map was shrunk last.
    most: usize,
    has_task: bool,
}

/// Wakes the task for its end, or it would sleep until something is due of a store long gone.
impl Drop for Expiry {
    fn drop(&mut self) {
        self.earlier.notify_one();
    }
}

impl Expiry {
    /// Lets `id` expire in `owner` at `at`.
    pub(super) fn push<E: Expire>(&self, at: Instant, id: JobId, owner: &Arc<E>) {
        let mut queue = self.lock();
        let is_first = queue.push(at, id);
        if queue.has_task {
            drop(queue);
            if is_first {
                self.earlier.notify_one();
            }
        } else if let Ok(runtime) = Handle::try_current() {
            // Elsewhere nothing is swept until the next job ends on a runtime; readers do not see
            // what has expired all the same.
            queue.has_task = true;
            // A runtime that is shutting down drops the task here and now, which takes the lock.
            drop(queue);
            let alive = Alive { owner: Arc::downgrade(owner), ended: false };
            runtime.spawn(sweep(alive, Arc::clone(&self.earlier)));
        }
    }

    /// Takes what is due out of the queue, at most [`BATCH`] of it.
    pub(super) fn due(&self) -> Vec<JobId> {
        let mut batch = Vec::new();
        self.lock().take_due(&mut batch);
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the task has to do next. With nothing left it ends, which is noted under the same lock.
    fn next(&self, batch: &mut Vec<JobId>) -> Next {
        let mut queue = self.lock();
        queue.take_due(batch);
        if !batch.is_empty() {
            return Next::Batch;
        }
        if let Some(due) = queue.first() {
            return Next::At(due);
        }
        queue.has_task = false;
        Next::Nothing
    }

    /// Whether so much has gone that the map is worth shrinking; asked for again when as much has
    /// gone once more.
    fn has_shrunk(&self) -> bool {
        let mut queue = self.lock();
        let (len, most) = (queue.len, queue.most);
        let much = most > 2 * len + WORTH_SHRINKING || len == 0 && most > 0;
        if much {
            queue.most = len;
        }
        much
    }
}

impl Default for Queue {
    fn default() -> Self {
        let begun = Instant::now();
        Self { slices: BTreeMap::new(), begun, len: 0, most: 0, has_task: false }
    }
}

impl Queue {
    /// Tells whether it is due before all others.
    fn push(&mut self, at: Instant, id: JobId) -> bool {
        let is_first = self.first().is_none_or(|first| at < first);
        self.slices.entry(self.slice(at)).or_default().push(Reverse((at, id)));
        self.len += 1;
        self.most = self.most.max(self.len);
        is_first
    }

    /// In eighths of a second: so long that a slice has little memory beside that of its jobs, where
    /// they are many; so short that it never has much. All that is before the beginning is in the
    /// first slice, so the order stays.
    fn slice(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.begun);
        since.as_secs() * 8 + u64::from(since.subsec_millis() / 125)
    }

    fn first(&self) -> Option<Instant> {
        let (_, slice) = self.slices.first_key_value()?;
        slice.peek().map(|Reverse((due, _))| *due)
    }

    fn pop(&mut self) -> Option<JobId> {
        let mut slice = self.slices.first_entry()?;
        let Reverse((_, id)) = slice.get_mut().pop()?;
        self.len -= 1;
        if slice.get().is_empty() {
            slice.remove();
        }
        Some(id)
    }

    fn take_due(&mut self, batch: &mut Vec<JobId>) {
        let now = Instant::now();
        while batch.len() < BATCH && self.first().is_some_and(|first| first <= now) {
            batch.extend(self.pop());
        }
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
    loop {
        let Some(owner) = alive.owner.upgrade() else { return };
        let next = owner.expiry().next(&mut batch);
        batch.drain(..).for_each(|id| owner.expire(id));
        alive.ended = matches!(next, Next::Nothing);
        if !matches!(next, Next::Batch) && owner.expiry().has_shrunk() {
            // It took 0.2 s with a million jobs, for which no runtime has to stand still.
            let shrunk = tokio::task::spawn_blocking(move || owner.shrink());
            drop(shrunk.await);
        } else {
            drop(owner);
        }
        match next {
            Next::Batch => tokio::task::yield_now().await,
            Next::At(due) => drop(tokio::time::timeout_at(due, earlier.notified()).await),
            Next::Nothing => return,
        }
    }
}

/// Notes that there is no task any more when it is dropped with its runtime, be it before its first
/// poll. One that has ended by itself has noted it already, and another may have begun.
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

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Counted {
        expiry: Expiry,
        expired: AtomicUsize,
        shrunk: AtomicUsize,
    }

    impl Expire for Counted {
        fn expiry(&self) -> &Expiry {
            &self.expiry
        }

        fn expire(&self, _: JobId) {
            self.expired.fetch_add(1, Ordering::Relaxed);
        }

        fn shrink(&self) {
            self.shrunk.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Counted {
        fn push(self: &Arc<Self>, seconds: u64) {
            let at = Instant::now() + Duration::from_secs(seconds);
            self.expiry.push(at, JobId::random().unwrap(), self);
        }

        fn counts(&self) -> (usize, usize, usize) {
            let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            (load(&self.expired), load(&self.shrunk), self.expiry.lock().len)
        }
    }

    /// Long enough for what is due in `seconds`; timers are exact to a millisecond.
    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(2)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn trap_9_3_only_what_is_due_is_touched() {
        let counted = Arc::new(Counted::default());
        (0..100_000).for_each(|_| counted.push(3600));
        counted.push(60);
        pass(59).await;
        assert_eq!(counted.counts(), (0, 0, 100_001));
        pass(1).await;
        assert_eq!(counted.counts(), (1, 0, 100_000));
        pass(3600).await;
        assert_eq!(counted.counts(), (100_001, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_one_task_and_none_when_nothing_is_left() {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let counted = Arc::new(Counted::default());
        for round in 1..4 {
            (0..1000).for_each(|_| counted.push(1));
            assert_eq!(tasks(), 1);
            pass(1).await;
            assert_eq!((tasks(), counted.counts()), (0, (round * 1000, round, 0)));
        }
    }
}
