//! Writing the end of a job, until the store has it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{State, insist::until_done, report::report_last};
use crate::{
    caught::log,
    error::{Error, ErrorKind},
    job::{Change, End, Failure, JobId, Said},
    store::Changed,
};

/// Writes the job's last progress, if that can be, and its end. Somebody else may have been faster.
/// `None` where that is done already, as it is with a store that is done at once; else what goes on
/// with it.
pub(super) fn finish(
    state: &Arc<State>,
    id: JobId,
    end: End,
    said: Option<Said>,
    cx: &mut Context<'_>,
) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
    if said.is_none() && state.store.changes_at_once() {
        let mut answer = state.store.change(id, Change::Finish(end));
        let polled = Pin::new(&mut answer).poll(cx);
        if let Poll::Ready(Ok(changed)) = &polled {
            told(id, changed);
            return None;
        }
        // The store did not keep its word. Should it fail as well, the outcome is lost; the job has an
        // end all the same.
        let state = Arc::clone(state);
        return Some(Box::pin(async move {
            let answer = match polled {
                Poll::Ready(answer) => answer,
                Poll::Pending => answer.await,
            };
            let end = || Change::Finish(End::Failure(Failure::Interrupted));
            let ask = || state.store.change(id, end());
            written(&state, id, until_done(id, NOT_STORED, answer, ask).await).await;
        }));
    }
    let state = Arc::clone(state);
    Some(Box::pin(async move {
        if let Some(said) = said {
            report_last(&state, id, &said).await;
        }
        let ask = || state.store.change(id, Change::Finish(end.clone()));
        written(&state, id, until_done(id, NOT_STORED, ask().await, ask).await).await;
    }))
}

/// What is logged of a store that does not take the end of a job.
const NOT_STORED: &str = "cannot store the end of a job";

async fn written(state: &State, id: JobId, answer: Result<Changed, Error>) {
    match answer {
        Ok(changed) => told(id, &changed),
        Err(error) => give_up(state, id, &error).await,
    }
}

/// Ends a job that the store can't change any more, for this reason. One whose record is of a later
/// release is left to the processes that can read it.
pub(super) async fn give_up(state: &State, id: JobId, error: &Error) {
    if error.kind() != ErrorKind::NewerFormat {
        end_as_corrupt(state, id).await;
    }
}

/// Ends a job of which the store cannot read what it has kept, so that no other change of it can be
/// made. A store that cannot do that either has said its last word.
pub(super) async fn end_as_corrupt(state: &State, id: JobId) {
    log(|| tracing::warn!(job = %id, "what is stored of a job cannot be read, it has failed"));
    let ask = || state.store.change(id, Change::Finish(End::Failure(Failure::Corrupt)));
    if let Ok(changed) = until_done(id, NOT_STORED, ask().await, ask).await {
        told(id, &changed);
    }
}

fn told(id: JobId, changed: &Changed) {
    if let Changed::Applied(record) = changed {
        log(|| tracing::debug!(job = %id, status = ?record.status(), "ended"));
    }
}
