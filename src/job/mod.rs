//! What a job is: its id, its record and the transitions of it, its outcome, and the handle that a
//! handler may ask for.
//!
//! Knows errors only; nothing here does I/O.

mod current;
mod id;
mod outcome;
mod owner;
mod progress;
mod record;
mod request;
mod time;

pub use current::Job;
pub(crate) use current::{Asked, Current, Said, watched_by, within};
pub(crate) use id::IdHash;
pub use id::JobId;
pub use outcome::Outcome;
pub(crate) use outcome::{OutcomeHead, OutcomeWriter};
pub use owner::{Claim, Digest, Owner};
pub use progress::Progress;
pub use record::{Change, End, Failure, Record, Status};
pub(crate) use request::{from_bytes as request_from_bytes, to_bytes as request_to_bytes};
