//! What Redis says that this process runs, compared with what it runs: after each reconnect, and once a
//! minute. What it does not run is handed back: a durable job is queued again, any other one fails as
//! `node-lost`.
//!
//! So no job stays `running` that nobody runs, whatever was lost: the answer to a take, an end that a
//! failover has forgotten, or a call that was carried out long after its error was told.
//!
//! And the nodes that a partition lists, compared with the leases: a node that has none gets one. If it
//! lives, it renews that; if it is dead, its jobs are ended a lease later. So it is with a node whose lease
//! was lost with its server before the node died, and with jobs that came back with a replica after their
//! node was taken for dead.
//!
//! ```text
//! insert is sent ──▶ local ──its end is written, or read; or Redis does not list it──▶ not local
//! take is answered ────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::Value;
use tokio::sync::Notify;
use tower_offload::{Error, ErrorKind, JobId, Record};

use crate::{
    caught::log,
    error::{is_lasting, is_of_a_value},
    fields::read,
    locked::locked,
    store::Inner,
};

/// How often, where no connection is lost.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// The jobs of this process, and the calls by which others are about to become its own.
#[derive(Debug)]
pub(crate) struct LocalJobs {
    partitions: [Mutex<Partition>; JobId::PARTITIONS as usize],
    next: AtomicU64,
    took: Notify,
}

#[derive(Debug, Default)]
struct Partition {
    jobs: BTreeMap<JobId, Entry>,
    /// The numbers of the takes whose answers are not there.
    takes: BTreeSet<u64>,
}

/// A job; taken twice, it has two numbers.
#[derive(Debug, Clone, Copy)]
struct Entry {
    number: u64,
    /// Of a durable job, in which attempt it runs here.
    attempt: Option<u16>,
    /// The answer to its insert is not there: Redis may or may not list it.
    is_under_way: bool,
}

impl LocalJobs {
    pub(crate) fn new() -> Self {
        let partitions = std::array::from_fn(|_| Mutex::default());
        Self { partitions, next: AtomicU64::new(0), took: Notify::new() }
    }

    fn of(&self, partition: u8) -> &Mutex<Partition> {
        &self.partitions[usize::from(partition % JobId::PARTITIONS)]
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn add(&self, id: JobId, is_under_way: bool) -> u64 {
        let number = self.number();
        let entry = Entry { number, attempt: None, is_under_way };
        locked(self.of(id.partition())).jobs.insert(id, entry);
        number
    }

    /// Before an insert is sent.
    pub(crate) fn inserting(&self, id: JobId) -> Inserting<'_> {
        self.add(id, true);
        Inserting { jobs: self, id }
    }

    /// Before a take is sent.
    pub(crate) fn taking(&self, partition: u8) -> Taking<'_> {
        let number = self.number();
        locked(self.of(partition)).takes.insert(number);
        Taking { jobs: self, partition, number }
    }

    /// The job has ended, or is not this process's any more.
    pub(crate) fn remove(&self, id: JobId) {
        locked(self.of(id.partition())).jobs.remove(&id);
    }

    /// What was read of a job: nothing where it is not there.
    pub(crate) fn seen(&self, id: JobId, record: Option<&Record>) {
        match record {
            Some(record) if record.status().is_end() => self.remove(id),
            Some(_) => {}
            None => {
                let mut partition = locked(self.of(id.partition()));
                if partition.jobs.get(&id).is_some_and(|entry| !entry.is_under_way) {
                    partition.jobs.remove(&id);
                }
            }
        }
    }

    /// The number under which a job is local.
    pub(crate) fn get(&self, id: JobId) -> Option<u64> {
        locked(self.of(id.partition())).jobs.get(&id).map(|entry| entry.number)
    }

    /// The job that is local under this number runs in this attempt.
    pub(crate) fn begun(&self, id: JobId, number: u64, attempt: Option<u16>) {
        let mut partition = locked(self.of(id.partition()));
        if let Some(entry) = partition.jobs.get_mut(&id).filter(|entry| entry.number == number) {
            entry.attempt = attempt;
        }
    }

    /// The attempt in which a durable job runs here.
    pub(crate) fn attempt(&self, id: JobId) -> Option<u16> {
        locked(self.of(id.partition())).jobs.get(&id).and_then(|entry| entry.attempt)
    }

    /// A job that was local under this number is queued again.
    pub(crate) fn drop_same(&self, id: JobId, number: Option<u64>) {
        let mut partition = locked(self.of(id.partition()));
        if partition.jobs.get(&id).map(|entry| entry.number) == number {
            partition.jobs.remove(&id);
        }
    }

    fn settled(&self, partition: u8) -> Vec<(JobId, u64)> {
        let partition = locked(self.of(partition));
        let settled = partition.jobs.iter().filter(|(_, entry)| !entry.is_under_way);
        settled.map(|(id, entry)| (*id, entry.number)).collect()
    }

    /// Drops those of these that are not listed, unless they have been taken once more since.
    fn prune(&self, before: Vec<(JobId, u64)>, listed: &BTreeSet<JobId>) {
        for (id, number) in before.into_iter().filter(|(id, _)| !listed.contains(id)) {
            self.drop_same(id, Some(number));
        }
    }

    fn has(&self, id: JobId) -> bool {
        self.get(id).is_some()
    }

    /// Resolves once each take of this partition that is under way now has its answer.
    async fn takes_have_come_back(&self, partition: u8) {
        let until = self.number();
        loop {
            let mut took = std::pin::pin!(self.took.notified());
            took.as_mut().enable();
            if locked(self.of(partition)).takes.first().is_none_or(|first| *first > until) {
                return;
            }
            took.await;
        }
    }
}

/// An insert that is under way. Dropped, its job is local, and is listed by Redis or dropped at the next
/// comparison.
pub(crate) struct Inserting<'a> {
    jobs: &'a LocalJobs,
    id: JobId,
}

impl Inserting<'_> {
    /// The answer says that the job is not kept.
    pub(crate) fn refused(self) {
        self.jobs.remove(self.id);
    }
}

impl Drop for Inserting<'_> {
    fn drop(&mut self) {
        let mut partition = locked(self.jobs.of(self.id.partition()));
        if let Some(entry) = partition.jobs.get_mut(&self.id) {
            entry.is_under_way = false;
        }
    }
}

/// A take that is under way.
pub(crate) struct Taking<'a> {
    jobs: &'a LocalJobs,
    partition: u8,
    number: u64,
}

impl Taking<'_> {
    /// The answer names this job. Gives the number under which the job is local.
    pub(crate) fn took(&self, id: JobId) -> u64 {
        self.jobs.add(id, false)
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        locked(self.jobs.of(self.partition)).takes.remove(&self.number);
        self.jobs.took.notify_waiters();
    }
}

impl Inner {
    /// Compares, and hands back what this process does not run. What can only fail again is logged and
    /// passed over: it is compared in its turn, and not at each renewal of the lease.
    pub(crate) async fn reconcile(&self) -> Result<(), Error> {
        let (mut handed_back, mut compared) = (0, self.give_leases().await);
        for partition in 0..JobId::PARTITIONS {
            match self.reconcile_partition(partition).await {
                Ok(jobs) => handed_back += jobs,
                // Those of a later release are left to its processes.
                Err(error) if error.kind() == ErrorKind::NewerFormat => {}
                Err(error) if is_lasting(&error) => passed_over(partition, &error),
                // The others of a cluster may well answer.
                Err(error) => compared = Err(error),
            }
        }
        if handed_back > 0 {
            log(|| {
                tracing::warn!(
                    jobs = handed_back,
                    "Redis listed jobs that this process does not run: they have been handed back"
                )
            });
        }
        compared
    }

    /// Gives a lease to each node that has jobs, or had, and has none.
    async fn give_leases(&self) -> Result<(), Error> {
        let (mut nodes, mut listed) = (BTreeSet::new(), Ok(()));
        for partition in 0..JobId::PARTITIONS {
            let mut command = redis::cmd("SMEMBERS");
            command.arg(self.keys.nodes(partition));
            match self.ask(&command, "cannot list the nodes that have jobs").await {
                Ok(names) => {
                    let names = read::<Vec<Value>>(names)?.into_iter();
                    // One that is no text is no node's.
                    nodes.extend(names.filter_map(|name| read::<String>(name).ok()));
                }
                Err(error) if is_lasting(&error) => passed_over(partition, &error),
                // The others of a cluster may well answer.
                Err(error) => listed = Err(error),
            }
        }
        if !nodes.is_empty() {
            let mut call = self.scripts.give.prepare_invoke();
            call.key(self.keys.leases());
            for node in &nodes {
                call.arg(node);
            }
            self.run(&call, "cannot give leases").await?;
        }
        listed
    }

    async fn reconcile_partition(&self, partition: u8) -> Result<usize, Error> {
        // Before the name of the node: what is settled after a change of name is not under the old one.
        let before = self.local.settled(partition);
        let node = self.node.id();
        let listed = self.listed(partition, &node).await?;
        self.local.prune(before, &listed);
        let mut unknown = Vec::new();
        for id in listed.into_iter().filter(|id| !self.local.has(*id)) {
            let attempt = self.read(id).await?.and_then(|record| record.attempt()).unwrap_or(0);
            unknown.push((id, attempt));
        }
        if unknown.is_empty() {
            return Ok(0);
        }
        // A job that is taken just then is listed before its answer is there. Its attempt was read
        // before this wait, so one that is taken once more since is not handed back.
        let come_back = self.local.takes_have_come_back(partition);
        if tokio::time::timeout(self.timeout * 10, come_back).await.is_err() {
            log(|| tracing::warn!(partition, "a take does not come back, jobs are compared later"));
            return Ok(0);
        }
        let mut handed_back = 0;
        for (id, attempt) in unknown {
            if self.local.has(id) {
                continue;
            }
            match self.hand_back(id, &node, attempt, "node_lost").await {
                Ok(true) => {
                    log(
                        || tracing::warn!(job = %id, "this process does not run a job that Redis says it runs"),
                    );
                    handed_back += 1;
                }
                Ok(false) => {}
                // The others of the partition may well go back.
                Err(error) if is_of_a_value(&error) => {
                    let error = &error as &dyn std::error::Error;
                    log(|| tracing::warn!(job = %id, error, "cannot hand a job back yet"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(handed_back)
    }

    /// The jobs that Redis lists as open on this node.
    async fn listed(&self, partition: u8, node: &str) -> Result<BTreeSet<JobId>, Error> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(self.keys.running(partition, node));
        let ids: Vec<Value> = read(self.ask(&command, "cannot list the jobs of a node").await?)?;
        let parsed = |id| read::<String>(id).ok()?.parse().ok();
        Ok(ids.into_iter().filter_map(parsed).collect())
    }

    /// Queues a job again that is this node's in this attempt, or ends it where it has none left. Tells
    /// whether it did; made again it does nothing, since the job is not this node's any more, or is so in
    /// another attempt.
    pub(crate) async fn hand_back(
        &self,
        id: JobId,
        node: &str,
        attempt: u16,
        reason: &str,
    ) -> Result<bool, Error> {
        let partition = id.partition();
        let mut call = self.scripts.hand_back.prepare_invoke();
        call.key(self.keys.job(id)).key(self.keys.running(partition, node));
        call.key(self.keys.index(partition));
        call.arg(id.to_string()).arg(self.connection().publish());
        call.arg(self.keys.channel(partition)).arg(node).arg(attempt).arg(reason);
        read(self.run_of(id, &call, "cannot hand a job back").await?)
    }
}

fn passed_over(partition: u8, error: &Error) {
    let error = error as &dyn std::error::Error;
    log(|| tracing::error!(partition, error, "jobs of a partition cannot be compared"));
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    async fn is_pending(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut future = future;
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[test]
    fn a_job_that_is_not_listed_is_dropped_unless_it_may_be_listed_later() {
        let jobs = LocalJobs::new();
        let [settled, under_way, again] = std::array::from_fn(|_| JobId::random().unwrap());
        drop(jobs.inserting(settled));
        let inserting = jobs.inserting(under_way);
        jobs.taking(again.partition()).took(again);
        let before: Vec<_> = [settled, under_way, again]
            .into_iter()
            .flat_map(|id| jobs.settled(id.partition()))
            .collect();
        assert!(before.iter().all(|(id, _)| *id != under_way));
        jobs.taking(again.partition()).took(again);
        jobs.prune(before, &BTreeSet::new());
        assert!(!jobs.has(settled) && jobs.has(under_way) && jobs.has(again));
        jobs.seen(under_way, None);
        assert!(jobs.has(under_way), "it is not there yet");
        inserting.refused();
        assert!(!jobs.has(under_way));
    }

    #[tokio::test]
    async fn only_takes_that_began_before_are_waited_for() {
        let jobs = LocalJobs::new();
        let before = jobs.taking(3);
        let _elsewhere = jobs.taking(4);
        let mut come_back = std::pin::pin!(jobs.takes_have_come_back(3));
        assert!(is_pending(come_back.as_mut()).await);
        let _after = jobs.taking(3);
        drop(before);
        assert!(!is_pending(come_back.as_mut()).await);
    }
}
