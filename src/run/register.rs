//! Registration: a job is stored before its 202 is sent, and taken back if no 202 was sent.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::{JoinHandle, coop::unconstrained},
};

use super::{
    Admission, Place, State,
    insist::{NOT_LET_GO, insist, until_done},
};
use crate::{
    error::{Error, ErrorKind},
    job::{Change, End, Failure, JobId, Record, Status},
    store::{Inserted, Store, StoreFuture},
};

/// Why there is no job.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The limit of this name was reached.
    Full(&'static str),
    /// The process is shutting down.
    Draining,
    /// The store failed, or no id could be had.
    Store(Error),
    /// Another job, this one, has the claim on the request's key.
    Claimed(Box<Record>),
}

/// A job that is in the store, and of which its own request was not told yet. Dropped, it is taken
/// back, or ended if another request with its key was given it.
#[derive(Debug)]
pub(crate) struct Registered {
    record: Record,
    runtime: Handle,
    /// `None` once the job was promised.
    admission: Option<Admission>,
}

impl Registered {
    /// A durable job that was taken from the store, and is told to have been begun there.
    pub(crate) fn taken(record: Record, runtime: Handle, place: Place) -> Result<Self, Refusal> {
        let mut taken = Self { record, runtime, admission: Some(Admission::Now(place)) };
        taken.promise()?;
        Ok(taken)
    }

    /// Ends the job without having run it.
    pub(crate) fn end(mut self, change: Change) {
        let Some(admission) = self.admission.take() else { return };
        let id = self.record.id();
        insist(&self.runtime, admission, id, move |store| store.change(id, change.clone()));
    }

    fn ask(&self, record: Record) -> StoreFuture<Inserted> {
        let Some(admission) = &self.admission else { unreachable!("not promised yet") };
        let state = &admission.lane().state;
        state.store.insert(record, state.limits.max_outcome_bytes)
    }

    /// What the store says of the job.
    fn inserted(&mut self, inserted: Result<Inserted, Error>) -> Result<(), Refusal> {
        let kept = kept(inserted);
        if let Err(Refusal::Claimed(_) | Refusal::Full(_)) = &kept {
            // It is known not to be there.
            self.admission = None;
        }
        kept
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The job is going to be promised: from now on a drain waits for it. At a drain's deadline it is
    /// too late for that.
    fn promise(&mut self) -> Result<(), Refusal> {
        match &mut self.admission {
            Some(admission) => admission.occupy(self.record.id()),
            None => Ok(()),
        }
    }

    /// Its request is gone before there was a job.
    fn set_aside(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.set_aside();
        }
    }

    /// What runs the job, whatever becomes of the request.
    pub(super) fn into_parts(mut self) -> Option<(Admission, Handle)> {
        Some((self.admission.take()?, self.runtime.clone()))
    }
}

/// What the answer to an insertion says: with `Refusal::Store`, nobody knows whether the job is there.
pub(crate) fn kept(inserted: Result<Inserted, Error>) -> Result<(), Refusal> {
    match inserted {
        Ok(Inserted::New) => Ok(()),
        Ok(Inserted::Claimed(holder)) => Err(Refusal::Claimed(Box::new(holder))),
        Err(error) if error.kind() == ErrorKind::StoreFull => {
            Err(Refusal::Full("max_stored_bytes"))
        }
        Err(error) => Err(Refusal::Store(error)),
    }
}

/// Takes back a durable job whose request is told that there is none, and returns whether it is known to
/// be gone. If another request was given it meanwhile, the job is left: the store has all that is needed
/// to run it.
pub(crate) async fn undo(state: Arc<State>, id: JobId) -> bool {
    let ask = || state.store.take_back(id);
    until_done(id, NOT_LET_GO, ask().await, ask).await.unwrap_or(false)
}

/// Takes back a job whose handler only this process has. If another request was given the job
/// meanwhile, it ends instead: its handler will never run.
fn withdraw(store: &Arc<dyn Store>, id: JobId) -> StoreFuture<()> {
    let store = Arc::clone(store);
    StoreFuture::new(async move {
        if !store.take_back(id).await? {
            store.change(id, interrupted()).await?;
        }
        Ok(())
    })
}

/// Hands a durable job back, so that it is queued again, if this attempt at it still runs.
///
/// An attempt that was handed back by a call whose answer was lost may have been followed by another one
/// in this same process, which a second such call would end. The job is read before each call. That is
/// enough where no call takes effect after its error was returned (point 6 of the contract). The store for
/// Redis cannot promise that of a change, and names the attempt in such a call.
fn hand_back(store: &Arc<dyn Store>, id: JobId, attempt: u16) -> StoreFuture<()> {
    let store = Arc::clone(store);
    StoreFuture::new(async move {
        let is_own = match store.read(id, None).await {
            Ok(record) => record.is_some_and(|record| {
                record.status() == Status::Running && record.attempt() == Some(attempt)
            }),
            // Whichever attempt it is, a job that cannot be read ends with the change.
            Err(error) if error.kind() == ErrorKind::Corrupt => true,
            Err(error) => return Err(error),
        };
        if is_own {
            store.change(id, interrupted()).await?;
        }
        Ok(())
    })
}

fn interrupted() -> Change {
    Change::Finish(End::Failure(Failure::Interrupted))
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(mut admission) = self.admission.take() else { return };
        admission.set_aside();
        let id = self.record.id();
        match self.record.attempt() {
            None => insist(&self.runtime, admission, id, move |store| withdraw(store, id)),
            Some(attempt) => {
                insist(&self.runtime, admission, id, move |store| hand_back(store, id, attempt))
            }
        }
    }
}

/// A registration under way. It is carried to its end even if this is dropped, and then taken back.
#[derive(Debug)]
pub(crate) struct Registering {
    id: JobId,
    work: Insertion,
}

#[derive(Debug)]
enum Insertion {
    /// `None` once it was given away.
    Done(Option<Registered>),
    UnderWay {
        task: JoinHandle<Result<Registered, Refusal>>,
        /// Dropped with the request, it tells the task so.
        _wanted: oneshot::Sender<Infallible>,
    },
}

impl Registering {
    /// Registers a job that takes this place, or waits for one.
    pub(crate) fn start(
        admission: Admission,
        record: Record,
        cx: &mut Context<'_>,
    ) -> Result<Self, Refusal> {
        let runtime = Handle::try_current().map_err(|none| {
            let error = Error::new(ErrorKind::StoreUnavailable, "not on a tokio runtime");
            Refusal::Store(error.with_source(none))
        })?;
        let (id, insert) = (record.id(), record.clone());
        // There before the store is asked: whatever ends this early takes the job back, since an
        // insert of unknown fate counts as made.
        let mut registered = Registered { record, runtime, admission: Some(admission) };
        let mut answer = registered.ask(insert);
        // The store in memory is done at the first poll; others go on in a task of their own,
        // which dropping its handle does not stop (tokio, `JoinHandle`).
        let work = match Pin::new(&mut answer).poll(cx) {
            Poll::Ready(inserted) => {
                registered.inserted(inserted)?;
                Insertion::Done(Some(registered))
            }
            Poll::Pending => {
                let runtime = registered.runtime.clone();
                let (wanted, mut unwanted) = oneshot::channel();
                let task = runtime.spawn(async move {
                    let inserted = poll_fn(|cx| {
                        if !unwanted.is_terminated() && Pin::new(&mut unwanted).poll(cx).is_ready()
                        {
                            registered.set_aside();
                        }
                        Pin::new(&mut answer).poll(cx)
                    })
                    .await;
                    registered.inserted(inserted).map(|()| registered)
                });
                Insertion::UnderWay { task, _wanted: wanted }
            }
        };
        Ok(Self { id, work })
    }

    /// The id that the job will have.
    pub(crate) fn id(&self) -> JobId {
        self.id
    }
}

impl Future for Registering {
    type Output = Result<Registered, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut registered = match &mut self.work {
            #[expect(clippy::expect_used, reason = "as every future")]
            Insertion::Done(registered) => registered.take().expect("polled after it was ready"),
            // Unconstrained: the handler, polled before it, may have used up the task's budget.
            Insertion::UnderWay { task, .. } => match ready!(pin!(unconstrained(task)).poll(cx)) {
                Ok(registered) => registered?,
                // The task is only ever lost with its runtime.
                Err(lost) => {
                    let error = Error::new(ErrorKind::StoreUnavailable, "registration was cut off");
                    return Poll::Ready(Err(Refusal::Store(error.with_source(lost))));
                }
            },
        };
        registered.promise()?;
        Poll::Ready(Ok(registered))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;
    use crate::{
        job::Digest,
        run::{Lane, Limits},
        store::{Changed, Fetched, Interest, MemoryStore, Usage},
        wire::Urls,
    };

    /// Loses the answers to its first changes that end something, or their effect too.
    struct Loses {
        jobs: MemoryStore,
        left: Mutex<Vec<Lost>>,
    }

    enum Lost {
        Answer,
        Call,
    }

    impl Store for Loses {
        fn insert(&self, record: Record, bytes: usize) -> StoreFuture<Inserted> {
            self.jobs.insert(record, bytes)
        }

        fn take_back(&self, id: JobId) -> StoreFuture<bool> {
            self.jobs.take_back(id)
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
            let lost = match change {
                Change::Finish(_) => self.left.lock().unwrap().pop(),
                _ => None,
            };
            match lost {
                Some(Lost::Answer) => drop(self.jobs.change(id, change)),
                Some(Lost::Call) => {}
                None => return self.jobs.change(id, change),
            }
            let error = Error::new(ErrorKind::StoreUnavailable, "its answer is lost");
            StoreFuture::ready(Err(error))
        }

        fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
            self.jobs.changed(id, seen, interest)
        }

        fn usage(&self) -> StoreFuture<Vec<Usage>> {
            self.jobs.usage()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn durable_job_is_handed_back_until_the_store_has_it_and_no_later_attempt_is() {
        for (lost, status, attempt) in [
            (vec![], Status::Queued, 1),
            (vec![Lost::Call, Lost::Call], Status::Queued, 1),
            // Its answer was lost, and before it is made again the job is begun again.
            (vec![Lost::Answer], Status::Running, 2),
        ] {
            let is_begun_again = status == Status::Running;
            let jobs = MemoryStore::new(1 << 20);
            let store = Arc::new(Loses { jobs: jobs.clone(), left: Mutex::new(lost) });
            let urls = Urls::new("/jobs", None, Default::default(), false).unwrap();
            let state = Arc::new(State::new(store, Limits::default(), urls, None));
            let lane = Lane::new(&state, state.accounts.open(&Arc::from("test")), Some(1), 0);
            let id = JobId::random().unwrap();
            let record = Record::queued(id, crate::system::now(), Duration::from_secs(60));
            jobs.insert(record.with_attempts(3), 100).await.unwrap();
            let Changed::Applied(record) = jobs.change(id, Change::Start).await.unwrap() else {
                panic!("it does not begin");
            };
            let place = lane.take().unwrap();
            drop(Registered::taken(record, Handle::current(), place).unwrap());
            if is_begun_again {
                assert!(lane.look().is_err(), "the permit is free before the store has answered");
                let again = jobs.change(id, Change::Start).await.unwrap();
                assert!(matches!(again, Changed::Applied(_)));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(lane.look().is_ok(), "the permit is held");
            let record = jobs.read(id, None).await.unwrap().unwrap();
            assert_eq!((record.status(), record.attempt()), (status, Some(attempt)));
        }
    }
}
