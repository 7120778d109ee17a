//! Writing the end of a job, until the store has it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{State, insist::until_done, report::report_last};
use crate::{
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
            told(id, &until_done(id, "cannot store the end of a job", answer, ask).await);
        }));
    }
    let state = Arc::clone(state);
    Some(Box::pin(async move {
        if let Some(said) = said {
            report_last(&state, id, &said).await;
        }
        let ask = || state.store.change(id, Change::Finish(end.clone()));
        told(id, &until_done(id, "cannot store the end of a job", ask().await, ask).await);
    }))
}

fn told(id: JobId, changed: &Changed) {
    if let Changed::Applied(record) = changed {
        tracing::debug!(job = %id, status = ?record.status(), "ended");
    }
}
