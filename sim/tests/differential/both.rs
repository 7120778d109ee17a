//! The simulated server and a real one, which are asked the same and have to answer the same.

use std::time::{Duration, SystemTime};

use tower_offload_sim::redis::{ConnId, Server};

use crate::real::{Connection, Real};

/// How far apart two times may be that each server reckons by its own reading of the clock.
const TOLERANCE: i64 = 30_000;

/// How replies are compared that depend on more than the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Byte for byte.
    Exactly,
    /// Lists may have another order at each level: those of a set.
    Unordered,
    /// Whole numbers may differ by [`TOLERANCE`]: what is left of a time.
    Roughly,
}

pub struct Both {
    pub sim: Server,
    pub own: ConnId,
    listener: ConnId,
    real: Real,
    real_own: Connection,
    real_listener: Connection,
    /// The last calls, which a failure prints.
    story: Vec<String>,
}

impl Both {
    /// Two empty servers, each with a connection that speaks this protocol and one that listens to a
    /// channel.
    pub fn start(is_resp3: bool, channel: &str) -> Self {
        let (mut sim, real) = (Server::new(1), Real::start());
        let (own, listener) = (sim.connect(), sim.connect());
        let (real_own, real_listener) = (real.connect(), real.connect());
        let story = Vec::new();
        let mut both = Self { sim, own, listener, real, real_own, real_listener, story };
        if is_resp3 {
            both.hello();
        }
        both.listen(channel);
        both
    }

    /// Its reply tells the id of the connection, which is not compared.
    fn hello(&mut self) {
        let hello = request(&["HELLO", "3"]);
        self.real_own.send(&hello);
        assert_eq!(self.real_own.reply()[0], b'%');
        assert_eq!(self.sim.receive(self.own, &hello)[0].1[0], b'%');
    }

    fn listen(&mut self, channel: &str) {
        let subscribe = request(&["SUBSCRIBE", channel]);
        self.real_listener.send(&subscribe);
        let reply = self.real_listener.reply();
        let sent = self.sim.receive(self.listener, &subscribe);
        assert_eq!(sent, [(self.listener, reply)]);
    }

    /// Asks both, and returns what they say.
    pub fn ask<W: AsRef<[u8]>>(&mut self, words: &[W], compare: Compare) -> Vec<u8> {
        let request = request(words);
        self.sim.set_time(SystemTime::now());
        self.real_own.send(&request);
        let real = self.real_own.reply();
        let sent = self.sim.receive(self.own, &request);
        let to = |to| {
            let parts = sent.iter().filter(move |(id, _)| *id == to);
            parts.flat_map(|(_, bytes)| bytes.iter().copied()).collect::<Vec<_>>()
        };
        let (own, told) = (to(self.own), to(self.listener));
        self.story.push(words.iter().map(|word| shown(word.as_ref()) + " ").collect());
        self.check(&real, &own, compare);
        // What is published was written before the reply.
        let real = self.real_listener.bytes(told.len());
        self.check(&real, &told, compare);
        own
    }

    fn check(&self, real: &[u8], sim: &[u8], compare: Compare) {
        let same = real == sim
            || match compare {
                Compare::Exactly => false,
                Compare::Unordered => sorted(real) == sorted(sim),
                Compare::Roughly => roughly(real, sim),
            };
        let last = self.story.len().saturating_sub(12);
        assert!(
            same,
            "{}\nredis-server: {}\nsimulation:   {}",
            self.story[last..].join("\n"),
            shown(real),
            shown(sim)
        );
    }

    /// The fields and values of a hash, if it is one, and of UTF-8.
    pub fn hash(&mut self, key: &str) -> Option<Vec<String>> {
        let reply = self.ask(&["HGETALL", key], Compare::Exactly);
        let texts = strings(&reply).into_iter().map(|text| String::from_utf8(text).ok());
        texts.collect::<Option<Vec<_>>>().filter(|_| reply[0] != b'-')
    }

    /// How many members a set has; none if it is no set.
    pub fn count(&mut self, key: &str) -> u64 {
        let reply = self.ask(&["SCARD", key], Compare::Exactly);
        let text = String::from_utf8(reply).unwrap();
        text.trim().strip_prefix(':').map_or(0, |count| count.parse().unwrap())
    }

    /// Sets whether memory is over its limit.
    pub fn set_out_of_memory(&mut self, is_out: bool) {
        let limit = if is_out { "1" } else { "0" };
        self.real_own.send(&request(&["CONFIG", "SET", "maxmemory", limit]));
        assert_eq!(self.real_own.reply(), b"+OK\r\n");
        self.sim.set_maxmemory(is_out.then_some(0));
    }

    /// Compares all keys: their types, their values, and when they expire. Returns how many.
    pub fn compare_keys(&mut self) -> usize {
        let names = self.ask(&["KEYS", "*"], Compare::Unordered);
        let names = strings(&names);
        for name in &names {
            let name = name.as_slice();
            self.ask(&[b"PEXPIRETIME", name], Compare::Roughly);
            let kind = self.ask(&[b"TYPE", name], Compare::Exactly);
            match &kind[..] {
                b"+string\r\n" => self.ask(&[b"GET", name], Compare::Exactly),
                b"+hash\r\n" => self.ask(&[b"HGETALL", name], Compare::Exactly),
                b"+set\r\n" => self.ask(&[b"SMEMBERS", name], Compare::Unordered),
                b"+list\r\n" => self.ask(&[&b"LRANGE"[..], name, b"0", b"-1"], Compare::Exactly),
                b"+zset\r\n" => {
                    let words = [&b"ZRANGE"[..], name, b"0", b"-1", b"WITHSCORES"];
                    self.ask(&words, Compare::Exactly)
                }
                other => panic!("a key of type {}", shown(other)),
            };
        }
        names.len()
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.ask(&["FLUSHALL"], Compare::Exactly);
        self.story.clear();
    }

    /// Checks that the real server sent nothing that the simulated one did not.
    pub fn end(mut self) {
        self.ask(&["PING", "end"], Compare::Exactly);
        let ping = request(&["PING"]);
        self.real_listener.send(&ping);
        let sent = self.sim.receive(self.listener, &ping);
        assert_eq!(sent, [(self.listener, self.real_listener.reply())]);
        drop(self.real);
    }
}

pub fn request<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    text.chars().take(600).collect()
}

/// The lines of a reply in order. Collections have the same number of elements, so that these are the
/// same where the elements are.
fn sorted(reply: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = reply.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

fn roughly(one: &[u8], other: &[u8]) -> bool {
    let lines = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let number = |line: &str| line.strip_prefix(':')?.parse::<i64>().ok();
    let (one, other) = (lines(one), lines(other));
    one.len() == other.len()
        && one.iter().zip(&other).all(|(one, other)| match (number(one), number(other)) {
            // Those that are no times are the same.
            (Some(one), Some(other)) if one > 0 => (one - other).abs() < TOLERANCE,
            _ => one == other,
        })
}

/// The strings of a list.
fn strings(reply: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(end) = reply[at..].windows(2).position(|two| two == b"\r\n") {
        let line = &reply[at..at + end];
        at += end + 2;
        if let Some(len) = line.strip_prefix(b"$") {
            let len: usize = std::str::from_utf8(len).unwrap().parse().unwrap();
            found.push(reply[at..at + len].to_vec());
            at += len + 2;
        }
    }
    found
}

/// So far from now that nothing expires by itself while a test runs.
pub const FAR: Duration = Duration::from_secs(2 * 86_400);
