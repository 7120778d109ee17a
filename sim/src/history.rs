//! The history of each job's record: a store that notes every call and what came of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, Record, Status, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

use crate::{facts::Millis, log::Log};

/// What a call wanted of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// To keep it, as queued or as running.
    Insert(bool),
    /// To forget it.
    TakeBack,
    /// To read it.
    Read,
    /// To begin it.
    Start,
    /// To note its progress.
    Progress,
    /// To end it.
    Finish,
    /// To end it since its process failed it.
    Fail,
    /// To cancel it.
    Cancel,
    /// To remove its outcome.
    Remove,
    /// To take a durable one.
    Take,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// Nobody knows.
    Unknown,
    /// It was done; the record after it.
    Done(Seen),
    /// It was not done; the record as it is.
    Refused(Seen),
    /// There is no such job.
    Nothing,
    /// It was done, or there was nothing to do; the record is not told.
    Fine,
    /// It is known not to have been done.
    NotDone,
}

/// A record as far as the history looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Its version.
    pub version: u32,
    /// Its status.
    pub status: Status,
    /// How often it was begun, if it is durable.
    pub attempt: u16,
    /// Whether its outcome was removed.
    pub removed: bool,
}

impl From<&Record> for Seen {
    fn from(record: &Record) -> Self {
        Self {
            version: record.version(),
            status: record.status(),
            attempt: record.attempt().unwrap_or(0),
            removed: record.is_removed(),
        }
    }
}

/// A call of a store.
#[derive(Debug, Clone)]
pub struct Op {
    /// The job.
    pub job: JobId,
    /// Which node called.
    pub node: (usize, u32),
    /// When it was called.
    pub from: Millis,
    /// When it returned; none: never.
    pub to: Option<Millis>,
    /// What was wanted.
    pub want: Want,
    /// What came of it.
    pub got: Got,
}

/// All calls of a run. Clones share them.
#[derive(Debug, Clone)]
pub struct History {
    log: Log,
    ops: Arc<Mutex<Vec<Op>>>,
}

impl History {
    /// Creates an empty history.
    pub fn new(log: &Log) -> Self {
        Self { log: log.clone(), ops: Arc::default() }
    }

    /// Takes the calls.
    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns all jobs of which there was a call, in order.
    pub fn jobs(&self) -> BTreeSet<JobId> {
        let ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        ops.iter().map(|op| op.job).collect()
    }

    fn begin(&self, node: (usize, u32), job: JobId, want: Want) -> usize {
        // What is done in a step may have been done at any moment of it: an operation lasts from the
        // step's begin to its end.
        let op = Op { job, node, from: self.log.step().0, to: None, want, got: Got::Unknown };
        let mut ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        ops.push(op);
        ops.len() - 1
    }

    fn end(&self, index: usize, got: Got) {
        let to = self.log.step().1;
        let mut ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(op) = ops.get_mut(index) {
            (op.to, op.got) = (Some(to), got);
        }
    }
}

/// A store whose calls are noted. It has every method of the trait: one that is left out would be the
/// trait's own, which says that the store can't do it.
pub struct Recorded<S> {
    store: S,
    node: (usize, u32),
    history: History,
}

impl<S: Store> Recorded<S> {
    /// Notes the calls that this node makes to the store.
    pub fn new(store: S, node: (usize, u32), history: History) -> Self {
        Self { store, node, history }
    }

    fn noted<T: Send + 'static>(
        &self,
        job: JobId,
        want: Want,
        answer: StoreFuture<T>,
        got: impl FnOnce(&T) -> Got + Send + 'static,
    ) -> StoreFuture<T> {
        let index = self.history.begin(self.node, job, want);
        let history = self.history.clone();
        StoreFuture::new(async move {
            let answer = answer.await;
            match &answer {
                Ok(answer) => history.end(index, got(answer)),
                // Whether it was done is not known, now or later: the call never ends.
                Err(error) if error.kind() == ErrorKind::StoreFull => {
                    history.end(index, Got::NotDone)
                }
                Err(_) => {}
            }
            answer
        })
    }
}

/// What it says that a job is not there: nothing, where it may be another owner's.
fn nothing(owner: Option<Digest>) -> Got {
    if owner.is_some() { Got::NotDone } else { Got::Nothing }
}

fn inserted(inserted: &Inserted) -> Got {
    match inserted {
        Inserted::New => Got::Fine,
        Inserted::Claimed(_) => Got::NotDone,
    }
}

impl<S: Store> Store for Recorded<S> {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        let (id, runs) = (record.id(), record.status() == Status::Running);
        self.noted(id, Want::Insert(runs), self.store.insert(record, outcome_bytes), inserted)
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        let got = |is_gone: &bool| if *is_gone { Got::Fine } else { Got::NotDone };
        self.noted(id, Want::TakeBack, self.store.take_back(id), got)
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        let nothing = nothing(owner);
        let got = move |found: &Option<Record>| {
            found.as_ref().map_or(nothing, |record| Got::Refused(record.into()))
        };
        self.noted(id, Want::Read, self.store.read(id, owner), got)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        let nothing = nothing(owner);
        let got = move |found: &Option<(Record, Option<Fetched>)>| {
            found.as_ref().map_or(nothing, |(record, _)| Got::Refused(record.into()))
        };
        self.noted(id, Want::Read, self.store.fetch(id, owner), got)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.store.claimed(key)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        let want = match &change {
            Change::Start => Want::Start,
            Change::Progress(_) => Want::Progress,
            Change::Finish(tower_offload::End::Failure(
                tower_offload::Failure::Interrupted | tower_offload::Failure::NodeLost,
            )) => Want::Fail,
            Change::Finish(_) => Want::Finish,
            Change::Cancel => Want::Cancel,
            _ => Want::Remove,
        };
        let got = |changed: &Changed| match changed {
            Changed::Applied(record) => Got::Done(record.into()),
            Changed::Refused(record) => Got::Refused(record.into()),
            Changed::Unknown => Got::Nothing,
        };
        self.noted(id, want, self.store.change(id, change), got)
    }

    fn changes_at_once(&self) -> bool {
        self.store.changes_at_once()
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.store.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.store.usage()
    }

    fn keeps_requests(&self) -> bool {
        self.store.keeps_requests()
    }

    fn enqueue(
        &self,
        record: Record,
        request: Bytes,
        outcome_bytes: usize,
    ) -> StoreFuture<Inserted> {
        let id = record.id();
        let answer = self.store.enqueue(record, request, outcome_bytes);
        self.noted(id, Want::Insert(false), answer, inserted)
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        let (answer, history, node) = (self.store.take(policy), self.history.clone(), self.node);
        let from = history.log.step().0;
        StoreFuture::new(async move {
            let taken: Result<Option<(Record, Bytes)>, Error> = answer.await;
            if let Ok(Some((record, _))) = &taken {
                let index = history.begin(node, record.id(), Want::Take);
                history.end(index, Got::Done(record.into()));
                let mut ops = history.ops.lock().unwrap_or_else(PoisonError::into_inner);
                ops[index].from = from;
            }
            taken
        })
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        self.store.queued(policy)
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        self.store.arrival(policy)
    }
}
