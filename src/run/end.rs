//! Writing the end of a job, until the store has it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Backoff, State, report::report_last};
use crate::{
    job::{Change, End, Failure, JobId, Said},
    store::{Changed, StoreFuture},
};

/// Writes the job's last progress, if that can be, and its end. Somebody else may have been faster.
/// `None` where that is done already, as it is with a store that is done at once; else what goes on
/// with it.
pub(super) fn finish(
    state: &Arc<State>,
    id: JobId,
    mut end: End,
    said: Option<Said>,
    cx: &mut Context<'_>,
) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
    if said.is_none() && state.store.changes_at_once() {
        let mut answer = state.store.change(id, Change::Finish(end));
        if let Poll::Ready(Ok(changed)) = Pin::new(&mut answer).poll(cx) {
            told(id, &changed);
            return None;
        }
        // The store did not keep its word, and the outcome is lost. The job has an end all the same.
        end = End::Failure(Failure::Interrupted);
    }
    let state = Arc::clone(state);
    if let Some(said) = said {
        return Some(Box::pin(async move {
            report_last(&state, id, &said).await;
            insist(&state, id, &end, ask(&state, id, &end)).await;
        }));
    }
    let answer = ask(&state, id, &end);
    Some(Box::pin(async move { insist(&state, id, &end, answer).await }))
}

fn ask(state: &State, id: JobId, end: &End) -> StoreFuture<Changed> {
    state.store.change(id, Change::Finish(end.clone()))
}

async fn insist(state: &State, id: JobId, end: &End, mut answer: StoreFuture<Changed>) {
    let mut backoff = Backoff::new();
    loop {
        match answer.await {
            Ok(changed) => return told(id, &changed),
            Err(error) => {
                tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot store the end of a job, trying again");
                backoff.wait().await;
            }
        }
        answer = ask(state, id, end);
    }
}

fn told(id: JobId, changed: &Changed) {
    if let Changed::Applied(record) = changed {
        tracing::debug!(job = %id, status = ?record.status(), "ended");
    }
}
