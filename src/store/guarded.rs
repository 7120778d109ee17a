//! A store that is not ours: where it panics, its call has failed.
//!
//! The tasks that call a store serve more than one request, or have to go on until the store has
//! done what it is asked. A panic, in a method or in the future that it gave, is an error to them,
//! after which nobody knows what was done: point 6 of the contract covers it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Changed, Fetched, Inserted, Interest, Store, StoreFuture, Usage};
use crate::{
    caught::{Panicked, caught, log},
    error::{Error, ErrorKind},
    job::{Change, Digest, JobId, Record},
};

/// A store whose panics are errors.
pub(crate) struct Guarded<S>(pub(crate) S);

pub(super) fn panicked(panicked: Panicked) -> Error {
    log(|| tracing::error!(panic = panicked.message(), "the store panicked"));
    Error::new(ErrorKind::StoreUnavailable, "the store panicked").with_source(panicked)
}

fn call<T>(call: impl FnOnce() -> StoreFuture<T>) -> StoreFuture<T> {
    match caught(call) {
        Ok(answer) => answer.guarded(),
        Err(panic) => StoreFuture::ready(Err(panicked(panic))),
    }
}

// A method that is forgotten here would be answered by its default.
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Guarded<S> {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        call(|| self.0.insert(record, outcome_bytes))
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        call(|| self.0.take_back(id))
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        call(|| self.0.read(id, owner))
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        call(|| self.0.fetch(id, owner))
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        call(|| self.0.claimed(key))
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        call(|| self.0.change(id, change))
    }

    fn changes_at_once(&self) -> bool {
        caught(|| self.0.changes_at_once()).unwrap_or(false)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        call(|| self.0.changed(id, seen, interest))
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        call(|| self.0.usage())
    }

    fn keeps_requests(&self) -> bool {
        caught(|| self.0.keeps_requests()).unwrap_or(false)
    }

    fn enqueue(
        &self,
        record: Record,
        request: Bytes,
        outcome_bytes: usize,
    ) -> StoreFuture<Inserted> {
        call(|| self.0.enqueue(record, request, outcome_bytes))
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        call(|| self.0.take(policy))
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        call(|| self.0.queued(policy))
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        call(|| self.0.arrival(policy))
    }
}
