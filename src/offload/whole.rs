//! A request's body, taken in whole before its handler begins.

use std::{
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::{body::RequestBody, run::State, wire::Problem};

/// A body that is there. Its bytes count as buffered until its reader has them, or drops it.
#[derive(Debug)]
pub(super) struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
    counted: Counted,
}

/// Bytes that count as buffered.
#[derive(Debug)]
struct Counted {
    state: Arc<State>,
    bytes: usize,
}

impl Counted {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.state.body_bytes.add(bytes);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.state.body_bytes.remove(self.bytes);
    }
}

impl Whole {
    /// Takes in this body. What is known to be too large is not begun: for hyper, reading means to
    /// send `100 Continue`.
    pub(super) async fn of<B: RequestBody>(
        mut body: B,
        state: &Arc<State>,
    ) -> Result<Self, Problem> {
        let max = state.limits.max_body_bytes;
        let fits = |have: usize, more: u64| more <= max.saturating_sub(have) as u64;
        let mut counted = Counted { state: Arc::clone(state), bytes: 0 };
        let mut data = Vec::new();
        let mut trailers = None;
        if !fits(0, body.size_hint().lower()) {
            return Err(Problem::BODY_TOO_LARGE.with_limit("max_body_bytes"));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::BODY_BROKEN)?;
            match frame.into_data() {
                Ok(more) => {
                    if !fits(data.len(), more.len() as u64) {
                        return Err(Problem::BODY_TOO_LARGE.with_limit("max_body_bytes"));
                    }
                    if !state.body_bytes.has_room() {
                        return Err(Problem::FULL.with_limit("max_buffered_bytes"));
                    }
                    counted.add(more.len());
                    data.extend_from_slice(&more);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(Self { data: data.into(), trailers, counted })
    }

    /// One that was kept elsewhere.
    pub(super) fn kept(data: Bytes, state: &Arc<State>) -> Self {
        let mut counted = Counted { state: Arc::clone(state), bytes: 0 };
        counted.add(data.len());
        Self { data, trailers: None, counted }
    }

    pub(super) fn data(&self) -> &Bytes {
        &self.data
    }

    /// The body for the handler, in the type that it had.
    pub(super) fn into_body<B: RequestBody>(self) -> B {
        B::from_watched(Unread { whole: self, error: PhantomData })
    }
}

/// The body as the handler reads it.
struct Unread<E> {
    whole: Whole,
    error: PhantomData<fn() -> E>,
}

impl<E> Body for Unread<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        let whole = &mut self.whole;
        if !whole.data.is_empty() {
            let counted = &mut whole.counted;
            counted.state.body_bytes.remove(std::mem::take(&mut counted.bytes));
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut whole.data)))));
        }
        Poll::Ready(whole.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.whole.data.is_empty() && self.whole.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.whole.data.len() as u64)
    }
}
