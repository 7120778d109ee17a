//! Durable jobs: those that wait with their requests, in each partition by when they are due.
//!
//! A sorted set by due time, since a queue has to know order of arrival, places, delays and removal;
//! a stream knows the first of these alone.

use bytes::Bytes;
use redis::Value;
use tower_offload::{Error, ErrorKind, Record, store::Inserted};

use crate::{
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
}
