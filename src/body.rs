//! Bodies: the status service's own, and the two traits by which the layer keeps the body types of
//! the service it wraps.
//!
//! A layer that changed body types would not fit into every stack (`axum::serve` wants axum's own,
//! an outer `TimeoutLayer` wants `Default`), and axum would box them once more.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{
    BodyExt, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};

use crate::error::Error;

/// The body of everything that [`StatusService`](crate::StatusService) answers: bytes, then
/// trailers where the replayed response had any. It is whole and cannot fail, but for a replay that the
/// store gives [in pieces](crate::store::Fetched::in_pieces): that one fails where the store does.
#[derive(Debug)]
pub struct StatusBody(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Whole),
    Pieces(BoxBody<Bytes, Error>),
}

impl Default for StatusBody {
    fn default() -> Self {
        Self::new(Bytes::new(), None)
    }
}

impl StatusBody {
    pub(crate) fn new(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self(Kind::Whole(Whole { data, trailers }))
    }

    pub(crate) fn in_pieces(pieces: BoxBody<Bytes, Error>) -> Self {
        Self(Kind::Pieces(pieces))
    }

    /// The same, with all of its bytes here where `B` is made of no other.
    pub(crate) async fn fit_for<B: ResponseBody>(self) -> Result<Self, Error> {
        match self.0 {
            Kind::Pieces(pieces) if B::FROM_PIECES.is_none() => {
                let collected = pieces.collect().await?;
                let trailers = collected.trailers().cloned();
                Ok(Self::new(collected.to_bytes(), trailers))
            }
            kind => Ok(Self(kind)),
        }
    }

    /// As a body of this type.
    ///
    /// # Panics
    /// If it is not [`fit_for`](Self::fit_for) that type.
    pub(crate) fn made<B: ResponseBody>(self) -> B {
        match (self.0, B::FROM_PIECES) {
            (Kind::Whole(Whole { data, trailers }), _) => B::from_bytes(data, trailers),
            (pieces, Some(from_pieces)) => from_pieces(Self(pieces)),
            (Kind::Pieces(_), None) => unreachable!("whoever answers makes it fit"),
        }
    }
}

impl Body for StatusBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Kind::Whole(whole) => {
                let frame = Pin::new(whole).poll_frame(cx);
                frame.map_err(|never| match never {})
            }
            Kind::Pieces(pieces) => Pin::new(pieces).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(whole) => whole.is_end_stream(),
            Kind::Pieces(pieces) => pieces.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(whole) => whole.size_hint(),
            Kind::Pieces(pieces) => pieces.size_hint(),
        }
    }
}

/// Bytes that are here, and trailers.
#[derive(Debug)]
struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        sized(self.data.len() as u64, self.trailers.is_some())
    }
}

/// The size of a body of so many bytes.
pub(crate) fn sized(len: u64, has_trailers: bool) -> SizeHint {
    if !has_trailers {
        return SizeHint::with_exact(len);
    }
    // hyper makes a Content-Length of an exact size, and then sends no trailers on HTTP/1.1
    // (hyper, src/proto/h1/role.rs and encode.rs).
    let mut hint = SizeHint::new();
    hint.set_lower(len);
    hint
}

/// A response body that the layer can make: for its own 202 and 503 answers, and for what the
/// mounted form answers under the status path.
///
/// Implemented for `axum::body::Body` (feature `axum`), [`Full<Bytes>`](Full), [`BoxBody`],
/// [`UnsyncBoxBody`] and [`StatusBody`]. Implement it for a body type of your own to put the layer
/// around a service that answers with it.
pub trait ResponseBody: Body + Sized {
    /// Makes a body of one that comes in pieces, and may fail in their midst. Default: none, and what
    /// comes in pieces is put together in memory first; a body whose error type is the service's own
    /// can do no better.
    const FROM_PIECES: Option<fn(StatusBody) -> Self> = None;

    /// A body of these bytes and trailers. A type that cannot carry trailers leaves them out.
    fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self;
}

/// A request body that the layer can watch: wrapped, and made into its own type again.
///
/// Implemented for `axum::body::Body` (feature `axum`), [`BoxBody`] and [`UnsyncBoxBody`]. hyper's
/// `Incoming` cannot be rebuilt: box it in front of the layer, with
/// `tower::ServiceBuilder::map_request` and a named function (see the `hyper_server` example).
pub trait RequestBody: Body<Data = Bytes, Error: Send> + Send + Unpin + Sized + 'static {
    /// The given body, which yields what `Self` yielded, as `Self`.
    fn from_watched<W>(watched: W) -> Self
    where
        W: Body<Data = Bytes, Error = Self::Error> + Send + Sync + 'static;
}

impl ResponseBody for StatusBody {
    const FROM_PIECES: Option<fn(StatusBody) -> Self> = Some(|body| body);

    fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self::new(data, trailers)
    }
}

impl ResponseBody for Full<Bytes> {
    fn from_bytes(data: Bytes, _: Option<HeaderMap>) -> Self {
        Full::new(data)
    }
}

impl<E: 'static> ResponseBody for BoxBody<Bytes, E> {
    fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        infallible(Whole { data, trailers }).boxed()
    }
}

impl<E: 'static> ResponseBody for UnsyncBoxBody<Bytes, E> {
    fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        infallible(Whole { data, trailers }).boxed_unsync()
    }
}

impl<E: Send + 'static> RequestBody for BoxBody<Bytes, E> {
    fn from_watched<W>(watched: W) -> Self
    where
        W: Body<Data = Bytes, Error = E> + Send + Sync + 'static,
    {
        watched.boxed()
    }
}

impl<E: Send + 'static> RequestBody for UnsyncBoxBody<Bytes, E> {
    fn from_watched<W>(watched: W) -> Self
    where
        W: Body<Data = Bytes, Error = E> + Send + Sync + 'static,
    {
        watched.boxed_unsync()
    }
}

/// The body as one that could fail with any error; it cannot fail.
fn infallible<E: 'static>(body: Whole) -> impl Body<Data = Bytes, Error = E> + Send + Sync {
    body.map_err(|never| match never {})
}

#[cfg(feature = "axum")]
mod axum {
    use axum_core::body::Body as AxumBody;

    use super::{Body, Bytes, HeaderMap, RequestBody, ResponseBody, StatusBody};

    impl ResponseBody for AxumBody {
        const FROM_PIECES: Option<fn(StatusBody) -> Self> = Some(AxumBody::new);

        fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self {
            match trailers {
                None => AxumBody::from(data),
                trailers => AxumBody::new(StatusBody::new(data, trailers)),
            }
        }
    }

    impl RequestBody for AxumBody {
        fn from_watched<W>(watched: W) -> Self
        where
            W: Body<Data = Bytes, Error = axum_core::Error> + Send + Sync + 'static,
        {
            AxumBody::new(watched)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))])
    }

    async fn carries_both<B: ResponseBody>() -> bool
    where
        B::Error: std::fmt::Debug,
    {
        let body = B::from_bytes(Bytes::from_static(b"data"), Some(trailers()));
        let collected = body.collect().await.unwrap_or_else(|error| panic!("{error:?}"));
        let carried = collected.trailers() == Some(&trailers());
        assert_eq!(collected.to_bytes(), "data");
        carried
    }

    #[tokio::test]
    async fn bytes_and_trailers_in_every_type() {
        assert!(carries_both::<StatusBody>().await);
        assert!(carries_both::<BoxBody<Bytes, std::io::Error>>().await);
        assert!(carries_both::<UnsyncBoxBody<Bytes, std::io::Error>>().await);
        assert!(!carries_both::<Full<Bytes>>().await, "documented: Full has no trailers");
        #[cfg(feature = "axum")]
        assert!(carries_both::<axum_core::body::Body>().await);
    }

    #[test]
    fn an_exact_size_only_without_trailers() {
        let plain = StatusBody::new(Bytes::from_static(b"1234"), None);
        assert_eq!(plain.size_hint().exact(), Some(4));
        let trailing = StatusBody::new(Bytes::from_static(b"1234"), Some(trailers()));
        assert_eq!(trailing.size_hint().exact(), None);
        assert!(!trailing.is_end_stream());
    }
}
