//! Point 4 of the contract: a change wakes.

use std::time::Duration;

use tokio::{
    task::{JoinHandle, yield_now},
    time::Instant,
};

use super::{
    check::{Check, join, response},
    progress::progress,
};
use crate::{
    job::{Change, JobId, Record},
    store::{Interest, Store},
};

/// So soon a waiter is woken, at the best of some tries.
const PROMPT: Duration = Duration::from_millis(20);

const MANY: usize = 1000;

/// What leads a queued job to its last version, each change by one.
fn steps() -> [Change; STEPS as usize] {
    [Change::Start, progress(0.5, "half"), response(200), Change::Remove]
}

const STEPS: u32 = 4;

/// Somebody who has begun to wait for another version than `seen`.
async fn waiter<S: Store>(check: &Check<S>, id: JobId, seen: u32) -> JoinHandle<Option<Record>> {
    waiter_for(check, id, seen, Interest::Progress).await
}

/// The same for changes of this interest.
pub(super) async fn waiter_for<S: Store>(
    check: &Check<S>,
    id: JobId,
    seen: u32,
    interest: Interest,
) -> JoinHandle<Option<Record>> {
    let begun = check.begin("changed", check.there.changed(id, seen, interest)).await;
    let check = check.clone();
    tokio::spawn(async move {
        if let Some(begun) = begun {
            check.answer("changed", begun).await;
        }
        check.wait_for(id, seen, interest).await
    })
}

/// Waits for a task of [`waiter`], which has been woken by a job's coming to this version.
pub(super) async fn woken<S: Store>(
    check: &Check<S>,
    waiter: JoinHandle<Option<Record>>,
    version: u32,
) {
    let found = join(waiter).await.map(|record| record.version());
    let wanted = format_args!("a waiter was woken for version {version} and found {found:?}");
    check.that(found == Some(version), wanted);
}

pub(super) async fn every_change_wakes<S: Store>(check: &Check<S>) {
    for settled in [true, false] {
        let record = check.job(Record::queued);
        check.insert(&record).await;
        for (seen, change) in (0..).zip(steps()) {
            let waiter = waiter(check, record.id(), seen).await;
            if settled {
                yield_now().await;
            }
            check.applied(record.id(), change).await;
            woken(check, waiter, seen + 1).await;
        }
        let waiter = waiter(check, record.id(), STEPS).await;
        check.take_back(record.id()).await;
        check.that(join(waiter).await.is_none(), "it was taken back, and a waiter finds it");
    }
}

pub(super) async fn a_change_made_before_the_call_is_not_missed<S: Store>(check: &Check<S>) {
    let record = check.job(Record::queued);
    check.insert(&record).await;
    for (seen, change) in (0..).zip(steps()) {
        let called_before = check.there.changed(record.id(), seen, Interest::Progress);
        check.applied(record.id(), change).await;
        for seen in 0..=seen {
            check.changed(record.id(), seen).await;
        }
        check.answer("changed, called before the change,", called_before).await;
    }
}

pub(super) async fn there_is_no_waiting_for_what_is_not_there<S: Store>(check: &Check<S>) {
    let record = check.job(Record::queued);
    check.changed(record.id(), 0).await;
    check.insert(&record).await;
    check.take_back(record.id()).await;
    check.changed(record.id(), 0).await;
}

/// A store that asks again each second would pass every other check.
pub(super) async fn the_change_itself_wakes<S: Store>(check: &Check<S>) {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let record = check.job(Record::running);
        check.insert(&record).await;
        let waiter = waiter(check, record.id(), 0).await;
        yield_now().await;
        let begin = Instant::now();
        check.applied(record.id(), Change::Cancel).await;
        woken(check, waiter, 1).await;
        best = best.min(begin.elapsed());
    }
    check.that(best < PROMPT, format_args!("at best, it took {best:?} to wake a waiter"));
}

pub(super) async fn a_thousand_waiters_are_woken<S: Store>(check: &Check<S>) {
    let record = check.job(Record::queued);
    check.insert(&record).await;
    for (seen, change) in (0..).zip(steps()) {
        let mut waiters = Vec::with_capacity(MANY);
        for _ in 0..MANY {
            waiters.push(waiter(check, record.id(), seen).await);
        }
        check.applied(record.id(), change).await;
        for waiter in waiters {
            woken(check, waiter, seen + 1).await;
        }
    }
}

pub(super) async fn a_dropped_waiter_takes_no_wake_with_it<S: Store>(check: &Check<S>) {
    let record = check.job(Record::queued);
    check.insert(&record).await;
    for (seen, change) in (0..).zip(steps()) {
        let mut waiters = Vec::with_capacity(MANY);
        for _ in 0..MANY {
            drop(
                check
                    .begin("changed", check.there.changed(record.id(), seen, Interest::Progress))
                    .await,
            );
            waiters.push(
                check
                    .begin("changed", check.there.changed(record.id(), seen, Interest::Progress))
                    .await,
            );
        }
        check.applied(record.id(), change).await;
        // Now every other goes, which was woken and has not looked yet.
        let mut index = 0;
        waiters.retain(|_| {
            index += 1;
            index % 2 == 0
        });
        for waiter in waiters.into_iter().flatten() {
            check.answer("changed, after other waiters were dropped,", waiter).await;
        }
    }
}

pub(super) async fn a_follower_sees_the_last_change<S: Store>(check: &Check<S>) {
    for _ in 0..200 {
        let record = check.job(Record::queued);
        check.insert(&record).await;
        let follower = check.clone();
        let id = record.id();
        let follower = tokio::spawn(async move {
            let mut seen = 0;
            while seen < STEPS {
                let Some(found) = follower.wait(id, seen).await else {
                    follower.fail("the job that was followed has gone");
                };
                let forward = found.version() > seen;
                follower.that(forward, format_args!("{found:?} came after version {seen}"));
                seen = found.version();
            }
        });
        for change in steps() {
            check.applied(id, change).await;
            yield_now().await;
        }
        join(follower).await;
        check.take_back(id).await;
    }
}
