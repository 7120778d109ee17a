//! What handlers say of their progress: it is kept with the job, and wakes only those who want to
//! know.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    check::{Check, response},
    waiting::{waiter_for, woken},
};
use crate::{
    job::{Change, End, Failure, Progress, Record},
    store::{Interest, Store},
};

/// For so long a waiter is watched that is not to be woken.
const WATCHED: Duration = Duration::from_millis(30);

pub(super) fn progress(ratio: f64, message: &str) -> Change {
    Change::Progress(Progress::new(Some(ratio), Some(message)))
}

pub(super) async fn progress_is_kept_with_its_job<S: Store>(check: &Check<S>) {
    let longest = "é".repeat(Progress::MAX_MESSAGE / 2);
    let said = [
        Progress::new(Some(0.0), None),
        Progress::new(Some(1.0 / 3.0), Some("a third, \"quoted\", \0 and \u{1F980}")),
        Progress::new(None, Some(&longest)),
        Progress::new(None, None),
        Progress::new(Some(1.0), Some("all")),
    ];
    let failed = Change::Finish(End::Failure(Failure::TimedOut));
    for end in [response(200), failed, Change::Cancel] {
        let record = check.job(Record::running);
        check.insert(&record).await;
        for said in &said {
            check.applied(record.id(), Change::Progress(said.clone())).await;
            is_said(check, &record, said, "while it runs").await;
        }
        for change in [end, Change::Remove] {
            check.applied(record.id(), change).await;
            is_said(check, &record, &said[said.len() - 1], "after its end").await;
        }
    }
}

async fn is_said<S: Store>(check: &Check<S>, record: &Record, said: &Progress, when: &str) {
    let found = check.record(record.id(), when).await;
    let fetched = check.fetch(record.id()).await.map(|(record, _)| record);
    for found in [Some(found), fetched].iter().flatten() {
        let kept = found.progress();
        check.that(kept == Some(said), format_args!("{when}, of {said:?} there is {kept:?}"));
    }
}

/// A store may wake early, but not each time: a job that tells of each row of an import would keep
/// all who wait for its end awake.
pub(super) async fn progress_wakes_only_who_asked_for_it<S: Store>(check: &Check<S>) {
    let record = check.job(Record::running);
    check.insert(&record).await;
    let mut undisturbed = 0;
    for version in 1..=20 {
        let seen = version - 1;
        let status = check.there.changed(record.id(), seen, Interest::Status);
        let status = check.begin("changed", status).await;
        let watcher = waiter_for(check, record.id(), seen, Interest::Progress).await;
        check.applied(record.id(), progress(0.5, &version.to_string())).await;
        woken(check, watcher, version).await;
        if let Some(status) = status {
            undisturbed += u32::from(tokio::time::timeout(WATCHED, status).await.is_err());
        }
    }
    let each_time = "each progress has woken somebody who waits for another status";
    check.that(undisturbed > 0, each_time);
}

/// Whoever waits for a status, and has seen progress or not, learns of the status all the same.
pub(super) async fn a_status_is_not_missed_for_progress<S: Store>(check: &Check<S>) {
    for told in 0..4 {
        let record = check.job(Record::queued);
        let id = record.id();
        check.insert(&record).await;
        check.applied(id, Change::Start).await;
        let mut waiters = Vec::new();
        for version in 1..=1 + told {
            // They have seen the job as it is now, and there may be more progress to come.
            waiters.push(waiter_for(check, id, version, Interest::Status).await);
            if version <= told {
                check.applied(id, progress(0.1, "more")).await;
            }
        }
        // The start was before all that: whoever has not seen it need not wait.
        let missed = check.there.changed(id, 0, Interest::Status);
        check.answer("changed, for a status before the progress,", missed).await;
        sleep(Duration::from_millis(1)).await;
        check.applied(id, response(200)).await;
        for waiter in waiters {
            woken(check, waiter, told + 2).await;
        }
        for seen in 0..=1 + told {
            let late = check.there.changed(id, seen, Interest::Status);
            check.answer("changed, for a status after the progress,", late).await;
        }
    }
}
