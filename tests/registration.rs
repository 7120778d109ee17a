//! Registration: a job of which nobody was told is taken back, whatever becomes of its request and
//! of the store meanwhile; nothing is left `running` for ever.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::post};
use desk::{Held, Insert, Shuffled};
use http::{Request, Response};
use support::{Server, soon};
use tokio::{
    task::yield_now,
    time::{advance, sleep, timeout},
};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt, util::BoxCloneService};
use tower_offload::{Job, JobId, MemoryStore, Offload, Policy, Store};

const BUDGET: Duration = Duration::from_millis(10);

fn request() -> Request<Body> {
    Request::post("/").body(Body::empty()).unwrap()
}

async fn never(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    pending().await
}

/// A desk with one place for a job.
fn desk(store: &Held) -> Offload {
    Offload::builder("/jobs").store(store.clone()).max_running(1).build().unwrap()
}

/// That all permits come back: a registration that is being undone holds its own. A drain does not
/// wait for that.
async fn permits_come_back(offload: &Offload) {
    let freed = async {
        while offload.stats().await.unwrap().total().running > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), freed).await.expect("a permit is kept");
    assert_eq!(offload.drain(Duration::from_secs(20)).await.interrupted(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_client_leaves_while_it_is_registered_is_taken_back() {
    for fails in [0, 1, 5] {
        for let_in_before in [false, true] {
            let store = Held::new(Insert::Waits);
            store.fail_take_backs(fails);
            let offload = desk(&store);
            let mut service =
                offload.layer(Policy::after(BUDGET)).boxed().layer(tower::service_fn(never));
            let mut call = task::spawn(service.call(request()));
            assert_pending!(call.poll());
            advance(BUDGET).await;
            while !call.is_woken() {
                yield_now().await;
            }
            assert_pending!(call.poll());
            if let_in_before {
                store.let_insert();
                store.emptied_to(1).await;
            }
            drop(call);
            store.let_insert();
            permits_come_back(&offload).await;
            assert_eq!((store.jobs.jobs(), store.take_backs()), (0, fails + 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_insert_of_unknown_fate_is_taken_back() {
    for policy in [Policy::always(), Policy::after(BUDGET)] {
        for (insert, take_backs) in [(Insert::IsLost, 4), (Insert::Fails, 4), (Insert::IsFull, 0)] {
            let store = Held::new(insert);
            store.fail_take_backs(3);
            let offload = desk(&store);
            let layer = offload.layer(policy.clone()).boxed();
            let answer = layer.layer(tower::service_fn(never)).oneshot(request());
            // `always` is refused, `after` stays attached until its client leaves.
            if let Ok(refused) = timeout(BUDGET * 2, answer).await {
                assert_eq!(refused.unwrap().status(), 503);
            }
            permits_come_back(&offload).await;
            assert_eq!((store.jobs.jobs(), store.take_backs()), (0, take_backs));
        }
    }
}

#[tokio::test]
async fn a_request_may_be_dropped_on_a_thread_without_a_runtime() {
    let store = Held::new(Insert::Waits);
    let offload = desk(&store);
    let mut service = offload.layer(Policy::always()).boxed().layer(tower::service_fn(never));
    let mut call = task::spawn(service.call(request()));
    assert_pending!(call.poll());
    store.let_insert();
    store.emptied_to(1).await;
    std::thread::spawn(move || drop(call)).join().unwrap();
    soon("the job is taken back", permits_come_back(&offload)).await;
    assert_eq!(store.jobs.jobs(), 0);
}

/// A handler that takes its time, and tells which job it is.
fn taking(
    time: Duration,
    ids: &Arc<Mutex<Vec<JobId>>>,
) -> BoxCloneService<Request<Body>, Response<Body>, Infallible> {
    let ids = Arc::clone(ids);
    BoxCloneService::new(tower::service_fn(move |_: Request<Body>| {
        let ids = Arc::clone(&ids);
        async move {
            ids.lock().unwrap().push(Job::current().unwrap().id());
            sleep(time).await;
            Ok::<_, Infallible>(Response::new(Body::from("done")))
        }
    }))
}

/// That each of these jobs has ended, or was never one, and that no more are stored.
async fn none_runs(store: &MemoryStore, ids: &Mutex<Vec<JobId>>, most: usize) {
    let ids = ids.lock().unwrap().clone();
    for id in ids {
        if let Some(record) = store.read(id, None).await.unwrap() {
            assert!(record.status().is_end(), "{record:?}");
        }
    }
    assert!(store.jobs() <= most, "{} jobs of {most}", store.jobs());
    // One that still ran would count with the largest outcome.
    assert!(store.bytes() < 1 << 20 << 2, "{} bytes", store.bytes());
}

/// Clients that leave at any time, while handlers end at any time.
async fn clients_that_leave(
    rounds: usize,
    offload: &Offload,
    ids: &Arc<Mutex<Vec<JobId>>>,
) -> usize {
    let mut shuffled = Shuffled::new();
    let mut calls = tokio::task::JoinSet::new();
    for round in 0..rounds {
        let policy = if round % 4 == 0 { Policy::always() } else { Policy::after(BUDGET) };
        let layer = offload.layer(policy);
        let service = layer.layer(taking(shuffled.time(BUDGET * 2), ids));
        let (begins, leaves) = (shuffled.time(BUDGET * 2), shuffled.time(BUDGET * 2));
        calls.spawn(async move {
            sleep(begins).await;
            timeout(leaves, service.oneshot(request())).await
        });
    }
    let answers = calls.join_all().await.into_iter().filter_map(Result::ok);
    answers.filter(|answer| answer.as_ref().unwrap().status() == 202).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_clients_that_leave_leave_no_job_running() {
    let (store, ids) = (MemoryStore::new(usize::MAX), Arc::default());
    let offload = Offload::builder("/jobs").store(store.clone()).max_running(10_000);
    let offload = offload.build().unwrap();
    let accepted = clients_that_leave(4000, &offload, &ids).await;
    assert!(accepted > 0);
    let drained = offload.drain(Duration::from_secs(20)).await;
    assert_eq!(drained.interrupted(), 0);
    none_runs(&store, &ids, accepted).await;
    assert_eq!(store.jobs(), accepted, "each 202 is kept");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_clients_that_leave_a_slow_store_leave_no_job_running() {
    for takes in [3, 10] {
        let (store, ids) = (Held::new(Insert::Takes(Duration::from_millis(takes))), Arc::default());
        store.fail_take_backs(50);
        let offload = Offload::builder("/jobs").store(store.clone()).max_running(10_000);
        let offload = offload.build().unwrap();
        let accepted = clients_that_leave(2000, &offload, &ids).await;
        assert!(accepted > 0 && store.take_backs() > 50);
        permits_come_back(&offload).await;
        none_runs(&store.jobs, &ids, accepted).await;
        assert_eq!(store.jobs.jobs(), accepted, "each 202 is kept");
    }
}

#[tokio::test]
async fn hundreds_of_connections_that_close_leave_no_job_running() {
    let (store, ids) = (MemoryStore::new(usize::MAX), Arc::<Mutex<Vec<JobId>>>::default());
    let offload = Offload::builder("/jobs").store(store.clone()).max_running(10_000);
    let offload = offload.build().unwrap();
    let seen = Arc::clone(&ids);
    let slow = move |body: String| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push(Job::current().unwrap().id());
            sleep(Duration::from_micros(body.parse().unwrap())).await;
        }
    };
    let after = offload.layer(Policy::after(BUDGET));
    let app = Router::new()
        .route("/after", post(slow.clone()).layer(after))
        .route("/always", post(slow).layer(offload.layer(Policy::always())));
    let server = Server::axum(app).await;
    let mut shuffled = Shuffled::new();
    let mut clients = tokio::task::JoinSet::new();
    for round in 0..400 {
        let mut raw = server.connect().await;
        let path = if round % 4 == 0 { "always" } else { "after" };
        let takes = shuffled.time(BUDGET * 2).as_micros().to_string();
        let leaves = shuffled.time(BUDGET * 2);
        clients.spawn(async move {
            let head =
                format!("POST /{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}", takes.len());
            raw.write(format!("{head}\r\n\r\n{takes}")).await;
            sleep(leaves).await;
        });
    }
    clients.join_all().await;
    let drained = soon("all jobs end", offload.drain(Duration::from_secs(15))).await;
    assert_eq!(drained.interrupted(), 0);
    let asked = ids.lock().unwrap().len();
    assert!(store.jobs() > 0);
    none_runs(&store, &ids, asked).await;
}
