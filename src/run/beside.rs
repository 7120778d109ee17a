//! What a job's task looks at while its handler is pending: whether the job was ended elsewhere, its
//! run-time limit, and what the handler says of its progress.
//!
//! It is polled without tokio's budget (tokio, src/task/coop): a handler that has used up its task's
//! budget in a poll would keep all of this from ever being ready.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::task::coop::unconstrained;

use super::{Backoff, State, report::report};
use crate::{
    caught::log,
    error::ErrorKind,
    job::{Asked, End, Failure, JobId},
    store::Interest,
};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Made when a handler is pending for the first time: many are ready with their first poll.
pub(super) struct Beside {
    over: Boxed<Option<End>>,
    /// There only where the handler has asked for its job.
    reporter: Option<Boxed<()>>,
}

impl Beside {
    /// Of a job that may run for so long from now on, and was seen last in this version.
    pub(super) fn new(state: &Arc<State>, id: JobId, version: u32, left: Duration) -> Self {
        let over = over(Arc::clone(state), id, version, left);
        Self { over: Box::pin(unconstrained(over)), reporter: None }
    }

    /// Resolves when the job is to end, with its end where that is still to be written.
    pub(super) fn poll(
        &mut self,
        state: &Arc<State>,
        id: JobId,
        asked: &Asked,
        cx: &mut Context<'_>,
    ) -> Poll<Option<End>> {
        if self.reporter.is_none() {
            let report = |said| report(Arc::clone(state), id, said);
            self.reporter = asked.said().map(|said| Box::pin(unconstrained(report(said))) as _);
        }
        if let Some(reporter) = &mut self.reporter {
            // It ends only where the store cannot read what it has kept of the job.
            if reporter.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(End::Failure(Failure::Corrupt)));
            }
        }
        self.over.as_mut().poll(cx)
    }
}

async fn over(state: Arc<State>, id: JobId, version: u32, left: Duration) -> Option<End> {
    let mut watched = pin!(watch(&state, id, version));
    let mut limit = pin!(tokio::time::sleep(left));
    poll_fn(|cx| match watched.as_mut().poll(cx) {
        Poll::Ready(Watched::Ended) => Poll::Ready(None),
        Poll::Ready(Watched::Corrupt) => Poll::Ready(Some(End::Failure(Failure::Corrupt))),
        Poll::Pending => limit.as_mut().poll(cx).map(|()| Some(End::Failure(Failure::TimedOut))),
    })
    .await
}

/// What the store says of a job that is not this process's to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// It has ended, or is another process's.
    Ended,
    /// What is stored of it cannot be read, and never will be.
    Corrupt,
}

/// Resolves when the status of the job was changed elsewhere since it was seen in this version, or
/// can't be told any more.
pub(super) async fn watch(state: &State, id: JobId, mut seen: u32) -> Watched {
    let (first, mut backoff) = (seen, Backoff::new());
    loop {
        let woken = state.store.changed(id, seen, Interest::Status).await;
        match (woken, state.store.read(id, None).await) {
            (Ok(()), Ok(Some(record))) if record.status_version() > first => return Watched::Ended,
            (Ok(()), Ok(Some(record))) => seen = record.version(),
            // It has ended, and expired since: a store drops nothing else.
            (Ok(()), Ok(None)) => return Watched::Ended,
            // A process of a later release has changed it, and the job is left to those that can read it.
            (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::NewerFormat => {
                return Watched::Ended;
            }
            (Err(error), _) | (_, Err(error)) if error.is_final() => {
                log(
                    || tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot watch a job"),
                );
                return Watched::Corrupt;
            }
            (Err(error), _) | (_, Err(error)) => {
                log(
                    || tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot watch a job, trying again"),
                );
                backoff.wait().await;
            }
        }
    }
}
