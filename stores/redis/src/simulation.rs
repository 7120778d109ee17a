//! For this project's simulation: connections that it gives, and the scripts' texts.
//!
//! Not part of the public API: it may change in any release.

use std::{io, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::scripts::texts;

/// A server, as far as one can connect to it.
pub trait Connect: Send + Sync {
    /// Opens a connection.
    fn connect(&self) -> Connecting;
}

/// A connection that is being opened.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A connection's bytes, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
