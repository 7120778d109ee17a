//! Who has run out of budget: one shared scan instead of a timer for each request.
//!
//! A tokio timer for each request costs a system call as soon as the runtime's next timer is later
//! than the new one. Here a pending request writes its deadline into a recycled slot, and one task
//! sleeps until the earliest deadline of all. Nearly every request is gone by then, so that the
//! task wakes about once a budget, however many requests there are, and a deadline is still exact
//! to the millisecond of tokio's timer.
//!
//! Knows nothing of the rest of the crate but how a panic is caught. Time is `tokio::time::Instant`: paused clocks work.
//!
//! **The scan's life.** The task is spawned by the first deadline on whatever runtime that one runs
//! on, and ends when no deadline is left. When it is dropped with its runtime, a guard marks the scan
//! as dead and wakes all who wait; the next poll of any of them, or the next request, starts another.
//! A scan whose runtime stands still (a current-thread runtime that nobody drives) is replaced by the
//! next request after it is [`OVERDUE`].
//!
//! **The locks.** A shard's may be held while the scan's is taken, never the other way round. Under
//! neither is a task spawned, or a waker woken or dropped: each may run code that comes back here (a
//! runtime that shuts down drops the scan within the call that spawns it).

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

use crate::caught::wake;

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
    scan: Mutex<Scan>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Slab<Slot>,
    /// When the scan looks here next; `None` when it has no reason to.
    next: Option<Look>,
}

/// When the scan looks at a shard.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Then, or earlier.
    at: Instant,
    /// From then on it is not to be relied on.
    overdue: Instant,
}

impl Look {
    fn at(at: Instant) -> Self {
        Self { at, overdue: at + OVERDUE }
    }
}

#[derive(Debug)]
struct Slot {
    deadline: Instant,
    waker: Waker,
    passed: bool,
}

#[derive(Debug, Default)]
struct Scan {
    /// The number of the scan that is alive.
    alive: Option<u64>,
    /// How many there ever were.
    started: u64,
    /// When it looks next, or earlier.
    next: Option<Instant>,
    /// It was told to look since it last began to.
    told: bool,
}

/// A slot in [`Deadlines`], to be given back with [`Deadlines::release`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// There are 64 at most.
    pub(crate) shard: u8,
    pub(crate) slot: u32,
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
        let deadline = after(now, budget);
        let waker = waker.clone();
        let shard_index = thread_index() & (self.shared.shards.len() - 1);
        let mut shard = lock(&self.shared.shards[shard_index]);
        let slot = shard.slots.insert(Slot { deadline, waker, passed: false });
        match shard.next {
            Some(look) if look.at <= deadline && now < look.overdue => {}
            _ => self.look_at(shard, deadline, now),
        }
        Deadline { shard: shard_index as u8, slot: slot as u32 }
    }

    /// Whether the deadline has passed; if not, `waker` is woken when it does.
    pub(crate) fn poll(&self, deadline: Deadline, waker: &Waker) -> bool {
        let mut shard = lock(&self.shared.shards[deadline.shard as usize]);
        let slot = &mut shard.slots[deadline.slot as usize];
        if slot.passed {
            return true;
        }
        let mut replaced = None;
        if !slot.waker.will_wake(waker) {
            replaced = Some(std::mem::replace(&mut slot.waker, waker.clone()));
        }
        let deadline = slot.deadline;
        match shard.next {
            Some(_) => drop(shard),
            // The scan died with its runtime, and has woken us to start another.
            None => self.look_at(shard, deadline, Instant::now()),
        }
        drop(replaced);
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

    /// Makes the scan look at this shard at `deadline`: tells it or, where none lives, spawns one once
    /// the locks are given up.
    #[cold]
    fn look_at(&self, mut shard: MutexGuard<'_, Shard>, deadline: Instant, now: Instant) {
        let mut scan = lock(&self.shared.scan);
        let overdue = scan.next.is_some_and(|next| now >= next + OVERDUE);
        let mut fresh = None;
        if scan.alive.is_none() || overdue {
            // Without a runtime nobody can be told of the time, nor could a job be spawned: such a
            // request stays attached.
            let Ok(runtime) = Handle::try_current() else { return };
            scan.started += 1;
            scan.alive = Some(scan.started);
            scan.next = None;
            let (shared, number) = (Arc::clone(&self.shared), scan.started);
            let alive = Alive { shared, number, has_no_time: false };
            fresh = Some(Fresh { alive, runtime });
        }
        scan.told = true;
        scan.next = earlier(scan.next, deadline);
        let known = shard.next.filter(|look| now < look.overdue).map(|look| look.at);
        shard.next = earlier(known, deadline).map(Look::at);
        drop(scan);
        drop(shard);
        // A scan that stood still, and was replaced, looks at its number when it wakes, and ends.
        self.shared.notify.notify_one();
        fresh.into_iter().for_each(Fresh::spawn);
    }
}

/// A scan that is to be spawned.
struct Fresh {
    alive: Alive,
    runtime: Handle,
}

impl Fresh {
    fn spawn(self) {
        self.runtime.spawn(run(self.alive));
    }
}

/// The earlier of the two.
fn earlier(known: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(known.map_or(other, |known| known.min(other)))
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        lock(&self.shared.scan).alive = None;
        self.shared.notify.notify_one();
    }
}

/// The scan: sleeps until the earliest deadline, wakes whoever has run out, and so on.
async fn run(mut alive: Alive) {
    let (shared, number) = (Arc::clone(&alive.shared), alive.number);
    let mut due = Vec::new();
    while shared.begins(number) {
        let next = shared.take_due(Instant::now(), &mut due);
        due.drain(..).for_each(wake);
        let told = shared.notify.notified();
        match next {
            _ if shared.ends(number, next) => return,
            // Either way it is time to look again.
            Some(next) => {
                alive.has_no_time = true;
                let told = tokio::time::timeout_at(next, told);
                alive.has_no_time = false;
                drop(told.await);
            }
            None => {}
        }
    }
    // The notice that woke us was perhaps for the scan that took our place.
    shared.notify.notify_one();
}

impl Shared {
    /// Whether this scan is the one that is alive, and is to look.
    fn begins(&self, number: u64) -> bool {
        let mut scan = lock(&self.scan);
        let alive = scan.alive == Some(number);
        if alive {
            scan.told = false;
        }
        alive
    }

    /// Notes when this scan looks next. It ends with nothing left to look at; not if it was told of
    /// something since it began.
    fn ends(&self, number: u64, next: Option<Instant>) -> bool {
        let mut scan = lock(&self.scan);
        if scan.alive != Some(number) || scan.told {
            return false;
        }
        scan.next = next;
        if next.is_none() {
            scan.alive = None;
        }
        next.is_none()
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
                    next = earlier(next, slot.deadline);
                }
            }
            shard.next = next.map(Look::at);
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
    /// It panics for want of a clock: another one there would panic too, and wake everybody to start
    /// the next.
    has_no_time: bool,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut scan = lock(&self.shared.scan);
        if scan.alive != Some(self.number) || self.has_no_time {
            return;
        }
        scan.alive = None;
        scan.next = None;
        drop(scan);
        for shard in &self.shared.shards {
            let mut shard = lock(shard);
            shard.next = None;
            let waiting: Vec<_> = shard.slots.iter().map(|(_, slot)| slot.waker.clone()).collect();
            drop(shard);
            waiting.into_iter().for_each(wake);
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
#[inline]
fn after(now: Instant, budget: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);
    now.checked_add(budget).unwrap_or_else(|| now + FAR)
}

/// No code of others runs under these locks but `Waker`'s clone and drop; should one of those
/// panic, the slots are whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::Weak,
        task::{Poll, Wake},
    };

    use super::*;

    const BUDGET: Duration = Duration::from_millis(250);

    fn paused_runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    /// Waits for a deadline as the layer does.
    async fn passes(deadlines: &Deadlines, budget: Duration) {
        let deadline = poll_fn(|cx| Poll::Ready(deadlines.arm(budget, cx.waker()))).await;
        poll_fn(|cx| match deadlines.poll(deadline, cx.waker()) {
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
        for panics in [false, true] {
            let deadlines = Arc::new(Deadlines::new());
            let first = paused_runtime();
            first.block_on(passes(&deadlines, BUDGET));
            let second = paused_runtime();
            // Armed while the first runtime's scan is still alive; then that one goes.
            let other = Arc::clone(&deadlines);
            let wait = second.spawn(async move { passes(&other, BUDGET).await });
            second.block_on(tokio::task::yield_now());
            let gone = std::thread::spawn(move || {
                let _first = first;
                assert!(!panics, "to see what goes with a thread that unwinds");
            });
            assert_eq!(gone.join().is_err(), panics);
            let wait = async { tokio::time::timeout(BUDGET * 10, wait).await };
            second.block_on(wait).expect("no scan, and so no end").unwrap();
        }
    }

    #[test]
    fn a_scan_that_stands_still_is_replaced() {
        let deadlines = Arc::new(Deadlines::new());
        let (first, second) = (paused_runtime(), paused_runtime());
        first.block_on(async {
            let deadline = poll_fn(|cx| Poll::Ready(deadlines.arm(BUDGET, cx.waker()))).await;
            tokio::task::yield_now().await;
            deadlines.release(deadline);
        });
        // Nobody drives the first runtime any more. Another thread has another shard, so it knows
        // from the scan alone that it is overdue.
        let other = Arc::clone(&deadlines);
        let late = std::thread::spawn(move || {
            second.block_on(async {
                tokio::time::advance(BUDGET + OVERDUE * 2).await;
                let passes = passes(&other, BUDGET);
                tokio::time::timeout(Duration::from_secs(10), passes).await.is_err()
            })
        });
        assert!(!late.join().unwrap(), "the second runtime has no scan");
    }

    #[tokio::test(start_paused = true)]
    async fn the_scan_ends_with_nothing_left_and_another_begins() {
        let deadlines = Deadlines::new();
        for scans in 1..=3 {
            passes(&deadlines, BUDGET).await;
            // Released before the scan looked again.
            tokio::time::sleep(BUDGET).await;
            let scan = lock(&deadlines.shared.scan);
            assert_eq!((scan.alive, scan.started, scan.next), (None, scans, None));
        }
    }

    #[test]
    fn a_runtime_that_shuts_down_drops_the_scan_at_once() {
        let deadlines = Deadlines::new();
        let runtime = paused_runtime();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        let deadline = deadlines.arm(BUDGET, Waker::noop());
        assert!(!deadlines.poll(deadline, Waker::noop()));
        deadlines.release(deadline);
        assert_eq!(lock(&deadlines.shared.scan).alive, None);
    }

    /// A waker that owns a request of its own, as a hand-made executor's may, and gives its deadline
    /// back when it goes.
    struct Owner(Weak<Deadlines>, Mutex<Option<Deadline>>);

    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            if let Some((deadlines, deadline)) = self.0.upgrade().zip(lock(&self.1).take()) {
                deadlines.release(deadline);
            }
        }
    }

    #[test]
    fn a_runtime_without_time_is_not_kept_busy() {
        let deadlines = Arc::new(Deadlines::new());
        let polls = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (waiting, counted) = (Arc::clone(&deadlines), Arc::clone(&polls));
        let mut armed = None;
        runtime.spawn(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            match &armed {
                None => armed = Some(waiting.arm(BUDGET, cx.waker())),
                Some(deadline) => assert!(!waiting.poll(*deadline, cx.waker())),
            }
            Poll::<()>::Pending
        }));
        runtime.block_on(async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(polls.load(Ordering::Relaxed), 1, "woken by a scan that panicked");
    }

    #[test]
    fn a_waker_may_come_back_when_it_is_dropped() {
        let deadlines = Arc::new(Deadlines::new());
        let owner = || {
            let own = deadlines.arm(BUDGET, Waker::noop());
            Waker::from(Arc::new(Owner(Arc::downgrade(&deadlines), Mutex::new(Some(own)))))
        };
        let deadline = deadlines.arm(BUDGET, &owner());
        assert!(!deadlines.poll(deadline, &owner()));
        deadlines.release(deadline);
        assert!(deadlines.shared.shards.iter().all(|shard| lock(shard).slots.is_empty()));
    }
}
