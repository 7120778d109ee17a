//! What commands work on: the keys, the subscriptions, the random numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::redis::{
    data::Data,
    number::Random,
    resp::{Reply, Text},
    server::ConnId,
};

/// The part of the server that commands see, also those that a script calls.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) data: Data,
    pub(crate) random: Random,
    pub(crate) channels: Channels,
    /// Microseconds since the epoch.
    pub(crate) micros: i64,
    pub(crate) maxmemory: Option<usize>,
    /// What `WAIT` answers.
    pub(crate) replicas: u32,
    /// What is to be sent, in this order.
    pub(crate) out: Vec<(ConnId, Reply)>,
}

impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            data: Data::default(),
            random: Random::new(seed),
            channels: Channels::default(),
            micros: 0,
            maxmemory: None,
            replicas: 0,
            out: Vec::new(),
        }
    }

    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.maxmemory.is_some_and(|limit| self.data.is_over(limit))
    }

    /// Sends a message to those who have subscribed, and returns how many they are.
    pub(crate) fn publish(&mut self, kind: Kind, channel: &Text, message: &Text) -> usize {
        let subscribed = self.channels.of(kind).get(channel);
        let subscribed: Vec<_> = subscribed.into_iter().flatten().copied().collect();
        let parts = [Reply::bulk(kind.message()), Reply::bulk(channel), Reply::bulk(message)];
        for connection in &subscribed {
            self.out.push((*connection, Reply::Push(parts.to_vec())));
        }
        subscribed.len()
    }
}

/// The kinds of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// Of a slot of a cluster.
    Sharded,
}

impl Kind {
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Plain => "message",
            Self::Sharded => "smessage",
        }
    }
}

type Subscribed = BTreeMap<Text, BTreeSet<ConnId>>;

/// Who has subscribed to which channels.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    plain: Subscribed,
    sharded: Subscribed,
}

impl Channels {
    fn of(&self, kind: Kind) -> &Subscribed {
        match kind {
            Kind::Plain => &self.plain,
            Kind::Sharded => &self.sharded,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Subscribed {
        match kind {
            Kind::Plain => &mut self.plain,
            Kind::Sharded => &mut self.sharded,
        }
    }

    pub(crate) fn subscribe(&mut self, kind: Kind, channel: &Text, connection: ConnId) {
        self.of_mut(kind).entry(channel.clone()).or_default().insert(connection);
    }

    pub(crate) fn unsubscribe(&mut self, kind: Kind, channel: &Text, connection: ConnId) {
        if let Some(subscribed) = self.of_mut(kind).get_mut(channel) {
            subscribed.remove(&connection);
            if subscribed.is_empty() {
                self.of_mut(kind).remove(channel);
            }
        }
    }

    /// Returns the channels of a connection.
    pub(crate) fn channels_of(&self, kind: Kind, connection: ConnId) -> Vec<Text> {
        let all = self.of(kind).iter();
        all.filter(|(_, who)| who.contains(&connection)).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn leave(&mut self, connection: ConnId) {
        for kind in [Kind::Plain, Kind::Sharded] {
            for channel in self.channels_of(kind, connection) {
                self.unsubscribe(kind, &channel, connection);
            }
        }
    }
}
