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

/// So many jobs are dropped before others of the runtime get their turn: some 10 µs.
const BATCH: usize = 8;

/// Each batch is a list of its own, of 4 KiB, though a few ids would need less. What is freed in small
/// pieces glibc joins only when more than 1 KiB is asked for (malloc/malloc.c, `malloc_consolidate`):
/// put off for a million jobs it took 150 ms, in which no thread could allocate from the same arena.
const LIST: usize = 4096 / size_of::<JobId>();

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

type Entry = (Instant, JobId);

/// What is due, by slices of time. In one heap for all, changes would wait while a million jobs are
/// moved to where there is room for two, and its memory would not come back by itself.
#[derive(Debug)]
struct Queue {
    slices: BTreeMap<u64, BinaryHeap<Reverse<Entry>>>,
    /// A slice that is over: all of it is due, in any order.
    past: Vec<Reverse<Entry>>,
    begun: Instant,
    len: usize,
    /// The most jobs that there were since the map was shrunk last.
    most: usize,
    has_task: bool,
    is_shrinking: bool,
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

    /// The queue's own memory that is of no use any more, if so much has gone that the map is worth
    /// shrinking too. It is told again when as much has gone once more.
    fn unused(&self) -> Option<Vec<Reverse<Entry>>> {
        let mut queue = self.lock();
        let (len, most) = (queue.len, queue.most);
        let much = most > 2 * len + WORTH_SHRINKING || len == 0 && most > 0;
        if !much || queue.is_shrinking {
            return None;
        }
        (queue.most, queue.is_shrinking) = (len, true);
        // Others may have begun with another slice just now.
        let unused = queue.past.is_empty().then(|| std::mem::take(&mut queue.past));
        Some(unused.unwrap_or_default())
    }
}

impl Default for Queue {
    fn default() -> Self {
        let begun = Instant::now();
        Self {
            slices: BTreeMap::new(),
            past: Vec::new(),
            begun,
            len: 0,
            most: 0,
            has_task: false,
            is_shrinking: false,
        }
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
        let soonest = || self.slices.first_key_value()?.1.peek();
        self.past.last().or_else(soonest).map(|Reverse((due, _))| *due)
    }

    fn pop(&mut self, now: Instant) -> Option<JobId> {
        if self.past.is_empty() {
            let over = self.slice(now);
            let mut slice = self.slices.first_entry()?;
            if *slice.key() >= over {
                slice.get().peek().filter(|Reverse((due, _))| *due <= now)?;
                let first = slice.get_mut().pop();
                if slice.get().is_empty() {
                    slice.remove();
                }
                return self.popped(first);
            }
            self.past = slice.remove().into_vec();
        }
        let last = self.past.pop();
        self.popped(last)
    }

    fn popped(&mut self, entry: Option<Reverse<Entry>>) -> Option<JobId> {
        let Reverse((_, id)) = entry?;
        self.len -= 1;
        Some(id)
    }

    fn take_due(&mut self, batch: &mut Vec<JobId>) {
        let now = Instant::now();
        let due = std::iter::from_fn(|| self.pop(now));
        batch.extend(due.take(BATCH));
    }
}

enum Next {
    Batch,
    At(Instant),
    Nothing,
}

/// The task. It holds the store weakly, so that a store that is dropped takes its task with it.
async fn sweep<E: Expire>(mut alive: Alive<E>, earlier: Arc<Notify>) {
    loop {
        let Some(owner) = alive.owner.upgrade() else { return };
        let mut batch = Vec::with_capacity(LIST);
        let next = owner.expiry().next(&mut batch);
        batch.into_iter().for_each(|id| owner.expire(id));
        alive.ended = matches!(next, Next::Nothing);
        // Nothing is due any more but with `Batch`.
        let unused = match next {
            Next::Batch => None,
            Next::At(_) | Next::Nothing => owner.expiry().unused(),
        };
        drop(owner);
        if let Some(unused) = unused {
            // With a million jobs it takes long, for which no runtime has to stand still; nor does
            // the sweep wait for it, since the threads for that may be busy for as long as a job.
            let shrinks = Shrinks(Weak::clone(&alive.owner));
            tokio::task::spawn_blocking(move || {
                drop(unused);
                shrinks.shrink();
            });
        }
        match next {
            Next::Batch => tokio::task::yield_now().await,
            Next::At(due) => drop(tokio::time::timeout_at(due, earlier.notified()).await),
            Next::Nothing => return,
        }
    }
}

/// The map is being shrunk, or is going to be, until this is dropped.
struct Shrinks<E: Expire>(Weak<E>);

impl<E: Expire> Shrinks<E> {
    fn shrink(self) {
        if let Some(owner) = self.0.upgrade() {
            owner.shrink();
        }
    }
}

impl<E: Expire> Drop for Shrinks<E> {
    fn drop(&mut self) {
        if let Some(owner) = self.0.upgrade() {
            owner.expiry().lock().is_shrinking = false;
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
        collections::BTreeSet,
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

    /// Of a slice that is over the order does not matter; of one that is not, no job is taken early.
    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_taken_and_nothing_else() {
        let counted = Arc::new(Counted::default());
        let begun = Instant::now();
        let at = |milliseconds: u64| begun + Duration::from_millis(milliseconds);
        let ids: Vec<_> = (0..3000).map(|_| JobId::random().unwrap()).collect();
        // No task: it is emptied by hand.
        counted.expiry.lock().has_task = true;
        for (after, id) in ids.iter().enumerate().rev() {
            counted.expiry.push(at(after as u64), *id, &counted);
        }
        let mut taken = BTreeSet::new();
        for step in [0, 1, 124, 125, 126, 1000, 1001, 1700, 2999, 3000] {
            tokio::time::sleep_until(at(step)).await;
            loop {
                let due = counted.expiry.due();
                assert!(due.len() <= BATCH);
                if due.is_empty() {
                    break;
                }
                taken.extend(due);
            }
            // The clock of tokio's timers goes by whole milliseconds.
            let passed = Instant::now().duration_since(begun).as_millis() as usize;
            let due: BTreeSet<_> = ids.iter().take(passed + 1).copied().collect();
            assert!(taken == due, "{} of {} after {passed} ms", taken.len(), due.len());
            assert_eq!(counted.counts().2, ids.len() - due.len());
        }
    }

    #[test]
    fn expiry_goes_on_while_all_threads_for_blocking_work_are_busy() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let counted = Arc::new(Counted::default());
        runtime.block_on(async {
            let (free, busy) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || busy.recv().is_err());
            for more in 1..=3 {
                (0..2 * WORTH_SHRINKING).for_each(|_| counted.push(0));
                let all = more * 2 * WORTH_SHRINKING;
                // Until it has seen to what is left, too.
                while counted.counts().0 < all || counted.expiry.lock().has_task {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(counted.counts().1, 0, "nothing is busy");
            drop(free);
            busy.await.unwrap();
            // One is waiting, not three.
            while counted.expiry.lock().is_shrinking {
                tokio::task::yield_now().await;
            }
            assert_eq!(counted.counts().1, 1);
        });
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
