//! The store in memory: a sharded map, with its bytes counted.
//!
//! The map is private to this file. No guard of it leaves a method, lives over an await, or is held
//! while another is taken: a `DashMap` deadlocks there. Expiry goes through a queue ordered by time
//! (`expiry.rs`), never by scanning the map.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::{sync::Notify, time::Instant};

use super::{
    Changed, Store, StoreFuture,
    expiry::{Expire, Expiry},
};
use crate::{
    error::{Error, ErrorKind},
    job::{Change, End, JobId, Outcome, Record},
};

/// What a job is counted with beside its outcome: its place in the map and in the queue of expiry,
/// with the slack of both, rounded up.
const JOB_BYTES: usize = 512;

/// With the default of 8 shards on 2 cores a poll was seen to wait 2.6 ms while a million jobs
/// expired, with 1,024 shards 52 µs; they take 128 KiB.
const SHARDS: usize = 1024;

/// Keeps jobs in the memory of this process, and its promises while the process lives: what runs or
/// is kept when the process dies is lost with it.
///
/// It never holds more than the bytes that it was made with: each job counts with its outcome (with
/// the largest possible one, until it has ended) and 512 bytes for itself. Dropped jobs give their
/// memory back.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    jobs: DashMap<JobId, Kept>,
    max_bytes: usize,
    bytes: AtomicUsize,
    expiry: Expiry,
}

/// A job in the map.
#[derive(Debug)]
struct Kept {
    record: Record,
    outcome: Option<Outcome>,
    /// What this job counts with, beside [`JOB_BYTES`].
    bytes: usize,
    /// From when on it is as if it were not there; `None` until it has ended.
    expires: Option<Instant>,
    /// There only while somebody waits, or has waited since the last change.
    waiters: Option<Arc<Notify>>,
}

/// With the slack of a hash table and of a heap, [`JOB_BYTES`] are to cover this.
const _: () = assert!(size_of::<(JobId, Kept)>() <= 256);

impl Kept {
    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }
}

impl MemoryStore {
    /// A store that holds at most `max_bytes` bytes.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                jobs: DashMap::with_shard_amount(SHARDS),
                max_bytes,
                bytes: AtomicUsize::new(0),
                expiry: Expiry::default(),
            }),
        }
    }

    /// Whether there would be room for a job with an outcome of so many bytes, were it empty.
    pub(crate) fn fits(&self, outcome_bytes: usize) -> bool {
        outcome_bytes.checked_add(JOB_BYTES).is_some_and(|bytes| bytes <= self.inner.max_bytes)
    }

    /// The bytes that are in use, as they count for the limit.
    pub fn bytes(&self) -> usize {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    /// The number of jobs that are kept, running and ended.
    pub fn jobs(&self) -> usize {
        self.inner.jobs.len()
    }
}

impl Store for MemoryStore {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<()> {
        StoreFuture::ready(self.inner.insert(record, outcome_bytes))
    }

    fn take_back(&self, id: JobId) -> StoreFuture<()> {
        self.inner.forget(id, |_| true);
        StoreFuture::ready(Ok(()))
    }

    fn read(&self, id: JobId) -> StoreFuture<Option<Record>> {
        StoreFuture::ready(Ok(self.inner.look(id, |kept| kept.record.clone())))
    }

    fn fetch(&self, id: JobId) -> StoreFuture<Option<(Record, Option<Outcome>)>> {
        let fetched = self.inner.look(id, |kept| (kept.record.clone(), kept.outcome.clone()));
        StoreFuture::ready(Ok(fetched))
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        StoreFuture::ready(Ok(Inner::change(&self.inner, id, change)))
    }

    fn changed(&self, id: JobId, seen: u32) -> StoreFuture<()> {
        match self.inner.waiters(id, seen) {
            None => StoreFuture::ready(Ok(())),
            Some(waiters) => {
                // It counts the changes from here on, not from its first poll on: the entry was
                // still locked when it was looked at, so none is missed.
                StoreFuture::new(async move {
                    waiters.await;
                    Ok(())
                })
            }
        }
    }
}

impl Inner {
    fn insert(&self, record: Record, outcome_bytes: usize) -> Result<(), Error> {
        let bytes = outcome_bytes.saturating_add(JOB_BYTES);
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Err(Error::new(ErrorKind::StoreFull, "the store in memory is full"));
        }
        match self.jobs.entry(record.id()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Kept {
                    record,
                    outcome: None,
                    bytes: outcome_bytes,
                    expires: None,
                    waiters: None,
                });
                Ok(())
            }
            Entry::Occupied(_) => {
                self.give_back(bytes);
                Err(Error::new(ErrorKind::StoreUnavailable, "a job with this id is there already"))
            }
        }
    }

    fn look<T>(&self, id: JobId, look: impl FnOnce(&Kept) -> T) -> Option<T> {
        self.jobs.get(&id).filter(|kept| !kept.is_expired()).map(|kept| look(&kept))
    }

    fn change(this: &Arc<Self>, id: JobId, change: Change) -> Changed {
        let Some(mut entry) = this.jobs.get_mut(&id).filter(|kept| !kept.is_expired()) else {
            return Changed::Unknown;
        };
        let kept = entry.value_mut();
        if !kept.record.apply(&change, SystemTime::now()) {
            return Changed::Refused(kept.record.clone());
        }
        let reserved = kept.bytes;
        let ended = kept.record.status().is_end() && kept.expires.is_none();
        let outcome = match change {
            Change::Finish(End::Response(outcome)) => kept.outcome.replace(outcome),
            Change::Remove => kept.outcome.take(),
            _ => None,
        };
        if kept.record.status().is_end() {
            kept.bytes = kept.outcome.as_ref().map_or(0, |outcome| outcome.as_bytes().len());
        }
        let bytes = kept.bytes;
        let waiters = kept.waiters.take();
        let record = kept.record.clone();
        let expires = ended.then(|| far(record.ttl()));
        if expires.is_some() {
            kept.expires = expires;
        }
        // The map's lock is given up before anything else is done.
        drop(entry);
        drop(outcome);
        // An outcome larger than what was reserved breaks the contract; it is counted all the same.
        this.bytes.fetch_add(bytes, Ordering::Relaxed);
        this.give_back(reserved);
        if let Some(expires) = expires {
            let weak: Weak<Self> = Arc::downgrade(this);
            this.expiry.push(expires, id, weak);
        }
        if let Some(waiters) = waiters {
            waiters.notify_waiters();
        }
        Changed::Applied(record)
    }

    /// A waiter for the next change; `None` where there has been one since `seen`.
    fn waiters(&self, id: JobId, seen: u32) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut kept = self.jobs.get_mut(&id).filter(|kept| !kept.is_expired())?;
        if kept.record.version() != seen {
            return None;
        }
        let waiters = kept.waiters.get_or_insert_default();
        Some(Arc::clone(waiters).notified_owned())
    }

    /// Drops a job and gives back what it took.
    fn forget(&self, id: JobId, condition: impl FnOnce(&Kept) -> bool) {
        let Some((_, kept)) = self.jobs.remove_if(&id, |_, kept| condition(kept)) else {
            return;
        };
        self.give_back(kept.bytes + JOB_BYTES);
        if let Some(waiters) = kept.waiters {
            waiters.notify_waiters();
        }
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
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
    }
}

/// The time `ttl` from now; one that cannot be told is ten years away.
fn far(ttl: std::time::Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(ttl).unwrap_or(now + std::time::Duration::from_secs(10 * 365 * 86_400))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::Status;

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

    #[tokio::test]
    async fn an_id_that_is_there_is_refused() {
        let store = MemoryStore::new(10_000);
        let record = record();
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), response(b"x")).await.unwrap();
        let bytes = store.bytes();
        assert!(store.insert(record.clone(), 0).await.is_err());
        assert_eq!(store.bytes(), bytes);
        assert_eq!(store.read(record.id()).await.unwrap().unwrap().status(), Status::Succeeded);
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
        }
        for (after, left) in [(1100, 2), (60_000, 1), (3_600_000, 0)] {
            tokio::time::sleep(Duration::from_millis(after)).await;
            assert_eq!(store.jobs(), left);
        }
    }

    #[test]
    fn a_second_runtime_sweeps_on() {
        let store = MemoryStore::new(usize::MAX);
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let end_one = || async {
            let record = record();
            store.insert(record.clone(), 0).await.unwrap();
            store.change(record.id(), Change::Cancel).await.unwrap();
        };
        runtime().block_on(end_one());
        runtime().block_on(async {
            end_one().await;
            tokio::time::sleep(TTL * 2).await;
        });
        assert_eq!(store.jobs(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_ends_with_its_store() {
        let store = MemoryStore::new(usize::MAX);
        let record = record();
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), Change::Cancel).await.unwrap();
        let weak = Arc::downgrade(&store.inner);
        drop(store);
        assert_eq!(weak.strong_count(), 0);
    }
}
