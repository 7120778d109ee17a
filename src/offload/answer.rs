//! The answers that are the layer's own, beside the 202.

use bytes::Bytes;
use http::Response;

use crate::{
    body::{ResponseBody, StatusBody},
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
            tracing::error!(error = &error as &dyn std::error::Error, "cannot accept a job");
            Problem::STORE
        }
        // Only requests with a key claim one, and theirs follow the job that has it.
        Refusal::Claimed(_) => Problem::STORE,
    };
    wire::problem_answer(problem, Some(lane.retry_after()))
}

/// An answer without trailers.
pub(super) fn plain(answer: Response<Bytes>) -> Response<StatusBody> {
    answer.map(|data| StatusBody::new(data, None))
}

/// An answer of ours in the service's own type.
pub(super) fn made<ResB: ResponseBody>(answer: Response<StatusBody>) -> Response<ResB> {
    answer.map(StatusBody::made)
}
