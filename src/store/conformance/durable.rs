//! Jobs that are kept with their requests, where a store [keeps them](Store::keeps_requests).

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::task::yield_now;

use super::{
    check::{Check, LONG, join, response},
    claims::claim,
};
use crate::{
    job::{Change, End, Failure, JobId, Record, Status},
    store::{Inserted, Store},
};

/// How long a store is watched that has nothing to take.
const WINDOW: Duration = Duration::from_secs(2);

/// More often than this an arrival does not resolve with nothing to take, in `WINDOW` or in as long as
/// a job may take to arrive.
const MADE_UP: usize = 100;

/// What is lost with its process.
fn lost() -> Change {
    Change::Finish(End::Failure(Failure::Interrupted))
}

impl<S: Store> Check<S> {
    /// A job of this policy that may be begun so often.
    fn durable(&self, policy: &str, attempts: u16) -> Record {
        self.job(Record::queued).with_policy(policy.into()).with_attempts(attempts)
    }

    async fn enqueued(&self, record: &Record, request: &'static [u8]) -> Inserted {
        let request = Bytes::from_static(request);
        self.answer("enqueue", self.here.enqueue(record.clone(), request, 4096)).await
    }

    async fn enqueue(&self, record: &Record, request: &'static [u8]) {
        let enqueued = self.enqueued(record, request).await;
        self.that(matches!(enqueued, Inserted::New), "a durable job is not kept");
    }

    async fn arrival(&self, policy: &str) {
        self.answer("arrival", self.there.arrival(policy.into())).await;
    }

    async fn take(&self, policy: &str) -> Option<(Record, Bytes)> {
        self.answer("take", self.there.take(policy.into())).await
    }

    /// What is taken once it is there, as the tasks that serve a route do it: they wait, then take.
    async fn taken(&self, policy: &str) -> (Record, Bytes) {
        let found = async {
            for _ in 0..MADE_UP {
                if let Some(found) = self.take(policy).await {
                    return found;
                }
                self.arrival(policy).await;
            }
            self.fail("it resolves over and over with nothing to take")
        };
        self.soon("nothing to take", found).await
    }
}

pub(super) async fn a_durable_job_is_taken_with_its_request<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    let (first, other) = (check.durable("a", 3), check.durable("b", 3));
    check.enqueue(&first, b"first\0request").await;
    check.enqueue(&other, b"").await;
    let kept = check.record(first.id(), "after it was enqueued").await;
    check.alike(&kept, &first, "enqueued");
    check.that(kept.attempt() == Some(0), "it was begun before it was taken");
    let (taken, request) = check.taken("a").await;
    let mut begun = first.clone();
    begun.apply(&Change::Start, taken.started_at().unwrap_or(first.created_at()));
    check.alike(&taken, &begun, "taken");
    check.that(taken.attempt() == Some(1), "its first attempt is not counted");
    check.that(request == "first\0request", format_args!("its request is {request:?}"));
    check.that(check.take("a").await.is_none(), "it is taken twice, or another policy's is");
    // Whoever has taken it ends it.
    let there = check.swapped();
    there.applied(first.id(), response(200)).await;
    check.that(check.take("a").await.is_none(), "what has ended is taken");
    let (taken, request) = check.taken("b").await;
    check.that(taken.id() == other.id() && request.is_empty(), "another job, or request");
}

pub(super) async fn what_is_lost_is_taken_again_so_often<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    let record = check.durable("a", 2);
    check.enqueue(&record, b"request").await;
    let there = check.swapped();
    for attempt in 1..=2 {
        let (taken, request) = check.taken("a").await;
        let as_it_was = taken.id() == record.id() && request == "request";
        check.that(as_it_was && taken.attempt() == Some(attempt), format_args!("{taken:?}"));
        let mut wanted = taken.clone();
        wanted.apply(&lost(), crate::system::now());
        let told = there.applied(record.id(), lost()).await;
        check.alike(&told, &wanted, "lost");
        check.that(told.status().is_end() == (attempt == 2), format_args!("lost, it is {told:?}"));
    }
    check.that(check.take("a").await.is_none(), "what was given up is taken");
}

pub(super) async fn a_claim_of_what_is_taken_again_is_not_taken_back<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    let key = check.digest();
    let record = check.job_of(Record::queued, LONG, claim(check, key));
    let record = record.with_policy("a".into()).with_attempts(2);
    check.enqueue(&record, b"request").await;
    check.taken("a").await;
    check.swapped().applied(record.id(), lost()).await;
    check.that(!check.undo(record.id()).await, "queued again, it is taken back");
    let (taken, request) = check.taken("a").await;
    let as_it_was = taken.id() == record.id() && request == "request";
    check.that(as_it_was && taken.attempt() == Some(2), format_args!("{taken:?}"));
}

pub(super) async fn what_was_canceled_or_taken_back_is_not_taken<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    let key = check.digest();
    let canceled = check.job_of(Record::queued, LONG, claim(check, key));
    let canceled = canceled.with_policy("a".into()).with_attempts(3);
    check.enqueue(&canceled, b"request").await;
    match check.enqueued(&check.job_of(Record::queued, LONG, claim(check, key)), b"").await {
        Inserted::Claimed(holder) => check.alike(&holder, &canceled, "the claim's job"),
        Inserted::New => check.fail("two durable jobs have one claim"),
    }
    let back = check.durable("a", 3);
    check.enqueue(&back, b"request").await;
    check.applied(canceled.id(), Change::Cancel).await;
    check.take_back(back.id()).await;
    check.that(!check.undo(canceled.id()).await, "a job that another request was given is gone");
    let last = check.durable("a", 3);
    check.enqueue(&last, b"request").await;
    check.that(check.taken("a").await.0.id() == last.id(), "what is over is taken");
    check.that(check.take("a").await.is_none(), "what is over is taken");
    let free = check.claimed(key).await;
    check.that(free.is_none(), "canceled before it was begun, it has its claim");
}

/// However often it is polled before it is dropped, and however far the store is by then.
pub(super) async fn a_take_that_is_dropped_loses_no_job<S: Store>(check: &Check<S>) {
    const TAKES: u16 = 20;
    if !check.there.keeps_requests() {
        return;
    }
    for turns in 0..TAKES {
        let record = check.durable("a", 1000);
        check.enqueue(&record, b"request").await;
        check.arrival("a").await;
        let mut take = Some(check.here.take("a".into()));
        for turn in 0..=turns {
            let polled =
                poll_fn(|cx| Poll::Ready(take.as_mut().map(|take| Pin::new(take).poll(cx))));
            if let Some(Poll::Ready(taken)) = polled.await {
                // It was faster than its drop: what is given is the caller's.
                take = None;
                match taken {
                    Ok(Some((taken, _))) => drop(check.applied(taken.id(), lost()).await),
                    Ok(None) => {}
                    Err(error) => check.fail(format_args!("take failed: {error}")),
                }
                break;
            }
            // Later each time: before the store is asked, while it works, and once its answer is there.
            if turn % 2 == 1 {
                tokio::time::sleep(Duration::from_micros(100 * u64::from(turn))).await;
            }
            yield_now().await;
        }
        // With its answer, which was not looked at yet.
        if turns % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(take);
        let (taken, request) = check.taken("a").await;
        let as_it_was = taken.id() == record.id() && request == "request";
        check.that(as_it_was, format_args!("after a dropped take {taken:?} is taken"));
        check.swapped().applied(record.id(), response(200)).await;
    }
}

pub(super) async fn of_racing_takers_one_has_each_job<S: Store>(check: &Check<S>) {
    const JOBS: usize = 200;
    if !check.there.keeps_requests() {
        return;
    }
    let policy: Arc<str> = "a".into();
    let mut takers = Vec::new();
    for index in 0..8 {
        let check = if index % 2 == 0 { check.clone() } else { check.swapped() };
        takers.push(tokio::spawn(async move {
            let (mut mine, mut empty) = (Vec::new(), 0);
            while empty < 20 {
                match check.take("a").await {
                    Some((record, _)) => mine.push(record.id()),
                    None => {
                        empty += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
            mine
        }));
    }
    let mut all = BTreeSet::new();
    for _ in 0..JOBS {
        let record = check.durable(&policy, 1);
        all.insert(record.id());
        check.enqueue(&record, b"request").await;
        yield_now().await;
    }
    let mut taken = Vec::<JobId>::new();
    for taker in takers {
        taken.extend(join(taker).await);
    }
    check.that(taken.len() == JOBS, format_args!("{} of {JOBS} were taken", taken.len()));
    check.that(all == taken.into_iter().collect(), "some were taken twice");
    for id in all {
        let record = check.record(id, "after it was taken").await;
        check.that(record.status() == Status::Running, format_args!("taken, it is {record:?}"));
    }
}

pub(super) async fn an_arrival_is_seen_and_none_is_made_up<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    // Before the call.
    check.enqueue(&check.durable("a", 1), b"").await;
    check.arrival("a").await;
    check.taken("a").await;
    // After it, through the other handle.
    let waiting = {
        let check = check.clone();
        tokio::spawn(async move { check.taken("a").await })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let record = check.durable("a", 1);
    check.enqueue(&record, b"").await;
    check.that(join(waiting).await.0.id() == record.id(), "another job arrived");
    // A job that is queued again arrives again.
    let again = check.durable("a", 2);
    check.enqueue(&again, b"").await;
    check.taken("a").await;
    check.swapped().applied(again.id(), lost()).await;
    check.that(check.taken("a").await.0.id() == again.id(), "another job arrived");
    // With nothing there it seldom resolves.
    check.enqueue(&check.durable("b", 1), b"").await;
    let mut made_up = 0;
    let counted = async {
        loop {
            check.arrival("a").await;
            made_up += 1;
            check.that(made_up < MADE_UP, "it resolves over and over with nothing to take");
            check.that(check.take("a").await.is_none(), "something is taken that is not there");
        }
    };
    let _: Result<(), _> = tokio::time::timeout(WINDOW, counted).await;
}

pub(super) async fn what_waits_is_counted<S: Store>(check: &Check<S>) {
    if !check.there.keeps_requests() {
        return;
    }
    let counts = async |a: usize, b: usize, when: &str| {
        for (policy, expected) in [(Some("a"), a), (Some("b"), b), (Some("c"), 0), (None, a + b)] {
            let queued = check.there.queued(policy.map(Arc::from));
            let queued = check.answer("queued", queued).await;
            let seen = format_args!("{when} {queued} jobs of {policy:?} wait, not {expected}");
            check.that(queued == expected, seen);
        }
    };
    counts(0, 0, "at first").await;
    let records = ["a", "a", "a", "b"].map(|policy| check.durable(policy, 2));
    for record in &records {
        check.enqueue(record, b"request").await;
    }
    // What is no durable job waits in its process.
    check.insert(&check.job(Record::queued).with_policy("a".into())).await;
    counts(3, 1, "once enqueued").await;
    let (taken, _) = check.taken("a").await;
    let mut others = records[..3].iter().map(Record::id).filter(|id| *id != taken.id());
    counts(2, 1, "once one was taken").await;
    check.swapped().applied(taken.id(), lost()).await;
    counts(3, 1, "once it was queued again").await;
    let (taken, _) = check.taken("b").await;
    check.swapped().applied(taken.id(), response(200)).await;
    counts(3, 0, "once one has ended").await;
    if let Some(id) = others.next() {
        check.applied(id, Change::Cancel).await;
        counts(2, 0, "once one was canceled").await;
    }
    if let Some(id) = others.next() {
        check.take_back(id).await;
        counts(1, 0, "once one was taken back").await;
    }
}
