//! A Redis in memory that runs the store's real Lua scripts.
//!
//! [`Server`] is a state machine without I/O: bytes of a connection go in, bytes for this and other
//! connections come out. It reads no clock, and its only random numbers (`SRANDMEMBER`) come from the
//! seed that it was made with, so the same calls have the same results.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use tower_offload_sim::redis::Server;
//!
//! let mut server = Server::new(7);
//! server.set_time(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
//! let connection = server.connect();
//! let replies = server.receive(connection, b"*1\r\n$4\r\nPING\r\n");
//! assert_eq!(replies, [(connection, b"+PONG\r\n".to_vec())]);
//! ```

mod commands;
mod data;
mod number;
mod resp;
mod script;
mod server;
mod session;
mod state;

pub use server::{ConnId, Server, Snapshot};
