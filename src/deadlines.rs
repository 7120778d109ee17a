//! Who has run out of budget: one shared scan instead of a timer for each request.
//!
//! A tokio timer for each request costs a system call as soon as the runtime's next timer is later
//! than the new one. Here a pending request writes its deadline into a recycled slot, and one task
//! sleeps until the earliest deadline of all. Nearly every request is gone by then, so that the
//! task wakes about once a budget, however many requests there are, and a deadline is still exact
//! to the millisecond of tokio's timer.
//!
//! Knows nothing of the rest of the crate. Time is `tokio::time::Instant`: paused clocks work.
//!
//! **The scan's life.** The task is spawned by the first deadline on whatever runtime that one runs
//! on. When the task is dropped with its runtime, a guard marks the scan as dead and wakes all who
//! wait; the next poll of any of them, or the next request, starts another. A scan whose runtime
//! stands still (a current-thread runtime that nobody drives) is replaced when it is seen to be
//! [`OVERDUE`].

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use slab::Slab;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

/// How late a scan may be before another takes its place. Well above the scheduling delays of a
/// busy machine; a replacement is harmless, so it need not be longer.
const OVERDUE: Duration = Duration::from_millis(100);

/// The deadlines of all requests of one `Offload`.
#[derive(Debug)]
pub(crate) struct Deadlines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// One for each of the first threads, so that threads do not contend for a lock.
    shards: Box<[Mutex<Shard>]>,
    /// The scan that is alive, by its number, and the number for the next one.
    scan: Mutex<Scan>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Slab<Slot>,
    /// When the scan looks here next, or earlier; `None` when it has no reason to.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    deadline: Instant,
    waker: Waker,
    passed: bool,
}

#[derive(Debug, Default)]
struct Scan {
    alive: Option<u64>,
    started: u64,
    closed: bool,
}

/// A slot in [`Deadlines`], to be given back with [`Deadlines::release`].
#[derive(Debug)]
pub(crate) struct Deadline {
    shard: u32,
    slot: u32,
}

impl Deadlines {
    pub(crate) fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = threads.next_power_of_two().min(64);
        Self {
            shared: Arc::new(Shared {
                shards: (0..shards).map(|_| Mutex::default()).collect(),
                scan: Mutex::default(),
                notify: Notify::new(),
            }),
        }
    }

    /// Wakes `waker` once `budget` has passed.
    pub(crate) fn arm(&self, budget: Duration, waker: &Waker) -> Deadline {
        let now = Instant::now();
        let shard_index = thread_index() & (self.shared.shards.len() - 1);
        let mut shard = lock(&self.shared.shards[shard_index]);
        let deadline = after(now, budget);
        let slot = shard.slots.insert(Slot { deadline, waker: waker.clone(), passed: false });
        let looked_at = shard.next.is_some_and(|next| next <= deadline && now < next + OVERDUE);
        if !looked_at {
            self.look_at(&mut shard, deadline, now);
        }
        Deadline { shard: shard_index as u32, slot: slot as u32 }
    }

    /// Whether the deadline has passed; if not, `waker` is woken when it does.
    pub(crate) fn poll(&self, deadline: &Deadline, waker: &Waker) -> bool {
        let mut shard = lock(&self.shared.shards[deadline.shard as usize]);
        let slot = &mut shard.slots[deadline.slot as usize];
        if slot.passed {
            return true;
        }
        if !slot.waker.will_wake(waker) {
            slot.waker.clone_from(waker);
        }
        if shard.next.is_none() {
            // The scan died with its runtime, and has woken us to start another.
            let deadline = shard.slots[deadline.slot as usize].deadline;
            self.look_at(&mut shard, deadline, Instant::now());
        }
        false
    }

    /// Gives the slot back.
    pub(crate) fn release(&self, deadline: Deadline) {
        let mut shard = lock(&self.shared.shards[deadline.shard as usize]);
        let slot = shard.slots.remove(deadline.slot as usize);
        if shard.slots.is_empty() && shard.slots.capacity() > 1024 {
            shard.slots.shrink_to_fit();
        }
        drop(shard);
        drop(slot);
    }

    /// Makes the scan look at this shard at `deadline`: tells it, or starts one where none lives.
    fn look_at(&self, shard: &mut Shard, deadline: Instant, now: Instant) {
        let overdue = shard.next.is_some_and(|next| now >= next + OVERDUE);
        let mut scan = lock(&self.shared.scan);
        if scan.alive.is_some() && !overdue {
            self.shared.notify.notify_one();
        } else {
            // Without a runtime nobody can be told of the time, nor could a job be spawned: such a
            // request stays attached.
            let Ok(runtime) = Handle::try_current() else {
                return;
            };
            scan.started += 1;
            scan.alive = Some(scan.started);
            let alive = Alive { shared: Arc::clone(&self.shared), number: scan.started };
            runtime.spawn(run(alive));
            // An older scan that stood still looks at its number when it is woken, and ends.
            self.shared.notify.notify_one();
        }
        shard.next =
            Some(shard.next.filter(|_| !overdue).map_or(deadline, |next| next.min(deadline)));
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        lock(&self.shared.scan).closed = true;
        self.shared.notify.notify_one();
    }
}

/// The scan: sleeps until the earliest deadline, wakes whoever has run out, and so on.
async fn run(alive: Alive) {
    let Alive { shared, number } = &alive;
    let mut due = Vec::new();
    loop {
        if !shared.is_alive(*number) {
            // The notice that woke us was perhaps for the scan that took our place.
            shared.notify.notify_one();
            return;
        }
        let next = shared.take_due(Instant::now(), &mut due);
        due.drain(..).for_each(Waker::wake);
        let told = shared.notify.notified();
        match next {
            None => told.await,
            // Either way it is time to look again.
            Some(next) => drop(tokio::time::timeout_at(next, told).await),
        }
    }
}

impl Shared {
    fn is_alive(&self, number: u64) -> bool {
        let scan = lock(&self.scan);
        scan.alive == Some(number) && !scan.closed
    }

    /// Collects the wakers of those whose deadline has passed; gives the earliest that has not.
    fn take_due(&self, now: Instant, due: &mut Vec<Waker>) -> Option<Instant> {
        let mut earliest = None;
        for shard in &self.shards {
            let mut shard = lock(shard);
            let mut next: Option<Instant> = None;
            for (_, slot) in shard.slots.iter_mut().filter(|(_, slot)| !slot.passed) {
                if slot.deadline <= now {
                    slot.passed = true;
                    due.push(slot.waker.clone());
                } else {
                    next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
                }
            }
            shard.next = next;
            earliest = earliest.into_iter().chain(next).min();
        }
        earliest
    }
}

/// Marks the scan as dead when its task ends or is dropped with its runtime, be it before its first
/// poll.
struct Alive {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut scan = lock(&self.shared.scan);
        if scan.alive != Some(self.number) {
            return;
        }
        scan.alive = None;
        drop(scan);
        for shard in &self.shared.shards {
            let mut shard = lock(shard);
            shard.next = None;
            let waiting: Vec<_> = shard.slots.iter().map(|(_, slot)| slot.waker.clone()).collect();
            drop(shard);
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

/// A small number for this thread.
fn thread_index() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
    }
    INDEX.get().unwrap_or_else(|| {
        let index = THREADS.fetch_add(1, Ordering::Relaxed);
        INDEX.set(Some(index));
        index
    })
}

/// The time `budget` after `now`; one that cannot be told is ten years away.
fn after(now: Instant, budget: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);
    now + budget.min(FAR)
}

/// No code of others runs under these locks but `Waker`'s clone and drop; should one of those
/// panic, the slots are whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use super::*;

    const BUDGET: Duration = Duration::from_millis(250);

    /// Waits for a deadline as the layer does.
    async fn passes(deadlines: &Deadlines, budget: Duration) {
        let deadline = poll_fn(|cx| Poll::Ready(deadlines.arm(budget, cx.waker()))).await;
        poll_fn(|cx| match deadlines.poll(&deadline, cx.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        deadlines.release(deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn budgets_that_differ_are_each_on_time() {
        let deadlines = Arc::new(Deadlines::new());
        let start = Instant::now();
        let waits = [5000, 250, 10, 1, 250, 40].map(|millis| {
            let deadlines = Arc::clone(&deadlines);
            tokio::spawn(async move {
                passes(&deadlines, Duration::from_millis(millis)).await;
                (millis, start.elapsed())
            })
        });
        for wait in waits {
            let (millis, elapsed) = wait.await.unwrap();
            let budget = Duration::from_millis(millis);
            let late = elapsed.checked_sub(budget).expect("never early");
            assert!(late <= (budget / 20).max(Duration::from_millis(2)), "{budget:?}: {elapsed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn arming_later_than_the_scan_sleeps_is_on_time() {
        let deadlines = Deadlines::new();
        for _ in 0..3 {
            let start = Instant::now();
            passes(&deadlines, BUDGET).await;
            assert!((BUDGET..BUDGET * 21 / 20).contains(&start.elapsed()));
            tokio::time::sleep(BUDGET / 3).await;
        }
    }

    #[test]
    fn slots_are_recycled_and_the_scan_ends_when_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let deadlines = Deadlines::new();
        let shared = Arc::downgrade(&deadlines.shared);
        runtime.block_on(async {
            for _ in 0..1000 {
                let deadline = poll_fn(|cx| Poll::Ready(deadlines.arm(BUDGET, cx.waker()))).await;
                deadlines.release(deadline);
            }
            let slots: usize =
                deadlines.shared.shards.iter().map(|shard| lock(shard).slots.capacity()).sum();
            assert!(slots < 16, "{slots}");
            assert_eq!(lock(&deadlines.shared.scan).started, 1);
            drop(deadlines);
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
        assert_eq!(shared.strong_count(), 0);
    }

    #[test]
    fn a_second_runtime_goes_on_when_the_first_is_gone() {
        let deadlines = Arc::new(Deadlines::new());
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let first = runtime();
        first.block_on(passes(&deadlines, BUDGET));
        let second = runtime();
        // Armed while the first runtime's scan is still alive; then that one goes.
        let other = Arc::clone(&deadlines);
        let wait = second.spawn(async move { passes(&other, BUDGET).await });
        second.block_on(tokio::task::yield_now());
        drop(first);
        second.block_on(wait).unwrap();
    }

    #[test]
    fn a_scan_that_stands_still_is_replaced() {
        let deadlines = Deadlines::new();
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let (first, second) = (runtime(), runtime());
        first.block_on(async {
            let deadline =
                poll_fn(|cx| Poll::Ready(deadlines.arm(Duration::from_millis(1), cx.waker())))
                    .await;
            deadlines.release(deadline);
        });
        second.block_on(async {
            // Nobody drives the first runtime any more, and its scan is overdue.
            tokio::time::advance(OVERDUE * 2).await;
            tokio::time::timeout(
                Duration::from_secs(10),
                passes(&deadlines, Duration::from_millis(20)),
            )
            .await
            .expect("the second runtime's own scan");
        });
    }
}
