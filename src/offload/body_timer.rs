//! How long a request's body may take: a client that stalls must not hold buffered bytes or a permit.
//!
//! The time counts only while somebody waits for the client. A handler that does not read its body
//! makes a client wait, not the other way round.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{deadlines::Deadline, run::State};

/// Watches the arrival of one body.
#[derive(Debug)]
pub(super) struct BodyTimer {
    state: Arc<State>,
    /// When it is over in any case; `None` for never.
    end: Option<Instant>,
    /// The bytes that had come when it was looked at last.
    seen: u64,
    /// Since when nothing has come.
    since: Instant,
    armed: Option<(Deadline, Instant)>,
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// Nothing came for the builder's `body_idle_timeout`.
    Idle,
    /// The time in all.
    End,
}

impl BodyTimer {
    /// A timer that also expires `within` that time in all.
    pub(super) fn new(state: &Arc<State>, within: Option<Duration>) -> Self {
        let now = Instant::now();
        let end = within.and_then(|within| now.checked_add(within));
        Self { state: Arc::clone(state), end, seen: 0, since: now, armed: None }
    }

    /// Ready when the body has taken too long. `arrived` is how many bytes have come while somebody
    /// waits for more, and `None` while nobody does. Call it in every poll.
    pub(super) fn poll(&mut self, arrived: Option<u64>, cx: &Context<'_>) -> Poll<Expired> {
        let now = Instant::now();
        match arrived {
            Some(bytes) if bytes == self.seen => {}
            other => {
                self.seen = other.unwrap_or(self.seen);
                self.since = now;
            }
        }
        let idle = self.since.checked_add(self.state.limits.body_idle_timeout);
        let has_passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if has_passed(self.end) {
            return Poll::Ready(Expired::End);
        }
        if has_passed(idle) {
            return Poll::Ready(Expired::Idle);
        }
        if let Some(next) = idle.into_iter().chain(self.end).min() {
            self.wake_at(next, now, cx);
        }
        Poll::Pending
    }

    /// Wakes the task then, or before. A wake that comes too early costs less than to move the
    /// deadline with each frame.
    fn wake_at(&mut self, at: Instant, now: Instant, cx: &Context<'_>) {
        let deadlines = &self.state.deadlines;
        if let Some((deadline, armed_for)) = self.armed {
            if armed_for <= at && !deadlines.poll(deadline, cx.waker()) {
                return;
            }
            deadlines.release(deadline);
        }
        self.armed = Some((deadlines.arm(at - now, cx.waker()), at));
    }
}

impl Drop for BodyTimer {
    fn drop(&mut self) {
        if let Some((deadline, _)) = self.armed.take() {
            self.state.deadlines.release(deadline);
        }
    }
}
