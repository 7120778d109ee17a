//! A request that is taken in whole before its handler begins, within its time.

use std::{
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use http_body::{Body, Frame, SizeHint};

use super::body_timer::BodyTimer;
use crate::{
    body::RequestBody,
    run::{BodyBytes, State},
    wire::Problem,
};

/// A body that is there. Its bytes count as buffered until its reader has them, or drops it.
#[derive(Debug)]
pub(super) struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
    counted: Counted,
}

/// Bytes that count as buffered, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    state: Arc<State>,
    bytes: usize,
}

impl Counted {
    /// Those of a head, where there is room for more.
    pub(super) fn head(head: &Parts, state: &Arc<State>) -> Result<Self, Problem> {
        if !state.body_bytes.has_room() {
            return Err(Problem::FULL.with_limit("max_buffered_bytes"));
        }
        let mut counted = Self::none(state);
        counted.add(BodyBytes::of_head(head));
        Ok(counted)
    }

    fn none(state: &Arc<State>) -> Self {
        Self { state: Arc::clone(state), bytes: 0 }
    }

    /// From now on these bytes count, in place of those before.
    pub(super) fn set(&mut self, bytes: usize) {
        self.add(bytes);
        self.remove(self.bytes - bytes);
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.state.body_bytes.add(bytes);
    }

    fn remove(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.state.body_bytes.remove(bytes);
    }
}

/// Bytes that come one after another, and count with all the memory that they take: a vector grows by
/// doubling, so it may hold twice what is in it.
struct Growing {
    data: Vec<u8>,
    counted: Counted,
}

impl Growing {
    fn push(&mut self, more: &[u8]) {
        let before = self.data.capacity();
        self.data.extend_from_slice(more);
        self.counted.add(self.data.capacity() - before);
    }

    /// All of them, in no more memory than they need: they may wait for long.
    fn finish(mut self) -> (Bytes, Counted) {
        let before = self.data.capacity();
        let data = self.data.into_boxed_slice();
        self.counted.remove(before - data.len());
        (data.into(), self.counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.state.body_bytes.remove(self.bytes);
    }
}

impl Whole {
    /// Takes in this body, within its time. What is known to be too large is not begun: for hyper,
    /// reading means to send `100 Continue`.
    pub(super) async fn of<B: RequestBody>(
        mut body: B,
        state: &Arc<State>,
    ) -> Result<Self, Problem> {
        let max = state.limits.max_body_bytes;
        let fits = |have: usize, more: u64| more <= max.saturating_sub(have) as u64;
        let mut growing = Growing { data: Vec::new(), counted: Counted::none(state) };
        let mut trailers = None;
        if !fits(0, body.size_hint().lower()) {
            return Err(Problem::BODY_TOO_LARGE.with_limit("max_body_bytes"));
        }
        let mut timer = BodyTimer::new(state, Some(state.limits.body_timeout));
        while let Some(frame) = next(&mut body, &mut timer, growing.data.len()).await? {
            match frame.into_data() {
                Ok(more) => {
                    if !fits(growing.data.len(), more.len() as u64) {
                        return Err(Problem::BODY_TOO_LARGE.with_limit("max_body_bytes"));
                    }
                    if !state.body_bytes.has_room() {
                        return Err(Problem::FULL.with_limit("max_buffered_bytes"));
                    }
                    growing.push(&more);
                }
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    growing.counted.add(trailers.as_ref().map_or(0, BodyBytes::of_fields));
                }
            }
        }
        let (data, counted) = growing.finish();
        Ok(Self { data, trailers, counted })
    }

    /// One that was kept elsewhere, and holds so many bytes of memory.
    pub(super) fn kept(data: Bytes, bytes: usize, state: &Arc<State>) -> Self {
        let mut counted = Counted::none(state);
        counted.add(bytes);
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

/// The next frame, if it comes in time; so many bytes have come before it.
async fn next<B: RequestBody>(
    body: &mut B,
    timer: &mut BodyTimer,
    arrived: usize,
) -> Result<Option<Frame<Bytes>>, Problem> {
    poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(frame.transpose().map_err(|_| Problem::BODY_BROKEN)),
        Poll::Pending => timer.poll(Some(arrived as u64), cx).map(|_| Err(Problem::BODY_TIMEOUT)),
    })
    .await
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
            whole.counted.set(0);
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::{run::Limits, store::MemoryStore, wire::Urls};

    fn state() -> Arc<State> {
        let urls = Urls::new("/jobs", None, Default::default(), false).unwrap();
        let limits = Limits { max_buffered_bytes: usize::MAX, ..Limits::default() };
        Arc::new(State::new(Arc::new(MemoryStore::new(1 << 20)), limits, urls, None))
    }

    proptest! {
        /// What counts is never less than what is held, and as much at the end as there are bytes.
        #[test]
        fn bytes_count_with_the_memory_that_they_take(
            frames in prop::collection::vec(0..3000_usize, 0..20),
        ) {
            let state = state();
            let mut growing = Growing { data: Vec::new(), counted: Counted::none(&state) };
            for len in &frames {
                growing.push(&vec![7; *len]);
                prop_assert_eq!(state.body_bytes.used(), growing.data.capacity());
            }
            let (data, counted) = growing.finish();
            prop_assert_eq!(data.len(), frames.iter().sum::<usize>());
            prop_assert_eq!(state.body_bytes.used(), data.len());
            let held = data.try_into_mut().map(|data: BytesMut| data.capacity());
            let is_empty = state.body_bytes.used() == 0;
            prop_assert!(is_empty || held.is_ok_and(|held| held == state.body_bytes.used()));
            drop(counted);
            prop_assert_eq!(state.body_bytes.used(), 0);
        }
    }
}
