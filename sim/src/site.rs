//! A server of the simulated Redis, with what happens to it: it is down, silent, full, or loses data.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    facts::Millis,
    links::Fate,
    net::LinkId,
    node::epoch,
    redis::{ConnId, Server, Snapshot},
    scenario::{Kind, Scenario},
};

/// A server and its links.
#[derive(Debug)]
pub struct Site {
    /// The server.
    pub server: Server,
    /// Nobody can connect until then.
    pub down_until: Millis,
    /// It takes nothing in until then.
    pub silent_until: Millis,
    /// What has come since.
    pub(crate) unheard: Vec<(LinkId, Vec<u8>, Fate)>,
    /// By how much its clock is wrong, in milliseconds.
    pub clock: i64,
    links: BTreeMap<LinkId, ConnId>,
    connections: BTreeMap<ConnId, LinkId>,
    /// Whether a replica will take over.
    has_replica: bool,
    /// What a replica has, by when it had it.
    replica: VecDeque<(Millis, Snapshot)>,
}

/// A replica is at most so far behind.
const LAG: Millis = 4000;

impl Site {
    /// Creates a server without data.
    pub fn new(seed: u64, scenario: &Scenario) -> Self {
        let mut server = Server::new(seed);
        server.set_replicas(scenario.wait_replicas);
        Self {
            server,
            down_until: 0,
            silent_until: 0,
            unheard: Vec::new(),
            clock: 0,
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            has_replica: scenario.faults.weights.iter().any(|(_, kind)| *kind == Kind::Failover),
            replica: VecDeque::new(),
        }
    }

    /// Sets the server's clock.
    pub fn set_now(&mut self, now: Millis) {
        let off = Duration::from_millis(self.clock.unsigned_abs());
        let time = epoch() + Duration::from_millis(now);
        self.server.set_time(if self.clock < 0 { time - off } else { time + off });
    }

    /// Connects a link, if the server is there.
    pub fn connect(&mut self, link: LinkId, now: Millis) -> bool {
        if now < self.down_until {
            return false;
        }
        let connection = self.server.connect();
        self.links.insert(link, connection);
        self.connections.insert(connection, link);
        true
    }

    /// Takes bytes in. Returns what the server sends, or `None` where the link is none of its own.
    pub fn receive(&mut self, link: LinkId, bytes: &[u8]) -> Option<Vec<(LinkId, Vec<u8>)>> {
        let connection = *self.links.get(&link)?;
        let replies = self.server.receive(connection, bytes);
        let of = |(connection, bytes)| Some((*self.connections.get(&connection)?, bytes));
        Some(replies.into_iter().filter_map(of).collect())
    }

    /// Closes a link.
    pub fn disconnect(&mut self, link: LinkId) {
        if let Some(connection) = self.links.remove(&link) {
            self.connections.remove(&connection);
            self.server.disconnect(connection);
        }
    }

    /// Closes all links, and returns them.
    pub fn disconnect_all(&mut self) -> Vec<LinkId> {
        let links: Vec<_> = self.links.keys().copied().collect();
        links.iter().for_each(|link| self.disconnect(*link));
        links
    }

    /// Lets a replica have what there is now.
    pub fn replicate(&mut self, now: Millis) {
        let is_recent = self.replica.back().is_some_and(|(at, _)| at + 250 > now);
        if !self.has_replica || is_recent {
            return;
        }
        while self.replica.front().is_some_and(|(at, _)| at + LAG < now) {
            self.replica.pop_front();
        }
        self.replica.push_back((now, self.server.snapshot()));
    }

    /// A replica takes over that has what there was at this time. Returns how far behind it was.
    pub fn fail_over(&mut self, now: Millis, lag: Millis) -> Millis {
        let had = |(at, _): &&(Millis, Snapshot)| at + lag >= now;
        let Some((at, snapshot)) = self.replica.iter().find(had) else { return 0 };
        let behind = now - at;
        self.server.restore(snapshot);
        // Its history is this one's no more.
        self.replica.clear();
        behind
    }

    /// Runs a command as an observer, who changes nothing else. Returns the reply as it is sent.
    pub fn observe(&mut self, command: &[&str]) -> Vec<u8> {
        let connection = self.server.connect();
        let mut bytes = format!("*{}\r\n", command.len());
        for part in command {
            bytes += &format!("${}\r\n{part}\r\n", part.len());
        }
        let replies = self.server.receive(connection, bytes.as_bytes());
        self.server.disconnect(connection);
        replies.into_iter().filter(|(to, _)| *to == connection).flat_map(|(_, sent)| sent).collect()
    }
}
