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
//! `Pending`, whoever reads the wire just then.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{body::RequestBody, run::State};

/// What a buffered frame counts with beside its bytes, so that many small ones do not take many
/// times the limit.
const FRAME_BYTES: usize = 128;

/// The layer's side of a watched body. It does not name the body's type, so that the response
/// future need not either.
pub(super) struct Upload(Arc<dyn Control>);

/// What the layer may do with a watched body.
trait Control: Send + Sync {
    fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing;
    fn unwatch(&self);
}

/// The handler's side: the body as the handler sees it.
struct Watched<B: Body> {
    shared: Arc<Shared<B>>,
}

struct Shared<B: Body> {
    wire: Mutex<Wire<B>>,
    state: Arc<State>,
}

struct Wire<B: Body> {
    /// `None` when it is over, broken, or dropped by its reader.
    body: Option<B>,
    buffer: VecDeque<Frame<Bytes>>,
    /// The error that the reader has still to be told of.
    error: Option<B::Error>,
    broken: bool,
    draining: bool,
    /// The reader is not told of the end yet.
    end_held: bool,
    /// What the buffer counts with.
    buffered: usize,
    reader: Option<Waker>,
    layer: Option<Waker>,
}

/// How a body stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// More may come.
    Open,
    /// It has ended, or the handler has dropped it: a detach touches no connection any more.
    Over,
    /// It ended in an error. That is not an end: the request must not be answered as if it had
    /// arrived.
    Broken,
}

/// Watches this body. With `hold_end` the handler does not see its end while it is watched.
pub(super) fn watch<B: RequestBody>(body: B, state: &Arc<State>, hold_end: bool) -> (B, Upload) {
    let wire = Wire {
        body: Some(body),
        buffer: VecDeque::new(),
        error: None,
        broken: false,
        draining: false,
        end_held: hold_end,
        buffered: 0,
        reader: None,
        layer: None,
    };
    let shared = Arc::new(Shared { wire: Mutex::new(wire), state: Arc::clone(state) });
    let watched = B::from_watched(Watched { shared: Arc::clone(&shared) });
    (watched, Upload(shared))
}

impl Upload {
    /// How the body stands; while it is open, `cx` is woken when that changes. With `drain` the
    /// wire is read into the buffer, instead of by the handler, until the buffer is full: then
    /// `drain` becomes false, and the handler reads the wire itself again.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing {
        self.0.poll_over(cx, drain)
    }
}

impl Drop for Upload {
    /// The layer watches no more: the handler reads the wire itself, and sees its end.
    fn drop(&mut self) {
        self.0.unwatch();
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

impl<B: RequestBody> Control for Shared<B> {
    fn poll_over(&self, cx: &mut Context<'_>, drain: &mut bool) -> Standing {
        let mut wire = self.lock();
        let news = *drain && self.drain(&mut wire, cx);
        *drain = wire.draining;
        let standing = wire.standing();
        if standing == Standing::Open {
            set_waker(&mut wire.layer, cx);
        }
        let reader = if news { wire.reader.take() } else { None };
        drop(wire);
        reader.into_iter().for_each(Waker::wake);
        standing
    }

    fn unwatch(&self) {
        let mut wire = self.lock();
        wire.draining = false;
        wire.end_held = false;
        wire.layer = None;
        let reader = wire.reader.take();
        drop(wire);
        reader.into_iter().for_each(Waker::wake);
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
}

impl<B: Body> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Wire<B>> {
        // The body's own code runs under this lock. If it panics, it is dropped with its request;
        // the other side sees it as it was left.
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the buffer may take more, and what is known to come at the least.
    fn has_room(&self, wire: &Wire<B>) -> bool {
        let limit = self.state.limits.max_body_bytes;
        let coming = wire.body.as_ref().map_or(0, |body| body.size_hint().lower());
        wire.buffered < limit
            && coming <= (limit - wire.buffered) as u64
            && self.state.body_bytes.has_room()
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

impl<B: Body> Drop for Shared<B> {
    fn drop(&mut self) {
        let buffered = self
            .wire
            .get_mut()
            .map_or_else(|poisoned| poisoned.into_inner().buffered, |wire| wire.buffered);
        self.state.body_bytes.remove(buffered);
    }
}

fn counts(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len) + FRAME_BYTES
}

impl<B: Body> Wire<B> {
    fn standing(&self) -> Standing {
        match (&self.body, self.broken) {
            (_, true) => Standing::Broken,
            (Some(_), _) => Standing::Open,
            (None, _) => Standing::Over,
        }
    }
}

impl<B: RequestBody> Wire<B> {
    /// Reads the wire, and notes its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.body = None,
            Poll::Ready(Some(Err(_))) => {
                self.body = None;
                self.broken = true;
            }
            _ => {}
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
        if let Some(frame) = self.shared.take(&mut wire) {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = wire.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = match wire.draining && wire.body.is_some() {
            true => Poll::Pending,
            false => wire.poll_body(cx),
        };
        let held = wire.end_held && matches!(polled, Poll::Ready(None));
        if polled.is_pending() || held {
            set_waker(&mut wire.reader, cx);
        }
        let layer = if wire.body.is_none() { wire.layer.take() } else { None };
        drop(wire);
        layer.into_iter().for_each(Waker::wake);
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
        let buffer = std::mem::take(&mut wire.buffer);
        let buffered = std::mem::take(&mut wire.buffered);
        let layer = wire.layer.take();
        drop(wire);
        self.shared.state.body_bytes.remove(buffered);
        drop((body, buffer));
        layer.into_iter().for_each(Waker::wake);
    }
}

fn set_waker(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
