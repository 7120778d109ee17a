//! Takes durable jobs out of the queues, and puts back those that nobody receives.
//!
//! ```text
//! take is answered ──▶ on its way ──received──▶ its worker's
//!                          └───────dropped────▶ put back: queued again
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use redis::Value;
use tokio::{runtime::Handle, sync::oneshot, time::sleep};
use tower_offload::{Error, JobId, Record, Status};

use crate::{
    RedisStore,
    backoff::Backoff,
    caught::log,
    error::{cut_off, is_lasting},
    fields::read,
    store::Inner,
    unreadable::note_later,
};

/// The first and the longest delay before a call is made again whose answer was lost.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// A job that was taken and that its worker has not received yet. Dropped, it is put back.
struct Taken {
    inner: Arc<Inner>,
    /// For the put-back: the drop may be on a plain thread.
    runtime: Handle,
    id: JobId,
    /// The name under which Redis lists it.
    node: Arc<str>,
    /// The number under which it is local; `None` once it was received.
    number: Option<u64>,
    /// `None` until its record has been read.
    job: Option<(Record, Bytes)>,
}

impl Taken {
    fn received(mut self) -> Option<(Record, Bytes)> {
        self.number = None;
        self.job.take()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        // First: should the put-back be lost with its runtime, a comparison finds the job.
        self.inner.local.drop_same(self.id, Some(number));
        let attempt = self.job.take().and_then(|(record, _)| record.attempt());
        // One whose record was not read has ended.
        let Some(attempt) = attempt else { return };
        let (inner, id, node) = (Arc::clone(&self.inner), self.id, Arc::clone(&self.node));
        self.runtime.spawn(async move { inner.put_back(id, &node, attempt).await });
    }
}

impl Inner {
    /// Takes from where there may be something, until something is found, or nobody wants it any more. A
    /// partition in which Redis refuses that is left alone for a while.
    async fn take(
        self: &Arc<Self>,
        policy: &str,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<Taken>, Error> {
        let arrivals = &self.waiters.arrivals;
        while is_wanted() && self.has_arrived(policy).await? {
            let Some(partition) = arrivals.next(policy) else { continue };
            match self.take_from(partition, policy).await {
                Ok(taken) => {
                    arrivals.is_well(policy, partition);
                    if taken.is_some() {
                        arrivals.found(policy, partition);
                        return Ok(taken);
                    }
                }
                Err(error) if is_lasting(&error) => {
                    if arrivals.set_aside(policy, partition) {
                        log(|| {
                            tracing::error!(
                                error = &error as &dyn std::error::Error,
                                policy,
                                partition,
                                "Redis refuses to give jobs of this policy and partition: they wait, and it \
                             is asked again after a second, and each minute at last"
                            )
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Makes the same call until its answer is there: a job whose answer is lost is running, and nobody
    /// would run it.
    ///
    /// # Errors
    /// One that is lasting, among others. Had an earlier try begun a job, the next comparison hands it back.
    async fn take_from(
        self: &Arc<Self>,
        partition: u8,
        policy: &str,
    ) -> Result<Option<Taken>, Error> {
        let (this, taking) = (JobId::random()?.to_string(), self.local.taking(partition));
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        loop {
            let mut call = self.scripts.take.prepare_invoke();
            let node = self.node.id();
            call.key(self.keys.queue(partition, policy)).key(self.keys.fences(partition));
            call.arg(&*node).arg(self.keys.jobs(partition));
            call.arg(self.connection().publish()).arg(self.keys.channel(partition)).arg(&this);
            match self.run(&call, "cannot take a job").await {
                Ok(answer) => match read::<Vec<Value>>(answer)?.as_slice() {
                    [] => return Ok(None),
                    [word] if read::<String>(word.clone())? == "later" => {
                        note_later();
                        return Ok(None);
                    }
                    [_fenced] => drop(self.renew_after_fence(&node).await?),
                    [_unreadable, id] => {
                        if !self.end_first(id).await? {
                            return Ok(None);
                        }
                    }
                    [id, hash, request, ..] => {
                        let id = read::<String>(id.clone())?.parse()?;
                        let number = taking.took(id);
                        let (inner, runtime) = (Arc::clone(self), Handle::current());
                        let mut taken =
                            Taken { inner, runtime, id, node, number: Some(number), job: None };
                        taken.job = self.read_taken(id, hash, request).await?;
                        if let Some((record, _)) = &taken.job {
                            self.local.begun(id, number, record.attempt());
                            return Ok(Some(taken));
                        }
                    }
                },
                Err(error) if is_lasting(&error) => return Err(error),
                Err(error) => {
                    log(|| {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "cannot take a job, trying again"
                        )
                    });
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    /// A job that was taken, with its request. One whose record cannot be read has ended with that.
    async fn read_taken(
        &self,
        id: JobId,
        hash: &Value,
        request: &Value,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let record = self.record_of(id, hash).await?;
        let Some(record) = record.filter(|record| record.status() == Status::Running) else {
            return Ok(None);
        };
        let request = read::<Option<Vec<u8>>>(request.clone())?.unwrap_or_default();
        Ok(Some((record, request.into())))
    }

    /// Ends the first job of a queue, whose record cannot be read. Tells whether it did: not if another
    /// process has.
    async fn end_first(&self, id: &Value) -> Result<bool, Error> {
        self.end_unreadable(read::<String>(id.clone())?.parse()?, &self.node.id()).await
    }

    /// Queues a job again that was taken in this attempt and that nobody has received. Where Redis
    /// refuses that, it is left to the next comparison of what is listed with what runs here.
    async fn put_back(&self, id: JobId, node: &str, attempt: u16) {
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        while let Err(error) = self.hand_back(id, node, attempt, "interrupted").await {
            let is_lasting = is_lasting(&error);
            log(|| {
                tracing::warn!(
                    job = %id,
                    error = &error as &dyn std::error::Error,
                    is_lasting,
                    "cannot put a job back that nobody has received"
                )
            });
            if is_lasting {
                return;
            }
            sleep(backoff.next()).await;
        }
    }
}

impl RedisStore {
    /// Takes a job, in a task of its own. If the caller drops this future before it has received the job,
    /// the job is put back.
    pub(crate) async fn take_for(
        &self,
        policy: Arc<str>,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let (sender, answer) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let taken = inner.take(&policy, || !sender.is_closed()).await;
            drop(sender.send(taken));
        });
        Ok(answer.await.map_err(cut_off("cut off"))??.and_then(Taken::received))
    }
}
