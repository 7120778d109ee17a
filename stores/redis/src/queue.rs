//! Durable jobs: those that wait with their requests, in each partition by when they are due.
//!
//! A sorted set by due time, since a queue has to know order of arrival, places, delays and removal;
//! a stream knows the first of these alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::Value;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use tower_offload::{Change, End, Error, ErrorKind, Failure, JobId, Record, store::Inserted};

use crate::{
    RedisStore,
    error::corrupt,
    fields::{self, read},
    locked::locked,
    store::{Inner, fenced},
};

/// So often all partitions are looked at, for what is due by now and what nobody was told of.
const SCAN: Duration = Duration::from_secs(1);

/// Before a call is made again whose answer was lost.
const AGAIN: Duration = Duration::from_millis(100);

/// Where there may be something to take.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    policies: Mutex<BTreeMap<String, Hints>>,
    arrived: Notify,
    /// Where to begin: another partition each time, so that none is served before all others.
    turn: AtomicU8,
}

#[derive(Debug, Default)]
struct Hints {
    partitions: BTreeSet<u8>,
    scanned: Option<Instant>,
}

impl Arrivals {
    /// `PARTITION POLICY`
    pub(crate) fn told(&self, message: &str) {
        let Some((partition, policy)) = message.split_once(' ') else { return };
        let Ok(partition) = partition.parse::<u8>() else { return };
        // Of policies that nobody here serves, nothing is remembered.
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.partitions.insert(partition % JobId::PARTITIONS);
        }
        self.arrived.notify_waiters();
    }

    /// A partition to look into for a job of this policy.
    fn next(&self, policy: &str) -> Option<u8> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % JobId::PARTITIONS;
        let mut policies = locked(&self.policies);
        let hints = policies.entry(policy.to_owned()).or_default();
        // Less often where there is always something: it is looked for between two jobs.
        let every = if hints.partitions.is_empty() { SCAN } else { SCAN * 5 };
        if hints.scanned.is_none_or(|at| at.elapsed() >= every) {
            hints.scanned = Some(Instant::now());
            hints.partitions = (0..JobId::PARTITIONS).collect();
        }
        let next = hints.partitions.range(turn..).next().or_else(|| hints.partitions.first())?;
        let next = *next;
        // Before it is looked at, so that what comes then is not missed.
        hints.partitions.remove(&next);
        Some(next)
    }

    /// How long there is nothing to look into for this policy, unless a message says so; `None` where
    /// there is something now.
    fn until_next(&self, policy: &str) -> Option<Duration> {
        let mut policies = locked(&self.policies);
        let hints = policies.entry(policy.to_owned()).or_default();
        let scanned = hints.scanned.filter(|_| hints.partitions.is_empty())?;
        SCAN.checked_sub(scanned.elapsed()).filter(|left| !left.is_zero())
    }

    /// There may be more where one was found.
    fn found(&self, policy: &str, partition: u8) {
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.partitions.insert(partition);
        }
    }
}

impl Inner {
    pub(crate) async fn enqueue(
        &self,
        record: &Record,
        request: &Bytes,
    ) -> Result<Inserted, Error> {
        if let Some(enqueued) = self.enqueue_from_here(record, request).await? {
            return Ok(enqueued);
        }
        self.renew().await?;
        self.enqueue_from_here(record, request).await?.ok_or_else(fenced)
    }

    /// `None` where this node was taken for dead.
    async fn enqueue_from_here(
        &self,
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
        call.arg(&request[..]).arg(&*self.node.id()).arg(self.number()).arg(fields::of(record)?);
        let answer =
            read::<Vec<Value>>(self.run_replicated(&call, partition, "cannot keep a job").await?)?;
        inserted(&answer)
    }

    /// Resolves when there is a partition to look into for a job of this policy: one of which this
    /// process was told, or all of them, once a second.
    pub(crate) async fn arrival(&self, policy: &str) {
        let arrivals = &self.waiters.arrivals;
        loop {
            // Noted before the hints are looked at, so that a message between the two is not missed.
            let mut arrived = pin!(arrivals.arrived.notified());
            arrived.as_mut().enable();
            let Some(left) = arrivals.until_next(policy) else { return };
            let _ = tokio::time::timeout(left, arrived).await;
        }
    }

    /// Looks where there may be something, until something is found, or nobody wants it any more.
    async fn take(
        &self,
        policy: &str,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<(Record, Bytes)>, Error> {
        let arrivals = &self.waiters.arrivals;
        while is_wanted() {
            let Some(partition) = arrivals.next(policy) else { break };
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
            call.key(self.keys.queue(partition, policy)).key(self.keys.fences(partition));
            call.arg(&*self.node.id()).arg(self.keys.jobs(partition));
            call.arg(self.connection().publish()).arg(self.keys.channel(partition)).arg(&this);
            match self.run(&call, "cannot take a job").await {
                Ok(answer) => {
                    let answer = read::<Vec<Value>>(answer)?;
                    if let [id, _, ..] = answer.as_slice() {
                        taking.took(read::<String>(id.clone())?.parse()?);
                    }
                    match taken(&answer) {
                        Ok(Taken::Nothing) => return Ok(None),
                        Ok(Taken::Job(record, request)) => return Ok(Some((*record, request))),
                        Ok(Taken::Fenced) => drop(self.renew().await?),
                        Err(error) => {
                            self.end_unread(&answer).await;
                            return Err(error);
                        }
                    }
                }
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

    /// Ends a job that was taken and cannot be read: it is running, and nobody can run it.
    async fn end_unread(&self, answer: &[Value]) {
        let id = answer.first().and_then(|id| read::<String>(id.clone()).ok()?.parse().ok());
        let Some(id) = id else { return };
        let end = Change::Finish(End::Failure(Failure::ServiceError));
        for _ in 0..100 {
            match self.change(id, end.clone()).await {
                // It is done, and what it has become cannot be read either.
                Err(error) if error.kind() != ErrorKind::Corrupt => sleep(AGAIN).await,
                _ => return,
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
                records.extend(fields::record(id, &pair[1])?);
            }
        }
        Ok(records)
    }

    async fn send_again(&self, id: JobId) -> Result<Option<JobId>, Error> {
        let Some(record) = self.read(id).await? else { return Ok(None) };
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
    /// their attempts has lost its process. They are kept, with their requests, until they expire.
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

enum Taken {
    Nothing,
    Fenced,
    Job(Box<Record>, Bytes),
}

fn taken(answer: &[Value]) -> Result<Taken, Error> {
    match answer {
        [] => Ok(Taken::Nothing),
        [_fenced] => Ok(Taken::Fenced),
        [id, hash, rest @ ..] => {
            let id = read::<String>(id.clone())?.parse()?;
            let record = fields::record(id, hash)?.ok_or_else(|| corrupt("an empty record"))?;
            let request = rest.first().cloned().unwrap_or(Value::Nil);
            let request = read::<Option<Vec<u8>>>(request)?.unwrap_or_default();
            Ok(Taken::Job(Box::new(record), request.into()))
        }
    }
}

/// What a script says of an insertion; `None` where its node is fenced.
pub(crate) fn inserted(answer: &[Value]) -> Result<Option<Inserted>, Error> {
    match answer {
        [] => Ok(Some(Inserted::New)),
        [refused] if read::<String>(refused.clone())? == "fenced" => Ok(None),
        [_known] => {
            let message = "a job with this id is there already";
            Err(Error::new(ErrorKind::StoreUnavailable, message))
        }
        [holder, hash, ..] => {
            let holder = read::<String>(holder.clone())?.parse()?;
            let record = fields::record(holder, hash)?;
            let record = record.ok_or_else(|| corrupt("a claim is nobody's"))?;
            Ok(Some(Inserted::Claimed(record)))
        }
    }
}
