//! Finishing the handler of a client that has left: from the drop of its response future.

use std::future::Future;

use tokio::runtime::Handle;
use tracing::Span;

use super::watch::Watch;
use crate::{caught::log, run::Left};

/// Where to finish a handler. Made at the call: a drop may be on a plain thread, and in any span.
#[derive(Debug)]
pub(super) struct Rescue {
    runtime: Handle,
    span: Span,
}

impl Rescue {
    /// `None` outside of a runtime, where nothing can be finished.
    pub(super) fn here() -> Option<Self> {
        Some(Self { runtime: Handle::try_current().ok()?, span: Span::current() })
    }

    pub(super) fn finish<F>(self, future: F, mut watch: Watch)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let was_refused = watch.was_refused();
        // Gives back the place of a job that was being registered, before it is asked for one. Where
        // a slow store has that job, or may have it, the place is free when it lets go of it.
        watch.detach();
        let run_time = watch.route.run_time();
        let left = Left { future, asked: watch.take_asked(), span: self.span, run_time };
        if let Err(refusal) = left.finish(watch.lane(), &self.runtime) {
            // In a drop, where a panic may end the process.
            log(|| tracing::debug!(?refusal, "no place to finish the work of a client that left"));
            if !was_refused {
                watch.lane().refuse();
            }
        }
    }
}
