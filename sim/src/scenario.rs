//! What a seed decides of a run before it begins: how large it is, and which faults happen how often.

use crate::{facts::Millis, rng::Rng, world::BOUND};

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many servers; none: one node with its store in memory.
    pub servers: usize,
    /// How many replicas each 202 waits for.
    pub wait_replicas: u32,
    /// How long a lease lasts.
    pub lease: Millis,
    /// How long a call to a server may take.
    pub timeout: Millis,
    /// How long an ended job is kept.
    pub ttl: Millis,
    /// How many jobs a node runs at once.
    pub max_running: usize,
    /// How many clients there are.
    pub clients: usize,
    /// How many tasks each has.
    pub tasks: u64,
    /// When all servers go away for [`AWAY`], if they do.
    pub away_at: Option<Millis>,
    /// When faults are over.
    pub quiet_at: Millis,
    /// The faults.
    pub faults: Faults,
}

/// How often each kind of fault happens.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Of 1,000 messages: the link is cut and the message lost.
    pub lost: u64,
    /// Of 1,000 messages: the link is cut once the server has it, so that its reply is lost.
    pub reply_lost: u64,
    /// Of 1,000 messages: it is held up, and what comes behind it.
    pub held: u64,
    /// How long one is held up at most.
    pub held_for: Millis,
    /// The mean time between two faults of the list; none: never.
    pub every: Option<Millis>,
    /// How often each happens, beside the others.
    pub weights: Vec<(u64, Kind)>,
    /// How far a node's clock drifts: parts in a million.
    pub drift: u64,
}

/// A kind of fault that happens at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node is killed, and another begun in its place later.
    Kill,
    /// A node is paused, for longer than its lease, it may be.
    Pause,
    /// A node is shut down in order, and begun again.
    Drain,
    /// A node reaches no server for a while.
    Partition,
    /// All links to a server are cut.
    Cut,
    /// A server restarts, with all its data.
    Restart,
    /// A server restarts without its last writes.
    RestartLosingSome,
    /// A server restarts with nothing.
    RestartEmpty,
    /// A replica that lags takes over.
    Failover,
    /// A server answers nobody for a while.
    Hang,
    /// A server's clock jumps.
    Clock,
    /// A server's memory is full for a while.
    Memory,
}

/// So long all servers are away, where they are: longer than anything that is kept so that a call can be
/// repeated.
pub const AWAY: Millis = 700_000;

const KINDS: [(u64, Kind); 12] = [
    (6, Kind::Kill),
    (4, Kind::Pause),
    (3, Kind::Drain),
    (4, Kind::Partition),
    (3, Kind::Cut),
    (2, Kind::Restart),
    (1, Kind::RestartLosingSome),
    (1, Kind::RestartEmpty),
    (1, Kind::Failover),
    (2, Kind::Hang),
    (2, Kind::Clock),
    (1, Kind::Memory),
];

impl Scenario {
    /// Returns the scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(1);
        let servers = rng.pick(&[0, 1, 1, 1, 1, 1, 3, 3]);
        let mut faults = Faults::of(&mut rng, servers);
        // Notes that are kept for a fixed time, and clients that try again for longer than that.
        let is_long = servers > 0 && rng.permille(60);
        if is_long {
            faults.every = None;
        }
        Self {
            nodes: if servers == 0 { 1 } else { rng.between(1, 4) as usize },
            servers,
            wait_replicas: u32::from(servers > 0 && rng.permille(200)),
            lease: rng.between(1000, 3000),
            timeout: rng.pick(&[300, 500, 1000]),
            ttl: rng.pick(&[8_000, 20_000, 3_600_000, 3_600_000]),
            max_running: rng.pick(&[3, 6, 128]),
            clients: rng.between(2, 5) as usize,
            tasks: rng.between(3, 8),
            away_at: is_long.then(|| rng.between(2_000, 8_000)),
            quiet_at: rng.between(8_000, 25_000) + if is_long { AWAY } else { 0 },
            faults,
        }
    }
}

impl Scenario {
    /// How far apart two clocks may be, where no server's is set: each node begins with one of its own,
    /// and drifts until the end of the run.
    pub fn clocks_apart(&self) -> Millis {
        let until = self.quiet_at + 2 * BOUND;
        10_000 + 2 * until * self.faults.drift / 1_000_000
    }
}

impl Faults {
    fn of(rng: &mut Rng, servers: usize) -> Self {
        // Some runs have none, many a few kinds only: what goes wrong then is seen for itself.
        if rng.permille(80) {
            return Self::default();
        }
        let all = rng.permille(200);
        let mut weights = Vec::new();
        for (weight, kind) in KINDS {
            let is_node = matches!(kind, Kind::Kill | Kind::Pause | Kind::Drain);
            if (servers > 0 || is_node) && (all || rng.permille(300)) {
                weights.push((weight, kind));
            }
        }
        let has_lossy = rng.permille(500);
        let mut chance = |most| if has_lossy && rng.permille(600) { rng.below(most) } else { 0 };
        Self {
            lost: chance(20),
            reply_lost: chance(25),
            held: chance(15),
            held_for: rng.pick(&[200, 1500, 6000]),
            every: (!weights.is_empty()).then(|| rng.pick(&[800, 2500, 6000])),
            weights,
            drift: rng.pick(&[0, 0, 500, 20_000]),
        }
    }
}
