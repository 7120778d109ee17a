//! What a store gives of an outcome: the whole of it, or its head and then a piece at a time, so that
//! no more of a large one is in memory than its client takes.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::StoreFuture;
use crate::{
    body::{StatusBody, sized},
    error::{Error, ErrorKind},
    job::{Outcome, OutcomeHead},
};

/// An outcome as [`Store::fetch`](super::Store::fetch) gives it: in whole, or
/// [in pieces](Self::in_pieces).
#[derive(Debug)]
pub struct Fetched(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Outcome),
    Pieces(Box<Pieces>),
}

type Next = Box<dyn FnMut() -> StoreFuture<Bytes> + Send>;

struct Pieces {
    /// What is here: all of the head, and what comes after it in the same piece.
    here: Bytes,
    head: OutcomeHead,
    /// The bytes of the whole outcome.
    len: u64,
    next: Next,
}

impl From<Outcome> for Fetched {
    fn from(outcome: Outcome) -> Self {
        Self(Kind::Whole(outcome))
    }
}

impl Fetched {
    /// An outcome of `len` bytes (as [`Outcome::as_bytes`] counts them), of which `first` are here.
    /// `next` gives the piece after those that were given, and is called once a client has taken
    /// those; where it fails, the client's response breaks off, so that it is not taken for the whole.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if no outcome begins like that; and what `next` says, where not all of
    /// the head is in the first piece.
    pub async fn in_pieces(
        first: Bytes,
        len: u64,
        next: impl FnMut() -> StoreFuture<Bytes> + Send + 'static,
    ) -> Result<Self, Error> {
        let (mut here, mut next) = (BytesMut::from(first), Box::new(next) as Next);
        let head = loop {
            match OutcomeHead::read(&here)? {
                Some(head) => break head,
                None if here.len() as u64 >= len => return Err(corrupt()),
                None => here.extend_from_slice(&some(next().await?)?),
            }
        };
        let here = here.freeze();
        match (head.len as u64).checked_add(head.body_len) {
            Some(end) if end <= len && here.len() as u64 <= len => {
                Ok(Self(Kind::Pieces(Box::new(Pieces { here, head, len, next }))))
            }
            _ => Err(corrupt()),
        }
    }

    /// The response's status.
    pub(crate) fn status(&self) -> StatusCode {
        match &self.0 {
            Kind::Whole(outcome) => outcome.status(),
            Kind::Pieces(pieces) => pieces.head.status,
        }
    }

    /// The response's headers, repeated ones too, in the handler's order for each name.
    pub(crate) fn headers(&self) -> HeaderMap {
        match &self.0 {
            Kind::Whole(outcome) => outcome.headers(),
            Kind::Pieces(pieces) => pieces.head.headers.clone(),
        }
    }

    /// The outcome with all of it in memory.
    ///
    /// # Errors
    /// What the store says of a piece, and [`ErrorKind::Corrupt`] if these are not the pieces of one
    /// outcome.
    pub async fn whole(self) -> Result<Outcome, Error> {
        let mut pieces = match self.0 {
            Kind::Whole(outcome) => return Ok(outcome),
            Kind::Pieces(pieces) => pieces,
        };
        let mut bytes = BytesMut::from(pieces.here);
        while (bytes.len() as u64) < pieces.len {
            bytes.extend_from_slice(&some((pieces.next)().await?)?);
        }
        if bytes.len() as u64 > pieces.len {
            return Err(corrupt());
        }
        Outcome::from_bytes(bytes.freeze())
    }

    /// Its body and trailers.
    pub(crate) fn into_body(self) -> StatusBody {
        match self.0 {
            Kind::Whole(outcome) => StatusBody::new(outcome.body(), outcome.trailers()),
            Kind::Pieces(pieces) => StatusBody::in_pieces(Streamed::new(*pieces).boxed()),
        }
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces")
            .field("status", &self.head.status)
            .field("bytes", &self.len)
            .finish_non_exhaustive()
    }
}

fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "not the pieces of an outcome")
}

fn joined(first: Bytes, second: &[u8]) -> Bytes {
    let mut both = BytesMut::from(first);
    both.extend_from_slice(second);
    both.freeze()
}

/// A piece without anything in it would be asked for again and again.
fn some(piece: Bytes) -> Result<Bytes, Error> {
    if piece.is_empty() { Err(corrupt()) } else { Ok(piece) }
}

/// The body and the trailers of an outcome in pieces.
struct Streamed {
    here: Bytes,
    /// Of the body, and then of the trailers, so many bytes have not been given yet.
    body_left: u64,
    trailers_left: u64,
    has_failed: bool,
    /// Nobody ever waits for the lock: it makes this `Sync`, as a boxed body has to be.
    source: Mutex<Source>,
}

struct Source {
    next: Next,
    coming: Option<StoreFuture<Bytes>>,
}

impl Streamed {
    fn new(pieces: Pieces) -> Self {
        let Pieces { mut here, head, len, next } = pieces;
        drop(here.split_to(head.len));
        Self {
            here,
            body_left: head.body_len,
            // `in_pieces` has seen that they are no more than that.
            trailers_left: len - head.len as u64 - head.body_len,
            has_failed: false,
            source: Mutex::new(Source { next, coming: None }),
        }
    }

    /// Ready when another piece is here.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let source = self.source.get_mut().unwrap_or_else(PoisonError::into_inner);
        let coming = source.coming.get_or_insert_with(&mut source.next);
        let piece = ready!(Pin::new(coming).poll(cx));
        source.coming = None;
        let piece = some(piece?)?;
        self.here =
            if self.here.is_empty() { piece } else { joined(self.here.split_off(0), &piece) };
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        while self.body_left > 0 {
            if !self.here.is_empty() {
                let given = self.body_left.min(self.here.len() as u64);
                self.body_left -= given;
                // No more than is here.
                return Poll::Ready(Ok(Some(Frame::data(self.here.split_to(given as usize)))));
            }
            ready!(self.poll_piece(cx))?;
        }
        while (self.here.len() as u64) < self.trailers_left {
            ready!(self.poll_piece(cx))?;
        }
        if self.trailers_left == 0 {
            return Poll::Ready(Ok(None));
        }
        self.trailers_left = 0;
        Poll::Ready(OutcomeHead::trailers(&self.here).map(|fields| Some(Frame::trailers(fields))))
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.has_failed {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_next(cx));
        self.has_failed = next.is_err();
        Poll::Ready(next.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.has_failed || (self.body_left == 0 && self.trailers_left == 0)
    }

    fn size_hint(&self) -> SizeHint {
        sized(self.body_left, self.trailers_left > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(body: &[u8], trailers: Option<&HeaderMap>) -> Outcome {
        let response = http::Response::builder().status(207).header("x", "y").body(()).unwrap();
        Outcome::new(&response.into_parts().0, body, trailers)
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("\"sum\""))])
    }

    /// In pieces of so many bytes, with the answer to whoever asks for more than there are.
    async fn cut(bytes: &Bytes, size: usize, len: u64) -> Result<Fetched, Error> {
        let mut pieces: Vec<_> = bytes.chunks(size).map(|piece| bytes.slice_ref(piece)).collect();
        pieces.reverse();
        let first = pieces.pop().unwrap_or_default();
        let gone = || Error::new(ErrorKind::StoreUnavailable, "gone");
        let next = move || StoreFuture::ready(pieces.pop().ok_or_else(gone));
        Fetched::in_pieces(first, len, next).await
    }

    #[tokio::test]
    async fn comes_back_as_it_was_however_it_is_cut() {
        for trailers in [None, Some(trailers())] {
            for body in [&b""[..], b"a", &[b'x'; 300]] {
                let given = outcome(body, trailers.as_ref());
                let bytes = given.as_bytes();
                for size in 1..=bytes.len() {
                    let again = || cut(bytes, size, bytes.len() as u64);
                    let fetched = again().await.unwrap();
                    assert_eq!(
                        (fetched.status(), fetched.headers()),
                        (given.status(), given.headers())
                    );
                    assert_eq!(fetched.whole().await.unwrap().as_bytes(), bytes);
                    let sent = again().await.unwrap().into_body();
                    let exact = trailers.is_none().then_some(body.len() as u64);
                    assert_eq!(sent.size_hint().exact(), exact);
                    let sent = sent.collect().await.unwrap();
                    assert_eq!(sent.trailers(), trailers.as_ref());
                    assert_eq!(sent.to_bytes(), body);
                }
            }
        }
    }

    #[tokio::test]
    async fn no_piece_is_asked_for_before_those_before_it_are_taken() {
        let bytes = outcome(&[b'x'; 1000], None).as_bytes().clone();
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counted, rest) = (asked.clone(), bytes.clone());
        let next = move || {
            let at = counted.fetch_add(100, std::sync::atomic::Ordering::Relaxed) + 100;
            StoreFuture::ready(Ok(rest.slice(at..rest.len().min(at + 100))))
        };
        let len = bytes.len() as u64;
        let fetched = Fetched::in_pieces(bytes.slice(..100), len, next).await.unwrap();
        let mut body = fetched.into_body();
        for taken in 0..5 {
            // What is left of the first piece is there without.
            body.frame().await.unwrap().unwrap();
            assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), taken * 100);
        }
    }

    #[tokio::test]
    async fn a_piece_that_is_missing_fails_the_body() {
        let bytes = outcome(&[b'x'; 300], Some(&trailers())).as_bytes().clone();
        for missing in 1..bytes.len() {
            let short = bytes.slice(..bytes.len() - missing);
            let Ok(fetched) = cut(&short, 50, bytes.len() as u64).await else { continue };
            let mut body = fetched.into_body();
            let mut failures = 0;
            while let Some(frame) = body.frame().await {
                failures += usize::from(frame.is_err());
            }
            assert_eq!(failures, 1, "{missing} missing");
            assert!(body.is_end_stream());
            let fetched = cut(&short, 50, bytes.len() as u64).await.unwrap();
            assert!(fetched.whole().await.is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_end(
            mut bytes in proptest::collection::vec(any::<u8>(), 1..80),
            size in 1usize..80,
            len in any::<u64>(),
            small in any::<bool>(),
        ) {
            bytes[0] = 1;
            let len = if small { len % 200 } else { len };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let bytes = Bytes::from(bytes);
                if let Ok(fetched) = cut(&bytes, size, len).await {
                    let _ = fetched.into_body().collect().await;
                    let _ = cut(&bytes, size, len).await.unwrap().whole().await;
                }
            });
        }
    }
}
