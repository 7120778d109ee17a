//! A detached job, from its promise to its end.
//!
//! A job in a queue waits for its turn first. Then one task polls the handler's future, its run-time limit and the store's word that the job was
//! ended by somebody else (canceled, or interrupted by a drain), in this order. The task's end is
//! the store's: whatever happens to it, the job is given one.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Response, uri::PathAndQuery};
use http_body::Body;
use tokio::{runtime::Handle, task::coop::unconstrained, time::Instant};
use tracing::{Instrument, Span};

use super::{
    Admission, Backoff, Registered, State,
    collect::collect,
    insist::insist,
    report::{report, report_last},
    turn::begin,
};
use crate::{
    error::BoxError,
    job::{Asked, Change, End, Failure, JobId, Record, Said, Status, within},
    store::{Changed, Interest},
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
}

impl<F> Work<F> {
    /// Runs the job in a task, with its span.
    pub(crate) fn spawn<B, E>(self, registered: Registered)
    where
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let record = registered.record().clone();
        if let Some((admission, runtime)) = registered.into_parts() {
            // Made here, since the task may be dropped before it is polled: a runtime that shuts
            // down begins no more tasks.
            let state = Arc::clone(&admission.lane().state);
            let unfinished = Unfinished {
                id: record.id(),
                runtime: runtime.clone(),
                admission: Some(admission),
            };
            let span = self.span.clone();
            runtime.spawn(job(self, record, state, unfinished).instrument(span));
        }
    }
}

/// `unfinished` comes last, so it is dropped last: the place is free when the handler's future is
/// really gone.
async fn job<F, B, E>(
    work: Work<F>,
    mut record: Record,
    state: Arc<State>,
    mut unfinished: Unfinished,
) where
    F: Future<Output = Result<Response<B>, E>> + Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
    E: Into<BoxError>,
{
    let id = record.id();
    let Some(admission) = &mut unfinished.admission else { return };
    let account = Arc::clone(&admission.lane().account);
    tracing::debug!(job = %id, policy = &**account.name(), status = ?record.status(), "detached");
    if record.status() == Status::Queued {
        match begin(&state, id, record.version(), admission).await {
            Some(begun) => record = begun,
            None => {
                drop(work);
                unfinished.admission = None;
                return;
            }
        }
    }
    let begun = Instant::now();
    let (end, said) = run(work, id, record.version(), &state).await;
    if let Some(end) = end {
        account.took(begun.elapsed());
        finish(&state, id, end, said).await;
    }
    unfinished.admission = None;
}

/// Polls the handler until it ends, or is ended: then there is no end to write. Its last progress
/// is still to be written.
async fn run<F, B, E>(
    work: Work<F>,
    id: JobId,
    version: u32,
    state: &Arc<State>,
) -> (Option<End>, Option<Said>)
where
    F: Future<Output = Result<Response<B>, E>> + Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
    E: Into<BoxError>,
{
    let Work { asked, future, target, run_time, .. } = work;
    let outcome = outcome(id, future, target.as_ref(), state.limits.max_outcome_bytes);
    let mut outcome = pin!(outcome);
    // Unconstrained: a handler that has used up its task's budget in a poll (tokio,
    // src/task/coop) would keep the others from ever being ready.
    let mut ended_elsewhere = pin!(unconstrained(ended_elsewhere(state, id, version)));
    let mut limit = pin!(unconstrained(tokio::time::sleep(run_time)));
    // There only where the handler has asked for its job.
    let mut reporter = None;
    // Dropped before the handler's future, whose drop may wait for what it tells to stop.
    let mut asked = asked;
    let end = poll_fn(|cx| {
        // The handler first, so that an end that it has reached is never thrown away.
        match poll_handler(state.identity(), Some(id), &mut asked, outcome.as_mut(), cx) {
            Poll::Ready(end) => return Poll::Ready(Some(end.unwrap_or_else(End::Failure))),
            Poll::Pending => {}
        }
        if ended_elsewhere.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if reporter.is_none() {
            let report = |said| Box::pin(unconstrained(report(Arc::clone(state), id, said)));
            reporter = asked.said().map(report);
        }
        if let Some(reporter) = &mut reporter {
            // It never ends.
            let _ = reporter.as_mut().poll(cx);
        }
        limit.as_mut().poll(cx).map(|()| Some(End::Failure(Failure::TimedOut)))
    })
    .await;
    let said = asked.said();
    // It has answered, or failed as it can without a layer too: its helpers are its own affair.
    if !matches!(end, None | Some(End::Failure(Failure::TimedOut | Failure::Panicked))) {
        asked.finished();
    }
    (end, said)
}

/// Polls a handler as the job of this desk, and catches its panic.
pub(super) fn poll_handler<F: Future>(
    identity: usize,
    id: Option<JobId>,
    asked: &mut Asked,
    handler: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Failure>> {
    let poll = || within(identity, id, asked, || handler.poll(cx));
    catch_unwind(AssertUnwindSafe(poll)).map_or_else(
        |panic| {
            let job = id.map(tracing::field::display);
            tracing::error!(job, panic = message(&*panic), "the handler panicked");
            Poll::Ready(Err(Failure::Panicked))
        },
        |polled| polled.map(Ok),
    )
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

/// Writes the job's last progress, if that can be, and its end, until the store has it. Somebody else
/// may have been faster.
async fn finish(state: &State, id: JobId, end: End, said: Option<Said>) {
    if let Some(said) = said {
        report_last(state, id, &said).await;
    }
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
pub(super) async fn ended_elsewhere(state: &State, id: JobId, mut seen: u32) {
    let mut backoff = Backoff::new();
    loop {
        let woken = state.store.changed(id, seen, Interest::Status).await;
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
    admission: Option<Admission>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(admission) = self.admission.take() else { return };
        let failure =
            if std::thread::panicking() { Failure::Panicked } else { Failure::Interrupted };
        let id = self.id;
        insist(&self.runtime, admission, id, move |store| {
            store.change(id, Change::Finish(End::Failure(failure)))
        });
    }
}
