//! Random calls of the store's scripts, as its crate makes them, and now and then as it does not.

use std::time::{Duration, SystemTime};

use crate::both::FAR;

/// A generator of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

const BASE: &str = "{tower-offload:03}:";
pub const CHANNEL: &str = "{tower-offload:03}:changes";
const LEASES: &str = "{tower-offload:nodes}:l";
const FENCED: &str = "{tower-offload:nodes}:f";
const NODES: &[&str] = &["node-one", "node-two", "node-three"];
const POLICIES: &[&str] = &["", "report", "a policy: 7"];
const CLAIMS: &[&str] = &["c1", "c2", "c3", "c4"];
const FAILURES: &[&str] =
    &["interrupted", "node_lost", "panicked", "timed_out", "service_error", "interrupted"];
const IDS: u64 = 5;

/// The scripts that are called most: without these nothing is there.
const OFTEN: &[&str] = &["enqueue", "take", "take", "insert", "change", "change"];

/// The calls of one run: what they are about, and what the clock says.
pub struct Calls {
    pub random: Random,
    /// What the scripts are given in place of the server's clock.
    clock: SystemTime,
    number: u64,
    last_take: Option<Call>,
}

/// A call of a script: its keys and its arguments.
#[derive(Clone)]
pub struct Call {
    pub script: String,
    pub keys: Vec<String>,
    pub args: Vec<String>,
}

impl Call {
    /// The words of the command that runs the script.
    pub fn words(&self, sha: &str) -> Vec<String> {
        let count = self.keys.len().to_string();
        let mut words = texts(&["EVALSHA", sha, &count]);
        words.extend_from_slice(&self.keys);
        words.extend_from_slice(&self.args);
        words
    }
}

fn call(script: &str, keys: Vec<String>, args: Vec<String>) -> Call {
    Call { script: script.to_owned(), keys, args }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn base(rest: &str) -> String {
    format!("{BASE}{rest}")
}

impl Calls {
    pub fn new(seed: u64) -> Self {
        let clock = SystemTime::now() + FAR * 10;
        Self { random: Random(seed), clock, number: 0, last_take: None }
    }

    fn id(&mut self) -> String {
        format!("{:032x}", 0x1111_1111 * (1 + self.random.next() % IDS))
    }

    fn node(&mut self) -> String {
        self.random.pick(NODES).to_owned()
    }

    fn policy(&mut self) -> String {
        self.random.pick(POLICIES).to_owned()
    }

    /// The number of a call: most of them grow.
    fn number(&mut self) -> String {
        self.number += 1;
        self.number.saturating_sub(self.random.next() % 4).to_string()
    }

    /// Moves the clock, and gives it as `TIME` does: seconds and microseconds.
    pub fn time(&mut self) -> [String; 2] {
        let random = self.random.next();
        match random % 40 {
            // Either way, but never near the real time: what is due then would expire by itself.
            0 => self.clock += Duration::from_secs(random % 20_000),
            1 => self.clock -= Duration::from_secs(random % 20_000),
            2 => {
                let far = FAR * 10 + Duration::from_secs(random % 1000);
                let now = SystemTime::now();
                self.clock = if random.is_multiple_of(3) { now - far } else { now + far };
            }
            _ => self.clock += Duration::from_micros(random % 3_000_000),
        }
        let since = self.clock.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        [since.as_secs().to_string(), since.subsec_micros().to_string()]
    }

    fn nanos(&self) -> String {
        self.clock.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos().to_string()
    }

    /// The fields and values of a new record.
    fn record(&mut self, policy: &str, claim: Option<&str>, attempts: u64) -> Vec<String> {
        let status = if attempts > 0 || self.random.once_in(3) { "queued" } else { "running" };
        let ttl = match self.random.below(40) {
            0 => "18446744073709551615999999999".to_owned(),
            1 => "0".to_owned(),
            n => (n as u64 * 1_000_000_007).to_string(),
        };
        let version = if self.random.once_in(30) { "4294967295" } else { "1" };
        let created = match self.random.below(20) {
            0 => "5".to_owned(),
            1 => "99999999999999999999".to_owned(),
            _ => self.nanos(),
        };
        let mut all = texts(&["s", status, "v", version, "w", "1", "c", &created, "t", &ttl]);
        if self.random.once_in(15) {
            all.extend(texts(&["F", "9"]));
        }
        if status == "running" {
            all.extend(texts(&["b", &self.nanos()]));
        }
        if !policy.is_empty() {
            all.extend(texts(&["p", policy]));
        }
        if self.random.once_in(2) {
            all.extend(texts(&["o", "owner"]));
        }
        if let Some(claim) = claim {
            all.extend(texts(&["k", claim, "q", "f00d"]));
        }
        if attempts > 0 {
            all.extend(texts(&["a", "0", "m", &attempts.to_string()]));
        }
        all
    }

    /// The next call; of a script that is not known here, one with any keys and arguments. Where it
    /// brings a record as it is, that is read by `hash`: its fields and values, if it is one.
    pub fn next(
        &mut self,
        scripts: &[String],
        hash: impl FnOnce(&str) -> Option<Vec<String>>,
    ) -> Call {
        if let (true, Some(take)) = (self.random.once_in(40), &self.last_take) {
            // Its answer was lost.
            return take.clone();
        }
        let mut script = scripts[self.random.below(scripts.len())].clone();
        if self.random.once_in(2) {
            script = self.random.pick(OFTEN).to_owned();
        }
        let mut call = match script.as_str() {
            "insert" => self.insert(),
            "enqueue" => self.enqueue(),
            "change" | "bring" => self.change(hash),
            "chunk" => {
                let (id, size) = (self.id(), self.random.below(40));
                let key = base(&format!("o:{id}:{:032x}", 7));
                call("chunk", vec![key], vec!["x".repeat(size), "3600000".into()])
            }
            "take" => self.take(),
            "take_back" => self.take_back(),
            "fetch" => {
                let id = self.id();
                let mut keys = vec![base(&format!("j:{id}"))];
                if self.random.once_in(2) {
                    keys.push(base(&format!("o:{id}")));
                }
                // Where an owner asks, it may be another than the job's.
                let owners: &[&[&str]] = &[&[], &["owner"], &["stranger"]];
                call("fetch", keys, texts(self.random.pick(owners)))
            }
            "look" => call("look", vec![base(&format!("j:{}", self.id()))], vec![]),
            "claimed" => {
                let claim = base(&format!("c:{}", self.random.pick(CLAIMS)));
                call("claimed", vec![claim], vec![base("j:")])
            }
            "usage" => call("usage", vec![base("i"), base("n")], vec![]),
            "given_up" => {
                let [most, from] = [3, 2].map(|below| self.random.below(below).to_string());
                call("given_up", vec![base("d")], vec![base("j:"), most, from])
            }
            "renew" | "fence" => {
                let (node, lease) = (self.node(), self.random.pick(&["10000", "1", "100000"]));
                call(&script, texts(&[LEASES, FENCED]), texts(&[&node, lease]))
            }
            "give" => call("give", texts(&[LEASES]), vec![self.node(), self.node()]),
            "reap" => self.reap(),
            "due" => {
                let queues = POLICIES.iter().map(|policy| base(&format!("q:{policy}")));
                call("due", queues.collect(), vec![])
            }
            "queued" => call("queued", vec![base("n")], vec![self.policy()]),
            "hand_back" => self.hand_back(),
            "corrupt" => self.corrupt(hash),
            _ => {
                let keys = (0..self.random.below(6)).map(|_| self.any_key()).collect();
                let args = (0..self.random.below(7)).map(|_| self.any_text()).collect();
                call(&script, keys, args)
            }
        };
        call.script = script;
        if self.random.once_in(60) {
            self.spoil(&mut call);
        }
        call
    }

    /// As no crate makes it.
    fn spoil(&mut self, call: &mut Call) {
        let text = self.any_text();
        let at = self.random.below(call.args.len().max(1));
        match self.random.below(3) {
            0 => drop(call.args.pop()),
            1 if at < call.args.len() => call.args[at] = text,
            _ => drop(call.keys.pop()),
        }
    }

    fn any_text(&mut self) -> String {
        let (id, node, nanos) = (self.id(), self.node(), self.nanos());
        let odd = ["", "x", "0", "-1", "1e300", "nan", "-0", "5", "cancel", "queued", "\u{e9}"];
        self.random.pick(&[&odd[..], &[&id, &node, &nanos]].concat()).to_owned()
    }

    pub fn any_key(&mut self) -> String {
        let (id, node, policy) = (self.id(), self.node(), self.policy());
        let claim = self.random.pick(CLAIMS);
        base(&match self.random.below(12) {
            0 | 1 => format!("j:{id}"),
            2 => format!("o:{id}"),
            3 => format!("b:{id}"),
            4 => format!("x:{id}"),
            5 => format!("c:{claim}"),
            6 => format!("r:{node}"),
            7 => format!("q:{policy}"),
            8 => "i".to_owned(),
            9 => "n".to_owned(),
            10 => "f".to_owned(),
            _ => "d".to_owned(),
        })
    }

    fn insert(&mut self) -> Call {
        let (id, node) = (self.id(), self.node());
        let claim = self.random.once_in(2).then(|| self.random.pick(CLAIMS));
        self.insert_of(&id, &node, claim.as_slice())
    }

    /// Of this id, and with this claim, if there is one.
    pub fn insert_of(&mut self, id: &str, node: &str, claim: &[&str]) -> Call {
        let (policy, number) = (self.policy(), self.number());
        let mut keys = vec![base(&format!("j:{id}")), base("i"), base("n"), base("f")];
        keys.extend(claim.iter().map(|claim| base(&format!("c:{claim}"))));
        let mut args = texts(&[id, node, &policy, &number]);
        args.extend(self.record(&policy, claim.first().copied(), 0));
        call("insert", keys, args)
    }

    fn enqueue(&mut self) -> Call {
        let (id, node, policy, number) = (self.id(), self.node(), self.policy(), self.number());
        let claim = self.random.once_in(2).then(|| self.random.pick(CLAIMS));
        let mut keys = vec![base(&format!("j:{id}")), base("i"), base("n"), base("f")];
        keys.extend(claim.map(|claim| base(&format!("c:{claim}"))));
        let mut args = texts(&[&id, "PUBLISH", CHANNEL, &policy, "a request", &node, &number]);
        let attempts = 1 + self.random.next() % 3;
        args.extend(self.record(&policy, claim, attempts));
        call("enqueue", keys, args)
    }

    fn change(&mut self, hash: impl FnOnce(&str) -> Option<Vec<String>>) -> Call {
        let (id, mut node) = (self.id(), self.node());
        if !self.random.once_in(3) {
            // By the node whose job it is, if there is one.
            let fields = hash(&base(&format!("j:{id}"))).unwrap_or_default();
            let own = fields.chunks_exact(2).find(|pair| pair[0] == "y");
            node = own.map_or(node, |pair| pair[1].clone());
        }
        let mut keys = texts(&[
            &base(&format!("j:{id}")),
            &base(&format!("o:{id}")),
            &base("i"),
            &base("n"),
            &base("f"),
        ]);
        let mut args = texts(&[&id, "PUBLISH", CHANNEL, &node]);
        match self.random.below(10) {
            0 => args.extend(texts(&["start"])),
            1 => args.extend(texts(&["progress", "{\"part\":0.5}"])),
            2 | 7 => {
                let outcome = "o".repeat(self.random.below(50));
                let bytes = outcome.len().to_string();
                args.extend(texts(&["response", "succeeded", "200", &bytes, &outcome]));
            }
            3 => {
                keys.push(base(&format!("o:{id}:{:032x}", 7)));
                args.extend(texts(&["response", "failed", "500", "100"]));
            }
            4 | 5 => {
                args.extend(texts(&["failure", self.random.pick(FAILURES)]));
                // The attempt is told where it is known.
                let attempts: &[&[&str]] = &[&[], &["1"], &["2"]];
                args.extend(texts(self.random.pick(attempts)));
            }
            6 => args.extend(texts(&["cancel"])),
            _ => args.extend(texts(&["remove"])),
        }
        call("change", keys, args)
    }

    fn take(&mut self) -> Call {
        let (policy, node) = (self.policy(), self.node());
        let this = format!("{:032x}", self.random.next() % 6);
        let keys = texts(&[&base(&format!("q:{policy}")), &base("f"), &base(&format!("t:{this}"))]);
        let format = if self.random.once_in(10) { "0" } else { "1" };
        let args = texts(&[&node, &base("j:"), "PUBLISH", CHANNEL, &this, format]);
        let call = call("take", keys, args);
        self.last_take = Some(call.clone());
        call
    }

    fn take_back(&mut self) -> Call {
        let (id, node, number) = (self.id(), self.node(), self.number());
        let (job, outcome) = (base(&format!("j:{id}")), base(&format!("o:{id}")));
        let keys = vec![job, outcome, base("i"), base("n")];
        call("take_back", keys, texts(&[&id, "PUBLISH", CHANNEL, &node, &number, "node-zero"]))
    }

    fn hand_back(&mut self) -> Call {
        let (id, node) = (self.id(), self.node());
        let keys = texts(&[&base(&format!("j:{id}")), &base(&format!("r:{node}")), &base("i")]);
        let attempt = self.random.pick(&["1", "1", "2", "0"]);
        let reason = self.random.pick(&["node_lost", "interrupted"]);
        call("hand_back", keys, texts(&[&id, "PUBLISH", CHANNEL, &node, attempt, reason]))
    }

    fn corrupt(&mut self, hash: impl FnOnce(&str) -> Option<Vec<String>>) -> Call {
        let (id, node, policy) = (self.id(), self.node(), self.policy());
        let (job, outcome) = (base(&format!("j:{id}")), base(&format!("o:{id}")));
        let mut before = hash(&job);
        if let Some(before) = before.as_mut().filter(|before| !before.is_empty()) {
            // It has changed since it was read.
            match self.random.below(6) {
                0 => before.truncate(before.len() - 2),
                1 => before[1].push('x'),
                _ => {}
            }
        }
        let many = before.as_ref().map_or("-1".to_owned(), |before| before.len().to_string());
        let mut args = texts(&[&id, "PUBLISH", CHANNEL, &node, &many]);
        args.extend(before.unwrap_or_default());
        args.extend(texts(&[
            "s",
            "failed",
            "v",
            "9",
            "w",
            "9",
            "t",
            "60000000000",
            "f",
            "corrupt",
        ]));
        if self.random.once_in(2) {
            args.extend(texts(&["p", &policy]));
        }
        if self.random.once_in(2) {
            args.extend(texts(&["k", self.random.pick(CLAIMS), "c", &self.nanos()]));
        }
        call("corrupt", vec![job, outcome, base("i"), base("n")], args)
    }

    pub fn reap(&mut self) -> Call {
        let node = self.node();
        let keys = texts(&[&base(&format!("r:{node}")), &base("i"), &base("n"), &base("f")]);
        call("reap", keys, texts(&[&node, &base("j:"), "PUBLISH", CHANNEL]))
    }

    /// A command that damages what is stored, as an operator may, or a fault.
    pub fn damage(&mut self) -> Vec<String> {
        let (key, other, text) = (self.any_key(), self.any_key(), self.any_text());
        let (id, node) = (self.id(), self.node());
        let job = base(&format!("j:{id}"));
        match self.random.below(16) {
            0 => texts(&["DEL", &key]),
            1 => texts(&["SET", &key, &text]),
            2 => texts(&["HSET", &job, "v", &text]),
            3 => texts(&["HSET", &job, "n", &text]),
            4 => texts(&["HDEL", &job, "b", "p"]),
            5 => texts(&["HSET", &job, "s", "running", "y", &node]),
            6 => texts(&["ZREM", &base("f"), &node]),
            7 => texts(&["SADD", &base(&format!("r:{node}")), &id, &text]),
            8 => texts(&["ZADD", LEASES, "1", &node]),
            9 => texts(&["ZREM", FENCED, &node]),
            10 => texts(&["HSET", &key, "s", "queued", "v", "1"]),
            14 => texts(&["SET", &job, &text]),
            12 => texts(&["HSET", &job, "F", "1000000"]),
            13 => texts(&["ZADD", &base("i"), "1", &text]),
            11 => texts(&["HSET", &job, "c", self.random.pick(&["5", "99999999999999999999"])]),
            _ => texts(&["RENAME", &key, &other]),
        }
    }
}
