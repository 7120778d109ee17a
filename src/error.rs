//! The crate's one error: opaque, with a kind to match on and a source to log.
//!
//! Knows nothing of the rest of the crate.

use std::{borrow::Cow, error::Error as StdError, fmt};

/// A boxed error, as the tower ecosystem passes them around.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What went wrong inside tower-offload.
///
/// Errors of the wrapped service are never turned into this type: they pass through as they are, or
/// end a job (see [`Failure`](crate::Failure)).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

/// The kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A builder or a policy was given something that cannot work.
    Config,
    /// The store has no room for another job. Nothing was stored.
    StoreFull,
    /// The store did not answer, or answered with an error. What it was asked to do may or may not
    /// have been done.
    StoreUnavailable,
    /// Something could not be read back: a stored outcome, or the text of an id.
    Corrupt,
    /// A later release of this crate wrote it, in a format that this release does not know. Processes of
    /// that release can read it; nothing is wrong with it.
    NewerFormat,
    /// The operating system gave no random numbers for an id.
    Random,
}

impl Error {
    /// An error of this kind. For authors of a [`Store`](crate::Store).
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error, with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call can only fail again: what is wrong does not go away by itself.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.kind, ErrorKind::Config | ErrorKind::Corrupt | ErrorKind::NewerFormat)
    }

    pub(crate) fn config(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_kind_and_source() {
        let error = Error::new(ErrorKind::StoreUnavailable, "store did not answer")
            .with_source(std::io::Error::other("connection refused"));
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        assert_eq!(error.to_string(), "store did not answer");
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
    }
}
