//! When a request is offloaded: the policy of a route, the table of policies for a whole router, and
//! what is never offloaded whatever the policy.
//!
//! Knows requests and preferences; nothing of how a job is run.

mod durable;
mod exempt;
mod head;
mod table;

use std::{sync::Arc, time::Duration};

pub(crate) use exempt::Attached;
pub(crate) use head::Head;
pub use table::Policies;

use crate::{error::Error, wire::Preferences};

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
    concurrency: Option<usize>,
    queue: usize,
    finish_on_disconnect: bool,
    keys: Keys,
    /// How often a durable job may be begun.
    attempts: Option<u16>,
    /// How many durable jobs may wait.
    max_queued: Option<usize>,
    /// It was given a name by whoever made it.
    is_named: bool,
}

/// What a policy makes of an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Nothing: the handler may.
    Ignored,
    /// A request that has one is done once.
    Honoured,
    /// A request must have one.
    Required,
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

impl Start {
    /// How long a client waits that is not answered before it must be.
    pub(crate) fn budget(self) -> Duration {
        match self {
            Self::Budget(budget) => budget,
            Self::FirstPoll | Self::Spawned => Duration::ZERO,
        }
    }
}

impl Policy {
    fn new(when: When) -> Self {
        Self {
            when,
            timeout: None,
            ttl: None,
            name: None,
            concurrency: None,
            queue: 0,
            finish_on_disconnect: false,
            keys: Keys::Ignored,
            attempts: None,
            max_queued: None,
            is_named: false,
        }
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

    /// Offload every request at once, or when its body is over. Where there is no room for another job,
    /// answer 503; so also for a request that [can't be a job](crate#what-is-never-offloaded), which
    /// holds a permit while it is attached.
    ///
    /// Without a [queue](Self::queue) the handler begins while the request's body arrives, before it has
    /// a permit: see [`concurrency`](Self::concurrency).
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

    /// A name for this route's jobs: in logs, in [`Offload::stats`](crate::Offload::stats), and for
    /// what is learned of how long they take. Policies with the same name share both. Default: the
    /// pattern in a table of [`Policies`], elsewhere `default`.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self.is_named = true;
        self
    }

    /// How many jobs of this route may run at once, beside the builder's `max_running`, which bounds
    /// those of all routes together. Default: that one alone. At the limit a request waits in the
    /// [queue](Self::queue), if there is one; else it stays attached, or is answered 503 where it
    /// cannot.
    ///
    /// On an [`always`](Self::always) route a request that [can't be a
    /// job](crate#what-is-never-offloaded) counts too while it is attached, and is answered 503 at the
    /// limit. On other routes what is counted are jobs: a handler that has not outrun its budget is not
    /// one yet, and at the limit it stays attached. To bound those too, put a concurrency limit around
    /// the handler. An `always` route begins a handler while its request's body arrives; one that
    /// works before it has read that is bounded from the body's end on, or by a [queue](Self::queue)
    /// from its beginning.
    ///
    /// # Panics
    /// If `jobs` is zero; [`never`](Self::never) is the policy for that.
    #[must_use]
    pub fn concurrency(mut self, jobs: usize) -> Self {
        assert!(jobs > 0, "tower-offload: a concurrency of zero: use Policy::never()");
        self.concurrency = Some(jobs);
        self
    }

    /// How many requests of this route may wait, in order of arrival, while all of its places, or
    /// all of `max_running`, are taken. They wait as requests: nothing of the handler runs, and no
    /// readied service is held. Default: none. A full queue is answered 503.
    ///
    /// A request of a route with a queue is taken in whole before its handler begins, whether it
    /// has to wait or not, and is answered 413 past the builder's `max_body_bytes`: what a client may
    /// send does not hang on how busy the server is.
    ///
    /// It is for [`always`](Self::always), and for requests with a key of
    /// [`idempotent`](Self::idempotent) routes; the handlers of others have begun long before there
    /// is a job to queue.
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.queue = requests;
        self
    }

    /// Finishes the handler of a client that leaves before it has an answer, in a task, within the
    /// run-time limit and the places of the route; its response goes nowhere. Default: the work is
    /// dropped where it stands, as without the layer.
    ///
    /// It is done only where the request's body is over: no handler can finish with half a body. A
    /// server learns that a client has left when its connection is closed, be it for one direction
    /// only; a timeout *outside* of the layer counts too: it answers 408, and the work goes on.
    #[must_use]
    pub fn finish_on_disconnect(mut self) -> Self {
        self.finish_on_disconnect = true;
        self
    }

    /// Honours `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request with a key
    /// is done once, however often it is sent.
    ///
    /// Such a request is taken in whole (413 past `max_body_bytes`), and runs as a job from the
    /// start, which no disconnect drops; its client waits for it up to the budget, and is given its
    /// response, or 202. The same key with the same method, path, query and body gets that same job:
    /// its response once there is one. With another request under it the answer is 422. A key counts
    /// for one owner, and is kept as long as the job; a job that ended before its handler began lets
    /// go of it. Without a place for the job the answer is 503, on `after` routes too, since the work
    /// could be done twice if it stayed attached.
    ///
    /// Under axum's `nest` the layer sees a path without its prefix: give policies of routes with the
    /// same rest of a path different [names](Self::name), which are part of what must be the same.
    /// Otherwise a key that was used on one of them is answered with its response on the other.
    ///
    /// As with every job, the response is taken in whole before it is sent, and one larger than
    /// `max_outcome_bytes` is answered with a problem. A request with a key that [can't be a
    /// job](crate#what-is-never-offloaded) (an upgrade, gRPC, a `GET` with `Range`) is answered 400,
    /// since it could be done twice. One that an outer layer of the same `Offload` watches already is
    /// passed on with its key, for the handler to look at, so make *that* one's policy idempotent.
    ///
    /// The builder must have an `owner` function, since two users may choose the same key: without
    /// one, or on a policy of `never`, [`Offload::layer`](crate::Offload::layer) panics.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.keys = Keys::Honoured;
        self
    }

    /// As [`idempotent`](Self::idempotent), and a request without a key is answered 400. Safe
    /// methods (`GET`, say; RFC 9110, section 9.2.1) may do without.
    #[must_use]
    pub fn idempotency_required(mut self) -> Self {
        self.keys = Keys::Required;
        self
    }

    /// Whether this can work.
    pub(crate) fn check(&self, has_owners: bool) -> Result<(), Error> {
        let honours = self.keys != Keys::Ignored;
        let always = matches!(self.when, When::Always);
        Err(Error::config(if honours && !has_owners {
            "an idempotent policy wants an owner function (OffloadBuilder::owner): equal keys of two users must not meet"
        } else if honours && self.is_never() {
            "Policy::never() makes no jobs, so it can honour no Idempotency-Key"
        } else if self.queue > 0 && !always && !honours {
            "Policy::queue is for Policy::always(), and for idempotent policies: the handlers of others begin before there is a job to queue"
        } else {
            return Ok(());
        }))
    }

    pub(crate) fn keys(&self) -> Keys {
        self.keys
    }

    pub(crate) fn places(&self) -> Option<usize> {
        self.concurrency
    }

    /// How many may wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue
    }

    /// Whether its requests are jobs before their handlers begin, with or without a key.
    pub(crate) fn is_deferred(&self) -> bool {
        self.is_always() && (self.queue > 0 || self.attempts.is_some())
    }

    pub(crate) fn finishes(&self) -> bool {
        self.finish_on_disconnect
    }

    pub(crate) fn is_always(&self) -> bool {
        matches!(self.when, When::Always)
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

    /// Its name, where it has none yet.
    fn or_named(mut self, name: &str) -> Self {
        self.name.get_or_insert_with(|| name.into());
        self
    }

    /// When a request without preferences is detached; `None` if it is not.
    pub(crate) fn usual_start(&self) -> Option<Start> {
        match self.when {
            When::Never | When::OnRequest(_) => None,
            When::After(budget) => Some(Start::Budget(budget)),
            When::Always => Some(Start::Spawned),
        }
    }

    /// How a request with these preferences is watched; `None` if it is not. A `wait` of the client
    /// counts up to `max_wait`.
    pub(crate) fn plan(&self, prefers: Preferences, max_wait: Duration) -> Option<Plan> {
        let wait = prefers.wait.map(|wait| wait.min(max_wait));
        let (start, applied) = match (self.when, prefers.respond_async) {
            (_, false) => (self.usual_start()?, None),
            (When::Never, true) => return None,
            (When::Always, true) => (Start::Spawned, Some(None)),
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
    use http::{HeaderMap, HeaderName};

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
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static("prefer"),
                prefer.parse().unwrap(),
            )]);
            let plan = policy.plan(Preferences::of(&headers), 30 * S);
            assert_eq!(plan, expected, "{policy:?} {prefer}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (policy, has_owners, works) in [
            (Policy::after(S).idempotent(), true, true),
            (Policy::after(S).idempotent(), false, false),
            (Policy::always().idempotency_required(), false, false),
            (Policy::never().idempotent(), true, false),
            (Policy::always().queue(5), false, true),
            (Policy::after(S).queue(5), false, false),
            (Policy::on_request(S).queue(5), true, false),
            (Policy::after(S).queue(5).idempotent(), true, true),
            (Policy::never().concurrency(1), false, true),
        ] {
            assert_eq!(policy.check(has_owners).is_ok(), works, "{policy:?}");
        }
    }

    #[test]
    fn zeros_are_refused() {
        for make in [
            || Policy::after(Duration::ZERO),
            || Policy::on_request(Duration::ZERO),
            || Policy::always().timeout(Duration::ZERO),
            || Policy::always().ttl(Duration::ZERO),
            || Policy::always().concurrency(0),
        ] {
            assert!(std::panic::catch_unwind(make).is_err());
        }
    }
}
