//! tower-offload
#![deny(missing_docs)]
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
mod body;
mod deadlines;
mod desk;
mod error;
mod job;
mod offload;
mod policy;
mod run;
mod status;
pub mod store;
mod wire;

pub use body::{RequestBody, ResponseBody, StatusBody};
pub use desk::{MountedFuture, MountedLayer, MountedService, Offload, OffloadBuilder};
pub use error::{BoxError, Error, ErrorKind};
pub use job::{Change, End, Failure, Job, JobId, Outcome, Record, Status};
pub use offload::{
    Answers, Boxed, BoxedOffloadLayer, Movable, OffloadLayer, OffloadService, ResponseFuture,
};
pub use policy::{Policies, Policy};
pub use run::Drained;
pub use status::{StatusFuture, StatusService};
pub use store::{MemoryStore, Store};
pub use wire::LocationStyle;
