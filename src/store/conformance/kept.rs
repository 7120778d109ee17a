//! What is inserted is kept, as it was given, and is gone when it is taken back.

use bytes::Bytes;

use super::{
    check::{Check, LONG, outcome, response},
    claims::claiming,
    progress::progress,
};
use crate::{
    error::ErrorKind,
    job::{Change, Claim, End, Failure, JobId, Outcome, Progress, Record},
    store::{Changed, Interest, Store},
};

/// What a job's outcome may have in the check of a full store, and with how many of them it gives up.
const OUTCOME_BYTES: usize = 1 << 20;
const FULL_AT: usize = 64;

pub(super) async fn a_job_is_kept_as_given<S: Store>(check: &Check<S>) {
    let whole = |make| {
        let progress = Progress::new(Some(0.25), Some("a quarter"));
        let claim = Claim::new(check.digest(), check.digest());
        let record = check.job_of(make, LONG, claim);
        record.with_policy("reports".into()).with_owner(check.digest()).with_progress(progress)
    };
    let (queued, running) = (Record::queued, Record::running);
    for record in [check.job(queued), check.job(running), whole(queued), whole(running)] {
        check.insert(&record).await;
        let found = check.record(record.id(), "after its insertion").await;
        check.alike(&found, &record, "after its insertion");
        let times = |record: &Record| {
            [Some(record.created_at()), record.started_at(), record.finished_at()]
        };
        for (found, given) in times(&found).into_iter().zip(times(&record)) {
            let apart = match (found, given) {
                (Some(found), Some(given)) => {
                    found.duration_since(given).unwrap_or_else(|error| error.duration()).as_millis()
                }
                (found, given) => u128::from(found != given),
            };
            check.that(apart < 1, format_args!("a time was kept as {found:?}, given {given:?}"));
        }
        check.that(found.ttl() == record.ttl(), "its TTL is another");
        let fetched = check.fetch(record.id()).await;
        check.that(
            matches!(&fetched, Some((record, None)) if record.version() == 0),
            format_args!("before it has ended, fetch gives {fetched:?}"),
        );
    }
}

pub(super) async fn an_unknown_job_is_not_there<S: Store>(check: &Check<S>) {
    let other = check.job(Record::running);
    check.insert(&other).await;
    is_not_there(check, check.job(Record::queued).id()).await;
    check.record(other.id(), "though only others were asked for").await;
}

/// Every call tells that there is no such job.
pub(super) async fn is_not_there<S: Store>(check: &Check<S>, id: JobId) {
    check.that(check.read(id).await.is_none(), "read finds it");
    check.that(check.fetch(id).await.is_none(), "fetch finds it");
    let failed = Change::Finish(End::Failure(Failure::TimedOut));
    for change in
        [Change::Start, progress(0.5, ""), response(200), failed, Change::Cancel, Change::Remove]
    {
        let changed = check.change(id, change.clone()).await;
        check.that(
            matches!(changed, Changed::Unknown),
            format_args!("{change:?} gives {changed:?}"),
        );
    }
    check.changed(id, 0).await;
    check.take_back(id).await;
}

/// An outcome that is not read for a stranger is not seen here; the calls of a store can be counted.
pub(super) async fn a_job_is_found_by_its_owner_only<S: Store>(check: &Check<S>) {
    let (owner, other) = (check.digest(), check.digest());
    for owned in [true, false] {
        let mut record = check.job(Record::queued);
        if owned {
            record = record.with_owner(owner);
        }
        check.insert(&record).await;
        for change in [None, Some(Change::Start), Some(response(200)), Some(Change::Remove)] {
            if let Some(change) = change {
                check.applied(record.id(), change).await;
            }
            for (asks, finds) in [(None, true), (Some(owner), owned), (Some(other), false)] {
                let found = check.answer("read", check.there.read(record.id(), asks)).await;
                let is_found = found.is_some_and(|found| found.id() == record.id());
                check.that(is_found == finds, "read does not find by the owner");
                let found = check.answer("fetch", check.there.fetch(record.id(), asks)).await;
                let is_found = found.is_some_and(|(found, _)| found.id() == record.id());
                check.that(is_found == finds, "fetch does not find by the owner");
            }
        }
    }
    let unknown = check.job(Record::queued).id();
    let read = check.answer("read", check.there.read(unknown, Some(owner))).await;
    let fetched = check.answer("fetch", check.there.fetch(unknown, Some(owner))).await;
    check.that(read.is_none() && fetched.is_none(), "an unknown job is an owner's");
}

pub(super) async fn an_id_that_is_known_is_refused<S: Store>(check: &Check<S>) {
    let record = check.job(Record::running);
    check.insert(&record).await;
    for step in [None, Some(response(200)), Some(Change::Remove)] {
        if let Some(change) = step {
            check.applied(record.id(), change).await;
        }
        let before = check.record(record.id(), "before the second insertion").await;
        let again = Record::queued(record.id(), record.created_at(), record.ttl());
        let refused = check.refused(&again, 0).await.map(|error| error.kind());
        check.that(
            refused == Some(ErrorKind::StoreUnavailable),
            format_args!("a second insertion gives {refused:?}"),
        );
        let after = check.record(record.id(), "after a second insertion").await;
        check.alike(&after, &before, "after a second insertion");
    }
}

pub(super) async fn a_job_that_is_taken_back_is_gone<S: Store>(check: &Check<S>) {
    let steps = [None, Some(Change::Start), Some(response(200)), Some(Change::Remove)];
    for last in 0..steps.len() {
        let record = check.job(Record::queued);
        check.insert(&record).await;
        for change in steps[..=last].iter().flatten() {
            check.applied(record.id(), change.clone()).await;
        }
        check.take_back(record.id()).await;
        is_not_there(check, record.id()).await;
        // It may be had again, and has nothing left of the first.
        check.insert(&record).await;
        let found = check.record(record.id(), "after it was inserted again").await;
        check.alike(&found, &record, "inserted again,");
        check.take_back(record.id()).await;
    }
}

pub(super) async fn an_outcome_is_kept_byte_for_byte<S: Store>(check: &Check<S>) {
    let every_byte: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let empty = Outcome::new(&http::Response::new(()).into_parts().0, b"", None);
    for given in [outcome(200, b"body"), outcome(599, b""), outcome(302, &every_byte), empty] {
        let record = check.job(Record::running);
        check.insert(&record).await;
        let change = Change::Finish(End::Response(given.clone()));
        let told = check.applied(record.id(), change).await;
        for _ in 0..2 {
            let kept = kept_outcome(check, record.id()).await;
            check.that(
                kept.as_bytes() == given.as_bytes(),
                format_args!("of {given:?} there came back {kept:?}"),
            );
            check.that(
                kept.headers() == given.headers() && kept.trailers() == given.trailers(),
                "headers or trailers are others",
            );
        }
        check.that(told.response_status() == Some(given.status()), "its status is not told");
    }
}

async fn kept_outcome<S: Store>(check: &Check<S>, id: JobId) -> Outcome {
    match check.fetch(id).await {
        Some((_, Some(outcome))) => outcome,
        other => check.fail(format_args!("the outcome is not there: {other:?}")),
    }
}

/// Point 3: room is kept from the start.
pub(super) async fn a_full_store_keeps_its_word<S: Store>(check: &Check<S>) {
    let around = outcome(200, b"").as_bytes().len();
    let largest = outcome(200, &vec![b'x'; OUTCOME_BYTES - around]);
    let mut taken = Vec::new();
    let mut last = claiming(check, check.digest());
    let full = loop {
        match check.refused(&last, OUTCOME_BYTES).await {
            None => taken.push(last.id()),
            Some(error) => break Some(error),
        }
        if taken.len() == FULL_AT {
            break None;
        }
        // The one that is refused is to leave no claim behind.
        last = claiming(check, check.digest());
    };
    check.that(!taken.is_empty(), format_args!("it takes no job at all: {full:?}"));
    if let Some(error) = &full {
        check.that(
            error.kind() == ErrorKind::StoreFull,
            format_args!("it is full, and says: {error} ({:?})", error.kind()),
        );
        is_not_there(check, last.id()).await;
        let claimed = match last.claim() {
            Some(claim) => check.claimed(*claim.key()).await,
            None => None,
        };
        check.that(claimed.is_none(), "a job that there was no room for has a claim");
    }
    for id in &taken {
        check.applied(*id, Change::Finish(End::Response(largest.clone()))).await;
    }
    for id in &taken {
        let kept: Bytes = kept_outcome(check, *id).await.as_bytes().clone();
        check.that(kept == largest.as_bytes(), "an outcome is not as it was");
        check.take_back(*id).await;
    }
    let again = check.refused(&last, OUTCOME_BYTES).await;
    check.that(again.is_none(), format_args!("emptied, it takes no job: {again:?}"));
}

/// Nobody knows what became of a call whose future was dropped, but it is all or nothing.
pub(super) async fn any_future_may_be_dropped<S: Store>(check: &Check<S>) {
    for _ in 0..50 {
        let record = check.job(Record::queued);
        let id = record.id();
        drop(check.begin("insert", check.here.insert(record.clone(), 4096)).await);
        check.take_back(id).await;
        let record = check.job(Record::queued);
        let id = record.id();
        check.insert(&record).await;
        for change in [Change::Start, response(200), Change::Remove] {
            drop(check.begin("read", check.there.read(id, None)).await);
            drop(check.begin("fetch", check.there.fetch(id, None)).await);
            drop(check.begin("changed", check.there.changed(id, 0, Interest::Progress)).await);
            let before = check.record(id, "after futures were dropped").await;
            drop(check.begin("change", check.here.change(id, change.clone())).await);
            // Repeated, it is applied, or it is refused since it was applied before.
            let after = match check.change(id, change.clone()).await {
                Changed::Applied(record) | Changed::Refused(record) => record,
                Changed::Unknown => check.fail("the job is not there any more"),
            };
            let mut wanted = before.clone();
            wanted.apply(&change, crate::system::now());
            check.alike(&after, &wanted, "after a change whose future was dropped");
        }
        drop(check.begin("take_back", check.here.take_back(id)).await);
        check.take_back(id).await;
        is_not_there(check, id).await;
    }
}

/// What is kept of each policy's jobs. The bytes are the store's own affair, but for what is there.
pub(super) async fn usage_is_told_by_policy<S: Store>(check: &Check<S>) {
    is_used(check, [0, 0, 0]).await;
    let mut jobs = Vec::new();
    for policy in [Some("a"), Some("b"), None, Some("a")] {
        let record = check.job(Record::queued);
        let record = match policy {
            Some(name) => record.with_policy(name.into()),
            None => record,
        };
        check.insert(&record).await;
        jobs.push(record.id());
    }
    is_used(check, [2, 1, 1]).await;
    // Insertions that are refused, and changes of any kind, count nothing anew.
    let again = check.record(jobs[0], "after its insertion").await;
    check.that(check.refused(&again, 4096).await.is_some(), "a known id is not refused");
    for change in [Change::Start, progress(0.5, ""), response(200)] {
        check.applied(jobs[0], change).await;
        is_used(check, [2, 1, 1]).await;
    }
    check.applied(jobs[0], Change::Remove).await;
    is_used(check, [2, 1, 1]).await;
    for (job, left) in jobs.iter().zip([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]]) {
        for _ in 0..2 {
            check.take_back(*job).await;
            is_used(check, left).await;
        }
    }
}

/// That so many jobs of the policies `a`, `b` and of none are kept, and no others.
async fn is_used<S: Store>(check: &Check<S>, wanted: [usize; 3]) {
    let mut usage = check.answer("usage", check.there.usage()).await;
    // A store may remember policies of which it keeps nothing.
    usage.retain(|usage| usage.jobs > 0 || usage.bytes > 0);
    let jobs = |name: Option<&str>| {
        let of = usage.iter().filter(|usage| usage.policy.as_deref() == name);
        of.map(|usage| usage.jobs).collect::<Vec<_>>()
    };
    let found = [jobs(Some("a")), jobs(Some("b")), jobs(None)];
    let wanted = wanted.map(|jobs| Vec::from_iter((jobs > 0).then_some(jobs)));
    let others = usage.len() - found.iter().map(Vec::len).sum::<usize>();
    check.that(
        found == wanted && others == 0,
        format_args!("of a, b and none it should keep {wanted:?}, and tells {usage:?}"),
    );
}
