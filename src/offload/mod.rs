//! The layer: watches requests, and takes the slow ones off their connection.
//!
//! Knows policies and how jobs are registered and run. It knows nothing of the status service.

mod answer;
mod body_timer;
mod bound;
mod control;
mod deferred;
mod durable;
mod future;
mod layer;
mod movable;
mod rescue;
mod service;
mod stage;
mod upload;
mod watch;
mod whole;
mod whole_path;
mod worker;

pub use future::ResponseFuture;
pub use layer::{BoxedOffloadLayer, OffloadLayer};
pub use movable::{Answers, Movable};
pub use service::{Boxed, OffloadService};
pub(crate) use worker::serve as serve_durable;
