//! What the clients ask for: kinds of requests, how often each, and the numbers drawn for one.

use std::{ops::Range, time::Duration};

/// How long a handler may take until its request becomes a job.
pub const BUDGET: Duration = Duration::from_millis(100);

/// How long a job of the `/limited` route may run.
pub const RUN_TIME: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Answers well within the budget.
    Fast,
    /// Takes longer than the budget.
    Slow,
    /// As slow, and sent in pieces that come over a longer time than the budget.
    SlowUpload,
    /// To the route that makes a job of every request.
    Always,
    /// With `Prefer: respond-async`.
    Asked,
    /// Answers 500, as a job or before.
    Erring,
    /// Panics before the budget has run out.
    PanicAttached,
    /// Panics as a job.
    PanicJob,
    /// Takes longer than its job may run.
    TimingOut,
    /// Canceled long before its end.
    Canceled,
    /// Canceled at about its end.
    CanceledAtTheEnd,
    /// Its client leaves before the budget has run out.
    LeavesAttached,
    /// Its client leaves at about the moment of the 202.
    LeavesAtTheBudget,
    /// Its client leaves while it waits for the job's end, and comes back.
    LeavesWaiting,
    /// Its client sends half of its body, then nothing more, then leaves.
    StallsUpload,
    /// Its client leaves before the budget has run out; the handler is to be finished all the same.
    FinishedAnyway,
    /// To a route with few places and a queue.
    Queued,
    /// The same, and canceled soon.
    CanceledInQueue,
    /// From nobody: it can have no job.
    NoOwner,
    /// With an `Idempotency-Key`, and sent again once it is answered.
    Keyed,
    /// Its client leaves, now and then more than once, and sends it again.
    KeyedAgain,
    /// Sent three times at once.
    KeyedAtOnce,
}

impl Kind {
    pub fn has_key(self) -> bool {
        matches!(self, Keyed | KeyedAgain | KeyedAtOnce)
    }
}

use Kind::*;

/// Each kind, and how many of a thousand requests are of it.
const MIX: [(Kind, u64); 22] = [
    (Fast, 876),
    (Slow, 14),
    (SlowUpload, 6),
    (Always, 8),
    (Asked, 6),
    (Erring, 6),
    (PanicAttached, 4),
    (PanicJob, 4),
    (TimingOut, 4),
    (Canceled, 6),
    (CanceledAtTheEnd, 4),
    (LeavesAttached, 4),
    (LeavesAtTheBudget, 4),
    (LeavesWaiting, 4),
    (StallsUpload, 4),
    (FinishedAnyway, 6),
    (Queued, 14),
    (CanceledInQueue, 4),
    (NoOwner, 4),
    (Keyed, 6),
    (KeyedAgain, 8),
    (KeyedAtOnce, 4),
];

/// How the handler is to end.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub enum Ending {
    Ok,
    Error,
    Panic,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Order {
    /// Nobody else's.
    pub token: u64,
    pub kind: Kind,
    pub path: &'static str,
    pub ending: Ending,
    /// How long the handler takes.
    pub takes: Duration,
    /// How many bytes it answers.
    pub size: usize,
    /// When the client does to the request, or with its job, what its kind says.
    pub after: Duration,
}

impl Order {
    pub fn draw(token: u64, random: &mut Random) -> Self {
        let mut at = random.between(0..1000);
        let mut kinds = MIX.iter();
        let kind = loop {
            match kinds.next() {
                Some((_, share)) if at >= *share => at -= share,
                Some((kind, _)) => break *kind,
                None => break Fast,
            }
        };
        let (takes, after) = match kind {
            Fast | PanicAttached => (0..20, 0..1),
            Slow | SlowUpload => (200..800, 50..70),
            Always | Asked => (0..500, 0..1),
            Erring => (0..400, 0..1),
            PanicJob => (200..400, 0..1),
            TimingOut => (3000..3001, 0..1),
            Canceled => (2000..2001, 0..300),
            CanceledAtTheEnd => (300..301, 190..210),
            LeavesAttached => (1000..1001, 20..80),
            LeavesAtTheBudget => (300..301, 90..115),
            LeavesWaiting => (600..900, 20..80),
            StallsUpload => (0..1, 50..300),
            FinishedAnyway => (150..400, 20..80),
            Queued => (100..400, 0..1),
            CanceledInQueue => (100..400, 0..100),
            NoOwner => (150..300, 0..1),
            Keyed | KeyedAtOnce => (0..300, 0..1),
            KeyedAgain => (0..400, 0..250),
        };
        Self {
            token,
            kind,
            path: match kind {
                Always => "/always",
                TimingOut => "/limited",
                FinishedAnyway => "/finished",
                Queued | CanceledInQueue => "/queued",
                Keyed | KeyedAgain | KeyedAtOnce => "/keyed",
                StallsUpload => ["/after", "/always", "/queued", "/keyed"][token as usize % 4],
                // Either way to become a job that is canceled.
                Canceled if token % 2 == 0 => "/always",
                _ => "/after",
            },
            ending: match kind {
                Erring => Ending::Error,
                PanicAttached | PanicJob => Ending::Panic,
                // Some of these too.
                Queued | Keyed | KeyedAgain | KeyedAtOnce if token % 16 == 0 => Ending::Panic,
                Queued | Keyed | KeyedAgain | KeyedAtOnce if token % 16 == 1 => Ending::Error,
                _ => Ending::Ok,
            },
            takes: Duration::from_millis(random.between(takes)),
            size: if random.between(0..20) == 0 {
                60_000
            } else {
                random.between(0..2000) as usize
            },
            after: Duration::from_millis(random.between(after)),
        }
    }
}

/// A small generator (xorshift64*): the same clients draw the same numbers in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn between(&mut self, range: Range<u64>) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        range.start + number % (range.end - range.start)
    }
}
