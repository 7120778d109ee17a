//! Panics, tasks that are dropped, and shutdown: a job always ends, and its status URL says how.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    convert::Infallible,
    future::{Future, pending},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse, routing::post};
use bytes::Bytes;
use desk::{Held, Insert, ended, get, job};
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::StreamBody;
use support::{Client, Server, gated::gated, soon};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, util::BoxCloneService};
use tower_offload::{MemoryStore, Offload, Policy};

const BUDGET: Duration = Duration::from_millis(50);

fn request() -> Request<Body> {
    Request::post("/").body(Body::empty()).unwrap()
}

type Boxed = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

fn service<F, Fut, R>(handler: F) -> Boxed
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoResponse,
{
    BoxCloneService::new(tower::service_fn(move |_| {
        let answer = handler();
        async move { Ok(answer.await.into_response()) }
    }))
}

/// Sends a request through a layer with this policy around this handler.
async fn send(offload: &Offload, policy: Policy, handler: Boxed) -> Response<Body> {
    offload.layer(policy).layer(handler).oneshot(request()).await.unwrap()
}

async fn accepted(offload: &Offload, handler: Boxed) -> String {
    job(&send(offload, Policy::after(BUDGET), handler).await)
}

/// That a job failed with a problem of this status and type, in its document and as its result.
async fn failed(offload: &Offload, job: &str, status: u16, kind: &str) {
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

// -------------------------------------------------------------------------------------------- panics

#[tokio::test(start_paused = true)]
async fn trap_6_1_a_panic_after_the_move_is_told_at_the_status_url() {
    let offload = Offload::builder("/jobs").max_running(1).build().unwrap();
    let in_handler = service(|| async {
        sleep(BUDGET * 2).await;
        panic!("told to");
        #[expect(unreachable_code, reason = "its type")]
        ()
    });
    let in_body = service(|| async {
        sleep(BUDGET * 2).await;
        let frames = futures_util::stream::poll_fn(|_| panic!("told to"));
        Body::new(StreamBody::new(frames.map_bytes()))
    });
    let not_a_text = service(|| async {
        sleep(BUDGET * 2).await;
        std::panic::panic_any(7);
        #[expect(unreachable_code, reason = "its type")]
        ()
    });
    for handler in [in_handler, in_body, not_a_text] {
        let job = accepted(&offload, handler).await;
        failed(&offload, &job, 500, "panicked").await;
        // The place is free for the next.
    }
    // `always`: its very first poll is in the task.
    let at_once = service(|| async { panic!("told to") as () });
    let job = job(&send(&offload, Policy::always(), at_once).await);
    failed(&offload, &job, 500, "panicked").await;
}

/// A stream of body frames that never yields one.
trait MapBytes: futures_util::Stream<Item = ()> + Sized {
    fn map_bytes(
        self,
    ) -> impl futures_util::Stream<Item = Result<http_body::Frame<Bytes>, Infallible>> {
        futures_util::StreamExt::map(self, |()| Ok(http_body::Frame::data(Bytes::new())))
    }
}

impl<S: futures_util::Stream<Item = ()>> MapBytes for S {}

struct PanicsAtDrop;

impl Drop for PanicsAtDrop {
    fn drop(&mut self) {
        panic!("told to");
    }
}

#[tokio::test(start_paused = true)]
async fn trap_6_1_a_panic_in_a_handlers_drop_ends_the_job_too() {
    let offload = Offload::builder("/jobs").max_running(1).build().unwrap();
    let at_its_end = service(|| async {
        let _panics = PanicsAtDrop;
        sleep(BUDGET * 2).await;
    });
    let job = accepted(&offload, at_its_end).await;
    failed(&offload, &job, 500, "panicked").await;

    let when_canceled = service(|| async {
        let _panics = PanicsAtDrop;
        pending::<()>().await;
    });
    let job = accepted(&offload, when_canceled).await;
    let delete = Request::delete(&job).body(()).unwrap();
    assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    assert_eq!(ended(&offload, &job).await["status"], "canceled");
    // Its place is given back.
    assert_eq!(offload.drain(BUDGET).await.interrupted(), 0);
}

/// The end is written by the task's own drop then, which cannot wait for a slow store.
#[tokio::test(start_paused = true)]
async fn trap_6_1_a_panic_in_a_handlers_drop_reaches_a_slow_store_too() {
    let store = Held::new(Insert::Works);
    let offload = Offload::builder("/jobs").store(store.clone()).max_running(1).build().unwrap();
    let out_of_time = service(|| async {
        let _panics = PanicsAtDrop;
        pending::<()>().await;
    });
    let policy = Policy::after(BUDGET).timeout(BUDGET);
    let job = job(&send(&offload, policy, out_of_time).await);
    store.changes_take(BUDGET);
    failed(&offload, &job, 500, "panicked").await;
    assert_eq!(offload.drain(BUDGET).await.interrupted(), 0);
}

#[tokio::test]
async fn trap_6_1_a_panic_while_attached_is_as_without_the_layer() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let panics = || async { panic!("told to") as () };
    let layer = offload.layer(Policy::after(Duration::from_secs(60)));
    let app = Router::new()
        .route("/bare", post(panics))
        .route("/layered", post(panics).layer(layer.clone()))
        .route("/fine", gated.route().layer(layer));
    let server = Server::axum(app).await;
    let client = Client::http1();
    let other = {
        let (client, addr) = (client.clone(), server.url("/fine"));
        tokio::spawn(async move { client.send(Request::post(addr), "").await })
    };
    let waits = calls.next().await;
    for path in ["/bare", "/layered"] {
        let mut raw = server.connect().await;
        raw.write(format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(soon(path, raw.read_to_end()).await, b"", "{path}: closed without an answer");
    }
    waits.answer("fine");
    assert_eq!(soon("the other request ends", other).await.unwrap().text(), "fine");
}

#[tokio::test(start_paused = true)]
async fn trap_6_1_a_panic_while_attached_leaves_nothing_behind() {
    let store = Held::new(Insert::Waits);
    let offload = Offload::builder("/jobs").store(store.clone()).max_running(1).build().unwrap();
    // Before it is armed, while it is, and while its job is registered.
    for takes in [Duration::ZERO, BUDGET / 2, BUDGET * 2] {
        let panics = service(move || async move {
            if !takes.is_zero() {
                sleep(takes).await;
            }
            panic!("told to") as ()
        });
        let answer = AssertUnwindSafe(send(&offload, Policy::after(BUDGET), panics));
        assert!(answer.catch_unwind().await.is_err());
    }
    store.let_insert();
    store.inserts(Insert::Works);
    sleep(BUDGET).await;
    assert_eq!(store.jobs.jobs(), 0);
    let job = accepted(&offload, service(|| sleep(BUDGET * 2))).await;
    assert_eq!(ended(&offload, &job).await["status"], "succeeded");
}

// ------------------------------------------------------------------------------- tasks that are lost

fn current_thread() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> runtime::Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn trap_6_1_a_job_whose_runtime_goes_ends_as_interrupted() {
    for make in [current_thread, multi_thread] {
        // `always`: on one thread the task is dropped before its first poll.
        for policy in [Policy::after(BUDGET), Policy::always()] {
            let offload = Offload::new("/jobs");
            let lost = make();
            let job =
                lost.block_on(async { job(&send(&offload, policy, service(pending::<()>)).await) });
            // Whoever waits elsewhere is woken by the end.
            let waiter = {
                let (offload, job) = (offload.clone(), job.clone());
                std::thread::spawn(move || current_thread().block_on(ended(&offload, &job)))
            };
            drop(lost);
            assert_eq!(waiter.join().unwrap()["status"], "failed");
            current_thread().block_on(failed(&offload, &job, 503, "interrupted"));
        }
    }
}

#[test]
fn trap_6_1_a_runtime_that_goes_under_traffic_leaves_no_job_running() {
    for round in 0..30 {
        let store = MemoryStore::new(usize::MAX);
        let offload = Offload::builder("/jobs").store(store.clone()).max_running(1000);
        let offload = offload.build().unwrap();
        let lost = multi_thread();
        let jobs = Arc::new(Mutex::new(Vec::new()));
        for call in 0..200 {
            let (offload, jobs) = (offload.clone(), Arc::clone(&jobs));
            lost.spawn(async move {
                let budget = Duration::from_micros(500 * (call % 20) + 1);
                let handler = service(pending::<()>);
                let accepted = send(&offload, Policy::after(budget), handler).await;
                jobs.lock().unwrap().push(job(&accepted));
            });
        }
        // At another moment in each round.
        std::thread::sleep(Duration::from_micros(300 * round));
        let (gone, is_gone) = mpsc::channel();
        std::thread::spawn(move || {
            drop(lost);
            gone.send(()).unwrap();
        });
        is_gone.recv_timeout(Duration::from_secs(20)).expect("the runtime hangs at its end");
        let jobs = jobs.lock().unwrap().clone();
        assert!(store.jobs() >= jobs.len());
        current_thread().block_on(async {
            for job in jobs {
                failed(&offload, &job, 503, "interrupted").await;
            }
            // Nobody has a place any more, told or not.
            assert_eq!(offload.drain(Duration::from_secs(1)).await.interrupted(), 0);
        });
        assert!(store.bytes() < 1 << 20, "a job that runs counts with the largest outcome");
    }
}

// --------------------------------------------------------------------------------------------- drain

#[tokio::test]
async fn trap_6_2_a_drain_inside_the_graceful_shutdown_serves_what_was_promised() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let app = Router::new()
        .route("/after", gated.route().layer(offload.layer(Policy::after(BUDGET))))
        .route("/always", gated.route().layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (signal, signaled) = oneshot::channel::<()>();
    let (drain, begun) = (offload.clone(), Arc::new(Notify::new()));
    let draining = Arc::clone(&begun);
    let served = tokio::spawn(async move {
        let shutdown = async move {
            signaled.await.unwrap();
            draining.notify_one();
            let drained = drain.drain(Duration::from_secs(60)).await;
            assert_eq!((drained.finished(), drained.interrupted()), (1, 0));
        };
        axum::serve(listener, app).with_graceful_shutdown(shutdown).await.unwrap();
    });
    let client = Client::http1();
    let post = |path: &str| client.send(Request::post(format!("http://{addr}{path}")), "");
    let poll = |path: String, prefer: &str| {
        let request = Request::get(format!("http://{addr}{path}")).header("prefer", prefer);
        let client = client.clone();
        async move { client.send(request, "").await }
    };
    let accepted = post("/after").await;
    let job = accepted.location().to_owned();
    let runs = calls.next().await;
    signal.send(()).unwrap();
    begun.notified().await;

    // While it drains: polls on new connections, and no new jobs.
    let status = poll(format!("{job}/status"), "wait=0").await;
    assert_eq!(status.json()["status"], "running");
    loop {
        // The drain has been told of, and begins at about this time.
        let refused = post("/always").await;
        if refused.status == 503 {
            assert!(refused.json()["type"].as_str().unwrap().ends_with("shutting-down"));
            assert_eq!(refused.header("retry-after"), "1");
            break;
        }
        calls.next().await.answer("before it began");
    }
    let mut attached = std::pin::pin!(post("/after"));
    let over_budget = tokio::time::timeout(BUDGET * 4, attached.as_mut()).await;
    assert!(over_budget.is_err(), "{over_budget:?}");
    calls.next().await.answer("attached");
    assert_eq!(soon("the attached request ends", attached).await.text(), "attached");
    assert!(!served.is_finished());

    // The result goes to whoever waits for it, and then the server closes.
    let waits = tokio::spawn(poll(format!("{job}/result"), "wait=30"));
    let also_waits = poll(format!("{job}/status"), "wait=1").await;
    assert_eq!(also_waits.json()["status"], "running");
    runs.answer("as promised");
    let result = soon("the result", waits).await.unwrap();
    assert_eq!((result.status.as_u16(), result.text()), (200, "as promised"));
    soon("the server closes", served).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn trap_6_2_at_the_deadline_jobs_are_interrupted_and_waiters_woken() {
    let offload = Offload::new("/jobs");
    let job = accepted(&offload, service(pending::<()>)).await;
    let waits = tokio::spawn({
        let (offload, job) = (offload.clone(), job.clone());
        async move {
            let answer = get(&offload, &format!("{job}/result")).await;
            (answer.status().as_u16(), Instant::now())
        }
    });
    let start = Instant::now();
    let drained = offload.drain(Duration::from_secs(5)).await;
    assert_eq!((drained.finished(), drained.interrupted()), (0, 1));
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let (status, woken) = waits.await.unwrap();
    assert_eq!((status, woken - start), (503, Duration::from_secs(5)));
    failed(&offload, &job, 503, "interrupted").await;
    // It is over for good.
    let refused = send(&offload, Policy::always(), service(pending::<()>)).await;
    assert_eq!(refused.status(), 503);
    let again = offload.drain(Duration::from_secs(5)).await;
    assert_eq!((again.finished(), again.interrupted()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_counts_what_becomes_of_each_job() {
    let offload = Offload::new("/jobs");
    for takes in [2, 10, 20] {
        let takes = BUDGET * takes;
        accepted(&offload, service(move || sleep(takes))).await;
    }
    let canceled = accepted(&offload, service(pending::<()>)).await;
    for _ in 0..2 {
        accepted(&offload, service(pending::<()>)).await;
    }
    // The first of them has ended before, which is no affair of the drain.
    let mut drain = std::pin::pin!(offload.drain(BUDGET * 100));
    assert!(tokio::time::timeout(BUDGET, drain.as_mut()).await.is_err());
    let delete = Request::delete(&canceled).body(()).unwrap();
    assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    let drained = drain.await;
    assert_eq!((drained.finished(), drained.interrupted()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_nothing_to_wait_for_ends_at_once_and_one_that_is_dropped_ends_nothing() {
    let idle = Offload::new("/jobs");
    let start = Instant::now();
    let drained = idle.drain(Duration::from_secs(60)).await;
    assert_eq!((drained.finished(), drained.interrupted()), (0, 0));
    assert_eq!(start.elapsed(), Duration::ZERO);

    let offload = Offload::new("/jobs");
    let job = accepted(&offload, service(|| sleep(BUDGET * 10))).await;
    let dropped = tokio::time::timeout(BUDGET, offload.drain(BUDGET * 2)).await;
    assert!(dropped.is_err());
    assert_eq!(ended(&offload, &job).await["status"], "succeeded");
    let refused = send(&offload, Policy::always(), service(pending::<()>)).await;
    assert_eq!(refused.status(), 503, "there is no way back");
}

/// A slow store is asked to interrupt all jobs at once, not one after the other.
#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_slow_store_once() {
    let store = Held::new(Insert::Works);
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    for _ in 0..50 {
        let answer = send(&offload, Policy::always(), service(pending::<()>)).await;
        job(&answer);
    }
    store.changes_take(Duration::from_millis(500));
    let start = Instant::now();
    assert_eq!(offload.drain(BUDGET).await.interrupted(), 50);
    assert_eq!(start.elapsed(), BUDGET + Duration::from_millis(500));
}

/// A store that does not answer gets one second, and no more.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_store_that_does_not_answer() {
    let store = Held::new(Insert::Works);
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    job(&send(&offload, Policy::always(), service(pending::<()>)).await);
    store.changes_take(Duration::from_secs(3600));
    let start = Instant::now();
    let drained = offload.drain(BUDGET).await;
    assert_eq!((drained.finished(), drained.interrupted()), (0, 0));
    assert_eq!(start.elapsed(), BUDGET + Duration::from_secs(1));
}

/// A future that blocks its thread cannot be dropped; that is nobody else's wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_6_2_a_future_that_blocks_its_thread_does_not_hold_a_drain_past_its_deadline() {
    let offload = Offload::new("/jobs");
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let blocks = service(move || {
        let released = Arc::clone(&released);
        async move {
            let _ = released.lock().unwrap().recv();
            "too late"
        }
    });
    let job = job(&send(&offload, Policy::always(), blocks).await);
    let drained = soon("the drain ends", offload.drain(BUDGET)).await;
    assert_eq!((drained.finished(), drained.interrupted()), (0, 1));
    failed(&offload, &job, 503, "interrupted").await;
    // What it comes to in the end changes nothing, and its place is given back then.
    drop(release);
    let drained = soon("the place is free", offload.drain(Duration::from_secs(60))).await;
    assert_eq!(drained.interrupted(), 0);
    failed(&offload, &job, 503, "interrupted").await;
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_ends_before_a_drains_deadline_is_a_job_of_the_drain() {
    let store = Held::new(Insert::Takes(BUDGET * 4));
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let answer = tokio::spawn({
        let offload = offload.clone();
        async move { accepted(&offload, service(|| sleep(BUDGET * 20))).await }
    });
    sleep(BUDGET * 2).await;
    let drained = offload.drain(Duration::from_secs(60)).await;
    assert_eq!((drained.finished(), drained.interrupted()), (1, 0));
    assert_eq!(ended(&offload, &answer.await.unwrap()).await["status"], "succeeded");
}

/// Nobody would be there to interrupt such a job.
#[tokio::test(start_paused = true)]
async fn a_registration_that_ends_after_a_drains_deadline_is_no_job() {
    // `after` stays attached to its end; `always` is refused.
    for (policy, status) in [(Policy::after(BUDGET), 200), (Policy::always(), 503)] {
        let store = Held::new(Insert::Takes(BUDGET * 10));
        let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
        let answer = tokio::spawn({
            let offload = offload.clone();
            async move {
                let handler = service(|| async {
                    sleep(BUDGET * 20).await;
                    "attached"
                });
                send(&offload, policy, handler).await
            }
        });
        sleep(BUDGET * 2).await;
        let drained = offload.drain(BUDGET).await;
        assert_eq!((drained.finished(), drained.interrupted()), (0, 0));
        assert_eq!(answer.await.unwrap().status(), status);
        store.emptied().await;
    }
}
