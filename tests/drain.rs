//! Shutdown: what runs may finish until a deadline, what does not is told to be interrupted, and
//! whoever waits is let go.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, body::Body};
use desk::{Boxed, Held, Insert, ended, failed, get, job, send, service};
use http::{Request, Response, request::Parts};
use support::{
    Client,
    gated::{Calls, gated},
    soon,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_offload::{Drained, MemoryStore, Offload, OffloadBuilder, Owner, Policy};

const BUDGET: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

async fn accepted(offload: &Offload, handler: Boxed) -> String {
    job(&send(offload, Policy::after(BUDGET), handler).await)
}

fn report(drained: Drained) -> (usize, usize) {
    (drained.finished(), drained.interrupted())
}

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

// ------------------------------------------------------------------------------- what is taken on

/// One route whose handler the test holds: all its requests share a queue.
fn route(offload: &Offload, policy: Policy) -> (Boxed, Calls) {
    let (gated, calls) = gated();
    let handler = tower::service_fn(move |request| {
        let gated = gated.clone();
        async move { Ok(gated.run(request).await) }
    });
    (BoxCloneSyncService::new(offload.layer(policy).boxed().layer(handler)), calls)
}

fn request(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn ask(route: &Boxed, headers: &[(&str, &str)]) -> Response<Body> {
    route.clone().oneshot(request(headers)).await.unwrap()
}

fn owned(path: &str) -> OffloadBuilder {
    let everyone = |_: &Parts| Some(Owner::from(http::HeaderValue::from_static("everyone")));
    Offload::builder(path).owner(everyone)
}

#[tokio::test(start_paused = true)]
async fn new_work_stays_attached_or_is_refused() {
    let offload = owned("/jobs").build().unwrap();
    endless(&offload).await;
    let mut drain = std::pin::pin!(offload.drain(LONG));
    timeout(BUDGET, drain.as_mut()).await.unwrap_err();
    for (policy, key) in [
        (Policy::always(), None),
        (Policy::always().queue(5), None),
        (Policy::always().idempotent(), Some("k")),
        (Policy::after(BUDGET).idempotent(), Some("k")),
        (Policy::after(BUDGET).queue(5).idempotency_required(), Some("k")),
    ] {
        let (route, mut calls) = route(&offload, policy);
        let headers = key.map(|key| ("idempotency-key", key));
        let refused = ask(&route, headers.as_slice()).await;
        assert_eq!(
            (refused.status(), &refused.headers()["retry-after"]),
            (503.try_into().unwrap(), &"1".parse().unwrap())
        );
        let body = axum::body::to_bytes(refused.into_body(), 1000).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(problem["type"].as_str().unwrap().ends_with("shutting-down"), "{problem}");
        assert!(calls.is_empty());
    }
    let (route, mut calls) = route(&offload, Policy::after(BUDGET));
    let attached = tokio::spawn(async move { ask(&route, &[]).await.status() });
    let call = calls.next().await;
    sleep(BUDGET * 4).await;
    call.answer("attached");
    assert_eq!(attached.await.unwrap(), 200);
    assert_eq!(offload.stats().await.unwrap().total().refused, 6);
    assert_eq!(report(drain.await), (0, 1));
}

/// One job that never ends.
async fn endless(offload: &Offload) -> String {
    job(&send(offload, Policy::always(), service(pending::<()>)).await)
}

#[tokio::test(start_paused = true)]
async fn queued_jobs_are_begun_and_finish_while_there_is_time() {
    let offload = Offload::new("/jobs");
    let (route, mut calls) = route(&offload, Policy::always().concurrency(1).queue(5));
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(job(&ask(&route, &[]).await));
    }
    let drain = tokio::spawn(offload.drain(LONG));
    let start = Instant::now();
    for _ in 0..3 {
        let call = calls.next().await;
        sleep(BUDGET).await;
        call.answer("as promised");
    }
    assert_eq!(report(drain.await.unwrap()), (3, 0));
    assert_eq!(start.elapsed(), BUDGET * 3);
    for job in jobs {
        assert_eq!(get(&offload, &format!("{job}/result")).await.body(), "as promised");
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_queued_jobs_are_interrupted_and_never_begun() {
    let offload = Offload::new("/jobs");
    let (route, mut calls) = route(&offload, Policy::always().concurrency(1).queue(5));
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(job(&ask(&route, &[]).await));
    }
    calls.next().await.answer("before it began");
    assert_eq!(ended(&offload, &jobs[0]).await["status"], "succeeded");
    let running = calls.next().await;
    assert_eq!(report(offload.drain(BUDGET).await), (0, 3));
    running.gone().await;
    for job in &jobs[1..] {
        failed(&offload, job, 503, "interrupted").await;
    }
    while offload.stats().await.unwrap().total().running > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(offload.stats().await.unwrap().total().queued, 0);
    assert!(calls.is_empty());
}

// ---------------------------------------------------------------------------------------- who waits

/// Their jobs go on elsewhere; their connections would keep this server from closing.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_job_of_another_node_is_let_go_at_the_end() {
    let store = MemoryStore::new(1 << 30);
    let [here, there] = [0, 1].map(|_| owned("/jobs").store(store.clone()).build().unwrap());
    let policy = Policy::after(LONG * 10).idempotent();
    let keyed: &[_] = &[("idempotency-key", "k")];
    let (route_there, mut calls) = route(&there, policy.clone());
    let client = tokio::spawn(async move { ask(&route_there, keyed).await.status() });
    let call = calls.next().await;
    // The same request once more, sent here; a poll; and another for its result.
    let (route_here, mut none) = route(&here, policy);
    let again = tokio::spawn(async move { job(&ask(&route_here, keyed).await) });
    let elsewhere = endless(&there).await;
    let polls = ["", "/status", "/result"].map(|resource| {
        let (here, path) = (here.clone(), format!("{elsewhere}{resource}"));
        tokio::spawn(async move {
            let get = Request::get(&path).header("prefer", "wait=30");
            here.status().oneshot(get.body(()).unwrap()).await.unwrap().status().as_u16()
        })
    });
    tokio::task::yield_now().await;
    let own = endless(&here).await;
    let start = Instant::now();
    assert_eq!(report(here.drain(BUDGET).linger(BUDGET).await), (0, 1));
    failed(&here, &own, 503, "interrupted").await;
    let again = again.await.unwrap();
    for poll in polls {
        assert!(matches!(poll.await.unwrap(), 200 | 202));
    }
    assert_eq!(start.elapsed(), BUDGET * 2);
    assert!(none.is_empty());
    // Nothing of that was any affair of the other node's.
    assert_eq!(there.stats().await.unwrap().total().running, 2);
    call.answer("from there");
    assert_eq!(client.await.unwrap(), 200);
    assert_eq!(get(&there, &format!("{again}/result")).await.body(), "from there");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_keyed_job_is_told_that_it_was_interrupted() {
    let offload = owned("/jobs").build().unwrap();
    let (route, mut calls) = route(&offload, Policy::after(LONG).idempotent());
    let client = tokio::spawn(async move { ask(&route, &[("idempotency-key", "k")]).await });
    let call = calls.next().await;
    assert_eq!(report(offload.drain(BUDGET).await), (0, 1));
    call.gone().await;
    assert_eq!(client.await.unwrap().status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_lets_nobody_go() {
    let offload = Offload::new("/jobs");
    let job = accepted(&offload, service(|| sleep(BUDGET * 10))).await;
    let waits = tokio::spawn({
        let offload = offload.clone();
        async move { ended(&offload, &job).await["status"].clone() }
    });
    timeout(BUDGET, offload.drain(BUDGET * 2)).await.unwrap_err();
    sleep(BUDGET * 5).await;
    assert!(!waits.is_finished());
    assert_eq!(waits.await.unwrap(), "succeeded");
}

// ------------------------------------------------------------------------------------------- linger

#[tokio::test(start_paused = true)]
async fn it_lingers_once_all_has_ended_and_no_longer() {
    for (takes, deadline, lasts) in [(4, 10, 4 + 3), (40, 10, 10 + 3)] {
        let offload = Offload::new("/jobs");
        let job = accepted(&offload, service(move || sleep(BUDGET * takes + BUDGET))).await;
        let start = Instant::now();
        let drain = tokio::spawn(offload.drain(BUDGET * deadline).linger(BUDGET * 3));
        let document = ended(&offload, &job).await;
        assert_eq!(document["status"] == "succeeded", takes < deadline);
        assert_eq!(start.elapsed(), BUDGET * takes.min(deadline), "told at once");
        drain.await.unwrap();
        assert_eq!(start.elapsed(), BUDGET * lasts);
    }
}

#[tokio::test]
async fn outcomes_are_fetched_while_it_lingers_and_then_the_server_closes() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let app = Router::new()
        .route("/", gated.route().layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (signal, signaled) = oneshot::channel::<()>();
    let drain = offload.clone();
    let served = tokio::spawn(async move {
        let shutdown = async move {
            signaled.await.unwrap();
            drain.drain(LONG).linger(Duration::from_secs(2)).await;
        };
        axum::serve(listener, app).with_graceful_shutdown(shutdown).await.unwrap();
    });
    let client = Client::http1();
    let [first, second] =
        [(); 2].map(|()| client.send(Request::post(format!("http://{addr}/")), ""));
    let (first, second) = (first.await, second.await);
    signal.send(()).unwrap();
    for _ in 0..2 {
        calls.next().await.answer("as promised");
    }
    for accepted in [&first, &second] {
        // On new connections too, after the last job has ended.
        let client = Client::http1();
        let path = format!("http://{addr}{}/result", accepted.location());
        let result = client.send(Request::get(path).header("prefer", "wait=30"), "").await;
        assert_eq!((result.status.as_u16(), result.text()), (200, "as promised"));
    }
    assert!(!served.is_finished());
    soon("the server closes", served).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

// ------------------------------------------------------------------------------------------- reports

#[tokio::test(start_paused = true)]
async fn a_report_is_exact_whatever_becomes_of_each() {
    let offload = Offload::builder("/jobs").max_running(100).build().unwrap();
    let after = || Policy::after(BUDGET);
    // Ended before: no affair of the drain.
    let before = accepted(&offload, service(|| sleep(BUDGET * 2))).await;
    ended(&offload, &before).await;
    // Three finish, one panics, one runs out of time, one is canceled: six ends.
    for takes in [30, 50, 70] {
        accepted(&offload, service(move || sleep(BUDGET * takes))).await;
    }
    let panics = service(|| async {
        sleep(BUDGET * 40).await;
        panic!("told to") as ()
    });
    accepted(&offload, panics).await;
    job(&send(&offload, after().timeout(BUDGET * 40), service(pending::<()>)).await);
    let canceled = accepted(&offload, service(pending::<()>)).await;
    // One runs and two are in its queue, and none of them ends.
    let (route, _calls) = route(&offload, Policy::always().concurrency(1).queue(5));
    for _ in 0..3 {
        job(&ask(&route, &[]).await);
    }
    // Clients that have left: one handler finishes, two do not.
    for takes in [30, 1000, 1000] {
        let policy = after().finish_on_disconnect();
        let left = send(&offload, policy, service(move || sleep(BUDGET * takes)));
        timeout(BUDGET / 2, left).await.unwrap_err();
    }
    let mut drain = std::pin::pin!(offload.drain(BUDGET * 200));
    timeout(BUDGET, drain.as_mut()).await.unwrap_err();
    let delete = Request::delete(&canceled).body(()).unwrap();
    assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    assert_eq!(report(drain.await), (6 + 1, 3 + 2));
}

/// Nobody knows what became of those jobs, so they count as neither; work without a job needs no
/// store.
#[tokio::test(start_paused = true)]
async fn a_report_says_only_what_the_store_has_said() {
    let store = Held::new(Insert::Works);
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let job = accepted(&offload, service(pending::<()>)).await;
    let policy = Policy::after(LONG).finish_on_disconnect();
    timeout(BUDGET, send(&offload, policy, service(pending::<()>))).await.unwrap_err();
    store.changes_take(Duration::from_secs(10));
    let start = Instant::now();
    assert_eq!(report(offload.drain(BUDGET).await), (0, 1));
    assert_eq!(start.elapsed(), BUDGET + Duration::from_secs(1));
    // What the store was asked for is still written, and then it is known.
    sleep(Duration::from_secs(10)).await;
    failed(&offload, &job, 503, "interrupted").await;
    assert_eq!(report(offload.drain(LONG).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn two_drains_at_once_tell_the_same() {
    for (first, second) in [(10, 10), (10, 2), (2, 10)] {
        let offload = Offload::new("/jobs");
        accepted(&offload, service(|| sleep(BUDGET * 2))).await;
        for _ in 0..2 {
            accepted(&offload, service(pending::<()>)).await;
        }
        let policy = Policy::after(LONG).finish_on_disconnect();
        timeout(BUDGET, send(&offload, policy, service(pending::<()>))).await.unwrap_err();
        let start = Instant::now();
        let drain = |deadline| offload.drain(BUDGET * deadline);
        let both = tokio::join!(drain(first), drain(second));
        // The one that is over first ends it for both: a second, shorter one hurries.
        assert_eq!(start.elapsed(), BUDGET * first.min(second));
        let told = report(both.0);
        assert_eq!((told.1, report(both.1)), (3, told));
        assert_eq!(report(offload.drain(LONG).await), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_drained_before_it_is_awaited() {
    let offload = Offload::new("/jobs");
    // It is `Unpin` and `Send`: fit for `select!`, and for a task of its own.
    let mut drain = offload.drain(LONG);
    accepted(&offload, service(|| sleep(BUDGET * 2))).await;
    tokio::select! {
        biased;
        _ = &mut drain => panic!("a job runs"),
        () = sleep(Duration::ZERO) => {}
    }
    assert_eq!(send(&offload, Policy::always(), service(pending::<()>)).await.status(), 503);
    assert_eq!(report(tokio::spawn(drain).await.unwrap()), (1, 0));
}
