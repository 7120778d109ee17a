//! Panics, and tasks that go with their runtime: a job always ends, and its status URL says how.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    convert::Infallible,
    future::pending,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, body::Body, routing::post};
use bytes::Bytes;
use desk::{Boxed, Held, Insert, ended, failed, job, send, service};
use futures_util::FutureExt;
use http::Request;
use http_body_util::StreamBody;
use support::{Client, Server, gated::gated, soon};
use tokio::{runtime, time::sleep};
use tower::ServiceExt;
use tower_offload::{MemoryStore, Offload, Policy};

const BUDGET: Duration = Duration::from_millis(50);

async fn accepted(offload: &Offload, handler: Boxed) -> String {
    job(&send(offload, Policy::after(BUDGET), handler).await)
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
    for (make, panics) in
        [(current_thread as fn() -> _, false), (multi_thread, false), (current_thread, true)]
    {
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
            // A panic elsewhere, with which the runtime goes, is no panic of the job.
            let gone = std::thread::spawn(move || {
                let _lost = lost;
                assert!(!panics, "to see what goes with a thread that unwinds");
            });
            assert_eq!(gone.join().is_err(), panics);
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

// --------------------------------------------------------------------------------------------- stores

#[tokio::test(start_paused = true)]
async fn an_outcome_is_kept_even_where_the_store_is_slower_than_it_says() {
    let store = Held::new(Insert::Works);
    store.boast();
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let handler = service(|| async {
        sleep(BUDGET * 2).await;
        "done"
    });
    for takes in [Duration::ZERO, BUDGET] {
        store.changes_take(takes);
        let job = accepted(&offload, handler.clone()).await;
        assert_eq!(ended(&offload, &job).await["status"], "succeeded", "{takes:?}");
    }
}
