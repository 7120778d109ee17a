//! A Redis store for [`tower_offload`]: every replica of an app answers for every job.
//!
//! ```no_run
//! # async fn run() -> Result<(), tower_offload::Error> {
//! use tower_offload::Offload;
//! use tower_offload_redis::RedisStore;
//!
//! let store = RedisStore::connect("redis://127.0.0.1/").await?;
//! let offload = Offload::builder("/jobs").store(store).build()?;
//! # let _ = offload;
//! # Ok(())
//! # }
//! ```
//!
//! It needs Redis 7 or newer, or Valkey, alone or as a cluster, with the `maxmemory-policy`
//! `noeviction`: what another policy drops would be jobs that were promised.
//!
//! # TLS
//! With the feature `tls`, URLs may begin with `rediss`. Certificates are trusted that the system trusts;
//! the environment's `SSL_CERT_FILE` names others. The app chooses the cryptography, as rustls wants it:
//! with `rustls = { version = "0.23", default-features = false, features = ["ring", "std"] }` among its
//! dependencies that is ring, where nothing else in it brings another one. Where several are brought,
//! `rustls::crypto::ring::default_provider().install_default()`, before anything is connected, says which.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod arrivals;
mod backoff;
mod call;
mod caught;
mod change;
mod connect;
mod ended;
mod error;
mod fields;
mod given_up;
mod keys;
mod locked;
mod node;
mod queue;
mod queued;
mod reconcile;
mod reconnect;
mod replicas;
mod scripts;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
#[cfg(feature = "simulation")]
mod spread;
mod store;
mod taking;
mod unreadable;
mod usage;
mod waiters;

pub use connect::Builder;
pub use given_up::GivenUp;
pub use store::RedisStore;

#[doc = include_str!("../CAPACITY.md")]
pub mod capacity {}

/// The README's code is compiled too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
