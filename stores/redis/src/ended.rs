//! What has ended of late, in case Redis forgets it: after a crash, or when a replica takes over that was
//! behind, a job is open again at which nobody works, and its node lives.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use tokio::time::Instant;
use tower_offload::{Change, End, Error, Failure, JobId, store::Changed};

use crate::{locked::locked, store::Inner};

/// For so long, and so many.
const WINDOW: Duration = Duration::from_secs(60);
const MOST: usize = 1 << 16;

type IsCanceled = bool;

#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<VecDeque<(Instant, JobId, IsCanceled)>>);

impl Ended {
    pub(crate) fn note(&self, id: JobId, is_canceled: bool) {
        let mut all = locked(&self.0);
        while all.len() >= MOST || all.front().is_some_and(|(at, ..)| at.elapsed() > WINDOW) {
            all.pop_front();
        }
        all.push_back((Instant::now(), id, is_canceled));
    }
}

impl Inner {
    /// Ends again what had ended before a connection was lost. Its outcome is gone.
    pub(crate) async fn end_again(&self) -> Result<(), Error> {
        let all: Vec<_> = locked(&self.ended.0).iter().map(|(_, id, how)| (*id, *how)).collect();
        for (id, is_canceled) in all {
            // A cancellation is anybody's to say, also of a durable job that another node has run.
            let lost = match is_canceled {
                true => Change::Cancel,
                false => Change::Finish(End::Failure(Failure::NodeLost)),
            };
            if let Changed::Applied(_) = self.change(id, lost).await? {
                tracing::error!(job = %id, "Redis has lost the end of a job");
            }
        }
        Ok(())
    }
}
