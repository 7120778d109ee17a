//! Durable policies: what they ask for, and where they can work.

use super::Policy;
use crate::error::Error;

/// A tenth of what may wait in all (`run/limits.rs`).
const MAX_QUEUED: usize = 10_000;

impl Policy {
    /// Keeps the request itself in the store before the 202, so that the job outlives its process: any
    /// process that [serves durable jobs](crate::Offload::serve_durable) takes it, and when that one
    /// is lost or shut down, another does, three times in all
    /// ([`max_attempts`](Self::max_attempts)).
    ///
    /// **The work is done at least once**: a process may be lost after the work is done and before
    /// that is written. So the handler must bear to be run again; [`Job::attempt`](crate::Job::attempt)
    /// tells it. A handler that answers, fails or panics has ended its job, and is not run again.
    ///
    /// A request that [can't be a job](crate#what-is-never-offloaded) is answered 400: no header makes a
    /// request of this route less than durable. `OPTIONS` stays attached and needs no permit, so that
    /// preflights are answered while all permits are taken by jobs.
    ///
    /// The request is taken in whole (413 past `max_body_bytes`), and kept with its method, URI, body
    /// and those headers that the builder's [`seal`](crate::OffloadBuilder::seal) leaves. It is run
    /// through the whole service, so this is for [`always`](Self::always) in a table of [`Policies`](super::Policies),
    /// around the whole app: a route's own layer would be given a request without its path's
    /// parameters. It has a [name](Self::name) of its own, by which processes of all versions know
    /// it, and a store that keeps requests; otherwise [`Offload::layer`](crate::Offload::layer)
    /// panics. [`concurrency`](Self::concurrency) bounds what one process runs at once; those that
    /// wait do so in the store, and their `queue_position`, among all processes, is not told.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.attempts = self.attempts.or(Some(3));
        self
    }

    /// How often a job of a [durable](Self::durable) route may be begun. Default: 3, so that one
    /// request that takes its process with it does so to no more than that.
    ///
    /// # Panics
    /// If `attempts` is zero.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u16) -> Self {
        assert!(attempts > 0, "tower-offload: no attempts at all: use Policy::never()");
        self.attempts = Some(attempts);
        self
    }

    /// How many jobs of a [durable](Self::durable) route may wait in the store, those of all processes
    /// together. Past that a request is answered 503 with a problem that names `max_queued`; the
    /// builder's [`max_queued`](crate::OffloadBuilder::max_queued) bounds all routes. A job that the store
    /// may have, and whose client was answered that it has not, counts until the store has let go of it.
    /// Default: 10,000,
    /// a tenth of that, so that one route cannot take all the room; with 10 KiB for each request
    /// they are 100 MiB of the store.
    ///
    /// Each process goes by the store's count, which is a second old at most, and what it has
    /// enqueued since; at the limit it counts again before it refuses. So one process is exact, and
    /// several go over the limit by what they accept within a second.
    ///
    /// # Panics
    /// If `jobs` is zero.
    #[must_use]
    pub fn max_queued(mut self, jobs: usize) -> Self {
        assert!(jobs > 0, "tower-offload: a max_queued of zero: use Policy::never()");
        self.max_queued = Some(jobs);
        self
    }

    /// Whether this can work, beside all else.
    pub(crate) fn check_durable(&self, in_table: bool, keeps_requests: bool) -> Result<(), Error> {
        Err(Error::config(if self.attempts.is_none() {
            match self.max_queued {
                None => return Ok(()),
                Some(_) => {
                    "Policy::max_queued is for Policy::durable(): Policy::queue is for others"
                }
            }
        } else if !self.is_always() {
            "Policy::durable is for Policy::always()"
        } else if !in_table {
            "Policy::durable is for a table of Policies around the whole app: a request that is run again through a route's own layer has no path parameters"
        } else if !self.is_named {
            "a durable policy has a name of its own (Policy::name), by which every process knows its jobs"
        } else if self.queue > 0 {
            "the jobs of a durable policy wait in the store, so it has no Policy::queue"
        } else if !keeps_requests {
            "a durable policy wants a store that keeps requests (Store::keeps_requests)"
        } else {
            return Ok(());
        }))
    }

    /// How many of its durable jobs may wait.
    pub(crate) fn max_waiting_in_store(&self) -> usize {
        self.max_queued.unwrap_or(MAX_QUEUED)
    }

    /// How often a durable job may be begun; `None` where the policy is not durable.
    pub(crate) fn attempts(&self) -> Option<u16> {
        self.attempts
    }
}
