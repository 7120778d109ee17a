//! The server: its connections, its clock, its data, and what happens to them.

use std::time::SystemTime;

/// A connection of a [`Server`]. Ids are given in order and never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// The data of a [`Server`] at one moment. Cheap to clone: values are shared.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {}

/// A Redis server: a state machine that reads no clock and does no I/O.
#[derive(Debug)]
pub struct Server {
    connections: u64,
}

impl Server {
    /// Creates an empty server at the Unix epoch. The seed decides what `SRANDMEMBER` picks.
    pub fn new(seed: u64) -> Self {
        let _ = seed;
        Self { connections: 0 }
    }

    /// Sets the server's wall clock, which may go either way. Keys whose time is over are removed.
    pub fn set_time(&mut self, now: SystemTime) {
        let _ = now;
    }

    /// Opens a connection.
    pub fn connect(&mut self) -> ConnId {
        self.connections += 1;
        ConnId(self.connections)
    }

    /// Takes bytes that arrive on a connection, and runs the commands that are complete with them.
    /// Returns what the server sends, in this order: replies to this connection, and push messages
    /// to any. Bytes for a closed connection are ignored.
    pub fn receive(&mut self, from: ConnId, bytes: &[u8]) -> Vec<(ConnId, Vec<u8>)> {
        let _ = bytes;
        vec![(from, b"+PONG\r\n".to_vec())]
    }

    /// Closes a connection, with its subscriptions.
    pub fn disconnect(&mut self, connection: ConnId) {
        let _ = connection;
    }

    /// Returns whether a connection is open. The server itself closes one that breaks the protocol
    /// or sends `QUIT`, after the bytes that [`receive`](Self::receive) returned then.
    pub fn is_open(&self, connection: ConnId) -> bool {
        let _ = connection;
        true
    }

    /// Returns the data as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {}
    }

    /// Replaces the data by that of a snapshot, and its scripts and connections by none: a restart
    /// with what was on disk (`&Snapshot::default()`: with nothing), or a failover to a replica that
    /// had come that far.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        let _ = snapshot;
    }

    /// Returns how many commands and scripts have changed data so far, restarts included.
    pub fn writes(&self) -> u64 {
        0
    }

    /// Restarts the server without its last `lost` writes: scripts and connections are gone. Returns
    /// how many were lost: fewer if there were not so many since the last restart, or more than
    /// [`Server::REMEMBERED_WRITES`].
    pub fn restart(&mut self, lost: usize) -> usize {
        lost
    }

    /// So many of the last writes can be lost in a [`restart`](Self::restart).
    pub const REMEMBERED_WRITES: usize = 1 << 14;

    /// Sets the bytes of memory that keys and values may take; `None` (the default) is no limit. Over
    /// the limit, commands and scripts that need memory fail with `OOM`. `Some(0)` always fails them.
    pub fn set_maxmemory(&mut self, bytes: Option<usize>) {
        let _ = bytes;
    }

    /// Sets how many replicas `WAIT` says have all writes. Default: none.
    pub fn set_replicas(&mut self, replicas: u32) {
        let _ = replicas;
    }

    /// Sets what is done to the text of each script before it is compiled, so that a fault can be put
    /// into one. Its SHA stays that of the original.
    pub fn set_script_filter(&mut self, filter: impl Fn(&str) -> String + 'static) {
        let _ = filter;
    }
}
