//! Point 5 of the contract: a claim is one job's.

use super::check::{Check, LONG, response};
use crate::{
    job::{Change, Claim, Digest, End, Failure, JobId, Record},
    store::{Inserted, Store},
};

/// A claim of another fingerprint on this key, each time.
pub(super) fn claim<S: Store>(check: &Check<S>, key: Digest) -> Claim {
    Claim::new(key, check.digest())
}

pub(super) fn claiming<S: Store>(check: &Check<S>, key: Digest) -> Record {
    check.job_of(Record::queued, LONG, claim(check, key))
}

/// That the claim is this job's, whoever asks, and another that wants it is told so and not kept.
pub(super) async fn is_held_by<S: Store>(
    check: &Check<S>,
    key: Digest,
    holder: &Record,
    when: &str,
) {
    match check.claimed(key).await {
        Some(found) => check.alike(&found, holder, format_args!("{when}, by its key")),
        None => check.fail(format_args!("{when}, nobody is found by its key")),
    }
    let other = claiming(check, key);
    match check.inserted(&other).await {
        Inserted::Claimed(found) => check.alike(&found, holder, format_args!("{when}, it is told")),
        Inserted::New => check.fail(format_args!("{when}, another may claim its key")),
    }
    let found = check.read(other.id()).await;
    check.that(found.is_none(), "a job that could not have its claim is kept");
}

/// That the claim is nobody's, and may be had.
pub(super) async fn is_free<S: Store>(check: &Check<S>, key: Digest, when: &str) -> Record {
    if let Some(found) = check.claimed(key).await {
        check.fail(format_args!("{when}, its key still finds {found:?}"));
    }
    let next = claiming(check, key);
    if let Inserted::Claimed(holder) = check.inserted(&next).await {
        check.fail(format_args!("{when}, its key is still claimed, by {holder:?}"));
    }
    next
}

pub(super) async fn a_claim_is_one_jobs<S: Store>(check: &Check<S>) {
    let (key, other) = (check.digest(), check.digest());
    let first = is_free(check, key, "before anybody has claimed it").await;
    is_held_by(check, key, &first, "claimed").await;
    is_held_by(&check.swapped(), key, &first, "claimed, and asked through the other handle").await;
    // Neither a job without a claim nor one with a claim on another key is in its way.
    check.insert(&check.job(Record::queued)).await;
    let second = is_free(check, other, "with another's claim on another key").await;
    for (key, holder) in [(key, &first), (other, &second)] {
        is_held_by(check, key, holder, "beside another claim").await;
    }
}

pub(super) async fn a_claim_is_kept_to_the_end_and_after<S: Store>(check: &Check<S>) {
    let failed = Change::Finish(End::Failure(Failure::Panicked));
    for end in [response(200), response(500), failed, Change::Cancel] {
        let key = check.digest();
        let job = is_free(check, key, "before anybody has claimed it").await;
        for change in [Change::Start, end, Change::Remove] {
            let when = format!("after {change:?}");
            let changed = check.applied(job.id(), change).await;
            is_held_by(check, key, &changed, &when).await;
        }
    }
}

pub(super) async fn a_claim_ends_with_its_job<S: Store>(check: &Check<S>) {
    let key = check.digest();
    let job = is_free(check, key, "before anybody has claimed it").await;
    check.take_back(job.id()).await;
    let next = is_free(check, key, "taken back").await;
    check.take_back(next.id()).await;
    is_free(check, key, "taken back twice").await;
}

/// Its client has a 202 for it, or its response.
pub(super) async fn a_job_that_another_request_was_given_is_not_taken_back<S: Store>(
    check: &Check<S>,
) {
    for way in ["insert", "insert through the other handle", "claimed"] {
        for canceled in [false, true] {
            let key = check.digest();
            let job = is_free(check, key, "before anybody has claimed it").await;
            let other = claiming(check, key);
            let given = match way {
                "insert" => matches!(check.inserted(&other).await, Inserted::Claimed(_)),
                "claimed" => check.claimed(key).await.is_some(),
                _ => matches!(check.swapped().inserted(&other).await, Inserted::Claimed(_)),
            };
            check.that(given, format_args!("{way} does not give the job of a claim"));
            let mut wanted = job.clone();
            if canceled {
                // It lets go of its claim, and is still the job that somebody was given.
                wanted = check.applied(job.id(), Change::Cancel).await;
            }
            let when = format!("given by {way}, canceled: {canceled}, and taken back,");
            check.that(!check.undo(job.id()).await, format_args!("{when} it is gone"));
            let found = check.record(job.id(), &when).await;
            check.alike(&found, &wanted, &when);
            match canceled {
                true => drop(is_free(check, key, &when).await),
                false => is_held_by(check, key, &job, &when).await,
            }
        }
    }
}

/// Its work may be done, and must not be done again under its key.
pub(super) async fn a_claim_of_a_job_that_has_begun_is_not_taken_back<S: Store>(check: &Check<S>) {
    let steps = [Change::Start, response(200), Change::Remove];
    for last in 1..=steps.len() {
        let key = check.digest();
        let mut job = is_free(check, key, "before anybody has claimed it").await;
        for change in &steps[..last] {
            job = check.applied(job.id(), change.clone()).await;
        }
        let when = format!("after {:?}, taken back,", steps[last - 1]);
        check.that(!check.undo(job.id()).await, format_args!("{when} it is gone"));
        is_held_by(check, key, &job, &when).await;
    }
}

/// Nothing of its work was done, so it may be asked for again; and what becomes of the first job
/// then is not the second one's affair.
pub(super) async fn a_job_that_ends_before_its_start_lets_go_of_its_claim<S: Store>(
    check: &Check<S>,
) {
    let failed = Change::Finish(End::Failure(Failure::Interrupted));
    for end in [Change::Cancel, failed] {
        let key = check.digest();
        let first = is_free(check, key, "before anybody has claimed it").await;
        check.applied(first.id(), end).await;
        let second = is_free(check, key, "ended before its start").await;
        check.applied(first.id(), Change::Remove).await;
        is_held_by(check, key, &second, "after the first one's removal").await;
        check.take_back(first.id()).await;
        is_held_by(check, key, &second, "after the first one was taken back").await;
    }
}

/// An insertion that fails leaves no claim behind.
pub(super) async fn what_is_refused_claims_nothing<S: Store>(check: &Check<S>) {
    let key = check.digest();
    // Of the same partition, since both are for one id.
    let other = loop {
        let other = check.digest();
        if other.partition() == key.partition() {
            break other;
        }
    };
    let first = is_free(check, key, "before anybody has claimed it").await;
    // Its id is known.
    let again = |key| again(check, &first, key);
    check.that(check.refused(&again(other), 4096).await.is_some(), "a known id is not refused");
    is_held_by(check, key, &first, "after its id was to be inserted again").await;
    let second = is_free(check, other, "claimed by an insertion that was refused").await;
    // Refused for its id, or for the claim: neither must change whose it is.
    let _ = check.soon("insert", check.here.insert(again(other), 4096)).await;
    is_held_by(check, other, &second, "after an insertion that could not be").await;
}

fn again<S: Store>(check: &Check<S>, known: &Record, key: Digest) -> Record {
    let id: JobId = known.id();
    Record::queued(id, known.created_at(), known.ttl()).with_claim(claim(check, key))
}
