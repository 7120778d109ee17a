//! The path of a request before routers stripped prefixes of it, as far as it is known.

use http::Request;

/// The whole path: a layer inside axum's `nest` sees only the rest of it. axum's outermost router notes
/// the URI that it was given (axum, src/routing/path_router.rs, `call_with_state`).
#[cfg(feature = "original-uri")]
pub(super) fn whole_path<B>(request: &Request<B>) -> Option<&str> {
    let original = request.extensions().get::<axum::extract::OriginalUri>()?;
    Some(original.0.path())
}

/// Without feature `original-uri` it is not known.
#[cfg(not(feature = "original-uri"))]
pub(super) fn whole_path<B>(_: &Request<B>) -> Option<&str> {
    None
}
