//! From a handler's response to its outcome: head, body and trailers, within their limit.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{HeaderMap, Response, uri::PathAndQuery};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;

use crate::{
    caught::log,
    error::BoxError,
    job::{End, Failure, JobId, OutcomeWriter},
    wire,
};

pin_project! {
    /// A response that is being collected. A body that never ends is bounded by its bytes, and by
    /// the job's time.
    pub(super) struct Collect<B> {
        id: JobId,
        max: usize,
        // `None` once the outcome is made.
        writer: Option<OutcomeWriter>,
        #[pin]
        body: B,
    }
}

impl<B: Body> Collect<B> {
    /// # Errors
    /// If there is nothing to be collected.
    pub(super) fn new(
        id: JobId,
        response: Response<B>,
        target: &PathAndQuery,
        max: usize,
    ) -> Result<Self, Failure> {
        let (mut head, body) = response.into_parts();
        // An interim response (RFC 9110, section 15.2) is no answer, and no server sends it as one.
        if head.status.is_informational() {
            log(
                || tracing::error!(job = %id, status = %head.status, "the service answered with an interim response"),
            );
            return Err(Failure::ServiceError);
        }
        wire::prepare(&mut head, target);
        // What is known to be too large is not read at all, and no room is made for it.
        let least = body.size_hint().lower();
        let room = usize::try_from(least).ok().filter(|least| *least <= max);
        let writer = OutcomeWriter::new(&head, room.ok_or(Failure::TooLarge)?);
        if is_too_large(&writer, least, max) {
            return Err(Failure::TooLarge);
        }
        Ok(Self { id, max, writer: Some(writer), body })
    }
}

fn is_too_large(writer: &OutcomeWriter, more: u64, max: usize) -> bool {
    more > (max as u64).saturating_sub(writer.len() as u64)
}

impl<B> Future for Collect<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let mut this = self.project();
        #[expect(clippy::expect_used, reason = "as every future")]
        let writer = this.writer.as_mut().expect("polled after it was ready");
        let mut trailers = None;
        while !this.body.is_end_stream() {
            // A body that is always ready, with empty frames even, must not keep its thread from
            // looking at the clock.
            let budget = ready!(poll_proceed(cx));
            let frame = ready!(this.body.as_mut().poll_frame(cx));
            budget.made_progress();
            match frame.map(|frame| frame.map(|frame| write(writer, frame, *this.max))) {
                None => break,
                Some(Ok(Ok(None))) => {}
                // They come last (http-body, src/frame.rs); whatever followed would be no part of it.
                Some(Ok(Ok(Some(last)))) => {
                    trailers = Some(last);
                    break;
                }
                Some(Ok(Err(failure))) => return Poll::Ready(End::Failure(failure)),
                Some(Err(error)) => {
                    let error: BoxError = error.into();
                    log(
                        || tracing::error!(job = %this.id, error = &*error as &dyn std::error::Error, "the response's body broke off"),
                    );
                    return Poll::Ready(End::Failure(Failure::ServiceError));
                }
            }
        }
        Poll::Ready(finished(this.writer.take(), trailers.as_ref(), *this.max))
    }
}

/// Writes a frame of data; gives a frame of trailers back.
fn write<D: Buf>(
    writer: &mut OutcomeWriter,
    frame: Frame<D>,
    max: usize,
) -> Result<Option<HeaderMap>, Failure> {
    let mut data = match frame.into_data() {
        Ok(data) => data,
        // Another kind of frame, should there be one some day, ends it too.
        Err(frame) => return Ok(Some(frame.into_trailers().unwrap_or_default())),
    };
    if is_too_large(writer, data.remaining() as u64, max) {
        return Err(Failure::TooLarge);
    }
    while data.has_remaining() {
        let chunk = data.chunk();
        writer.push(chunk);
        let len = chunk.len();
        data.advance(len);
    }
    Ok(None)
}

fn finished(writer: Option<OutcomeWriter>, trailers: Option<&HeaderMap>, max: usize) -> End {
    let outcome = writer.map(|writer| writer.finish(trailers));
    match outcome.filter(|outcome| outcome.as_bytes().len() <= max) {
        Some(outcome) => End::Response(outcome),
        None => End::Failure(Failure::TooLarge),
    }
}
