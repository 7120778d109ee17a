//! Where there may be a durable job to take: partitions of which this process was told, and those in which
//! a look has found one that is due. Looking is one round trip, once a second at most, and none where
//! there was word of a job.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};
use tower_offload::{Error, JobId};

use crate::{connect::Connection, fields::read, locked::locked, store::Inner};

/// So often all partitions are looked at, for what is due by now and what nobody was told of.
const LOOK: Duration = Duration::from_secs(1);

/// So long after it is time for a look it is made although there is something to take: what is due in
/// other partitions is not to wait for the end of a backlog.
const PATIENCE: Duration = Duration::from_secs(4);

/// So long a partition is left alone in which Redis refuses takes; then twice as long each time, up to
/// the longest. Others are served meanwhile.
const FIRST_ASIDE: Duration = Duration::from_secs(1);
const LONGEST_ASIDE: Duration = Duration::from_secs(60);

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
    /// When to look; `None` is now.
    look_at: Option<Instant>,
    /// Partitions in which Redis has refused the last take, until when, and for how long that is.
    aside: BTreeMap<u8, (Instant, Duration)>,
}

impl Hints {
    /// There may be something in a partition. One that is left alone comes with a later look.
    fn add(&mut self, partition: u8) {
        let is_aside = self.aside.get(&partition).is_some_and(|(until, _)| *until > Instant::now());
        if !is_aside {
            self.partitions.insert(partition);
        }
    }
}

impl Arrivals {
    /// `PARTITION POLICY`
    pub(crate) fn told(&self, message: &str) {
        let Some((partition, policy)) = message.split_once(' ') else { return };
        let Ok(partition) = partition.parse::<u8>() else { return };
        // Of policies that nobody here serves, nothing is remembered.
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.add(partition % JobId::PARTITIONS);
        }
        self.arrived.notify_waiters();
    }

    /// Messages may have been lost: all is looked at.
    pub(crate) fn may_have_missed(&self) {
        locked(&self.policies).values_mut().for_each(|hints| hints.look_at = None);
        self.arrived.notify_waiters();
    }

    /// A partition to look into for a job of this policy.
    pub(crate) fn next(&self, policy: &str) -> Option<u8> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % JobId::PARTITIONS;
        let mut policies = locked(&self.policies);
        let hints = policies.get_mut(policy)?;
        let next = hints.partitions.range(turn..).next().or_else(|| hints.partitions.first())?;
        let next = *next;
        // Before it is looked at, so that what comes then is not missed.
        hints.partitions.remove(&next);
        Some(next)
    }

    /// There may be more where one was found.
    pub(crate) fn found(&self, policy: &str, partition: u8) {
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.partitions.insert(partition);
        }
    }

    /// A take from this partition was answered.
    pub(crate) fn is_well(&self, policy: &str, partition: u8) {
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.aside.remove(&partition);
        }
    }

    /// A take from this partition was refused, and will be: it is left alone for a while. Tells whether
    /// that is new: the take before was answered, or is long ago.
    pub(crate) fn set_aside(&self, policy: &str, partition: u8) -> bool {
        let mut policies = locked(&self.policies);
        let Some(hints) = policies.get_mut(policy) else { return true };
        let now = Instant::now();
        // Takes are answered again where none was asked for meanwhile, as far as anybody knows.
        let before = hints.aside.get(&partition).filter(|(until, delay)| *until + *delay >= now);
        let is_new = before.is_none();
        let delay = before.map_or(FIRST_ASIDE, |(_, delay)| (*delay * 2).min(LONGEST_ASIDE));
        hints.aside.insert(partition, (now + delay, delay));
        hints.partitions.remove(&partition);
        is_new
    }

    /// When there is something to do for this policy.
    fn awaited(&self, policy: &str) -> Awaited {
        let mut policies = locked(&self.policies);
        let hints = policies.entry(policy.to_owned()).or_default();
        let left = hints.look_at.map(|at| at.saturating_duration_since(Instant::now()));
        if !hints.partitions.is_empty() {
            let is_late = hints.look_at.is_none_or(|at| at.elapsed() >= PATIENCE);
            return if is_late { Awaited::Look } else { Awaited::Take };
        }
        match left {
            Some(left) if !left.is_zero() => Awaited::Nothing(left),
            _ => Awaited::Look,
        }
    }

    fn looks(&self, policy: &str) {
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            hints.look_at = Some(Instant::now() + LOOK);
        }
    }

    /// What a look has found, and when the next job is due.
    fn looked(&self, policy: &str, due: Vec<u8>, next: Option<Duration>) {
        let has_some = !due.is_empty();
        if let Some(hints) = locked(&self.policies).get_mut(policy) {
            due.into_iter().for_each(|partition| hints.add(partition));
            if let Some(next) = next.filter(|next| *next < LOOK) {
                let at = Instant::now() + next;
                hints.look_at = hints.look_at.map(|look_at| look_at.min(at));
            }
        }
        if has_some {
            self.arrived.notify_waiters();
        }
    }
}

enum Awaited {
    /// There is a hint.
    Take,
    /// It is time to look.
    Look,
    /// Neither, for so long, unless a message comes.
    Nothing(Duration),
}

impl Inner {
    /// Resolves when there is a partition to take a job of this policy from.
    pub(crate) async fn arrival(self: &Arc<Self>, policy: &str) -> Result<(), Error> {
        let arrivals = &self.waiters.arrivals;
        loop {
            // Noted before the hints are looked at, so that a message between the two is not missed.
            let mut arrived = pin!(arrivals.arrived.notified());
            arrived.as_mut().enable();
            match arrivals.awaited(policy) {
                Awaited::Take => return Ok(()),
                Awaited::Look => {
                    // In a task of its own: whoever waits may give up, and what is found is for the next.
                    let (inner, policy) = (Arc::clone(self), policy.to_owned());
                    let look = tokio::spawn(async move { inner.look_for_due(&policy).await });
                    look.await.unwrap_or(Ok(()))?;
                }
                Awaited::Nothing(left) => drop(timeout(left, arrived).await),
            }
        }
    }

    /// Looks, if it is time to and there is nothing else to take, and tells whether there is something now.
    pub(crate) async fn has_arrived(self: &Arc<Self>, policy: &str) -> Result<bool, Error> {
        if let Awaited::Look = self.waiters.arrivals.awaited(policy) {
            let looked = self.look_for_due(policy).await;
            if let (Err(error), Awaited::Nothing(_)) =
                (looked, self.waiters.arrivals.awaited(policy))
            {
                return Err(error);
            }
        }
        Ok(matches!(self.waiters.arrivals.awaited(policy), Awaited::Take))
    }

    async fn look_for_due(self: &Arc<Self>, policy: &str) -> Result<(), Error> {
        let all: Vec<u8> = (0..JobId::PARTITIONS).collect();
        // Not made by others meanwhile, nor again at once if it fails.
        self.waiters.arrivals.looks(policy);
        let mut looks = JoinSet::new();
        let of_each =
            if matches!(self.connection(), Connection::Single(_)) { all.len() } else { 1 };
        for partitions in all.chunks(of_each) {
            let (inner, partitions) = (Arc::clone(self), partitions.to_vec());
            let policy = policy.to_owned();
            looks.spawn(async move { inner.look_into(&policy, &partitions).await });
        }
        let (mut due, mut next, mut failed) = (Vec::new(), None, None);
        while let Some(looked) = looks.join_next().await {
            match looked {
                Ok(Ok((some, first))) => {
                    due.extend(some);
                    next = [next, first].into_iter().flatten().min();
                }
                Ok(Err(error)) => failed = Some(error),
                // It is only ever lost with its runtime.
                Err(_) => {}
            }
        }
        // One server of a cluster that does not answer keeps nobody from the others' jobs.
        let has_some = !due.is_empty();
        self.waiters.arrivals.looked(policy, due, next);
        match failed {
            Some(error) if !has_some => Err(error),
            _ => Ok(()),
        }
    }

    /// Those of these partitions that have a job which is due, and when the next is due in the others.
    async fn look_into(
        &self,
        policy: &str,
        partitions: &[u8],
    ) -> Result<(Vec<u8>, Option<Duration>), Error> {
        let mut call = self.scripts.due.prepare_invoke();
        for partition in partitions {
            call.key(self.keys.queue(*partition, policy));
        }
        let answer: Value = self.run(&call, "cannot look for jobs").await?;
        let (next, due): (i64, Vec<usize>) = read(answer)?;
        let due = due.into_iter().filter_map(|number| partitions.get(number.wrapping_sub(1)));
        Ok((due.copied().collect(), u64::try_from(next).ok().map(Duration::from_millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_refuses_takes_is_left_alone_for_longer_each_time() {
        let arrivals = Arrivals::default();
        arrivals.awaited("work");
        let look = || {
            arrivals.looked("work", vec![3, 7], None);
            let mut next: Vec<_> = std::iter::from_fn(|| arrivals.next("work")).collect();
            next.sort_unstable();
            next
        };
        assert_eq!(look(), [3, 7]);
        assert!(arrivals.set_aside("work", 3));
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            arrivals.told("3 work");
            tokio::time::advance(Duration::from_secs(delay) - Duration::from_millis(1)).await;
            assert_eq!(look(), [7], "{delay}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(look(), [3, 7], "{delay}");
            assert!(!arrivals.set_aside("work", 3), "it is told once");
        }
        arrivals.is_well("work", 3);
        arrivals.told("3 work");
        assert_eq!(arrivals.next("work"), Some(3));
        assert!(arrivals.set_aside("work", 3));
        assert!(!arrivals.set_aside("work", 3));
        // Nobody has asked for longer than it was left alone.
        tokio::time::advance(FIRST_ASIDE * 5).await;
        assert!(arrivals.set_aside("work", 3), "an old refusal");
    }
}
