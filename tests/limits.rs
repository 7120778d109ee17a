//! Each limit at its bound: what still fits, what no longer does, what the client is told of it, and
//! that a setting that cannot work is refused by its name.

#[path = "support/durable.rs"]
mod durable;
mod support;

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use bytes::Bytes;
use durable::DurableStore;
use futures_util::{StreamExt, future, poll, stream};
use http::{HeaderMap, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, Gated, gated},
    soon,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};
use tower_offload::{
    ErrorKind, MemoryStore, Offload, OffloadBuilder, Outcome, Policies, Policy, StatusService,
};

// ------------------------------------------------------------------------------ a server to ask

struct Desk {
    server: Server,
    calls: Calls,
    offload: Offload,
}

fn builder() -> OffloadBuilder {
    Offload::builder("/jobs")
}

/// Routes of each kind: `/after` waits for a preference, so that tests need not wait for a budget.
fn app(offload: &Offload) -> (Router, Calls) {
    let (gated, calls) = gated();
    let route = |policy| gated.route().layer(offload.layer(policy));
    let lazy = {
        let gated = gated.clone();
        any(move |request: Request| lazy(gated.clone(), request))
    };
    let app = Router::new()
        .route("/always", route(Policy::always()))
        .route("/after", route(Policy::after(Duration::from_secs(3600))))
        .route("/budget", route(Policy::after(Duration::from_millis(10))))
        .route("/queue", route(Policy::always().concurrency(1).queue(100)))
        .route("/lazy", lazy.layer(offload.layer(Policy::after(Duration::from_secs(3600)))))
        .nest_service("/jobs", offload.status());
    (app, calls)
}

/// Leaves its body unread until the test says to go on, then answers with its length.
async fn lazy(gated: Gated, request: Request) -> String {
    let (head, body) = request.into_parts();
    gated.run(Request::from_parts(head, Body::empty())).await;
    body.collect().await.unwrap().to_bytes().len().to_string()
}

impl Desk {
    async fn new(builder: OffloadBuilder) -> Self {
        let offload = builder.build().unwrap();
        let (app, calls) = app(&offload);
        Self { server: Server::axum(app).await, calls, offload }
    }

    /// A request that prefers to become a job.
    async fn eager(&self, client: &Client, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.server.request("POST", path).header("prefer", "respond-async");
        soon("an answer", client.send(request, body)).await
    }

    async fn running(&mut self, client: &Client) -> (String, Call) {
        let accepted = client.post(&self.server, "/always", "").await;
        (accepted.location().to_owned(), self.calls.next().await)
    }

    /// A job that ended with this response; what its status and its result say.
    async fn ended(&mut self, client: &Client, response: Response) -> (serde_json::Value, Answer) {
        let (job, call) = self.running(client).await;
        call.answer(response);
        let document = soon("the job ends", client.ended(&self.server, &job)).await;
        (document, client.get(&self.server, &format!("{job}/result")).await)
    }

    /// No further job is taken: `always` is refused without its handler begun, and `after` is
    /// answered as if there were no layer.
    async fn takes_no_job(&mut self, client: &Client, kind: &str, limit: Option<&str>) {
        for body in ["", "body"] {
            for refused in [
                client.post(&self.server, "/always", body).await,
                self.eager(client, "/always", body).await,
            ] {
                assert_eq!(refused.status, 503, "{refused:#?}");
                assert_eq!(refused.header("retry-after"), "1");
                assert_eq!(refused.header("cache-control"), "no-store");
                assert_eq!(refused.header("content-type"), "application/problem+json");
                let problem = refused.json();
                assert_eq!(problem["type"], format!("urn:tower-offload:problem:{kind}"));
                assert_eq!((&problem["status"], problem["limit"].as_str()), (&503.into(), limit));
            }
            assert!(self.calls.is_empty(), "nothing of it was begun");

            let answered = async {
                let call = self.calls.next().await;
                assert_eq!(call.body, body);
                call.answer((StatusCode::CREATED, "own"));
            };
            let request = self.server.request("POST", "/after").header("prefer", "respond-async");
            let (answer, ()) = future::join(client.send(request, body), answered).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (201, "own"));
            assert_eq!(answer.find_header("preference-applied"), None);
        }
    }
}

fn clients() -> [Client; 2] {
    [Client::http1(), Client::http2()]
}

// --------------------------------------------------------------------------------- running jobs

#[tokio::test]
async fn max_running() {
    for client in clients() {
        let mut desk = Desk::new(builder().max_running(2)).await;
        let (canceled, first) = desk.running(&client).await;
        // A request that may become a job takes a place as well as one that must.
        let accepted = desk.eager(&client, "/after", "").await;
        let second = desk.calls.next().await;
        desk.takes_no_job(&client, "limit-reached", Some("max_running")).await;

        // A place is free when the handler is really gone.
        assert_eq!(client.delete(&desk.server, &canceled).await.status, 200);
        first.gone().await;
        let (_, _third) = desk.running(&client).await;
        desk.takes_no_job(&client, "limit-reached", Some("max_running")).await;

        second.answer(());
        client.ended(&desk.server, accepted.location()).await;
        let (_, _fourth) = desk.running(&client).await;
        desk.takes_no_job(&client, "limit-reached", Some("max_running")).await;
    }
}

#[tokio::test]
async fn a_budget_that_runs_out_while_there_is_no_place() {
    let client = Client::http1();
    let mut full = Desk::new(builder().max_running(1)).await;
    let mut other = Desk::new(builder()).await;
    let (_, _call) = full.running(&client).await;
    let attached = tokio::spawn({
        let (client, request) = (client.clone(), full.server.request("POST", "/budget"));
        async move { client.send(request, "").await }
    });
    let call = full.calls.next().await;
    // The same budget runs out elsewhere, and once more: then it has here too.
    for _ in 0..2 {
        assert_eq!(client.post(&other.server, "/budget", "").await.status, 202);
        other.calls.next().await.answer(());
    }
    assert!(!attached.is_finished() && !call.is_gone());
    call.answer("own");
    let answer = soon("it is answered by its handler", attached).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "own"));
}

// ------------------------------------------------------------------------------ bytes in the store

/// What a job counts with beside its outcome, as the builder documents it.
const JOB_BYTES: usize = 1024;

#[tokio::test]
async fn max_stored_bytes() {
    const OUTCOME: usize = 4000;
    const JOB: usize = OUTCOME + JOB_BYTES;
    for client in clients() {
        for (bytes, jobs) in [(3 * JOB, 3), (3 * JOB - 1, 2)] {
            let limits = builder().max_outcome_bytes(OUTCOME).max_stored_bytes(bytes);
            let mut desk = Desk::new(limits).await;
            let mut running = Vec::new();
            for _ in 0..jobs {
                running.push(desk.running(&client).await);
            }
            desk.takes_no_job(&client, "limit-reached", Some("max_stored_bytes")).await;

            // With a small outcome, what was kept free for a large one is free for others. An ended
            // job still counts with itself, so two have to end where all was in use.
            for _ in 0..jobs - 1 {
                let (job, call) = running.remove(0);
                call.answer(());
                client.ended(&desk.server, &job).await;
            }
            let (_, _call) = desk.running(&client).await;
            desk.takes_no_job(&client, "limit-reached", Some("max_stored_bytes")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_store_takes_jobs_again_when_some_have_expired() {
    let ttl = Duration::from_secs(60);
    let limits = builder().max_outcome_bytes(1000).max_stored_bytes(1000 + JOB_BYTES).ttl(ttl);
    let offload = limits.build().unwrap();
    let (app, mut calls) = app(&offload);
    let post = async || {
        let request = Request::post("/always").body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    let accepted = post().await;
    let job = accepted.headers()["location"].to_str().unwrap();
    calls.next().await.answer(());
    assert_eq!(get(&offload.status(), job, "wait=30").await, 303);
    // What has ended is kept as long as it was promised, whoever needs the room.
    tokio::time::advance(ttl - Duration::from_millis(1)).await;
    assert_eq!(post().await.status(), 503);
    assert_eq!(get(&offload.status(), job, "").await, 303);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(get(&offload.status(), job, "").await, 404);
    assert_eq!(post().await.status(), 202);
}

async fn get(status: &StatusService, url: &str, prefer: &str) -> u16 {
    let request = Request::get(url).header("prefer", prefer).body(()).unwrap();
    status.clone().call(request).await.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_job_is_kept_for_its_ttl_after_its_end() {
    const S: Duration = Duration::from_secs(1);
    let offload = builder().ttl(20 * S).build().unwrap();
    let status = offload.status();
    for (policy, ttl) in [(Policy::always(), 20 * S), (Policy::always().ttl(7 * S), 7 * S)] {
        let (gated, mut calls) = gated();
        let app = Router::new().route("/", gated.route().layer(offload.layer(policy)));
        for removes in [false, true] {
            let request = Request::post("/").body(Body::empty()).unwrap();
            let accepted = app.clone().oneshot(request).await.unwrap();
            let job = accepted.headers()["location"].to_str().unwrap();
            // It is there for as long as it runs, its TTL or not.
            tokio::time::sleep(2 * ttl).await;
            assert_eq!(get(&status, job, "").await, 202);
            calls.next().await.answer(());
            assert_eq!(get(&status, job, "wait=30").await, 303);
            let ended = Instant::now();
            let mut kept = 303;
            if removes {
                let request = Request::delete(format!("{job}/result")).body(()).unwrap();
                assert_eq!(status.clone().call(request).await.unwrap().status(), 204);
                kept = 410;
            }
            tokio::time::sleep_until(ended + ttl - 2 * S).await;
            assert_eq!(get(&status, job, "").await, kept);
            tokio::time::sleep_until(ended + ttl + Duration::from_millis(2)).await;
            assert_eq!(get(&status, job, "").await, 404);
        }
    }
}

// --------------------------------------------------------------------------------- one outcome

/// A limit that a bare response with a body of 1,000 bytes reaches.
fn limit() -> usize {
    let head = http::Response::new(()).into_parts().0;
    Outcome::new(&head, &[0; 1000], None).as_bytes().len()
}

fn is_too_large((document, result): (serde_json::Value, Answer)) {
    assert_eq!((&document["status"], &document["response_status"]), (&"failed".into(), &().into()));
    assert_eq!(result.status, 500);
    assert_eq!(result.json()["type"], "urn:tower-offload:problem:outcome-too-large");
    assert_eq!(document["error"], result.json());
}

#[tokio::test]
async fn max_outcome_bytes() {
    for client in clients() {
        let mut desk = Desk::new(builder().max_outcome_bytes(limit())).await;
        let whole = |len: usize| Response::new(Body::from(vec![b'x'; len]));
        let bytewise = |len: usize| {
            let bytes = stream::iter(vec![Ok::<_, Infallible>(Bytes::from_static(b"x")); len]);
            Response::new(Body::from_stream(bytes))
        };
        for fits in [whole(1000), bytewise(1000)] {
            let (document, result) = desk.ended(&client, fits).await;
            assert_eq!((&document["status"], result.body.len()), (&"succeeded".into(), 1000));
        }
        is_too_large(desk.ended(&client, whole(1001)).await);
        is_too_large(desk.ended(&client, bytewise(1001)).await);
    }
}

#[tokio::test]
async fn head_and_trailers_count_as_an_outcome_too() {
    let client = Client::http1();
    let sum = HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())]);
    let response = || {
        let data = Full::new(Bytes::from(vec![b'x'; 1000]));
        let trailers = future::ready(Some(Ok::<_, Infallible>(sum.clone())));
        let mut response = Response::new(Body::new(data.with_trailers(trailers)));
        response.headers_mut().insert("x", "y".parse().unwrap());
        response
    };
    let (head, _) = response().into_parts();
    let exact = Outcome::new(&head, &[b'x'; 1000], Some(&sum)).as_bytes().len();
    let mut desk = Desk::new(builder().max_outcome_bytes(exact)).await;
    let (document, _) = desk.ended(&client, response()).await;
    assert_eq!(document["status"], "succeeded");
    let mut desk = Desk::new(builder().max_outcome_bytes(exact - 1)).await;
    is_too_large(desk.ended(&client, response()).await);
}

/// A body without end and without bytes, which is always ready.
struct Restless;

impl http_body::Body for Restless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }
}

/// Uses up its task's budget in every poll, as a handler does that reads from a channel that is
/// never empty.
async fn restless() {
    loop {
        tokio::task::coop::consume_budget().await;
    }
}

#[tokio::test]
async fn a_handler_that_never_rests_is_detached_and_ended_all_the_same() {
    let offload = builder().max_run_time(Duration::from_millis(300)).build().unwrap();
    let layer = |policy| any(restless).layer(offload.layer(policy));
    let app = Router::new()
        .route("/always", layer(Policy::always()))
        .route("/after", layer(Policy::after(Duration::from_millis(10))))
        .nest_service("/jobs", offload.status());
    let server = Server::axum(app).await;
    let client = Client::http1();
    for path in ["/always", "/after"] {
        let accepted = soon("a 202", client.post(&server, path, "")).await;
        let document = soon("its time is over", client.ended(&server, accepted.location())).await;
        assert_eq!(document["error"]["status"], 504);
        let accepted = soon("a 202", client.post(&server, path, "")).await;
        client.delete(&server, accepted.location()).await;
    }
    // Canceled, too, they are gone: the drain has nothing to wait for.
    soon("the last is dropped", offload.drain(Duration::from_secs(3600))).await;
}

#[tokio::test]
async fn a_body_that_is_always_ready_does_not_keep_its_thread() {
    let client = Client::http1();
    let mut desk = Desk::new(builder().max_run_time(Duration::from_millis(50))).await;
    let (document, answer) = desk.ended(&client, Response::new(Body::new(Restless))).await;
    assert_eq!((document["status"].as_str(), answer.status.as_u16()), (Some("failed"), 504));
}

#[tokio::test]
async fn an_endless_body_is_cut_off_at_the_limit() {
    for client in clients() {
        let mut desk = Desk::new(builder().max_outcome_bytes(100_000)).await;
        let (dropped, is_dropped) = oneshot::channel::<()>();
        let endless = stream::repeat_with(move || {
            let _held = &dropped;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1000]))
        });
        is_too_large(desk.ended(&client, Response::new(Body::from_stream(endless))).await);
        assert!(soon("the stream is dropped", is_dropped).await.is_err());
    }
}

/// A body that says beforehand how long it is.
struct Announced(u64);

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("it is known to be too large, and read all the same");
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn what_is_known_to_be_too_large_is_not_read() {
    let client = Client::http1();
    let mut desk = Desk::new(builder().max_outcome_bytes(limit())).await;
    for len in [1001, 1 << 40, u64::MAX] {
        let known = Response::new(Body::new(Announced(len)));
        is_too_large(desk.ended(&client, known).await);
    }
}

// ------------------------------------------------------------------------------------ run time

#[tokio::test(start_paused = true)]
async fn max_run_time_and_the_time_of_a_policy() {
    const S: Duration = Duration::from_secs(1);
    for (limit, policy, run_time) in [
        (None, Policy::always(), 3600 * S),
        (Some(5 * S), Policy::always(), 5 * S),
        (Some(5 * S), Policy::always().timeout(2 * S), 2 * S),
        (Some(5 * S), Policy::always().timeout(9 * S), 5 * S),
        // Counted from the 202, which comes after the budget.
        (Some(5 * S), Policy::after(3 * S), 5 * S),
        (None, Policy::after(3 * S).timeout(S), S),
    ] {
        let builder = limit.map_or(builder(), |limit| builder().max_run_time(limit));
        let offload = builder.build().unwrap();
        let (gated, mut calls) = gated();
        let app = Router::new().route("/", gated.route().layer(offload.layer(policy)));
        let request = Request::post("/").body(Body::empty()).unwrap();
        let accepted = app.oneshot(request).await.unwrap();
        assert_eq!(accepted.status(), 202);
        let since = Instant::now();
        let job = accepted.headers()["location"].to_str().unwrap();
        let call = calls.next().await;

        tokio::time::sleep_until(since + run_time - Duration::from_millis(2)).await;
        assert_eq!(get(&offload.status(), job, "").await, 202);
        assert!(!call.is_gone());
        assert_eq!(get(&offload.status(), job, "wait=1").await, 303);
        let ran = since.elapsed();
        assert!(ran >= run_time && ran <= run_time + Duration::from_millis(2), "{ran:?}");
        assert_eq!(get(&offload.status(), &format!("{job}/result"), "").await, 504);
        call.gone().await;
    }
}

#[tokio::test]
async fn a_body_that_never_ends_is_bounded_by_time() {
    let client = Client::http2();
    let mut desk = Desk::new(builder().max_run_time(Duration::from_millis(50))).await;
    let (dropped, is_dropped) = oneshot::channel::<()>();
    let silent = stream::once(future::ready(Ok::<_, Infallible>(Bytes::from("some"))))
        .chain(stream::pending())
        .inspect(move |_| assert!(!dropped.is_closed()));
    let (document, result) = desk.ended(&client, Response::new(Body::from_stream(silent))).await;
    assert_eq!((&document["status"], result.status.as_u16()), (&"failed".into(), 504));
    assert_eq!(result.json()["type"], "urn:tower-offload:problem:timed-out");
    assert!(soon("the body is dropped", is_dropped).await.is_err());
}

/// An upload that stalls holds no place; a drain has nothing to wait for.
#[tokio::test]
async fn an_upload_that_stalls_holds_no_place() {
    let client = Client::http1();
    let mut desk = Desk::new(builder().max_running(1)).await;
    let mut stalled = desk.server.connect().await;
    stalled.write("POST /always HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf").await;
    for _ in 0..3 {
        let (job, call) = desk.running(&client).await;
        call.answer(());
        client.ended(&desk.server, &job).await;
    }
    soon("nothing is promised", desk.offload.drain(Duration::from_secs(3600))).await;
    // It is refused at its end: the places are gone by then.
    stalled.write("whole").await;
    let (head, _) = soon("an answer", stalled.read_response()).await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
}

// ------------------------------------------------------------------------ bodies of requests

#[tokio::test]
async fn max_body_bytes() {
    for client in clients() {
        let mut desk = Desk::new(builder().max_body_bytes(1024)).await;
        // It fits: the handler holds it unread, and is detached.
        let accepted = desk.eager(&client, "/lazy", vec![0; 1024]).await;
        desk.calls.next().await.answer(());
        let job = accepted.location();
        client.ended(&desk.server, job).await;
        let result = client.get(&desk.server, &format!("{job}/result")).await;
        assert_eq!(result.text(), "1024");

        // One byte more does not: it stays attached until its handler has read it.
        let answered = async { desk.calls.next().await.answer(()) };
        let request = desk.server.request("POST", "/lazy").header("prefer", "respond-async");
        let (answer, ()) = future::join(client.send(request, vec![0; 1025]), answered).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "1025"));
    }
}

#[tokio::test]
async fn max_buffered_bytes() {
    for client in clients() {
        let mut desk = Desk::new(builder().max_buffered_bytes(1000)).await;
        // All that may be buffered, held unread by the handler of a job.
        let holds = desk.eager(&client, "/lazy", vec![0; 1000]).await;
        let holder = desk.calls.next().await;

        let answered = async { desk.calls.next().await.answer(()) };
        let request = desk.server.request("POST", "/lazy").header("prefer", "respond-async");
        let (answer, ()) = future::join(client.send(request, "ten bytes!"), answered).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "10"));

        // What was read is buffered no more.
        holder.answer(());
        client.ended(&desk.server, holds.location()).await;
        let accepted = desk.eager(&client, "/lazy", "ten bytes!").await;
        desk.calls.next().await.answer(());
        client.ended(&desk.server, accepted.location()).await;
    }
}

// -------------------------------------------------------------------- bodies that do not arrive

const MIB: usize = 1 << 20;

/// The test's side of a body that arrives as the test says, and the body.
fn slow_body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(receiver, async |mut receiver| {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    (sender, Body::from_stream(frames))
}

/// A route without a server, for the paused clock.
struct Route {
    service: BoxCloneSyncService<Request, Response, Infallible>,
    calls: Calls,
}

impl Route {
    fn new(offload: &Offload, policies: impl Into<Policies>) -> Self {
        let (gated, calls) = gated();
        let service = offload.layer(policies).layer(Router::new().fallback_service(gated.route()));
        Self { service: BoxCloneSyncService::new(service), calls }
    }

    fn send(&self, path: &str, version: Version, body: Body) -> JoinHandle<Response> {
        let request = Request::post(path).version(version).body(body).unwrap();
        let service = self.service.clone();
        tokio::spawn(async move { service.oneshot(request).await.unwrap() })
    }

    async fn post(&self, path: &str) -> (u16, serde_json::Value) {
        let answer = self.send(path, Version::HTTP_11, Body::empty()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_uploads_hold_the_buffer_for_a_minute_only() {
    let route = Route::new(&Offload::new("/jobs"), Policy::always().queue(100));
    let begun = Instant::now();
    let two_mib = Bytes::from(vec![0; 2 * MIB]);
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let (sender, body) = slow_body();
        let sent = route.send("/", Version::HTTP_11, body);
        sender.send(two_mib.clone()).await.unwrap();
        stalled.push((sender, sent));
    }
    // All of them have come when the first is read to its end.
    while route.post("/").await.0 == 202 {}
    let (status, problem) = route.post("/").await;
    assert_eq!((status, &problem["limit"]), (503, &"max_buffered_bytes".into()));
    for (_sender, sent) in stalled {
        let answer = sent.await.unwrap();
        assert_eq!((answer.status().as_u16(), begun.elapsed().as_secs()), (408, 60));
        assert_eq!(answer.headers()["connection"], "close");
    }
    assert_eq!(route.post("/").await.0, 202);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_given_up_after_five_minutes() {
    let route = Route::new(&Offload::new("/jobs"), Policy::always().queue(100));
    for (bytes, status, after) in [(9, 202, 270), (100, 408, 300)] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let begun = Instant::now();
            let (sender, body) = slow_body();
            let sent = route.send("/", version, body);
            for _ in 0..bytes {
                tokio::time::sleep(Duration::from_secs(30)).await;
                if sender.send(Bytes::from_static(b"x")).await.is_err() {
                    break;
                }
            }
            drop(sender);
            let answer = soon("an answer", sent).await.unwrap();
            assert_eq!(answer.status(), status);
            let took = begun.elapsed().as_secs();
            assert!((after..after + 31).contains(&took), "{status} after {took} s");
            let closes = answer.headers().contains_key("connection");
            assert_eq!(closes, status == 408 && version == Version::HTTP_11, "{version:?}");
        }
    }
}

/// A request that is attached while its body arrives is left alone, and so is a handler of an
/// `always` route that does not read: the client waits for it, not the other way round.
#[tokio::test(start_paused = true)]
async fn whoever_does_not_wait_for_a_body_gives_up_no_request() {
    let offload = Offload::builder("/jobs").max_body_bytes(4).build().unwrap();
    let mut route = Route::new(&offload, Policy::after(Duration::from_secs(1)));
    let (sender, body) = slow_body();
    let sent = route.send("/", Version::HTTP_11, body);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    sender.send(Bytes::from_static(b"body")).await.unwrap();
    drop(sender);
    route.calls.next().await.answer("own");
    assert_eq!(soon("an answer", sent).await.unwrap().status(), 200);

    let (read, told) = oneshot::channel::<()>();
    let told = std::sync::Arc::new(tokio::sync::Mutex::new(Some(told)));
    let lazy = any(move |request: Request| {
        let told = std::sync::Arc::clone(&told);
        async move {
            if let Some(told) = told.lock().await.take() {
                let _ = told.await;
            }
            request.into_body().collect().await.unwrap().to_bytes()
        }
    });
    let layer = offload.layer(Policy::always());
    let service = BoxCloneSyncService::new(layer.layer(Router::new().fallback_service(lazy)));
    let lazy = Route { service, calls: route.calls };
    let (sender, body) = slow_body();
    let sent = lazy.send("/", Version::HTTP_11, body);
    // More than the buffer takes: it is the handler's to read.
    sender.send(Bytes::from_static(b"a long body")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!sent.is_finished());
    read.send(()).unwrap();
    drop(sender);
    assert_eq!(soon("the 202", sent).await.unwrap().status(), 202);
}

#[tokio::test]
async fn a_client_that_stalls_is_answered_408_and_its_connection_closed() {
    let mut desk = Desk::new(builder().body_idle_timeout(Duration::from_millis(100))).await;
    for path in ["/queue", "/always"] {
        let mut stalled = desk.server.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf");
        stalled.write(head).await;
        let (head, body) = soon("the 408", stalled.read_response()).await;
        assert!(head.starts_with("http/1.1 408"), "{path}: {head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{path}: {head}");
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["type"], "urn:tower-offload:problem:body-timeout");
        assert!(soon("its end", stalled.read_to_end()).await.is_empty());
    }
    assert!(desk.calls.is_empty());
    assert_eq!(desk.offload.stats().await.unwrap().total().running, 0);
}

// ------------------------------------------------------------------------- durable jobs that wait

/// Two durable routes, of which one lets three wait, and both together five.
fn durable_routes(store: &DurableStore) -> Route {
    let offload = Offload::builder("/jobs").max_queued(5).store(store.clone());
    let offload = offload.owner(|_| Some("ann".into())).build().unwrap();
    let durable = |name: &'static str| Policy::always().durable().name(name);
    let policies = Policies::otherwise(Policy::never())
        .at("/a", durable("a").max_queued(3).idempotent())
        .at("/b", durable("b"));
    Route::new(&offload, policies)
}

fn is_full(refused: (u16, serde_json::Value)) {
    let (status, problem) = refused;
    assert_eq!((status, &problem["limit"]), (503, &"max_queued".into()), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn durable_jobs_that_wait_are_bounded_by_policy_and_in_all() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    for _ in 0..3 {
        assert_eq!(route.post("/a").await.0, 202);
    }
    is_full(route.post("/a").await);
    for _ in 0..2 {
        assert_eq!(route.post("/b").await.0, 202);
    }
    is_full(route.post("/b").await);
    assert_eq!(store.waiting(), 5);
    // One that was taken makes room, as soon as the store is asked again.
    store.pop();
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(route.post("/a").await.0, 202);
    is_full(route.post("/a").await);
    is_full(route.post("/b").await);
}

#[tokio::test(start_paused = true)]
async fn the_durable_jobs_of_other_processes_count_after_a_second() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    assert_eq!(route.post("/a").await.0, 202);
    store.push("a");
    store.push("a");
    // The last count is good for a second, so that accepting costs no more calls.
    assert_eq!(route.post("/a").await.0, 202);
    assert_eq!(store.counted(), 2, "of the policy and of all");
    tokio::time::advance(Duration::from_millis(1001)).await;
    is_full(route.post("/a").await);
}

#[tokio::test(start_paused = true)]
async fn refusing_asks_the_store_every_100_ms_at_most() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    for _ in 0..3 {
        assert_eq!(route.post("/a").await.0, 202);
    }
    let before = store.counted();
    for _ in 0..1000 {
        tokio::time::advance(Duration::from_millis(1)).await;
        is_full(route.post("/a").await);
    }
    let counted = store.counted() - before;
    assert!((9..=11).contains(&counted), "asked {counted} times in a second");
}

#[tokio::test(start_paused = true)]
async fn durable_jobs_that_come_at_once_do_not_go_over_the_limit() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    let sent: Vec<_> = (0..50).map(|_| route.send("/a", Version::HTTP_11, Body::empty())).collect();
    let answers = future::join_all(sent).await;
    let accepted = answers.iter().filter(|answer| answer.as_ref().unwrap().status() == 202);
    assert_eq!((accepted.count(), store.waiting()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_durable_job_with_a_known_key_is_found_at_the_limit() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    let keyed = async || {
        let request = Request::post("/a").header("idempotency-key", "k").body(Body::empty());
        let answer = route.service.clone().oneshot(request.unwrap()).await.unwrap();
        (answer.status(), answer.headers().get("location").cloned())
    };
    let first = keyed().await;
    assert_eq!(first.0, 202);
    while route.post("/a").await.0 == 202 {}
    assert_eq!(keyed().await, first);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_count_accepts_no_durable_job() {
    let store = DurableStore::new();
    let route = durable_routes(&store);
    store.set_away(true);
    let (status, problem) = route.post("/a").await;
    assert_eq!((status, &problem["limit"]), (503, &serde_json::Value::Null));
    assert_eq!(problem["type"], "urn:tower-offload:problem:store-unavailable");
    store.set_away(false);
    assert_eq!(route.post("/a").await.0, 202);
}

#[test]
fn max_queued_is_for_durable_policies() {
    let offload = Offload::new("/jobs");
    let error = offload.try_layer(Policy::always().max_queued(1)).unwrap_err();
    assert!(error.to_string().contains("Policy::max_queued"), "{error}");
    assert!(std::panic::catch_unwind(|| Policy::always().durable().max_queued(0)).is_err());
}

// ------------------------------------------------------------------------------------ shutdown

#[tokio::test]
async fn draining() {
    for client in clients() {
        let mut desk = Desk::new(builder()).await;
        let (job, call) = desk.running(&client).await;
        let offload = desk.offload.clone();
        let mut drain = pin!(offload.drain(Duration::from_secs(60)));
        assert!(poll!(&mut drain).is_pending());
        desk.takes_no_job(&client, "shutting-down", None).await;

        // What was promised goes on, and is told of.
        assert_eq!(client.get(&desk.server, &job).await.status, 202);
        call.answer("own");
        let drained = soon("nothing runs any more", drain).await;
        assert_eq!((drained.finished(), drained.interrupted()), (1, 0));
        let result = client.get(&desk.server, &format!("{job}/result")).await;
        assert_eq!(result.text(), "own");
        desk.takes_no_job(&client, "shutting-down", None).await;
    }
}

// --------------------------------------------------------------------- what cannot work is said

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    const NO_TIME: Duration = Duration::ZERO;
    let at = |path: &str| Offload::builder(path);
    for (wrong, name) in [
        (builder().max_running(0), "max_running"),
        (builder().max_waiters(0), "max_waiters"),
        (builder().max_wait(NO_TIME), "max_wait"),
        (builder().max_body_bytes(0), "max_body_bytes"),
        (builder().max_buffered_bytes(0), "max_buffered_bytes"),
        (builder().max_outcome_bytes(0), "max_outcome_bytes"),
        (builder().max_stored_bytes(0), "max_stored_bytes"),
        (builder().max_run_time(NO_TIME), "max_run_time"),
        (builder().ttl(NO_TIME), "ttl"),
        (builder().body_idle_timeout(NO_TIME), "body_idle_timeout"),
        (builder().body_timeout(NO_TIME), "body_timeout"),
        (builder().max_queued(0), "max_queued"),
        // Room for not even one job.
        (builder().max_outcome_bytes(1000).max_stored_bytes(999 + JOB_BYTES), "max_stored_bytes"),
        (builder().max_outcome_bytes(usize::MAX), "max_outcome_bytes"),
        (builder().store(MemoryStore::new(1 << 20)).max_stored_bytes(1 << 20), "max_stored_bytes"),
        (at("jobs"), "status path \"jobs\""),
        (at("/"), "status path \"/\""),
        (at("/jobs/"), "status path \"/jobs/\""),
        (at("/{tenant}/jobs"), "status path \"/{tenant}/jobs\""),
        (at("/jobs?x"), "status path \"/jobs?x\""),
        (at("/a/../jobs"), "status path \"/a/../jobs\""),
        (builder().public_base("api.example/jobs"), "public base \"api.example/jobs\""),
        (builder().public_base("/x/jobs/"), "public base \"/x/jobs/\""),
        (builder().public_base("ftp://x/jobs"), "public base \"ftp://x/jobs\""),
        (builder().public_base("https:///jobs"), "public base \"https:///jobs\""),
    ] {
        let error = wrong.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    let just = builder().max_outcome_bytes(1000).max_stored_bytes(1000 + JOB_BYTES);
    assert!(just.build().is_ok());
    assert!(builder().max_waiters(usize::MAX).max_running(usize::MAX).build().is_ok());
    assert!(builder().max_run_time(Duration::MAX).ttl(Duration::MAX).build().is_ok());
}

#[test]
#[should_panic(expected = "status path \"jobs\" must begin with a slash")]
fn new_panics_on_a_path_that_cannot_work() {
    let _ = Offload::new("jobs");
}
