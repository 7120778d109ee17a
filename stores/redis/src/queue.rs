//! Durable jobs: those that wait with their requests, in each partition by when they are due.
//!
//! A sorted set by due time, since a queue has to know order of arrival, places, delays and removal;
//! a stream knows the first of these alone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use redis::Value;
use tokio::{sync::oneshot, time::sleep};
use tower_offload::{
    Change, End, Error, ErrorKind, Failure, JobId, Record, Status, store::Inserted,
};

use crate::{
    RedisStore,
    error::corrupt,
    fields::{self, read},
    store::{Inner, fenced},
    unreadable::note_later,
};

/// Before a call is made again whose answer was lost.
const AGAIN: Duration = Duration::from_millis(100);

impl Inner {
    pub(crate) async fn enqueue(
        &self,
        record: &Record,
        request: &Bytes,
    ) -> Result<Inserted, Error> {
        let node = self.node.id();
        if let Some(enqueued) = self.enqueue_as(&node, record, request).await? {
            return Ok(enqueued);
        }
        let node = self.renew_after_fence(&node).await?;
        self.enqueue_as(&node, record, request).await?.ok_or_else(fenced)
    }

    /// `None` where this node was taken for dead.
    async fn enqueue_as(
        &self,
        node: &str,
        record: &Record,
        request: &Bytes,
    ) -> Result<Option<Inserted>, Error> {
        let (id, partition) = (record.id(), record.id().partition());
        let mut call = self.scripts.enqueue.prepare_invoke();
        call.key(self.keys.job(id)).key(self.keys.index(partition));
        call.key(self.keys.counts(partition)).key(self.keys.fences(partition));
        if let Some(claim) = self.claim_of(record)? {
            call.key(claim);
        }
        call.arg(id.to_string()).arg(self.connection().publish());
        call.arg(self.keys.channel(partition)).arg(fields::member(record, "policy")?);
        call.arg(&request[..]).arg(node).arg(self.number()).arg(fields::of(record)?);
        let answer =
            read::<Vec<Value>>(self.run_replicated(&call, partition, "cannot keep a job").await?)?;
        self.inserted(&answer).await
    }

    /// Takes from where there may be something, until something is found, or nobody wants it any more.
    async fn take(
        self: &Arc<Self>,
        policy: &str,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let arrivals = &self.waiters.arrivals;
        while is_wanted() && self.has_arrived(policy).await? {
            let Some(partition) = arrivals.next(policy) else { continue };
            if let Some(taken) = self.take_from(partition, policy).await? {
                arrivals.found(policy, partition);
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// Makes the same call until its answer is there: a job whose answer is lost is running, and nobody
    /// would run it.
    async fn take_from(
        &self,
        partition: u8,
        policy: &str,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let (this, taking) = (JobId::random()?.to_string(), self.local.taking(partition));
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
                        taking.took(id);
                        let taken = self.taken(id, hash, request).await;
                        if !matches!(taken, Ok(Some(_))) {
                            // Nobody runs it here: what is still listed is handed back.
                            self.local.remove(id);
                        }
                        if let Some(taken) = taken? {
                            return Ok(Some(taken));
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot take a job, trying again"
                    );
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// A job that was taken, with its request. One whose record cannot be read has ended with that.
    async fn taken(
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

    /// What a script says of an insertion; `None` where its node is fenced.
    pub(crate) async fn inserted(&self, answer: &[Value]) -> Result<Option<Inserted>, Error> {
        match answer {
            [] => Ok(Some(Inserted::New)),
            [refused] if read::<String>(refused.clone())? == "fenced" => Ok(None),
            [_known] => {
                let message = "a job with this id is there already";
                Err(Error::new(ErrorKind::StoreUnavailable, message))
            }
            [holder, hash, ..] => {
                let record = self.record_of(read::<String>(holder.clone())?.parse()?, hash).await?;
                let record = record.ok_or_else(|| corrupt("a claim is nobody's"))?;
                Ok(Some(Inserted::Claimed(record)))
            }
        }
    }

    async fn given_up(&self, most: usize) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for partition in 0..JobId::PARTITIONS {
            let left = most - records.len();
            if left == 0 {
                break;
            }
            let mut call = self.scripts.given_up.prepare_invoke();
            call.key(self.keys.given_up(partition)).arg(self.keys.jobs(partition)).arg(left);
            let answer = self.run(&call, "cannot read the jobs that were given up").await?;
            for pair in read::<Vec<Value>>(answer)?.chunks_exact(2) {
                let id = read::<String>(pair[0].clone())?.parse()?;
                records.extend(self.record_of(id, &pair[1]).await?);
            }
        }
        Ok(records)
    }

    async fn send_again(&self, id: JobId) -> Result<Option<JobId>, Error> {
        let Some(record) = self.read(id).await? else { return Ok(None) };
        // Its policy could not be read: nobody would take it.
        if record.policy().is_none() {
            return Ok(None);
        }
        let mut command = redis::cmd("GET");
        command.arg(self.keys.request(id));
        let request = match self.ask(&command, "cannot read a request").await? {
            Value::BulkString(bytes) if record.status().is_end() => Bytes::from(bytes),
            _ => return Ok(None),
        };
        let (next, now) = (JobId::random()?, tower_offload::store::now());
        let mut again = Record::queued(next, now, record.ttl());
        again = again.with_attempts(record.max_attempts().unwrap_or(1));
        if let Some(policy) = record.policy() {
            again = again.with_policy(Arc::clone(policy));
        }
        if let Some(owner) = record.owner() {
            again = again.with_owner(*owner);
        }
        self.enqueue(&again, &request).await?;
        // Only now: should this fail, it is in the list once more, and not lost.
        let mut command = redis::cmd("ZREM");
        command.arg(self.keys.given_up(id.partition())).arg(id.to_string());
        self.ask(&command, "cannot take a job from the list").await?;
        let mut command = redis::cmd("DEL");
        command.arg(self.keys.request(id));
        self.ask(&command, "cannot drop a request").await?;
        Ok(Some(next))
    }
}

impl RedisStore {
    /// The [durable](tower_offload::Policy::durable) jobs that were given up, at most so many: each of
    /// their attempts has lost its process. They are kept, with their requests, until they expire. So are
    /// jobs of all kinds whose records could not be read (`Failure::Corrupt`).
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn given_up(&self, most: usize) -> Result<Vec<Record>, Error> {
        self.inner.given_up(most).await
    }

    /// Sends the request of a durable job that was [given up](Self::given_up) once more, as a new job
    /// of the same policy and owner, with all its attempts; the old one stays as it ended. `None` if
    /// there is no such job, or its request is not kept any more.
    ///
    /// # Errors
    /// If Redis does not answer; it may have been sent then.
    pub async fn send_again(&self, id: JobId) -> Result<Option<JobId>, Error> {
        self.inner.send_again(id).await
    }

    /// Takes a job, in a task of its own: whoever wanted it may go before the answer is there, and then
    /// the job goes back.
    pub(crate) async fn take_for(
        &self,
        policy: Arc<str>,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let (sender, answer) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let taken = inner.take(&policy, || !sender.is_closed()).await;
            if let Err(Ok(Some((record, _)))) = sender.send(taken) {
                let back = Change::Finish(End::Failure(Failure::Interrupted));
                while inner.change(record.id(), back.clone()).await.is_err() {
                    sleep(AGAIN).await;
                }
            }
        });
        let lost = |error| Error::new(ErrorKind::StoreUnavailable, "cut off").with_source(error);
        answer.await.map_err(lost)?
    }
}
