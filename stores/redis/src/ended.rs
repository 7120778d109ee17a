//! Recent cancellations, in case Redis forgets them: after a crash, or when a replica takes over that was
//! behind, a job is open again whose client was told that it is canceled. Other ends that Redis forgets
//! are found by [`reconcile`](crate::reconcile).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;
use tower_offload::{Change, Error, JobId, store::Changed};

use crate::{caught::log, error::is_lasting, locked::locked, store::Inner};

/// What Redis may lose: a minute before it was last seen, more than `appendfsync` or a replica in use is
/// behind. Time while Redis is away does not count, however long that is. Where Redis loses more, or more
/// than so many cancellations, such a job ends as `node-lost`, or, where it was queued, runs.
const WINDOW: Duration = Duration::from_secs(60);
const MOST: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Canceled(Mutex<Recent>);

/// Each job once, however often its cancellation is asked for.
#[derive(Debug, Default)]
struct Recent {
    by_time: VecDeque<(Instant, JobId)>,
    ids: BTreeSet<JobId>,
}

impl Recent {
    fn add(&mut self, id: JobId) {
        if !self.ids.insert(id) {
            return;
        }
        self.by_time.push_back((Instant::now(), id));
        if self.by_time.len() > MOST {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, id)) = self.by_time.pop_front() {
            self.ids.remove(&id);
        }
    }
}

impl Canceled {
    pub(crate) fn note(&self, id: JobId) {
        locked(&self.0).add(id);
    }

    /// These have been canceled once more, just now.
    fn note_again(&self, again: &BTreeSet<JobId>) {
        let mut recent = locked(&self.0);
        recent.by_time.retain(|(_, id)| !again.contains(id));
        recent.ids.retain(|id| !again.contains(id));
        again.iter().for_each(|id| recent.add(*id));
    }

    fn all(&self) -> Vec<JobId> {
        locked(&self.0).by_time.iter().map(|(_, id)| *id).collect()
    }

    /// Redis answers, and no connection was lost since it was asked last for what it has lost.
    pub(crate) fn redis_is_well(&self) {
        let mut recent = locked(&self.0);
        while recent.by_time.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            recent.drop_first();
        }
    }
}

impl Inner {
    /// Cancels again what had been canceled before a connection was lost.
    pub(crate) async fn cancel_again(&self) -> Result<(), Error> {
        let (mut again, mut canceled) = (BTreeSet::new(), Ok(()));
        for id in self.canceled.all() {
            match self.change(id, Change::Cancel).await {
                Ok(Changed::Applied(_)) => {
                    again.insert(id);
                    log(|| tracing::error!(job = %id, "Redis has lost the cancellation of a job"));
                }
                Ok(_) => {}
                Err(error) if is_lasting(&error) => {
                    let error = &error as &dyn std::error::Error;
                    log(
                        || tracing::error!(job = %id, error, "cannot see whether a job is still canceled"),
                    );
                }
                Err(error) => {
                    canceled = Err(error);
                    break;
                }
            }
        }
        self.canceled.note_again(&again);
        canceled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_while_redis_is_away_does_not_count() {
        let (canceled, count) = (Canceled::default(), |all: &Canceled| all.all().len());
        canceled.note(JobId::random().unwrap());
        tokio::time::advance(WINDOW * 100).await;
        canceled.note(JobId::random().unwrap());
        assert_eq!(count(&canceled), 2);
        canceled.redis_is_well();
        assert_eq!(count(&canceled), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_noted_once_until_it_is_canceled_again() {
        let canceled = Canceled::default();
        let [first, second] = std::array::from_fn(|_| JobId::random().unwrap());
        canceled.note(first);
        canceled.note(second);
        tokio::time::advance(WINDOW * 2).await;
        for _ in 0..=MOST {
            canceled.note(second);
        }
        assert_eq!(canceled.all(), [first, second]);
        canceled.note_again(&BTreeSet::from([first]));
        assert_eq!(canceled.all(), [second, first]);
        canceled.redis_is_well();
        assert_eq!(canceled.all(), [first]);
        canceled.note(second);
        assert_eq!(canceled.all(), [first, second]);
    }

    #[test]
    fn the_oldest_makes_room() {
        let canceled = Canceled::default();
        let ids: Vec<_> = (0..=MOST).map(|_| JobId::random().unwrap()).collect();
        ids.iter().for_each(|id| canceled.note(*id));
        assert_eq!(canceled.all(), ids[1..]);
        let count = locked(&canceled.0).ids.len();
        assert_eq!(count, MOST);
    }
}
