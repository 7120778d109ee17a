//! The stages of a request that is watched.
//!
//! ```text
//!                     handler ready: its response, whatever the stage
//!  Started ──▶ Armed ──budget──▶ Uploading ──body over──▶ Registering ──▶ detached: 202
//!                 ▲                 │    │                     │
//!                 └─one more budget─┘    │ body broken         │ refused
//!                                        ▼                     ▼
//!                                     Attached ◀───(after)─────┴──(always)──▶ 503
//!
//!                 Uploading ──(always, body stalled)──▶ 408
//!
//!  Unbegun ──(always, body over at the call)──▶ Registering, the handler not yet polled
//!     └──────(always, else)──▶ Uploading
//! ```
//!
//! `Attached` is the end of all watching: the request goes on as if the layer were not there.

use bytes::Bytes;
use http::Response;

use crate::run::{Refusal, Registered};

/// Where a request stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Of an `always` route: its handler has not been polled.
    Unbegun,
    Started,
    /// A deadline, in parts: as a value of its own it would leave no room for the tag.
    Armed {
        shard: u8,
        slot: u32,
    },
    /// Waits for the body to be over; with `drain`, the wire is still read into the buffer.
    Uploading {
        drain: bool,
    },
    Registering,
    Attached {
        /// The body was not over when its watching ended.
        is_open: bool,
    },
}

/// What one look at a stage comes to.
pub(super) enum Step {
    Wait,
    Next(Stage),
    Detach(Registered),
    Refuse(Refusal),
    /// The answer is ours, and the handler is dropped.
    Answer(Box<Response<Bytes>>),
}

impl Stage {
    pub(super) const UPLOADING: Self = Self::Uploading { drain: true };
}
