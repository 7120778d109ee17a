//! Durable jobs: those that wait with their requests, in each partition by when they are due.
//!
//! A sorted set by due time, since a queue has to know order of arrival, places, delays and removal;
//! a stream knows the first of these alone.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use tower_offload::{Error, ErrorKind, JobId, Record, store::Inserted};

use crate::{
    RedisStore,
    error::corrupt,
    fields::{self, read},
    store::{Inner, fenced},
};

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
}
