//! What must reach the store, however often it fails; also from a `Drop`, where nothing can be
//! awaited.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::runtime::Handle;

use super::{Admission, Backoff};
use crate::{
    caught::log,
    error::Error,
    job::JobId,
    store::{Store, StoreFuture},
};

/// What is logged of a store that does not.
pub(super) const NOT_LET_GO: &str = "the store does not let go of a job";

/// Asks the store, again and again until it does what it is asked, or never will. The place is given
/// back then.
///
/// A runtime that shuts down begins no more tasks: there the store is asked once. The one in memory
/// is done with that; a shared one has other means to notice a lost node.
pub(super) fn insist<T: Send + 'static>(
    runtime: &Handle,
    admission: Admission,
    id: JobId,
    ask: impl Fn(&Arc<dyn Store>) -> StoreFuture<T> + Send + 'static,
) {
    // The drop may be on a plain thread, and a store may need its runtime.
    let _entered = runtime.enter();
    let mut answer = ask(&admission.lane().state.store);
    // The store in memory is done at the first poll, and no task is needed.
    let mut cx = Context::from_waker(Waker::noop());
    let failed = match Pin::new(&mut answer).poll(&mut cx) {
        Poll::Ready(Ok(_)) => return,
        Poll::Ready(Err(error)) => Some(error),
        Poll::Pending => None,
    };
    runtime.spawn(async move {
        let answer = match failed {
            Some(error) => Err(error),
            None => answer.await,
        };
        // It has the place, and gives it back when the store has done it.
        let again = move || ask(&admission.lane().state.store);
        let _ = until_done(id, NOT_LET_GO, answer, again).await;
    });
}

/// Asks the store again and again, from this answer on, until it does what it is asked.
///
/// # Errors
/// One that can only come again ([`Error::is_final`]). It is logged here.
pub(super) async fn until_done<T>(
    id: JobId,
    failed: &str,
    mut answer: Result<T, Error>,
    ask: impl Fn() -> StoreFuture<T>,
) -> Result<T, Error> {
    let mut backoff = Backoff::new();
    let mut is_first = true;
    loop {
        match answer {
            Err(error) if !error.is_final() => {
                let error = &error as &dyn std::error::Error;
                // Once for each job: there may be thousands while a store is away.
                if std::mem::take(&mut is_first) {
                    log(|| tracing::warn!(job = %id, error, "{failed}, trying again"));
                } else {
                    log(|| tracing::debug!(job = %id, error, "{failed}, trying again"));
                }
            }
            Err(error) => {
                log(
                    || tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "{failed}, giving up"),
                );
                return Err(error);
            }
            done => return done,
        }
        backoff.wait().await;
        answer = ask().await;
    }
}
