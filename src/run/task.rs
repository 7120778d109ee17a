//! A detached job, from its promise to its end.
//!
//! ```text
//!  Queued ──its turn──▶ Begins ──▶ Runs ──▶ Ends ──the store has it──▶ over
//!     └──ended before──────────────┴─ended elsewhere───────────────────▶
//! ```
//!
//! One task polls the handler's future and, while that is pending, what is beside it (`beside.rs`).
//! The task's end is the store's: whatever happens to it, the job is given one.
//!
//! Written out as a future, since each `async fn` on the way would hold the handler's future once
//! more, and move it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Response, uri::PathAndQuery};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::{runtime::Handle, time::Instant};
use tracing::{Instrument, Span};

use super::{
    Admission, Registered, State,
    beside::Beside,
    end::finish,
    handler::{Handler, poll_handler},
    insist::insist,
    turn::begin,
};
use crate::{
    caught::log,
    error::BoxError,
    job::{Asked, Change, End, Failure, JobId, Status},
};

/// What goes on when a request is taken off its connection.
pub(crate) struct Work<F> {
    /// What the handler has asked for of its job.
    pub(crate) asked: Asked,
    /// The handler's future, as it is.
    pub(crate) future: F,
    /// The original request's path, which the response's relative references are resolved against.
    pub(crate) target: PathAndQuery,
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
        let (id, status) = (registered.record().id(), registered.record().status());
        let version = registered.record().version();
        let Some((admission, runtime)) = registered.into_parts() else { return };
        // Made here, since the task may be dropped before it is polled: a runtime that shuts down
        // begins no more tasks.
        let state = Arc::clone(&admission.lane().state);
        let unfinished =
            Unfinished { id, runtime: runtime.clone(), polled: false, admission: Some(admission) };
        let Self { asked, future, target, span, run_time } = self;
        let handler = Handler::new(id, future, target, state.limits.max_outcome_bytes);
        let (stage, unfinished) = match status {
            Status::Queued => (Stage::queued(&state, version, unfinished), None),
            _ => (Stage::Begins, Some(unfinished)),
        };
        let task = Task { asked, handler, stage, id, version, run_time, state, unfinished };
        runtime.spawn(task.instrument(span));
    }
}

pin_project! {
    /// The task of a job. What the handler has started elsewhere is told to stop before the
    /// handler's own drop may wait for it; `unfinished` comes last, so that the place is free when
    /// the handler's future is really gone.
    struct Task<F, B> {
        asked: Asked,
        #[pin]
        handler: Handler<F, B>,
        stage: Stage,
        id: JobId,
        // The record's version when it was seen last.
        version: u32,
        run_time: Duration,
        state: Arc<State>,
        // `None` while the job is queued: its stage has it.
        unfinished: Option<Unfinished>,
    }
}

enum Stage {
    /// Waits for the job's turn: then there is the version of its record, if it has not ended before.
    Queued(Pin<Box<dyn Future<Output = (Unfinished, Option<u32>)> + Send>>),
    Begins,
    Runs {
        begun: Instant,
        beside: Option<Beside>,
    },
    /// Its end is being written.
    Ends(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Stage {
    fn queued(state: &Arc<State>, version: u32, mut unfinished: Unfinished) -> Self {
        let state = Arc::clone(state);
        Self::Queued(Box::pin(async move {
            let begun = match &mut unfinished.admission {
                Some(admission) => begin(&state, unfinished.id, version, admission).await,
                None => None,
            };
            (unfinished, begun.map(|record| record.version()))
        }))
    }
}

impl<F, B, E> Future for Task<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().is_polled(true);
        let polled = self.as_mut().poll_on(cx);
        self.is_polled(false);
        polled
    }
}

impl<F, B> Task<F, B> {
    fn is_polled(self: Pin<&mut Self>, polled: bool) {
        if let Some(unfinished) = self.project().unfinished {
            unfinished.polled = polled;
        }
    }

    fn poll_on<E>(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: Body<Error: Into<BoxError>>,
        E: Into<BoxError>,
    {
        loop {
            let this = self.as_mut().project();
            match this.stage {
                Stage::Queued(turn) => {
                    let (mut unfinished, begun) = ready!(turn.as_mut().poll(cx));
                    unfinished.polled = true;
                    *this.unfinished = Some(unfinished);
                    let Some(version) = begun else {
                        self.as_mut().drop_work();
                        break;
                    };
                    (*this.version, *this.stage) = (version, Stage::Begins);
                }
                Stage::Begins => {
                    self.as_ref().tell();
                    let begun = Instant::now();
                    *self.as_mut().project().stage = Stage::Runs { begun, beside: None };
                }
                Stage::Runs { begun, .. } => {
                    let begun = *begun;
                    let end = ready!(self.as_mut().poll_end(cx));
                    match self.as_mut().ended(end, begun, cx) {
                        Some(write) => *self.as_mut().project().stage = Stage::Ends(write),
                        None => break,
                    }
                }
                Stage::Ends(write) => {
                    ready!(write.as_mut().poll(cx));
                    break;
                }
            }
        }
        if let Some(unfinished) = self.project().unfinished {
            unfinished.admission = None;
        }
        Poll::Ready(())
    }

    fn tell(self: Pin<&Self>) {
        if let Some(Unfinished { admission: Some(admission), .. }) = &self.unfinished {
            let policy = &**admission.lane().name();
            log(|| tracing::debug!(job = %self.id, policy, "detached"));
        }
    }

    /// What the handler has asked for is dropped first.
    fn drop_work(self: Pin<&mut Self>) {
        let this = self.project();
        *this.asked = Asked::default();
        this.handler.end();
    }

    /// Polls the handler until it ends, or is ended: then there is no end to write.
    fn poll_end<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<End>>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: Body<Error: Into<BoxError>>,
        E: Into<BoxError>,
    {
        let this = self.project();
        let (state, id) = (this.state, *this.id);
        // The handler first, so that an end that it has reached is never thrown away.
        let polled = poll_handler(state.identity(), Some(id), this.asked, this.handler, cx);
        if let Poll::Ready(end) = polled {
            return Poll::Ready(Some(end.unwrap_or_else(End::Failure)));
        }
        let Stage::Runs { begun, beside } = this.stage else { return Poll::Pending };
        let beside = beside.get_or_insert_with(|| {
            // The time counts from the start, and a change since then is seen by the version.
            let left = this.run_time.saturating_sub(begun.elapsed());
            Beside::new(state, id, *this.version, left)
        });
        beside.poll(state, id, this.asked, cx)
    }

    /// The handler has ended, or is ended here. Gives what is left of writing its end, if anything.
    fn ended(
        mut self: Pin<&mut Self>,
        end: Option<End>,
        begun: Instant,
        cx: &mut Context<'_>,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let this = self.as_mut().project();
        let said = this.asked.said();
        // It has answered, or failed as it can without a layer too: its helpers are its own affair.
        if !matches!(end, None | Some(End::Failure(Failure::TimedOut | Failure::Panicked))) {
            this.asked.finished();
        }
        // What is beside it must not write progress any more.
        *this.stage = Stage::Runs { begun, beside: None };
        self.as_mut().drop_work();
        let (this, end) = (self.project(), end?);
        if let Some(Unfinished { admission: Some(admission), .. }) = this.unfinished {
            admission.lane().account.took(begun.elapsed());
        }
        finish(this.state, *this.id, end, said, cx)
    }
}

/// Ends the job when its task does not: dropped with its runtime, or ended by a panic in the drop of
/// the handler's future. `catch_unwind` sees neither.
struct Unfinished {
    id: JobId,
    runtime: Handle,
    /// The task is being polled: what unwinds now is its own panic, and not that of a thread whose
    /// runtime goes with it.
    polled: bool,
    /// `None` once the job has its end.
    admission: Option<Admission>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(admission) = self.admission.take() else { return };
        let failure = if self.polled { Failure::Panicked } else { Failure::Interrupted };
        let id = self.id;
        insist(&self.runtime, admission, id, move |store| {
            store.change(id, Change::Finish(End::Failure(failure)))
        });
    }
}
