//! What must reach the store from a `Drop`, where nothing can be awaited.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::runtime::Handle;

use super::{Admission, Backoff};
use crate::{
    job::JobId,
    store::{Store, StoreFuture},
};

/// Asks the store, again and again until it does what it is asked. The place is given back then.
///
/// A runtime that shuts down begins no more tasks: there the store is asked once. The one in memory
/// is done with that; a shared one has other means to notice a lost node.
pub(super) fn insist<T: Send + 'static>(
    runtime: &Handle,
    admission: Admission,
    id: JobId,
    ask: impl Fn(&dyn Store) -> StoreFuture<T> + Send + 'static,
) {
    // The drop may be on a plain thread, and a store may need its runtime.
    let _entered = runtime.enter();
    let mut answer = ask(&*admission.lane().state.store);
    // The store in memory is done at the first poll, and no task is needed.
    let mut cx = Context::from_waker(Waker::noop());
    let failed = match Pin::new(&mut answer).poll(&mut cx) {
        Poll::Ready(Ok(_)) => return,
        Poll::Ready(Err(error)) => Some(error),
        Poll::Pending => None,
    };
    runtime.spawn(async move {
        let mut answer = match failed {
            Some(error) => Err(error),
            None => answer.await,
        };
        let mut backoff = Backoff::new();
        while let Err(error) = answer {
            tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "the store does not let go of a job, trying again");
            backoff.wait().await;
            answer = ask(&*admission.lane().state.store).await;
        }
    });
}
