//! Tasks that serve more than one request: no closure, service or store of the app ends them, and
//! none makes them hold what others need.

mod support;

#[path = "support/desk.rs"]
mod desk;
#[path = "support/faulty.rs"]
mod faulty;

use std::{
    convert::Infallible,
    future::pending,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::post};
use desk::{Boxed, ended, failed, get, job, service};
use faulty::{Fault, Faulty, Unspeakable};
use futures_util::FutureExt;
use http::{Request, Response, request::Parts};
use http_body_util::BodyExt;
use support::soon;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceExt};
use tower_offload::{
    DurableWorkers, ErrorKind, Failure, Job, JobId, Offload, OffloadBuilder, Owner, Policies,
    Policy, PolicyStats, Record, Status, StopReason, StoppedWorker, Store,
};

const BUDGET: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

/// All faults that are panics.
const PANICS: [Fault; 3] = [Fault::Panics, Fault::PanicsLate, Fault::PanicsInDrop];

fn builder(store: &Faulty) -> OffloadBuilder {
    Offload::builder("/jobs").store(store.clone())
}

/// An app with a durable route `/durable`, a route `/plain` that is `always`, and one that is `slow`
/// after its budget; and the workers of the first.
struct App {
    offload: Offload,
    app: Router,
    workers: Option<DurableWorkers>,
}

impl App {
    fn new(offload: Offload) -> Self {
        let policies = Policies::otherwise(Policy::never())
            .at("POST /durable", Policy::always().durable().name("durable"))
            .at("POST /plain", Policy::always().name("plain"))
            .at("POST /slow", Policy::always().name("slow"));
        let slow = || async { sleep(LONG).await };
        let app = Router::new()
            .route("/durable", post(async |body: String| body))
            .route("/plain", post(async || "plain"))
            .route("/slow", post(slow))
            .layer(offload.layer(policies));
        let workers = Some(offload.serve_durable::<_, Body, _>(app.clone()));
        Self { offload, app, workers }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // A request without a body is a job before its handler begins.
        let body = if path == "/durable" { Body::from("body") } else { Body::empty() };
        self.app.clone().oneshot(request.body(body).unwrap()).await.unwrap()
    }

    async fn accepted(&self, path: &str) -> String {
        job(&self.post(path, &[]).await)
    }

    async fn succeeds(&self, job: &str) {
        let document = ended(&self.offload, job).await;
        assert_eq!(document["status"], "succeeded", "{document}");
    }

    async fn stats(&self, policy: &str) -> PolicyStats {
        *self.offload.stats().await.unwrap().policy(policy).expect("a policy of this name")
    }

    async fn stopped(mut self) -> Vec<StoppedWorker> {
        let workers = self.workers.take().unwrap();
        drop(self);
        soon("the workers stop", workers).await
    }
}

fn id(job: &str) -> JobId {
    job.rsplit('/').next().unwrap().parse().unwrap()
}

// -------------------------------------------------------------------------------- durable workers

#[tokio::test(start_paused = true)]
async fn restore_that_panics_fails_its_own_job_only() {
    let store = Faulty::new();
    let restore = |head: &mut Parts| {
        assert!(head.headers.contains_key("x-tenant"), "no tenant");
    };
    let app = App::new(builder(&store).max_running(1).restore(restore).build().unwrap());
    for _ in 0..3 {
        let bad = app.accepted("/durable").await;
        let good = job(&app.post("/durable", &[("x-tenant", "a")]).await);
        failed(&app.offload, &bad, 500, "panicked").await;
        app.succeeds(&good).await;
    }
    let stats = app.stats("durable").await;
    assert_eq!((stats.workers, stats.worker_restarts, stats.running), (1, 0, 0));
}

/// A service whose clones panic until so many have.
struct PanicsCloned {
    inner: Router,
    left: Arc<AtomicUsize>,
}

impl Clone for PanicsCloned {
    fn clone(&self) -> Self {
        let left = self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "told to, in a clone");
        Self { inner: self.inner.clone(), left: Arc::clone(&self.left) }
    }
}

impl Service<Request<Body>> for PanicsCloned {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <Router as Service<Request<Body>>>::Future;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.inner.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn worker_whose_service_panics_in_a_clone_is_started_again_with_backoff() {
    let store = Faulty::new();
    let mut app = App::new(builder(&store).build().unwrap());
    // The app's own worker is not to take part.
    let left = Arc::new(AtomicUsize::new(0));
    let service = PanicsCloned { inner: app.app.clone(), left: Arc::clone(&left) };
    let other = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let _layer = other.layer(
        Policies::otherwise(Policy::never())
            .at("POST /durable", Policy::always().durable().name("durable")),
    );
    app.workers = None;
    let begun = Instant::now();
    store.set("take", Fault::Fails(ErrorKind::StoreUnavailable));
    let workers = other.serve_durable::<_, Body, _>(service);
    yield_now().await;
    left.store(4, SeqCst);
    let stats = async || *other.stats().await.unwrap().policy("durable").unwrap();
    // Each clone that panics is in another life of the worker.
    let job = app.accepted("/durable").await;
    while stats().await.worker_restarts < 4 {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(100 + 200 + 400), "{:?}", begun.elapsed());
    store.mend();
    app.succeeds(&job).await;
    assert_eq!((stats().await.workers, stats().await.worker_restarts), (1, 4));
    drop(workers);
}

#[tokio::test(start_paused = true)]
async fn store_that_panics_on_a_worker_is_asked_again() {
    for call in ["arrival", "take"] {
        for fault in PANICS {
            let store = Faulty::new();
            let app = App::new(builder(&store).max_running(1).build().unwrap());
            store.set_times(call, fault, 3);
            // It waits in a call that was made before, and that a job ends.
            let first = app.accepted("/durable").await;
            let second = app.accepted("/durable").await;
            // A job that was taken by a call whose answer is lost is the store's to give again.
            if (call, fault) != ("take", Fault::PanicsInDrop) {
                app.succeeds(&first).await;
                app.succeeds(&second).await;
            }
            while store.calls(call) < 4 {
                app.accepted("/durable").await;
                sleep(LONG).await;
            }
            let plain = app.accepted("/plain").await;
            app.succeeds(&plain).await;
            let stats = app.stats("durable").await;
            assert_eq!((stats.workers, stats.worker_restarts, stats.running), (1, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_that_the_store_cannot_read_do_not_delay_others() {
    let store = Faulty::new();
    let app = App::new(builder(&store).build().unwrap());
    store.set_times("take", Fault::Fails(ErrorKind::Corrupt), 14);
    let begun = Instant::now();
    let mut jobs = Vec::new();
    for _ in 0..100 {
        jobs.push(app.accepted("/durable").await);
    }
    for job in jobs {
        app.succeeds(&job).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn store_that_gives_no_job_over_and_over_is_asked_less_and_less() {
    // Without a backoff there are 6,000.
    for (corrupt, calls, wait) in [(false, 590..700, 100), (true, 60..200, 1000)] {
        let store = Faulty::new();
        let app = App::new(builder(&store).build().unwrap());
        if corrupt {
            store.set("take", Fault::Fails(ErrorKind::Corrupt));
        }
        store.always_arrives(true);
        sleep(LONG).await;
        let taken = store.calls("take");
        assert!(calls.contains(&taken), "{taken} in a minute");
        store.mend();
        store.always_arrives(false);
        let begun = Instant::now();
        app.succeeds(&app.accepted("/durable").await).await;
        assert!(begun.elapsed() <= Duration::from_millis(wait), "{:?}", begun.elapsed());
        // It begins anew after a job.
        let calls = store.calls("take");
        store.always_arrives(true);
        sleep(Duration::from_millis(95)).await;
        assert!(store.calls("take") >= calls + 9, "{}", store.calls("take") - calls);
    }
}

/// A durable job whose request is none.
async fn unreadable(store: &Faulty) -> JobId {
    let id = JobId::random().unwrap();
    let record = Record::queued(id, std::time::SystemTime::now(), LONG);
    let record = record.with_policy("durable".into()).with_attempts(3);
    store.enqueue(record, b"no request".as_slice().into(), 100).await.unwrap();
    id
}

#[tokio::test(start_paused = true)]
async fn request_that_cannot_be_read_fails_its_job_as_corrupt() {
    let store = Faulty::new();
    let app = App::new(builder(&store).max_running(1).build().unwrap());
    let id = unreadable(&store).await;
    failed(&app.offload, &format!("/jobs/{id}"), 500, "corrupt").await;
    let good = app.accepted("/durable").await;
    app.succeeds(&good).await;
}

#[tokio::test(start_paused = true)]
async fn jobs_that_a_store_that_is_away_has_to_let_go_of_are_bounded_by_max_queued() {
    for (route, all) in [(3, 100), (100, 3)] {
        // It can be read, and not be written.
        let store = Faulty::new();
        let away = || {
            store.set("enqueue", Fault::Fails(ErrorKind::StoreUnavailable));
            store.set("take_back", Fault::Fails(ErrorKind::StoreUnavailable));
        };
        away();
        let offload = builder(&store).max_queued(all).build().unwrap();
        let policies = Policies::otherwise(Policy::never())
            .at("POST /durable", Policy::always().durable().name("durable").max_queued(route));
        let app = offload.layer(policies).layer(Router::new());
        let post = async || {
            let request = Request::post("/durable").body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
            (status, problem["limit"].as_str().map(str::to_owned))
        };
        for _ in 0..3 {
            assert_eq!(post().await, (503, None));
        }
        for _ in 0..10 {
            // Each time the store counts anew how many wait.
            sleep(Duration::from_secs(2)).await;
            assert_eq!(post().await, (503, Some("max_queued".into())));
        }
        assert_eq!(store.calls("enqueue"), 3);
        // The client of one that is enqueued leaves.
        store.mend();
        sleep(LONG).await;
        store.set("enqueue", Fault::Hangs);
        store.set("take_back", Fault::Hangs);
        for _ in 0..3 {
            assert!(post().now_or_never().is_none());
        }
        yield_now().await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(post().await, (503, Some("max_queued".into())));
        assert_eq!((store.calls("enqueue"), store.jobs().jobs()), (6, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn workers_tell_why_they_stopped() {
    let reason = |stopped: Vec<StoppedWorker>| {
        assert_eq!(stopped.len(), 1);
        assert_eq!(&*stopped[0].policy, "durable");
        stopped.into_iter().next().unwrap().reason
    };
    // The process shuts down.
    let app = App::new(builder(&Faulty::new()).build().unwrap());
    app.offload.drain(LONG).await;
    assert!(matches!(reason(app.stopped().await), StopReason::Drained));
    // The layer is gone. The service that the worker has must not hold it.
    let offload = builder(&Faulty::new()).build().unwrap();
    let policies = Policies::otherwise(Policy::never())
        .at("POST /durable", Policy::always().durable().name("durable"));
    let layer = offload.layer(policies);
    let workers = offload.serve_durable::<_, Body, _>(Router::<()>::new());
    drop(layer);
    assert!(matches!(reason(soon("gone", workers).await), StopReason::LayerDropped));
    // The store says that it never will.
    let store = Faulty::new();
    store.set("arrival", Fault::Fails(ErrorKind::Config));
    let app = App::new(builder(&store).build().unwrap());
    let offload = app.offload.clone();
    let StopReason::Store(error) = reason(app.stopped().await) else { panic!("another reason") };
    assert_eq!(error.kind(), ErrorKind::Config);
    let stats = *offload.stats().await.unwrap().policy("durable").unwrap();
    assert_eq!(stats.workers, 0);
    // There is nothing to serve.
    let none = Offload::new("/jobs").serve_durable::<_, Body, _>(Router::<()>::new());
    assert!(none.await.is_empty());
}

#[test]
fn worker_whose_runtime_shuts_down_says_so() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lost = runtime();
    let mut app = lost.block_on(async { App::new(builder(&Faulty::new()).build().unwrap()) });
    let workers = app.workers.take().unwrap();
    drop(lost);
    let stopped = runtime().block_on(workers);
    assert!(matches!(stopped[0].reason, StopReason::RuntimeShutDown));
}

// ------------------------------------------------------------------------------------- permits

#[tokio::test(start_paused = true)]
async fn idle_worker_holds_no_permit() {
    let store = Faulty::new();
    for call in ["arrival", "take"] {
        store.set(call, Fault::Takes(Duration::from_millis(5)));
    }
    let app = App::new(builder(&store).max_running(1).build().unwrap());
    for _ in 0..300 {
        let job = app.accepted("/plain").await;
        app.succeeds(&job).await;
        // The job's end makes the worker look again; the moments differ from one to the next.
        sleep(Duration::from_micros(700)).await;
    }
    assert_eq!(app.stats("plain").await.refused, 0);
    let durable = app.accepted("/durable").await;
    app.succeeds(&durable).await;
}

// --------------------------------------------------------------------------------------- drain

#[tokio::test(start_paused = true)]
async fn drain_of_an_idle_process_does_not_wait_for_its_store() {
    const AWAY: [Fault; 3] =
        [Fault::Hangs, Fault::Fails(ErrorKind::StoreUnavailable), Fault::PanicsLate];
    const CALLS: [&str; 8] =
        ["arrival", "take", "insert", "take_back", "finish", "changed", "read", "enqueue"];
    let away = |store: &Faulty, fault| CALLS.into_iter().for_each(|call| store.set(call, fault));
    for fault in AWAY {
        for case in ["waits", "looks", "undoes", "undoes a queued job", "cannot insert", "was left"]
        {
            let store = Faulty::new();
            let offload = builder(&store).max_running(4).build().unwrap();
            let app = App::new(offload.clone());
            let policy = match case {
                "undoes a queued job" => Policy::always().concurrency(1).queue(3),
                _ => Policy::after(BUDGET),
            };
            let layered = offload.layer(policy).layer(service(|| sleep(BUDGET * 4)));
            let call = || {
                let request = Request::post("/").body(Body::empty()).unwrap();
                layered.clone().oneshot(request)
            };
            match case {
                // A worker waits for the store.
                "waits" => away(&store, fault),
                // It has a permit, and asks for a job.
                "looks" => {
                    store.set("take", fault);
                    app.accepted("/durable").await;
                    sleep(BUDGET).await;
                    away(&store, fault);
                }
                // A client has left while its job was being registered, and the registration is undone.
                "undoes" | "undoes a queued job" => {
                    store.set("insert", Fault::Takes(BUDGET));
                    let attached = tokio::spawn(call());
                    sleep(if case == "undoes" { BUDGET * 3 / 2 } else { BUDGET / 2 }).await;
                    away(&store, fault);
                    attached.abort();
                    sleep(BUDGET).await;
                }
                // A job could not be inserted, as far as anybody knows, and its request is answered.
                "cannot insert" => {
                    away(&store, fault);
                    store.set("insert", Fault::Fails(ErrorKind::StoreUnavailable));
                    assert_eq!(call().await.unwrap().status(), 200);
                }
                // A client has left, and the store does not answer the insertion.
                _ => {
                    store.set("insert", Fault::Hangs);
                    let attached = tokio::spawn(call());
                    sleep(BUDGET * 2).await;
                    attached.abort();
                    away(&store, fault);
                    yield_now().await;
                }
            }
            sleep(BUDGET).await;
            let begun = Instant::now();
            let drained = offload.drain(LONG).await;
            assert_eq!(drained.interrupted(), 0, "{case}, {fault:?}");
            assert_eq!(begun.elapsed(), Duration::ZERO, "{case}, {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_a_job_whose_end_the_store_does_not_take_yet() {
    let store = Faulty::new();
    let app = App::new(builder(&store).build().unwrap());
    let job = app.accepted("/plain").await;
    store.set("finish", Fault::Fails(ErrorKind::StoreUnavailable));
    let drain = tokio::spawn(app.offload.drain(LONG));
    sleep(Duration::from_secs(5)).await;
    assert!(!drain.is_finished());
    store.mend();
    let drained = drain.await.unwrap();
    assert_eq!((drained.finished(), drained.interrupted()), (1, 0));
    app.succeeds(&job).await;
}

// ------------------------------------------------------------------------------------- corrupt

#[tokio::test(start_paused = true)]
async fn record_that_cannot_be_read_ends_its_job_and_frees_its_permit() {
    for call in ["changed", "read"] {
        let store = Faulty::new();
        let app = App::new(builder(&store).max_running(1).build().unwrap());
        store.set_times(call, Fault::Fails(ErrorKind::Corrupt), 1);
        if call == "read" {
            store.resolve_early();
        }
        let job = app.accepted("/slow").await;
        sleep(BUDGET).await;
        let record = store.record(id(&job)).await;
        assert_eq!((record.status(), record.failure()), (Status::Failed, Some(Failure::Corrupt)));
        failed(&app.offload, &job, 500, "corrupt").await;
        let next = app.accepted("/plain").await;
        app.succeeds(&next).await;
    }
}

#[tokio::test(start_paused = true)]
async fn job_whose_end_cannot_be_written_for_its_record_ends_as_corrupt() {
    let store = Faulty::new();
    let app = App::new(builder(&store).max_running(1).build().unwrap());
    store.set_times("finish", Fault::Fails(ErrorKind::Corrupt), 1);
    let job = app.accepted("/plain").await;
    failed(&app.offload, &job, 500, "corrupt").await;
    let next = app.accepted("/plain").await;
    app.succeeds(&next).await;
}

/// A bad outcome is no reason to tell the owner that there is no job; nobody else learns of it.
#[tokio::test(start_paused = true)]
async fn outcome_that_cannot_be_read_is_corrupt_for_its_owner_and_unknown_to_others() {
    let owner = |parts: &Parts| {
        let name = parts.headers.get("x-owner").cloned();
        Some(name.map_or(Owner::from("ada"), Owner::from))
    };
    let store = Faulty::new();
    let app = App::new(builder(&store).owner(owner).build().unwrap());
    let job = app.accepted("/plain").await;
    app.succeeds(&job).await;
    store.set("fetch", Fault::Fails(ErrorKind::Corrupt));
    for (who, status, kind) in [("ada", 500, "corrupt"), ("eve", 404, "unknown-job")] {
        let request = Request::get(format!("{job}/result")).header("x-owner", who);
        let answer = app.offload.status().oneshot(request.body(()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{who}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(problem["type"].as_str().unwrap().ends_with(kind), "{who}: {problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn queued_job_that_cannot_be_read_ends_as_corrupt() {
    for call in ["start", "changed"] {
        let store = Faulty::new();
        let offload = builder(&store).build().unwrap();
        let slow = service(|| sleep(Duration::from_secs(1)));
        let layered = offload.layer(Policy::always().concurrency(1).queue(1)).layer(slow);
        let send = async || {
            let request = Request::post("/").body(Body::empty()).unwrap();
            job(&layered.clone().oneshot(request).await.unwrap())
        };
        let first = send().await;
        sleep(BUDGET).await;
        store.set_times(call, Fault::Fails(ErrorKind::Corrupt), 1);
        let second = send().await;
        sleep(BUDGET).await;
        failed(&offload, &second, 500, "corrupt").await;
        assert_eq!(ended(&offload, &first).await["status"], "succeeded");
        let third = send().await;
        assert_eq!(ended(&offload, &third).await["status"], "succeeded");
    }
}

#[tokio::test(start_paused = true)]
async fn job_whose_progress_cannot_be_written_for_its_record_ends_as_corrupt() {
    let store = Faulty::new();
    let offload = builder(&store).build().unwrap();
    store.set("progress", Fault::Fails(ErrorKind::Corrupt));
    let handler: Boxed = service(|| async {
        Job::current().unwrap().progress(0.5, "half");
        pending::<()>().await;
    });
    let request = Request::post("/").body(Body::empty()).unwrap();
    let layered = offload.layer(Policy::always()).layer(handler);
    let job = job(&layered.oneshot(request).await.unwrap());
    failed(&offload, &job, 500, "corrupt").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_of_a_job_of_which_every_call_says_that_it_is_corrupt() {
    let store = Faulty::new();
    let app = App::new(builder(&store).max_running(1).build().unwrap());
    app.accepted("/slow").await;
    for call in ["changed", "read", "finish", "start", "progress", "take_back", "fetch"] {
        store.set(call, Fault::Fails(ErrorKind::Corrupt));
    }
    sleep(LONG * 2).await;
    let begun = Instant::now();
    assert_eq!(app.offload.drain(LONG).await.interrupted(), 0);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn poll_of_a_record_that_cannot_be_read_is_not_told_to_come_back() {
    let store = Faulty::new();
    let app = App::new(builder(&store).build().unwrap());
    let job = app.accepted("/plain").await;
    app.succeeds(&job).await;
    for call in ["read", "fetch"] {
        store.set(call, Fault::Fails(ErrorKind::Corrupt));
    }
    for resource in ["", "/status", "/result"] {
        let answer = get(&app.offload, &format!("{job}{resource}")).await;
        assert_eq!(answer.status(), 500, "{resource}");
        assert!(!answer.headers().contains_key("retry-after"));
        let problem: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(problem["type"], "urn:tower-offload:problem:corrupt");
    }
}

// -------------------------------------------------------------------------------------- panics

#[tokio::test(start_paused = true)]
async fn store_that_panics_leaves_no_job_without_an_end_and_no_permit_taken() {
    for call in ["insert", "take_back", "changed", "read", "start", "finish", "claimed"] {
        for fault in PANICS {
            let store = Faulty::new();
            let app = App::new(builder(&store).max_running(1).build().unwrap());
            store.set_times(call, fault, 2);
            for _ in 0..3 {
                let answer = app.post("/plain", &[]).await;
                assert!(matches!(answer.status().as_u16(), 202 | 503), "{call}, {fault:?}");
                sleep(LONG).await;
            }
            store.mend();
            let job = app.accepted("/plain").await;
            app.succeeds(&job).await;
            assert_eq!(app.stats("plain").await.running, 0, "{call}, {fault:?}");
            // Each job that was told of has its end.
            assert!(store.jobs().bytes() < 1 << 20, "a job that runs counts with 4 MiB");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn store_that_panics_at_a_drains_deadline_harms_no_other_job() {
    for fault in PANICS {
        let store = Faulty::new();
        let app = App::new(builder(&store).build().unwrap());
        let jobs = [app.accepted("/slow").await, app.accepted("/slow").await];
        sleep(BUDGET).await;
        store.set_times("finish", fault, 1);
        app.offload.drain(BUDGET).await;
        let mut interrupted = 0;
        for job in &jobs {
            interrupted += usize::from(store.record(id(job)).await.status().is_end());
        }
        assert!(interrupted >= 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_whose_text_panics_in_the_log_stops_no_retry() {
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    let _logs = tracing::subscriber::set_default(subscriber);
    assert!(
        std::panic::catch_unwind(|| {
            tracing::warn!(
                error = &Unspeakable as &dyn std::error::Error,
                "to see that it is written"
            );
        })
        .is_err()
    );
    for call in ["arrival", "take", "changed", "finish"] {
        let store = Faulty::new();
        let app = App::new(builder(&store).max_running(1).build().unwrap());
        store.set_times(call, Fault::FailsUnspeakably, 2);
        let path = if matches!(call, "arrival" | "take") { "/durable" } else { "/plain" };
        for _ in 0..2 {
            let job = app.accepted(path).await;
            app.succeeds(&job).await;
        }
        assert_eq!(app.stats("durable").await.workers, 1);
    }
}

/// A subscriber that panics at each event, and counts them.
struct PanicsAtEvents(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for PanicsAtEvents {
    fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        self.0.fetch_add(1, SeqCst);
        panic!("told to, at an event");
    }
}

#[tokio::test(start_paused = true)]
async fn subscriber_that_panics_ends_no_job_and_no_worker() {
    use tracing_subscriber::layer::SubscriberExt;
    let events = Arc::new(AtomicUsize::new(0));
    let panics = PanicsAtEvents(Arc::clone(&events));
    let _logs = tracing::subscriber::set_default(tracing_subscriber::registry().with(panics));
    let store = Faulty::new();
    let app = App::new(builder(&store).max_running(1).build().unwrap());
    // A request that the worker cannot read, and says so.
    let id = unreadable(&store).await;
    failed(&app.offload, &format!("/jobs/{id}"), 500, "corrupt").await;
    for path in ["/durable", "/plain", "/durable"] {
        let job = app.accepted(path).await;
        app.succeeds(&job).await;
    }
    store.set_times("read", Fault::Fails(ErrorKind::StoreUnavailable), 1);
    let polled = get(&app.offload, &format!("/jobs/{id}")).await;
    assert_eq!(polled.status(), 503);
    let stats = app.stats("durable").await;
    assert_eq!((stats.workers, stats.worker_restarts, stats.running), (1, 0, 0));
    assert!(events.load(SeqCst) > 6, "{events:?} events");
}

#[tokio::test(start_paused = true)]
async fn seal_and_owner_that_panic_leave_nothing_behind() {
    let store = Faulty::new();
    let owner = |head: &Parts| {
        assert!(!head.headers.contains_key("x-bad-owner"), "told to");
        Some(Owner::from("a"))
    };
    let seal = |headers: &mut http::HeaderMap| {
        assert!(!headers.contains_key("x-bad-seal"), "told to");
    };
    let offload = builder(&store).owner(owner).seal(seal).max_running(1).max_buffered_bytes(1000);
    let app = App::new(offload.build().unwrap());
    for bad in ["x-bad-seal", "x-bad-owner"] {
        for _ in 0..40 {
            let headers = [(bad, "")];
            let request = AssertUnwindSafe(app.post("/durable", &headers));
            assert!(request.catch_unwind().await.is_err(), "it unwinds in its own request");
        }
    }
    let poll = Request::get(format!("/jobs/{}", JobId::random().unwrap()));
    let poll = poll.header("x-bad-owner", "").body(()).unwrap();
    let mut status = app.offload.status();
    assert!(AssertUnwindSafe(async { status.call(poll).await }).catch_unwind().await.is_err());
    // The bytes of their bodies are free again, and so is the permit.
    for path in ["/durable", "/plain"] {
        let job = app.accepted(path).await;
        app.succeeds(&job).await;
    }
    assert_eq!(store.jobs().jobs(), 2);
}
