//! This process as a node among those that share the store: its identity and its lease, and the end of
//! the jobs of nodes whose leases are over.
//!
//! ```text
//! renews ──its lease is over──▶ fenced ──its jobs have ended──▶ forgotten
//!   ▲                             │
//!   └────under a new identity─────┘ told when it comes back
//! ```
//!
//! One lease is for all jobs of a node, so it costs the same with one or a million. Whoever finds one
//! that is over fences its node first, and ends its jobs then. What a fenced node still wants to write
//! is refused by the same step that would write it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tower_offload::{Error, ErrorKind, JobId};

use crate::{
    caught::{self, log},
    error::cut_off,
    fields::read,
    locked::locked,
    reconcile,
    store::Inner,
};

/// A lease is renewed so many times while it lasts.
const RENEWALS: u32 = 4;

/// The identity under which a process keeps jobs: another one after each time that it was taken for
/// dead.
#[derive(Debug)]
pub(crate) struct Node {
    names: Mutex<Names>,
    lease: Duration,
}

#[derive(Debug)]
struct Names {
    id: Arc<str>,
    /// The last [`FORMER`] before it, under which calls may still be on their way.
    former: VecDeque<Arc<str>>,
}

/// An insert under an older name is refused by that name's fence: it is in every partition once the
/// jobs of the name have ended, which takes a lease or two, and each name has lasted for a lease.
const FORMER: usize = 16;

impl Node {
    /// # Errors
    /// If the operating system has no random numbers to give.
    pub(crate) fn new(lease: Duration) -> Result<Self, Error> {
        let names = Names { id: name()?, former: VecDeque::new() };
        Ok(Self { names: Mutex::new(names), lease })
    }

    pub(crate) fn id(&self) -> Arc<str> {
        Arc::clone(&locked(&self.names).id)
    }

    /// The names that it had before.
    pub(crate) fn former(&self) -> Vec<String> {
        locked(&self.names).former.iter().map(ToString::to_string).collect()
    }

    /// Takes another name, unless somebody else has done so since it was this one.
    fn rename(&self, from: &str) -> Result<Arc<str>, Error> {
        let next = name()?;
        let mut names = locked(&self.names);
        if &*names.id == from {
            let before = std::mem::replace(&mut names.id, next);
            names.former.push_back(before);
            if names.former.len() > FORMER {
                names.former.pop_front();
            }
        }
        Ok(Arc::clone(&names.id))
    }
}

/// Half of the digits of an id: 64 random bits, but for a few.
fn name() -> Result<Arc<str>, Error> {
    Ok(Arc::from(&JobId::random()?.to_string()[16..]))
}

/// What the server says to a renewal.
struct Renewal {
    /// The server's time.
    at: Duration,
    has_lease: bool,
    /// Those whose leases are over.
    overdue: Vec<String>,
}

impl Inner {
    /// Renews the lease, under a new identity where the old one was taken for dead.
    pub(crate) async fn renew(&self) -> Result<(Duration, Vec<String>), Error> {
        let mut id = self.node.id();
        loop {
            let renewal = self.ask_for_lease(&id).await?;
            if renewal.has_lease {
                return Ok((renewal.at, renewal.overdue));
            }
            id = self.was_fenced(&id)?;
        }
    }

    /// Renews the lease under another identity, after a partition has refused a call of this one. The
    /// list of leases may know nothing of the fence: it is on another server, which may have lost it.
    pub(crate) async fn renew_after_fence(&self, id: &str) -> Result<Arc<str>, Error> {
        self.was_fenced(id)?;
        self.renew().await?;
        Ok(self.node.id())
    }

    /// The identity to go on with when this one was taken for dead.
    fn was_fenced(&self, id: &str) -> Result<Arc<str>, Error> {
        let next = self.node.rename(id)?;
        log(|| {
            tracing::error!(
                node = id,
                next = &*next,
                "this process was taken for dead, since it did not renew its lease: its jobs have failed"
            )
        });
        Ok(next)
    }

    async fn ask_for_lease(&self, id: &str) -> Result<Renewal, Error> {
        let mut call = self.scripts.renew.prepare_invoke();
        call.key(self.keys.leases()).key(self.keys.fenced());
        call.arg(id).arg(millis(self.node.lease));
        let answer = self.run(&call, "cannot renew the lease").await?;
        let (at, has_lease, overdue): (u64, bool, Vec<String>) = read(answer)?;
        Ok(Renewal { at: Duration::from_millis(at), has_lease, overdue })
    }

    /// Takes a node for dead, unless it has renewed its lease after all, and ends its jobs.
    async fn bury(self: &Arc<Self>, node: &str) -> Result<(), Error> {
        let mut call = self.scripts.fence.prepare_invoke();
        call.key(self.keys.leases()).key(self.keys.fenced());
        call.arg(node).arg(millis(self.node.lease));
        if !read::<bool>(self.run(&call, "cannot fence a node").await?)? {
            return Ok(());
        }
        // All at once: one after the other they take 64 round trips, and a node that is lost meanwhile
        // waits for its turn.
        let mut reaping = JoinSet::new();
        for partition in 0..JobId::PARTITIONS {
            let (inner, node) = (Arc::clone(self), node.to_owned());
            reaping.spawn(async move { inner.reap(partition, &node).await });
        }
        let (mut ended, mut has_later) = (0, false);
        while let Some(reaped) = reaping.join_next().await {
            let reaped = reaped.map_err(cut_off("the end of jobs was cut off"));
            match reaped.and_then(|reaped| reaped) {
                Ok(jobs) => ended += jobs,
                Err(error) if error.kind() == ErrorKind::NewerFormat => has_later = true,
                Err(error) => return Err(error),
            }
        }
        if has_later {
            // A process of the later release finds the lease, and ends the rest.
            return Ok(());
        }
        let mut command = redis::cmd("ZREM");
        command.arg(self.keys.leases()).arg(node);
        self.ask(&command, "cannot forget a node").await?;
        log(|| tracing::warn!(node, jobs = ended, "a node is lost, and its jobs have failed"));
        Ok(())
    }

    async fn reap(&self, partition: u8, node: &str) -> Result<usize, Error> {
        let mut all = 0;
        loop {
            let mut call = self.scripts.reap.prepare_invoke();
            call.key(self.keys.running(partition, node)).key(self.keys.index(partition));
            call.key(self.keys.counts(partition)).key(self.keys.fences(partition));
            call.arg(node).arg(self.keys.jobs(partition));
            call.arg(self.connection().publish()).arg(self.keys.channel(partition));
            let answer = self.run(&call, "cannot end the jobs of a node").await?;
            let (ended, unreadable, has_more): (Vec<String>, Vec<String>, bool) = read(answer)?;
            all += ended.len();
            for id in unreadable.iter().filter_map(|id| id.parse().ok()) {
                let is_ended = self.end_unreadable(id, node).await?;
                if !is_ended {
                    self.unlist(id, node).await?;
                }
                all += usize::from(is_ended);
            }
            if !has_more {
                return Ok(all);
            }
        }
    }
}

impl Inner {
    /// Lets a job be that cannot be ended although its record can be read: what else is in its partition
    /// is not as it should be. It keeps no other job from its end.
    async fn unlist(&self, id: JobId, node: &str) -> Result<(), Error> {
        log(|| tracing::error!(job = %id, node, "a job of a lost node cannot be ended"));
        let mut command = redis::cmd("SREM");
        command.arg(self.keys.running(id.partition(), node)).arg(id.to_string());
        self.ask(&command, "cannot pass over a job").await.map(drop)
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Since when Redis has been seen without a gap. When it was away, all leases are over at once, and
/// no node is dead.
#[derive(Debug)]
struct Health {
    since: Instant,
    last: Instant,
    /// The server's time of the last renewal.
    server: Duration,
    gap: Duration,
}

impl Health {
    fn new(gap: Duration) -> Self {
        let now = Instant::now();
        Self { since: now, last: now, server: Duration::ZERO, gap }
    }

    /// A renewal came back that the server made at this time, by its own clock.
    fn seen(&mut self, server: Duration) {
        let now = Instant::now();
        let here = now - self.last;
        // A clock that is set forward ends all leases, too.
        let there = server.abs_diff(self.server);
        if here > self.gap || there > self.gap {
            self.since = now;
        }
        (self.last, self.server) = (now, server);
    }

    fn lost(&mut self) {
        self.since = Instant::now();
    }

    fn has_lasted(&self, lease: Duration) -> bool {
        self.since.elapsed() >= lease
    }
}

/// Renews the lease, and looks after those of others, for as long as there is somebody who uses the
/// store. Should that panic it begins anew: without a lease this process is taken for dead.
pub(crate) async fn keep(inner: Weak<Inner>, lease: Duration) {
    caught::repeated("the lease", || keep_until_panic(Weak::clone(&inner), lease)).await;
}

async fn keep_until_panic(inner: Weak<Inner>, lease: Duration) {
    let every = lease / RENEWALS;
    // Twice what is between two renewals when all is well.
    let mut health = Health::new(every * 2);
    // Each beside the renewals, since it may take longer than a lease, and beside the other: a node that is
    // lost does not wait for a comparison.
    let (mut burying, mut comparing) = (None::<JoinHandle<()>>, None::<JoinHandle<()>>);
    let is_free = |task: &Option<JoinHandle<()>>| task.as_ref().is_none_or(JoinHandle::is_finished);
    // At once in a new process: those before it may be dead, and their leases lost.
    let mut reconciled = None::<Instant>;
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        match inner.renew().await {
            Ok((server, overdue)) => {
                health.seen(server);
                inner.listen().await;
                if !overdue.is_empty() && health.has_lasted(lease) && is_free(&burying) {
                    let inner = Arc::clone(&inner);
                    burying = Some(tokio::spawn(async move { bury_all(&inner, overdue).await }));
                }
                if !is_free(&comparing) {
                    continue;
                }
                let was_cut = inner.waiters.was_cut();
                if !was_cut {
                    inner.canceled.redis_is_well();
                }
                if was_cut || reconciled.is_none_or(|at| at.elapsed() >= reconcile::EVERY) {
                    reconciled = Some(Instant::now());
                    comparing = Some(tokio::spawn(async move { compare(&inner, was_cut).await }));
                }
            }
            Err(error) => {
                health.lost();
                log(|| {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot renew the lease"
                    )
                });
                inner.reopen().await;
            }
        }
    }
}

/// Finds out what Redis has lost, where a connection was lost, and what it lists beside what runs here.
async fn compare(inner: &Inner, was_cut: bool) {
    let compared = async {
        if was_cut {
            inner.cancel_again().await?;
        }
        inner.reconcile().await
    };
    if let Err(error) = compared.await {
        log(|| tracing::warn!(error = &error as &dyn std::error::Error, "cannot compare jobs yet"));
        // Once more at the next renewal.
        inner.waiters.set_cut();
    }
}

async fn bury_all(inner: &Arc<Inner>, overdue: Vec<String>) {
    for node in overdue {
        if let Err(error) = inner.bury(&node).await {
            // Who finds the lease next goes on with it.
            let error = &error as &dyn std::error::Error;
            return log(|| tracing::warn!(node, error, "cannot end the jobs of a lost node yet"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(5);
    const LEASE: Duration = Duration::from_secs(10);

    /// Renewals that came back after so many seconds each, here and by the server's clock.
    async fn after(renewals: &[(u64, u64)]) -> Health {
        let mut health = Health::new(GAP);
        let mut server = Duration::from_secs(1_000_000);
        health.seen(server);
        for (here, there) in renewals {
            tokio::time::advance(Duration::from_secs(*here)).await;
            server += Duration::from_secs(*there);
            health.seen(server);
        }
        health
    }

    #[tokio::test(start_paused = true)]
    async fn redis_is_well_once_it_was_seen_for_a_whole_lease() {
        assert!(!after(&[(3, 3), (3, 3), (3, 3)]).await.has_lasted(LEASE));
        assert!(after(&[(3, 3), (3, 3), (3, 3), (3, 3)]).await.has_lasted(LEASE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_or_a_clock_that_was_set_begins_anew() {
        for gap in [(60, 60), (3, 3600), (60, 3)] {
            let mut renewals = vec![(3, 3); 5];
            renewals.push(gap);
            assert!(!after(&renewals).await.has_lasted(LEASE), "{gap:?}");
            renewals.extend([(3, 3); 4]);
            assert!(after(&renewals).await.has_lasted(LEASE), "{gap:?}");
        }
        let mut health = after(&[(3, 3); 5]).await;
        health.lost();
        assert!(!health.has_lasted(LEASE));
    }
}
