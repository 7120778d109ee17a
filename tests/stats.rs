//! The numbers of each policy: what runs, waits, is kept and was refused.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::time::Duration;

use axum::body::Body;
use desk::{Boxed, Held, Insert, ended, job};
use http::{Request, Response};
use support::gated::{Calls, gated};
use tokio::time::sleep;
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, MemoryStore, Offload, OffloadLayer, Policies, Policy,
    PolicyStats, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

const BUDGET: Duration = Duration::from_millis(50);
/// The largest outcome, and what a job counts with beside it.
const OUTCOME: usize = 10_000;
const JOB: usize = 1024;

/// A handler that the test holds, behind this layer.
fn behind(layer: OffloadLayer) -> (Boxed, Calls) {
    let (gated, calls) = gated();
    let handler = tower::service_fn(move |request| {
        let gated = gated.clone();
        async move { Ok(gated.run(request).await) }
    });
    (BoxCloneSyncService::new(layer.boxed().layer(handler)), calls)
}

async fn ask(service: &Boxed, path: &str) -> Response<Body> {
    let request = Request::post(path).body(Body::empty()).unwrap();
    service.clone().oneshot(request).await.unwrap()
}

fn desk() -> Offload {
    Offload::builder("/jobs").max_outcome_bytes(OUTCOME).build().unwrap()
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Numbers {
    running: usize,
    queued: usize,
    stored: usize,
    bytes: usize,
    refused: u64,
}

fn all(stats: &PolicyStats) -> Numbers {
    let PolicyStats { running, queued, stored, bytes, refused, .. } = *stats;
    Numbers { running, queued, stored, bytes, refused }
}

async fn of(offload: &Offload, policy: &str) -> Numbers {
    all(offload.stats().await.unwrap().policy(policy).unwrap())
}

/// Lets the tasks that give places back do so.
async fn settled() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn each_stage_of_a_job_is_counted_under_its_policys_name() {
    let offload = desk();
    assert_eq!(offload.stats().await.unwrap().policies().count(), 0);
    let policy = Policy::always().concurrency(1).queue(1).ttl(BUDGET).name("videos");
    let (videos, mut calls) = behind(offload.layer(policy));
    assert_eq!(of(&offload, "videos").await, Numbers::default());
    let open = JOB + OUTCOME;

    let first = job(&ask(&videos, "/").await);
    let running = Numbers { running: 1, stored: 1, bytes: open, ..Numbers::default() };
    assert_eq!(of(&offload, "videos").await, running);
    let second = job(&ask(&videos, "/").await);
    let queued = Numbers { queued: 1, stored: 2, bytes: 2 * open, ..running };
    assert_eq!(of(&offload, "videos").await, queued);
    for refused in 1..=3 {
        assert_eq!(ask(&videos, "/").await.status(), 503);
        assert_eq!(of(&offload, "videos").await, Numbers { refused, ..queued });
    }

    // The next one has its turn; an outcome counts with what it is, until it expires.
    calls.next().await.answer("done");
    ended(&offload, &first).await;
    settled().await;
    let Numbers { bytes, .. } = of(&offload, "videos").await;
    assert!((JOB + open + 4..2 * JOB + OUTCOME + 300).contains(&bytes), "{bytes}");
    let turn = Numbers { running: 1, queued: 0, stored: 2, bytes, refused: 3 };
    assert_eq!(of(&offload, "videos").await, turn);
    sleep(BUDGET * 2).await;
    assert_eq!(of(&offload, "videos").await, Numbers { stored: 1, bytes: open, ..turn });

    let delete = Request::delete(&second).body(()).unwrap();
    assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    settled().await;
    let canceled = Numbers { stored: 1, bytes: JOB, refused: 3, ..Numbers::default() };
    assert_eq!(of(&offload, "videos").await, canceled);
    sleep(BUDGET * 2).await;
    // Its name stays, and what it has refused.
    let gone = Numbers { refused: 3, ..Numbers::default() };
    assert_eq!(of(&offload, "videos").await, gone);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_no_jobs_are_counted_where_they_take_a_place_or_find_none() {
    let store = Held::new(Insert::Waits);
    let builder = Offload::builder("/jobs").store(store.clone()).max_running(1);
    let offload = builder.max_outcome_bytes(OUTCOME).build().unwrap();
    let (slow, mut calls) = behind(offload.layer(Policy::after(BUDGET)));
    let first = tokio::spawn(async move { ask(&slow, "/").await });
    let call = calls.next().await;
    assert_eq!(of(&offload, "default").await, Numbers::default(), "attached");
    sleep(BUDGET * 2).await;
    // Its job is being registered: it has its place, and is not kept yet.
    let registering = Numbers { running: 1, ..Numbers::default() };
    assert_eq!(of(&offload, "default").await, registering);
    let (other, mut others) = behind(offload.layer(Policy::after(BUDGET)));
    let second = tokio::spawn(async move { ask(&other, "/").await });
    let attached = others.next().await;
    sleep(BUDGET * 2).await;
    assert_eq!(of(&offload, "default").await, Numbers { refused: 1, ..registering });
    attached.answer("attached");
    assert_eq!(second.await.unwrap().status(), 200);
    store.let_insert();
    job(&first.await.unwrap());
    call.answer("done");
    settled().await;
    let Numbers { running, stored, refused, .. } = of(&offload, "default").await;
    assert_eq!((running, stored, refused), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn policies_without_a_name_have_their_patterns_or_are_the_default() {
    let offload = desk();
    let table = Policies::otherwise(Policy::never())
        .at("POST /reports/{id}", Policy::always())
        .at("/videos", Policy::always().name("films"))
        .at("/photos", Policy::always());
    let (table, _calls) = behind(offload.layer(table));
    for path in ["/reports/7", "/reports/8", "/videos"] {
        job(&ask(&table, path).await);
    }
    let stats = offload.stats().await.unwrap();
    let running: Vec<_> = stats.policies().map(|(name, stats)| (name, stats.running)).collect();
    let expected = [("/photos", 0), ("POST /reports/{id}", 2), ("default", 0), ("films", 1)];
    assert_eq!(running, expected);
    assert_eq!(stats.policy("/videos"), None);

    let (plain, _calls) = behind(offload.layer(Policy::always()));
    job(&ask(&plain, "/").await);
    assert_eq!(of(&offload, "default").await.running, 1);
}

#[tokio::test(start_paused = true)]
async fn layers_with_the_same_name_share_its_numbers_and_there_is_a_total() {
    let offload = desk();
    let policy = Policy::always().concurrency(1);
    let [a, b, c] = ["same", "same", "other"].map(|name| {
        let (service, calls) = behind(offload.layer(policy.clone().name(name)));
        (service, calls)
    });
    for (service, _) in [&a, &b, &c] {
        // Each has a place of its own, and no second one.
        job(&ask(service, "/").await);
        assert_eq!(ask(service, "/").await.status(), 503);
    }
    let open = JOB + OUTCOME;
    let one = Numbers { running: 1, queued: 0, stored: 1, bytes: open, refused: 1 };
    let two = Numbers { running: 2, queued: 0, stored: 2, bytes: 2 * open, refused: 2 };
    let three = Numbers { running: 3, queued: 0, stored: 3, bytes: 3 * open, refused: 3 };
    assert_eq!((of(&offload, "same").await, of(&offload, "other").await), (two, one));
    assert_eq!(all(&offload.stats().await.unwrap().total()), three);
    // Those of a layer that is gone stay, as long as its jobs run and are kept.
    drop(a);
    assert_eq!(of(&offload, "same").await.running, 2);
}

/// What runs and waits is this process's own; what is kept, the store's.
#[tokio::test(start_paused = true)]
async fn a_shared_store_counts_what_others_keep_in_it() {
    let store = MemoryStore::new(1 << 30);
    let [here, there] = [(); 2].map(|()| {
        let builder = Offload::builder("/jobs").store(store.clone());
        builder.max_outcome_bytes(OUTCOME).build().unwrap()
    });
    let (service, _calls) = behind(there.layer(Policy::always().name("theirs")));
    job(&ask(&service, "/").await);
    let stored = Numbers { stored: 1, bytes: JOB + OUTCOME, ..Numbers::default() };
    assert_eq!(of(&here, "theirs").await, stored);
    assert_eq!(of(&there, "theirs").await, Numbers { running: 1, ..stored });
}

/// A store in memory that cannot say what it keeps.
struct Uncounted(MemoryStore);

impl Store for Uncounted {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.0.insert(record, outcome_bytes)
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.0.take_back(id)
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.0.read(id, owner)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.0.fetch(id, owner)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.0.claimed(key)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.0.change(id, change)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.0.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        StoreFuture::ready(Err(Error::new(ErrorKind::StoreUnavailable, "the test says so")))
    }
}

#[tokio::test]
async fn a_store_that_fails_is_an_error() {
    let store = Uncounted(MemoryStore::new(1 << 30));
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let error = offload.stats().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
}
