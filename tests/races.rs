//! An end, a cancellation, a removal and an expiry at the same moment: one of them wins, and
//! whoever asks is told so from then on. Then the store in memory by itself, beside a model of it
//! that is as simple as can be.

#[path = "support/held.rs"]
mod held;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use held::Desk;
use http::Response;
use http_body_util::Full;
use support::{Answer, Client, soon};
use tokio::{
    sync::Barrier,
    task::{JoinHandle, yield_now},
};
use tower_offload::{Drained, MemoryStore, Offload, Policy, Status, Store};

fn desk(ttl: Duration) -> Desk {
    let builder = Offload::builder("/jobs").ttl(ttl).max_outcome_bytes(4096).max_running(1000);
    Desk::new(builder, MemoryStore::new(64 << 20), Policy::always())
}

/// What one answer says of the job. Later views come after earlier ones, or are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    Running,
    Succeeded,
    Canceled,
    Removed,
    Gone,
}

/// Reads the answer to a `GET` of any of the three resources, and its whole contents with it.
fn view(resource: &str, answer: &Answer) -> View {
    let problem = || answer.json()["type"].as_str().unwrap().to_owned();
    match (answer.status.as_u16(), resource) {
        (404, _) => View::Gone,
        (410, _) if problem() == "urn:tower-offload:problem:removed" => View::Removed,
        (410, "result") if problem() == "urn:tower-offload:problem:canceled" => View::Canceled,
        (201, "result") => {
            assert_eq!((answer.text(), answer.header("asyncresult")), ("done", "201"));
            View::Succeeded
        }
        (202, "" | "result") | (200, "status") | (303, "") => of_document(answer),
        _ => panic!("{resource:?} answers {answer:#?}"),
    }
}

fn of_document(answer: &Answer) -> View {
    let document = answer.json();
    let response = document["response_status"].as_u64();
    match document["status"].as_str().unwrap() {
        "running" => View::Running,
        "succeeded" if response == Some(201) => View::Succeeded,
        "canceled" if response.is_none() => View::Canceled,
        _ => panic!("{document:#}"),
    }
}

/// What the racing requests were told.
struct Told {
    canceled: Answer,
    removed: [Answer; 2],
    seen: Vec<View>,
}

/// One race over one job, each racer after as many turns as `lead` says.
async fn race(desk: &Desk, lead: [u32; 4]) -> (String, Told) {
    let job = desk.hold().await;
    let path = job.path.clone();
    let start = Arc::new(Barrier::new(5));
    let over = Arc::new(AtomicBool::new(false));
    let begin = |turns: u32| {
        let start = Arc::clone(&start);
        async move {
            start.wait().await;
            for _ in 0..turns {
                yield_now().await;
            }
        }
    };
    let delete = |path: String, turns: u32| -> JoinHandle<Answer> {
        let (desk, begun) = (desk.clone(), begin(turns));
        tokio::spawn(async move {
            begun.await;
            desk.ask("DELETE", &path).await
        })
    };
    let canceled = delete(path.clone(), lead[0]);
    let removed = [delete(job.at("result"), lead[1]), delete(job.at("result"), lead[2])];
    let begun = begin(lead[3]);
    let finished = tokio::spawn(async move {
        begun.await;
        let response = Response::builder().status(201).body(Full::from("done"));
        job.finish(response.unwrap());
    });
    let seen = tokio::spawn(watch(desk.clone(), path.clone(), begin(0), Arc::clone(&over)));
    let canceled = canceled.await.unwrap();
    let [first, second] = removed;
    let removed = [first.await.unwrap(), second.await.unwrap()];
    finished.await.unwrap();
    desk.ended(&path).await;
    over.store(true, Ordering::Relaxed);
    (path, Told { canceled, removed, seen: seen.await.unwrap() })
}

/// Asks for the job in all ways, one after another, until the race is over, and once more then.
async fn watch(
    desk: Desk,
    path: String,
    begun: impl Future<Output = ()>,
    over: Arc<AtomicBool>,
) -> Vec<View> {
    begun.await;
    let mut seen = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        for resource in ["", "status", "result"] {
            let url = format!("{path}/{resource}");
            let answer = desk.ask("GET", url.trim_end_matches('/')).await;
            seen.push(view(resource, &answer));
        }
        if last {
            return seen;
        }
        yield_now().await;
    }
}

/// Turns that differ from race to race; now and then one racer is far behind all others.
fn leads(round: u32) -> [u32; 4] {
    let mut leads = [round % 5, round / 5 % 5, round / 25 % 5, round / 7 % 5];
    if round % 8 < 4 {
        leads[round as usize % 4] += 50;
    }
    leads
}

/// How many races each of the two ends has won.
#[derive(Debug, Default)]
struct Won {
    succeeded: u32,
    canceled: u32,
}

/// Holds all that was told against what the store says.
async fn agreed(desk: &Desk, path: &str, told: &Told, won: &mut Won) {
    let id = path.rsplit('/').next().unwrap().parse().unwrap();
    let (record, outcome) = desk.store.fetch(id, None).await.unwrap().unwrap();
    let end = match record.status() {
        Status::Succeeded => View::Succeeded,
        Status::Canceled => View::Canceled,
        other => panic!("it ended as {other:?}"),
    };
    won.succeeded += u32::from(end == View::Succeeded);
    won.canceled += u32::from(end == View::Canceled);
    let cancels = told.canceled.status.as_u16();
    assert_eq!(cancels, if end == View::Canceled { 200 } else { 409 }, "{record:?}");
    assert_eq!(of_document(&told.canceled), end);
    let mut removals = 0;
    let mut canceled_by_removal = 0;
    for removed in &told.removed {
        match removed.status.as_u16() {
            204 => removals += 1,
            200 => {
                canceled_by_removal += 1;
                assert_eq!((of_document(removed), end), (View::Canceled, View::Canceled));
            }
            _ => panic!("{removed:#?}"),
        }
    }
    assert!(canceled_by_removal <= 1, "two were told that they canceled it");
    assert_eq!(record.is_removed(), removals > 0, "{record:?}");
    let has_outcome = end == View::Succeeded && removals == 0;
    assert_eq!(outcome.is_some(), has_outcome);
    assert!(told.seen.is_sorted(), "{:?}", told.seen);
    let possible = [View::Running, end, View::Removed];
    assert!(told.seen.iter().all(|view| possible.contains(view)), "{:?}", told.seen);
    let last = if removals > 0 { View::Removed } else { end };
    assert_eq!(told.seen[told.seen.len() - 3..], [last; 3]);
}

/// So many races, a few of them at a time, so that jobs race other jobs for the store as well.
async fn races(desk: &Desk, rounds: u32, at_a_time: u32) {
    let mut tasks = Vec::new();
    for task in 0..at_a_time {
        let desk = desk.clone();
        tasks.push(tokio::spawn(async move {
            let mut won = Won::default();
            for round in (task..rounds).step_by(at_a_time as usize) {
                let (path, told) = soon("a race", race(&desk, leads(round))).await;
                agreed(&desk, &path, &told, &mut won).await;
            }
            won
        }));
    }
    let (mut succeeded, mut canceled) = (0, 0);
    for task in tasks {
        let won = task.await.unwrap();
        succeeded += won.succeeded;
        canceled += won.canceled;
    }
    assert!(succeeded > rounds / 20 && canceled > rounds / 20, "{succeeded} and {canceled}");
    is_idle(desk).await;
}

/// No job is left behind that runs.
async fn is_idle(desk: &Desk) {
    let drained: Drained = desk.offload.drain(Duration::from_secs(20)).await;
    assert_eq!(drained.interrupted(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_finish_cancel_and_removal_wins() {
    races(&desk(Duration::from_secs(3600)), 2000, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_do_not_disturb_each_other() {
    races(&desk(Duration::from_secs(3600)), 1000, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_finish_cancel_and_removal_wins_over_http_1() {
    let desk = desk(Duration::from_secs(3600)).over(Client::http1()).await;
    races(&desk, 300, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_finish_cancel_and_removal_wins_over_http_2() {
    let desk = desk(Duration::from_secs(3600)).over(Client::http2()).await;
    races(&desk, 300, 8).await;
}

/// With a TTL as short as can be, a job may be gone at any moment after its end: and from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn expiry_wins_for_good() {
    let desk = desk(Duration::from_micros(300));
    let (mut canceled, mut finished, mut late) = (0, 0, 0);
    for round in 0..2000 {
        let (path, told) = soon("a race", race(&desk, leads(round))).await;
        let Told { canceled: by_cancel, removed, seen } = told;
        let ends = || seen.iter().filter(|view| matches!(view, View::Succeeded | View::Canceled));
        assert!(seen.is_sorted(), "{seen:?}");
        assert!(ends().all(|view| Some(view) == ends().next()), "{seen:?}");
        let was_canceled = match by_cancel.status.as_u16() {
            200 => Some(View::Canceled),
            409 => Some(View::Succeeded),
            _ => None,
        };
        for answer in removed.iter().chain([&by_cancel]) {
            match answer.status.as_u16() {
                200 | 409 => {
                    let end = of_document(answer);
                    assert!(was_canceled.is_none_or(|told| told == end), "{answer:#?}");
                    assert!(ends().all(|seen| *seen == end), "{seen:?}, and {answer:#?}");
                    canceled += u32::from(end == View::Canceled);
                    finished += u32::from(end == View::Succeeded);
                }
                204 => {}
                404 => late += 1,
                _ => panic!("{answer:#?}"),
            }
        }
        let gone = async { while desk.ask("GET", &path).await.status != 404 {} };
        soon("its expiry", gone).await;
    }
    assert!(canceled > 0 && finished > 0 && late > 0, "{canceled}, {finished}, {late}");
    is_idle(&desk).await;
    let empty = async {
        while (desk.store.jobs(), desk.store.bytes()) != (0, 0) {
            yield_now().await;
        }
    };
    soon("the last sweep", empty).await;
}

/// While a job runs its TTL means nothing, however short, whoever asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn expiry_does_not_win_before_the_end() {
    let desk = desk(Duration::from_micros(1));
    let mut jobs = Vec::new();
    for _ in 0..500 {
        jobs.push(desk.hold().await);
    }
    for job in jobs {
        for resource in ["", "/status", "/result"] {
            let answer = desk.ask("GET", &format!("{}{resource}", job.path)).await;
            assert_eq!(view(resource.trim_start_matches('/'), &answer), View::Running);
        }
        let path = job.path.clone();
        job.finish(Response::new(Full::from(Bytes::new())));
        let gone = async { while desk.ask("GET", &path).await.status != 404 {} };
        soon("its expiry", gone).await;
    }
}

mod beside_a_model {
    use std::{collections::HashMap, time::SystemTime};

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::time::Instant;
    use tower_offload::{
        Change, Claim, Digest, End, ErrorKind, Failure, JobId, Outcome, Progress, Record,
        store::{Changed, Inserted, Interest, StoreFuture},
    };

    use super::*;

    const TTL: Duration = Duration::from_millis(100);
    const ROOM: usize = 10_000;
    const JOB_BYTES: usize = 1024;

    #[derive(Debug, Clone)]
    enum Op {
        Insert { job: usize, queued: bool, room: usize, key: Option<usize> },
        Start(usize),
        Progress(usize),
        Finish { job: usize, status: u16, len: usize },
        Fail(usize),
        Cancel(usize),
        Remove(usize),
        TakeBack(usize),
        Claimed(usize),
        Fetch { job: usize, slice: bool },
        DropReader(usize),
        Wait { job: usize, seen: u32, interest: Interest },
        DropWaiter(usize),
        Pass(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let job = || 0..3_usize;
        let statuses = prop::sample::select(vec![200_u16, 304, 400, 500]);
        let interests = prop::sample::select(vec![Interest::Status, Interest::Progress]);
        let op = prop_oneof![
            4 => (job(), any::<bool>(), 0..5000_usize, prop::option::of(0..2_usize))
                .prop_map(|(job, queued, room, key)| Op::Insert { job, queued, room, key }),
            2 => job().prop_map(Op::Start),
            2 => job().prop_map(Op::Progress),
            3 => (job(), statuses, 0..5000_usize)
                .prop_map(|(job, status, len)| Op::Finish { job, status, len }),
            1 => job().prop_map(Op::Fail),
            2 => job().prop_map(Op::Cancel),
            2 => job().prop_map(Op::Remove),
            1 => job().prop_map(Op::TakeBack),
            1 => (0..2_usize).prop_map(Op::Claimed),
            2 => (job(), any::<bool>()).prop_map(|(job, slice)| Op::Fetch { job, slice }),
            2 => (0..5_usize).prop_map(Op::DropReader),
            3 => (job(), 0..4_u32, interests)
                .prop_map(|(job, seen, interest)| Op::Wait { job, seen, interest }),
            1 => (0..5_usize).prop_map(Op::DropWaiter),
            2 => (1..120_u64).prop_map(Op::Pass),
        ];
        prop::collection::vec(op, 1..80)
    }

    /// A job as the model has it. Its rules are written out, not taken from the crate.
    #[derive(Debug, Clone, PartialEq)]
    struct Job {
        status: Status,
        failure: Option<Failure>,
        outcome: Option<Bytes>,
        response: Option<u16>,
        removed: bool,
        version: u32,
        status_version: u32,
        room: usize,
        expires: Option<Instant>,
        claim: Option<usize>,
        disclosed: bool,
        progress: Option<Progress>,
        /// Which of all outcomes it has, by when they came.
        number: u32,
    }

    /// Somebody who has bytes of an outcome.
    struct Reader {
        bytes: Bytes,
        /// Of this outcome, of this job, so many bytes in all.
        number: u32,
        job: usize,
        len: usize,
    }

    impl Job {
        fn new(queued: bool, room: usize, claim: Option<usize>) -> Self {
            Self {
                status: if queued { Status::Queued } else { Status::Running },
                failure: None,
                outcome: None,
                response: None,
                removed: false,
                version: 0,
                status_version: 0,
                room,
                expires: None,
                claim,
                disclosed: false,
                progress: None,
                number: 0,
            }
        }

        fn bytes(&self) -> usize {
            let ended = self.expires.is_some();
            let outcome = self.outcome.as_ref().map_or(0, Bytes::len);
            JOB_BYTES + if ended { outcome } else { self.room }
        }

        fn end(&mut self, status: Status) -> bool {
            let open = self.expires.is_none();
            if open {
                self.status = status;
                self.expires = Some(Instant::now() + TTL);
            }
            open
        }

        /// Whether an undo leaves it.
        fn is_kept(&self) -> bool {
            self.disclosed || (self.claim.is_some() && self.status != Status::Queued)
        }

        /// Which of the versions somebody of this interest waits to be told of.
        fn last(&self, interest: Interest) -> u32 {
            match interest {
                Interest::Status => self.status_version,
                Interest::Progress => self.version,
            }
        }

        fn change(&mut self, change: &Change) -> bool {
            let was_queued = self.status == Status::Queued;
            let applied = match change {
                Change::Start => {
                    let queued = self.status == Status::Queued;
                    if queued {
                        self.status = Status::Running;
                    }
                    queued
                }
                Change::Progress(progress) => {
                    let running = self.status == Status::Running;
                    if running {
                        self.progress = Some(progress.clone());
                    }
                    running
                }
                Change::Cancel => self.end(Status::Canceled),
                Change::Finish(End::Failure(failure)) => {
                    let ended = self.end(Status::Failed);
                    self.failure = if ended { Some(*failure) } else { self.failure };
                    ended
                }
                Change::Finish(End::Response(outcome)) => {
                    let response = outcome.status().as_u16();
                    let good = response < 400;
                    let ended = self.end(if good { Status::Succeeded } else { Status::Failed });
                    if ended {
                        self.response = Some(response);
                        self.outcome = Some(outcome.as_bytes().clone());
                    }
                    ended
                }
                Change::Remove => {
                    let there = self.expires.is_some() && !self.removed;
                    if there {
                        (self.removed, self.outcome) = (true, None);
                    }
                    there
                }
                other => panic!("{other:?}"),
            };
            self.version += u32::from(applied);
            if applied && !matches!(change, Change::Progress(_)) {
                self.status_version = self.version;
            }
            if was_queued && self.expires.is_some() {
                self.claim = None;
            }
            applied
        }

        fn is(&self, record: &Record) {
            let found = (record.status(), record.version(), record.is_removed());
            assert_eq!(found, (self.status, self.version, self.removed));
            let found = record.response_status().map(|status| status.as_u16());
            assert_eq!((found, record.failure()), (self.response, self.failure));
            assert_eq!(record.status_version(), self.status_version);
            assert_eq!(record.progress(), self.progress.as_ref());
            assert_eq!(record.claim().map(Claim::key), self.claim.map(key).as_ref());
        }
    }

    /// The store, the model, and those who wait.
    struct Pair {
        store: MemoryStore,
        ids: Vec<JobId>,
        model: HashMap<JobId, Job>,
        waiters: Vec<(JobId, u32, Interest, tokio_test::task::Spawn<StoreFuture<()>>)>,
        readers: Vec<Reader>,
        said: u32,
    }

    fn key(key: usize) -> Digest {
        Digest::from([key as u8; 32])
    }

    /// Jobs count for one of two policies, by their place.
    fn policy(job: usize) -> &'static str {
        ["even", "odd"][job % 2]
    }

    /// The store in memory answers at once.
    fn now<T>(future: StoreFuture<T>) -> Result<T, tower_offload::Error> {
        future.now_or_never().expect("the store in memory is never pending")
    }

    impl Pair {
        fn new() -> Self {
            let ids = (0..3).map(|_| JobId::random().unwrap()).collect();
            let store = MemoryStore::new(ROOM);
            let (model, waiters, readers) = Default::default();
            Self { store, ids, model, waiters, readers, said: 0 }
        }

        async fn run(&mut self, op: Op) {
            match op {
                Op::Insert { job, queued, room, key } => self.insert(job, queued, room, key),
                Op::Start(job) => self.change(job, Change::Start),
                Op::Progress(job) => {
                    self.said += 1;
                    let progress = Progress::new(None, Some(&self.said.to_string()));
                    self.change(job, Change::Progress(progress));
                }
                Op::Cancel(job) => self.change(job, Change::Cancel),
                Op::Remove(job) => self.change(job, Change::Remove),
                Op::Fail(job) => self.change(job, Change::Finish(End::Failure(Failure::TimedOut))),
                Op::Finish { job, status, len } => {
                    let mut head = Response::new(()).into_parts().0;
                    head.status = status.try_into().unwrap();
                    let outcome = Outcome::new(&head, &vec![0; len], None);
                    let room = self.model.get(&self.ids[job]).map_or(usize::MAX, |job| job.room);
                    // An outcome that is larger than it may be is never stored.
                    if outcome.as_bytes().len() <= room {
                        self.change(job, Change::Finish(End::Response(outcome)));
                        self.said += 1;
                        if let Some(job) = self.model.get_mut(&self.ids[job]) {
                            job.number = if job.number == 0 { self.said } else { job.number };
                        }
                    }
                }
                Op::TakeBack(job) => {
                    let is_gone = now(self.store.take_back(self.ids[job])).unwrap();
                    let kept = self.model.get(&self.ids[job]).is_some_and(Job::is_kept);
                    assert_eq!(is_gone, !kept);
                    if is_gone {
                        self.model.remove(&self.ids[job]);
                    }
                }
                Op::Claimed(claims) => {
                    let found = now(self.store.claimed(key(claims))).unwrap();
                    let holder = self.model.values_mut().find(|job| job.claim == Some(claims));
                    match (found, holder) {
                        (Some(found), Some(holder)) => {
                            holder.is(&found);
                            holder.disclosed = true;
                        }
                        (found, holder) => assert!(found.is_none() && holder.is_none()),
                    }
                }
                Op::Fetch { job, slice } => {
                    let fetched = now(self.store.fetch(self.ids[job], None)).unwrap();
                    if let Some((_, Some(outcome))) = fetched {
                        let outcome = now(StoreFuture::new(outcome.whole())).unwrap();
                        let (number, len) =
                            (self.model[&self.ids[job]].number, outcome.as_bytes().len());
                        // The smallest slice holds all of the memory.
                        let bytes = outcome.as_bytes().clone();
                        let bytes = if slice { bytes.slice(..1) } else { bytes };
                        self.readers.push(Reader { bytes, number, job, len });
                    }
                }
                Op::DropReader(reader) => {
                    if reader < self.readers.len() {
                        drop(self.readers.swap_remove(reader).bytes);
                    }
                }
                Op::Wait { job, seen, interest } => {
                    let future = self.store.changed(self.ids[job], seen, interest);
                    let waiter = tokio_test::task::spawn(future);
                    self.waiters.push((self.ids[job], seen, interest, waiter));
                }
                Op::DropWaiter(waiter) => {
                    if waiter < self.waiters.len() {
                        drop(self.waiters.swap_remove(waiter));
                    }
                }
                Op::Pass(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            }
            self.settle().await;
        }

        /// Forgets what has expired. Readers do not see it from that moment on; the sweep, which
        /// wakes and counts, comes a millisecond later at most.
        async fn settle(&mut self) {
            loop {
                let now = Instant::now();
                let mut settled = true;
                self.model.retain(|_, job| {
                    let since = job.expires.map(|at| now.checked_duration_since(at));
                    settled &=
                        !matches!(since, Some(Some(since)) if since <= Duration::from_millis(2));
                    !matches!(since, Some(Some(_)))
                });
                if settled {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }

        fn insert(&mut self, job: usize, queued: bool, room: usize, claims: Option<usize>) {
            let (id, make) = (self.ids[job], if queued { Record::queued } else { Record::running });
            let mut record = make(id, SystemTime::now(), TTL).with_policy(policy(job).into());
            if let Some(claims) = claims {
                record = record.with_claim(Claim::new(key(claims), [0; 32].into()));
            }
            let inserted = now(self.store.insert(record, room));
            let used = self.used(|_| true).1;
            let holds = |job: &&mut Job| claims.is_some() && job.claim == claims;
            let holder = self.model.values_mut().find(holds);
            match inserted {
                Err(error) if used + JOB_BYTES + room > ROOM => {
                    assert_eq!(error.kind(), ErrorKind::StoreFull);
                }
                Ok(Inserted::Claimed(found)) => {
                    let holder = holder.unwrap();
                    holder.is(&found);
                    holder.disclosed = true;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
                    assert!(holder.is_none());
                    assert!(self.model.contains_key(&id));
                }
                Ok(Inserted::New) => {
                    assert!(used + JOB_BYTES + room <= ROOM && holder.is_none());
                    let before = self.model.insert(id, Job::new(queued, room, claims));
                    assert!(before.is_none());
                }
            }
        }

        fn change(&mut self, job: usize, change: Change) {
            let id = self.ids[job];
            let told = now(self.store.change(id, change.clone())).unwrap();
            let applied = self.model.get_mut(&id).map(|job| job.change(&change));
            match (&told, applied) {
                (Changed::Applied(record), Some(true))
                | (Changed::Refused(record), Some(false)) => self.model[&id].is(record),
                (Changed::Unknown, None) => {}
                _ => panic!("{change:?} gives {told:?}, and {applied:?} in the model"),
            }
        }

        /// That all who ask see what the model says.
        fn agree(&mut self) {
            for id in &self.ids {
                let read = now(self.store.read(*id, None)).unwrap();
                let fetched = now(self.store.fetch(*id, None)).unwrap();
                let Some(job) = self.model.get(id) else {
                    assert!(read.is_none() && fetched.is_none(), "{fetched:?}");
                    continue;
                };
                let (record, outcome) = fetched.unwrap();
                job.is(&read.unwrap());
                job.is(&record);
                let outcome =
                    outcome.map(|outcome| now(StoreFuture::new(outcome.whole())).unwrap());
                assert_eq!(outcome.map(|outcome| outcome.as_bytes().clone()), job.outcome);
            }
            let model = &self.model;
            self.waiters.retain_mut(|(id, seen, interest, waiter)| {
                let waits = |job: &Job| job.last(*interest) <= *seen && *seen <= job.version;
                let waits = model.get(id).is_some_and(waits);
                assert_eq!(waiter.poll().is_pending(), waits, "for another version than {seen}");
                waits
            });
            self.counts();
        }

        /// How many of these jobs are kept, and the bytes of them and of their outcomes that somebody
        /// reads.
        fn used(&self, of: impl Fn(usize) -> bool) -> (usize, usize) {
            let ids = self.ids.iter().enumerate().filter(|(job, _)| of(*job));
            let jobs: Vec<_> = ids.filter_map(|(_, id)| self.model.get(id)).collect();
            let is_kept = |reader: &&Reader| {
                let has = |job: &&Job| job.number == reader.number && job.outcome.is_some();
                self.model.values().find(has).is_some()
            };
            let read = self.readers.iter().filter(|reader| of(reader.job) && !is_kept(reader));
            let read: HashMap<_, _> = read.map(|reader| (reader.number, reader.len)).collect();
            let bytes = jobs.iter().map(|job| job.bytes()).chain(read.into_values()).sum();
            (jobs.len(), bytes)
        }

        /// That what is kept is counted, all together and by policy.
        fn counts(&self) {
            let used = self.used(|_| true);
            assert_eq!((self.store.jobs(), self.store.bytes()), used);
            let usage = now(self.store.usage()).unwrap();
            for name in ["even", "odd"] {
                let wanted = self.used(|job| policy(job) == name);
                let told = usage.iter().find(|usage| usage.policy.as_deref() == Some(name));
                let told = told.map_or((0, 0), |usage| (usage.jobs, usage.bytes));
                assert_eq!(told, wanted, "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_store_in_memory_does_what_the_model_does(ops in ops()) {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut pair = Pair::new();
                for op in ops {
                    pair.run(op).await;
                    pair.agree();
                }
            });
        }
    }
}
