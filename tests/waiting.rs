//! `Prefer: wait` on a poll: the change itself ends it, its time does, or the bound on waiters; and
//! what a poll is answered while the store fails.

mod support;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, response::Response};
use futures_util::{
    StreamExt,
    future::{join_all, poll_fn},
    poll,
    stream::FuturesUnordered,
};
use http::Request;
use http_body_util::BodyExt;
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, gated},
    soon,
};
use tokio::{sync::watch, time::Instant};
use tower::{Service, ServiceExt};
use tower_offload::{
    Change, Digest, Error, ErrorKind, JobId, MemoryStore, Offload, OffloadBuilder, Policy, Record,
    StatusBody, StatusFuture, StatusService, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

// ------------------------------------------------------------------------ a store to look into

/// The store in memory, which says how many wait in it, and fails while it is told to.
#[derive(Clone)]
struct Probe {
    store: MemoryStore,
    waiting: watch::Sender<usize>,
    fails: Arc<AtomicBool>,
}

impl Probe {
    fn new() -> Self {
        let fails = Arc::default();
        Self { store: MemoryStore::new(1 << 30), waiting: watch::Sender::new(0), fails }
    }

    /// Resolves when so many wait for a change. The task of each job that runs is one of them.
    async fn until_waiting(&self, jobs: usize, polls: usize) {
        let mut waiting = self.waiting.subscribe();
        let reached = waiting.wait_for(|waiting| *waiting == jobs + polls);
        soon("the polls wait in the store", reached).await.unwrap();
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    fn ask<T>(&self, ask: impl FnOnce(&MemoryStore) -> StoreFuture<T>) -> StoreFuture<T> {
        match self.fails.load(Ordering::Relaxed) {
            false => ask(&self.store),
            true => StoreFuture::ready(Err(failure())),
        }
    }
}

fn failure() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "connection to secret.internal refused")
}

struct Waiting(watch::Sender<usize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Store for Probe {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.ask(|store| store.insert(record, outcome_bytes))
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.ask(|store| store.take_back(id))
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.ask(|store| store.read(id, owner))
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.ask(|store| store.fetch(id, owner))
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.ask(|store| store.change(id, change))
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.ask(|store| store.claimed(key))
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.ask(|store| store.usage())
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let waiting = Waiting(self.waiting.clone());
        let changed = self.ask(|store| store.changed(id, seen, interest));
        StoreFuture::new(async move {
            let _waiting = waiting;
            changed.await
        })
    }
}

/// An app over sockets, and its store.
struct Desk {
    server: Server,
    calls: Calls,
    store: Probe,
}

impl Desk {
    async fn new() -> Self {
        Self::with(Offload::builder("/jobs")).await
    }

    async fn with(builder: OffloadBuilder) -> Self {
        let store = Probe::new();
        let (app, calls) = app(&builder.store(store.clone()).build().unwrap());
        Self { server: Server::axum(app).await, calls, store }
    }

    async fn running(&mut self, client: &Client) -> (String, Call) {
        let accepted = client.post(&self.server, "/slow", "").await;
        (accepted.location().to_owned(), self.calls.next().await)
    }

    /// A poll of the job's URL in a task of its own.
    fn poll(&self, client: &Client, url: &str, prefer: &'static str) -> Asked {
        let request = self.server.request("GET", url).header("prefer", prefer);
        let client = client.clone();
        tokio::spawn(async move { soon("the poll is answered", client.send(request, "")).await })
    }
}

type Asked = tokio::task::JoinHandle<Answer>;

fn app(offload: &Offload) -> (Router, Calls) {
    let (gated, calls) = gated();
    let app = Router::new()
        .route("/slow", gated.route().layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status());
    (app, calls)
}

/// A job in process, by its path.
async fn start(app: &Router) -> String {
    let accepted = app.clone().oneshot(Request::post("/slow").body(Body::empty()).unwrap()).await;
    accepted.unwrap().headers()["location"].to_str().unwrap().to_owned()
}

fn ask(status: &StatusService, url: &str, prefer: &str) -> StatusFuture {
    status.clone().call(Request::get(url).header("prefer", prefer).body(()).unwrap())
}

const RESOURCES: [(&str, u16, u16); 3] =
    [("", 202, 303), ("/status", 200, 200), ("/result", 202, 201)];

// --------------------------------------------------------------------------- what ends a wait

#[tokio::test]
async fn the_change_itself_ends_a_wait() {
    for client in [Client::http1(), Client::http2()] {
        let mut desk = Desk::new().await;
        for (resource, _, at_the_end) in RESOURCES {
            let (job, call) = desk.running(&client).await;
            let poll = desk.poll(&client, &format!("{job}{resource}"), "wait=30");
            desk.store.until_waiting(1, 1).await;
            assert!(!poll.is_finished());
            call.answer((http::StatusCode::CREATED, "own"));
            let answer = poll.await.unwrap();
            assert_eq!(answer.status, at_the_end);
            match resource {
                "/result" => assert_eq!(answer.text(), "own"),
                _ => assert_eq!(answer.json()["status"], "succeeded"),
            }

            let (job, call) = desk.running(&client).await;
            let poll = desk.poll(&client, &format!("{job}{resource}"), "wait=30, respond-async");
            desk.store.until_waiting(1, 1).await;
            assert_eq!(client.delete(&desk.server, &job).await.status, 200);
            let answer = poll.await.unwrap();
            assert_eq!(answer.status, if resource == "/result" { 410 } else { at_the_end });
            call.gone().await;
        }
        desk.store.until_waiting(0, 0).await;
    }
}

#[tokio::test]
async fn head_waits_too() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let (job, call) = desk.running(&client).await;
    let request = desk.server.request("HEAD", &job).header("prefer", "wait=30");
    let poll = tokio::spawn(async move { client.send(request, "").await });
    desk.store.until_waiting(1, 1).await;
    call.answer(());
    let answer = soon("HEAD is answered", poll).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.header("location")),
        (303, &*format!("{job}/result"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_lasts_as_long_as_it_says_and_as_the_limit_allows() {
    for limit in [30, 5] {
        let max_wait = Duration::from_secs(limit);
        let offload = Offload::builder("/jobs").max_wait(max_wait).build().unwrap();
        let (app, mut calls) = app(&offload);
        let job = start(&app).await;
        let _call = calls.next().await;
        for (lines, seconds) in [
            (&["wait=1"][..], 1),
            (&["Wait = 3"], 3),
            (&["wait=\"2\""], 2),
            (&["return=minimal; x=\"wait=9\"", "foo, wait=2;y=z"], 2),
            (&["wait=2, wait=3", "wait=1"], 2),
            (&["wait=30"], 30),
            (&["wait=31"], 31),
            (&["wait=99999999999999999999999"], u64::MAX),
            (&["wait=0"], 0),
            (&["wait"], 0),
            (&["wait=-1"], 0),
            (&["wait=1.5"], 0),
            (&["wait=soon, wait=3"], 0),
            (&["respond-async"], 0),
            (&["x=\"wait=3"], 0),
            (&[""], 0),
            (&[], 0),
        ] {
            for (resource, running, _) in RESOURCES {
                let mut request = Request::get(format!("{job}{resource}"));
                for line in lines {
                    request = request.header("prefer", *line);
                }
                let started = Instant::now();
                let answer = offload.status().call(request.body(()).unwrap()).await.unwrap();
                assert_eq!(answer.status(), running, "a wait that runs out is no error");
                assert_eq!(answer.headers()["retry-after"], "1");
                // Timers are whole milliseconds, rounded up.
                let (waited, wanted) = (started.elapsed(), Duration::from_secs(seconds.min(limit)));
                assert!(
                    waited >= wanted && waited <= wanted + Duration::from_millis(2),
                    "{waited:?} for {lines:?} of at most {limit} s"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_or_is_not_there_is_answered_at_once() {
    let offload = Offload::new("/jobs");
    let (app, mut calls) = app(&offload);
    let status = offload.status();
    let ended = start(&app).await;
    calls.next().await.answer((http::StatusCode::CREATED, "own"));
    let broken = start(&app).await;
    calls.next().await.panic();
    for job in [&ended, &broken] {
        ask(&status, job, "wait=30").await.unwrap();
    }
    let delete = |url: String| status.clone().call(Request::delete(url).body(()).unwrap());
    let canceled = start(&app).await;
    assert_eq!(delete(canceled.clone()).await.unwrap().status(), 200);
    let removed = start(&app).await;
    for status in [200, 204] {
        assert_eq!(delete(format!("{removed}/result")).await.unwrap().status(), status);
    }

    let started = Instant::now();
    for (job, expected) in [
        (&ended, [303, 200, 201]),
        (&broken, [303, 200, 500]),
        (&canceled, [303, 200, 410]),
        (&removed, [410, 410, 410]),
        (&format!("/jobs/{:032x}", 9), [404, 404, 404]),
        (&"/jobs/nonsense".to_owned(), [404, 404, 404]),
    ] {
        for ((resource, ..), expected) in RESOURCES.into_iter().zip(expected) {
            let answer = ask(&status, &format!("{job}{resource}"), "wait=30").await.unwrap();
            assert_eq!(answer.status(), expected, "{job}{resource}");
        }
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

// ------------------------------------------------------------------------------------- many

#[tokio::test]
async fn ten_thousand_wait_for_one_job() {
    const WAITERS: usize = 10_000;
    let offload = Offload::new("/jobs");
    let (app, mut calls) = app(&offload);
    let status = offload.status();
    let job = start(&app).await;
    let call = calls.next().await;
    let mut polls: Vec<_> = (0..WAITERS).map(|_| ask(&status, &job, "wait=30")).collect();
    for waiting in &mut polls {
        assert!(poll!(waiting).is_pending());
    }
    call.answer(());
    let answers = soon("all are answered", join_all(polls)).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().status() == 303));
}

#[tokio::test]
async fn one_waits_for_each_of_ten_thousand_jobs() {
    const JOBS: usize = 10_000;
    let offload =
        Offload::builder("/jobs").max_running(JOBS).max_outcome_bytes(1024).build().unwrap();
    let (app, mut calls) = app(&offload);
    let status = offload.status();
    let polled = AtomicUsize::new(0);
    let mut waiting = FuturesUnordered::new();
    let mut running = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let job = start(&app).await;
        running.push(calls.next().await);
        let mut answer = ask(&status, &format!("{job}/status"), "wait=30");
        let polled = &polled;
        waiting.push(async move {
            let answer = poll_fn(|cx| {
                polled.fetch_add(1, Ordering::Relaxed);
                std::pin::Pin::new(&mut answer).poll(cx)
            });
            (number, answer.await.unwrap())
        });
    }
    assert!(poll!(waiting.next()).is_pending());
    assert_eq!(polled.load(Ordering::Relaxed), JOBS);

    // A job that ends wakes its own waiter, once, and no other.
    running.swap_remove(4711).answer(());
    let (number, answer) = soon("its waiter is answered", waiting.next()).await.unwrap();
    assert_eq!((number, answer.status().as_u16()), (4711, 200));
    assert_eq!(polled.load(Ordering::Relaxed), JOBS + 1);
    assert!(poll!(waiting.next()).is_pending());

    running.into_iter().for_each(|call| call.answer(()));
    let answers: Vec<_> = soon("all are answered", waiting.collect()).await;
    assert_eq!(answers.len(), JOBS - 1);
    for (_, answer) in answers {
        assert_eq!(document(answer).await["status"], "succeeded");
    }
}

async fn document(answer: Response<StatusBody>) -> serde_json::Value {
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn hundreds_wait_over_sockets() {
    let mut desk = Desk::new().await;
    let (http1, http2) = (Client::http1(), Client::http2());
    let (job, call) = desk.running(&http1).await;
    // One connection each, and 150 streams of one connection.
    let polls: Vec<_> = std::iter::repeat_n(&http1, 250)
        .chain(std::iter::repeat_n(&http2, 150))
        .map(|client| desk.poll(client, &job, "wait=30"))
        .collect();
    desk.store.until_waiting(1, 400).await;
    call.answer(());
    for poll in polls {
        assert_eq!(poll.await.unwrap().status, 303);
    }
    desk.store.until_waiting(0, 0).await;
}

// ------------------------------------------------------------------------ the bound on waiters

#[tokio::test]
async fn past_the_bound_a_poll_is_answered_at_once() {
    let mut desk = Desk::with(Offload::builder("/jobs").max_waiters(2)).await;
    let client = Client::http1();
    for _ in 0..2 {
        let (job, call) = desk.running(&client).await;
        let waiting = [desk.poll(&client, &job, "wait=30"), desk.poll(&client, &job, "wait=30")];
        desk.store.until_waiting(1, 2).await;
        for (resource, running, _) in RESOURCES {
            let answer = desk.poll(&client, &format!("{job}{resource}"), "wait=30").await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), &answer.json()["status"]),
                (running, &"running".into())
            );
            assert_eq!(answer.header("retry-after"), "1");
        }
        assert!(waiting.iter().all(|poll| !poll.is_finished()));
        call.answer(());
        for poll in waiting {
            assert_eq!(poll.await.unwrap().status, 303);
        }
        // Their places are free again, for another round.
        desk.store.until_waiting(0, 0).await;
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_gives_its_place_back() {
    let mut desk = Desk::with(Offload::builder("/jobs").max_waiters(1)).await;
    let (http1, http2) = (Client::http1(), Client::http2());
    let (job, _call) = desk.running(&http1).await;
    for _ in 0..3 {
        // A client that closes its connection.
        let mut leaves = desk.server.connect().await;
        leaves.write(format!("GET {job} HTTP/1.1\r\nhost: x\r\nprefer: wait=30\r\n\r\n")).await;
        desk.store.until_waiting(1, 1).await;
        assert_eq!(desk.poll(&http1, &job, "wait=30").await.unwrap().status, 202);
        drop(leaves);
        desk.store.until_waiting(1, 0).await;

        // One that resets its stream.
        let resets = desk.poll(&http2, &job, "wait=30");
        desk.store.until_waiting(1, 1).await;
        resets.abort();
        desk.store.until_waiting(1, 0).await;
    }
}

// --------------------------------------------------------------------------- a store that fails

#[tokio::test]
async fn a_store_that_fails_is_a_503_and_never_a_404() {
    for client in [Client::http1(), Client::http2()] {
        let mut desk = Desk::new().await;
        let (running, call) = desk.running(&client).await;
        let (ended, other) = desk.running(&client).await;
        other.answer((http::StatusCode::CREATED, "own"));
        client.ended(&desk.server, &ended).await;
        let unknown = format!("/jobs/{:032x}", 5);

        desk.store.fail(true);
        for job in [&running, &ended, &unknown] {
            for (method, resource) in [
                ("GET", ""),
                ("GET", "/status"),
                ("GET", "/result"),
                ("HEAD", ""),
                ("HEAD", "/status"),
                ("HEAD", "/result"),
                ("DELETE", ""),
                ("DELETE", "/result"),
            ] {
                for prefer in ["", "wait=30"] {
                    let request = desk.server.request(method, &format!("{job}{resource}"));
                    let answer = client.send(request.header("prefer", prefer), "");
                    is_unavailable(&soon("a failure is told", answer).await, method);
                }
            }
        }
        // What asks nothing of the store is answered.
        assert_eq!(client.get(&desk.server, "/jobs/nonsense").await.status, 404);
        let options = desk.server.request("OPTIONS", &running);
        assert_eq!(client.send(options, "").await.status, 204);
        // And a route that must be a job is refused, not lost.
        is_unavailable(&client.post(&desk.server, "/slow", "").await, "POST");
        assert!(desk.calls.is_empty());

        desk.store.fail(false);
        assert_eq!(client.get(&desk.server, &ended).await.status, 303);
        assert_eq!(client.get(&desk.server, &unknown).await.status, 404);
        call.answer("still there");
        client.ended(&desk.server, &running).await;
        let result = client.get(&desk.server, &format!("{running}/result")).await;
        assert_eq!(result.text(), "still there");
    }
}

#[tokio::test]
async fn a_store_that_fails_while_a_poll_waits() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let (job, call) = desk.running(&client).await;
    let poll = desk.poll(&client, &job, "wait=30");
    desk.store.until_waiting(1, 1).await;
    // The change wakes the poll, which then cannot read what it was.
    let id: JobId = job.trim_start_matches("/jobs/").parse().unwrap();
    desk.store.fail(true);
    assert!(matches!(desk.store.store.change(id, Change::Cancel).await, Ok(Changed::Applied(_))));
    is_unavailable(&poll.await.unwrap(), "GET");
    desk.store.fail(false);
    assert_eq!(client.ended(&desk.server, &job).await["status"], "canceled");
    call.gone().await;
}

fn is_unavailable(answer: &Answer, method: &str) {
    assert_eq!(answer.status, 503, "{answer:#?}");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    if method != "HEAD" {
        assert_eq!(answer.json()["type"], "urn:tower-offload:problem:store-unavailable");
        assert!(!answer.text().contains("secret"), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_poll_whose_future_was_dropped_leaves_nothing_behind() {
    let store = Probe::new();
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let (app, mut calls) = app(&offload);
    let job = start(&app).await;
    let call = calls.next().await;
    store.until_waiting(1, 0).await;
    for _ in 0..1000 {
        let mut polled = pin!(ask(&offload.status(), &job, "wait=30"));
        assert!(matches!(poll!(&mut polled), Poll::Pending));
        assert_eq!(*store.waiting.borrow(), 2);
    }
    store.until_waiting(1, 0).await;
    call.answer(());
    assert_eq!(ask(&offload.status(), &job, "wait=30").await.unwrap().status(), 303);
}
