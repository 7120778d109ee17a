//! What the tests without a server share: handlers behind a layer, answers of the status service, and
//! a store that the test holds in its hand.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{body::Body, response::IntoResponse};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, MemoryStore, Offload, Policy, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

/// What the status service answers to a `GET`.
pub async fn get(offload: &Offload, path: &str) -> Response<Bytes> {
    let request = Request::get(path).header("prefer", "wait=30").body(()).unwrap();
    let (head, body) = offload.status().oneshot(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// The status document of a job, when it has ended.
pub async fn ended(offload: &Offload, job: &str) -> serde_json::Value {
    loop {
        let answer = get(offload, &format!("{job}/status")).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        let document: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        if !matches!(document["status"].as_str(), Some("queued" | "running")) {
            return document;
        }
    }
}

/// The job that a 202 names.
pub fn job<B>(answer: &Response<B>) -> String {
    assert_eq!(answer.status(), 202);
    answer.headers()["location"].to_str().unwrap().to_owned()
}

/// That a job failed with a problem of this status and type, in its document and as its result.
pub async fn failed(offload: &Offload, job: &str, status: u16, kind: &str) {
    let document = ended(offload, job).await;
    assert_eq!(document["status"], "failed");
    assert!(document["response_status"].is_null());
    let result = get(offload, &format!("{job}/result")).await;
    assert_eq!(
        (result.status().as_u16(), &result.headers()["content-type"]),
        (status, &"application/problem+json".parse().unwrap())
    );
    let problem: serde_json::Value = serde_json::from_slice(result.body()).unwrap();
    for problem in [&document["error"], &problem] {
        assert_eq!(problem["status"], status);
        assert!(problem["type"].as_str().unwrap().ends_with(kind), "{problem}");
        assert!(!problem.to_string().contains("told to"), "no internals: {problem}");
    }
}

/// A handler as a service.
pub type Boxed = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A handler that looks at nothing of its request.
pub fn service<F, Fut, R>(handler: F) -> Boxed
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoResponse,
{
    BoxCloneSyncService::new(tower::service_fn(move |_| {
        let answer = handler();
        async move { Ok(answer.await.into_response()) }
    }))
}

/// Sends a request through a layer with this policy around this handler.
pub async fn send(offload: &Offload, policy: Policy, handler: Boxed) -> Response<Body> {
    let request = Request::post("/").body(Body::empty()).unwrap();
    offload.layer(policy).layer(handler).oneshot(request).await.unwrap()
}

/// A store in memory that fails, or keeps its callers waiting, as the test says.
#[derive(Clone)]
pub struct Held {
    pub jobs: MemoryStore,
    shared: Arc<Shared>,
}

struct Shared {
    insert: Mutex<Insert>,
    /// One permit for each insert that is let through.
    inserts: Semaphore,
    take_back_fails: AtomicUsize,
    take_backs: AtomicUsize,
    change_takes: Mutex<Duration>,
    boasts: AtomicBool,
}

/// What becomes of an insert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    Works,
    /// Works once the test lets it.
    Waits,
    /// Works after so long.
    Takes(Duration),
    /// Nothing is stored, and nobody can know that.
    Fails,
    /// As `Fails`, once the test lets it.
    WaitsAndFails,
    /// The job is stored, and the answer lost.
    IsLost,
    /// There is no room.
    IsFull,
}

impl Held {
    pub fn new(insert: Insert) -> Self {
        Self {
            jobs: MemoryStore::new(1 << 30),
            shared: Arc::new(Shared {
                insert: Mutex::new(insert),
                inserts: Semaphore::new(0),
                take_back_fails: AtomicUsize::new(0),
                take_backs: AtomicUsize::new(0),
                change_takes: Mutex::default(),
                boasts: AtomicBool::new(false),
            }),
        }
    }

    /// What becomes of inserts from now on.
    pub fn inserts(&self, insert: Insert) {
        *self.shared.insert.lock().unwrap() = insert;
    }

    /// Lets one insert through.
    pub fn let_insert(&self) {
        self.shared.inserts.add_permits(1);
    }

    /// So many take-backs fail from now on.
    pub fn fail_take_backs(&self, times: usize) {
        self.shared.take_back_fails.store(times, SeqCst);
    }

    /// How many take-backs there were.
    pub fn take_backs(&self) -> usize {
        self.shared.take_backs.load(SeqCst)
    }

    /// Each change takes so long from now on.
    pub fn changes_take(&self, time: Duration) {
        *self.shared.change_takes.lock().unwrap() = time;
    }

    /// It says from now on that its changes are done at once, whether or not they are.
    pub fn boast(&self) {
        self.shared.boasts.store(true, SeqCst);
    }

    /// Resolves when no job is stored.
    pub async fn emptied(&self) {
        self.emptied_to(0).await;
    }

    /// Resolves when so many jobs are stored. It lets other tasks go on, and a paused clock too.
    pub async fn emptied_to(&self, left: usize) {
        while self.jobs.jobs() != left {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Numbers without order, the same for the same seed.
pub struct Shuffled(u64);

impl Shuffled {
    /// With a seed that differs in each run, and is told when the test fails.
    pub fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let seed = RandomState::new().hash_one(0) | 1;
        println!("seed: {seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end
    }

    /// A time up to `most`, in microseconds.
    pub fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64 + 1))
    }
}

fn failure() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "the test says so")
}

impl Store for Held {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        let (jobs, shared) = (self.jobs.clone(), Arc::clone(&self.shared));
        let insert = *shared.insert.lock().unwrap();
        StoreFuture::new(async move {
            if matches!(insert, Insert::Waits | Insert::WaitsAndFails) {
                shared.inserts.acquire().await.unwrap().forget();
            }
            if let Insert::Takes(time) = insert {
                tokio::time::sleep(time).await;
            }
            match insert {
                Insert::Works | Insert::Waits | Insert::Takes(_) => {
                    jobs.insert(record, outcome_bytes).await
                }
                Insert::Fails | Insert::WaitsAndFails => Err(failure()),
                Insert::IsLost => jobs.insert(record, outcome_bytes).await.and(Err(failure())),
                Insert::IsFull => Err(Error::new(ErrorKind::StoreFull, "the test says so")),
            }
        })
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        let (jobs, shared) = (self.jobs.clone(), Arc::clone(&self.shared));
        StoreFuture::new(async move {
            shared.take_backs.fetch_add(1, SeqCst);
            // As over a network: never at the first poll, and not without a runtime.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let one_less = |fails: usize| fails.checked_sub(1);
            match shared.take_back_fails.fetch_update(SeqCst, SeqCst, one_less) {
                Ok(_) => Err(failure()),
                Err(_) => jobs.take_back(id).await,
            }
        })
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.jobs.read(id, owner)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.jobs.fetch(id, owner)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        let takes = *self.shared.change_takes.lock().unwrap();
        if takes.is_zero() {
            return self.jobs.change(id, change);
        }
        let jobs = self.jobs.clone();
        StoreFuture::new(async move {
            tokio::time::sleep(takes).await;
            jobs.change(id, change).await
        })
    }

    fn changes_at_once(&self) -> bool {
        self.shared.boasts.load(SeqCst)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.jobs.claimed(key)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.jobs.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.jobs.usage()
    }
}
