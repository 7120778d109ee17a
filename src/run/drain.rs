//! Shutdown: what runs may finish until a deadline; what does not is told to be interrupted.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use super::State;
use crate::{
    error::Error,
    job::{Change, End, Failure, JobId},
    store::Changed,
};

/// What became of the jobs that were under way when a drain began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    finished: usize,
    interrupted: usize,
}

impl Drained {
    /// How many ended by themselves, or were canceled, before the deadline.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// How many were cut off at the deadline. Their status URLs say so.
    pub fn interrupted(&self) -> usize {
        self.interrupted
    }
}

/// How long a store may take, after the deadline, to write that jobs were interrupted. A write takes
/// milliseconds; a store that does not answer must not hold up a shutdown.
const WRITE: Duration = Duration::from_secs(1);

/// Begins no new jobs, and waits until none runs, at most for `deadline`. It does not wait past it
/// for a future that cannot be dropped because it blocks its thread.
pub(crate) async fn drain(state: &Arc<State>, deadline: Duration) -> Drained {
    let ended_before = state.slots.close();
    let mut cut_off = JoinSet::new();
    if tokio::time::timeout(deadline, state.slots.idle()).await.is_err() {
        for id in state.slots.cut_off() {
            // All at once: a store that is slow is waited for once, not once a job.
            let change = Change::Finish(End::Failure(Failure::Interrupted));
            let change = state.store.change(id, change);
            cut_off.spawn(async move { interrupted(id, change.await) });
        }
    }
    let jobs = (state.slots.promised() - ended_before) as usize;
    let mut unknown = cut_off.len();
    let mut interrupted = 0;
    let until = Instant::now() + WRITE;
    while let Ok(Some(end)) = tokio::time::timeout_at(until, cut_off.join_next()).await {
        if let Ok(Some(applied)) = end {
            unknown -= 1;
            interrupted += usize::from(applied);
        }
    }
    // What the store has not answered yet may still be written.
    cut_off.detach_all();
    Drained { finished: jobs.saturating_sub(interrupted + unknown), interrupted }
}

/// Whether a job was ended as interrupted; `None` where the store does not say. Its task learns of
/// it from the store, and drops the handler's future.
fn interrupted(id: JobId, changed: Result<Changed, Error>) -> Option<bool> {
    // The deadline is over, so nothing is tried twice.
    match changed {
        Ok(changed) => Some(matches!(changed, Changed::Applied(_))),
        Err(error) => {
            tracing::error!(job = %id, error = &error as &dyn std::error::Error, "cannot store that a job was interrupted");
            None
        }
    }
}
