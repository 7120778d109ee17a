//! What the clients were told against what the handlers did, and the counts of both.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use crate::{
    client::{Job, Life, Told},
    mix::{Kind, Order},
    server::Deed,
};

/// One run's books.
#[derive(Default)]
pub struct Ledger {
    counts: HashMap<Count, usize>,
    kinds: HashMap<Kind, usize>,
    /// What the fast ones took longer than their handlers.
    fast: Vec<Duration>,
    /// Each thing that was told and does not fit what was done.
    pub wrong: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Count {
    Accepted,
    Succeeded,
    FailedByResponse,
    FailedByPanic,
    FailedByTime,
    WasCanceled,
    Refused,
    AtTheLimit,
    Broken,
    LeftUntold,
    BecameJobs,
}

impl Ledger {
    /// Compares both sides, once nothing runs any more.
    pub fn of(lives: Vec<Life>, mut deeds: HashMap<u64, Deed>) -> Self {
        let mut this = Self::default();
        let mut ids = HashSet::new();
        for life in lives {
            this.wrong.extend(life.surprises);
            for (order, told, took) in life.told {
                let deed = deeds.remove(&order.token);
                if let Err(why) = fits(&order, &told, deed) {
                    this.wrong.push(format!("{why}: {order:?} {told:?} {deed:?}"));
                }
                if let Told::Job(Job { id, .. }) = &told {
                    if !ids.insert(id.clone()) {
                        this.wrong.push(format!("two jobs with the id {id}"));
                    }
                }
                this.count(&order, &told, deed, took);
            }
        }
        // What remains are requests whose client met a surprise; they are told above.
        let stuck = deeds.values().filter(|deed| **deed == Deed::Began).count();
        if stuck > 0 {
            this.wrong.push(format!("{stuck} handlers never ended"));
        }
        this.fast.sort_unstable();
        this
    }

    /// Closes the books; nothing else of them is kept in memory.
    pub fn into_wrong(self) -> Vec<String> {
        self.wrong
    }

    fn count(&mut self, order: &Order, told: &Told, deed: Option<Deed>, took: Duration) {
        *self.kinds.entry(order.kind).or_default() += 1;
        let mut add = |count| *self.counts.entry(count).or_default() += 1;
        match told {
            Told::Refused => add(Count::Refused),
            Told::Broken => add(Count::Broken),
            Told::Left => {
                add(Count::LeftUntold);
                // Attached, it would have been dropped.
                if matches!(deed, Some(Deed::Finished(_))) {
                    add(Count::BecameJobs);
                }
            }
            Told::Direct(_) if order.kind == Kind::Fast => {
                self.fast.push(took.saturating_sub(order.takes))
            }
            Told::Direct(_) if order.takes >= Duration::from_millis(200) => add(Count::AtTheLimit),
            Told::Direct(_) => {}
            Told::Job(job) => {
                add(Count::Accepted);
                add(match (&*job.status, job.response_status, deed) {
                    ("succeeded", ..) => Count::Succeeded,
                    ("canceled", ..) => Count::WasCanceled,
                    (_, Some(_), _) => Count::FailedByResponse,
                    (_, None, Some(Deed::Panicked)) => Count::FailedByPanic,
                    _ => Count::FailedByTime,
                });
            }
        }
    }

    fn fast(&self, percent: usize) -> Duration {
        let last = self.fast.len().saturating_sub(1);
        self.fast.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// Whether what was told is what the handler did.
fn fits(order: &Order, told: &Told, deed: Option<Deed>) -> Result<(), &'static str> {
    let fits = match (told, deed) {
        (_, Some(Deed::Began)) => return Err("the handler never ended"),
        (Told::Direct(told), Some(Deed::Finished(made))) => *told == made,
        (Told::Refused, None) => true,
        (Told::Broken, Some(Deed::Panicked)) => true,
        // It may have left before its handler began, or become a job that nobody knows.
        (Told::Left, None | Some(Deed::Dropped | Deed::Finished(_))) => true,
        (Told::Job(job), deed) => return job_fits(order, job, deed),
        _ => false,
    };
    fits.then_some(()).ok_or("told what was not done")
}

fn job_fits(order: &Order, job: &Job, deed: Option<Deed>) -> Result<(), &'static str> {
    let Job { status, response_status, problem, result, canceled, .. } = job;
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
        ("canceled", None, Some("canceled"), deed) => {
            result.status == 410
                && match deed {
                    Some(Deed::Dropped) => true,
                    // In the very moment of its end the cancellation was faster.
                    Some(Deed::Finished(_)) => order.kind == Kind::CanceledAtTheEnd,
                    // Canceled before its first poll.
                    None => order.path == "/always",
                    _ => false,
                }
        }
        _ => false,
    };
    fits.then_some(()).ok_or("the job ended as its handler did not")
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |kind| self.kinds.get(&kind).copied().unwrap_or_default();
        let count = |count| self.counts.get(&count).copied().unwrap_or_default();
        let mut row = |name: &str, number: usize| writeln!(f, "{name:<44}{number:>9}");
        use {Count::*, Kind::*};
        row("requests", self.kinds.values().sum())?;
        row("  fast", kind(Fast))?;
        row("  slow", kind(Slow))?;
        row("  slow, and slowly uploaded", kind(SlowUpload))?;
        row("  to an `always` route", kind(Always))?;
        row("  with `Prefer: respond-async`", kind(Asked))?;
        row("  answering 500", kind(Erring))?;
        row("  panicking at once", kind(PanicAttached))?;
        row("  panicking as a job", kind(PanicJob))?;
        row("  running out of time", kind(TimingOut))?;
        row("  to be canceled", kind(Canceled))?;
        row("  to be canceled at about their end", kind(CanceledAtTheEnd))?;
        row("  whose client leaves while attached", kind(LeavesAttached))?;
        row("  whose client leaves at about the 202", kind(LeavesAtTheBudget))?;
        row("  whose client leaves while it waits", kind(LeavesWaiting))?;
        row("answered 202", count(Accepted))?;
        row("  succeeded", count(Succeeded))?;
        row("  failed, by their response", count(FailedByResponse))?;
        row("  failed, by a panic", count(FailedByPanic))?;
        row("  failed, by their time", count(FailedByTime))?;
        row("  canceled", count(WasCanceled))?;
        row("refused with 503", count(Refused))?;
        row("attached past their budget, at the limit", count(AtTheLimit))?;
        row("connections that a panic broke", count(Broken))?;
        row("clients that left without an answer", count(LeftUntold))?;
        row("  whose request became a job all the same", count(BecameJobs))?;
        writeln!(
            f,
            "{:<44}{:>9.2?}",
            "fast: median of the time beyond the handler",
            self.fast(50)
        )?;
        writeln!(f, "{:<44}{:>9.2?}", "fast: 99th percentile of it", self.fast(99))
    }
}
