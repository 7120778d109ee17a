//! What every check has: its name, the store, and calls that say what went wrong.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::task::JoinHandle;

use crate::{
    error::Error,
    job::{Change, Claim, Digest, End, JobId, Outcome, Record},
    store::{Changed, Inserted, Interest, Store, StoreFuture},
};

/// The longest that any answer may take, or any waiter be left waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// The TTL of jobs that are not to expire.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// A check that is run: its name, and two handles of the store, which may be one and the same.
pub(super) struct Check<S> {
    name: &'static str,
    /// Changes go through this one.
    pub(super) here: Arc<S>,
    /// And this one is looked at.
    pub(super) there: Arc<S>,
}

impl<S> Clone for Check<S> {
    fn clone(&self) -> Self {
        Self { name: self.name, here: Arc::clone(&self.here), there: Arc::clone(&self.there) }
    }
}

impl<S: Store> Check<S> {
    pub(super) fn new(name: &'static str, here: Arc<S>, there: Arc<S>) -> Self {
        Self { name, here, there }
    }

    /// The other way round.
    pub(super) fn swapped(&self) -> Self {
        Self { name: self.name, here: Arc::clone(&self.there), there: Arc::clone(&self.here) }
    }

    pub(super) fn fail(&self, what: impl Display) -> ! {
        panic!("store conformance, {}: {what}", self.name)
    }

    pub(super) fn that(&self, holds: bool, what: impl Display) {
        if !holds {
            self.fail(what);
        }
    }

    /// What comes of `future`, which is not to be waited for without end.
    pub(super) async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => self.fail(format_args!("{what}: nothing within {PATIENCE:?}")),
        }
    }

    pub(super) async fn answer<T>(&self, call: &str, future: StoreFuture<T>) -> T {
        match self.soon(call, future).await {
            Ok(value) => value,
            Err(error) => self.fail(format_args!("{call} failed: {error} ({:?})", error.kind())),
        }
    }

    /// Polls the answer to a call once, and gives it back if it has not come.
    pub(super) async fn begin<T>(
        &self,
        call: &str,
        mut future: StoreFuture<T>,
    ) -> Option<StoreFuture<T>> {
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
        match first {
            Poll::Pending => Some(future),
            Poll::Ready(Ok(_)) => None,
            Poll::Ready(Err(error)) => self.fail(format_args!("{call} failed: {error}")),
        }
    }

    pub(super) async fn insert(&self, record: &Record) {
        if let Inserted::Claimed(holder) = self.inserted(record).await {
            self.fail(format_args!("its claim, which nobody else has, is {holder:?}'s"));
        }
    }

    pub(super) async fn inserted(&self, record: &Record) -> Inserted {
        self.answer("insert", self.here.insert(record.clone(), 4096)).await
    }

    pub(super) async fn claimed(&self, key: Digest) -> Option<Record> {
        self.answer("claimed", self.there.claimed(key)).await
    }

    /// The error of an insertion that is to be refused.
    pub(super) async fn refused(&self, record: &Record, bytes: usize) -> Option<Error> {
        self.soon("insert", self.here.insert(record.clone(), bytes)).await.err()
    }

    /// Takes a job back that can be.
    pub(super) async fn take_back(&self, id: JobId) {
        let is_gone = self.undo(id).await;
        self.that(is_gone, "a job that no other request was given is not taken back");
    }

    /// Takes a job back, if that can be, and returns whether it is gone.
    pub(super) async fn undo(&self, id: JobId) -> bool {
        self.answer("take_back", self.here.take_back(id)).await
    }

    pub(super) async fn read(&self, id: JobId) -> Option<Record> {
        self.answer("read", self.there.read(id, None)).await
    }

    pub(super) async fn fetch(&self, id: JobId) -> Option<(Record, Option<Outcome>)> {
        let (record, fetched) = self.answer("fetch", self.there.fetch(id, None)).await?;
        let Some(fetched) = fetched else { return Some((record, None)) };
        let whole = StoreFuture::new(fetched.whole());
        Some((record, Some(self.answer("the rest of what fetch gave", whole).await)))
    }

    /// A store that says so is held to it: its changes are done with the first poll.
    pub(super) async fn change(&self, id: JobId, change: Change) -> Changed {
        let mut answer = self.here.change(id, change);
        if !self.here.changes_at_once() {
            return self.answer("change", answer).await;
        }
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut answer).poll(cx))).await {
            Poll::Ready(Ok(changed)) => changed,
            other => self.fail(format_args!("it says that changes are done at once: {other:?}")),
        }
    }

    pub(super) async fn changed(&self, id: JobId, seen: u32) {
        self.answer("changed", self.there.changed(id, seen, Interest::Progress)).await;
    }

    /// The record of a job that must be there.
    pub(super) async fn record(&self, id: JobId, when: impl Display) -> Record {
        let Some(record) = self.read(id).await else {
            self.fail(format_args!("the job is not there {when}"));
        };
        record
    }

    /// The record after a change that must be applied.
    pub(super) async fn applied(&self, id: JobId, change: Change) -> Record {
        let name = format!("{change:?}");
        match self.change(id, change).await {
            Changed::Applied(record) => record,
            other => self.fail(format_args!("{name} was not applied: {other:?}")),
        }
    }

    /// Waits, as callers do, until the job's version is another than `seen` or the job has gone.
    pub(super) async fn wait(&self, id: JobId, seen: u32) -> Option<Record> {
        self.wait_for(id, seen, Interest::Progress).await
    }

    /// The same for a change of this interest.
    pub(super) async fn wait_for(&self, id: JobId, seen: u32, of: Interest) -> Option<Record> {
        let last = |record: &Record| match of {
            Interest::Status => record.status_version(),
            Interest::Progress => record.version(),
        };
        let woken = async {
            loop {
                match self.read(id).await {
                    Some(record) if last(&record) <= seen => {
                        self.answer("changed", self.there.changed(id, seen, of)).await;
                    }
                    other => return other,
                }
                // A store may wake early, and be ready each time.
                tokio::task::yield_now().await;
            }
        };
        self.soon("a waiter was not woken", woken).await
    }

    /// A new id, and a job of it.
    pub(super) fn job(&self, make: fn(JobId, SystemTime, Duration) -> Record) -> Record {
        self.job_for(make, LONG)
    }

    pub(super) fn job_for(
        &self,
        make: fn(JobId, SystemTime, Duration) -> Record,
        ttl: Duration,
    ) -> Record {
        match JobId::random() {
            Ok(id) => make(id, crate::system::now(), ttl),
            Err(error) => self.fail(error),
        }
    }

    /// A job with a claim on this key, of its partition.
    pub(super) fn job_of(
        &self,
        make: fn(JobId, SystemTime, Duration) -> Record,
        ttl: Duration,
        claim: Claim,
    ) -> Record {
        match JobId::random_beside(claim.key()) {
            Ok(id) => make(id, crate::system::now(), ttl).with_claim(claim),
            Err(error) => self.fail(error),
        }
    }

    /// A digest of nothing in particular, another each time.
    pub(super) fn digest(&self) -> Digest {
        Digest::of("conformance", &[self.job(Record::queued).id().to_string().as_bytes()])
    }

    /// Whether two records of one job say the same of it, times aside.
    pub(super) fn alike(&self, found: &Record, wanted: &Record, when: impl Display) {
        let of = |record: &Record| {
            let response = record.response_status();
            let state = (record.status(), record.failure(), response, record.is_removed());
            let versions = (record.version(), record.status_version());
            (record.id(), versions, state, record.policy().cloned())
        };
        let same = of(found) == of(wanted)
            && found.owner() == wanted.owner()
            && found.claim() == wanted.claim()
            && found.progress() == wanted.progress();
        self.that(same, format_args!("{when} it is {found:?}, and should be {wanted:?}"));
    }
}

/// What a task came to. Its panic is passed on.
pub(super) async fn join<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(canceled) => panic!("store conformance: a task was cut off: {canceled}"),
        },
    }
}

/// An outcome with all that is easily lost: repeated headers, values that are no text, trailers.
pub(super) fn outcome(status: u16, body: &[u8]) -> Outcome {
    let mut head = http::Response::new(()).into_parts().0;
    head.status = http::StatusCode::from_u16(status).unwrap_or_default();
    for (name, value) in [
        ("set-cookie", &b"a=1"[..]),
        ("content-type", b"text/plain"),
        ("set-cookie", b"b=2; path=/"),
        ("x-latin", b"\xe9\xff"),
        ("x-empty", b""),
        ("set-cookie", b"a=1"),
    ] {
        if let Ok(value) = http::HeaderValue::from_bytes(value) {
            head.headers.append(name, value);
        }
    }
    let mut trailers = http::HeaderMap::new();
    for value in ["0", "1"] {
        trailers.append("x-checksum", http::HeaderValue::from_static(value));
    }
    Outcome::new(&head, body, Some(&trailers))
}

pub(super) fn response(status: u16) -> Change {
    Change::Finish(End::Response(outcome(status, b"body")))
}
