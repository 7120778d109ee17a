//! The server: its connections, its clock, its data, and what happens to them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::redis::{
    data::{Keys, REMEMBERED},
    resp::{ProtocolError, Reply},
    script::{Engine, Lines},
    session::{self, Context, Session},
    state::State,
};

/// A connection of a [`Server`]. Ids are given in order and never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

impl ConnId {
    pub(crate) fn number(self) -> i64 {
        self.0 as i64
    }
}

/// The data of a [`Server`] at one moment. Cheap to clone: values are shared.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    keys: Arc<Keys>,
}

/// A Redis server: a state machine that reads no clock and does no I/O.
#[derive(Debug)]
pub struct Server {
    state: Rc<RefCell<State>>,
    engine: Engine,
    sessions: BTreeMap<ConnId, Session>,
    connections: u64,
}

impl Server {
    /// Creates an empty server at the Unix epoch. The seed decides what `SRANDMEMBER` picks.
    pub fn new(seed: u64) -> Self {
        let state = Rc::new(RefCell::new(State::new(seed)));
        let engine = Engine::new(&state);
        Self { state, engine, sessions: BTreeMap::new(), connections: 0 }
    }

    /// Sets the server's wall clock, which may go either way. Keys whose time is over are removed.
    pub fn set_time(&mut self, now: SystemTime) {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let micros = match now.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        };
        let mut state = self.state.borrow_mut();
        state.micros = micros;
        state.data.set_now(micros.div_euclid(1000));
    }

    /// Opens a connection.
    pub fn connect(&mut self) -> ConnId {
        self.connections += 1;
        let id = ConnId(self.connections);
        self.sessions.insert(id, Session::default());
        id
    }

    /// Takes bytes that arrive on a connection, and runs the commands that are complete with them.
    /// Returns what the server sends, in this order: replies to this connection, and push messages
    /// to any. Bytes for a closed connection are ignored.
    pub fn receive(&mut self, from: ConnId, bytes: &[u8]) -> Vec<(ConnId, Vec<u8>)> {
        if let Some(session) = self.sessions.get_mut(&from) {
            session.parser.push(bytes);
        }
        let mut sent = Vec::new();
        while let Some(session) = self.sessions.get_mut(&from) {
            match session.parser.next() {
                Ok(None) => break,
                Ok(Some(args)) if args.is_empty() => {}
                Ok(Some(args)) => {
                    let state = &self.state;
                    let engine = &mut self.engine;
                    session::run(&mut Context { id: from, session, engine, state }, &args);
                }
                Err(ProtocolError(what)) => {
                    session.is_closing = true;
                    let error = Reply::error(format!("ERR Protocol error: {what}"));
                    self.state.borrow_mut().out.push((from, error));
                }
            }
            let is_closing = session.is_closing;
            self.send(&mut sent);
            if is_closing {
                self.disconnect(from);
            }
        }
        sent
    }

    /// Writes replies for the protocol that each connection speaks by now.
    fn send(&mut self, sent: &mut Vec<(ConnId, Vec<u8>)>) {
        for (to, reply) in self.state.borrow_mut().out.drain(..) {
            let Some(session) = self.sessions.get(&to) else { continue };
            match sent.last_mut() {
                Some((last, bytes)) if *last == to => reply.write(session.is_resp3, bytes),
                _ => {
                    let mut bytes = Vec::new();
                    reply.write(session.is_resp3, &mut bytes);
                    sent.push((to, bytes));
                }
            }
        }
    }

    /// Closes a connection, with its subscriptions.
    pub fn disconnect(&mut self, connection: ConnId) {
        self.sessions.remove(&connection);
        self.state.borrow_mut().channels.leave(connection);
    }

    /// Returns whether a connection is open. The server itself closes one that breaks the protocol
    /// or sends `QUIT`, after the bytes that [`receive`](Self::receive) returned then; and all of
    /// them in a restart.
    pub fn is_open(&self, connection: ConnId) -> bool {
        self.sessions.contains_key(&connection)
    }

    /// Returns the data as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { keys: Arc::new(self.state.borrow().data.keys().clone()) }
    }

    /// Replaces the data by that of a snapshot, and its scripts and connections by none: a restart
    /// with what was on disk (`&Snapshot::default()`: with nothing), or a failover to a replica that
    /// had come that far.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.stop();
        self.state.borrow_mut().data.replace((*snapshot.keys).clone());
    }

    /// Returns how many commands and scripts have changed data so far, restarts included.
    pub fn writes(&self) -> u64 {
        self.state.borrow().data.writes()
    }

    /// Restarts the server without its last `lost` writes: scripts and connections are gone. Returns
    /// how many were lost: fewer if there were not so many since data was last
    /// [restored](Self::restore), or more than [`Server::REMEMBERED_WRITES`].
    pub fn restart(&mut self, lost: usize) -> usize {
        self.stop();
        self.state.borrow_mut().data.lose(lost)
    }

    fn stop(&mut self) {
        for connection in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.disconnect(connection);
        }
        self.engine.forget();
    }

    /// So many of the last writes can be lost in a [`restart`](Self::restart).
    pub const REMEMBERED_WRITES: usize = REMEMBERED;

    /// Sets the bytes of memory that keys and values may take, about; `None` (the default) is no
    /// limit. Over the limit, commands and scripts that need memory fail with `OOM`. `Some(0)`
    /// always fails them.
    pub fn set_maxmemory(&mut self, bytes: Option<usize>) {
        self.state.borrow_mut().maxmemory = bytes;
    }

    /// Sets how many replicas `WAIT` says have all writes; it answers at once. Default: none.
    pub fn set_replicas(&mut self, replicas: u32) {
        self.state.borrow_mut().replicas = replicas;
    }

    /// Sets what is done to the text of each script before it is compiled, so that a fault can be put
    /// into one. Its SHA stays that of the original. Scripts that were loaded are forgotten.
    pub fn set_script_filter(&mut self, filter: impl Fn(&str) -> String + 'static) {
        self.engine.set_filter(Box::new(filter));
    }

    /// Notes from now on which lines of scripts run, which makes them slower.
    pub fn count_lines(&mut self) {
        self.engine.count_lines();
    }

    /// Returns the numbers of the lines that ran, by the SHA of their script.
    pub fn lines(&self) -> Lines {
        self.engine.lines()
    }
}
