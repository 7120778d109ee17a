//! Point 2 of the contract: what has not ended is never dropped, and what has ended is kept for its
//! TTL. The only checks that let time pass.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    check::{Check, join, response},
    claims::{claim, is_free, is_held_by},
    kept::is_not_there,
};
use crate::{
    job::{Change, End, Failure, Record},
    store::Store,
};

const TTL: Duration = Duration::from_millis(200);

/// So long after its expiry a job may be seen: stores round times up.
const LATE: Duration = Duration::from_secs(2);

pub(super) async fn what_has_ended_is_kept_for_its_ttl_and_then_gone<S: Store>(check: &Check<S>) {
    let failed = Change::Finish(End::Failure(Failure::Interrupted));
    let mut tasks = Vec::new();
    // What they are changed by, and after what time.
    for (after, changes) in [
        (Duration::ZERO, vec![response(200)]),
        (Duration::ZERO, vec![failed]),
        (Duration::ZERO, vec![Change::Cancel]),
        // Both must leave the expiry as it is: a removal, and one that is refused.
        (Duration::ZERO, vec![response(200), Change::Remove]),
        (Duration::ZERO, vec![response(200), Change::Cancel]),
        // The TTL counts from the end on, not from the start.
        (TTL * 3, vec![Change::Start, response(200)]),
    ] {
        let check = check.clone();
        tasks.push(tokio::spawn(async move {
            let record = check.job_for(Record::queued, TTL);
            check.insert(&record).await;
            sleep(after).await;
            // The store cannot have seen the end before.
            let ended = Instant::now();
            for change in changes {
                check.change(record.id(), change).await;
            }
            is_kept(&check, &record, ended).await;
            is_gone(&check, &record, ended + TTL).await;
        }));
    }
    for task in tasks {
        join(task).await;
    }
}

/// It is there for as long as both clocks say that its time is not over; tokio's may be paused, and
/// then says so alone.
async fn is_kept<S: Store>(check: &Check<S>, record: &Record, ended: Instant) {
    let ended_record = check.read(record.id()).await;
    let expires_at = ended_record.map(|record| record.expires_at());
    loop {
        let found = check.fetch(record.id()).await;
        let now = crate::system::now();
        if ended.elapsed() >= TTL || expires_at.is_some_and(|expires_at| now >= expires_at) {
            return;
        }
        let after = ended.elapsed();
        check.that(found.is_some(), format_args!("{after:?} after its end it is gone, of {TTL:?}"));
        sleep(TTL / 20).await;
    }
}

async fn is_gone<S: Store>(check: &Check<S>, record: &Record, expires: Instant) {
    sleep_until(expires).await;
    while check.read(record.id()).await.is_some() {
        let since = expires.elapsed();
        check.that(since < LATE, format_args!("it is there {since:?} after its expiry"));
        sleep(TTL / 10).await;
    }
    is_not_there(check, record.id()).await;
    let again = Record::running(record.id(), crate::system::now(), TTL);
    check.insert(&again).await;
    let found = check.record(record.id(), "though its id was inserted again").await;
    check.alike(&found, &again, "inserted again after its expiry,");
}

pub(super) async fn what_has_not_ended_never_expires<S: Store>(check: &Check<S>) {
    let mut records = Vec::new();
    for make in [Record::queued, Record::running] {
        let record = check.job_for(make, TTL);
        check.insert(&record).await;
        records.push(record);
    }
    // A look at a job, and a change that is refused, give it no TTL.
    for record in &records {
        check.fetch(record.id()).await;
        check.change(record.id(), Change::Remove).await;
    }
    sleep(TTL * 4).await;
    for record in &records {
        let found = check.record(record.id(), "after four times its TTL, though it runs").await;
        check.alike(&found, record, "after four times its TTL");
        let ended = Instant::now();
        check.applied(record.id(), response(200)).await;
        is_kept(check, record, ended).await;
    }
}

pub(super) async fn expiry_wakes<S: Store>(check: &Check<S>) {
    let record = check.job_for(Record::running, TTL);
    check.insert(&record).await;
    check.applied(record.id(), response(200)).await;
    let left = check.wait(record.id(), 1).await;
    check.that(left.is_none(), format_args!("it has expired, and a waiter finds {left:?}"));
}

/// From its expiry on a job's claim may be had, and it is not counted: the first at once, the second
/// when the store has swept.
pub(super) async fn what_has_expired_has_no_claim_and_is_not_counted<S: Store>(check: &Check<S>) {
    let key = check.digest();
    let record = check.job_of(Record::queued, TTL, claim(check, key));
    // Nobody looks at this one again.
    let unseen = check.job_for(Record::running, TTL);
    check.insert(&unseen).await;
    check.applied(unseen.id(), Change::Cancel).await;
    check.insert(&record).await;
    check.applied(record.id(), Change::Start).await;
    let ended = Instant::now();
    let ended_record = check.applied(record.id(), response(200)).await;
    loop {
        let found = check.claimed(key).await;
        let over = ended.elapsed() >= TTL || crate::system::now() >= ended_record.expires_at();
        if over {
            break;
        }
        match found {
            Some(found) => check.alike(&found, &ended_record, "before its expiry, by its key"),
            None => check.fail("its claim has gone before its expiry"),
        }
        sleep(TTL / 20).await;
    }
    is_gone(check, &record, ended + TTL).await;
    check.take_back(record.id()).await;
    let next = is_free(check, key, "after its expiry").await;
    check.take_back(next.id()).await;
    let next = check.job_of(Record::queued, TTL, claim(check, key));
    check.insert(&next).await;
    is_held_by(check, key, &next, "after another's expiry").await;
    check.applied(next.id(), Change::Cancel).await;
    let until = Instant::now() + LATE;
    loop {
        let usage = check.answer("usage", check.there.usage()).await;
        if usage.iter().all(|usage| (usage.jobs, usage.bytes) == (0, 0)) {
            return;
        }
        let late = Instant::now() < until;
        check.that(
            late,
            format_args!("all have expired, or were taken back, and it tells {usage:?}"),
        );
        sleep(TTL / 10).await;
    }
}
