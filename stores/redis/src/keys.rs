//! Where things are: the names of keys and channels.
//!
//! ```text
//! {PREFIX:PARTITION}:j:ID      a job's record, a hash: its fields are in fields.rs
//! {PREFIX:PARTITION}:o:ID      its outcome, a string, or a list of its chunks
//! {PREFIX:PARTITION}:o:ID:TRY  chunks that are being sent, for an hour at most
//! {PREFIX:PARTITION}:x:NODE    the last call of a node that undid an insert before it was there
//! {PREFIX:PARTITION}:c:KEY     the id of the job that has the claim on this key
//! {PREFIX:PARTITION}:i         the ended jobs, by when they expire: a sorted set
//! {PREFIX:PARTITION}:n         how many jobs there are by policy, and the bytes of their outcomes
//! {PREFIX:PARTITION}:r:NODE    the ids of the open jobs of a node: a set
//! {PREFIX:PARTITION}:w         the nodes that have open jobs here, or had: a set
//! {PREFIX:PARTITION}:f         the nodes that were taken for dead, by when they were
//! {PREFIX:PARTITION}:q:POLICY  the ids of durable jobs that wait, by when they are due: a sorted set
//! {PREFIX:PARTITION}:b:ID      the request of a durable job
//! {PREFIX:PARTITION}:t:TAKE    the id that a call has taken, while the job runs, should its answer be lost
//! {PREFIX:PARTITION}:k         the time of the queues: the server's that was seen last, and what is added
//! {PREFIX:PARTITION}:d         the jobs that were given up or are unreadable, by when they expire
//! {PREFIX:PARTITION}:u:ID      an unreadable job's record as it was, and its outcome in u:ID:o
//! {PREFIX:PARTITION}:changes   the channel on which changes are told
//! {PREFIX:nodes}:l             the nodes by when they have renewed their leases: a sorted set
//! {PREFIX:nodes}:f             those that were taken for dead
//! ```
//!
//! The part in braces is all that a cluster chooses a node by: what belongs together is on one.

use tower_offload::{Digest, JobId};

use crate::fields;

/// The keys of an app: of all that have the same Redis.
#[derive(Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn base(&self, partition: u8) -> String {
        format!("{{{}:{partition:02}}}:", self.prefix)
    }

    /// What the key of each job of a partition begins with.
    pub(crate) fn jobs(&self, partition: u8) -> String {
        self.base(partition) + "j:"
    }

    pub(crate) fn job(&self, id: JobId) -> String {
        format!("{}j:{id}", self.base(id.partition()))
    }

    pub(crate) fn outcome(&self, id: JobId) -> String {
        format!("{}o:{id}", self.base(id.partition()))
    }

    /// Where chunks of the job's outcome are put until all are there.
    pub(crate) fn chunks(&self, id: JobId, attempt: JobId) -> String {
        format!("{}:{attempt}", self.outcome(id))
    }

    pub(crate) fn claim(&self, key: &Digest) -> String {
        self.base(key.partition()) + "c:" + &fields::digest(key)
    }

    pub(crate) fn index(&self, partition: u8) -> String {
        self.base(partition) + "i"
    }

    pub(crate) fn counts(&self, partition: u8) -> String {
        self.base(partition) + "n"
    }

    pub(crate) fn running(&self, partition: u8, node: &str) -> String {
        format!("{}r:{node}", self.base(partition))
    }

    pub(crate) fn queue(&self, partition: u8, policy: &str) -> String {
        format!("{}q:{policy}", self.base(partition))
    }

    pub(crate) fn request(&self, id: JobId) -> String {
        format!("{}b:{id}", self.base(id.partition()))
    }

    pub(crate) fn given_up(&self, partition: u8) -> String {
        self.base(partition) + "d"
    }

    pub(crate) fn nodes(&self, partition: u8) -> String {
        self.base(partition) + "w"
    }

    pub(crate) fn fences(&self, partition: u8) -> String {
        self.base(partition) + "f"
    }

    pub(crate) fn leases(&self) -> String {
        format!("{{{}:nodes}}:l", self.prefix)
    }

    pub(crate) fn fenced(&self) -> String {
        format!("{{{}:nodes}}:f", self.prefix)
    }

    pub(crate) fn channel(&self, partition: u8) -> String {
        self.base(partition) + "changes"
    }

    /// The channels of all partitions.
    pub(crate) fn channels(&self) -> Vec<String> {
        (0..JobId::PARTITIONS).map(|partition| self.channel(partition)).collect()
    }
}
