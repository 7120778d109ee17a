//! The suite for stores: the store in memory passes it, and so does a plain one written here; with
//! any flaw that a store can have, that one fails, in the check that is there for it.
#![cfg(feature = "conformance")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    task::yield_now,
    time::{Instant, sleep},
};
use tower_offload::{
    Change, Digest, End, Error, ErrorKind, JobId, MemoryStore, Outcome, Progress, Record, Status,
    Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage, conformance},
};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_in_memory_passes_on_many_threads() {
    conformance::run(async || MemoryStore::new(16 * MIB)).await;
}

#[tokio::test]
async fn the_store_in_memory_passes_on_one_thread() {
    conformance::run(async || MemoryStore::new(16 * MIB)).await;
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_passes_on_a_paused_clock() {
    conformance::run(async || MemoryStore::new(usize::MAX)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_handles_of_one_store_pass() {
    conformance::run_shared(async || {
        let store = MemoryStore::new(16 * MIB);
        (store.clone(), store)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_plain_store_passes() {
    conformance::run(async || Plain::new(None)).await;
}

#[tokio::test(start_paused = true)]
async fn two_stores_that_know_nothing_of_each_other_fail() {
    let apart = async || (MemoryStore::new(MIB * 16), MemoryStore::new(MIB * 16));
    let failed = tokio::spawn(conformance::run_shared(apart)).await;
    assert_eq!(check_of(failed), "a_job_is_kept_as_given");
}

/// What can be wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    ReadsThenWrites,
    WritesInTwoSteps,
    ChecksThenInserts,
    Overwrites,
    ReadsForAnyOwner,
    FetchesForAnyOwner,
    ShowsWhatHasNoOwner,
    RefusesTwice,
    RefusedCancelRemoves,
    LosesTrailers,
    ForgetsRemoved,
    KeepsRemovedOutcomes,
    PromisesTooMuch,
    CallsFullBroken,
    MissesStart,
    MissesForgetting,
    WakesOne,
    KeepsDroppedWaiters,
    WaitsForTheNext,
    AsksAgain,
    ExpiresRunning,
    ExpiresEarly,
    NeverExpires,
    RemovalStopsExpiry,
    RefusalStopsExpiry,
    ExpiresUnseen,
    LosesPolicies,
    LosesMessages,
    ProgressWakesNobody,
    ProgressWakesAll,
    ProgressHidesStatus,
    IgnoresClaims,
    KnowsNoKeys,
    ChecksThenClaims,
    LosesClaimsAtEnd,
    KeepsClaimsTakenBack,
    KeepsClaimsLetGo,
    KeepsClaimsExpired,
    ReleasesByKey,
    TakesBackWhatWasGiven,
    TakesBackWhatWasFound,
    TakesBackWhatHasBegun,
    TakesBackWhatIsTakenAgain,
    ChecksThenTakesBack,
    ClaimsWhenRefused,
    ClaimsWhenFull,
    CountsNothing,
    CountsRunning,
    CountsExpired,
    SaysAtOnce,
    LosesRequests,
    TakesOfAnyPolicy,
    TakesOnce,
    TakesWhatIsOver,
    ReadsThenTakes,
    LosesDroppedTakes,
    MissesArrivals,
    ArrivesAlways,
    CountsNoneThatWait,
    CountsWaitingOfAnyPolicy,
    CountsWhatRuns,
    CountsWhatWasCanceled,
}

macro_rules! failing {
    ($($flaw:ident in $check:ident;)*) => {$(
        #[allow(non_snake_case, reason = "named after its flaw")]
        #[tokio::test(start_paused = true)]
        async fn $flaw() {
            let flawed = async || Plain::new(Some(Flaw::$flaw));
            let failed = tokio::spawn(conformance::run(flawed)).await;
            assert_eq!(check_of(failed), stringify!($check));
        }
    )*};
}

mod a_flaw_is_found {
    use super::*;

    failing! {
        ReadsThenWrites in racing_changes_are_applied_one_after_another;
        WritesInTwoSteps in racing_changes_are_applied_one_after_another;
        ChecksThenInserts in of_racing_insertions_one_wins;
        Overwrites in an_id_that_is_known_is_refused;
        ReadsForAnyOwner in a_job_is_found_by_its_owner_only;
        FetchesForAnyOwner in a_job_is_found_by_its_owner_only;
        ShowsWhatHasNoOwner in a_job_is_found_by_its_owner_only;
        RefusesTwice in an_unknown_job_is_not_there;
        RefusedCancelRemoves in the_table_of_transitions;
        LosesTrailers in an_outcome_is_kept_byte_for_byte;
        ForgetsRemoved in an_id_that_is_known_is_refused;
        KeepsRemovedOutcomes in a_removal_takes_the_outcome_and_keeps_the_record;
        PromisesTooMuch in a_full_store_keeps_its_word;
        CallsFullBroken in a_full_store_keeps_its_word;
        MissesStart in every_change_wakes;
        MissesForgetting in every_change_wakes;
        WakesOne in a_thousand_waiters_are_woken;
        KeepsDroppedWaiters in a_dropped_waiter_takes_no_wake_with_it;
        WaitsForTheNext in a_change_made_before_the_call_is_not_missed;
        AsksAgain in the_change_itself_wakes;
        ExpiresRunning in what_has_not_ended_never_expires;
        ExpiresEarly in what_has_not_ended_never_expires;
        NeverExpires in what_has_ended_is_kept_for_its_ttl_and_then_gone;
        RemovalStopsExpiry in what_has_ended_is_kept_for_its_ttl_and_then_gone;
        RefusalStopsExpiry in what_has_ended_is_kept_for_its_ttl_and_then_gone;
        ExpiresUnseen in expiry_wakes;
        LosesPolicies in a_job_is_kept_as_given;
        LosesMessages in the_table_of_transitions;
        ProgressWakesNobody in every_change_wakes;
        ProgressWakesAll in progress_wakes_only_who_asked_for_it;
        ProgressHidesStatus in a_status_is_not_missed_for_progress;
        IgnoresClaims in a_claim_is_one_jobs;
        KnowsNoKeys in a_claim_is_one_jobs;
        ChecksThenClaims in of_racing_claims_one_wins;
        LosesClaimsAtEnd in a_claim_is_kept_to_the_end_and_after;
        KeepsClaimsTakenBack in a_claim_ends_with_its_job;
        KeepsClaimsLetGo in a_job_that_ends_before_its_start_lets_go_of_its_claim;
        KeepsClaimsExpired in what_has_expired_has_no_claim_and_is_not_counted;
        ReleasesByKey in a_job_that_ends_before_its_start_lets_go_of_its_claim;
        TakesBackWhatWasGiven in a_job_that_another_request_was_given_is_not_taken_back;
        TakesBackWhatWasFound in a_job_that_another_request_was_given_is_not_taken_back;
        TakesBackWhatHasBegun in a_claim_of_a_job_that_has_begun_is_not_taken_back;
        ChecksThenTakesBack in a_claim_that_is_let_go_of_in_a_race_is_one_jobs;
        ClaimsWhenRefused in what_is_refused_claims_nothing;
        ClaimsWhenFull in a_full_store_keeps_its_word;
        CountsNothing in usage_is_told_by_policy;
        CountsRunning in usage_is_told_by_policy;
        CountsExpired in what_has_expired_has_no_claim_and_is_not_counted;
        SaysAtOnce in an_unknown_job_is_not_there;
        LosesRequests in a_durable_job_is_taken_with_its_request;
        TakesOfAnyPolicy in a_durable_job_is_taken_with_its_request;
        TakesOnce in what_is_lost_is_taken_again_so_often;
        TakesBackWhatIsTakenAgain in a_claim_of_what_is_taken_again_is_not_taken_back;
        TakesWhatIsOver in what_was_canceled_or_taken_back_is_not_taken;
        LosesDroppedTakes in a_take_that_is_dropped_loses_no_job;
        ReadsThenTakes in of_racing_takers_one_has_each_job;
        MissesArrivals in an_arrival_is_seen_and_none_is_made_up;
        ArrivesAlways in an_arrival_is_seen_and_none_is_made_up;
        CountsNoneThatWait in what_waits_is_counted;
        CountsWaitingOfAnyPolicy in what_waits_is_counted;
        CountsWhatRuns in what_waits_is_counted;
        CountsWhatWasCanceled in what_waits_is_counted;
    }
}

/// The name of the check whose panic this is.
fn check_of(failed: Result<(), tokio::task::JoinError>) -> String {
    let panic = failed.expect_err("a flawed store passed").into_panic();
    let message = panic.downcast_ref::<String>().expect("no message");
    let check = message.strip_prefix("store conformance, ").expect(message);
    check.split_once(':').expect(message).0.to_owned()
}

/// A store that is as plain as can be, and has a flaw or none.
struct Plain(Arc<Inner>);

struct Inner {
    flaw: Option<Flaw>,
    jobs: Mutex<HashMap<JobId, Job>>,
    /// Those of durable jobs, in the order in which they came.
    requests: Mutex<Vec<(JobId, Bytes)>>,
    /// Who is said to have a claim beside those whose records have it, and whose is forgotten.
    ghosts: Mutex<HashMap<Digest, Record>>,
    released: Mutex<HashSet<Digest>>,
    /// Sent at every change of any job.
    changes: watch::Sender<()>,
    /// In its place, where one waiter is woken by each change.
    one: Notify,
    /// What is left for waiters, where those that are dropped keep their place.
    places: AtomicUsize,
}

#[derive(Clone)]
struct Job {
    record: Record,
    outcome: Option<Outcome>,
    room: usize,
    expires: Option<Instant>,
    /// What it has claimed at first.
    key: Option<Digest>,
    /// Another request was given it.
    disclosed: bool,
}

impl Job {
    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }
}

/// The key of this record's claim.
fn key(record: &Record) -> Option<Digest> {
    record.claim().map(|claim| *claim.key())
}

impl Plain {
    fn new(flaw: Option<Flaw>) -> Self {
        let (changes, _) = watch::channel(());
        let (one, places) = (Notify::new(), AtomicUsize::new(2500));
        let (jobs, requests, ghosts, released) = Default::default();
        Self(Arc::new(Inner { flaw, jobs, requests, ghosts, released, changes, one, places }))
    }

    fn call<T: Send + 'static, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> StoreFuture<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        StoreFuture::new(call(Arc::clone(&self.0)))
    }
}

impl Inner {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn get(&self, id: JobId) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap();
        if jobs.get(&id)?.is_expired() {
            let expired = jobs.remove(&id)?;
            self.haunt(Flaw::KeepsClaimsExpired, &expired.record);
        }
        jobs.get(&id).cloned()
    }

    /// The job, if it is this owner's.
    fn get_of(&self, id: JobId, owner: Option<Digest>, flaw: Flaw) -> Option<Job> {
        let job = self.get(id)?;
        let shows = match (owner, job.record.owner()) {
            (None, _) => true,
            (Some(_), None) => self.has(Flaw::ShowsWhatHasNoOwner),
            (Some(asks), Some(owner)) => asks == *owner,
        };
        (shows || self.has(flaw)).then_some(job)
    }

    fn set(&self, id: JobId, job: Job) {
        self.jobs.lock().unwrap().insert(id, job);
    }

    /// With this flaw, the claim of this job's is kept, whatever becomes of the job.
    fn haunt(&self, flaw: Flaw, record: &Record) {
        if let Some(key) = key(record).filter(|_| self.has(flaw)) {
            self.ghosts.lock().unwrap().insert(key, record.clone());
        }
    }

    /// Who has the claim with this key.
    fn holder(&self, jobs: &HashMap<JobId, Job>, wanted: Digest) -> Option<Record> {
        let lost = |job: &Job| self.has(Flaw::LosesClaimsAtEnd) && job.record.status().is_end();
        let holds =
            |job: &&Job| key(&job.record) == Some(wanted) && !job.is_expired() && !lost(job);
        let holder = jobs.values().find(holds).map(|job| job.record.clone());
        let released = self.released.lock().unwrap().contains(&wanted);
        holder.or_else(|| self.ghosts.lock().unwrap().get(&wanted).cloned()).filter(|_| !released)
    }

    async fn insert(&self, mut record: Record, room: usize) -> Result<Inserted, Error> {
        let known = |record: &Record| {
            self.haunt(Flaw::ClaimsWhenRefused, record);
            Err(Error::new(ErrorKind::StoreUnavailable, "known already"))
        };
        let (id, key) = (record.id(), key(&record));
        if self.has(Flaw::LosesPolicies) && record.policy().is_some() {
            record = record.with_policy("another".into());
        }
        let expires = self.has(Flaw::ExpiresRunning).then(|| Instant::now() + record.ttl());
        let found = self.get(id).is_some();
        let claimed = key.and_then(|key| self.holder(&self.jobs.lock().unwrap(), key));
        if self.has(Flaw::ChecksThenInserts) || self.has(Flaw::ChecksThenClaims) {
            yield_now().await;
        }
        let mut jobs = self.jobs.lock().unwrap();
        let claimed = match self.has(Flaw::ChecksThenClaims) {
            true => claimed,
            false => key.and_then(|key| self.holder(&jobs, key)),
        };
        let raced = jobs.contains_key(&id) && !self.has(Flaw::ChecksThenInserts);
        if (found || raced) && !self.has(Flaw::Overwrites) {
            return known(&record);
        }
        if let Some(holder) = claimed.filter(|_| !self.has(Flaw::IgnoresClaims)) {
            if let Some(job) = jobs.get_mut(&holder.id()) {
                job.disclosed |= !self.has(Flaw::TakesBackWhatWasGiven);
            }
            return Ok(Inserted::Claimed(holder));
        }
        let used: usize = jobs.values().map(|job| job.room).sum();
        if used + room > 16 * MIB && !self.has(Flaw::PromisesTooMuch) {
            let kind = match self.has(Flaw::CallsFullBroken) {
                true => ErrorKind::StoreUnavailable,
                false => ErrorKind::StoreFull,
            };
            self.haunt(Flaw::ClaimsWhenFull, &record);
            return Err(Error::new(kind, "full"));
        }
        if let Some(key) = &key {
            self.released.lock().unwrap().remove(key);
        }
        jobs.insert(id, Job { record, outcome: None, room, expires, key, disclosed: false });
        Ok(Inserted::New)
    }

    async fn take(&self, policy: &str) -> Result<Option<(Record, Bytes)>, Error> {
        let requests = self.requests.lock().unwrap().clone();
        for (id, mut request) in requests {
            let Some(mut job) = self.get(id) else { continue };
            let is_its = job.record.policy().is_some_and(|name| **name == *policy);
            if !is_its && !self.has(Flaw::TakesOfAnyPolicy) {
                continue;
            }
            if self.has(Flaw::LosesRequests) {
                request.clear();
            }
            if self.has(Flaw::TakesOnce) {
                self.requests.lock().unwrap().retain(|(other, _)| *other != id);
            }
            match job.record.status() {
                Status::Canceled if self.has(Flaw::TakesWhatIsOver) => {
                    return Ok(Some((job.record, request)));
                }
                Status::Queued if self.has(Flaw::ReadsThenTakes) => {
                    yield_now().await;
                    job.record.apply(&Change::Start, SystemTime::now());
                    self.set(id, job.clone());
                    return Ok(Some((job.record, request)));
                }
                Status::Queued => {
                    if let Changed::Applied(record) = self.change(id, Change::Start).await? {
                        if self.has(Flaw::LosesDroppedTakes) {
                            yield_now().await;
                        }
                        return Ok(Some((record, request)));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn is_due(&self, policy: &str) -> bool {
        let requests = self.requests.lock().unwrap().clone();
        let mut jobs = requests.iter().filter_map(|(id, _)| self.get(*id));
        jobs.any(|job| {
            let name = job.record.policy().map(|name| &**name);
            job.record.status() == Status::Queued && name == Some(policy)
        })
    }

    async fn change(&self, id: JobId, change: Change) -> Result<Changed, Error> {
        if self.has(Flaw::ReadsThenWrites) {
            let Some(mut job) = self.get(id) else { return Ok(Changed::Unknown) };
            yield_now().await;
            let changed = self.apply(&mut job, &change)?;
            self.set(id, job);
            self.wake();
            return Ok(changed);
        }
        let _ = self.get(id);
        let (changed, later) = {
            let mut jobs = self.jobs.lock().unwrap();
            let Some(job) = jobs.get_mut(&id) else { return Ok(Changed::Unknown) };
            let changed = self.apply(job, &change)?;
            let later = self.has(Flaw::WritesInTwoSteps).then(|| job.outcome.take());
            if self.has(Flaw::ForgetsRemoved) && job.record.is_removed() {
                jobs.remove(&id);
            }
            (changed, later)
        };
        if let Some(outcome) = later {
            yield_now().await;
            if let Some(job) = self.jobs.lock().unwrap().get_mut(&id) {
                job.outcome = outcome;
            }
        }
        let silent = match change {
            Change::Start => self.has(Flaw::MissesStart),
            Change::Progress(_) => self.has(Flaw::ProgressWakesNobody),
            _ => false,
        };
        if !silent {
            self.wake();
        }
        Ok(changed)
    }

    fn wake(&self) {
        if self.has(Flaw::WakesOne) {
            self.one.notify_one();
        } else {
            self.changes.send_replace(());
        }
    }

    fn apply(&self, job: &mut Job, change: &Change) -> Result<Changed, Error> {
        let cut = match change {
            Change::Progress(said) if self.has(Flaw::LosesMessages) => {
                Some(Change::Progress(Progress::new(said.ratio(), None)))
            }
            _ => None,
        };
        let change = cut.as_ref().unwrap_or(change);
        let mut record = job.record.clone();
        if !record.apply(change, SystemTime::now()) {
            if self.has(Flaw::RefusedCancelRemoves) && matches!(change, Change::Cancel) {
                job.record.apply(&Change::Remove, SystemTime::now());
            }
            if self.has(Flaw::RefusalStopsExpiry) {
                job.expires = None;
            }
            return Ok(Changed::Refused(record));
        }
        match change {
            Change::Finish(End::Response(_))
                if self.has(Flaw::PromisesTooMuch) && job.room >= MIB =>
            {
                return Err(Error::new(ErrorKind::StoreFull, "full after all"));
            }
            Change::Finish(End::Response(outcome)) if self.has(Flaw::LosesTrailers) => {
                let mut head = http::Response::new(()).into_parts().0;
                (head.status, head.headers) = (outcome.status(), outcome.headers());
                job.outcome = Some(Outcome::new(&head, &outcome.body(), None));
            }
            Change::Finish(End::Response(outcome)) => {
                let bytes = Bytes::copy_from_slice(outcome.as_bytes());
                job.outcome = Some(Outcome::from_bytes(bytes)?);
            }
            Change::Remove if !self.has(Flaw::KeepsRemovedOutcomes) => job.outcome = None,
            _ => {}
        }
        if record.claim().is_none() {
            self.haunt(Flaw::KeepsClaimsLetGo, &job.record);
        }
        let removal = matches!(change, Change::Remove);
        if record.status().is_end() && !removal && !self.has(Flaw::NeverExpires) {
            let early = if self.has(Flaw::ExpiresEarly) { 2 } else { 1 };
            job.expires = Some(Instant::now() + record.ttl() / early);
        }
        if removal && self.has(Flaw::RemovalStopsExpiry) {
            job.expires = None;
        }
        job.record = record.clone();
        Ok(Changed::Applied(record))
    }

    async fn changed(&self, id: JobId, seen: u32, interest: Interest) -> Result<(), Error> {
        let mut changes = self.changes.subscribe();
        if self.has(Flaw::KeepsDroppedWaiters) {
            let one_less = |places: usize| places.checked_sub(1);
            let place = self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
            place.map_err(|_| Error::new(ErrorKind::StoreUnavailable, "too many wait"))?;
        }
        let wants_all = interest == Interest::Progress || self.has(Flaw::ProgressWakesAll);
        let same = |job: &Job| {
            self.has(Flaw::WaitsForTheNext)
                || match wants_all {
                    true => job.record.version() == seen,
                    false => job.record.status_version() <= seen,
                }
        };
        while let Some(job) = self.get(id).filter(same) {
            let expiry = job.expires.filter(|_| !self.has(Flaw::ExpiresUnseen));
            let far = Instant::now() + Duration::from_secs(7200);
            let woken = async {
                match self.flaw {
                    Some(Flaw::AsksAgain) => sleep(Duration::from_millis(50)).await,
                    Some(Flaw::WakesOne) => self.one.notified().await,
                    _ => drop(changes.changed().await),
                }
            };
            let _ = tokio::time::timeout_at(expiry.unwrap_or(far), woken).await;
            if self.has(Flaw::WaitsForTheNext) {
                break;
            }
            let hidden = |job: &Job| job.record.version() > job.record.status_version().max(seen);
            if self.has(Flaw::ProgressHidesStatus)
                && !wants_all
                && self.get(id).is_some_and(|job| hidden(&job))
            {
                std::future::pending().await
            }
        }
        self.places.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Store for Plain {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.call(|inner| async move { inner.insert(record, outcome_bytes).await })
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.call(|inner| async move {
            let is_kept = |job: &Job| {
                let record = &job.record;
                let again = record.attempt().unwrap_or(0) > 0
                    && !inner.has(Flaw::TakesBackWhatIsTakenAgain);
                let has_begun = record.status() != Status::Queued || again;
                let keeps_claim = has_begun && !inner.has(Flaw::TakesBackWhatHasBegun);
                job.disclosed || (keeps_claim && record.claim().is_some())
            };
            if inner.has(Flaw::ChecksThenTakesBack) {
                let kept = inner.jobs.lock().unwrap().get(&id).is_some_and(is_kept);
                yield_now().await;
                if !kept {
                    inner.jobs.lock().unwrap().remove(&id);
                    inner.wake();
                }
                return Ok(!kept);
            }
            let job = {
                let mut jobs = inner.jobs.lock().unwrap();
                if jobs.get(&id).is_some_and(is_kept) {
                    return Ok(false);
                }
                jobs.remove(&id)
            };
            if let Some(job) = &job {
                inner.haunt(Flaw::KeepsClaimsTakenBack, &job.record);
                if inner.has(Flaw::ReleasesByKey) {
                    inner.released.lock().unwrap().extend(job.key);
                }
            }
            if job.is_none() && inner.has(Flaw::RefusesTwice) {
                return Err(Error::new(ErrorKind::StoreUnavailable, "not there"));
            }
            if !inner.has(Flaw::MissesForgetting) {
                inner.wake();
            }
            Ok(true)
        })
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.call(move |inner| async move {
            let found = inner.get_of(id, owner, Flaw::ReadsForAnyOwner);
            Ok(found.map(|job| job.record))
        })
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.call(move |inner| async move {
            let found = inner.get_of(id, owner, Flaw::FetchesForAnyOwner);
            Ok(found.map(|job| (job.record, job.outcome.map(Fetched::from))))
        })
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.call(|inner| async move {
            if inner.has(Flaw::SaysAtOnce) {
                yield_now().await;
            }
            inner.change(id, change).await
        })
    }

    fn changes_at_once(&self) -> bool {
        self.0.has(Flaw::SaysAtOnce)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.call(|inner| async move {
            let mut jobs = inner.jobs.lock().unwrap();
            let holder = inner.holder(&jobs, key).filter(|_| !inner.has(Flaw::KnowsNoKeys));
            if let Some(job) = holder.as_ref().and_then(|holder| jobs.get_mut(&holder.id())) {
                job.disclosed |= !inner.has(Flaw::TakesBackWhatWasFound);
            }
            Ok(holder)
        })
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.call(|inner| async move { inner.changed(id, seen, interest).await })
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    fn enqueue(&self, record: Record, request: Bytes, room: usize) -> StoreFuture<Inserted> {
        self.call(move |inner| async move {
            let id = record.id();
            let inserted = inner.insert(record, room).await?;
            if let Inserted::New = inserted {
                inner.requests.lock().unwrap().push((id, request));
                inner.wake();
            }
            Ok(inserted)
        })
    }

    fn take(&self, policy: Arc<str>) -> StoreFuture<Option<(Record, Bytes)>> {
        self.call(move |inner| async move { inner.take(&policy).await })
    }

    fn queued(&self, policy: Option<Arc<str>>) -> StoreFuture<usize> {
        self.call(move |inner| async move {
            let requests = inner.requests.lock().unwrap().clone();
            let waits = |(id, _): &&(JobId, Bytes)| {
                let Some(Job { record, .. }) = inner.get(*id) else { return false };
                let counts = match record.status() {
                    Status::Queued => true,
                    Status::Running => inner.has(Flaw::CountsWhatRuns),
                    Status::Canceled => inner.has(Flaw::CountsWhatWasCanceled),
                    _ => false,
                };
                let is_of = policy.is_none() || record.policy() == policy.as_ref();
                counts && (is_of || inner.has(Flaw::CountsWaitingOfAnyPolicy))
            };
            let waiting = requests.iter().filter(waits).count();
            Ok(if inner.has(Flaw::CountsNoneThatWait) { 0 } else { waiting })
        })
    }

    fn arrival(&self, policy: Arc<str>) -> StoreFuture<()> {
        self.call(|inner| async move {
            let mut changes = inner.changes.subscribe();
            let is_due = || inner.has(Flaw::ArrivesAlways) || inner.is_due(&policy);
            while inner.has(Flaw::MissesArrivals) || !is_due() {
                let _ = changes.changed().await;
                if inner.has(Flaw::MissesArrivals) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.call(|inner| async move {
            let mut usage: HashMap<_, (usize, usize)> = HashMap::new();
            for job in inner.jobs.lock().unwrap().values() {
                let counts = match inner.flaw {
                    Some(Flaw::CountsNothing) => false,
                    Some(Flaw::CountsRunning) => !job.record.status().is_end(),
                    Some(Flaw::CountsExpired) => true,
                    _ => !job.is_expired(),
                };
                if counts {
                    let (jobs, bytes) = usage.entry(job.record.policy().cloned()).or_default();
                    *jobs += 1;
                    *bytes += job.room;
                }
            }
            let told = |(policy, (jobs, bytes))| Usage { policy, jobs, bytes };
            Ok(usage.into_iter().map(told).collect())
        })
    }
}
