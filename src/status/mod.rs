//! The companion service below the status path: progress, outcome, cancellation.
//!
//! Knows the store, and the limits on waiters. It knows nothing of the layer.

mod service;

pub use service::{StatusFuture, StatusService};
