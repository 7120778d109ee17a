//! Every row of the table of transitions, and what a change leaves behind.

use super::{
    check::{Check, response},
    progress::progress,
};
use crate::{
    job::{Change, End, Failure, Record, Status},
    store::{Changed, Store},
};

fn failed() -> Change {
    Change::Finish(End::Failure(Failure::Panicked))
}

/// The changes that lead a queued job to each state there is.
fn states() -> Vec<(&'static str, Vec<Change>)> {
    let mut states = vec![
        ("queued", vec![]),
        ("running", vec![Change::Start]),
        ("running and has said how far it is", vec![Change::Start, progress(0.1, "a tenth")]),
    ];
    for (name, end) in [
        ("succeeded", response(204)),
        ("failed with a response", response(503)),
        ("failed without one", failed()),
        ("canceled", Change::Cancel),
    ] {
        states.push((name, vec![end.clone()]));
        states.push((name, vec![Change::Start, end.clone()]));
        states.push(("removed", vec![end, Change::Remove]));
    }
    states
}

/// The table, as it is drawn in the documentation: what a job becomes by a change, if anything.
fn becomes(from: &Record, change: &Change) -> Option<Status> {
    let open = matches!(from.status(), Status::Queued | Status::Running);
    match change {
        Change::Start => (from.status() == Status::Queued).then_some(Status::Running),
        Change::Progress(_) => (from.status() == Status::Running).then_some(Status::Running),
        Change::Finish(End::Failure(_)) => open.then_some(Status::Failed),
        Change::Finish(End::Response(outcome)) if outcome.status().as_u16() < 400 => {
            open.then_some(Status::Succeeded)
        }
        Change::Finish(End::Response(_)) => open.then_some(Status::Failed),
        Change::Cancel => open.then_some(Status::Canceled),
        Change::Remove => (!open && !from.is_removed()).then_some(from.status()),
    }
}

pub(super) async fn the_table_of_transitions<S: Store>(check: &Check<S>) {
    for (name, steps) in states() {
        for change in [
            Change::Start,
            progress(0.2, "a fifth"),
            response(200),
            response(399),
            response(400),
            failed(),
            Change::Cancel,
            Change::Remove,
        ] {
            let record = check.job(Record::queued);
            check.insert(&record).await;
            for step in &steps {
                check.applied(record.id(), step.clone()).await;
            }
            row(check, &check.record(record.id(), name).await, change, name).await;
            check.take_back(record.id()).await;
        }
    }
}

async fn row<S: Store>(check: &Check<S>, before: &Record, change: Change, name: &str) {
    let what = format!("{change:?} of a job that is {name}");
    let changed = check.change(before.id(), change.clone()).await;
    let after = check.record(before.id(), "after a change").await;
    let (told, wanted) = match (&changed, becomes(before, &change)) {
        (Changed::Applied(told), Some(wanted)) => (told, wanted),
        (Changed::Refused(told), None) => {
            check.alike(told, before, format_args!("refused {what}:"));
            return check.alike(&after, before, format_args!("after a refused {what}"));
        }
        _ => check.fail(format_args!("{what} gives {changed:?}")),
    };
    check.alike(&after, told, format_args!("after {what}"));
    check.that(
        after.version() == before.version() + 1,
        format_args!("{what} led from version {} to {}", before.version(), after.version()),
    );
    let said = match &change {
        Change::Progress(said) => Some(said),
        _ => before.progress(),
    };
    check.that(after.progress() == said, format_args!("{what} led to {:?}", after.progress()));
    check.that(after.status() == wanted, format_args!("{what} led to {:?}", after.status()));
    let removed = before.is_removed() || matches!(change, Change::Remove);
    check.that(after.is_removed() == removed, format_args!("{what}: removed, or not, by mistake"));
}

pub(super) async fn an_end_has_its_time_and_moves_expiry_later<S: Store>(check: &Check<S>) {
    for end in [response(200), failed(), Change::Cancel] {
        let record = check.job(Record::queued);
        check.insert(&record).await;
        let started = check.applied(record.id(), Change::Start).await;
        check.that(started.started_at().is_some(), "it was started, and has no time of it");
        check.that(started.finished_at().is_none(), "it has not ended, and has a time of it");
        check.applied(record.id(), end).await;
        let ended = check.record(record.id(), "after its end").await;
        check.that(ended.started_at().is_some(), "the time of its start is lost");
        check.that(ended.finished_at().is_some(), "it has ended, and has no time of it");
        let in_order =
            ended.finished_at() >= ended.started_at() && ended.expires_at() >= started.expires_at();
        check.that(in_order, format_args!("its times are not in order: {ended:?}"));
    }
}

pub(super) async fn a_removal_takes_the_outcome_and_keeps_the_record<S: Store>(check: &Check<S>) {
    for end in [response(200), response(500), failed(), Change::Cancel] {
        let record = check.job(Record::running);
        check.insert(&record).await;
        let ended = check.applied(record.id(), end).await;
        let removed = check.applied(record.id(), Change::Remove).await;
        check.that(removed.is_removed(), "it is removed, and the record does not say so");
        check.that(removed.expires_at() == ended.expires_at(), "a removal moves its expiry");
        match check.fetch(record.id()).await {
            Some((found, None)) => check.alike(&found, &removed, "after a removal"),
            other => check.fail(format_args!("after a removal, fetch gives {other:?}")),
        }
    }
}
