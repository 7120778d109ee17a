//! Point 1 of the contract: of changes that race, each is applied to what the one before left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Barrier,
    task::{JoinHandle, yield_now},
};

use super::{
    check::{Check, LONG, join, outcome},
    claims::{claiming, is_free, is_held_by},
    progress::progress,
};
use crate::{
    error::ErrorKind,
    job::{Change, End, Failure, JobId, Outcome, Record},
    store::{Changed, Inserted, Store},
};

const ROUNDS: usize = 300;

/// An end whose bytes tell it from others.
fn end(status: u16, body: &str) -> Change {
    Change::Finish(End::Response(outcome(status, body.as_bytes())))
}

/// Tasks that begin together, half of them with the handles swapped, and what came of them.
async fn race<S, T, F>(
    check: &Check<S>,
    runners: Vec<T>,
    run: impl Fn(Check<S>, T) -> F,
) -> Vec<F::Output>
where
    S: Store,
    T: Send,
    F: Future<Output: Send> + Send + 'static,
{
    let start = Arc::new(Barrier::new(runners.len()));
    let mut tasks: Vec<JoinHandle<F::Output>> = Vec::with_capacity(runners.len());
    for (index, runner) in runners.into_iter().enumerate() {
        let check = if index % 2 == 0 { check.clone() } else { check.swapped() };
        let (running, start) = (run(check, runner), Arc::clone(&start));
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            running.await
        }));
    }
    let mut ends = Vec::with_capacity(tasks.len());
    for task in tasks {
        ends.push(join(task).await);
    }
    ends
}

pub(super) async fn racing_changes_are_applied_one_after_another<S: Store>(check: &Check<S>) {
    for round in 0..ROUNDS {
        let record = check.job(if round % 3 == 0 { Record::running } else { Record::queued });
        let id = record.id();
        check.insert(&record).await;
        let over = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watch(check.clone(), id, Arc::clone(&over)));
        let mut changes = vec![
            Change::Start,
            end(200, "first"),
            progress(0.5, "between"),
            Change::Cancel,
            Change::Remove,
            end(500, "second"),
            Change::Start,
            Change::Remove,
            Change::Finish(End::Failure(Failure::TimedOut)),
        ];
        let first = round % changes.len();
        changes.rotate_left(first);
        let told = race(check, changes, |check, change| async move {
            (change.clone(), check.change(id, change).await)
        })
        .await;
        over.store(true, Ordering::Relaxed);
        join(watcher).await;
        in_order(check, record, told).await;
        check.take_back(id).await;
    }
}

/// Looks at the job again and again: its version never falls, and nothing is seen half-done.
async fn watch<S: Store>(check: Check<S>, id: JobId, over: Arc<AtomicBool>) {
    let mut seen = 0;
    loop {
        let last = over.load(Ordering::Relaxed);
        let Some((record, outcome)) = check.fetch(id).await else {
            check.fail("the job went while it was changed");
        };
        check.that(record.version() >= seen, format_args!("{record:?} came after {seen}"));
        seen = record.version();
        let status = outcome.as_ref().map(Outcome::status);
        let whole = record.finished_at().is_some() == record.status().is_end()
            && status == record.response_status().filter(|_| !record.is_removed());
        check.that(whole, format_args!("seen half-done: {record:?} with {outcome:?}"));
        if last {
            return;
        }
        yield_now().await;
    }
}

/// Does what was told once more, by `Record::apply` and in the order of the versions.
async fn in_order<S: Store>(check: &Check<S>, record: Record, told: Vec<(Change, Changed)>) {
    let id = record.id();
    let mut states = vec![record];
    let mut kept = None;
    let applied = told.iter().filter(|(_, told)| matches!(told, Changed::Applied(_))).count();
    for version in 1..=applied {
        let of_this = |told: &Changed| match told {
            Changed::Applied(record) => record.version() as usize == version,
            _ => false,
        };
        let mut these = told.iter().filter(|(_, told)| of_this(told));
        let (Some((change, Changed::Applied(after))), None) = (these.next(), these.next()) else {
            check.fail(format_args!(
                "{applied} changes were applied, and not one of them as version {version}: {told:?}"
            ));
        };
        let mut state = states[version - 1].clone();
        check.that(
            state.apply(change, crate::system::now()),
            format_args!("{change:?} was applied to {:?}", states[version - 1]),
        );
        check.alike(after, &state, format_args!("told by {change:?} in a race,"));
        states.push(state);
        match change {
            Change::Finish(End::Response(outcome)) => kept = Some(outcome.as_bytes()),
            Change::Remove => kept = None,
            _ => {}
        }
    }
    for (change, told) in &told {
        match told {
            Changed::Applied(_) => {}
            Changed::Unknown => check.fail(format_args!("{change:?} did not find the job")),
            Changed::Refused(told) => {
                let Some(state) = states.get(told.version() as usize) else {
                    check.fail(format_args!("{change:?} was refused by {told:?}: never seen"));
                };
                check.alike(told, state, format_args!("told to a refused {change:?},"));
                let may = state.clone().apply(change, crate::system::now());
                check.that(!may, format_args!("{change:?} was refused by {state:?}"));
            }
        }
    }
    let Some((found, outcome)) = check.fetch(id).await else {
        check.fail("the job went in a race");
    };
    check.alike(&found, &states[applied], "after a race");
    let found = outcome.as_ref().map(Outcome::as_bytes);
    check.that(found == kept, "after a race the outcome is not that of the change that won");
}

pub(super) async fn of_racing_insertions_one_wins<S: Store>(check: &Check<S>) {
    for _ in 0..ROUNDS / 3 {
        let id = check.job(Record::running).id();
        let ttls: Vec<_> = (1..=8).map(|more| LONG + Duration::from_secs(more)).collect();
        let told = race(check, ttls, |check, ttl| async move {
            let record = Record::running(id, crate::system::now(), ttl);
            (ttl, check.refused(&record, 100).await.map(|error| error.kind()))
        })
        .await;
        let mut winners = told.iter().filter(|(_, refused)| refused.is_none());
        let (Some((ttl, _)), None) = (winners.next(), winners.next()) else {
            check.fail(format_args!("of eight insertions of one id: {told:?}"));
        };
        let kinds = [None, Some(ErrorKind::StoreUnavailable)];
        let all = told.iter().all(|(_, refused)| kinds.contains(refused));
        check.that(all, format_args!("the errors are others than they should be: {told:?}"));
        let found = check.record(id, "after racing insertions").await;
        check.that(found.ttl() == *ttl, "one insertion was told that it won, and another is kept");
        check.take_back(id).await;
    }
}

pub(super) async fn what_is_taken_back_in_a_race_stays_gone<S: Store>(check: &Check<S>) {
    for round in 0..ROUNDS / 3 {
        let record = check.job(Record::running);
        let id = record.id();
        check.insert(&record).await;
        let mut runners =
            vec![None, Some(end(200, "late")), Some(Change::Cancel), Some(Change::Remove)];
        runners.rotate_left(round % 4);
        race(check, runners, |check, change| async move {
            match change {
                None => check.take_back(id).await,
                Some(change) => {
                    check.change(id, change).await;
                }
            }
        })
        .await;
        let found = check.read(id).await;
        check.that(found.is_none(), format_args!("taken back in a race, it is there: {found:?}"));
        // Its place is free, and nothing of it is left.
        check.insert(&record).await;
        let found = check.fetch(id).await;
        let new = matches!(&found, Some((record, None)) if record.version() == 0);
        check.that(new, format_args!("inserted again, it is {found:?}"));
        check.take_back(id).await;
    }
}

/// Jobs with claims on one key, inserted through both handles at once.
pub(super) async fn of_racing_claims_one_wins<S: Store>(check: &Check<S>) {
    for _ in 0..ROUNDS / 3 {
        let key = check.digest();
        let records = (0..8).map(|_| claiming(check, key)).collect();
        let told = race(check, records, |check, record: Record| async move {
            let inserted = check.inserted(&record).await;
            // Whoever was told of the job finds it, by its id and by its key.
            let holder = match &inserted {
                Inserted::New => record.id(),
                Inserted::Claimed(holder) => holder.id(),
            };
            check.record(holder, "though somebody was told of it").await;
            let found = check.claimed(key).await.map(|record| record.id());
            check.that(
                found == Some(holder),
                "whoever was told of a claim finds another by its key",
            );
            (record, inserted)
        })
        .await;
        let mut winners = told.iter().filter(|(_, told)| matches!(told, Inserted::New));
        let (Some((winner, _)), None) = (winners.next(), winners.next()) else {
            check.fail(format_args!("of eight that claim one key: {told:?}"));
        };
        for (record, told) in &told {
            if let Inserted::Claimed(holder) = told {
                check.alike(holder, winner, "told to a loser");
                let kept = check.read(record.id()).await;
                check.that(kept.is_none(), "a job that could not have its claim is kept");
            }
        }
        is_held_by(check, key, winner, "after racing claims").await;
    }
}

/// A job ends before its start, or is taken back, while others want its claim. Nobody is given a job that
/// is taken back.
pub(super) async fn a_claim_that_is_let_go_of_in_a_race_is_one_jobs<S: Store>(check: &Check<S>) {
    for round in 0..ROUNDS / 3 {
        let key = check.digest();
        let first = is_free(check, key, "before anybody has claimed it").await;
        let mut runners = vec![None, Some(claiming(check, key)), Some(claiming(check, key))];
        runners.rotate_left(round % 3);
        let id = first.id();
        let told = race(check, runners, |check, claiming: Option<Record>| async move {
            match &claiming {
                None if round % 2 == 0 => return (check.undo(id).await, false, None),
                None => drop(check.applied(id, Change::Cancel).await),
                Some(record) => match check.inserted(record).await {
                    Inserted::New => return (false, false, claiming),
                    Inserted::Claimed(holder) => return (false, holder.id() == id, None),
                },
            }
            (false, false, None)
        })
        .await;
        let is_gone = told.iter().any(|(is_gone, ..)| *is_gone);
        let was_given = told.iter().any(|(_, was_given, _)| *was_given);
        if round % 2 == 0 {
            let sees = "one request was given a job that is taken back";
            check.that(!(is_gone && was_given), sees);
            check.that(is_gone || was_given, "a job that nobody was given is not taken back");
        }
        if round % 2 == 0 && was_given {
            let holder = check.record(id, "though somebody was given it").await;
            is_held_by(check, key, &holder, "given in a race with an undo").await;
            continue;
        }
        let mut winners = told.into_iter().filter_map(|(.., winner)| winner);
        let second = match (winners.next(), winners.next()) {
            (Some(winner), None) => {
                is_held_by(check, key, &winner, "after a race for it").await;
                winner
            }
            (None, _) => is_free(check, key, "let go of").await,
            (Some(_), Some(_)) => check.fail("two have the claim that one has let go of"),
        };
        // Given to somebody before it was canceled, it stays.
        check.undo(id).await;
        is_held_by(check, key, &second, "after the first one was taken back").await;
    }
}
