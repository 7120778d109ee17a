//! Where jobs are kept: the trait with its contract, and the store in memory.
//!
//! Knows what a job is. Of HTTP it knows nothing, nor of how jobs are run.

mod budget;
#[cfg(feature = "conformance")]
pub mod conformance;
mod expiry;
mod fetched;
mod guarded;
mod kept;
mod memory;
mod tally;
mod waiting;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic},
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::Bytes;
pub use fetched::Fetched;
pub(crate) use guarded::Guarded;
pub use memory::MemoryStore;
use waiting::Waiting;

use crate::{
    caught::{caught, poll_caught},
    error::{Error, ErrorKind},
    job::{Change, Digest, JobId, Record},
    system,
};

/// Keeps jobs and their outcomes.
///
/// A store may be shared by several processes; everything that one of them must learn of another
/// (that a job was canceled, that it has ended) goes through it. The contract, which the suite in
/// `store::conformance` (feature `conformance`) checks:
///
/// 1. **Each call is atomic.** Of changes that race, each is applied by [`Record::apply`] to the
///    state that the one before left, or refused. Nothing is seen half-done.
/// 2. **What has not ended is never dropped**, and what has ended not before
///    [`Record::expires_at`]. From then on it is as if it had never been.
/// 3. **Room is kept from the start.** A store that is full refuses
///    [`insert`](Store::insert) with [`ErrorKind::StoreFull`]; it never
///    refuses the outcome of a job that it has taken, up to the bytes named then.
/// 4. **A change wakes.** Whoever waits in [`changed`](Store::changed) is woken by the change
///    itself, in this process or another; a change made before the call, and after the version that
///    it names, is not missed. [Progress](Change::Progress) wakes only those who asked for it. A
///    waiter that is dropped leaves nothing behind.
/// 5. **A claim is one job's.** Of jobs whose records have a [claim](Record::claim) with the same
///    key at most one is kept: `insert` keeps a job and its claim, or gives the one that has it. The
///    claim ends with the job, or when the record lets go of it. Its id is of the key's
///    [partition](JobId::partition), so that both can be kept in one place.
/// 6. **After an error the effect is unknown**, except after `StoreFull`, which has none. The call must
///    not take effect after its error was returned, so that a [`take_back`](Store::take_back) that
///    follows undoes an insertion for good. Every call may be repeated.
/// 7. **An undo forgets only what no other request was given.** Each answer that gives the job of a
///    claim ([`Inserted::Claimed`], [`claimed`](Store::claimed)) notes that in the same step, before
///    the job can be forgotten.
/// 8. **A job of another owner is an unknown one.** The owner is compared before anything else of the
///    job is read, so that neither the answer nor the time that it takes tells that there is such a job.
///
/// Futures are polled on a tokio runtime, and may be dropped at any time.
pub trait Store: Send + Sync + 'static {
    /// Keeps a new job, and room for an outcome of `outcome_bytes` (as
    /// [`Outcome::as_bytes`](crate::Outcome::as_bytes) counts them).
    ///
    /// # Errors
    /// `StoreFull` where there is no room. An id that is known already is an error too, of kind
    /// `StoreUnavailable`, and leaves the job that has it as it is.
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted>;

    /// Undoes an insertion: forgets the job, whatever its status, and returns whether it is gone. One
    /// that is not there is gone.
    ///
    /// The job is left as it is, and `false` returned, if another request was given it
    /// ([`Inserted::Claimed`], [`claimed`](Store::claimed)), or if it has a claim and was
    /// [started](Change::Start): then the claim says that the work may have been done.
    fn take_back(&self, id: JobId) -> StoreFuture<bool>;

    /// Returns the job's record, if it is there. Where an `owner` is named, a job that is not
    /// [its](Record::owner) own is not there.
    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>>;

    /// Returns the job's record, and its outcome if there is one that was not removed. `owner` is as
    /// for [`read`](Self::read).
    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>>;

    /// The job that has the claim with this key, if there is one. From then on the job can't be
    /// [taken back](Self::take_back).
    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>>;

    /// Applies a change, if [`Record::apply`] does.
    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed>;

    /// Whether `change` is always done at once, and never fails: then nobody has to keep an outcome
    /// to ask again with, and the store's is the only one. Default: no.
    fn changes_at_once(&self) -> bool {
        false
    }

    /// Resolves once the job has changed in a way that is of `interest` since its
    /// [version](Record::version) was `seen`, or the job is not there. It may resolve early; callers
    /// read the job again.
    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()>;

    /// What is kept, by the names of policies.
    fn usage(&self) -> StoreFuture<Vec<Usage>>;

    /// Whether it keeps requests too, as [durable](crate::Policy::durable) routes need. Default: no;
    /// then none of the calls below is made.
    fn keeps_requests(&self) -> bool {
        false
    }

    /// Keeps a new job that is queued, and has [attempts](Record::with_attempts), with its request,
    /// for whichever process takes it first. As [`insert`](Store::insert) otherwise.
    ///
    /// # Errors
    /// As `insert`.
    fn enqueue(
        &self,
        record: Record,
        request: Bytes,
        outcome_bytes: usize,
    ) -> StoreFuture<Inserted> {
        let _ = (record, request, outcome_bytes);
        StoreFuture::ready(Err(no_requests()))
    }

    /// Begins the job of this policy that is due first, if one is: its record after
    /// [`Change::Start`], and its request. From now on it is this process's, and when that is lost,
    /// the store queues the job again, or ends it, as [`Record::apply`] does for
    /// [`Failure::NodeLost`](crate::Failure::NodeLost).
    ///
    /// A future that is dropped before it gave its answer loses no job: nobody would run what the call has
    /// begun, so the store hands it back by itself, as [`Change::Finish`] with
    /// [`Failure::Interrupted`](crate::Failure::Interrupted) would, also where the answer was there
    /// already and was not polled for. Then another call gives the job. Its attempt may be spent.
    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        let _ = policy;
        StoreFuture::ready(Err(no_requests()))
    }

    /// How many jobs [enqueued](Store::enqueue) here have not been [taken](Store::take), or were queued
    /// again since: those of this policy, or of all for `None`. Those that are not due yet count.
    /// Jobs that ended, or were taken back, do not.
    ///
    /// It is asked once a second for each durable policy while its jobs are accepted, and up to ten
    /// times a second while they are refused for their number; so it should cost no more than a
    /// read of a record.
    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        let _ = policy;
        StoreFuture::ready(Err(no_requests()))
    }

    /// Resolves once there may be a job of this policy to [take](Store::take): at once where one is
    /// known to be due, also one that was queued before this call, and otherwise at most a second
    /// after one has become due, in whichever process it was queued.
    ///
    /// It may resolve although there is nothing to take, but seldom: a process that serves the policy
    /// calls it first, takes a permit only when it has resolved, and calls `take` then. So a store in
    /// which looking takes time looks here, where no permit is held.
    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        let _ = policy;
        StoreFuture::ready(Err(no_requests()))
    }
}

/// Returns the wall-clock time by which this crate writes records. A store that makes records, or
/// [applies](Record::apply) changes to them, takes the time from here.
///
/// It is [`SystemTime::now`]; this project's own simulations replace it, as they replace the random bytes
/// of [`JobId::random`].
pub fn now() -> SystemTime {
    system::now()
}

fn no_requests() -> Error {
    Error::new(ErrorKind::Config, "this store keeps no requests")
}

/// What became of an [`insert`](Store::insert).
#[derive(Debug, Clone)]
pub enum Inserted {
    /// The job is kept.
    New,
    /// It is not: another job, this one, has the same [claim's key](crate::Claim::key). From now on
    /// that job can't be [taken back](Store::take_back).
    Claimed(Record),
}

/// Which changes somebody who waits for a job wants to be woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Those of its status, its end above all.
    Status,
    /// All, those of its progress too.
    Progress,
}

/// What a store keeps of one policy's jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The policy's name.
    pub policy: Option<Arc<str>>,
    /// How many jobs are kept, ended or not.
    pub jobs: usize,
    /// The bytes that they count with. A store in memory counts outcomes until the last client has read
    /// them, so there may be some where no job is kept.
    pub bytes: usize,
}

/// What became of a [`Change`].
#[derive(Debug, Clone)]
pub enum Changed {
    /// It was applied; this is the record after it.
    Applied(Record),
    /// The job's status does not allow it; this is the record as it is.
    Refused(Record),
    /// There is no such job.
    Unknown,
}

/// A [`Store`]'s answer: there at once (no allocation), or a boxed future.
pub struct StoreFuture<T>(Answer<T>);

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

enum Answer<T> {
    Ready(Option<Result<T, Error>>),
    Boxed(Boxed<T>),
    /// The same, whose panic is an error; empty once it is there.
    Guarded(Option<Boxed<T>>),
    /// There when a job of the store in memory has changed.
    Waiting(Waiting, fn() -> T),
}

impl<T> StoreFuture<T> {
    /// An answer that is there already.
    pub fn ready(answer: Result<T, Error>) -> Self {
        Self(Answer::Ready(Some(answer)))
    }

    fn waiting(change: Waiting, then: fn() -> T) -> Self {
        Self(Answer::Waiting(change, then))
    }

    /// The same answer, where a panic of its future is an error.
    fn guarded(self) -> Self {
        match self.0 {
            Answer::Boxed(future) => Self(Answer::Guarded(Some(future))),
            answer => Self(answer),
        }
    }

    /// An answer that takes time.
    pub fn new(answer: impl Future<Output = Result<T, Error>> + Send + 'static) -> Self {
        Self(Answer::Boxed(Box::pin(answer)))
    }
}

// Nothing in it is pinned in place: the future is in a box of its own.
impl<T> Unpin for StoreFuture<T> {}

impl<T> Future for StoreFuture<T> {
    type Output = Result<T, Error>;

    /// # Panics
    /// If polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Boxed(future) => future.as_mut().poll(cx),
            Answer::Guarded(guarded) => {
                #[expect(clippy::expect_used, reason = "documented; as every future")]
                let future = guarded.as_mut().expect("polled after it was ready");
                let polled = poll_caught(future.as_mut(), cx);
                if polled.is_pending() {
                    return Poll::Pending;
                }
                // Dropped here, where its panic is caught too.
                let dropped = caught(|| drop(guarded.take()));
                polled.map(|answer| {
                    let answer = answer.and_then(|answer| dropped.map(|()| answer));
                    answer.unwrap_or_else(|panic| Err(guarded::panicked(panic)))
                })
            }
            Answer::Waiting(change, then) => Pin::new(change).poll(cx).map(|()| Ok(then())),
            #[expect(clippy::expect_used, reason = "documented; as every future")]
            Answer::Ready(answer) => Poll::Ready(answer.take().expect("polled after it was ready")),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFuture").finish_non_exhaustive()
    }
}
