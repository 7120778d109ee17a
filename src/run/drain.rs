//! Shutdown: what runs may finish until a deadline; what does not is told to be interrupted.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::State;
use crate::{
    caught::log,
    error::Error,
    job::{Change, End, Failure, JobId},
    store::Changed,
};

/// What became of the jobs that ran or waited when a drain began, and of handlers whose client had
/// left ([`finish_on_disconnect`](crate::Policy::finish_on_disconnect)).
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

/// A shutdown under way. Made by `Offload::drain`; await it.
#[must_use = "nothing is drained until this is awaited"]
pub struct Drain {
    state: Arc<State>,
    deadline: Duration,
    linger: Duration,
    /// `None` until the first poll.
    work: Option<Pin<Box<dyn Future<Output = Drained> + Send>>>,
}

impl Drain {
    pub(crate) fn new(state: Arc<State>, deadline: Duration) -> Self {
        Self { state, deadline, linger: Duration::ZERO, work: None }
    }

    /// Goes on for this long after the last job has ended, so that clients can fetch the outcomes:
    /// a few seconds more than their `Retry-After` says. Default: not at all.
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }
}

impl Future for Drain {
    type Output = Drained;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Drained> {
        let this = &mut *self;
        let work = this.work.get_or_insert_with(|| {
            let (state, deadline, linger) = (Arc::clone(&this.state), this.deadline, this.linger);
            Box::pin(async move {
                let drained = drain(&state, deadline).await;
                tokio::time::sleep(linger).await;
                // Whoever still waits would keep the server from closing.
                state.drained.cancel();
                drained
            })
        });
        work.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain")
            .field("deadline", &self.deadline)
            .field("linger", &self.linger)
            .finish_non_exhaustive()
    }
}

/// Gives no more places, and waits until none is taken and nobody waits for one, at most for
/// `deadline`. It does not wait past it for a future that cannot be dropped because it blocks its
/// thread.
async fn drain(state: &Arc<State>, deadline: Duration) -> Drained {
    let before = state.places.close();
    if tokio::time::timeout(deadline, state.places.idle()).await.is_err() {
        // All at once: a store that is slow is waited for once, not once a job.
        for id in state.places.cut_off() {
            interrupt(state, id);
        }
        // What the store has not answered until then may still be written.
        let _ = tokio::time::timeout(WRITE, state.places.decided()).await;
    }
    let now = state.places.ends();
    Drained {
        finished: now.finished - before.finished,
        interrupted: now.interrupted - before.interrupted,
    }
}

/// Ends a job as interrupted. Its task learns of it from the store, and drops the handler's future.
fn interrupt(state: &Arc<State>, id: JobId) {
    let undecided = Undecided { state: Arc::clone(state), interrupted: None };
    let change = state.store.change(id, Change::Finish(End::Failure(Failure::Interrupted)));
    tokio::spawn(async move {
        let mut undecided = undecided;
        undecided.interrupted = interrupted(id, change.await);
    });
}

/// A job that was cut off. Dropped, also with its runtime, it is decided.
struct Undecided {
    state: Arc<State>,
    /// Whether the job has ended by that; `None` where the store does not say.
    interrupted: Option<bool>,
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.state.places.decide(self.interrupted);
    }
}

fn interrupted(id: JobId, changed: Result<Changed, Error>) -> Option<bool> {
    // The deadline is over, so nothing is tried twice.
    match changed {
        Ok(changed) => Some(matches!(changed, Changed::Applied(_))),
        Err(error) => {
            log(
                || tracing::error!(job = %id, error = &error as &dyn std::error::Error, "cannot store that a job was interrupted"),
            );
            None
        }
    }
}
