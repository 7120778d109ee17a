//! The store: each call is one script, or one command.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use redis::{ScriptInvocation, Value};
use tokio::sync::Semaphore;
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, Outcome, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

use crate::{
    Builder,
    call::OUTCOMES,
    connect::Connection,
    ended::Canceled,
    error::is_of_a_value,
    fields::{self, read},
    keys::Keys,
    node::{self, Node},
    reconcile::LocalJobs,
    replicas::Replicas,
    scripts::Scripts,
    waiters::{Versions, Waiters},
};

/// A waiter that was told nothing looks all the same after so long: a message may be lost with its
/// connection.
const SAFETY: Duration = Duration::from_secs(10);

/// So often a chunk is asked for again, after half of a call's timeout each time: longer than a
/// failover takes.
const CHUNK_TRIES: u32 = 20;

/// Keeps jobs in Redis, for all processes that use the same one.
///
/// Cheap to clone: all clones share one connection. It passes
/// [`store::conformance`](tower_offload::store). What is written is as durable as that Redis is.
#[derive(Clone)]
pub struct RedisStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) connection: Mutex<Connection>,
    /// Makes another one.
    pub(crate) builder: Builder,
    /// Where a job is accepted once they have it.
    pub(crate) replicas: Option<Replicas>,
    pub(crate) keys: Keys,
    pub(crate) scripts: &'static Scripts,
    pub(crate) node: Node,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) timeout: Duration,
    pub(crate) calls: AtomicU64,
    /// Bounds the outcomes that are on their way from Redis.
    pub(crate) outcomes: Arc<Semaphore>,
    pub(crate) canceled: Canceled,
    /// What runs here.
    pub(crate) local: LocalJobs,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("keys", &self.inner.keys).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the Redis with this URL, such as `redis://user:password@host:6379/0`, with the
    /// defaults of [`builder`](Self::builder).
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// A store in the one Redis with this URL.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(vec![url.into()], false)
    }

    /// A store in a Redis Cluster, of which some nodes have these URLs.
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder::new(urls.into_iter().map(Into::into).collect(), true)
    }

    pub(crate) async fn new(
        connection: Connection,
        replicas: Option<Replicas>,
        keys: Keys,
        waiters: Arc<Waiters>,
        builder: Builder,
    ) -> Result<Self, Error> {
        let (timeout, lease) = (builder.timeout, builder.lease);
        let (scripts, node) = (Scripts::all(), Node::new(lease)?);
        let (calls, outcomes) = (AtomicU64::new(0), Arc::new(Semaphore::new(OUTCOMES)));
        let (canceled, local) = (Canceled::default(), LocalJobs::new());
        let inner = Arc::new(Inner {
            connection: Mutex::new(connection),
            builder,
            replicas,
            keys,
            scripts,
            node,
            waiters,
            timeout,
            calls,
            outcomes,
            canceled,
            local,
        });
        // Before there can be any job of it: only a node with a lease can be found dead.
        inner.renew().await?;
        tokio::spawn(node::keep(Arc::downgrade(&inner), lease));
        Ok(Self { inner })
    }

    fn call<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> StoreFuture<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        StoreFuture::new(call(Arc::clone(&self.inner)))
    }
}

impl Store for RedisStore {
    fn insert(&self, record: Record, _outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.call(|inner| async move { inner.insert(&record).await })
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.call(|inner| async move { inner.take_back(id).await })
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.call(|inner| async move {
            match owner {
                None => inner.read(id).await,
                Some(owner) => inner.read_of(id, owner).await,
            }
        })
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.call(|inner| async move { inner.fetch(id, owner).await })
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.call(|inner| async move { inner.claimed(key).await })
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.call(|inner| async move { inner.change(id, change).await })
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.call(|inner| async move { inner.changed(id, seen, interest).await })
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.call(|inner| async move { inner.usage().await })
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    fn enqueue(&self, record: Record, request: Bytes, _: usize) -> StoreFuture<Inserted> {
        self.call(|inner| async move { inner.enqueue(&record, &request).await })
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        let store = self.clone();
        StoreFuture::new(async move { store.take_for(policy).await })
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        self.call(|inner| inner.queued(policy))
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        self.call(|inner| async move { inner.arrival(&policy).await })
    }
}

impl Inner {
    async fn insert(&self, record: &Record) -> Result<Inserted, Error> {
        let inserting = self.local.inserting(record.id());
        let node = self.node.id();
        let inserted = match self.insert_as(&node, record).await? {
            Some(inserted) => inserted,
            None => {
                let node = self.renew_after_fence(&node).await?;
                self.insert_as(&node, record).await?.ok_or_else(fenced)?
            }
        };
        if let Inserted::Claimed(_) = &inserted {
            inserting.refused();
        }
        Ok(inserted)
    }

    /// `None` where this node was taken for dead.
    async fn insert_as(&self, node: &str, record: &Record) -> Result<Option<Inserted>, Error> {
        let (id, partition) = (record.id(), record.id().partition());
        let mut call = self.scripts.insert.prepare_invoke();
        call.key(self.keys.job(id)).key(self.keys.index(partition));
        call.key(self.keys.counts(partition)).key(self.keys.fences(partition));
        if let Some(claim) = self.claim_of(record)? {
            call.key(claim);
        }
        call.arg(id.to_string()).arg(node);
        call.arg(fields::member(record, "policy")?).arg(self.number()).arg(fields::of(record)?);
        let answer =
            read::<Vec<Value>>(self.run_replicated(&call, partition, "cannot keep a job").await?)?;
        self.inserted(&answer).await
    }

    /// The key of the job's claim, if it has one.
    pub(crate) fn claim_of(&self, record: &Record) -> Result<Option<String>, Error> {
        match record.claim() {
            Some(claim) if claim.key().partition() != record.id().partition() => {
                let message = "the job's id is not of its claim's partition";
                Err(Error::new(ErrorKind::StoreUnavailable, message))
            }
            claim => Ok(claim.map(|claim| self.keys.claim(claim.key()))),
        }
    }

    async fn take_back(&self, id: JobId) -> Result<bool, Error> {
        let mut call = self.scripts.take_back.prepare_invoke();
        self.keys_of(id, &mut call);
        call.arg(id.to_string()).arg(self.connection().publish());
        call.arg(self.keys.channel(id.partition())).arg(&*self.node.id()).arg(self.number());
        call.arg(self.node.former());
        let is_gone = read(self.run_of(id, &call, "cannot take a job back").await?)?;
        if is_gone {
            self.local.remove(id);
        }
        Ok(is_gone)
    }

    /// The keys that a script needs that changes a job.
    pub(crate) fn keys_of(&self, id: JobId, call: &mut ScriptInvocation<'_>) {
        call.key(self.keys.job(id)).key(self.keys.outcome(id));
        call.key(self.keys.index(id.partition())).key(self.keys.counts(id.partition()));
    }

    pub(crate) async fn read(&self, id: JobId) -> Result<Option<Record>, Error> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.keys.job(id));
        let hash = match self.ask(&command, "cannot read a job").await {
            Err(error) if is_of_a_value(&error) => Value::Nil,
            hash => hash?,
        };
        let record = self.record_of(id, &hash).await?;
        self.local.seen(id, record.as_ref());
        Ok(record)
    }

    /// The record of a job that is this owner's.
    async fn read_of(&self, id: JobId, owner: Digest) -> Result<Option<Record>, Error> {
        let mut call = self.scripts.fetch.prepare_invoke();
        call.key(self.keys.job(id)).arg(fields::digest(&owner));
        let answer = read::<Vec<Value>>(self.run_of(id, &call, "cannot read a job").await?)?;
        match answer.first() {
            Some(hash) => self.record_of(id, hash).await,
            None => Ok(None),
        }
    }

    async fn fetch(
        self: Arc<Self>,
        id: JobId,
        owner: Option<Digest>,
    ) -> Result<Option<(Record, Option<Fetched>)>, Error> {
        let mut call = self.scripts.fetch.prepare_invoke();
        call.key(self.keys.job(id)).key(self.keys.outcome(id));
        call.arg(owner.map(|owner| fields::digest(&owner)));
        let inner = Arc::clone(&self);
        let read_it = async move { inner.run_of(id, &call, "cannot fetch a job").await };
        let answer = self.read_outcome(read_it).await?;
        let mut parts = read::<Vec<Value>>(answer)?.into_iter();
        let Some(hash) = parts.next() else { return Ok(None) };
        let Some(record) = self.record_of(id, &hash).await? else { return Ok(None) };
        // One whose record could not be read has failed by now, and what it answered is kept elsewhere.
        if record.response_status().is_none() {
            return Ok(Some((record, None)));
        }
        let outcome = match (parts.next(), parts.next()) {
            (None, _) => None,
            (Some(whole), None) => Some(Outcome::from_bytes(bytes(whole)?)?.into()),
            (Some(first), Some(len)) => {
                let next = chunks_after_the_first(self, id);
                Some(Fetched::in_pieces(bytes(first)?, read(len)?, next).await?)
            }
        };
        Ok(Some((record, outcome)))
    }

    async fn claimed(&self, key: Digest) -> Result<Option<Record>, Error> {
        let mut call = self.scripts.claimed.prepare_invoke();
        let partition = key.partition();
        call.key(self.keys.claim(&key)).arg(self.keys.jobs(partition));
        let answer = self.run_replicated(&call, partition, "cannot read a claim").await?;
        match read::<Vec<Value>>(answer)?.as_slice() {
            [holder, hash] => self.record_of(read::<String>(holder.clone())?.parse()?, hash).await,
            _ => Ok(None),
        }
    }

    async fn changed(&self, id: JobId, seen: u32, interest: Interest) -> Result<(), Error> {
        let waiting = self.waiters.enter(id, seen, interest);
        let mut looked = self.look(id).await?;
        loop {
            let patience = match looked {
                Some((versions, left)) if !versions.are_news(seen, interest) => {
                    left.map_or(SAFETY, |left| SAFETY.min(left))
                }
                _ => return Ok(()),
            };
            if let Ok(true) = tokio::time::timeout(patience, waiting.woken()).await {
                return Ok(());
            }
            // What cannot be looked at now has not changed, as far as anybody knows.
            looked = self.look(id).await.unwrap_or(looked);
        }
    }

    /// A job's versions, and the time until it expires.
    async fn look(&self, id: JobId) -> Result<Option<(Versions, Option<Duration>)>, Error> {
        let mut call = self.scripts.look.prepare_invoke();
        call.key(self.keys.job(id));
        let answer = self.run_of(id, &call, "cannot look at a job").await?;
        let Ok((version, status_version, left)) = read::<(Option<u32>, Option<u32>, i64)>(answer)
        else {
            // Whoever waits reads it, and finds that it has failed.
            self.end_unreadable(id, &self.node.id()).await?;
            return Ok(None);
        };
        let (Some(version), Some(status_version)) = (version, status_version) else {
            return Ok(None);
        };
        // It is gone a millisecond after its time is over.
        let left = u64::try_from(left).ok().map(|left| Duration::from_millis(left + 1));
        Ok(Some((Versions { version, status_version }, left)))
    }
}

/// A process that was taken for dead goes on under another name; this one was again.
pub(crate) fn fenced() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "this node was taken for dead")
}

fn bytes(value: Value) -> Result<Bytes, Error> {
    read::<Vec<u8>>(value).map(Bytes::from)
}

/// The chunks of an outcome but for its first, each asked for when it is wanted.
fn chunks_after_the_first(inner: Arc<Inner>, id: JobId) -> impl FnMut() -> StoreFuture<Bytes> {
    let mut index = 0;
    move || {
        index += 1;
        let (inner, index) = (Arc::clone(&inner), index);
        StoreFuture::new(async move {
            let mut command = redis::cmd("LINDEX");
            command.arg(inner.keys.outcome(id)).arg(index);
            let mut tries = CHUNK_TRIES;
            let answer = loop {
                let (asking, command) = (Arc::clone(&inner), command.clone());
                let ask = async move { asking.ask(&command, "cannot read an outcome").await };
                match inner.read_outcome(ask).await {
                    // The client would begin anew with what is large: it is not let go for a moment's
                    // failure.
                    Err(_) if tries > 0 => tries -= 1,
                    answer => break answer?,
                }
                tokio::time::sleep(inner.timeout / 2).await;
            };
            match answer {
                Value::Nil => {
                    let message = "the outcome was removed, or expired, while it was read";
                    Err(Error::new(ErrorKind::StoreUnavailable, message))
                }
                chunk => bytes(chunk),
            }
        })
    }
}
