//! A detached job, from its promise to its end.
//!
//! One task polls the handler's future, its run-time limit and the store's word that the job was
//! ended by somebody else (canceled, or interrupted by a drain), in this order. The task's end is
//! the store's: whatever happens to it, the job is given one.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Response, uri::PathAndQuery};
use http_body::Body;
use tokio::{runtime::Handle, task::coop::unconstrained};
use tracing::{Instrument, Span};

use super::{Backoff, Registered, State, collect::collect, insist::insist, slots::Slot};
use crate::{
    error::BoxError,
    job::{Asked, Change, End, Failure, JobId, within},
    store::Changed,
};

/// What goes on when a request is taken off its connection.
pub(crate) struct Work<F> {
    /// What the handler has asked for of its job.
    pub(crate) asked: Asked,
    /// The handler's future, as it is.
    pub(crate) future: F,
    /// The original request's path, which the response's relative references are resolved against.
    pub(crate) target: Option<PathAndQuery>,
    /// The span in which the handler runs.
    pub(crate) span: Span,
    pub(crate) run_time: Duration,
    /// The policy's name.
    pub(crate) name: Option<Arc<str>>,
}

impl<F> Work<F> {
    /// Runs the job in a task, with its span.
    pub(crate) fn spawn<B, E>(self, registered: Registered)
    where
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let id = registered.record().id();
        let version = registered.record().version();
        if let Some((slot, runtime)) = registered.into_parts() {
            // Made here, since the task may be dropped before it is polled: a runtime that shuts
            // down begins no more tasks.
            let state = Arc::clone(&slot.state);
            let unfinished = Unfinished { id, runtime: runtime.clone(), slot: Some(slot) };
            let span = self.span.clone();
            runtime.spawn(run(self, version, state, unfinished).instrument(span));
        }
    }
}

/// `unfinished` comes last, so it is dropped last: the place is free when the handler's future is
/// really gone.
async fn run<F, B, E>(work: Work<F>, version: u32, state: Arc<State>, mut unfinished: Unfinished)
where
    F: Future<Output = Result<Response<B>, E>> + Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
    E: Into<BoxError>,
{
    let Work { asked, future, target, run_time, name, .. } = work;
    let id = unfinished.id;
    tracing::debug!(job = %id, policy = name.as_deref(), "detached");
    let end = {
        let outcome = outcome(id, future, target.as_ref(), state.limits.max_outcome_bytes);
        let mut outcome = pin!(outcome);
        // Unconstrained: a handler that has used up its task's budget in a poll (tokio,
        // src/task/coop) would keep the others from ever being ready.
        let mut ended_elsewhere = pin!(unconstrained(ended_elsewhere(&state, id, version)));
        let mut limit = pin!(unconstrained(tokio::time::sleep(run_time)));
        // Dropped before the handler's future, whose drop may wait for what it tells to stop.
        let mut asked = asked;
        let end = poll_fn(|cx| {
            // The handler first, so that an end that it has reached is never thrown away.
            let as_job =
                || within(state.identity(), Some(id), &mut asked, || outcome.as_mut().poll(cx));
            match catch_unwind(AssertUnwindSafe(as_job)) {
                Ok(Poll::Ready(end)) => return Poll::Ready(Some(end)),
                Err(panic) => {
                    tracing::error!(job = %id, panic = message(&*panic), "the handler panicked");
                    return Poll::Ready(Some(End::Failure(Failure::Panicked)));
                }
                Ok(Poll::Pending) => {}
            }
            if ended_elsewhere.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            limit.as_mut().poll(cx).map(|()| Some(End::Failure(Failure::TimedOut)))
        })
        .await;
        // It has answered, or failed as it can without a layer too: its helpers are its own affair.
        if !matches!(end, None | Some(End::Failure(Failure::TimedOut | Failure::Panicked))) {
            asked.finished();
        }
        end
    };
    if let Some(end) = end {
        finish(&state, id, end).await;
    }
    unfinished.slot = None;
}

/// What comes of the handler, if nothing else ends the job.
async fn outcome<F, B, E>(id: JobId, handler: F, target: Option<&PathAndQuery>, max: usize) -> End
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
{
    match handler.await {
        Ok(response) => collect(id, response, target, max).await,
        Err(error) => {
            let error: BoxError = error.into();
            tracing::error!(job = %id, error = &*error as &dyn std::error::Error, "the service failed");
            End::Failure(Failure::ServiceError)
        }
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// Writes the job's end, until the store has it. Somebody else may have been faster.
async fn finish(state: &State, id: JobId, end: End) {
    let mut backoff = Backoff::new();
    loop {
        match state.store.change(id, Change::Finish(end.clone())).await {
            Ok(Changed::Applied(record)) => {
                tracing::debug!(job = %id, status = ?record.status(), "ended");
                return;
            }
            Ok(Changed::Refused(_) | Changed::Unknown) => return,
            Err(error) => {
                tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot store the end of a job, trying again");
                backoff.wait().await;
            }
        }
    }
}

/// Resolves when the store says that the job has ended.
async fn ended_elsewhere(state: &State, id: JobId, mut seen: u32) {
    let mut backoff = Backoff::new();
    loop {
        let woken = state.store.changed(id, seen).await;
        match (woken, state.store.read(id).await) {
            (Ok(()), Ok(Some(record))) if record.status().is_end() => return,
            (Ok(()), Ok(Some(record))) => seen = record.version(),
            // It has ended, and expired since: a store drops nothing else.
            (Ok(()), Ok(None)) => return,
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot watch a job, trying again");
                backoff.wait().await;
            }
        }
    }
}

/// Ends the job when its task does not: dropped with its runtime, or ended by a panic in the drop of
/// the handler's future. `catch_unwind` sees neither.
struct Unfinished {
    id: JobId,
    runtime: Handle,
    /// `None` once the job has its end.
    slot: Option<Slot>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let failure =
            if std::thread::panicking() { Failure::Panicked } else { Failure::Interrupted };
        let id = self.id;
        insist(&self.runtime, slot, id, move |store| {
            store.change(id, Change::Finish(End::Failure(failure)))
        });
    }
}
