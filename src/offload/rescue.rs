//! Finishing the handler of a client that has left: from the drop of its response future.

use std::future::Future;

use http::Response;
use tokio::runtime::Handle;
use tracing::Span;

use super::watch::Watch;
use crate::run::Left;

/// How to finish a handler. Made at the call: a drop may be on a plain thread, and knows nothing of
/// what the handler's future is.
pub(super) struct Rescue<F> {
    runtime: Handle,
    finish: fn(F, Watch, &Handle),
}

impl<F, B, E> Rescue<F>
where
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Send,
    E: Send,
{
    /// `None` outside of a runtime, where nothing can be finished.
    pub(super) fn here() -> Option<Box<Self>> {
        let runtime = Handle::try_current().ok()?;
        Some(Box::new(Self { runtime, finish }))
    }
}

impl<F> Rescue<F> {
    pub(super) fn finish(self, handler: F, watch: Watch) {
        (self.finish)(handler, watch, &self.runtime);
    }
}

fn finish<F>(future: F, mut watch: Watch, runtime: &Handle)
where
    F: Future<Output: Send> + Send + 'static,
{
    let was_refused = watch.was_refused();
    // Gives back the place of a job that was being registered, before it is asked for one. Where a
    // slow store has that job, or may have it, the place is free when it lets go of it.
    watch.detach();
    let left = Left {
        future,
        asked: std::mem::take(&mut watch.asked),
        span: std::mem::replace(&mut watch.span, Span::none()),
        run_time: watch.shared.run_time(watch.policy),
    };
    if let Err(refusal) = left.finish(watch.lane(), runtime) {
        tracing::debug!(?refusal, "no place to finish the work of a client that left");
        if !was_refused {
            watch.lane().refuse();
        }
    }
}
