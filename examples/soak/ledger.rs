//! What the clients were told against what the handlers did and what the store has on its books, and
//! the counts of all three.
//!
//! Most is compared as it is told, and forgotten: a long run is not to fill the memory whose return
//! it checks. What cannot be compared yet (a handler that is being dropped) is kept until the end.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    client::{Job, Told},
    counted::Entry,
    mix::{Kind, Order},
    server::{Deed, Deeds},
};

/// One run's books, open.
pub struct Ledger {
    deeds: Arc<Deeds>,
    /// Whether a drain is part of the run.
    drains: bool,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    pending: Vec<(Order, Told)>,
    /// Tokens whose client met a surprise.
    surprised: HashSet<u64>,
    ids: HashSet<u128>,
    books: Books,
}

/// One run's books, closed.
#[derive(Default)]
pub struct Books {
    counts: BTreeMap<Count, usize>,
    kinds: HashMap<Kind, usize>,
    fast: Latencies,
    entries: BTreeMap<Entry, usize>,
    /// Each thing that was told and does not fit what was done.
    pub wrong: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Count {
    Accepted,
    Succeeded,
    FailedByResponse,
    FailedByPanic,
    FailedByTime,
    Interrupted,
    WasCanceled,
    KeyedInTime,
    Refused,
    Draining,
    PastTheBudget,
    Broken,
    LeftUntold,
    LeftFinished,
    LeftDropped,
    LeftUnbegun,
    /// Of those that were to be finished anyway.
    NotFinished,
}

impl Ledger {
    pub fn new(deeds: Arc<Deeds>, drains: bool) -> Self {
        Self { deeds, drains, pages: Mutex::default() }
    }

    /// A client was told this, after such a time.
    pub fn told(&self, order: Order, told: Told, took: Duration) {
        // A request with a key, or one that was left, may be begun later still.
        let may_begin = order.kind.has_key() || matches!(told, Told::Left | Told::Refused);
        let deed = if may_begin { None } else { self.deeds.take_ended(order.token) };
        let mut pages = self.pages.lock().unwrap();
        *pages.books.kinds.entry(order.kind).or_default() += 1;
        if order.kind == Kind::Fast && matches!(told, Told::Direct(_)) {
            pages.books.fast.add(took.saturating_sub(order.takes));
        }
        if let Told::Job(Job { id, .. }) = &told {
            let new = u128::from_str_radix(id, 16).map(|id| pages.ids.insert(id));
            if new != Ok(true) {
                pages.books.wrong.push(format!("two jobs with the id {id}"));
            }
        }
        match deed {
            Some(deed) => pages.books.enter(&order, &told, Some(deed), self.drains),
            None => pages.pending.push((order, told)),
        }
    }

    /// A client met something that the contract does not have.
    pub fn surprised(&self, order: &Order, surprise: String) {
        let mut pages = self.pages.lock().unwrap();
        pages.surprised.insert(order.token);
        pages.books.wrong.push(format!("{surprise}: {order:?}"));
    }

    /// Compares the rest, once nothing runs any more.
    pub fn close(self, entries: BTreeMap<Entry, usize>) -> Books {
        let Pages { pending, surprised, mut books, .. } = self.pages.into_inner().unwrap();
        let mut deeds = self.deeds.take();
        for (order, told) in pending {
            books.enter(&order, &told, deeds.remove(&order.token), self.drains);
        }
        deeds.retain(|token, _| !surprised.contains(token));
        if !deeds.is_empty() {
            books
                .wrong
                .push(format!("handlers that nobody has ordered, or a second time: {deeds:?}"));
        }
        let twice = self.deeds.take_twice();
        if !twice.is_empty() {
            books.wrong.push(format!("run twice: the tokens {twice:?}"));
        }
        books.entries = entries;
        books.balance();
        books
    }
}

impl Books {
    /// Closed for good; nothing else of them is kept in memory.
    pub fn into_wrong(self) -> Vec<String> {
        self.wrong
    }

    fn count(&self, count: Count) -> usize {
        self.counts.get(&count).copied().unwrap_or_default()
    }

    fn entry(&self, entry: Entry) -> usize {
        self.entries.get(&entry).copied().unwrap_or_default()
    }

    fn enter(&mut self, order: &Order, told: &Told, deed: Option<Deed>, drains: bool) {
        if let Err(why) = fits(order, told, deed, drains) {
            self.wrong.push(format!("{why}: {order:?} {told:?} {deed:?}"));
        }
        let mut add = |count| *self.counts.entry(count).or_default() += 1;
        match told {
            Told::Refused => add(Count::Refused),
            Told::Draining => add(Count::Draining),
            Told::Broken => add(Count::Broken),
            Told::Left => {
                add(Count::LeftUntold);
                match deed {
                    Some(Deed::Finished(_)) => add(Count::LeftFinished),
                    None => add(Count::LeftUnbegun),
                    _ => add(Count::LeftDropped),
                }
                if order.kind == Kind::FinishedAnyway && deed == Some(Deed::Dropped) {
                    add(Count::NotFinished);
                }
            }
            Told::Direct(_) | Told::Problem(_) if order.kind.has_key() => add(Count::KeyedInTime),
            Told::Direct(_) if order.takes >= Duration::from_millis(150) => {
                add(Count::PastTheBudget);
            }
            Told::Direct(_) | Told::Problem(_) => {}
            Told::Job(job) => {
                add(Count::Accepted);
                add(match (&*job.status, job.response_status, job.problem.as_deref()) {
                    ("succeeded", ..) => Count::Succeeded,
                    ("canceled", ..) => Count::WasCanceled,
                    (_, Some(_), _) => Count::FailedByResponse,
                    (_, None, Some("panicked")) => Count::FailedByPanic,
                    (_, None, Some("interrupted")) => Count::Interrupted,
                    _ => Count::FailedByTime,
                });
            }
        }
    }

    /// Every job has ended, by the store's books, and no client was told of more than there are.
    fn balance(&mut self) {
        use Entry::*;
        let ends = [
            (Succeeded, Count::Succeeded),
            (Answered400, Count::FailedByResponse),
            (Panicked, Count::FailedByPanic),
            (TimedOut, Count::FailedByTime),
            (Interrupted, Count::Interrupted),
            (Canceled, Count::WasCanceled),
        ];
        let promised = self.entry(Accepted) - self.entry(TakenBack);
        let ended: usize = ends.iter().map(|(end, _)| self.entry(*end)).sum();
        let mut wrong = Vec::new();
        if promised != ended {
            wrong.push(format!("{promised} jobs were accepted, and {ended} have ended"));
        }
        for (end, told) in ends {
            let (booked, told) = (self.entry(end), self.count(told));
            if told > booked {
                wrong.push(format!("{told} clients were told {end:?}, of {booked} jobs"));
            }
        }
        let untold = promised.saturating_sub(self.count(Count::Accepted));
        let left = self.count(Count::LeftUntold);
        let keyed = self.count(Count::KeyedInTime);
        if !(keyed..=keyed + left).contains(&untold) {
            wrong.push(format!(
                "{untold} jobs that no client was told of, and {keyed} + {left} at most"
            ));
        }
        self.wrong.extend(wrong);
    }

    /// Requests that were to be finished after their client had left, and were dropped.
    pub fn not_finished(&self) -> usize {
        self.count(Count::NotFinished)
    }

    pub fn interrupted(&self) -> usize {
        self.entry(Entry::Interrupted)
    }
}

/// Whether what was told is what the handler did.
fn fits(order: &Order, told: &Told, deed: Option<Deed>, drains: bool) -> Result<(), &'static str> {
    let fits = match (told, deed) {
        (_, Some(Deed::Began)) => return Err("the handler never ended"),
        (Told::Direct(told), Some(Deed::Finished(made))) => *told == made,
        (Told::Refused, None) => true,
        (Told::Draining, None) => drains,
        (Told::Broken, Some(Deed::Panicked)) => true,
        (Told::Problem(problem), deed) => match (&**problem, deed) {
            ("panicked", Some(Deed::Panicked)) => true,
            ("interrupted", None | Some(Deed::Dropped)) => drains,
            _ => false,
        },
        // Half a body is no request.
        (Told::Left, deed) if order.kind == Kind::StallsUpload => deed.is_none(),
        // It may have left before its handler began, or become a job that nobody knows.
        (Told::Left, None | Some(Deed::Dropped | Deed::Finished(_))) => true,
        (Told::Job(job), deed) => return job_fits(order, job, deed, drains),
        _ => false,
    };
    fits.then_some(()).ok_or("told what was not done")
}

fn job_fits(
    order: &Order,
    job: &Job,
    deed: Option<Deed>,
    drains: bool,
) -> Result<(), &'static str> {
    let Job { status, response_status, problem, result, canceled, .. } = job;
    if order.kind == Kind::NoOwner {
        return Err("a job of nobody");
    }
    match (canceled.map(|canceled| canceled.as_u16()), &**status) {
        (None, "succeeded" | "failed") | (Some(200), "canceled") => {}
        (Some(409), "succeeded" | "failed") => {}
        _ => return Err("the answer to DELETE and the end are two"),
    }
    let fits = match (&**status, response_status, problem.as_deref(), deed) {
        ("succeeded" | "failed", Some(told), None, Some(Deed::Finished(made))) => {
            let succeeded = made.status < 400;
            *told == u64::from(made.status)
                && succeeded == (status == "succeeded")
                && *result == made
        }
        ("failed", None, Some("panicked"), Some(Deed::Panicked)) => result.status == 500,
        ("failed", None, Some("timed-out"), Some(Deed::Dropped)) => {
            order.kind == Kind::TimingOut && result.status == 504
        }
        // In the very moment of its end the interruption may have been faster.
        ("failed", None, Some("interrupted"), _) => drains && result.status == 503,
        ("canceled", None, Some("canceled"), deed) => {
            result.status == 410
                && match deed {
                    Some(Deed::Dropped) => true,
                    // The same of a cancellation.
                    Some(Deed::Finished(_)) => {
                        matches!(order.kind, Kind::CanceledAtTheEnd | Kind::CanceledInQueue)
                    }
                    // Canceled before its first poll.
                    None => matches!(order.path, "/always" | "/queued"),
                    _ => false,
                }
        }
        _ => false,
    };
    fits.then_some(()).ok_or("the job ended as its handler did not")
}

/// Times in steps of 100 µs, up to a second.
struct Latencies(Vec<u32>);

impl Default for Latencies {
    fn default() -> Self {
        Self(vec![0; 10_000])
    }
}

impl Latencies {
    const STEP: Duration = Duration::from_micros(100);

    fn add(&mut self, time: Duration) {
        let step = (time.as_micros() / Self::STEP.as_micros()) as usize;
        let last = self.0.len() - 1;
        self.0[step.min(last)] += 1;
    }

    fn at(&self, percent: u32) -> Duration {
        let all: u32 = self.0.iter().sum();
        let mut left = u64::from(all) * u64::from(percent) / 100;
        let step = self.0.iter().take_while(|count| {
            let passed = left >= u64::from(**count);
            left = left.saturating_sub(u64::from(**count));
            passed
        });
        Self::STEP * step.count() as u32
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |kind| self.kinds.get(&kind).copied().unwrap_or_default();
        let count = |count| self.count(count);
        let entry = |entry| self.entry(entry);
        let mut row = |name: &str, number: usize| writeln!(f, "{name:<52}{number:>9}");
        use Kind::*;
        row("requests", self.kinds.values().sum())?;
        row("  fast", kind(Fast))?;
        row("  slow", kind(Slow))?;
        row("  slow, and slowly uploaded", kind(SlowUpload))?;
        row("  to an `always` route", kind(Always))?;
        row("  with `Prefer: respond-async`", kind(Asked))?;
        row("  from nobody", kind(NoOwner))?;
        row("  to a route with a queue", kind(Queued))?;
        row("  with a key, and sent again", kind(Keyed))?;
        row("  with a key, at once three times", kind(KeyedAtOnce))?;
        row("  answering 500", kind(Erring))?;
        row("  panicking at once", kind(PanicAttached))?;
        row("  panicking as a job", kind(PanicJob))?;
        row("  stalling past their time", kind(TimingOut))?;
        row("  whose upload stalls", kind(StallsUpload))?;
        row("  to be canceled", kind(Canceled))?;
        row("  to be canceled at about their end", kind(CanceledAtTheEnd))?;
        row("  to be canceled in a queue", kind(CanceledInQueue))?;
        row("  whose client leaves while attached", kind(LeavesAttached))?;
        row("  whose client leaves at about the 202", kind(LeavesAtTheBudget))?;
        row("  whose client leaves while it waits", kind(LeavesWaiting))?;
        row("  whose client leaves, to be finished all the same", kind(FinishedAnyway))?;
        row("  with a key, whose client leaves and sends it again", kind(KeyedAgain))?;
        row("jobs by the store's books", entry(Entry::Accepted) - entry(Entry::TakenBack))?;
        row("  succeeded", entry(Entry::Succeeded))?;
        row("  failed, by their response", entry(Entry::Answered400))?;
        row("  failed, by a panic", entry(Entry::Panicked))?;
        row("  failed, by their time", entry(Entry::TimedOut))?;
        row("  interrupted", entry(Entry::Interrupted))?;
        row("  canceled", entry(Entry::Canceled))?;
        row("taken back, before anybody was told", entry(Entry::TakenBack))?;
        row("clients answered 202", count(Count::Accepted))?;
        row("  told of a success", count(Count::Succeeded))?;
        row("  told of a failure, by its response", count(Count::FailedByResponse))?;
        row("  told of a failure, by a panic", count(Count::FailedByPanic))?;
        row("  told of a failure, by its time", count(Count::FailedByTime))?;
        row("  told of an interruption", count(Count::Interrupted))?;
        row("  told of a cancellation", count(Count::WasCanceled))?;
        row("keys whose job was answered within the budget", count(Count::KeyedInTime))?;
        row("refused with 503, without room", count(Count::Refused))?;
        row("refused with 503, while shutting down", count(Count::Draining))?;
        row("attached past their budget", count(Count::PastTheBudget))?;
        row("connections that a panic broke", count(Count::Broken))?;
        row("clients that left without an answer", count(Count::LeftUntold))?;
        row("  whose handler was finished", count(Count::LeftFinished))?;
        row("  whose handler was dropped", count(Count::LeftDropped))?;
        row("    though it was to be finished: no room", count(Count::NotFinished))?;
        row("  whose handler had not begun", count(Count::LeftUnbegun))?;
        for (name, percent) in [("median", 50), ("99th percentile", 99)] {
            let name = format!("fast: {name} of the time beyond the handler");
            writeln!(f, "{name:<52}{:>9.1?}", self.fast.at(percent))?;
        }
        Ok(())
    }
}
