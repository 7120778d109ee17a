//! From a handler's response to its outcome: head, body and trailers, within their limit.

use std::pin::pin;

use bytes::Buf;
use http::{HeaderMap, Response, uri::PathAndQuery};
use http_body::Body;
use http_body_util::BodyExt;

use crate::{
    error::BoxError,
    job::{End, Failure, JobId, OutcomeWriter},
    wire,
};

/// Collects the response. A body that never ends is bounded by its bytes, and by the job's time.
pub(super) async fn collect<B>(
    id: JobId,
    response: Response<B>,
    target: Option<&PathAndQuery>,
    max: usize,
) -> End
where
    B: Body<Error: Into<BoxError>>,
{
    let (mut head, body) = response.into_parts();
    // An interim response (RFC 9110, section 15.2) is no answer, and no server sends it as one.
    if head.status.is_informational() {
        tracing::error!(job = %id, status = %head.status, "the service answered with an interim response");
        return End::Failure(Failure::ServiceError);
    }
    wire::prepare(&mut head, target);
    let mut body = pin!(body);
    let mut writer = OutcomeWriter::new(&head);
    let mut trailers: Option<HeaderMap> = None;
    // What is known to be too large is not read at all.
    let too_large = |len: usize, more: u64| more > (max as u64).saturating_sub(len as u64);
    if too_large(writer.len(), body.size_hint().lower()) {
        return End::Failure(Failure::TooLarge);
    }
    loop {
        // A body that is always ready, with empty frames even, must not keep its thread from looking
        // at the clock.
        tokio::task::coop::consume_budget().await;
        let Some(frame) = body.frame().await else { break };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                let error: BoxError = error.into();
                tracing::error!(job = %id, error = &*error as &dyn std::error::Error, "the response's body broke off");
                return End::Failure(Failure::ServiceError);
            }
        };
        match frame.into_data() {
            Ok(mut data) => {
                if too_large(writer.len(), data.remaining() as u64) {
                    return End::Failure(Failure::TooLarge);
                }
                while data.has_remaining() {
                    let chunk = data.chunk();
                    writer.push(chunk);
                    let len = chunk.len();
                    data.advance(len);
                }
            }
            // They come last (http-body, src/frame.rs); whatever followed would be no part of it.
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                break;
            }
        }
    }
    let outcome = writer.finish(trailers.as_ref());
    if outcome.as_bytes().len() > max {
        return End::Failure(Failure::TooLarge);
    }
    End::Response(outcome)
}
