//! A store in memory that keeps requests too, and whose calls fail, hang or panic as the test says.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, MemoryStore, Record, Status, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered, after so long.
    Takes(Duration),
    /// It is never answered.
    Hangs,
    Fails(ErrorKind),
    /// With an error whose source's text panics.
    FailsUnspeakably,
    /// Before it gives its future.
    Panics,
    /// In its future.
    PanicsLate,
    /// In the drop of its future, after it was ready.
    PanicsInDrop,
}

/// The store.
#[derive(Clone)]
pub struct Faulty(Arc<Inner>);

struct Inner {
    jobs: MemoryStore,
    /// Of durable jobs, in the order in which they came.
    requests: Mutex<VecDeque<(JobId, Bytes)>>,
    arrived: watch::Sender<()>,
    /// By the names of calls, with how often the fault is still to happen.
    faults: Mutex<BTreeMap<&'static str, (Fault, usize)>>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    /// The next call of `changed` is answered at once.
    early: AtomicBool,
    /// Each call of `arrival` is answered at once.
    arrives: AtomicBool,
}

/// An error whose text panics.
#[derive(Debug)]
pub struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("told to, in an error's text");
    }
}

impl std::error::Error for Unspeakable {}

struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        panic!("told to, in drop");
    }
}

impl Faulty {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            jobs: MemoryStore::new(usize::MAX),
            requests: Mutex::default(),
            arrived: watch::Sender::new(()),
            faults: Mutex::default(),
            calls: Mutex::default(),
            early: AtomicBool::new(false),
            arrives: AtomicBool::new(false),
        }))
    }

    /// From now on each such call has this fault.
    pub fn set(&self, call: &'static str, fault: Fault) {
        self.set_times(call, fault, usize::MAX);
    }

    /// So many such calls have this fault.
    pub fn set_times(&self, call: &'static str, fault: Fault, times: usize) {
        self.0.faults.lock().unwrap().insert(call, (fault, times));
    }

    /// From now on all calls are answered at once.
    pub fn mend(&self) {
        self.0.faults.lock().unwrap().clear();
    }

    /// The next call of `changed` is answered at once, as it may be.
    pub fn resolve_early(&self) {
        self.0.early.store(true, SeqCst);
    }

    /// From now on `arrival` says at once that there may be a job, whether there is one or not.
    pub fn always_arrives(&self, always: bool) {
        self.0.arrives.store(always, SeqCst);
        self.0.arrived.send_replace(());
    }

    /// How often the call was made.
    pub fn calls(&self, call: &'static str) -> usize {
        self.0.calls.lock().unwrap().get(call).copied().unwrap_or(0)
    }

    /// The jobs as they are, whatever the calls say.
    pub fn jobs(&self) -> &MemoryStore {
        &self.0.jobs
    }

    /// The record of a job, as it is.
    pub async fn record(&self, id: JobId) -> Record {
        self.0.jobs.read(id, None).await.unwrap().expect("the job is there")
    }

    fn fault(&self, call: &'static str) -> Option<Fault> {
        *self.0.calls.lock().unwrap().entry(call).or_default() += 1;
        let mut faults = self.0.faults.lock().unwrap();
        let (fault, left) = faults.get_mut(call)?;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }

    fn call<T: Send + 'static, F>(
        &self,
        call: &'static str,
        work: impl FnOnce(Arc<Inner>) -> F + Send + 'static,
    ) -> StoreFuture<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (inner, fault) = (Arc::clone(&self.0), self.fault(call));
        assert!(fault != Some(Fault::Panics), "told to, in {call}");
        StoreFuture::new(async move {
            let mut _in_drop = None;
            match fault {
                Some(Fault::Takes(time)) => tokio::time::sleep(time).await,
                Some(Fault::Hangs) => std::future::pending().await,
                Some(Fault::Fails(kind)) => return Err(Error::new(kind, "told to")),
                Some(Fault::FailsUnspeakably) => {
                    let error = Error::new(ErrorKind::StoreUnavailable, "told to");
                    return Err(error.with_source(Unspeakable));
                }
                Some(Fault::PanicsLate) => panic!("told to, in the future of {call}"),
                Some(Fault::PanicsInDrop) => _in_drop = Some(PanicsInDrop),
                Some(Fault::Panics) | None => {}
            }
            work(inner).await
        })
    }
}

impl Inner {
    fn first(&self, policy: &str) -> Option<(JobId, Bytes)> {
        let requests = self.requests.lock().unwrap().clone();
        requests.into_iter().find(|(id, _)| {
            let record = futures_util::FutureExt::now_or_never(self.jobs.read(*id, None));
            let Some(Ok(Some(record))) = record else { return false };
            record.status() == Status::Queued && record.policy().is_some_and(|of| **of == *policy)
        })
    }
}

impl Store for Faulty {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.call("insert", move |inner| inner.jobs.insert(record, outcome_bytes))
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.call("take_back", move |inner| inner.jobs.take_back(id))
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.call("read", move |inner| inner.jobs.read(id, owner))
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.call("fetch", move |inner| inner.jobs.fetch(id, owner))
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.call("claimed", move |inner| inner.jobs.claimed(key))
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        let name = match change {
            Change::Start => "start",
            Change::Progress(_) => "progress",
            Change::Finish(_) => "finish",
            _ => "change",
        };
        self.call(name, move |inner| async move {
            let changed = inner.jobs.change(id, change).await;
            inner.arrived.send_replace(());
            changed
        })
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        if self.0.early.swap(false, SeqCst) {
            return StoreFuture::ready(Ok(()));
        }
        self.call("changed", move |inner| inner.jobs.changed(id, seen, interest))
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.call("usage", move |inner| inner.jobs.usage())
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    fn enqueue(
        &self,
        record: Record,
        request: Bytes,
        outcome_bytes: usize,
    ) -> StoreFuture<Inserted> {
        self.call("enqueue", move |inner| async move {
            let id = record.id();
            let inserted = inner.jobs.insert(record, outcome_bytes).await?;
            if let Inserted::New = inserted {
                inner.requests.lock().unwrap().push_back((id, request));
                inner.arrived.send_replace(());
            }
            Ok(inserted)
        })
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        self.call("take", move |inner| async move {
            while let Some((id, request)) = inner.first(&policy) {
                if let Changed::Applied(record) = inner.jobs.change(id, Change::Start).await? {
                    return Ok(Some((record, request)));
                }
            }
            Ok(None)
        })
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        self.call("queued", move |inner| async move {
            let requests = inner.requests.lock().unwrap().clone();
            let mut queued = 0;
            for (id, _) in requests {
                let Some(record) = inner.jobs.read(id, None).await? else { continue };
                let is_its = policy.is_none() || record.policy() == policy.as_ref();
                queued += usize::from(is_its && record.status() == Status::Queued);
            }
            Ok(queued)
        })
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        let store = self.clone();
        self.call("arrival", move |inner| async move {
            let mut arrived = inner.arrived.subscribe();
            while !inner.arrives.load(SeqCst) && inner.first(&policy).is_none() {
                let _ = arrived.changed().await;
                // Each look takes as long as the first.
                if let Some(Fault::Takes(time)) = store.fault("arrival") {
                    tokio::time::sleep(time).await;
                }
            }
            Ok(())
        })
    }
}
