//! Two nodes of an app that share a Redis: any answers for every job, waits for it and cancels it.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::post};
use http::{Request, header};
use support::{Cluster, Server, app, fresh_prefix};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tower::ServiceExt;
use tower_offload::{Offload, Policy};
use tower_offload_redis::{Builder, RedisStore};

#[derive(Clone, Default)]
struct Hands {
    /// Lets one handler come to its end.
    open: Arc<Notify>,
    dropped: Arc<AtomicUsize>,
}

/// What a handler holds while it runs.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

async fn node(builder: Builder, hands: Hands) -> Router {
    let store = builder.connect().await.unwrap();
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let work = post(move || async move {
        let held = Held(hands.dropped);
        hands.open.notified().await;
        std::mem::forget(held);
        "done"
    });
    Router::new()
        .route("/work", work.layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status())
}

async fn nodes(builder: Builder) -> (Router, Router, Hands) {
    let (builder, hands) = (builder.prefix(fresh_prefix()), Hands::default());
    (node(builder.clone(), hands.clone()).await, node(builder, hands.clone()).await, hands)
}

async fn accepted(app: &Router) -> String {
    let answer = app::send(app, "POST", "/work").await;
    assert_eq!(answer.status(), 202, "{}", answer.body());
    answer.headers()[header::LOCATION].to_str().unwrap().to_owned()
}

async fn each_answers_for_the_other(builder: Builder) {
    let (a, b, hands) = nodes(builder).await;
    let mut times = Vec::new();
    for _ in 0..20 {
        let job = accepted(&a).await;
        let request = Request::get(format!("{job}/result")).header("prefer", "wait=20");
        let waiting = tokio::spawn(b.clone().oneshot(request.body(Body::empty()).unwrap()));
        // It waits by then, or is on its way.
        assert_eq!(app::poll(&b, &job).await["status"], "running");
        let begun = Instant::now();
        hands.open.notify_one();
        // Long before anybody would look by himself.
        let answer = timeout(Duration::from_secs(5), waiting).await.expect("nobody wakes it");
        assert_eq!(answer.unwrap().unwrap().status(), 200);
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "from an end on one node to the answer on another: {:?}, at most {:?}",
        times[times.len() / 2],
        times.last()
    );
    assert_eq!(hands.dropped.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_known_to_each_node_of_a_server() {
    let server = Server::start(&[]);
    each_answers_for_the_other(RedisStore::builder(server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_known_to_each_node_of_a_cluster() {
    let cluster = Cluster::start();
    each_answers_for_the_other(RedisStore::cluster(cluster.urls())).await;
}

#[tokio::test]
async fn a_delete_on_one_node_stops_the_work_on_another() {
    let server = Server::start(&[]);
    let (a, b, hands) = nodes(RedisStore::builder(server.url())).await;
    for stopped in 1..=20 {
        let job = accepted(&a).await;
        assert!(app::send(&b, "DELETE", &job).await.status().is_success());
        let begun = Instant::now();
        while hands.dropped.load(SeqCst) < stopped {
            assert!(begun.elapsed() < Duration::from_secs(5), "it runs on");
            tokio::task::yield_now().await;
        }
        assert_eq!(app::poll(&a, &job).await["status"], "canceled");
    }
}

#[tokio::test]
async fn a_key_is_one_jobs_whichever_node_is_asked() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let runs = Arc::new(AtomicUsize::new(0));
    let mut apps = Vec::new();
    for _ in 0..2 {
        let store = builder.clone().connect().await.unwrap();
        let offload = Offload::builder("/jobs")
            .store(store)
            .owner(|_: &http::request::Parts| Some("somebody".into()))
            .build()
            .unwrap();
        let runs = Arc::clone(&runs);
        let work = post(move || async move { runs.fetch_add(1, SeqCst).to_string() });
        apps.push(
            Router::new()
                .route("/work", work.layer(offload.layer(Policy::always().idempotent())))
                .nest_service("/jobs", offload.status()),
        );
    }
    for key in 0..20 {
        let mut tasks = Vec::new();
        for number in 0..8 {
            let request = Request::post("/work").header("idempotency-key", format!("\"{key}\""));
            let request =
                request.header("prefer", "respond-async, wait=10").body(Body::empty()).unwrap();
            tasks.push(tokio::spawn(apps[number % 2].clone().oneshot(request)));
        }
        for task in tasks {
            assert!(task.await.unwrap().unwrap().status().is_success());
        }
        assert_eq!(runs.load(SeqCst), key + 1);
    }
}
