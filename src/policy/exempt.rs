//! Requests that can't be jobs, on routes that promise something of every request.
//!
//! A client chooses its headers, so none of them may switch a guarantee off. What `head.rs` exempts
//! is therefore looked at once more where the policy promises a bound, a key or durability:
//!
//! | the policy | a request that can't be a job |
//! |---|---|
//! | `never`, `after`, `on_request` | attached, as all requests of these routes may be |
//! | `always` (with `concurrency`, `queue`, or `max_running` alone) | attached with a permit, or 503 |
//! | idempotent, and the request has a key | 400 |
//! | `idempotency_required`, no key, and the method is not safe | 400 |
//! | durable | 400, but for `OPTIONS`: attached freely |
//!
//! The permits of a durable route are for the jobs that its workers take. A preflight must not wait for
//! them, and has nothing to do with what the route promises: `OPTIONS` does no work (RFC 9110, section
//! 9.3.7).

use std::borrow::Cow;

use http::{Method, Request};

use super::{Keys, Policy};
use crate::wire::{self, Problem};

/// How a request that can't be a job is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attached {
    /// As if the layer were not there.
    Freely,
    /// With a permit, as one of the jobs that the route may run.
    WithPermit,
}

impl Policy {
    /// Whether a request that can't be a job is attached as if the layer were not there, whatever
    /// else its head says.
    pub(crate) fn promises_nothing(&self) -> bool {
        self.keys == Keys::Ignored && !self.is_always()
    }

    /// How a request that can't be a job is attached.
    ///
    /// # Errors
    /// The problem with which it is refused: attached, it would have its work done twice, or lost.
    pub(crate) fn attach<B>(&self, request: &Request<B>) -> Result<Attached, Problem> {
        if self.key(request)?.is_some() {
            return Err(Problem::CANNOT_BE_A_JOB.with_detail(
                "On this route a request with an Idempotency-Key is a job, which this one cannot be: it is an upgrade, gRPC, CONNECT, HEAD, OPTIONS, or a GET with Range, a condition or Accept: text/event-stream. Send it without one of the two.",
            ));
        }
        match self.attempts {
            Some(_) if *request.method() == Method::OPTIONS => Ok(Attached::Freely),
            Some(_) => Err(Problem::CANNOT_BE_A_JOB),
            None if self.is_always() => Ok(Attached::WithPermit),
            None => Ok(Attached::Freely),
        }
    }

    /// The request's `Idempotency-Key`, where the policy honours it.
    ///
    /// # Errors
    /// The problem with which the request is refused: a key that is malformed, or missing.
    pub(crate) fn key<B>(&self, request: &Request<B>) -> Result<Option<String>, Problem> {
        if self.keys == Keys::Ignored {
            return Ok(None);
        }
        match wire::idempotency_key(request.headers()) {
            Ok(None) if self.keys == Keys::Required && !request.method().is_safe() => {
                Err(Problem::KEY_MISSING)
            }
            Ok(key) => Ok(key.map(Cow::into_owned)),
            Err(bad) => Err(Problem::KEY_MALFORMED.with_detail(bad.detail())),
        }
    }
}
