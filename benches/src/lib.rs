//! What the benches share: the services that are called, the requests that are sent to them, and
//! what the layer is measured against.

pub mod cases;
pub mod desks;
pub mod jobs;
pub mod measure;
pub mod plot;
pub mod request;
pub mod rival;
pub mod service;

use std::time::Duration;

use tokio::runtime::Runtime;

/// The budget of every layer here: as the README's, and longer than any case takes.
pub const BUDGET: Duration = Duration::from_millis(250);

/// The runtime that the cost of one call is measured on.
///
/// # Panics
/// If the system gives no more threads or files.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
