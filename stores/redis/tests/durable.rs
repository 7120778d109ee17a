//! Durable routes: jobs that outlive the process which accepted them, and the one that ran them.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, routing::post};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header, request::Parts};
use support::{Cluster, Server, app, fresh_prefix, proxy::Proxy};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tower::ServiceExt;
use tower_offload::{
    Change, End, ErrorKind, Failure, Job, Offload, Outcome, Policies, Policy, Record, Status,
    Store,
    store::{Changed, StoreFuture},
};
use tower_offload_redis::{Builder, RedisStore};

const LEASE: Duration = Duration::from_secs(1);

/// What a node's handlers do, and what they have seen.
#[derive(Clone, Default)]
struct Hands {
    open: Arc<Notify>,
    begun: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
}

/// A node: an app and its desk. Dropped, its durable jobs are served by it no more.
struct Node {
    app: Router,
    offload: Offload,
    store: RedisStore,
}

impl Node {
    /// One that accepts, and serves where it is told to.
    async fn start(builder: Builder, hands: &Hands, serves: bool) -> Self {
        Self::with(builder, hands, serves, Policy::always().durable().name("work")).await
    }

    async fn with(builder: Builder, hands: &Hands, serves: bool, policy: Policy) -> Self {
        let store = builder.connect().await.unwrap();
        let offload = Offload::builder("/jobs")
            .store(store.clone())
            .owner(|_| Some("everybody".into()))
            .restore(|head: &mut Parts| {
                head.headers.insert("x-restored", HeaderValue::from_static("yes"));
            })
            .build()
            .unwrap();
        let hands = hands.clone();
        let work =
            post(move |job: Job, Path(name): Path<String>, request: Request<Body>| async move {
                hands.begun.fetch_add(1, SeqCst);
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let header = |name| head.headers.get(name).map(|value| value.to_str().unwrap());
                hands.seen.lock().unwrap().push(format!(
                    "{name} {} {:?} {:?} {:?} {}",
                    head.uri,
                    header("x-kept"),
                    header("authorization"),
                    header("x-restored"),
                    body.len()
                ));
                if name == "gated" {
                    hands.open.notified().await;
                }
                assert_ne!(name, "panics");
                format!("attempt {}", job.attempt())
            });
        let policies = Policies::otherwise(Policy::never()).at("/charges/{name}", policy);
        let app = Router::new()
            .route("/charges/{name}", work)
            .layer(offload.layer(policies))
            .nest_service("/jobs", offload.status());
        if serves {
            offload.serve_durable::<_, Body, _>(app.clone());
        }
        Self { app, offload, store }
    }

    async fn accepted(&self, path: &str) -> String {
        let request = Request::post(path)
            .header("x-kept", "kept")
            .header("authorization", "Bearer secret")
            .body(Body::from(vec![b'x'; 1000]))
            .unwrap();
        let answer = self.app.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 202);
        answer.headers()[header::LOCATION].to_str().unwrap().to_owned()
    }

    async fn result(&self, job: &str) -> Response<String> {
        app::ended(&self.app, job).await;
        app::send(&self.app, "GET", &format!("{job}/result")).await
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// What comes of `future`, while handlers are let go on: one that is dropped just now may take a word
/// that was for another.
async fn released<T>(hands: &Hands, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            value = &mut future => return value,
            () = sleep(Duration::from_millis(20)) => hands.open.notify_one(),
        }
    }
}

async fn a_job_is_run_by_whoever_serves(builder: Builder) {
    let (builder, hands) = (builder.prefix(fresh_prefix()), Hands::default());
    let accepts = Node::start(builder.clone(), &hands, false).await;
    let job = accepts.accepted("/charges/a?b=c").await;
    let document = app::poll(&accepts.app, &job).await;
    assert_eq!((&document["status"], &document["attempt"]), (&"queued".into(), &0.into()));
    let serves = Node::start(builder, &hands, true).await;
    let result = serves.result(&job).await;
    assert_eq!((result.status().as_u16(), &**result.body()), (200, "attempt 1"));
    let seen = hands.seen.lock().unwrap().clone();
    assert_eq!(seen, [r#"a /charges/a?b=c Some("kept") None Some("yes") 1000"#]);
    // By now whoever serves is told of what comes.
    for number in 0..50 {
        let begun = Instant::now();
        let job = accepts.accepted(&format!("/charges/{number}")).await;
        assert_eq!(accepts.result(&job).await.body(), "attempt 1");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(hands.begun.load(SeqCst), 51);
}

#[tokio::test]
async fn a_job_is_run_by_whoever_serves_on_a_server() {
    let server = Server::start(&[]);
    a_job_is_run_by_whoever_serves(RedisStore::builder(server.url())).await;
    for kind in ["b", "q", "r", "d"] {
        assert_eq!(server.cli(&["keys", &format!("*:{kind}:*")]).trim(), "", "left: {kind}");
    }
}

#[tokio::test]
async fn a_job_is_run_by_whoever_serves_on_a_cluster() {
    let cluster = Cluster::start();
    a_job_is_run_by_whoever_serves(RedisStore::cluster(cluster.urls())).await;
}

#[tokio::test]
async fn a_node_that_was_cut_off_ends_nothing_that_another_has_taken_over() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(LEASE);
    let (cut_off, takes_over) = (Hands::default(), Hands::default());
    let late = Node::start(builder(proxy.url()), &cut_off, true).await;
    let watches = Node::start(builder(server.url()), &takes_over, false).await;
    let job = watches.accepted("/charges/gated").await;
    until("it is begun", || cut_off.begun.load(SeqCst) == 1).await;
    proxy.cut();
    let other = Node::start(builder(server.url()), &takes_over, true).await;
    until("another begins it", || takes_over.begun.load(SeqCst) == 1).await;
    // The first comes to its end as well, and is heard again.
    cut_off.open.notify_one();
    sleep(LEASE).await;
    proxy.mend();
    sleep(LEASE * 2).await;
    let document = app::poll(&other.app, &job).await;
    assert_eq!((&document["status"], &document["attempt"]), (&"running".into(), &2.into()));
    takes_over.open.notify_one();
    assert_eq!(other.result(&job).await.body(), "attempt 2");
    drop(late);
}

#[tokio::test]
async fn at_a_drains_deadline_a_job_goes_to_another_node() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let first = Node::start(builder.clone(), &hands, true).await;
    let job = first.accepted("/charges/gated").await;
    until("it is begun", || hands.begun.load(SeqCst) == 1).await;
    first.offload.drain(Duration::from_millis(50)).await;
    let document = app::poll(&first.app, &job).await;
    assert_eq!((&document["status"], &document["attempt"]), (&"queued".into(), &1.into()));
    // Who drains takes nothing more.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(hands.begun.load(SeqCst), 1);
    let second = Node::start(builder, &hands, true).await;
    until("another begins it", || hands.begun.load(SeqCst) == 2).await;
    assert_eq!(released(&hands, second.result(&job)).await.body(), "attempt 2");
}

#[tokio::test]
async fn a_drain_accepts_nothing_and_answers_a_key_that_is_known() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let policy = Policy::always().durable().idempotent().name("work");
    let node = Node::with(builder, &Hands::default(), false, policy).await;
    let send = async |key: &str| {
        let request = Request::post("/charges/1").header("idempotency-key", key);
        let request = request.body(Body::empty()).unwrap();
        let answer = node.app.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), answer.headers().get(header::LOCATION).cloned())
    };
    let accepted = send("\"known\"").await;
    assert_eq!(accepted.0, 202);
    node.offload.drain(Duration::ZERO).await;
    assert_eq!(send("\"known\"").await, accepted);
    assert_eq!(send("\"unknown\"").await.0, 503);
    assert_eq!(server.cli(&["keys", "*:j:*"]).lines().count(), 1);
}

/// The answer to a request with this key: its status, and the job that it names.
async fn keyed(node: &Node, key: &str) -> (u16, Option<String>) {
    let request = Request::post("/charges/1").header("idempotency-key", key);
    let request = request.body(Body::empty()).unwrap();
    let answer = node.app.clone().oneshot(request).await.unwrap();
    let job = answer.headers().get(header::LOCATION);
    (answer.status().as_u16(), job.map(|job| job.to_str().unwrap().to_owned()))
}

/// Node 1 loses the answer to its insertion, answers 503, and undoes the job when it reaches Redis again.
/// By then a retry at node 2 has a 202 for it.
#[tokio::test]
async fn an_undo_leaves_a_job_that_a_retry_on_another_node_was_given() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    let builder = |url| RedisStore::builder(url).prefix(&prefix).timeout(LEASE * 5);
    let policy = || Policy::always().durable().idempotent().name("work");
    let hands = Hands::default();
    let first = Node::with(builder(proxy.url()), &hands, false, policy()).await;
    let second = Node::with(builder(server.url()), &hands, false, policy()).await;
    // From now on Redis knows the script.
    let job = keyed(&first, "\"warm\"").await.1.unwrap();
    app::send(&second.app, "DELETE", &job).await;
    proxy.lose_replies();
    let (refused, ()) = tokio::join!(keyed(&first, "\"key\""), async {
        until("the job is kept", || server.cli(&["keys", "*:b:*"]).trim() != "").await;
        proxy.cut();
    });
    assert_eq!(refused, (503, None));
    let (status, job) = keyed(&second, "\"key\"").await;
    let job = job.unwrap();
    assert_eq!(status, 202);
    // Nobody but node 1 asks for the job now.
    server.cli(&["config", "set", "slowlog-log-slower-than", "0"]);
    server.cli(&["config", "set", "slowlog-max-len", "10000"]);
    proxy.mend();
    let id = job.rsplit('/').next().unwrap();
    until("node 1 undoes it", || server.cli(&["slowlog", "get", "-1"]).contains(id)).await;
    assert_eq!(app::poll(&second.app, &job).await["status"], "queued");
    let serves = Node::with(builder(server.url()), &hands, true, policy()).await;
    assert_eq!(serves.result(&job).await.body(), "attempt 1");
    assert_eq!(keyed(&first, "\"key\"").await, (200, None), "the key's response is replayed");
    assert_eq!(hands.begun.load(SeqCst), 1);
}

/// As above, where nobody retries: the key is free, and nothing is left.
#[tokio::test]
async fn an_undo_forgets_a_job_that_nobody_was_given() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port).await;
    let builder = RedisStore::builder(proxy.url()).prefix(fresh_prefix()).timeout(LEASE * 5);
    let policy = Policy::always().durable().idempotent().name("work");
    let hands = Hands::default();
    let node = Node::with(builder, &hands, false, policy).await;
    keyed(&node, "\"warm\"").await;
    proxy.lose_replies();
    let (refused, ()) = tokio::join!(keyed(&node, "\"key\""), async {
        until("two are kept", || server.cli(&["keys", "*:b:*"]).lines().count() == 2).await;
        proxy.cut();
    });
    assert_eq!(refused, (503, None));
    proxy.mend();
    until("one is gone", || server.cli(&["keys", "*:j:*"]).lines().count() == 1).await;
    for kind in ["b", "c"] {
        let left = server.cli(&["keys", &format!("*:{kind}:*")]);
        assert_eq!(left.lines().count(), 1, "{left}");
    }
}

#[tokio::test]
async fn a_job_whose_client_leaves_before_it_is_told_is_taken_back() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let builder = builder.timeout(Duration::from_secs(10));
    let node = Node::start(builder, &Hands::default(), false).await;
    // From now on Redis knows the script.
    node.accepted("/charges/0").await;
    server.pause();
    let request = Request::post("/charges/1").body(Body::empty()).unwrap();
    let mut answer = node.app.clone().oneshot(request);
    // It is on its way to Redis.
    for _ in 0..10 {
        assert!(is_pending(&mut answer).await, "nobody has answered");
        tokio::task::yield_now().await;
    }
    drop(answer);
    server.go_on();
    // After the first one, over the same connection.
    let job = node.accepted("/charges/2").await;
    let id = job.rsplit('/').next().unwrap();
    until("it is gone", || {
        let keys = server.cli(&["keys", "*:j:*"]);
        keys.lines().count() == 2 && keys.contains(id)
    })
    .await;
    assert_eq!(server.cli(&["keys", "*:b:*"]).lines().count(), 2);
}

/// Polls once: whether it is still pending.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

#[tokio::test]
async fn what_was_tried_often_enough_is_given_up_and_can_be_sent_again() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let policy = || Policy::always().max_attempts(2).name("work");
    let mut node = Node::with(builder.clone(), &hands, true, policy()).await;
    let job = node.accepted("/charges/gated").await;
    let document = loop {
        let document = app::poll(&node.app, &job).await;
        match document["status"].as_str() {
            Some("queued") => sleep(Duration::from_millis(5)).await,
            Some("running") => {
                node.offload.drain(Duration::ZERO).await;
                node = Node::with(builder.clone(), &hands, true, policy()).await;
            }
            _ => break document,
        }
    };
    assert_eq!(document["attempt"], 2);
    let begun = hands.begun.load(SeqCst);
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:interrupted");
    let given_up = node.store.given_up(10).await.unwrap().jobs;
    assert_eq!(given_up.len(), 1);
    assert_eq!(
        (given_up[0].status(), given_up[0].failure()),
        (Status::Failed, Some(Failure::Interrupted))
    );
    let next = node.store.send_again(given_up[0].id()).await.unwrap().unwrap();
    assert_eq!(node.store.given_up(10).await.unwrap().jobs.len(), 0);
    assert_eq!(node.store.send_again(given_up[0].id()).await.unwrap(), Some(next));
    assert_eq!(node.store.send_again(next).await.unwrap(), None);
    until("it is begun", || hands.begun.load(SeqCst) == begun + 1).await;
    let result = released(&hands, node.result(&format!("/jobs/{next}"))).await;
    assert_eq!(result.body(), "attempt 1");
}

#[tokio::test]
async fn a_panic_is_an_end_and_a_cancel_is_one_before_and_after_the_start() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let accepts = Node::start(builder.clone(), &hands, false).await;
    let canceled = accepts.accepted("/charges/a").await;
    assert!(app::send(&accepts.app, "DELETE", &canceled).await.status().is_success());
    let panics = accepts.accepted("/charges/panics").await;
    let runs = accepts.accepted("/charges/gated").await;
    let _serves = Node::start(builder, &hands, true).await;
    let document = app::ended(&accepts.app, &panics).await;
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:panicked");
    until("both are begun", || hands.begun.load(SeqCst) == 2).await;
    assert!(app::send(&accepts.app, "DELETE", &runs).await.status().is_success());
    assert_eq!(app::ended(&accepts.app, &runs).await["status"], "canceled");
    assert_eq!(app::ended(&accepts.app, &canceled).await["status"], "canceled");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(hands.begun.load(SeqCst), 2, "what was canceled is not begun");
}

#[tokio::test]
async fn a_node_runs_so_many_at_once() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let policy = Policy::always().durable().name("work").concurrency(2);
    let node = Node::with(builder, &hands, true, policy).await;
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(node.accepted("/charges/gated").await);
    }
    for ended in 0..6 {
        until("two run", || hands.begun.load(SeqCst) == (ended + 2).min(6)).await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(hands.begun.load(SeqCst), (ended + 2).min(6));
        hands.open.notify_one();
    }
    for job in jobs {
        assert_eq!(node.result(&job).await.status(), 200);
    }
}

#[tokio::test]
async fn policies_that_cannot_work_are_refused() {
    let server = Server::start(&[]);
    let store = RedisStore::connect(server.url()).await.unwrap();
    assert!(store.keeps_requests());
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let durable = || Policy::always().durable().name("work");
    let table = |policy| Policies::otherwise(Policy::never()).at("/work", policy);
    let refused = |offload: &Offload, policies: Policies, why: &str| {
        let error = offload.try_layer(policies).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(&offload, durable().into(), "table");
    refused(&offload, table(Policy::always().durable()), "name");
    refused(&offload, table(durable().queue(3)), "queue");
    refused(&offload, table(Policy::after(LEASE).durable().name("work")), "always");
    refused(&offload, table(durable()).at("/other", durable()), "same name");
    refused(&Offload::new("/jobs"), table(durable()), "keeps requests");
    let _first = offload.layer(table(durable()));
    refused(&offload, table(durable()), "same name");
}

/// A header may be kept in another form, and put back before its handler sees it.
#[tokio::test]
async fn headers_are_sealed_as_the_app_says() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let offload = Offload::builder("/jobs")
        .store(store)
        .seal(|headers| {
            if let Some(token) = headers.remove(header::AUTHORIZATION) {
                let sealed: Vec<u8> = token.as_bytes().iter().map(|byte| byte ^ 1).collect();
                headers.insert("x-sealed", HeaderValue::from_bytes(&sealed).unwrap());
            }
        })
        .restore(|head: &mut Parts| {
            if let Some(sealed) = head.headers.remove("x-sealed") {
                let token: Vec<u8> = sealed.as_bytes().iter().map(|byte| byte ^ 1).collect();
                let token = HeaderValue::from_bytes(&token).unwrap();
                head.headers.insert(header::AUTHORIZATION, token);
            }
        })
        .build()
        .unwrap();
    let who = post(async |request: Request<Body>| {
        request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned()
    });
    let durable = Policy::always().durable().name("who");
    let table = Policies::otherwise(Policy::never()).at("/who", durable);
    let app = Router::new()
        .route("/who", who)
        .layer(offload.layer(table))
        .nest_service("/jobs", offload.status());
    let request = Request::post("/who").header(header::AUTHORIZATION, "Bearer secret");
    let answer = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let job = answer.headers()[header::LOCATION].to_str().unwrap().to_owned();
    let kept = server.cli(&["get", server.cli(&["keys", "*:b:*"]).trim()]);
    assert!(kept.contains("x-sealed") && !kept.contains("secret"), "{kept}");
    offload.serve_durable::<_, Body, _>(app.clone());
    app::ended(&app, &job).await;
    let result = app::send(&app, "GET", &format!("{job}/result")).await;
    assert_eq!((result.status().as_u16(), &**result.body()), (200, "Bearer secret"));
}

/// A middleware around the layer that calls what is inside of it in a task of its own, as
/// `tower::buffer` does.
#[tokio::test]
async fn a_request_that_is_run_in_another_task_is_not_enqueued_again() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let durable = Policy::always().durable().name("work");
    let table = Policies::otherwise(Policy::never()).at("/work", durable);
    let begun = Arc::new(AtomicUsize::new(0));
    let counts = begun.clone();
    let app = Router::new()
        .route(
            "/work",
            post(async move || {
                counts.fetch_add(1, SeqCst);
                "done"
            }),
        )
        .layer(offload.layer(table))
        .nest_service("/jobs", offload.status());
    let inner = app.clone();
    let spawns = tower::service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move { tokio::spawn(inner.oneshot(request)).await.unwrap() }
    });
    let request = Request::post("/work").body(Body::empty()).unwrap();
    let answer = spawns.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 202);
    let job = answer.headers()[header::LOCATION].to_str().unwrap().to_owned();
    offload.serve_durable::<_, Body, _>(spawns);
    app::ended(&app, &job).await;
    sleep(Duration::from_secs(2)).await;
    let kept = server.cli(&["keys", "*:j:*"]);
    let result = app::send(&app, "GET", &format!("{job}/result")).await;
    assert_eq!(
        (kept.lines().count(), result.status().as_u16(), begun.load(SeqCst)),
        (1, 200, 1),
        "jobs in Redis, status of the result, runs of the handler"
    );
}

/// Redis forgets a cancellation; whoever ran the job has let go of it.
#[tokio::test]
async fn a_cancel_that_redis_forgets_leaves_no_job_that_runs_nowhere() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix()).lease(LEASE);
    let accepts = Node::start(builder.clone(), &hands, false).await;
    let serves = Node::start(builder, &hands, true).await;
    let job = accepts.accepted("/charges/gated").await;
    until("it is begun", || hands.begun.load(SeqCst) == 1).await;
    server.cli(&["save"]);
    assert!(app::send(&accepts.app, "DELETE", &job).await.status().is_success());
    assert_eq!(app::poll(&accepts.app, &job).await["status"], "canceled");
    // Its handler is dropped.
    sleep(Duration::from_millis(500)).await;
    server.restart();
    let begun = Instant::now();
    loop {
        let document = app::poll(&accepts.app, &job).await;
        if document["status"] != "running" {
            break;
        }
        assert!(begun.elapsed() < LEASE * 15, "nobody runs it, and it is running: {document}");
        sleep(Duration::from_millis(100)).await;
    }
    drop(serves);
}

/// One request that is not as it should be keeps no other from being run.
#[tokio::test]
async fn a_request_of_another_type_is_no_matter_of_the_others() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let accepts = Node::start(builder.clone(), &hands, false).await;
    let bad = accepts.accepted("/charges/a").await;
    let key = server.cli(&["keys", "*:b:*"]);
    server.cli(&["del", key.trim()]);
    server.cli(&["rpush", key.trim(), "x"]);
    let _serves = Node::start(builder, &hands, true).await;
    sleep(Duration::from_secs(3)).await;
    let good = accepts.accepted("/charges/b").await;
    let document = {
        sleep(Duration::from_secs(8)).await;
        app::poll(&accepts.app, &good).await
    };
    let other = app::poll(&accepts.app, &bad).await;
    assert_eq!((&document["status"], &other["status"]), (&"succeeded".into(), &"failed".into()));
}

/// A record that cannot be read: it is an error, and nobody runs it.
#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_left_running() {
    let server = Server::start(&[]);
    let hands = Hands::default();
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let accepts = Node::start(builder.clone(), &hands, false).await;
    accepts.accepted("/charges/a").await;
    let key = server.cli(&["keys", "*:j:*"]);
    server.cli(&["hset", key.trim(), "g", "no JSON"]);
    let _serves = Node::start(builder, &hands, true).await;
    sleep(Duration::from_secs(5)).await;
    let status = server.cli(&["hget", key.trim(), "s"]);
    assert_eq!((status.trim(), hands.begun.load(SeqCst)), ("failed", 0));
}

fn in_partition(partition: u8) -> tower_offload::Record {
    let id = loop {
        let id = tower_offload::JobId::random().unwrap();
        if id.partition() == partition {
            break id;
        }
    };
    tower_offload::Record::queued(id, std::time::SystemTime::now(), Duration::from_secs(60))
        .with_policy("work".into())
        .with_attempts(3)
}

/// What is due is found also where something is always to be had elsewhere.
#[tokio::test]
async fn a_backlog_in_one_partition_hides_no_job_of_another() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = || RedisStore::builder(server.url()).prefix(prefix.clone()).lease(LEASE);
    let store = builder().connect().await.unwrap();
    // A node that takes a job, and is lost.
    let lost = in_partition(7);
    store.enqueue(lost.clone(), "request".into(), 0).await.unwrap();
    let dead = builder().connect().await.unwrap();
    assert!(dead.take("work".into()).await.unwrap().is_some());
    drop(dead);
    for _ in 0..3000 {
        store.enqueue(in_partition(3), "request".into(), 0).await.unwrap();
    }
    let begun = Instant::now();
    // Taken and ended, one each ten milliseconds; lost for a second and another later at the most.
    let mut others = 0;
    while let Some((record, _)) = store.take("work".into()).await.unwrap() {
        if record.id() == lost.id() {
            break;
        }
        others += 1;
        store.change(record.id(), tower_offload::Change::Cancel).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        if begun.elapsed() > Duration::from_secs(15) {
            let due = server.cli(&[
                "zrange",
                &format!("{{{prefix}:07}}:q:work"),
                "0",
                "-1",
                "withscores",
            ]);
            let now = server.cli(&["time"]);
            panic!("{others} others were taken; due, and not taken: {due} now {now}");
        }
    }
}

#[tokio::test]
async fn what_was_given_up_and_has_expired_takes_no_room() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(prefix.clone()).connect().await.unwrap();
    for _ in 0..50 {
        let id = loop {
            let id = tower_offload::JobId::random().unwrap();
            if id.partition() == 3 {
                break id;
            }
        };
        let record = tower_offload::Record::queued(
            id,
            std::time::SystemTime::now(),
            Duration::from_millis(20),
        )
        .with_policy("work".into())
        .with_attempts(1);
        store.enqueue(record, "request".into(), 0).await.unwrap();
        let (record, _) = store.take("work".into()).await.unwrap().unwrap();
        let lost = tower_offload::Change::Finish(tower_offload::End::Failure(Failure::Interrupted));
        store.change(record.id(), lost).await.unwrap();
        sleep(Duration::from_millis(30)).await;
    }
    store.usage().await.unwrap();
    let left = server.cli(&["zcard", &format!("{{{prefix}:03}}:d")]);
    assert!(left.trim().parse::<usize>().unwrap() < 5, "{left} of expired jobs");
}

/// What the script says that takes a job of partition 3 for this node.
fn taken_by(server: &Server, prefix: &str, node: &str) -> String {
    let (head, take) = include_str!("../src/lua/take.lua").split_once('\n').unwrap();
    let script = format!("{head}\n{}\n{take}", include_str!("../src/lua/common.lua"));
    let key = |kind: &str| format!("{{{prefix}:03}}:{kind}");
    let keys = [key("q:work"), key("f"), node.into(), key("j:")];
    let mut call = vec!["eval", &script, "2"];
    call.extend(keys.iter().map(String::as_str));
    let channel = key("changes");
    call.extend(["publish", &channel, "call"]);
    server.cli(&call)
}

/// A call of `take` is made again, since its answer was lost; its node was taken for dead meanwhile.
#[tokio::test]
async fn a_take_that_is_made_again_does_not_give_what_is_another_nodes_by_now() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url())
        .prefix(prefix.clone())
        .lease(LEASE)
        .connect()
        .await
        .unwrap();
    let record = in_partition(3);
    store.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    let take = || taken_by(&server, &prefix, "late");
    server.cli(&["zadd", &format!("{{{prefix}:nodes}}:l"), "1", "late"]);
    let first = take();
    assert!(first.contains("running"), "{first}");
    let begun = Instant::now();
    let other = loop {
        if let Some((record, _)) = store.take("work".into()).await.unwrap() {
            break record;
        }
        assert!(begun.elapsed() < LEASE * 20);
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((other.id(), other.attempt()), (record.id(), Some(2)));
    let again = take();
    assert_eq!(again.trim(), "fenced");
}

fn done() -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, b"done", None)))
}

#[tokio::test]
async fn a_take_can_be_made_again_for_as_long_as_its_job_runs() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
    let store = builder.connect().await.unwrap();
    for end in [done(), Change::Cancel, Change::Finish(End::Failure(Failure::Interrupted))] {
        store.enqueue(in_partition(3), "request".into(), 0).await.unwrap();
        let (record, _) = store.take("work".into()).await.unwrap().unwrap();
        let note = server.cli(&["keys", "*:t:*"]);
        assert_eq!(server.cli(&["get", note.trim()]).trim(), record.id().to_string());
        assert_eq!(server.cli(&["pttl", note.trim()]).trim(), "-1", "it has a time of its own");
        assert!(matches!(store.change(record.id(), end).await.unwrap(), Changed::Applied(_)));
        assert_eq!(server.cli(&["keys", "*:t:*"]).trim(), "");
    }
    let (record, _) = store.take("work".into()).await.unwrap().unwrap();
    store.take_back(record.id()).await.unwrap();
    assert_eq!(server.cli(&["keys", "*:t:*"]).trim(), "");
}

/// A take that is polled once, and whose answer is there by the time that it is given back.
async fn answered_take(
    store: &RedisStore,
    record: &Record,
) -> StoreFuture<Option<(Record, Bytes)>> {
    let mut take = store.take("work".into());
    assert!(is_pending(&mut take).await);
    // The answers of a connection come in the order of its calls.
    until_async(async || {
        store.read(record.id(), None).await.unwrap().unwrap().status() == Status::Running
    })
    .await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    take
}

#[tokio::test]
async fn a_job_that_was_taken_for_a_worker_that_is_gone_is_taken_again() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let record = in_partition(3);
    store.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    drop(answered_take(&store, &record).await);
    let mut again = None;
    until_async(async || {
        again = store.take("work".into()).await.unwrap();
        again.is_some()
    })
    .await;
    let again = again.unwrap().0;
    assert_eq!((again.id(), again.attempt()), (record.id(), Some(2)));
    assert!(matches!(store.change(again.id(), done()).await.unwrap(), Changed::Applied(_)));
}

/// No handler ran in such an attempt, so it is not one of those that a job may have.
#[tokio::test]
async fn a_job_that_nobody_received_is_taken_again_though_it_had_one_attempt() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let record = in_partition(3).with_attempts(1);
    store.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    for attempt in 1..=3 {
        let take = answered_take(&store, &record).await;
        let seen = store.read(record.id(), None).await.unwrap().unwrap();
        assert_eq!(seen.attempt(), Some(attempt));
        drop(take);
        until_async(async || {
            let seen = store.read(record.id(), None).await.unwrap().unwrap();
            assert_eq!(seen.failure(), None);
            seen.status() == Status::Queued
        })
        .await;
    }
    // That of a worker that had received it was its last.
    assert!(store.take("work".into()).await.unwrap().is_some());
    let lost = Change::Finish(End::Failure(Failure::Interrupted));
    let Changed::Applied(ended) = store.change(record.id(), lost).await.unwrap() else {
        panic!("it runs here");
    };
    assert_eq!((ended.status(), ended.failure()), (Status::Failed, Some(Failure::Interrupted)));
}

#[tokio::test]
async fn a_put_back_that_is_made_again_leaves_the_next_attempt_alone() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    // Nothing is compared meanwhile, and no call is made again before its connection is cut.
    let long = Duration::from_secs(60);
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(long).timeout(long);
    let watches = builder(server.url()).connect().await.unwrap();
    let store = builder(proxy.url()).connect().await.unwrap();
    let record = in_partition(3);
    watches.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    let read = async || watches.read(record.id(), None).await.unwrap().unwrap();
    // Once so that the server has the script, and then without an answer.
    drop(answered_take(&store, &record).await);
    until_async(async || read().await.status() == Status::Queued).await;
    let take = answered_take(&store, &record).await;
    proxy.lose_replies();
    drop(take);
    until_async(async || read().await.status() == Status::Queued).await;
    // Its node takes it again before the put-back has learned that it was carried out.
    let node = server.cli(&["srandmember", &format!("{{{prefix}:03}}:w")]);
    assert!(taken_by(&server, &prefix, node.trim()).contains("running"));
    let before = server.calls("evalsha");
    proxy.cut();
    proxy.mend();
    until("the put-back is made again", || server.calls("evalsha") > before).await;
    let record = read().await;
    assert_eq!((record.status(), record.attempt()), (Status::Running, Some(3)));
}

/// The record is damaged while the job is on its way to a worker that is gone.
#[tokio::test]
async fn a_put_back_of_a_record_that_cannot_be_read_ends_its_job() {
    let server = Server::start(&[]);
    // So long that no comparison finds it before.
    let lease = Duration::from_secs(120);
    let store = RedisStore::builder(server.url()).prefix("put-back").lease(lease);
    let store = store.connect().await.unwrap();
    let record = in_partition(3);
    store.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    let take = answered_take(&store, &record).await;
    let key = format!("{{put-back:03}}:j:{}", record.id());
    server.cli(&["hset", &key, "v", "no number"]);
    drop(take);
    until_async(async || server.cli(&["hget", &key, "f"]).trim() == "corrupt").await;
    assert_eq!(server.cli(&["exists", &format!("{{put-back:03}}:u:{}", record.id())]).trim(), "1");
}

/// A job that was given up, in partition 3.
async fn given_up(store: &RedisStore) -> Record {
    let record = in_partition(3).with_attempts(1);
    store.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    let (taken, _) = store.take("work".into()).await.unwrap().unwrap();
    assert_eq!(taken.id(), record.id());
    let lost = Change::Finish(End::Failure(Failure::Interrupted));
    assert!(matches!(store.change(record.id(), lost).await.unwrap(), Changed::Applied(_)));
    record
}

#[tokio::test]
async fn a_job_is_sent_again_once_however_often_that_is_asked() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix("again");
    let (store, other) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let id = given_up(&store).await.id();
    let key = |kind: &str| format!("{{again:03}}:{kind}");
    let request = key(&format!("b:{id}"));
    assert_eq!(store.given_up(usize::MAX).await.unwrap().jobs.len(), 1);
    let kept = server.cli(&["zscore", &key("d"), &id.to_string()]);
    // At once from several processes.
    let ends = tokio::join!(
        store.send_again(id),
        other.send_again(id),
        store.send_again(id),
        other.send_again(id)
    );
    let next = ends.0.unwrap();
    assert!(next.is_some_and(|next| next != id));
    for end in [ends.1, ends.2, ends.3] {
        assert_eq!(end.unwrap(), next);
    }
    // A caller was lost after the job was sent and before it was taken from the list.
    server.cli(&["set", &request, "request"]);
    server.cli(&["zadd", &key("d"), kept.trim(), &id.to_string()]);
    assert_eq!(other.send_again(id).await.unwrap(), next);
    assert_eq!(other.given_up(10).await.unwrap().jobs.len(), 0);
    assert_eq!(server.cli(&["exists", &request]).trim(), "0");
    assert_eq!(server.cli(&["zcard", &key("q:work")]).trim(), "1");
    // Nor is it begun once more after it has ended.
    let (taken, _) = store.take("work".into()).await.unwrap().unwrap();
    assert_eq!((Some(taken.id()), taken.attempt()), (next, Some(1)));
    assert!(matches!(store.change(taken.id(), done()).await.unwrap(), Changed::Applied(_)));
    server.cli(&["set", &request, "request"]);
    assert_eq!(store.send_again(id).await.unwrap(), next);
    assert_eq!(server.cli(&["zcard", &key("q:work")]).trim(), "0");
}

/// Takes and ends jobs until told to stop.
async fn takes_and_ends(store: RedisStore, stop: Arc<std::sync::atomic::AtomicBool>) {
    while !stop.load(SeqCst) {
        let Ok(Some((record, _))) = store.take("work".into()).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        while store.change(record.id(), done()).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Answers to takes are lost, and what made the takes repeatable as well, as after any time.
#[tokio::test]
async fn jobs_whose_takes_lost_their_answers_are_all_run() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(LEASE);
    let accepts = builder(server.url()).connect().await.unwrap();
    let takes = builder(proxy.url()).timeout(Duration::from_millis(300)).connect().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..300_u16 {
        let record = in_partition((number % 64) as u8);
        ids.push(record.id());
        accepts.enqueue(record, "request".into(), 0).await.unwrap();
    }
    // Where there are jobs is known by now, and the scripts are.
    let (first, _) = takes.take("work".into()).await.unwrap().unwrap();
    takes.change(first.id(), done()).await.unwrap();
    proxy.lose_replies();
    let stop = Arc::default();
    let tasks: Vec<_> =
        (0..8).map(|_| tokio::spawn(takes_and_ends(takes.clone(), Arc::clone(&stop)))).collect();
    until("takes have lost their answers", || {
        server.cli(&["keys", "*:t:*"]).lines().count() == tasks.len()
    })
    .await;
    let notes = server.cli(&["keys", "*:t:*"]);
    let mut del = vec!["del"];
    del.extend(notes.lines());
    server.cli(&del);
    proxy.cut();
    proxy.mend();
    let begun = Instant::now();
    loop {
        let mut ended = 0;
        for id in &ids {
            let record = accepts.read(*id, None).await.unwrap().unwrap();
            ended += usize::from(record.status() == Status::Succeeded);
        }
        if ended == ids.len() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{ended} of {} are run", ids.len());
        sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn jobs_that_run_here_are_not_handed_back_when_connections_are_lost() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(LEASE * 4);
    let watches = builder(server.url()).connect().await.unwrap();
    let runs = builder(proxy.url()).connect().await.unwrap();
    let mut ids = Vec::new();
    for round in 0..4 {
        for number in 0..16 {
            let plain = tower_offload::Record::running(
                tower_offload::JobId::random().unwrap(),
                std::time::SystemTime::now(),
                Duration::from_secs(60),
            );
            ids.push(plain.id());
            runs.insert(plain, 0).await.unwrap();
            let durable = in_partition(round * 16 + number);
            ids.push(durable.id());
            watches.enqueue(durable, "request".into(), 0).await.unwrap();
        }
        proxy.cut();
        proxy.mend();
        let mut taken = 0;
        until_async(async || {
            taken += usize::from(runs.take("work".into()).await.is_ok_and(|taken| taken.is_some()));
            taken == 16
        })
        .await;
        // A renewal, and a comparison behind it.
        sleep(LEASE * 2).await;
    }
    for id in ids {
        let record = watches.read(id, None).await.unwrap().unwrap();
        assert_eq!((record.status(), record.attempt().unwrap_or(1)), (Status::Running, 1));
        assert!(matches!(runs.change(id, done()).await.unwrap(), Changed::Applied(_)));
    }
}

async fn until_async(mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(5)).await;
    }
}

/// Those whose records cannot be read fail, and none of the others waits for that.
#[tokio::test]
async fn jobs_behind_unreadable_ones_begin_at_once() {
    let server = Server::start(&[]);
    let (prefix, hands) = (fresh_prefix(), Hands::default());
    let builder = || RedisStore::builder(server.url()).prefix(&prefix);
    let accepts = Node::start(builder(), &hands, false).await;
    let damages = [
        "redis.call('HSET', KEYS[1], 'g', 'no JSON')",
        "redis.call('HSET', KEYS[1], 'p', 'no \\255 text')",
        "redis.call('HSET', KEYS[1], 'v', 'first')",
        "redis.call('HSET', KEYS[1], 't', 'long')",
        "redis.call('HDEL', KEYS[1], 'c')",
        "redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 'text')",
        "redis.call('DEL', KEYS[1]) redis.call('SADD', KEYS[1], 'a')",
    ];
    let mut bad = Vec::new();
    for damage in damages.iter().cycle().take(14) {
        let job = accepts.accepted("/charges/bad").await;
        let id = job.rsplit('/').next().unwrap();
        let key = server.cli(&["keys", &format!("*:j:{id}")]);
        assert_eq!(server.cli(&["eval", damage, "1", key.trim()]).trim(), "", "{damage}");
        bad.push(job);
    }
    let mut good = Vec::new();
    for _ in 0..100 {
        good.push(accepts.accepted("/charges/good").await);
    }
    let serves = Node::start(builder(), &hands, true).await;
    until("the others have begun", || hands.begun.load(SeqCst) == 100).await;
    for job in &good {
        assert_eq!(app::ended(&accepts.app, job).await["status"], "succeeded");
    }
    for job in &bad {
        let id = job.rsplit('/').next().unwrap().parse().unwrap();
        let record = serves.store.read(id, None).await.unwrap().unwrap();
        assert_eq!(record.failure(), Some(Failure::Corrupt));
        // Those whose owner cannot be read are nobody's.
        let answer = app::send(&serves.app, "GET", &format!("{job}/status")).await;
        let wanted = if record.owner().is_some() { 200 } else { 404 };
        assert_eq!(answer.status(), wanted, "{}", answer.body());
    }
    assert_eq!(hands.begun.load(SeqCst), 100);
    let given_up = serves.store.given_up(100).await.unwrap().jobs;
    assert_eq!(given_up.len(), bad.len());
    // The requests are kept with them, and so are the records.
    for kind in ["b", "u"] {
        let kept = server.cli(&["keys", &format!("*:{kind}:*")]);
        assert_eq!(kept.lines().count(), bad.len(), "{kind}: {kept}");
        for key in kept.lines() {
            assert_ne!(server.cli(&["pttl", key]).trim(), "-1", "{key} is kept for ever");
        }
    }
    // One whose policy and owner are known can be sent again.
    let is_known = |record: &&Record| record.policy().is_some() && record.owner().is_some();
    let again = given_up.iter().find(is_known).unwrap();
    let next = serves.store.send_again(again.id()).await.unwrap().unwrap();
    assert_eq!(app::ended(&serves.app, &format!("/jobs/{next}")).await["status"], "succeeded");
}

/// A job that is not durable, and whose record is damaged while it runs: its permit is free again.
#[tokio::test]
async fn a_job_whose_record_is_damaged_as_it_runs_holds_nothing() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let offload = Offload::builder("/jobs").store(store).max_running(1).build().unwrap();
    let app = Router::new()
        .route("/work", post(std::future::pending::<&str>))
        .layer(offload.layer(Policy::always().name("work")))
        .nest_service("/jobs", offload.status());
    let accepted = app::send(&app, "POST", "/work").await;
    let job = accepted.headers()[header::LOCATION].to_str().unwrap().to_owned();
    assert_eq!(app::send(&app, "POST", "/work").await.status(), 503);
    let key = server.cli(&["keys", "*:j:*"]);
    server.cli(&["hset", key.trim(), "b", "yesterday"]);
    let document = app::ended(&app, &job).await;
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:corrupt");
    until_async(async || app::send(&app, "POST", "/work").await.status() == 202).await;
}

/// While nothing runs, a worker that looks for jobs far away holds no permit.
#[tokio::test]
async fn an_idle_worker_costs_other_routes_nothing_where_redis_is_far() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port).await;
    let builder = RedisStore::builder(proxy.url()).prefix(fresh_prefix());
    let store = builder.timeout(Duration::from_secs(5)).connect().await.unwrap();
    let offload = Offload::builder("/jobs").store(store).max_running(1).build().unwrap();
    let table = Policies::otherwise(Policy::always().name("other"))
        .at("/durable", Policy::always().durable().name("work"));
    let app = Router::new()
        .route("/durable", post(async || "done"))
        .route("/other", post(async || "done"))
        .layer(offload.layer(table))
        .nest_service("/jobs", offload.status());
    offload.serve_durable::<_, Body, _>(app.clone());
    proxy.delay(Duration::from_millis(2));
    for _ in 0..50 {
        let accepted = app::send(&app, "POST", "/other").await;
        assert_eq!(accepted.status(), 202, "{}", accepted.body());
        let job = accepted.headers()[header::LOCATION].to_str().unwrap();
        app::ended(&app, job).await;
        until_async(async || offload.stats().await.unwrap().total().running == 0).await;
    }
}
