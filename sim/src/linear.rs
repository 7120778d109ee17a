//! Whether the history of a job's record is that of one register with compare-and-set: the search of Wing
//! and Gong ("Testing and Verifying Concurrent Objects", 1993) for an order of the calls that explains
//! what each returned.
//!
//! Calls whose result is not known may have taken effect at any time after they were made, or not at all.
//! Two changes are nobody's call: a job whose process is lost is ended or queued again, and one that has
//! ended expires.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tower_offload::{JobId, Status};

use crate::{
    facts::Millis,
    history::{Got, Op, Seen, Want},
};

/// What a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// Nothing was kept yet.
    New,
    Kept(Seen),
    /// It was taken back, or has expired.
    Gone,
}

/// Jobs with more calls than this are not looked at.
const MOST: usize = 128;

/// Returns, for each job whose history no order explains, its calls.
pub fn check(history: &[Op], except: &BTreeSet<String>) -> Vec<String> {
    let mut jobs: BTreeMap<JobId, Vec<&Op>> = BTreeMap::new();
    for op in history {
        jobs.entry(op.job).or_default().push(op);
    }
    let mut wrong = Vec::new();
    for (job, mut ops) in jobs {
        ops.sort_by_key(|op| op.from);
        if ops.len() > MOST || except.contains(&job.to_string()) {
            continue;
        }
        let mut search = Search::new(&ops);
        if !search.explains(0, State::New) {
            let ops = ops.iter().map(|op| {
                let to = op.to.map_or("never".to_owned(), |to| to.to_string());
                format!("  n{} {}..{to} {:?}: {:?}", op.node.0, op.from, op.want, op.got)
            });
            let ops: Vec<_> = ops.collect();
            wrong.push(format!("the history of {job} is not linearizable:\n{}", ops.join("\n")));
        }
    }
    wrong
}

struct Search<'a> {
    ops: &'a [&'a Op],
    /// The last version that anybody saw: there is no use in going beyond.
    last: u32,
    tried: HashSet<(u128, State)>,
}

impl<'a> Search<'a> {
    fn new(ops: &'a [&'a Op]) -> Self {
        let versions = ops.iter().filter_map(|op| match op.got {
            Got::Done(seen) | Got::Refused(seen) => Some(seen.version),
            _ => None,
        });
        Self { ops, last: versions.max().unwrap_or(0), tried: HashSet::new() }
    }

    /// Whether what is left of the calls can be put in order from this state on.
    fn explains(&mut self, mut done: u128, state: State) -> bool {
        // What changes nothing and fits is put first: no order is lost by that.
        while let Some(index) = self.next(done).find(|index| fits(self.ops[*index], state)) {
            done |= 1 << index;
        }
        let left = self.ops.iter().enumerate().filter(|(index, _)| done >> index & 1 == 0);
        if left.clone().all(|(_, op)| op.got == Got::Unknown) {
            return true;
        }
        let is_late = left.clone().any(|(_, op)| is_before(op, state));
        if is_late || !self.tried.insert((done, state)) {
            return false;
        }
        let next = self.unlike(done);
        for index in next {
            for after in effects(self.ops[index], state) {
                if self.explains(done | 1 << index, after) {
                    return true;
                }
            }
        }
        let is_beyond =
            |state: &State| matches!(state, State::Kept(kept) if kept.version > self.last);
        let by_nobody: Vec<_> = by_nobody(state).into_iter().filter(|s| !is_beyond(s)).collect();
        by_nobody.into_iter().any(|after| self.explains(done, after))
    }

    /// The calls that may be next: those that began before any other that is left has returned.
    fn next(&self, done: u128) -> impl Iterator<Item = usize> + use<'_> {
        let left = self.ops.iter().enumerate().filter(move |(index, _)| done >> index & 1 == 0);
        let until: Millis = left.clone().filter_map(|(_, op)| op.to).min().unwrap_or(Millis::MAX);
        left.filter(move |(_, op)| op.from <= until).map(|(index, _)| index)
    }

    /// The same, but of calls that wanted the same and never returned only the first: which of them took
    /// effect makes no difference, and a job whose server was away has dozens.
    fn unlike(&self, done: u128) -> Vec<usize> {
        let mut unlike: Vec<usize> = Vec::new();
        for index in self.next(done) {
            let op = self.ops[index];
            let is_like = |other: &usize| {
                let other = self.ops[*other];
                other.got == Got::Unknown && other.want == op.want
            };
            if op.got != Got::Unknown || !unlike.iter().any(is_like) {
                unlike.push(index);
            }
        }
        unlike
    }
}

/// Whether a call saw an earlier version than this state's: versions only grow.
fn is_before(op: &Op, state: State) -> bool {
    match (op.got, state) {
        (Got::Done(seen), State::Kept(kept)) => seen.version <= kept.version,
        (Got::Refused(seen), State::Kept(kept)) => seen.version < kept.version,
        _ => false,
    }
}

/// Whether a call that returned this has changed nothing, in this state.
fn fits(op: &Op, state: State) -> bool {
    match (op.got, state) {
        (Got::NotDone, _) => true,
        (Got::Nothing, State::New | State::Gone) => true,
        // A durable job may be another node's.
        (Got::Refused(seen), State::Kept(kept)) => {
            seen == kept && (!may(op.want, kept) || kept.attempt > 0)
        }
        (Got::Fine, State::Gone) => op.want == Want::TakeBack,
        _ => false,
    }
}

/// Whether the table of transitions lets a call change a record.
fn may(want: Want, kept: Seen) -> bool {
    let is_open = !kept.status.is_end();
    match want {
        Want::Start | Want::Take => kept.status == Status::Queued,
        Want::Progress => kept.status == Status::Running,
        Want::Finish | Want::Fail | Want::Cancel => is_open,
        Want::Remove => !is_open && !kept.removed,
        Want::Insert(_) | Want::TakeBack | Want::Read => false,
    }
}

/// The states after a call has taken effect, if it can have, and returned what it returned.
fn effects(op: &Op, state: State) -> Vec<State> {
    let (State::Kept(kept), Got::Done(seen)) = (state, op.got) else {
        return unseen(op, state);
    };
    let is_next = seen.version == kept.version + 1 && may(op.want, kept);
    let status = match op.want {
        Want::Start | Want::Take => seen.status == Status::Running,
        Want::Progress => seen.status == Status::Running,
        Want::Finish => seen.status.is_end() && seen.status != Status::Canceled,
        Want::Fail => matches!(seen.status, Status::Failed | Status::Queued),
        Want::Cancel => seen.status == Status::Canceled,
        Want::Remove => seen.status == kept.status && seen.removed,
        _ => false,
    };
    let begun = u16::from(op.want == Want::Take);
    let fits = is_next && status && seen.attempt == kept.attempt + begun;
    if fits { vec![State::Kept(seen)] } else { Vec::new() }
}

/// The same for a call that did not tell what the record is after it.
fn unseen(op: &Op, state: State) -> Vec<State> {
    if !matches!(op.got, Got::Fine | Got::Unknown) {
        return Vec::new();
    }
    let kept = match (op.want, state) {
        (Want::Insert(runs), State::New) => {
            let status = if runs { Status::Running } else { Status::Queued };
            return vec![State::Kept(Seen { version: 0, status, attempt: 0, removed: false })];
        }
        (Want::TakeBack, _) => return vec![State::Gone],
        (want, State::Kept(kept)) if may(want, kept) => kept,
        _ => return Vec::new(),
    };
    let statuses: &[Status] = match op.want {
        Want::Start | Want::Take | Want::Progress => &[Status::Running],
        Want::Finish => &[Status::Succeeded, Status::Failed],
        Want::Fail => &[Status::Failed, Status::Queued],
        Want::Cancel => &[Status::Canceled],
        _ => &[kept.status],
    };
    let removed = kept.removed || op.want == Want::Remove;
    let after = |status: &Status| {
        State::Kept(Seen { version: kept.version + 1, status: *status, removed, ..kept })
    };
    statuses.iter().map(after).collect()
}

/// The states after a change that is nobody's call, or one of a call that took a job and did not come to
/// tell which.
fn by_nobody(state: State) -> Vec<State> {
    let State::Kept(kept) = state else { return Vec::new() };
    let next = Seen { version: kept.version + 1, ..kept };
    match kept.status {
        Status::Queued => {
            let taken = Seen { status: Status::Running, attempt: kept.attempt + 1, ..next };
            vec![State::Kept(taken), State::Kept(Seen { status: Status::Failed, ..next })]
        }
        Status::Running => {
            let ends = [Status::Failed, Status::Queued];
            ends.into_iter().map(|status| State::Kept(Seen { status, ..next })).collect()
        }
        _ => vec![State::Gone],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(from: Millis, to: Millis, want: Want, got: Got) -> Op {
        let job = JobId::random().unwrap();
        Op { job, node: (0, 1), from, to: Some(to), want, got }
    }

    fn seen(version: u32, status: Status) -> Seen {
        Seen { version, status, attempt: 0, removed: false }
    }

    fn is_explained(ops: &[Op]) -> bool {
        let ops: Vec<_> = ops.iter().collect();
        Search::new(&ops).explains(0, State::New)
    }

    #[test]
    fn calls_at_the_same_time_may_have_any_order() {
        let insert = op(0, 1, Want::Insert(true), Got::Fine);
        let end = op(2, 9, Want::Finish, Got::Done(seen(1, Status::Succeeded)));
        let cancel = op(3, 8, Want::Cancel, Got::Refused(seen(1, Status::Succeeded)));
        let old = op(4, 5, Want::Read, Got::Refused(seen(0, Status::Running)));
        assert!(is_explained(&[insert, end, cancel, old]));
    }

    #[test]
    fn an_old_state_after_a_new_one_is_found() {
        let insert = op(0, 1, Want::Insert(true), Got::Fine);
        let end = op(2, 3, Want::Finish, Got::Done(seen(1, Status::Succeeded)));
        let old = op(4, 5, Want::Read, Got::Refused(seen(0, Status::Running)));
        assert!(!is_explained(&[insert, end, old]));
    }

    #[test]
    fn two_changes_of_one_version_are_found() {
        let insert = op(0, 1, Want::Insert(true), Got::Fine);
        let end = op(2, 9, Want::Finish, Got::Done(seen(1, Status::Succeeded)));
        let cancel = op(2, 9, Want::Cancel, Got::Done(seen(1, Status::Canceled)));
        assert!(!is_explained(&[insert, end, cancel]));
    }

    #[test]
    fn many_calls_without_an_answer_are_not_tried_in_every_order() {
        let mut ops = vec![op(0, 1, Want::Insert(true), Got::Fine)];
        for want in [Want::Progress, Want::Finish, Want::Cancel, Want::Remove].repeat(20) {
            ops.push(Op { to: None, ..op(2, 9, want, Got::Unknown) });
        }
        ops.push(op(20, 21, Want::Read, Got::Refused(seen(30, Status::Running))));
        assert!(!is_explained(&ops));
    }

    #[test]
    fn a_call_without_an_answer_may_have_been_made_or_not() {
        let insert = op(0, 1, Want::Insert(true), Got::Fine);
        let mut cancel = op(2, 9, Want::Cancel, Got::Unknown);
        cancel.to = None;
        for (version, status) in [(0, Status::Running), (1, Status::Canceled)] {
            let read = op(20, 21, Want::Read, Got::Refused(seen(version, status)));
            assert!(is_explained(&[insert.clone(), cancel.clone(), read]));
        }
        let read = op(20, 21, Want::Read, Got::Refused(seen(1, Status::Succeeded)));
        assert!(!is_explained(&[insert, cancel, read]));
    }
}
