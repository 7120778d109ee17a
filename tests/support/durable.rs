//! A store in memory that keeps requests too: enough to test what the core makes of durable jobs.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, MemoryStore, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

#[derive(Clone)]
pub struct DurableStore {
    pub jobs: MemoryStore,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<VecDeque<(JobId, Arc<str>, Bytes)>>,
    arrived: Notify,
    /// How often it was asked how many wait.
    counted: AtomicUsize,
    is_away: AtomicBool,
}

impl DurableStore {
    pub fn new() -> Self {
        Self { jobs: MemoryStore::new(1 << 30), shared: Arc::default() }
    }

    /// How many wait, of all policies.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.lock().unwrap().len()
    }

    /// How often the layer has asked how many wait.
    pub fn counted(&self) -> usize {
        self.shared.counted.load(SeqCst)
    }

    /// Whether it fails when it is asked how many wait.
    pub fn set_away(&self, is_away: bool) {
        self.shared.is_away.store(is_away, SeqCst);
    }

    /// Takes a job out of the queue, as another process does.
    pub fn pop(&self) -> Option<JobId> {
        self.shared.waiting.lock().unwrap().pop_front().map(|(id, ..)| id)
    }

    /// Puts a job into the queue, as another process does.
    pub fn push(&self, policy: &str) {
        let id = JobId::random().unwrap();
        let mut waiting = self.shared.waiting.lock().unwrap();
        waiting.push_back((id, Arc::from(policy), Bytes::new()));
    }
}

impl Store for DurableStore {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.jobs.insert(record, outcome_bytes)
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        let (jobs, shared) = (self.jobs.clone(), Arc::clone(&self.shared));
        StoreFuture::new(async move {
            let is_gone = jobs.take_back(id).await?;
            if is_gone {
                shared.waiting.lock().unwrap().retain(|(other, ..)| *other != id);
            }
            Ok(is_gone)
        })
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.jobs.read(id, owner)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.jobs.fetch(id, owner)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.jobs.claimed(key)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.jobs.change(id, change)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.jobs.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.jobs.usage()
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    fn enqueue(&self, record: Record, request: Bytes, bytes: usize) -> StoreFuture<Inserted> {
        let (id, policy) = (record.id(), record.policy().cloned().unwrap_or_default());
        let (jobs, shared) = (self.jobs.clone(), Arc::clone(&self.shared));
        StoreFuture::new(async move {
            let inserted = jobs.insert(record, bytes).await?;
            if let Inserted::New = inserted {
                shared.waiting.lock().unwrap().push_back((id, policy, request));
                shared.arrived.notify_waiters();
            }
            Ok(inserted)
        })
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        let mut waiting = self.shared.waiting.lock().unwrap();
        let at = waiting.iter().position(|(_, other, _)| *other == policy);
        let Some((id, _, request)) = at.and_then(|at| waiting.remove(at)) else {
            return StoreFuture::ready(Ok(None));
        };
        drop(waiting);
        let started = self.jobs.change(id, Change::Start);
        StoreFuture::new(async move {
            match started.await? {
                Changed::Applied(record) => Ok(Some((record, request))),
                _ => Ok(None),
            }
        })
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        self.shared.counted.fetch_add(1, SeqCst);
        if self.shared.is_away.load(SeqCst) {
            let error = Error::new(ErrorKind::StoreUnavailable, "the store is away");
            return StoreFuture::ready(Err(error));
        }
        let waiting = self.shared.waiting.lock().unwrap();
        let is_of = |other: &Arc<str>| policy.as_ref().is_none_or(|policy| policy == other);
        StoreFuture::ready(Ok(waiting.iter().filter(|(_, other, _)| is_of(other)).count()))
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        let shared = Arc::clone(&self.shared);
        StoreFuture::new(async move {
            loop {
                let mut arrived = pin!(shared.arrived.notified());
                arrived.as_mut().enable();
                if shared.waiting.lock().unwrap().iter().any(|(_, other, _)| *other == policy) {
                    return Ok(());
                }
                arrived.await;
            }
        })
    }
}
