//! A job as the store in memory has it: its record and outcome, what it counts with, and who waits
//! for it to change.
//!
//! Small, since there may be a million. What a job has only before its end and what it has only after
//! it share their place.

use std::{collections::BTreeMap, sync::Arc, task::Waker, time::SystemTime};

use tokio::time::Instant;

use super::{Interest, tally::Tally};
use crate::{
    caught::wake,
    job::{Change, End, Outcome, Record, Status},
};

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
    stage: Stage,
    /// Those who wait beside the first.
    others: Option<Box<Others>>,
    pub(super) tally: Arc<Tally>,
}

#[derive(Debug)]
enum Stage {
    Open {
        /// The bytes that are kept free for the outcome.
        room: usize,
        /// The first who waits, which is the job's own task: it is there for every job that runs,
        /// and so it costs nothing.
        first: Option<(u64, Waiter)>,
    },
    Ended {
        outcome: Option<Outcome>,
        expires: Instant,
    },
}

/// By their numbers.
type Waiters = BTreeMap<u64, Waiter>;

/// Apart, since progress is written often, and those who wait for the end may be many.
#[derive(Debug, Default)]
struct Others {
    status: Waiters,
    progress: Waiters,
}

impl Others {
    fn of(&mut self, interest: Interest) -> &mut Waiters {
        match interest {
            Interest::Status => &mut self.status,
            Interest::Progress => &mut self.progress,
        }
    }
}

/// Somebody who waits for a change.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) waker: Waker,
    pub(super) interest: Interest,
}

/// A running job takes this, its slot in the map, and what the ledger of places has of it.
const _: () = assert!(size_of::<Kept>() <= 152);

impl Kept {
    pub(super) fn new(record: Record, room: usize, tally: Arc<Tally>) -> Self {
        Self { record, stage: Stage::Open { room, first: None }, others: None, tally }
    }

    /// Whether an undo may forget the job: no other request was given it, and if it has a claim, its
    /// handler has not begun.
    pub(super) fn may_be_taken_back(&self) -> bool {
        let record = &self.record;
        let has_begun =
            record.status() != Status::Queued || record.attempt().is_some_and(|of| of > 0);
        let is_kept = has_begun && record.claim().is_some();
        !is_kept && !record.is_disclosed()
    }

    pub(super) fn is_expired(&self) -> bool {
        has_passed(self.expires())
    }

    /// From when on it is as if it were not there; `None` until it has ended.
    pub(super) fn expires(&self) -> Option<Instant> {
        match self.stage {
            Stage::Ended { expires, .. } => Some(expires),
            Stage::Open { .. } => None,
        }
    }

    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match &self.stage {
            Stage::Ended { outcome, .. } => outcome.as_ref(),
            Stage::Open { .. } => None,
        }
    }

    /// What it counts with, beside what every job does and its outcome, which
    /// [counts by itself](Tally::counted).
    pub(super) fn room(&self) -> usize {
        match &self.stage {
            Stage::Open { room, .. } => *room,
            Stage::Ended { .. } => 0,
        }
    }

    /// Applies a change that was made at this time; gives it back where the record does not.
    pub(super) fn apply(&mut self, change: Change, at: SystemTime) -> Result<Followed, Change> {
        if !self.record.apply(&change, at) {
            return Err(change);
        }
        let mut followed = Followed { woken: self.woken(), ..Followed::default() };
        // One that is begun again has not ended.
        if !self.record.status().is_end() {
            return Ok(followed);
        }
        let outcome = match change {
            Change::Start | Change::Progress(_) => return Ok(followed),
            Change::Finish(End::Response(outcome)) => Some(outcome),
            Change::Finish(End::Failure(_)) | Change::Cancel | Change::Remove => None,
        };
        match &mut self.stage {
            Stage::Ended { outcome: before, .. } => {
                followed.removed = std::mem::replace(before, outcome);
            }
            Stage::Open { room, .. } => {
                let expires = expiry_of(&self.record, at);
                followed.expires = Some(expires);
                // An outcome larger than the room that was kept for it breaks the contract; it is
                // counted all the same.
                self.tally.recount(*room, outcome.as_ref().map_or(0, |all| all.as_bytes().len()));
                let outcome = outcome.map(|outcome| self.tally.counted(outcome));
                self.stage = Stage::Ended { outcome, expires };
            }
        }
        Ok(followed)
    }

    /// Takes out those whom the change is for that the record has seen last.
    fn woken(&mut self) -> Woken {
        if self.record.status_version() == self.record.version() {
            return self.everybody();
        }
        let is_for = |waiter: &Waiter| waiter.interest == Interest::Progress;
        let mut woken = Woken::default();
        if let Stage::Open { first, .. } = &mut self.stage {
            woken.first = first.take_if(|(_, waiter)| is_for(waiter));
        }
        if let Some(others) = self.others.as_mut().filter(|others| !others.progress.is_empty()) {
            let progress = std::mem::take(&mut others.progress);
            woken.others = Some(Box::new(Others { progress, ..Others::default() }));
        }
        woken
    }

    /// Takes out all who wait.
    pub(super) fn everybody(&mut self) -> Woken {
        let first = match &mut self.stage {
            Stage::Open { first, .. } => first.take(),
            Stage::Ended { .. } => None,
        };
        Woken { first, others: self.others.take() }
    }

    pub(super) fn wait(&mut self, number: u64, waiter: Waiter) {
        match &mut self.stage {
            Stage::Open { first: first @ None, .. } => *first = Some((number, waiter)),
            _ => {
                let others = self.others.get_or_insert_default();
                others.of(waiter.interest).insert(number, waiter);
            }
        }
    }

    /// Who waits under this number, unless woken.
    pub(super) fn waiter(&self, number: u64) -> Option<&Waiter> {
        match &self.stage {
            Stage::Open { first: Some((first, waiter)), .. } if *first == number => Some(waiter),
            _ => {
                let Others { status, progress } = &**self.others.as_ref()?;
                status.get(&number).or_else(|| progress.get(&number))
            }
        }
    }

    /// Takes out who waits under this number.
    pub(super) fn leave(&mut self, number: u64) -> Option<Waiter> {
        if let Stage::Open { first, .. } = &mut self.stage {
            if let Some((_, waiter)) = first.take_if(|(first, _)| *first == number) {
                return Some(waiter);
            }
        }
        let others = self.others.as_mut()?;
        let left = others.status.remove(&number).or_else(|| others.progress.remove(&number));
        if others.status.is_empty() && others.progress.is_empty() {
            self.others = None;
        }
        left
    }
}

/// What follows from a change, for when the map's lock is given up.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) woken: Woken,
    /// When the job expires, if it has ended by this.
    pub(super) expires: Option<Instant>,
    /// The outcome that is there no more.
    pub(super) removed: Option<Outcome>,
}

/// Those who are to be woken, not under a lock.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Woken {
    first: Option<(u64, Waiter)>,
    others: Option<Box<Others>>,
}

impl Woken {
    pub(super) fn wake(self) {
        if let Some((_, first)) = self.first {
            wake(first.waker);
        }
        if let Some(others) = self.others {
            let all = others.status.into_values().chain(others.progress.into_values());
            all.for_each(|waiter| wake(waiter.waker));
        }
    }
}

/// Whether it is past what [`Kept::expires`] says.
pub(super) fn has_passed(expires: Option<Instant>) -> bool {
    expires.is_some_and(|expires| expires <= Instant::now())
}

/// When a job expires that ended at `at`: as the record says, which is later than its TTL from now
/// where the wall clock was set back while the job ran.
fn expiry_of(record: &Record, at: SystemTime) -> Instant {
    let (now, left) = (Instant::now(), record.expires_in(at));
    // The clock of a machine may end before the calendar does.
    now.checked_add(left).unwrap_or(now + Record::MAX_TTL)
}
