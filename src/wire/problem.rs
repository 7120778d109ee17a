//! Problems (RFC 9457): one `type` for each thing that can go wrong, and no internals in `detail`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::document::{NO_STORE, retry_after};
use crate::job::{Failure, Record, Status};

/// A problem as it stands in a response, or as `error` in a status document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    r#type: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: &'static str,
    /// The builder method of the limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

/// The `type` URIs: names, not addresses (RFC 9457, section 3.1.1 allows either).
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $kind:literal, $status:ident, $title:literal, $detail:literal;)*) => {
        impl Problem {
            $($(#[$doc])* pub(crate) const $name: Self = Self {
                r#type: concat!("urn:tower-offload:problem:", $kind),
                title: $title,
                status: StatusCode::$status,
                detail: $detail,
                limit: None,
            };)*
        }
    };
}

problems! {
    /// An id that is unknown, malformed, expired, or of another owner: the same bytes for all.
    UNKNOWN: "unknown-job", NOT_FOUND, "Unknown job",
        "There is no job at this URL. It may have expired; take the URL from the Location of a 202 answer.";
    METHOD: "method-not-allowed", METHOD_NOT_ALLOWED, "Method not allowed",
        "Use GET or HEAD to ask for the job, DELETE to cancel it or to remove its result.";
    CANCELED: "canceled", GONE, "Canceled",
        "The job was canceled before it had a response.";
    REMOVED: "removed", GONE, "Result removed",
        "The result of this job was removed on request.";
    PANICKED: "panicked", INTERNAL_SERVER_ERROR, "The work failed",
        "The handler of the request broke off. Its log has the reason; the request may be sent again, under a new Idempotency-Key if it had one.";
    SERVICE_ERROR: "service-error", INTERNAL_SERVER_ERROR, "The work failed",
        "The service gave no complete response to the request. Its log has the reason; the request may be sent again, under a new Idempotency-Key if it had one.";
    TIMED_OUT: "timed-out", GATEWAY_TIMEOUT, "The work took too long",
        "The job reached its run-time limit and was stopped.";
    TOO_LARGE: "outcome-too-large", INTERNAL_SERVER_ERROR, "The response is too large",
        "The handler's response was larger than an outcome may be, and was not kept.";
    INTERRUPTED: "interrupted", SERVICE_UNAVAILABLE, "The work was interrupted",
        "The server shut down before the job was finished. The request may be sent again, under a new Idempotency-Key if it had one.";
    NODE_LOST: "node-lost", SERVICE_UNAVAILABLE, "The work was lost",
        "The server that ran the job was lost before the job was finished; some of the work may be done. The request may be sent again, under a new Idempotency-Key if it had one.";
    CORRUPT: "corrupt", INTERNAL_SERVER_ERROR, "The job cannot be read",
        "What the server has stored of this job is damaged, and cannot be read any more; some of the work may be done. The request may be sent again, under a new Idempotency-Key if it had one.";
    FULL: "limit-reached", SERVICE_UNAVAILABLE, "No room for another job",
        "The server has as many jobs as it may have. Send the request again after the time in Retry-After.";
    NO_OWNER: "no-owner", UNAUTHORIZED, "Nobody to keep a job for",
        "The server cannot tell who sends this request, so it could keep no job for you. Send your credentials along.";
    BODY_TOO_LARGE: "body-too-large", PAYLOAD_TOO_LARGE, "The request's body is too large",
        "On this route a request is taken in whole before its work begins, and this one is larger than that allows. Send less, or in parts.";
    BODY_BROKEN: "body-broken", BAD_REQUEST, "The request's body broke off",
        "The request's body ended before it was complete, and nothing was done. Send the request again.";
    BODY_TIMEOUT: "body-timeout", REQUEST_TIMEOUT, "The request's body did not arrive in time",
        "The rest of the request's body did not arrive in time, and the request was given up. Send it again.";
    /// Told in place of an answer that would bypass what the route promises.
    CANNOT_BE_A_JOB: "cannot-be-a-job", BAD_REQUEST, "The request cannot be a job",
        "On this route every request is kept in the store before it is answered, and this one cannot be: it is an upgrade, gRPC, CONNECT, HEAD, or a GET with Range, a condition or Accept: text/event-stream. Send it as a plain request.";
    KEY_MISSING: "idempotency-key-missing", BAD_REQUEST, "Idempotency-Key is missing",
        "This route wants an Idempotency-Key header: a string that is new for each piece of work, and the same when a request is sent again.";
    KEY_MALFORMED: "idempotency-key-malformed", BAD_REQUEST, "Idempotency-Key is malformed",
        "Send one Idempotency-Key header with a string of 1 to 255 visible characters, in double quotes.";
    KEY_REUSED: "idempotency-key-reused", UNPROCESSABLE_ENTITY, "Idempotency-Key was used before",
        "Another request was sent under this Idempotency-Key, with another method, path or body. Send this one under a new key.";
    DRAINING: "shutting-down", SERVICE_UNAVAILABLE, "Shutting down",
        "The server is shutting down and begins no new jobs. Send the request again after the time in Retry-After.";
    STORE: "store-unavailable", SERVICE_UNAVAILABLE, "The job store does not answer",
        "The server cannot reach the place where jobs are kept. Send the request again after the time in Retry-After.";
}

impl Problem {
    /// The problem, with what was wrong with this request.
    pub(crate) fn with_detail(mut self, detail: &'static str) -> Self {
        self.detail = detail;
        self
    }

    /// The problem, naming the limit that was reached.
    pub(crate) fn with_limit(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panicked => Self::PANICKED,
            Failure::ServiceError => Self::SERVICE_ERROR,
            Failure::TimedOut => Self::TIMED_OUT,
            Failure::TooLarge => Self::TOO_LARGE,
            Failure::Interrupted => Self::INTERRUPTED,
            Failure::NodeLost => Self::NODE_LOST,
            Failure::Corrupt => Self::CORRUPT,
        }
    }
}

/// The problem of a job that ended without a response.
pub(crate) fn of_record(record: &Record) -> Option<Problem> {
    match record.status() {
        Status::Canceled => Some(Problem::CANCELED),
        _ => record.failure().map(Problem::from),
    }
}

/// A response that says no more than the problem, with `Retry-After` where trying again may help.
pub(crate) fn answer(problem: Problem, retry: Option<Duration>) -> Response<Bytes> {
    // Serializing plain strings and numbers into memory cannot fail.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = problem.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    if let Some(retry) = retry {
        headers.insert(header::RETRY_AFTER, retry_after(retry));
    }
    response
}
