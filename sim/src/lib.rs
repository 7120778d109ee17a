//! A deterministic simulation of tower-offload: its processes, its clients, the network between them,
//! and the Redis that the processes share. One seed decides everything that happens in a run.
#![deny(missing_docs)]

pub mod redis;
