//! The watched request body.
//!
//! hyper ties a request's body to its connection. A handler that goes on reading it after the
//! response was sent can be fed the bytes of the next request, lose the end, or block the
//! connection. So a request is never detached before its body is over on the wire, and this file
//! knows when it is.
//!
//! ```text
//!             the handler reads the wire          the layer reads it, the handler the buffer
//!            ┌──────── Direct ────────┐  drain   ┌─────── Draining ───────┐
//!            │                        ├─────────▶│                        │
//!            │                        │◀─────────┤ full                   │
//!            └────────────┬───────────┘          └───────────┬────────────┘
//!                         │ end │ error │ dropped by reader  │
//!                         ▼     ▼       ▼                    ▼
//!                                 Over or Broken
//! ```
//!
//! The reader may live in another task than the layer's future, so its waker is stored at every
//! `Pending`, whoever reads the wire just then. One of the two polls the wire at a time, and who it
//! is changes under the lock, so the waker that the wire has is the one of whoever polls it.
//!
//! Under the lock runs no code of others but the wire's poll and the clone of a waker. The rest, the
//! wake and the drop of wakers and of the body, may come straight back here and waits until the lock
//! is given back.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Version, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};

use super::control::{Control, Standing, Upload};
use crate::{body::RequestBody, run::State};

/// What a buffered frame counts with at the least, so that many small ones do not take many times
/// the limit.
const FRAME_BYTES: usize = 128;

/// The handler's side: the body as the handler sees it.
struct Watched<B: Body> {
    shared: Arc<Shared<B>>,
}

struct Shared<B: Body> {
    wire: Mutex<Wire<B>>,
    state: Arc<State>,
    /// The request's path: kept here, since a request is moved with room for it or for this.
    target: PathAndQuery,
    version: Version,
}

struct Wire<B: Body> {
    /// `None` when it is over, broken, or dropped by its reader.
    body: Option<B>,
    /// The body when it has just become over: to be dropped outside of the lock.
    spent: Option<B>,
    buffer: VecDeque<Frame<Bytes>>,
    /// The error that the reader has still to be told of.
    error: Option<B::Error>,
    broken: bool,
    draining: bool,
    /// The bytes that have come.
    arrived: u64,
    /// The reader is not told of the end yet.
    end_held: bool,
    /// What the buffer counts with.
    buffered: usize,
    /// Whether the reader has had to wait for the wire, from when the layer first asked.
    awaited: Option<bool>,
    /// `Some` while the reader waits.
    reader: Option<Waker>,
    layer: Option<Waker>,
}

/// Watches the body of a request for this path. With `hold_end` the handler does not see its end
/// while it is watched.
pub(super) fn watch<B: RequestBody>(
    body: B,
    target: PathAndQuery,
    version: Version,
    state: &Arc<State>,
    hold_end: bool,
) -> (B, Upload) {
    let wire = Wire {
        body: Some(body),
        spent: None,
        buffer: VecDeque::new(),
        error: None,
        broken: false,
        draining: false,
        arrived: 0,
        end_held: hold_end,
        buffered: 0,
        awaited: None,
        reader: None,
        layer: None,
    };
    let shared =
        Arc::new(Shared { wire: Mutex::new(wire), state: Arc::clone(state), target, version });
    let watched = B::from_watched(Watched { shared: Arc::clone(&shared) });
    (watched, Upload::new(shared))
}

impl<B: RequestBody> Control for Shared<B> {
    fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing {
        let mut wire = self.lock();
        if wire.awaited.is_none() {
            wire.awaited = Some(wire.reader.is_some());
        }
        let news = *drain && self.drain(&mut wire, cx);
        *drain = wire.draining;
        let standing = wire.standing();
        let displaced = match standing {
            Standing::Open => set_waker(&mut wire.layer, cx),
            _ => wire.layer.take(),
        };
        let reader = if news { wire.reader.take() } else { None };
        let spent = wire.spent.take();
        drop(wire);
        drop((displaced, spent));
        wake(reader);
        standing
    }

    fn is_over(&self) -> bool {
        let wire = self.lock();
        wire.body.is_none() && !wire.broken
    }

    fn unwatch(&self) {
        let mut wire = self.lock();
        wire.draining = false;
        wire.end_held = false;
        let (layer, reader) = (wire.layer.take(), wire.reader.take());
        drop(wire);
        drop(layer);
        wake(reader);
    }

    fn target(&self) -> &PathAndQuery {
        &self.target
    }

    fn version(&self) -> Version {
        self.version
    }

    fn arrived_while_awaited(&self) -> Option<u64> {
        let wire = self.lock();
        let awaited = wire.draining || wire.reader.is_some();
        (wire.body.is_some() && awaited).then_some(wire.arrived)
    }
}

impl<B: RequestBody> Shared<B> {
    /// Reads the wire into the buffer, as far as it goes; tells whether the reader has to look.
    fn drain(&self, wire: &mut Wire<B>, cx: &mut Context<'_>) -> bool {
        wire.draining = true;
        let mut news = false;
        while wire.body.is_some() {
            // What cannot fit anyway is not begun: for hyper, reading means to send
            // `100 Continue`.
            if !self.has_room(wire) {
                wire.draining = false;
                // The handler has to read it itself: nobody else makes it come to its end.
                wire.awaited = Some(true);
                return true;
            }
            match wire.poll_body(cx) {
                Poll::Pending => return news,
                Poll::Ready(Some(Ok(frame))) => self.keep(wire, frame),
                Poll::Ready(Some(Err(error))) => wire.error = Some(error),
                Poll::Ready(None) => {}
            }
            news = true;
        }
        news
    }

    /// The next frame for the reader: from the buffer, then the error, then from the wire.
    fn read(
        &self,
        wire: &mut Wire<B>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.take(wire) {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = wire.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match wire.draining && wire.body.is_some() {
            true => Poll::Pending,
            false => wire.poll_body(cx),
        }
    }
}

impl<B: Body> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Wire<B>> {
        // The body's own code runs under this lock. If it panics, it is dropped with its request;
        // the other side sees it as it was left.
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the buffer may take more, and what is known to come at the least.
    fn has_room(&self, wire: &Wire<B>) -> bool {
        let coming = wire.body.as_ref().map_or(0, |body| body.size_hint().lower());
        let room = self.state.limits.max_body_bytes.checked_sub(wire.buffered);
        room.is_some_and(|room| coming <= room as u64) && self.state.body_bytes.has_room()
    }

    fn keep(&self, wire: &mut Wire<B>, frame: Frame<Bytes>) {
        let bytes = counts(&frame);
        wire.buffered += bytes;
        self.state.body_bytes.add(bytes);
        wire.buffer.push_back(frame);
    }

    fn take(&self, wire: &mut Wire<B>) -> Option<Frame<Bytes>> {
        let frame = wire.buffer.pop_front()?;
        let bytes = counts(&frame);
        wire.buffered -= bytes;
        self.state.body_bytes.remove(bytes);
        Some(frame)
    }
}

fn counts(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len).max(FRAME_BYTES)
}

impl<B: Body> Wire<B> {
    fn standing(&mut self) -> Standing {
        match (&self.body, self.broken) {
            (_, true) => Standing::Broken,
            (Some(_), _) => Standing::Open,
            (None, _) => Standing::Over { late: self.awaited.replace(false) == Some(true) },
        }
    }
}

impl<B: RequestBody> Wire<B> {
    /// Reads the wire, and notes its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let over = match &polled {
            Poll::Pending => false,
            // After its last frame a body may say so, and readers that know its length ask for no
            // more: it is over on the wire.
            Poll::Ready(Some(Ok(frame))) => {
                self.arrived += frame.data_ref().map_or(0, |data| data.len() as u64);
                body.is_end_stream()
            }
            Poll::Ready(Some(Err(_))) => {
                self.broken = true;
                true
            }
            Poll::Ready(None) => true,
        };
        if over {
            self.spent = self.body.take();
        }
        polled
    }
}

impl<B: RequestBody> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut wire = self.shared.lock();
        let polled = self.shared.read(&mut wire, cx);
        let held = wire.end_held && matches!(polled, Poll::Ready(None));
        let displaced = match polled.is_pending() || held {
            true => {
                wire.awaited = wire.awaited.map(|_| true);
                set_waker(&mut wire.reader, cx)
            }
            false => wire.reader.take(),
        };
        let layer = if wire.body.is_none() { wire.layer.take() } else { None };
        let spent = wire.spent.take();
        drop(wire);
        drop((displaced, spent));
        wake(layer);
        if held { Poll::Pending } else { polled }
    }

    fn is_end_stream(&self) -> bool {
        let wire = self.shared.lock();
        let over = wire.body.as_ref().is_none_or(|body| body.is_end_stream());
        over && wire.buffer.is_empty() && wire.error.is_none() && !wire.end_held
    }

    fn size_hint(&self) -> SizeHint {
        let wire = self.shared.lock();
        let coming = wire.body.as_ref().map_or(SizeHint::with_exact(0), B::size_hint);
        let buffered: u64 =
            wire.buffer.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(coming.lower().saturating_add(buffered));
        if let Some(upper) = coming.upper().and_then(|upper| upper.checked_add(buffered)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B: Body> Drop for Watched<B> {
    /// The handler wants no more of it.
    fn drop(&mut self) {
        let mut wire = self.shared.lock();
        let body = wire.body.take();
        let unread = (std::mem::take(&mut wire.buffer), wire.error.take());
        let buffered = std::mem::take(&mut wire.buffered);
        let (reader, layer) = (wire.reader.take(), wire.layer.take());
        drop(wire);
        self.shared.state.body_bytes.remove(buffered);
        drop((body, unread, reader));
        wake(layer);
    }
}

/// Puts the waker there; gives back the one that it takes the place of.
fn set_waker(place: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        place => place.replace(cx.waker().clone()),
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use http::HeaderMap;
    use http_body_util::combinators::UnsyncBoxBody;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Offload, OffloadBuilder, Policy};

    type Body = UnsyncBoxBody<Bytes, io::Error>;
    type Polled = Poll<Option<Result<Frame<Bytes>, io::Error>>>;

    /// A wire that the test writes to. A body that is polled after its end panics.
    #[derive(Clone, Default)]
    struct Source(Arc<Mutex<SourceState>>);

    #[derive(Default)]
    struct SourceState {
        events: VecDeque<Option<io::Result<Frame<Bytes>>>>,
        waker: Option<Waker>,
        /// What is left of a `Content-Length`.
        length: Option<u64>,
        polls: usize,
        over: bool,
        /// Runs when the body is dropped.
        on_drop: Option<Box<dyn FnOnce() + Send>>,
        dropped: bool,
    }

    struct Fake(Source);

    impl Source {
        fn with_length(length: u64) -> Self {
            let source = Self::default();
            source.state().length = Some(length);
            source
        }

        fn state(&self) -> MutexGuard<'_, SourceState> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn watched(&self, state: &Arc<State>, hold_end: bool) -> (Body, Upload) {
            let target = PathAndQuery::from_static("/");
            watch(UnsyncBoxBody::new(Fake(self.clone())), target, Version::HTTP_11, state, hold_end)
        }

        fn send(&self, event: Option<io::Result<Frame<Bytes>>>) {
            let mut state = self.state();
            state.events.push_back(event);
            let waker = state.waker.take();
            drop(state);
            wake(waker);
        }

        fn data(&self, data: &'static str) {
            self.send(Some(Ok(Frame::data(Bytes::from_static(data.as_bytes())))));
        }

        fn end(&self) {
            self.send(None);
        }

        fn fail(&self) {
            self.send(Some(Err(io::Error::other("cut off"))));
        }
    }

    impl http_body::Body for Fake {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
            let mut state = self.0.state();
            assert!(!state.over, "polled after its end");
            state.polls += 1;
            let Some(event) = state.events.pop_front() else {
                let displaced = state.waker.replace(cx.waker().clone());
                drop(state);
                drop(displaced);
                return Poll::Pending;
            };
            state.over = !matches!(event, Some(Ok(_)));
            if let (Some(Ok(frame)), Some(left)) = (&event, state.length) {
                state.length = Some(left - frame.data_ref().map_or(0, |data| data.len() as u64));
            }
            Poll::Ready(event)
        }

        fn is_end_stream(&self) -> bool {
            self.0.state().length == Some(0)
        }

        fn size_hint(&self) -> SizeHint {
            self.0.state().length.map_or(SizeHint::new(), SizeHint::with_exact)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let mut state = self.0.state();
            state.dropped = true;
            let on_drop = state.on_drop.take();
            drop(state);
            if let Some(on_drop) = on_drop {
                on_drop();
            }
        }
    }

    /// A task, as far as a waker knows of it.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Task {
        fn new() -> Arc<Self> {
            Arc::default()
        }

        /// Whether it was woken since it was last asked.
        fn is_woken(&self) -> bool {
            self.0.swap(0, Ordering::Relaxed) > 0
        }

        fn read(self: &Arc<Self>, body: &mut Body) -> Polled {
            let waker = Waker::from(Arc::clone(self));
            http_body::Body::poll_frame(Pin::new(body), &mut Context::from_waker(&waker))
        }

        fn look(self: &Arc<Self>, upload: &Upload, drain: &mut bool) -> Standing {
            let waker = Waker::from(Arc::clone(self));
            upload.poll_over(&mut Context::from_waker(&waker), drain)
        }
    }

    fn text(polled: Polled) -> Option<String> {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
            }
            _ => None,
        }
    }

    fn is_end(polled: &Polled) -> bool {
        matches!(polled, Poll::Ready(None))
    }

    const LATE: Standing = Standing::Over { late: true };
    const OVER: Standing = Standing::Over { late: false };
    const MAX_ALL: usize = 1 << 20;

    /// With room for this many bytes of one body.
    fn desk(max_body_bytes: usize) -> Arc<State> {
        built(Offload::builder("/jobs").max_body_bytes(max_body_bytes))
    }

    fn built(builder: OffloadBuilder) -> Arc<State> {
        let offload = builder.max_buffered_bytes(MAX_ALL).build().unwrap();
        Arc::clone(offload.layer(Policy::always()).state())
    }

    /// Whether not one byte is counted for all bodies together.
    fn is_empty(state: &State) -> bool {
        state.body_bytes.add(MAX_ALL - 1);
        let is_empty = state.body_bytes.has_room();
        state.body_bytes.remove(MAX_ALL - 1);
        is_empty
    }

    #[test]
    fn the_handler_reads_the_wire_and_the_layer_is_woken_at_the_end() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let (reader, layer) = (Task::new(), Task::new());
        source.data("a");
        assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
        assert!(reader.read(&mut body).is_pending());
        assert_eq!(layer.look(&upload, &mut false), Standing::Open);
        source.data("b");
        assert!(reader.is_woken() && !layer.is_woken());
        assert_eq!(text(reader.read(&mut body)).unwrap(), "b");
        source.end();
        assert!(!layer.is_woken(), "nobody has read the end yet");
        assert!(is_end(&reader.read(&mut body)));
        assert!(layer.is_woken() && source.state().dropped);
        assert_eq!(layer.look(&upload, &mut true), LATE);
        assert_eq!(layer.look(&upload, &mut true), OVER, "being late is told once");
        assert!(is_end(&reader.read(&mut body)), "a fused end");
        assert!(is_empty(&state));
    }

    #[test]
    fn trap_1_7_the_readers_waker_is_stored_at_every_pending() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let (first, reader, layer) = (Task::new(), Task::new(), Task::new());
        assert!(first.read(&mut body).is_pending());
        // Another task reads from now on, and nobody drains yet.
        assert!(reader.read(&mut body).is_pending());
        assert_eq!(layer.look(&upload, &mut true), Standing::Open);
        source.data("a");
        assert!(layer.is_woken() && !reader.is_woken() && !first.is_woken());
        assert_eq!(layer.look(&upload, &mut true), Standing::Open);
        assert!(reader.is_woken() && !first.is_woken());
        assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
        // While draining, too; and a look without news wakes nobody.
        assert!(first.read(&mut body).is_pending());
        assert!(reader.read(&mut body).is_pending());
        assert_eq!(layer.look(&upload, &mut true), Standing::Open);
        assert!(!reader.is_woken());
        source.end();
        assert_eq!(layer.look(&upload, &mut true), LATE);
        assert!(reader.is_woken() && !first.is_woken());
        assert!(is_end(&reader.read(&mut body)));
    }

    #[test]
    fn the_wire_is_polled_by_one_side_at_a_time() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let (reader, layer) = (Task::new(), Task::new());
        assert_eq!(layer.look(&upload, &mut true), Standing::Open);
        assert!(reader.read(&mut body).is_pending());
        assert_eq!(source.state().polls, 1, "the reader leaves the wire to the layer");
        drop(upload);
        assert!(reader.is_woken(), "the wire is the reader's again");
        assert!(reader.read(&mut body).is_pending());
        source.data("a");
        assert!(reader.is_woken());
        assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
    }

    #[test]
    fn a_full_buffer_hands_the_wire_back_to_the_reader() {
        let (source, state) = (Source::default(), desk(256));
        let (mut body, upload) = source.watched(&state, false);
        let (reader, layer, mut drain) = (Task::new(), Task::new(), true);
        assert!(reader.read(&mut body).is_pending());
        // Small frames count with 128 bytes each; the one that goes over is kept.
        for data in ["a", "b", "c", "d", "e"] {
            source.data(data);
        }
        assert_eq!(layer.look(&upload, &mut drain), Standing::Open);
        assert!(!drain && reader.is_woken() && source.state().polls == 4);
        assert!(!is_empty(&state));
        assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
        assert_eq!(layer.look(&upload, &mut drain), Standing::Open);
        assert!(!drain && source.state().polls == 4, "once full, never drained again");
        for data in ["b", "c", "d", "e"] {
            assert_eq!(text(reader.read(&mut body)).unwrap(), data);
        }
        assert!(is_empty(&state));
        assert!(reader.read(&mut body).is_pending());
        source.end();
        assert!(reader.is_woken() && !layer.is_woken());
        assert!(is_end(&reader.read(&mut body)));
        assert!(layer.is_woken());
        assert_eq!(layer.look(&upload, &mut drain), LATE);
    }

    #[test]
    fn trap_1_8_what_cannot_fit_is_not_begun_and_what_just_fits_is() {
        for (length, limit, standing) in [
            (1001, 1000, Standing::Open),
            (1000, 1000, OVER),
            (1, 1, OVER),
            (u64::MAX, usize::MAX >> 1, Standing::Open),
        ] {
            let (source, state) = (Source::with_length(length), desk(limit));
            let (_body, upload) = source.watched(&state, false);
            if length <= 1000 {
                let data = Bytes::from(vec![b'x'; length as usize]);
                source.send(Some(Ok(Frame::data(data))));
            }
            let mut drain = true;
            assert_eq!(Task::new().look(&upload, &mut drain), standing, "{length}");
            assert_eq!((drain, source.state().polls), (standing == OVER, usize::from(drain)));
        }
    }

    #[test]
    fn the_bytes_of_all_bodies_are_bounded() {
        let state = desk(MAX_ALL);
        let (first, second) = (Source::default(), Source::default());
        let (mut full, upload) = first.watched(&state, false);
        let (_other, other_upload) = second.watched(&state, false);
        let (task, mut drain) = (Task::new(), true);
        first.send(Some(Ok(Frame::data(Bytes::from(vec![0; MAX_ALL])))));
        first.end();
        second.data("a");
        assert_eq!(task.look(&upload, &mut drain), Standing::Open);
        assert!(!drain);
        drain = true;
        assert_eq!(task.look(&other_upload, &mut drain), Standing::Open);
        assert!(!drain && second.state().polls == 0);
        assert!(task.read(&mut full).is_ready());
        assert!(is_empty(&state));
    }

    #[test]
    fn a_body_held_unread_is_over_on_the_wire_without_being_late() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let layer = Task::new();
        source.data("a");
        assert_eq!(layer.look(&upload, &mut true), Standing::Open);
        source.end();
        assert!(layer.is_woken());
        assert_eq!(layer.look(&upload, &mut true), OVER);
        drop(upload);
        // What is buffered outlives the watch.
        assert_eq!(text(Task::new().read(&mut body)).unwrap(), "a");
        assert!(is_end(&Task::new().read(&mut body)));
        assert!(is_empty(&state));
    }

    #[test]
    fn a_reader_that_counts_the_length_need_not_ask_for_the_end() {
        let (source, state) = (Source::with_length(2), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let (reader, layer) = (Task::new(), Task::new());
        assert_eq!(layer.look(&upload, &mut false), Standing::Open);
        source.data("ab");
        assert_eq!(text(reader.read(&mut body)).unwrap(), "ab");
        assert!(layer.is_woken());
        assert_eq!(layer.look(&upload, &mut false), OVER);
        assert!(http_body::Body::is_end_stream(&body) && is_end(&reader.read(&mut body)));
    }

    #[test]
    fn a_held_end_is_seen_when_the_watch_is_over() {
        for drains in [false, true] {
            let (source, state) = (Source::with_length(1), desk(1000));
            let (mut body, upload) = source.watched(&state, true);
            let (reader, layer) = (Task::new(), Task::new());
            assert_eq!(layer.look(&upload, &mut drains.clone()), Standing::Open);
            source.data("a");
            if drains {
                assert!(matches!(layer.look(&upload, &mut true), Standing::Over { .. }));
            }
            assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
            assert!(reader.read(&mut body).is_pending());
            assert!(!http_body::Body::is_end_stream(&body));
            assert!(matches!(layer.look(&upload, &mut true), Standing::Over { .. }));
            assert!(reader.read(&mut body).is_pending() && !reader.is_woken());
            drop(upload);
            assert!(reader.is_woken());
            assert!(http_body::Body::is_end_stream(&body) && is_end(&reader.read(&mut body)));
        }
    }

    #[test]
    fn an_error_is_no_end_and_is_told_once_after_what_came_before() {
        for drains in [false, true] {
            let (source, state) = (Source::default(), desk(1000));
            let (mut body, upload) = source.watched(&state, true);
            let (reader, layer, mut drain) = (Task::new(), Task::new(), drains);
            assert_eq!(layer.look(&upload, &mut drain), Standing::Open);
            assert!(reader.read(&mut body).is_pending());
            source.data("a");
            source.fail();
            if drains {
                assert_eq!(layer.look(&upload, &mut drain), Standing::Broken);
                assert!(reader.is_woken());
            }
            assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
            assert!(!http_body::Body::is_end_stream(&body));
            assert!(matches!(reader.read(&mut body), Poll::Ready(Some(Err(_)))));
            assert!(layer.is_woken());
            assert_eq!(layer.look(&upload, &mut drain), Standing::Broken);
            drop(upload);
            assert!(is_end(&reader.read(&mut body)));
            assert!(is_empty(&state) && source.state().dropped);
        }
    }

    #[test]
    fn trailers_come_last() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        let trailers: HeaderMap =
            [(http::header::ETAG, "x".parse().unwrap())].into_iter().collect();
        source.data("a");
        source.send(Some(Ok(Frame::trailers(trailers.clone()))));
        source.end();
        assert_eq!(Task::new().look(&upload, &mut true), OVER);
        assert_eq!(text(Task::new().read(&mut body)).unwrap(), "a");
        let Poll::Ready(Some(Ok(frame))) = Task::new().read(&mut body) else { panic!() };
        assert_eq!(frame.into_trailers().unwrap(), trailers);
        assert!(is_end(&Task::new().read(&mut body)) && is_empty(&state));
    }

    #[test]
    fn a_reader_that_drops_the_body_gives_everything_back() {
        for drains in [false, true] {
            let (source, state) = (Source::default(), desk(1000));
            let (body, upload) = source.watched(&state, true);
            let layer = Task::new();
            source.data("a");
            assert_eq!(layer.look(&upload, &mut drains.clone()), Standing::Open);
            assert_eq!(is_empty(&state), !drains);
            drop(body);
            assert!(layer.is_woken() && source.state().dropped && is_empty(&state));
            assert_eq!(layer.look(&upload, &mut true), OVER);
        }
    }

    #[test]
    fn a_response_that_does_not_wait_for_the_upload_gives_the_wire_back() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, true);
        let reader = Task::new();
        source.data("a");
        assert_eq!(Task::new().look(&upload, &mut true), Standing::Open);
        drop(upload);
        source.data("b");
        source.end();
        assert_eq!(text(reader.read(&mut body)).unwrap(), "a");
        assert_eq!(text(reader.read(&mut body)).unwrap(), "b");
        assert!(is_end(&reader.read(&mut body)) && is_empty(&state));
    }

    #[test]
    fn sizes_count_what_is_buffered_and_what_is_to_come() {
        let hint = |body: &Body| {
            let hint = http_body::Body::size_hint(body);
            (hint.lower(), hint.upper())
        };
        let (source, state) = (Source::with_length(3), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        assert_eq!(hint(&body), (3, Some(3)));
        source.data("ab");
        assert_eq!(Task::new().look(&upload, &mut true), Standing::Open);
        assert_eq!(hint(&body), (3, Some(3)));
        source.data("c");
        assert_eq!(Task::new().look(&upload, &mut true), OVER);
        assert_eq!(hint(&body), (3, Some(3)));
        assert!(Task::new().read(&mut body).is_ready());
        assert_eq!(hint(&body), (1, Some(1)));
        let (body, _upload) = Source::default().watched(&state, false);
        assert_eq!(hint(&body), (0, None));
    }

    /// A waker that polls in place, as some executors' do.
    struct InPlace(Mutex<Option<Box<dyn FnOnce() + Send>>>);

    impl Wake for InPlace {
        fn wake(self: Arc<Self>) {
            let act = self.0.lock().unwrap().take();
            if let Some(act) = act {
                act();
            }
        }
    }

    #[test]
    fn wakers_and_dropped_bodies_may_come_straight_back() {
        // However the body becomes over, neither its drop nor a wake meets a held lock.
        for how in ["reader", "layer", "drop", "error"] {
            let (source, state) = (Source::default(), desk(1000));
            let (mut body, upload) = source.watched(&state, false);
            let upload = Arc::new(upload);
            let looks = Arc::new(AtomicUsize::new(0));
            let look = || {
                let (upload, looks) = (Arc::clone(&upload), Arc::clone(&looks));
                move || {
                    let standing = Task::new().look(&upload, &mut true);
                    assert_ne!(standing, Standing::Open);
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            };
            source.state().on_drop = Some(Box::new(look()));
            let waker = Waker::from(Arc::new(InPlace(Mutex::new(Some(Box::new(look()))))));
            let mut cx = Context::from_waker(&waker);
            assert_eq!(upload.poll_over(&mut cx, &mut false), Standing::Open);
            match how {
                "drop" => drop(body),
                "error" => {
                    source.fail();
                    assert!(Task::new().read(&mut body).is_ready());
                }
                "reader" => {
                    source.end();
                    assert!(Task::new().read(&mut body).is_ready());
                }
                _ => {
                    source.end();
                    assert_eq!(Task::new().look(&upload, &mut true), OVER);
                }
            }
            assert!(looks.load(Ordering::Relaxed) >= 1, "{how}");
        }
    }

    #[test]
    fn a_body_that_panics_harms_nobody_else() {
        let (source, state) = (Source::default(), desk(1000));
        let (mut body, upload) = source.watched(&state, false);
        source.data("a");
        assert_eq!(Task::new().look(&upload, &mut true), Standing::Open);
        // Polled after its end, the source panics.
        source.state().over = true;
        let layer = std::panic::AssertUnwindSafe(|| Task::new().look(&upload, &mut true));
        assert!(std::panic::catch_unwind(layer).is_err());
        assert_eq!(text(Task::new().read(&mut body)).unwrap(), "a");
        drop((upload, body));
        assert!(is_empty(&state) && source.state().dropped);
    }

    #[derive(Debug, Clone, Copy)]
    enum Move {
        Arrive(u8),
        /// The reader takes at most so many frames, if its task is due; then it is busy elsewhere.
        Read(u8),
        Look,
        /// Both look though nobody has woken them.
        Spurious,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Finish {
        End,
        Error,
        ReaderDrops,
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            any::<u8>().prop_map(Move::Arrive),
            (1..4_u8).prop_map(Move::Read),
            Just(Move::Look),
            Just(Move::Spurious),
        ];
        vec(one, 0..40)
    }

    /// The two tasks, each polled only when it is due, as an executor does.
    struct Both {
        reader: Arc<Task>,
        body: Option<Body>,
        reader_due: bool,
        read: Vec<u8>,
        /// `Some` once the reader has seen the end, or with `true` an error.
        read_end: Option<bool>,
        layer: Arc<Task>,
        upload: Option<Upload>,
        layer_due: bool,
        drain: bool,
        standing: Standing,
    }

    impl Both {
        fn read(&mut self, frames: usize) {
            self.reader_due |= self.reader.is_woken();
            for _ in 0..frames {
                let Some(body) = self.body.as_mut().filter(|_| self.read_end.is_none()) else {
                    self.reader_due = false;
                    return;
                };
                if !self.reader_due {
                    return;
                }
                match self.reader.read(body) {
                    Poll::Pending => self.reader_due = self.reader.is_woken(),
                    Poll::Ready(Some(Ok(frame))) => self.read.push(frame.data_ref().unwrap()[0]),
                    Poll::Ready(Some(Err(_))) => self.read_end = Some(true),
                    Poll::Ready(None) => self.read_end = Some(false),
                }
            }
        }

        /// As the response future does: watches until it knows how the body stands.
        fn look(&mut self) {
            if std::mem::take(&mut self.layer_due) | self.layer.is_woken() {
                if let Some(upload) = &self.upload {
                    self.standing = self.layer.look(upload, &mut self.drain);
                }
                if self.standing != Standing::Open {
                    self.upload = None;
                }
            }
        }
    }

    proptest! {
        /// Whatever the order of things, nothing of the upload is lost or told twice, each side
        /// comes to its end without being asked, and no byte stays counted.
        #[test]
        fn no_order_of_things_loses_a_wakeup(
            moves in moves(),
            finish in prop_oneof![Just(Finish::End), Just(Finish::Error), Just(Finish::ReaderDrops)],
            hold_end: bool,
            limit in 1..1500_usize,
        ) {
            let (source, state) = (Source::default(), desk(limit));
            let (body, upload) = source.watched(&state, hold_end);
            let mut both = Both {
                reader: Task::new(),
                body: Some(body),
                reader_due: true,
                read: Vec::new(),
                read_end: None,
                layer: Task::new(),
                upload: Some(upload),
                layer_due: true,
                drain: true,
                standing: Standing::Open,
            };
            let mut sent = Vec::new();
            for step in moves {
                match step {
                    Move::Arrive(byte) => {
                        sent.push(byte);
                        let data = Bytes::from(vec![byte; 1 + usize::from(byte)]);
                        source.send(Some(Ok(Frame::data(data))));
                    }
                    Move::Read(frames) => both.read(frames.into()),
                    Move::Look => both.look(),
                    Move::Spurious => {
                        (both.reader_due, both.layer_due) = (true, true);
                        both.read(1);
                        both.look();
                    }
                }
            }
            match finish {
                Finish::End => source.end(),
                Finish::Error => source.fail(),
                Finish::ReaderDrops => both.body = None,
            }
            // From here on only who is due is polled.
            for _ in 0..200 {
                both.look();
                both.read(1);
            }
            prop_assert_ne!(both.standing, Standing::Open);
            prop_assert_eq!(both.standing == Standing::Broken, finish == Finish::Error);
            if finish == Finish::ReaderDrops {
                prop_assert!(sent.starts_with(&both.read));
            } else {
                prop_assert_eq!(&both.read, &sent);
                prop_assert_eq!(both.read_end, Some(finish == Finish::Error));
            }
            prop_assert!(is_empty(&state));
            prop_assert!(source.state().dropped);
        }
    }
}
