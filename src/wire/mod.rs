//! What goes over the wire: preferences, status URLs, the 202 answer, the status document,
//! problems, and the headers of a replay.
//!
//! Pure functions from values to values: no I/O, no clock. Knows what a job is, not how it is run.

mod document;
mod idempotency;
mod prefer;
mod problem;
mod reference;
mod replay;
mod text;
mod urls;

pub(crate) use document::{
    NO_STORE, Outlook, accepted, conflict, document, in_progress, see_other,
};
pub(crate) use idempotency::idempotency_key;
pub(crate) use prefer::{PREFER, Preferences};
pub(crate) use problem::{Problem, answer as problem_answer, of_record};
pub(crate) use replay::{answered, prepare, replayed};
pub use urls::LocationStyle;
pub(crate) use urls::{Resource, Urls};
