//! What clients are told to expect: when to ask again, how long it may still take, and where in the
//! queue they stand.

use std::time::Duration;

use super::{Account, Lane, RETRY_AFTER, State};
use crate::{
    job::{Record, Status},
    system,
    wire::Outlook,
};

/// The most that `Retry-After` says. A job may end before its estimate, and a client that is told to
/// come back in an hour would not learn of it; a poll each half minute costs nobody anything.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The most that an estimate says: a day.
const MAX_ETA: Duration = Duration::from_secs(86_400);

impl State {
    /// What to expect of this job.
    pub(crate) fn outlook(&self, record: &Record) -> Outlook {
        let account = record.policy().and_then(|name| self.accounts.find(name));
        let (queue_position, eta) = match (record.status(), account) {
            (Status::Running, Some(account)) => (None, until_end(&account, record)),
            (Status::Queued, account) => {
                let position = self.places.position(record.id());
                let eta = account.zip(position).and_then(|(account, position)| {
                    until_turn(&account, position.position, position.abreast, 1)
                });
                (position.map(|position| position.position), eta)
            }
            _ => (None, None),
        };
        let eta = eta.map(|eta| eta.min(MAX_ETA));
        Outlook { retry_after: retry_after(eta), eta, queue_position }
    }
}

impl Lane {
    /// When somebody may come again who found no room: when one of the route's jobs is likely to
    /// have ended.
    pub(crate) fn retry_after(&self) -> Duration {
        let abreast = self.state.places.abreast(self);
        retry_after(until_turn(&self.account, 1, abreast, 0))
    }
}

/// A job that runs: what is left for those that have run as long.
fn until_end(account: &Account, record: &Record) -> Option<Duration> {
    let elapsed = system::now().duration_since(record.started_at()?).unwrap_or_default();
    account.times().remaining(elapsed)
}

/// A job that waits: `abreast` jobs end in the time that one takes on average, so many are in front
/// of it, and then it runs itself, `runs` times.
fn until_turn(account: &Account, position: usize, abreast: usize, runs: u32) -> Option<Duration> {
    let mean = account.times().mean()?;
    let turn = mean.as_secs_f64() * position as f64 / abreast.max(1) as f64;
    let turn = Duration::try_from_secs_f64(turn).unwrap_or(MAX_ETA);
    Some(turn.saturating_add(mean.saturating_mul(runs)))
}

fn retry_after(eta: Option<Duration>) -> Duration {
    eta.map_or(RETRY_AFTER, |eta| eta.clamp(RETRY_AFTER, MAX_RETRY_AFTER))
}
