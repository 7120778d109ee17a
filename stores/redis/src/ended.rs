//! Recent cancellations, in case Redis forgets them: after a crash, or when a replica takes over that was
//! behind, a job is open again whose client was told that it is canceled. Other ends that Redis forgets
//! are found by [`reconcile`](crate::reconcile).

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use tokio::time::Instant;
use tower_offload::{Change, Error, JobId, store::Changed};

use crate::{locked::locked, store::Inner};

/// What Redis may lose: a minute before it was last seen, more than `appendfsync` or a replica in use is
/// behind. Time while Redis is away does not count, however long that is. Where Redis loses more, or more
/// than so many cancellations, such a job ends as `node-lost`, or, where it was queued, runs.
const WINDOW: Duration = Duration::from_secs(60);
const MOST: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Canceled(Mutex<VecDeque<(Instant, JobId)>>);

impl Canceled {
    pub(crate) fn note(&self, id: JobId) {
        let mut recent = locked(&self.0);
        if recent.len() >= MOST {
            recent.pop_front();
        }
        recent.push_back((Instant::now(), id));
    }

    /// Redis answers, and no connection was lost since it was asked last for what it has lost.
    pub(crate) fn redis_is_well(&self) {
        let mut recent = locked(&self.0);
        while recent.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            recent.pop_front();
        }
    }
}

impl Inner {
    /// Cancels again what had been canceled before a connection was lost.
    pub(crate) async fn cancel_again(&self) -> Result<(), Error> {
        let all: Vec<_> = locked(&self.canceled.0).iter().map(|(_, id)| *id).collect();
        for id in all {
            if let Changed::Applied(_) = self.change(id, Change::Cancel).await? {
                tracing::error!(job = %id, "Redis has lost the cancellation of a job");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_while_redis_is_away_does_not_count() {
        let (canceled, count) = (Canceled::default(), |all: &Canceled| locked(&all.0).len());
        canceled.note(JobId::random().unwrap());
        tokio::time::advance(WINDOW * 100).await;
        canceled.note(JobId::random().unwrap());
        assert_eq!(count(&canceled), 2);
        canceled.redis_is_well();
        assert_eq!(count(&canceled), 1);
    }
}
