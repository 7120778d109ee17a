//! When a request is offloaded: the policy of a route, the table of policies for a whole router, and
//! what is never offloaded whatever the policy.
//!
//! Knows requests and preferences; nothing of how a job is run.

mod exempt;
mod table;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;

pub(crate) use exempt::is_exempt;
pub use table::Policies;

use crate::wire::Preferences;

/// When a request is taken off its connection, and how long its job may run and is kept.
///
/// ```
/// use std::time::Duration;
/// use tower_offload::Policy;
///
/// let reports = Policy::after(Duration::from_millis(250)).timeout(Duration::from_secs(600)).name("reports");
/// # let _ = reports;
/// ```
#[derive(Debug, Clone)]
pub struct Policy {
    when: When,
    timeout: Option<Duration>,
    ttl: Option<Duration>,
    name: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
enum When {
    Never,
    After(Duration),
    Always,
    OnRequest(Duration),
}

/// How a request is watched, by its policy and its preferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) start: Start,
    /// The preference to confirm in the 202: `respond-async`, and the `wait` beside it.
    pub(crate) applied: Option<Option<Duration>>,
}

/// When the request is detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Once this budget has run out.
    Budget(Duration),
    /// After the first poll, if the handler is not ready then.
    FirstPoll,
    /// At once: the handler is spawned, or answered 503 where that cannot be.
    Spawned,
}

impl Policy {
    fn new(when: When) -> Self {
        Self { when, timeout: None, ttl: None, name: None }
    }

    /// Never offload. Ignores `Prefer`. The layer costs such a request next to nothing.
    pub fn never() -> Self {
        Self::new(When::Never)
    }

    /// Offload a request whose handler has not answered within `budget`, counted from where the
    /// handler first waits for something. A handler that had to wait for an upload which outlasts
    /// the budget has one more from the body's end.
    ///
    /// The client's `Prefer: respond-async` makes the budget zero, or what its `wait=N` says.
    ///
    /// # Panics
    /// If `budget` is zero; [`always`](Self::always) is the policy for that.
    pub fn after(budget: Duration) -> Self {
        Self::new(When::After(nonzero(budget, "a budget of zero: use Policy::always()")))
    }

    /// Offload every request at once. Where there is no room for another job, answer 503.
    pub fn always() -> Self {
        Self::new(When::Always)
    }

    /// Offload a request only if the client asks for it by `Prefer: respond-async`, after its
    /// `wait=N` or, where that is missing, after `budget`.
    ///
    /// # Panics
    /// If `budget` is zero.
    pub fn on_request(budget: Duration) -> Self {
        Self::new(When::OnRequest(nonzero(budget, "a budget of zero")))
    }

    /// How long a job of this route may run, counted from its 202; then it ends with a 504 problem.
    /// The default is the builder's `max_run_time`, which also bounds what is given here.
    ///
    /// # Panics
    /// If `limit` is zero.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(nonzero(limit, "a run-time limit of zero"));
        self
    }

    /// How long a job of this route is kept after its end. The default is the builder's `ttl`.
    ///
    /// # Panics
    /// If `ttl` is zero.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(nonzero(ttl, "a TTL of zero"));
        self
    }

    /// A name for this route's jobs in logs.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn is_never(&self) -> bool {
        matches!(self.when, When::Never)
    }

    pub(crate) fn run_time(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn kept_for(&self) -> Option<Duration> {
        self.ttl
    }

    pub(crate) fn label(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// How a request with these headers is watched; `None` if it is not. A `wait` of the client
    /// counts up to `max_wait`.
    pub(crate) fn plan(&self, headers: &HeaderMap, max_wait: Duration) -> Option<Plan> {
        let prefers = match self.when {
            When::Never => return None,
            _ => Preferences::of(headers),
        };
        let wait = prefers.wait.map(|wait| wait.min(max_wait));
        let (start, applied) = match (self.when, prefers.respond_async) {
            (When::Never, _) | (When::OnRequest(_), false) => return None,
            (When::After(budget), false) => (Start::Budget(budget), None),
            (When::Always, asked) => (Start::Spawned, asked.then_some(None)),
            (When::After(_), true) => (within(wait.unwrap_or_default()), Some(wait)),
            (When::OnRequest(budget), true) => (within(wait.unwrap_or(budget)), Some(wait)),
        };
        Some(Plan { start, applied })
    }
}

fn within(budget: Duration) -> Start {
    match budget {
        Duration::ZERO => Start::FirstPoll,
        budget => Start::Budget(budget),
    }
}

fn nonzero(duration: Duration, message: &str) -> Duration {
    assert!(!duration.is_zero(), "tower-offload: {message}");
    duration
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn policy_and_preference() {
        let never = Policy::never();
        let after = Policy::after(2 * S);
        let always = Policy::always();
        let asked = Policy::on_request(3 * S);
        let plan = |start, applied| Some(Plan { start, applied });
        for (policy, prefer, expected) in [
            (&never, "respond-async", None),
            (&after, "", plan(Start::Budget(2 * S), None)),
            (&after, "wait=9", plan(Start::Budget(2 * S), None)),
            (&after, "respond-async", plan(Start::FirstPoll, Some(None))),
            (&after, "respond-async, wait=0", plan(Start::FirstPoll, Some(Some(Duration::ZERO)))),
            (&after, "respond-async, wait=9", plan(Start::Budget(9 * S), Some(Some(9 * S)))),
            (&after, "respond-async, wait=99", plan(Start::Budget(30 * S), Some(Some(30 * S)))),
            (&always, "", plan(Start::Spawned, None)),
            (&always, "respond-async, wait=5", plan(Start::Spawned, Some(None))),
            (&asked, "", None),
            (&asked, "wait=5", None),
            (&asked, "respond-async", plan(Start::Budget(3 * S), Some(None))),
            (&asked, "respond-async, wait=5", plan(Start::Budget(5 * S), Some(Some(5 * S)))),
        ] {
            let mut headers = HeaderMap::new();
            if !prefer.is_empty() {
                headers.insert("prefer", prefer.parse().unwrap());
            }
            assert_eq!(policy.plan(&headers, 30 * S), expected, "{policy:?} {prefer}");
        }
    }

    #[test]
    fn zeros_are_refused() {
        for make in [
            || Policy::after(Duration::ZERO),
            || Policy::on_request(Duration::ZERO),
            || Policy::always().timeout(Duration::ZERO),
            || Policy::always().ttl(Duration::ZERO),
        ] {
            assert!(std::panic::catch_unwind(make).is_err());
        }
    }
}
