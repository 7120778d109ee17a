//! The layer's side of a watched body (`upload.rs`).

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Version, uri::PathAndQuery};
use tokio::task::coop::unconstrained;

/// The layer's side of a watched body. It does not name the body's type, so that the response
/// future need not either.
pub(super) struct Upload(Arc<dyn Control>);

/// What the layer may do with a watched body.
pub(super) trait Control: Send + Sync {
    fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing;
    fn is_over(&self) -> bool;
    fn unwatch(&self);
    fn target(&self) -> &PathAndQuery;
    fn version(&self) -> Version;
    fn arrived_while_awaited(&self) -> Option<u64>;
}

/// How a body stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// More may come.
    Open,
    /// It has ended, or the handler has dropped it: a detach touches no connection any more.
    Over {
        /// The handler had to wait for it, from when the layer first asked. Told once.
        late: bool,
    },
    /// It ended in an error. That is not an end: the request must not be answered as if it had
    /// arrived.
    Broken,
}

impl Upload {
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self(control)
    }

    /// How the body stands; while it is open, `cx` is woken when that changes. With `drain` the
    /// wire is read into the buffer, instead of by the handler, until the buffer is full: then
    /// `drain` becomes false, and the handler reads the wire itself again.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing {
        // Unconstrained: the handler, polled before it, may have used up the task's budget (tokio,
        // src/task/coop), and the wire would never be ready.
        let look = poll_fn(|cx| Poll::Ready(self.0.poll_over(cx, drain)));
        match pin!(unconstrained(look)).poll(cx) {
            Poll::Ready(standing) => standing,
            Poll::Pending => Standing::Open,
        }
    }

    /// Whether the body has ended, or was dropped by the handler. One that broke off is not over.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over()
    }

    pub(super) fn target(&self) -> &PathAndQuery {
        self.0.target()
    }

    /// Whether the request's connection is closed by `Connection: close`.
    pub(super) fn is_http1(&self) -> bool {
        self.0.version() <= Version::HTTP_11
    }

    /// How many bytes have come, if somebody waits for more: the layer, or the handler.
    pub(super) fn arrived_while_awaited(&self) -> Option<u64> {
        self.0.arrived_while_awaited()
    }
}

impl Drop for Upload {
    /// The layer watches no more: the handler reads the wire itself, and sees its end.
    fn drop(&mut self) {
        self.0.unwatch();
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}
