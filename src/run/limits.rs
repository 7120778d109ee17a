//! The limits, their defaults, and the reason for each number.

use std::time::Duration;

use crate::error::Error;

/// What a client is told to wait between two polls before anything is known of the route's jobs. A
/// poll costs a few microseconds; a second is the least that `Retry-After` can say, and keeps a
/// person who waits from noticing the interval.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All limits of an `Offload`. Each has a builder method of its name.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// 128: with 4 MiB for each outcome they take half of the 1 GiB of `max_stored_bytes`, which
    /// leaves the other half for outcomes that are kept.
    pub(crate) max_running: usize,
    /// 16,384: each is a connection, of which a process seldom has more; about 1 KiB each.
    pub(crate) max_waiters: usize,
    /// 30 s, under the 60 s after which common proxies give up on an answer.
    pub(crate) max_wait: Duration,
    /// 2 MiB, as axum's own default for a body that a handler takes in whole: what is larger is
    /// read as a stream, and a stream stays attached until its end.
    pub(crate) max_body_bytes: usize,
    /// 128 MiB: 64 bodies of the largest size at once.
    pub(crate) max_buffered_bytes: usize,
    /// 60 s: longer than a phone is without a network in a tunnel, and what common servers and
    /// proxies wait too (nginx, `client_body_timeout`).
    pub(crate) body_idle_timeout: Duration,
    /// 5 minutes: `max_body_bytes` at 7 KB a second.
    pub(crate) body_timeout: Duration,
    /// 100,000: with 10 KiB for each request 1 GiB of the store, as much as `max_stored_bytes` gives
    /// the one in memory.
    pub(crate) max_queued: usize,
    /// 4 MiB: above nearly every answer of an API; what is larger belongs into object storage, with
    /// a link in the answer.
    pub(crate) max_outcome_bytes: usize,
    /// 1 hour: a job that has run for longer is more likely stuck than slow.
    pub(crate) max_run_time: Duration,
    /// 100 ms: faster than a person sees, slow enough for a store that takes a millisecond a write.
    pub(crate) progress_interval: Duration,
    /// 1 hour: longer than a client's network, or its restart, takes to come back.
    pub(crate) ttl: Duration,
}

/// 1 GiB for the store in memory.
pub(crate) const MAX_STORED_BYTES: usize = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_running: 128,
            max_waiters: 16_384,
            max_wait: Duration::from_secs(30),
            max_body_bytes: 2 << 20,
            max_buffered_bytes: 128 << 20,
            body_idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(300),
            max_queued: 100_000,
            max_outcome_bytes: 4 << 20,
            max_run_time: Duration::from_secs(3600),
            progress_interval: Duration::from_millis(100),
            ttl: Duration::from_secs(3600),
        }
    }
}

impl Limits {
    /// # Errors
    /// If a limit is zero, naming its builder method.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let numbers = [
            (self.max_running, "max_running"),
            (self.max_waiters, "max_waiters"),
            (self.max_body_bytes, "max_body_bytes"),
            (self.max_buffered_bytes, "max_buffered_bytes"),
            (self.max_queued, "max_queued"),
            (self.max_outcome_bytes, "max_outcome_bytes"),
        ];
        let times = [
            (self.body_idle_timeout, "body_idle_timeout"),
            (self.body_timeout, "body_timeout"),
            (self.max_wait, "max_wait"),
            (self.max_run_time, "max_run_time"),
            (self.progress_interval, "progress_interval"),
            (self.ttl, "ttl"),
        ];
        let zero_number = numbers.iter().find(|(number, _)| *number == 0).map(|(_, name)| name);
        let zero_time = times.iter().find(|(time, _)| time.is_zero()).map(|(_, name)| name);
        match zero_number.or(zero_time) {
            None => Ok(()),
            Some(name) => {
                Err(Error::config(format!("{name} is zero; leave it out for its default")))
            }
        }
    }
}
