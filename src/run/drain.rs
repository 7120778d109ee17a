//! Shutdown: what runs may finish until a deadline; what does not is told to be interrupted.

use std::{sync::Arc, time::Duration};

use super::State;
use crate::{
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

/// Begins no new jobs, and waits until none runs, at most for `deadline`. It does not wait past it
/// for a future that cannot be dropped because it blocks its thread.
pub(crate) async fn drain(state: &Arc<State>, deadline: Duration) -> Drained {
    state.slots.close();
    let jobs = state.slots.jobs().len();
    if tokio::time::timeout(deadline, state.slots.idle()).await.is_ok() {
        return Drained { finished: jobs, interrupted: 0 };
    }
    let mut interrupted = 0;
    for id in state.slots.jobs() {
        interrupted += usize::from(interrupt(state, id).await);
    }
    Drained { finished: jobs.saturating_sub(interrupted), interrupted }
}

/// Ends a job as interrupted. Its task learns of it from the store, and drops the handler's future.
async fn interrupt(state: &State, id: JobId) -> bool {
    // The store's own time-out bounds this; the deadline is over, so nothing is tried twice.
    match state.store.change(id, Change::Finish(End::Failure(Failure::Interrupted))).await {
        Ok(changed) => matches!(changed, Changed::Applied(_)),
        Err(error) => {
            tracing::error!(job = %id, error = &error as &dyn std::error::Error, "cannot store that a job was interrupted");
            false
        }
    }
}
