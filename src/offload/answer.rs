//! The answers that are the layer's own, beside the 202.

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use crate::{
    body::{ResponseBody, StatusBody},
    caught::log,
    error::ErrorKind,
    run::{Lane, Refusal},
    wire::{self, Problem},
};

/// The 503 of a request that can be no job, and cannot stay attached.
pub(super) fn refused(refusal: Refusal, lane: &Lane) -> Response<Bytes> {
    lane.refuse();
    let problem = match refusal {
        Refusal::Full(limit) => Problem::FULL.with_limit(limit),
        Refusal::Draining => Problem::DRAINING,
        Refusal::Store(error) => {
            log(|| {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot accept a job")
            });
            if error.kind() == ErrorKind::Corrupt {
                // The job that has the claim on the request's key cannot be read: the same request
                // would find the same again.
                return wire::problem_answer(Problem::CORRUPT, None);
            }
            Problem::STORE
        }
        // Only requests with a key claim one, and theirs follow the job that has it.
        Refusal::Claimed(_) => Problem::STORE,
    };
    wire::problem_answer(problem, Some(lane.retry_after()))
}

/// The 408 of a request whose body stalls. The rest of it is not waited for, so its connection can
/// carry no other request (RFC 9110, section 15.5.9).
pub(super) fn body_timed_out(is_http1: bool) -> Response<Bytes> {
    let mut answer = wire::problem_answer(Problem::BODY_TIMEOUT, None);
    if is_http1 {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// An answer without trailers.
pub(super) fn plain(answer: Response<Bytes>) -> Response<StatusBody> {
    answer.map(|data| StatusBody::new(data, None))
}

/// An answer of ours in the service's own type.
pub(super) fn made<ResB: ResponseBody>(answer: Response<StatusBody>) -> Response<ResB> {
    answer.map(StatusBody::made)
}
