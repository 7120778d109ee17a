//! The store in memory, which counts what comes in and how it ends: the books of the jobs that no
//! client was told of too.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tower_offload::{
    Change, Digest, End, Failure, JobId, MemoryStore, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

/// How a job ended, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    Accepted,
    /// Nobody was told of it.
    TakenBack,
    Succeeded,
    Answered400,
    Panicked,
    ServiceError,
    TimedOut,
    TooLarge,
    Interrupted,
    Canceled,
}

#[derive(Clone)]
pub struct Counted {
    pub store: MemoryStore,
    entries: Arc<Mutex<BTreeMap<Entry, usize>>>,
}

impl Counted {
    pub fn new(max_bytes: usize) -> Self {
        Self { store: MemoryStore::new(max_bytes), entries: Arc::default() }
    }

    /// Gives the books away and begins anew.
    pub fn take(&self) -> BTreeMap<Entry, usize> {
        std::mem::take(&mut self.entries.lock().unwrap())
    }

    fn note(&self, entry: Entry) {
        *self.entries.lock().unwrap().entry(entry).or_default() += 1;
    }
}

/// What this change is an end to; `None` where it is none.
fn end_of(change: &Change) -> Option<Entry> {
    Some(match change {
        Change::Cancel => Entry::Canceled,
        Change::Finish(End::Response(outcome)) if outcome.status().as_u16() < 400 => {
            Entry::Succeeded
        }
        Change::Finish(End::Response(_)) => Entry::Answered400,
        Change::Finish(End::Failure(failure)) => match failure {
            Failure::Panicked => Entry::Panicked,
            Failure::ServiceError => Entry::ServiceError,
            Failure::TimedOut => Entry::TimedOut,
            Failure::TooLarge => Entry::TooLarge,
            _ => Entry::Interrupted,
        },
        _ => return None,
    })
}

impl Store for Counted {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        let (this, inserted) = (self.clone(), self.store.insert(record, outcome_bytes));
        StoreFuture::new(async move {
            let inserted = inserted.await;
            if matches!(inserted, Ok(Inserted::New)) {
                this.note(Entry::Accepted);
            }
            inserted
        })
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.note(Entry::TakenBack);
        self.store.take_back(id)
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.store.read(id, owner)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.store.fetch(id, owner)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.store.claimed(key)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        let (this, end) = (self.clone(), end_of(&change));
        let changed = self.store.change(id, change);
        StoreFuture::new(async move {
            let changed = changed.await;
            if let (Ok(Changed::Applied(_)), Some(end)) = (&changed, end) {
                this.note(end);
            }
            changed
        })
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.store.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.store.usage()
    }
}
