//! The links between nodes and servers: what is sent in one, when it arrives, and what is lost with it.

use crate::{
    facts::{Fact, Millis},
    net::{self, LinkId},
    world::{Event, World},
};

/// What is to become of a link once its server has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    ReplyLost,
}

/// A link as the scheduler knows it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: usize,
    pub(crate) server: usize,
    pub(crate) is_cut: bool,
    /// When what was sent last arrives: nothing overtakes it.
    up: Millis,
    down: Millis,
}

impl World {
    /// Sends on what nodes have sent.
    pub(crate) fn take_bytes(&mut self, now: Millis) {
        for sent in self.net.sent() {
            match sent {
                net::Sent::Dial { link, node, server } => {
                    self.links.insert(link, Link { node, server, is_cut: false, up: 0, down: 0 });
                    self.send(link, now, true, Event::Dial(link));
                }
                net::Sent::Bytes(link, bytes) => self.bytes_to_server(link, bytes, now),
                net::Sent::Close(link) => self.send(link, now, true, Event::ServerCloses(link)),
            }
        }
    }

    fn bytes_to_server(&mut self, link: LinkId, bytes: Vec<u8>, now: Millis) {
        let faults = &self.scenario.faults;
        let (lost, reply_lost, held) = (faults.lost, faults.reply_lost, faults.held);
        let fate = match self.rng.below(1000) {
            chance if self.log.is_quiet() || chance >= lost + reply_lost + held => Fate::Arrives,
            chance if chance < lost => return self.cut(link, "a request is lost"),
            chance if chance < lost + reply_lost => Fate::ReplyLost,
            _ => {
                self.hold(link, true);
                Fate::Arrives
            }
        };
        self.send(link, now, true, Event::ToServer(link, bytes, fate));
    }

    /// Lets something arrive at the other end of a link, behind what was sent before.
    pub(crate) fn send(&mut self, link: LinkId, now: Millis, up: bool, event: Event) {
        let latency = self.rng.between(1, 2);
        let Some(state) = self.links.get_mut(&link) else { return };
        let apart = self.apart_until[state.node];
        let last = if up { &mut state.up } else { &mut state.down };
        let time = (now.max(apart) + latency).max(*last);
        *last = time;
        self.at(time, event);
    }

    /// Holds up what is sent from now on in one direction, as packets that are lost again and again.
    pub(crate) fn hold(&mut self, link: LinkId, up: bool) {
        let time = self.rng.between(50, self.scenario.faults.held_for);
        self.hold_for(link, up, time);
    }

    pub(crate) fn hold_for(&mut self, link: LinkId, up: bool, time: Millis) {
        let Some(state) = self.links.get_mut(&link) else { return };
        let last = if up { &mut state.up } else { &mut state.down };
        *last = (*last).max(self.now + time);
        let (node, way) = (state.node, if up { "requests" } else { "replies" });
        self.log.tell(format!("link {link} of n{node}: {way} are held up for {time} ms"));
        self.trouble(node);
    }

    /// Closes a link: both ends learn of it, and what is under way in it is lost.
    pub(crate) fn cut(&mut self, link: LinkId, why: &str) {
        let Some(state) = self.links.get_mut(&link) else { return };
        if state.is_cut {
            return;
        }
        state.is_cut = true;
        let node = state.node;
        self.log.tell(format!("link {link} of n{node} is cut: {why}"));
        self.trouble(node);
        self.after(1, Event::NodeCloses(link));
        self.after(1, Event::ServerCloses(link));
    }

    pub(crate) fn trouble(&self, node: usize) {
        self.log.note(Fact::Trouble { node, at: self.now });
    }

    pub(crate) fn dialed(&mut self, link: LinkId) {
        let Some(state) = self.links.get(&link) else { return };
        let site = &mut self.sites[state.server];
        if site.connect(link, self.now) && self.net.open(link) {
            return;
        }
        site.disconnect(link);
        self.links.remove(&link);
        self.net.close(link);
    }

    pub(crate) fn arrived(&mut self, link: LinkId, bytes: Vec<u8>, fate: Fate) {
        let Some(state) = self.links.get(&link).filter(|state| !state.is_cut) else { return };
        let (server, now) = (state.server, self.now);
        let site = &mut self.sites[server];
        if now < site.silent_until || !site.unheard.is_empty() {
            // In the order in which it came.
            return site.unheard.push((link, bytes, fate));
        }
        site.set_now(now);
        site.replicate(now);
        let Some(replies) = site.receive(link, &bytes) else { return };
        if fate == Fate::ReplyLost {
            self.cut(link, "a reply is lost");
        }
        for (to, bytes) in replies {
            self.reply(to, bytes);
        }
    }

    /// A server that was silent takes in what has come meanwhile.
    pub(crate) fn heard(&mut self, server: usize) {
        if self.now < self.sites[server].silent_until {
            return;
        }
        for (link, bytes, fate) in std::mem::take(&mut self.sites[server].unheard) {
            self.arrived(link, bytes, fate);
        }
    }

    fn reply(&mut self, link: LinkId, bytes: Vec<u8>) {
        if self.links.get(&link).is_none_or(|state| state.is_cut) {
            return;
        }
        if !self.log.is_quiet() && self.rng.permille(self.scenario.faults.held / 2) {
            self.hold(link, false);
        }
        self.send(link, self.now, false, Event::ToNode(link, bytes));
    }
}
