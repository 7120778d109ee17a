//! The store in memory: a sharded map, with its bytes counted.
//!
//! The map is private to this file. No guard of it leaves a method, lives over an await, or is held
//! while another is taken: a `DashMap` deadlocks there. Under a guard nothing is dropped or woken
//! that takes long or is other people's code. Expiry goes through a queue ordered by time
//! (`expiry.rs`), never by scanning the map.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};

use super::{
    Changed, Fetched, Inserted, Interest, Store, StoreFuture, Usage,
    budget::Budget,
    expiry::{Expire, Expiry},
    kept::{Kept, Waiter, has_passed},
    tally::Tallies,
    waiting::Waiting,
};
use crate::{
    error::{Error, ErrorKind},
    job::{Change, Digest, IdHash, JobId, Outcome, Record},
    system,
};

/// What a job is counted with beside its outcome: its place in the map and in the queue of expiry,
/// with the slack of both, its owner, its claim on a key, and the message of its progress, rounded
/// up.
const JOB_BYTES: usize = 1024;

/// With the default of 8 shards on 2 cores a poll was seen to wait 2.6 ms while a million jobs
/// expired, with 1,024 shards 52 µs; they take 128 KiB. And a shard of a million jobs grows or shrinks
/// in some 10 µs.
const SHARDS: usize = 1024;

/// Keeps jobs in the memory of this process, and its promises while the process lives: what runs or
/// is kept when the process dies is lost with it.
///
/// It never holds more than the bytes that it was made with: each job counts with its outcome (with
/// the largest possible one, until it has ended) and 1,024 bytes for itself. Dropped jobs give their
/// memory back; an outcome that a client still reads counts until that client has all of it, also after
/// it was removed or has expired.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// Boxed, since a table has up to twice as much room as it needs.
    jobs: DashMap<JobId, Box<Kept>, IdHash>,
    /// Which job has the claim on a key. Its locks are taken before those of `jobs`, never after.
    claims: DashMap<Digest, JobId>,
    bytes: Arc<Budget>,
    tallies: Tallies,
    expiry: Expiry,
    /// Numbers those who wait for a change.
    waiters: AtomicU64,
}

impl MemoryStore {
    /// A store that holds at most `max_bytes` bytes.
    pub fn new(max_bytes: usize) -> Self {
        let bytes = Arc::new(Budget::new(max_bytes));
        Self {
            inner: Arc::new(Inner {
                jobs: DashMap::with_hasher_and_shard_amount(IdHash::default(), SHARDS),
                claims: DashMap::with_shard_amount(SHARDS),
                tallies: Tallies::new(Arc::clone(&bytes)),
                bytes,
                expiry: Expiry::default(),
                waiters: AtomicU64::new(0),
            }),
        }
    }

    /// Whether there would be room for a job with an outcome of so many bytes, were it empty.
    pub(crate) fn fits(&self, outcome_bytes: usize) -> bool {
        outcome_bytes.checked_add(JOB_BYTES).is_some_and(|bytes| bytes <= self.inner.bytes.max())
    }

    /// The bytes that are in use, as they count for the limit: those of jobs, and of outcomes that clients
    /// still read.
    pub fn bytes(&self) -> usize {
        self.inner.bytes.used()
    }

    /// The number of jobs that are kept, running and ended.
    pub fn jobs(&self) -> usize {
        self.inner.jobs.len()
    }
}

impl Store for MemoryStore {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        StoreFuture::ready(self.inner.insert(record, outcome_bytes))
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        StoreFuture::ready(Ok(self.inner.take_back(id)))
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        StoreFuture::ready(Ok(self.inner.look_for(owner, id, |kept| kept.record.clone())))
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        let whole = |outcome: &Outcome| Fetched::from(outcome.clone());
        let both = |kept: &Kept| (kept.record.clone(), kept.outcome().map(whole));
        StoreFuture::ready(Ok(self.inner.look_for(owner, id, both)))
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        let id = self.inner.claims.get(&key).map(|id| *id);
        StoreFuture::ready(Ok(id.and_then(|id| self.inner.holder(id, &key))))
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        StoreFuture::ready(Ok(Inner::change(&self.inner, id, change)))
    }

    fn changes_at_once(&self) -> bool {
        true
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        StoreFuture::waiting(Waiting::new(Arc::clone(&self.inner), id, seen, interest), || ())
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        StoreFuture::ready(Ok(self.inner.tallies.usage()))
    }
}

impl Inner {
    fn insert(&self, record: Record, outcome_bytes: usize) -> Result<Inserted, Error> {
        // First, since what has expired lets go of claims, whose locks are taken below.
        while !self.reserve(outcome_bytes) {
            if !self.expire_due() {
                return Err(Error::new(ErrorKind::StoreFull, "the store in memory is full"));
            }
        }
        let inserted = self.claim(record, outcome_bytes);
        if !matches!(inserted, Ok(Inserted::New)) {
            self.bytes.give_back(outcome_bytes + JOB_BYTES);
        }
        inserted
    }

    fn claim(&self, record: Record, outcome_bytes: usize) -> Result<Inserted, Error> {
        let Some(key) = key_of(&record) else {
            return self.keep(record, outcome_bytes);
        };
        // Whoever else claims this key waits here until the job that has it is in the map.
        let entry = self.claims.entry(key);
        if let Entry::Occupied(held) = &entry {
            if let Some(record) = self.holder(*held.get(), &key) {
                return Ok(Inserted::Claimed(record));
            }
        }
        let id = record.id();
        let inserted = self.keep(record, outcome_bytes)?;
        match entry {
            Entry::Occupied(mut left) => drop(left.insert(id)),
            Entry::Vacant(free) => drop(free.insert(id)),
        }
        Ok(inserted)
    }

    /// The job of this id, if it has a claim on the same key, for another request.
    fn holder(&self, id: JobId, key: &Digest) -> Option<Record> {
        let mut kept = self.jobs.get_mut(&id).filter(|kept| !kept.is_expired())?;
        kept.record.claim().filter(|claim| claim.key() == key)?;
        kept.record.disclose();
        Some(kept.record.clone())
    }

    fn take_back(&self, id: JobId) -> bool {
        let mut is_kept = false;
        self.forget(id, |kept| {
            is_kept = !kept.is_expired() && !kept.may_be_taken_back();
            !is_kept
        });
        !is_kept
    }

    /// Puts a job into the map whose bytes are counted already.
    fn keep(&self, record: Record, outcome_bytes: usize) -> Result<Inserted, Error> {
        let id = record.id();
        let tally = self.tallies.of(record.policy());
        let kept = Box::new(Kept::new(record, outcome_bytes, tally));
        // Counted before it can be found, and be gone.
        kept.tally.add(outcome_bytes + JOB_BYTES);
        let before = match self.jobs.entry(id) {
            Entry::Vacant(vacant) => {
                vacant.insert(kept);
                return Ok(Inserted::New);
            }
            Entry::Occupied(mut occupied) if occupied.get().is_expired() => occupied.insert(kept),
            Entry::Occupied(_) => {
                kept.tally.withdraw(outcome_bytes + JOB_BYTES);
                let message = "a job with this id is there already";
                return Err(Error::new(ErrorKind::StoreUnavailable, message));
            }
        };
        Self::gone(*before);
        Ok(Inserted::New)
    }

    /// Counts a job with an outcome of so many bytes, if there is room.
    fn reserve(&self, outcome_bytes: usize) -> bool {
        outcome_bytes.checked_add(JOB_BYTES).is_some_and(|bytes| self.bytes.reserve(bytes))
    }

    /// Drops some of what has expired, and tells whether there was any.
    fn expire_due(&self) -> bool {
        let due = self.expiry.due();
        due.iter().for_each(|id| self.expire(*id));
        !due.is_empty()
    }

    /// Looks at a job, if it is there.
    pub(super) fn look<T>(&self, id: JobId, look: impl FnOnce(&Kept) -> T) -> Option<T> {
        self.look_for(None, id, look)
    }

    /// Looks at a job, if it is there, and this owner's if one is named. The clock is read last: that is
    /// as slow as all of the rest, and the lock need not be held for it.
    fn look_for<T>(
        &self,
        owner: Option<Digest>,
        id: JobId,
        look: impl FnOnce(&Kept) -> T,
    ) -> Option<T> {
        let is_its = |kept: &Kept| owner.is_none() || kept.record.owner() == owner.as_ref();
        let kept = self.jobs.get(&id).filter(|kept| is_its(kept))?;
        let (found, expires) = (look(&kept), kept.expires());
        drop(kept);
        (!has_passed(expires)).then_some(found)
    }

    fn change(this: &Arc<Self>, id: JobId, change: Change) -> Changed {
        let Some(mut entry) = this.jobs.get_mut(&id).filter(|kept| !kept.is_expired()) else {
            return Changed::Unknown;
        };
        let kept = &mut **entry;
        let key = key_of(&kept.record);
        let applied = kept.apply(change, system::now());
        let record = kept.record.clone();
        // The map's lock is given up before anything else is done.
        drop(entry);
        let Ok(followed) = applied else { return Changed::Refused(record) };
        drop(followed.removed);
        if let Some(expires) = followed.expires {
            this.expiry.push(expires, id, this);
        }
        if record.claim().is_none() {
            this.release(id, key);
        }
        followed.woken.wake();
        Changed::Applied(record)
    }

    /// Notes somebody who waits for the next change that is of interest to them, and gives a number
    /// to it; or gives them back, where there has been one since `seen`.
    pub(super) fn wait(&self, id: JobId, seen: u32, waiter: Waiter) -> Result<u64, Waiter> {
        let Some(mut kept) = self.jobs.get_mut(&id).filter(|kept| !kept.is_expired()) else {
            return Err(waiter);
        };
        let version = kept.record.version();
        let last = match waiter.interest {
            Interest::Status => kept.record.status_version(),
            Interest::Progress => version,
        };
        // A version that is still to come is not one that the caller has seen of this job.
        if last > seen || version < seen {
            return Err(waiter);
        }
        let number = self.waiters.fetch_add(1, Ordering::Relaxed);
        kept.wait(number, waiter);
        Ok(number)
    }

    /// Forgets somebody who waits.
    pub(super) fn leave(&self, id: JobId, number: u64) -> Option<Waiter> {
        self.jobs.get_mut(&id)?.leave(number)
    }

    /// Forgets a claim that this job has no more.
    fn release(&self, id: JobId, key: Option<Digest>) {
        if let Some(key) = key {
            self.claims.remove_if(&key, |_, holder| *holder == id);
        }
    }

    /// Drops a job and gives back what it took.
    fn forget(&self, id: JobId, condition: impl FnOnce(&Kept) -> bool) {
        if let Some((_, kept)) = self.jobs.remove_if(&id, |_, kept| condition(kept)) {
            self.release(id, key_of(&kept.record));
            Self::gone(*kept);
        }
    }

    /// Gives back what a job took that is in the map no more; its outcome does so itself.
    fn gone(mut kept: Kept) {
        kept.tally.remove(kept.room() + JOB_BYTES);
        kept.everybody().wake();
    }
}

fn key_of(record: &Record) -> Option<Digest> {
    record.claim().map(|claim| *claim.key())
}

impl Expire for Inner {
    fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    fn expire(&self, id: JobId) {
        self.forget(id, Kept::is_expired);
    }

    /// The map never shrinks by itself: empty, it would hold what its fullest hour took.
    fn shrink(&self) {
        self.jobs.shrink_to_fit();
        self.claims.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::runtime::{Builder, Handle, Runtime};

    use super::*;
    use crate::job::{End, Status};

    const TTL: Duration = Duration::from_secs(60);

    fn record() -> Record {
        Record::running(JobId::random().unwrap(), SystemTime::now(), TTL)
    }

    fn response(body: &[u8]) -> Change {
        let head = http::Response::new(()).into_parts().0;
        Change::Finish(End::Response(Outcome::new(&head, body, None)))
    }

    #[tokio::test(start_paused = true)]
    async fn counts_its_bytes_and_gives_them_back() {
        let store = MemoryStore::new(10_000);
        let (a, b) = (record(), record());
        store.insert(a.clone(), 5_000).await.unwrap();
        let full = store.insert(b.clone(), 5_000).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StoreFull);
        store.change(a.id(), response(&[0; 1000])).await.unwrap();
        let kept = store.bytes();
        assert!((1000 + JOB_BYTES..1100 + JOB_BYTES).contains(&kept), "{kept}");
        store.insert(b.clone(), 5_000).await.unwrap();
        store.take_back(b.id()).await.unwrap();
        store.take_back(b.id()).await.unwrap();
        assert_eq!(store.bytes(), kept);
        store.change(a.id(), Change::Remove).await.unwrap();
        assert_eq!(store.bytes(), JOB_BYTES, "a removed job still counts");
        tokio::time::sleep(TTL + Duration::from_millis(2)).await;
        assert_eq!((store.jobs(), store.bytes()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outcome_counts_until_its_last_reader_has_let_go() {
        const OUTCOME: usize = 5_000;
        for expires in [false, true] {
            let store = MemoryStore::new(10_000);
            let job = record();
            store.insert(job.clone(), OUTCOME).await.unwrap();
            store.change(job.id(), response(&[0; 4_900])).await.unwrap();
            let kept = store.bytes() - JOB_BYTES;
            let fetched = store.fetch(job.id(), None).await.unwrap().unwrap().1.unwrap();
            let outcome = fetched.whole().await.unwrap();
            if expires {
                tokio::time::sleep(TTL * 2).await;
            } else {
                store.change(job.id(), Change::Remove).await.unwrap();
                store.take_back(job.id()).await.unwrap();
            }
            assert_eq!((store.jobs(), store.bytes()), (0, kept));
            // A slice outlives the outcome and its body, and holds all of the memory.
            let last = outcome.body().slice(..1);
            drop(outcome);
            assert_eq!(store.bytes(), kept);
            let usage = store.usage().await.unwrap();
            assert_eq!((usage[0].jobs, usage[0].bytes), (0, kept));
            let full = store.insert(record(), OUTCOME).await.unwrap_err();
            assert_eq!(full.kind(), ErrorKind::StoreFull);
            std::thread::spawn(move || drop(last)).join().unwrap();
            assert_eq!(store.bytes(), 0);
            store.insert(record(), OUTCOME).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_outcome_that_is_refused_counts_nothing() {
        let store = MemoryStore::new(10_000);
        let job = record();
        store.insert(job.clone(), 5_000).await.unwrap();
        store.change(job.id(), Change::Cancel).await.unwrap();
        let late = store.change(job.id(), response(&[0; 1_000])).await.unwrap();
        assert!(matches!(late, Changed::Refused(_)));
        assert_eq!(store.bytes(), JOB_BYTES);
    }

    #[tokio::test]
    async fn an_id_that_is_there_is_refused() {
        let store = MemoryStore::new(10_000);
        let record = record();
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), response(b"x")).await.unwrap();
        let bytes = store.bytes();
        assert!(store.insert(record.clone(), 0).await.is_err());
        assert_eq!(store.bytes(), bytes);
        assert_eq!(
            store.read(record.id(), None).await.unwrap().unwrap().status(),
            Status::Succeeded
        );
    }

    #[tokio::test(start_paused = true)]
    async fn trap_9_2_memory_is_given_back() {
        let store = MemoryStore::new(usize::MAX);
        for _ in 0..20_000 {
            let record = record();
            store.insert(record.clone(), 0).await.unwrap();
            store.change(record.id(), response(b"")).await.unwrap();
        }
        assert!(store.inner.jobs.capacity() >= 20_000);
        tokio::time::sleep(TTL * 2).await;
        assert_eq!(store.jobs(), 0);
        assert_eq!(store.inner.jobs.capacity(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sooner_expiry_is_not_kept_waiting_by_a_later_one() {
        let store = MemoryStore::new(usize::MAX);
        for ttl in [3600, 60, 1] {
            let record = Record::running(
                JobId::random().unwrap(),
                SystemTime::now(),
                Duration::from_secs(ttl),
            );
            store.insert(record.clone(), 0).await.unwrap();
            store.change(record.id(), Change::Cancel).await.unwrap();
            // The task sleeps until this one is due when the next, sooner one comes.
            tokio::task::yield_now().await;
        }
        for (after, left) in [(1100, 2), (60_000, 1), (3_600_000, 0)] {
            tokio::time::sleep(Duration::from_millis(after)).await;
            assert_eq!(store.jobs(), left);
        }
    }

    fn paused_runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    async fn end_one(store: &MemoryStore) -> JobId {
        let record = record();
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), Change::Cancel).await.unwrap();
        record.id()
    }

    #[test]
    fn a_second_runtime_sweeps_on() {
        let store = MemoryStore::new(usize::MAX);
        paused_runtime().block_on(end_one(&store));
        paused_runtime().block_on(async {
            end_one(&store).await;
            tokio::time::sleep(TTL * 2).await;
        });
        assert_eq!(store.jobs(), 0);
    }

    #[test]
    fn a_full_store_makes_room_though_nobody_drives_its_task() {
        let store = MemoryStore::new(600 * JOB_BYTES);
        let asleep = paused_runtime();
        asleep.block_on(async {
            for _ in 0..600 {
                end_one(&store).await;
            }
        });
        paused_runtime().block_on(async {
            assert!(store.insert(record(), 0).await.is_err());
            tokio::time::advance(TTL * 2).await;
            // As much room as takes more than one batch.
            store.insert(record(), 500 * JOB_BYTES).await.unwrap();
        });
        drop(asleep);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_ends_with_its_store() {
        let store = MemoryStore::new(usize::MAX);
        end_one(&store).await;
        tokio::task::yield_now().await;
        let tasks = || Handle::current().metrics().num_alive_tasks();
        assert_eq!((tasks(), Arc::strong_count(&store.inner)), (1, 1));
        drop(store);
        tokio::task::yield_now().await;
        assert_eq!(tasks(), 0, "it slept on until something was due");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_as_if_it_had_never_been() {
        let store = MemoryStore::new(usize::MAX);
        let record = record();
        let gone = Record::running(record.id(), SystemTime::now(), Duration::ZERO);
        store.insert(gone, 0).await.unwrap();
        // It has expired by this, and the task has no turn before the insertion.
        store.change(record.id(), response(&[0; 1000])).await.unwrap();
        assert_eq!(store.jobs(), 1);
        store.insert(record.clone(), 0).await.unwrap();
        assert_eq!(store.bytes(), JOB_BYTES);
        // What is left in the queue of the first does nothing to the second.
        tokio::time::sleep(TTL * 2).await;
        assert_eq!(store.read(record.id(), None).await.unwrap().unwrap().status(), Status::Running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_makes_nothing_expire_early() {
        let store = MemoryStore::new(usize::MAX);
        let hour = Duration::from_secs(3600);
        let record = Record::running(JobId::random().unwrap(), SystemTime::now() + hour, TTL);
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), Change::Cancel).await.unwrap();
        tokio::time::sleep(hour).await;
        assert_eq!(store.jobs(), 1);
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
        assert_eq!(store.jobs(), 0);
    }

    #[tokio::test]
    async fn sizes_without_end_are_refused_and_ttls_without_end_are_kept() {
        let store = MemoryStore::new(usize::MAX);
        let record = Record::running(JobId::random().unwrap(), SystemTime::now(), Duration::MAX);
        for bytes in [usize::MAX, usize::MAX - JOB_BYTES + 1] {
            let refused = store.insert(record.clone(), bytes).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StoreFull);
        }
        store.insert(record.clone(), usize::MAX - JOB_BYTES).await.unwrap();
        store.change(record.id(), response(b"x")).await.unwrap();
        assert!(store.read(record.id(), None).await.unwrap().is_some());
        assert!(store.bytes() < 2 * JOB_BYTES);
    }

    #[test]
    fn trap_9_3_what_is_due_is_swept_while_every_other_shard_is_locked() {
        let store = MemoryStore::new(usize::MAX);
        let runtime = paused_runtime();
        let (due, later) = runtime.block_on(async {
            let due = end_one(&store).await;
            tokio::time::advance(TTL / 2).await;
            let mut later = Vec::new();
            for _ in 0..100_000 {
                later.push(end_one(&store).await);
            }
            (due, later)
        });
        let jobs = &store.inner.jobs;
        let keep_open = jobs.get(&due).unwrap();
        let locked: Vec<_> =
            later.iter().filter_map(|id| jobs.try_get_mut(id).try_unwrap()).collect();
        drop(keep_open);
        assert_eq!(locked.len(), SHARDS - 1);
        let (done, swept) = std::sync::mpsc::channel();
        // A sweep that looked at any other job would never come back.
        std::thread::spawn(move || {
            runtime.block_on(async { tokio::time::sleep(TTL / 2 + Duration::from_secs(1)).await });
            done.send(())
        });
        swept.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(jobs.get(&due).is_none());
        drop(locked);
        assert_eq!(store.jobs(), 100_000);
    }
}
