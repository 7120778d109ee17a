//! Queues: how many of a route's jobs run, who waits and in which order, what a request that waits
//! holds and what not, and that whoever leaves is not waited for.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use bytes::Bytes;
use desk::{Held, Insert, Shuffled, ended, job};
use futures_util::future;
use http::HeaderMap;
use http_body_util::BodyExt;
use serde_json::Value;
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, Gated, gated},
    soon,
};
use tokio::task::yield_now;
use tower::{Service, ServiceExt};
use tower_offload::{
    JobId, MemoryStore, Offload, OffloadBuilder, OffloadLayer, Policies, Policy, Store,
};

// ------------------------------------------------------------------------------ a server to ask

const LONG: Duration = Duration::from_secs(3600);

struct Desk {
    server: Server,
    client: Client,
    store: MemoryStore,
    offload: Offload,
    calls: Calls,
}

/// The route of most tests: `n` run, `m` wait.
fn queued(n: usize, m: usize) -> Policy {
    Policy::always().concurrency(n).queue(m)
}

fn builder() -> OffloadBuilder {
    Offload::builder("/jobs")
}

/// A handler that takes its body in, with its trailers, and waits for its test.
async fn reads(gated: Gated, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap();
    let trailer = |trailers: &HeaderMap| trailers["x-sum"].to_str().unwrap().to_owned();
    let trailer = body.trailers().map(trailer).unwrap_or_default();
    let seen = [&body.to_bytes()[..], trailer.as_bytes()].concat();
    gated.run(Request::from_parts(head, Body::from(seen))).await
}

impl Desk {
    /// Routes with these layers, all with one handler.
    async fn with<const N: usize>(
        builder: OffloadBuilder,
        layers: impl FnOnce(&Offload) -> [(&'static str, OffloadLayer); N],
    ) -> Self {
        let store = MemoryStore::new(1 << 30);
        let offload = builder.store(store.clone()).build().unwrap();
        let (gated, calls) = gated();
        let mut app = Router::new().route("/next", any(async || "next"));
        for (path, layer) in layers(&offload) {
            let gated = gated.clone();
            let handler = any(move |request: Request| reads(gated.clone(), request));
            app = app.route(path, handler.layer(layer));
        }
        let app = app.nest_service("/jobs", offload.status());
        let server = Server::axum(app).await;
        Self { server, client: Client::http1(), store, offload, calls }
    }

    /// One route, `/`.
    async fn new(policy: Policy) -> Self {
        Self::with(builder(), |offload| [("/", offload.layer(policy))]).await
    }

    async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        soon("an answer", self.client.post(&self.server, path, body)).await
    }

    /// A job of the route `path`, by its own path.
    async fn job(&self, path: &str, body: impl Into<Bytes>) -> String {
        self.post(path, body).await.location().to_owned()
    }

    /// A job whose handler has begun.
    async fn running(&mut self, path: &str, body: &'static str) -> (String, Call) {
        let job = self.job(path, body).await;
        (job, self.called(body).await)
    }

    /// The next call of a handler, which must be that with this body.
    async fn called(&mut self, body: &str) -> Call {
        let call = self.calls.next().await;
        assert_eq!(call.body, body);
        call
    }

    async fn document(&self, job: &str) -> Value {
        let answer = self.client.get(&self.server, &format!("{job}/status")).await;
        assert_eq!(answer.status, 200, "{answer:#?}");
        answer.json()
    }

    /// Where these jobs stand; 0 for one that waits no more.
    async fn positions(&self, jobs: &[String]) -> Vec<u64> {
        let mut positions = Vec::new();
        for job in jobs {
            let document = self.document(job).await;
            let position = document["queue_position"].as_u64().unwrap_or_default();
            assert_eq!(position > 0, document["status"] == "queued", "{document:#}");
            positions.push(position);
        }
        positions
    }

    /// Waits until these jobs stand there.
    async fn stand(&self, jobs: &[String], wanted: &[u64]) {
        let stand = async { while self.positions(jobs).await != wanted {} };
        soon(&format!("they stand at {wanted:?}"), stand).await;
    }

    /// Lets this handler answer, and waits for the end of its job.
    async fn finish(&self, job: &str, call: Call) {
        call.answer("done");
        let document = soon("its end", self.client.ended(&self.server, job)).await;
        assert_eq!(document["status"], "succeeded", "{document:#}");
    }

    /// One more request is refused by this limit, and nothing of it is begun.
    async fn refuses(&mut self, path: &str, limit: &str) {
        let refused = self.post(path, "refused").await;
        is_refused(&refused, limit);
        assert!(self.calls.is_empty(), "nothing of it was begun");
    }

    /// What runs and waits, of all policies.
    async fn load(&self) -> (usize, usize) {
        let total = self.offload.stats().await.unwrap().total();
        (total.running, total.queued)
    }

    /// Waits until nothing runs or waits.
    async fn is_idle(&self) {
        let idle = async {
            while self.load().await != (0, 0) {
                yield_now().await;
            }
        };
        soon("all places are free, and all queues empty", idle).await;
    }
}

#[track_caller]
fn is_refused(refused: &Answer, limit: &str) {
    assert_eq!(refused.status, 503, "{refused:#?}");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.header("content-type"), "application/problem+json");
    let problem = refused.json();
    assert_eq!(problem["type"], "urn:tower-offload:problem:limit-reached");
    assert_eq!((&problem["status"], &problem["limit"]), (&503.into(), &limit.into()));
}

fn id(job: &str) -> JobId {
    job.rsplit('/').next().unwrap().parse().unwrap()
}

// ------------------------------------------------------------------------------- order of arrival

#[tokio::test]
async fn at_most_n_run_and_m_wait_in_order_of_arrival() {
    for client in [Client::http1(), Client::http2()] {
        let mut desk = Desk::new(queued(2, 3)).await;
        desk.client = client;
        let (first, first_call) = desk.running("/", "0").await;
        let (_, second_call) = desk.running("/", "1").await;
        let mut waiting = Vec::new();
        for (position, body) in [(1, "2"), (2, "3"), (3, "4")] {
            let accepted = desk.post("/", body).await;
            is_queued(&accepted, position);
            waiting.push(accepted.location().to_owned());
        }
        desk.refuses("/", "queue").await;
        assert_eq!(desk.positions(&waiting).await, [1, 2, 3]);
        assert_eq!(desk.load().await, (2, 3));

        desk.finish(&first, first_call).await;
        let third_call = desk.called("2").await;
        assert_eq!(desk.positions(&waiting).await, [0, 1, 2]);
        let document = desk.document(&waiting[0]).await;
        assert!(document["status"] == "running" && document["started_at"].is_string());
        // Now that one has ended, it is known what others will take.
        let document = desk.document(&waiting[1]).await;
        assert!(document["eta_seconds"].as_u64() >= Some(1), "{document:#}");

        // There is room for one more, at the end.
        waiting.push(desk.job("/", "5").await);
        desk.refuses("/", "queue").await;
        assert_eq!(desk.positions(&waiting).await, [0, 1, 2, 3]);

        third_call.answer("done");
        let mut running = vec![second_call, desk.called("3").await];
        for body in ["4", "5"] {
            running.pop().unwrap().answer("done");
            running.push(desk.called(body).await);
        }
        assert_eq!(desk.positions(&waiting[1..]).await, [0, 0, 0]);
        running.into_iter().for_each(|call| call.answer("done"));
        desk.is_idle().await;
        assert!(desk.calls.is_empty());
    }
}

/// The 202 of a request that waits, on a route of which nothing is known yet.
fn is_queued(accepted: &Answer, position: usize) {
    assert_eq!(accepted.status, 202, "{accepted:#?}");
    assert_eq!(accepted.header("retry-after"), "1");
    let document = accepted.json();
    assert_eq!(document["status"], "queued");
    assert_eq!(document["queue_position"], position);
    for absent in ["eta_seconds", "started_at", "finished_at", "response_status", "error"] {
        assert!(document[absent].is_null(), "{absent} in {document:#}");
    }
}

/// Each resource of a job that waits says what it says of one that runs, and where it stands.
#[tokio::test]
async fn every_resource_of_a_queued_job_says_where_it_stands() {
    let mut desk = Desk::new(queued(1, 2)).await;
    let (_, _call) = desk.running("/", "").await;
    let _next = desk.job("/", "").await;
    let job = desk.job("/", "").await;
    for (resource, status) in [("", 202), ("/status", 200), ("/result", 202)] {
        let answer = desk.client.get(&desk.server, &format!("{job}{resource}")).await;
        assert_eq!(answer.status, status, "{answer:#?}");
        assert_eq!(answer.header("retry-after"), "1");
        let document = answer.json();
        assert_eq!(
            (&document["status"], &document["queue_position"]),
            (&"queued".into(), &2.into())
        );
    }
}

/// A poll that waits sees it start and end, and is woken by neither alone.
#[tokio::test]
async fn a_poll_waits_through_the_queue_for_the_end() {
    let mut desk = Desk::new(queued(1, 1)).await;
    let (first, first_call) = desk.running("/", "first").await;
    let job = desk.job("/", "second").await;
    let poll = tokio::spawn({
        let request = desk.server.request("GET", &format!("{job}/result"));
        let (client, request) = (desk.client.clone(), request.header("prefer", "wait=30"));
        async move { client.send(request, "").await }
    });
    desk.finish(&first, first_call).await;
    let call = desk.called("second").await;
    assert!(!poll.is_finished());
    call.answer("its own");
    let answer = soon("the poll is answered", poll).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "its own"));
}

#[tokio::test]
async fn without_a_queue_a_full_route_is_answered_503_or_stays_attached() {
    let eager = Policy::after(LONG).concurrency(1);
    let mut desk = Desk::with(builder(), |offload| {
        let always = Policy::always().concurrency(1);
        [("/always", offload.layer(always)), ("/after", offload.layer(eager))]
    })
    .await;
    let (first, first_call) = desk.running("/always", "").await;
    desk.refuses("/always", "concurrency").await;

    // A route with room of its own is not the first one's affair.
    let accepted = eager_post(&desk, "/after").await;
    assert_eq!(accepted.status, 202);
    let _call = desk.calls.next().await;
    stays_attached(&mut desk, "/after").await;

    desk.finish(&first, first_call).await;
    desk.is_idle_but(1).await;
    let (_, _call) = desk.running("/always", "").await;
    desk.refuses("/always", "concurrency").await;
}

impl Desk {
    /// Waits until so many run.
    async fn is_idle_but(&self, running: usize) {
        let idle = async {
            while self.load().await != (running, 0) {
                yield_now().await;
            }
        };
        soon("a place is free", idle).await;
    }
}

async fn eager_post(desk: &Desk, path: &str) -> Answer {
    let request = desk.server.request("POST", path).header("prefer", "respond-async");
    soon("an answer", desk.client.send(request, "eager")).await
}

/// A request that would like to be a job has its handler's answer, as if there were no layer.
async fn stays_attached(desk: &mut Desk, path: &str) {
    let request = desk.server.request("POST", path).header("prefer", "respond-async");
    let answered = async {
        let call = desk.calls.next().await;
        assert_eq!(call.body, "eager");
        call.answer((http::StatusCode::CREATED, "own"));
    };
    let sent = desk.client.send(request, "eager");
    let (answer, ()) = soon("its own answer", future::join(sent, answered)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (201, "own"));
    assert_eq!(answer.find_header("preference-applied"), None);
}

// ------------------------------------------------------------------------------------- who leaves

#[tokio::test]
async fn a_canceled_job_leaves_the_queue_at_once() {
    for resource in ["", "/result"] {
        let mut desk = Desk::new(queued(1, 3)).await;
        let (first, first_call) = desk.running("/", "first").await;
        let mut waiting = Vec::new();
        for body in ["left", "next", "last"] {
            waiting.push(desk.job("/", body).await);
        }
        desk.refuses("/", "queue").await;

        let left = waiting.remove(0);
        for _ in 0..2 {
            let answer = desk.client.delete(&desk.server, &format!("{left}{resource}")).await;
            if answer.status == 204 {
                // The second `DELETE` of a result removes what the first has left.
                continue;
            }
            assert_eq!(answer.status, 200, "{answer:#?}");
            let document = answer.json();
            assert_eq!(document["status"], "canceled");
            assert!(document["started_at"].is_null() && document["queue_position"].is_null());
        }
        desk.stand(&waiting, &[1, 2]).await;
        // Its place in the queue is another's.
        waiting.push(desk.job("/", "new").await);
        assert_eq!(desk.positions(&waiting).await, [1, 2, 3]);

        desk.finish(&first, first_call).await;
        for body in ["next", "last", "new"] {
            desk.called(body).await.answer("done");
        }
        desk.is_idle().await;
        assert!(desk.calls.is_empty(), "the canceled one was called");
    }
}

#[tokio::test]
async fn a_job_that_is_gone_from_the_store_leaves_the_queue_at_once() {
    let mut desk = Desk::new(queued(1, 2)).await;
    let (first, first_call) = desk.running("/", "first").await;
    let gone = desk.job("/", "gone").await;
    let waiting = [desk.job("/", "next").await];
    desk.store.take_back(id(&gone)).await.unwrap();
    desk.stand(&waiting, &[1]).await;
    assert_eq!(desk.client.get(&desk.server, &gone).await.status, 404);
    desk.finish(&first, first_call).await;
    let call = desk.called("next").await;
    desk.finish(&waiting[0], call).await;
    desk.is_idle().await;
    assert!(desk.calls.is_empty(), "the one that is gone was called");
}

/// The last in the queue and the only one: nobody behind them notices, but the queue must.
#[tokio::test]
async fn whoever_leaves_a_queue_of_one_makes_room() {
    let mut desk = Desk::new(queued(1, 1)).await;
    let (first, first_call) = desk.running("/", "first").await;
    for _ in 0..5 {
        let job = desk.job("/", "left").await;
        desk.refuses("/", "queue").await;
        assert_eq!(desk.client.delete(&desk.server, &job).await.status, 200);
        desk.is_idle_but(1).await;
    }
    desk.finish(&first, first_call).await;
    desk.is_idle().await;
    assert!(desk.calls.is_empty());
}

/// A client that goes in the midst of its upload has no job, and no place in the queue either.
#[tokio::test]
async fn a_client_that_leaves_during_its_upload_leaves_no_job() {
    let mut desk = Desk::new(queued(1, 1)).await;
    let (_, first_call) = desk.running("/", "first").await;
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let mut raw = desk.server.connect().await;
        raw.write(format!("POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n5\r\nhalf")).await;
        // It is on its way, and takes nothing from others.
        let job = desk.job("/", "whole").await;
        assert_eq!(desk.positions(std::slice::from_ref(&job)).await, [1]);
        drop(raw);
        assert_eq!(desk.client.delete(&desk.server, &job).await.status, 200);
        desk.is_idle_but(1).await;
        assert_eq!(desk.store.jobs(), 2);
        desk.store.take_back(id(&job)).await.unwrap();
    }
    first_call.answer("done");
    desk.is_idle().await;
    assert_eq!(desk.store.jobs(), 1);
    assert!(desk.calls.is_empty());
}

// ---------------------------------------------------------------------------- the request's body

#[tokio::test]
async fn a_body_is_taken_in_whole_with_its_trailers_whatever_becomes_of_its_connection() {
    for reuses in [true, false] {
        let mut desk = Desk::new(queued(1, 1)).await;
        let (first, first_call) = desk.running("/", "first").await;
        let mut raw = desk.server.connect().await;
        let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n";
        raw.write(format!("{head}\r\n4\r\nbody\r\n")).await;
        raw.write("5\r\n, all\r\n0\r\nx-sum: , sum\r\n\r\n").await;
        let (accepted, _) = raw.read_response().await;
        assert!(accepted.starts_with("http/1.1 202"), "{accepted}");
        if reuses {
            // The bytes of the next request are not taken for more of the body.
            raw.write("POST /next HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nmore").await;
            assert_eq!(raw.read_response().await.1, b"next");
        } else {
            drop(raw);
        }
        assert!(desk.calls.is_empty(), "it waits");
        desk.finish(&first, first_call).await;
        desk.called("body, all, sum").await.answer("done");
        desk.is_idle().await;
    }
}

/// The body is taken in whole where there is a place at once, too.
#[tokio::test]
async fn a_body_that_is_too_large_is_answered_413_with_and_without_room() {
    for has_room in [true, false] {
        let mut desk = Desk::with(builder().max_body_bytes(1000), |offload| {
            [("/", offload.layer(queued(1, 2)))]
        })
        .await;
        let call = if has_room { None } else { Some(desk.running("/", "first").await) };
        for declared in [true, false] {
            let answer = post_large(&desk, 1001, declared).await;
            assert!(answer.starts_with("http/1.1 413"), "{answer}");
            assert!(answer.contains("\"limit\":\"max_body_bytes\""), "{answer}");
        }
        assert!(desk.calls.is_empty(), "nothing of it was begun");
        assert_eq!(desk.load().await, (usize::from(call.is_some()), 0));
        // At the bound it fits.
        for declared in [true, false] {
            let answer = post_large(&desk, 1000, declared).await;
            assert!(answer.starts_with("http/1.1 202"), "{answer}");
        }
        if let Some((_, call)) = call {
            call.answer("done");
        }
        for _ in 0..2 {
            let call = desk.calls.next().await;
            assert_eq!(call.body.len(), 1000);
            call.answer("done");
        }
        desk.is_idle().await;
    }
}

/// The answer to a body of this length, which is said in the head, or not.
async fn post_large(desk: &Desk, len: usize, declared: bool) -> String {
    let mut raw = desk.server.connect().await;
    let body = "x".repeat(len);
    let request = match declared {
        true => format!("content-length: {len}\r\n\r\n{body}"),
        false => format!("transfer-encoding: chunked\r\n\r\n{len:x}\r\n{body}\r\n0\r\n\r\n"),
    };
    raw.write(format!("POST / HTTP/1.1\r\nhost: x\r\n{request}")).await;
    let (head, body) = raw.read_response().await;
    head + std::str::from_utf8(&body).unwrap()
}

/// Nothing is asked for that cannot be used: neither of a body that is too large, nor where there is
/// no room.
#[tokio::test]
async fn a_refusal_comes_before_100_continue() {
    let mut desk =
        Desk::with(builder().max_body_bytes(1000), |offload| [("/", offload.layer(queued(1, 1)))])
            .await;
    let expects = async |len: usize| {
        let mut raw = desk.server.connect().await;
        let expect = "expect: 100-continue\r\n";
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{expect}content-length: {len}\r\n\r\n");
        raw.write(head).await;
        let (head, _) = soon("an answer", raw.read_response()).await;
        (head.split(' ').nth(1).unwrap().to_owned(), raw)
    };
    assert_eq!(expects(1001).await.0, "413");
    for _ in 0..2 {
        let (status, mut raw) = expects(4).await;
        assert_eq!(status, "100");
        raw.write("body").await;
        let (head, _) = raw.read_response().await;
        assert!(head.starts_with("http/1.1 202"), "{head}");
    }
    assert_eq!(expects(4).await.0, "503");
    let _running = desk.called("body").await;
    assert!(desk.calls.is_empty());
}

#[tokio::test]
async fn bodies_that_wait_are_bounded_together_by_max_buffered_bytes() {
    // A head of these counts with some 500 bytes.
    let limits = builder().max_body_bytes(1000).max_buffered_bytes(2600);
    let mut desk = Desk::with(limits, |offload| [("/", offload.layer(queued(1, 10)))]).await;
    let (first, first_call) = desk.running("/", "first").await;
    let body = "x".repeat(1000);
    // A frame that has come is kept, though it goes over the bound.
    let waiting = vec![desk.job("/", body.clone()).await, desk.job("/", body.clone()).await];
    is_refused(&desk.post("/", "one more").await, "max_buffered_bytes");
    // Without a body there is a head to keep.
    is_refused(&desk.post("/", "").await, "max_buffered_bytes");
    assert_eq!(desk.positions(&waiting).await, [1, 2]);
    // What is read, or has left, is not buffered any more.
    desk.finish(&first, first_call).await;
    let _second = desk.called(&body).await;
    let also = desk.job("/", body.clone()).await;
    is_refused(&desk.post("/", "one more").await, "max_buffered_bytes");
    assert_eq!(desk.client.delete(&desk.server, &also).await.status, 200);
    desk.stand(&waiting[1..], &[1]).await;
    desk.is_queue_of(1).await;
    assert_eq!(desk.post("/", "one more").await.status, 202);
}

#[tokio::test]
async fn heads_that_wait_count_with_the_bodies() {
    let limits = builder().max_buffered_bytes(10_000);
    let mut desk = Desk::with(limits, |offload| [("/", offload.layer(queued(1, 10)))]).await;
    let (first, first_call) = desk.running("/", "first").await;
    let cookie = "x".repeat(4000);
    let post = || {
        let request = desk.server.request("POST", "/").header("cookie", &cookie);
        desk.client.send(request, "")
    };
    // Some 4,500 each: the third goes over the bound, and is the last.
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(post().await.location().to_owned());
    }
    is_refused(&post().await, "max_buffered_bytes");
    // One that has left the queue does not count any more; nor does one whose handler has begun.
    assert_eq!(desk.client.delete(&desk.server, &waiting[2]).await.status, 200);
    desk.is_queue_of(2).await;
    assert_eq!(post().await.status, 202);
    is_refused(&post().await, "max_buffered_bytes");
    desk.finish(&first, first_call).await;
    let _second = desk.called("").await;
    assert_eq!(desk.post("/", "").await.status, 202);
}

impl Desk {
    async fn is_queue_of(&self, waiting: usize) {
        let left = async {
            while self.load().await.1 != waiting {
                yield_now().await;
            }
        };
        soon("the queue is shorter", left).await;
    }
}

// --------------------------------------------------------------------------- places of all routes

#[tokio::test]
async fn max_running_bounds_all_routes_and_a_place_goes_to_whoever_waited_longest() {
    let mut desk = Desk::with(builder().max_running(2), |offload| {
        // One of three at a time; as many as there are places.
        [
            ("/narrow", offload.layer(queued(1, 3).name("narrow"))),
            ("/wide", offload.layer(Policy::always().queue(3).name("wide"))),
            ("/none", offload.layer(Policy::always())),
            ("/after", offload.layer(Policy::after(LONG))),
        ]
    })
    .await;
    let (_, narrow) = desk.running("/narrow", "narrow 0").await;
    let (_, wide) = desk.running("/wide", "wide 0").await;
    let mut waiting = Vec::new();
    for (path, body) in
        [("/narrow", "narrow 1"), ("/wide", "wide 1"), ("/narrow", "narrow 2"), ("/wide", "wide 2")]
    {
        waiting.push(desk.job(path, body).await);
    }
    // Each counts in its own route's queue.
    assert_eq!(desk.positions(&waiting).await, [1, 1, 2, 2]);
    desk.refuses("/none", "max_running").await;
    stays_attached(&mut desk, "/after").await;
    assert_eq!(desk.load().await, (2, 4));

    // The first in line has no room in its route.
    wide.answer("done");
    let wide = desk.called("wide 1").await;
    // Now it has, and comes before the other route's next, which came later.
    narrow.answer("done");
    let narrow = desk.called("narrow 1").await;
    assert_eq!(desk.positions(&waiting).await, [0, 0, 1, 1]);
    // Whoever comes now does not come between.
    desk.refuses("/none", "max_running").await;
    narrow.answer("done");
    let narrow = desk.called("narrow 2").await;
    narrow.answer("done");
    let last = desk.called("wide 2").await;
    desk.refuses("/none", "max_running").await;
    wide.answer("done");
    last.answer("done");
    desk.is_idle().await;
    let (none, call) = desk.running("/none", "").await;
    desk.finish(&none, call).await;
}

/// A request that may stay attached takes a place only when there is one that nobody waits for.
#[tokio::test]
async fn after_routes_that_find_no_room_stay_attached() {
    let mut desk = Desk::with(builder().max_running(1), |offload| {
        [("/", offload.layer(queued(1, 1))), ("/after", offload.layer(Policy::after(LONG)))]
    })
    .await;
    let (_, first) = desk.running("/", "first").await;
    stays_attached(&mut desk, "/after").await;
    let second = desk.job("/", "second").await;
    first.answer("done");
    let call = desk.called("second").await;
    stays_attached(&mut desk, "/after").await;
    desk.finish(&second, call).await;
    desk.is_idle().await;
    // With a place that nobody wants it is a job, for which the queue waits in turn.
    assert_eq!(eager_post(&desk, "/after").await.status, 202);
    let call = desk.called("eager").await;
    let waiting = [desk.job("/", "third").await];
    assert_eq!(desk.positions(&waiting).await, [1]);
    call.answer("done");
    desk.called("third").await.answer("done");
}

// -------------------------------------------------------------------------- whose queue it is

#[tokio::test]
async fn clones_of_a_layer_and_its_services_share_its_queue() {
    let mut desk = Desk::with(builder(), |offload| {
        let layer = offload.layer(queued(1, 2));
        [("/one", layer.clone()), ("/two", layer), ("/other", offload.layer(queued(1, 2)))]
    })
    .await;
    // axum clones its services for each connection, and each request here has its own.
    let (_, first) = desk.running("/one", "first").await;
    let mut waiting = Vec::new();
    for path in ["/two", "/one"] {
        desk.client = Client::http1();
        waiting.push(desk.job(path, path).await);
    }
    assert_eq!(desk.positions(&waiting).await, [1, 2]);
    for path in ["/one", "/two"] {
        desk.client = Client::http1();
        desk.refuses(path, "queue").await;
    }
    // Another layer with the same policy has a queue of its own.
    let (_, other) = desk.running("/other", "other").await;
    first.answer("done");
    for body in ["/two", "/one"] {
        desk.called(body).await.answer("done");
    }
    other.answer("done");
    desk.is_idle().await;
}

#[tokio::test]
async fn two_listeners_of_one_app_share_its_queues() {
    let (gated, mut calls) = gated();
    let offload = Offload::new("/jobs");
    let app = Router::new().route("/", gated.route().layer(offload.layer(queued(1, 1))));
    let servers = [Server::axum(app.clone()).await, Server::axum(app).await];
    let post = async |at: usize| Client::http1().post(&servers[at], "/", "").await;
    assert_eq!(post(0).await.json()["status"], "running");
    assert_eq!(post(1).await.json()["queue_position"], 1);
    for at in [0, 1] {
        is_refused(&post(at).await, "queue");
    }
    calls.next().await.answer("done");
    calls.next().await.answer("done");
}

#[tokio::test]
async fn each_row_of_a_table_has_a_queue_of_its_own() {
    let (gated, mut calls) = gated();
    let offload = Offload::new("/jobs");
    let table = Policies::otherwise(queued(1, 1))
        .at("/rows/one", queued(1, 1))
        .at("POST /rows/two", queued(1, 1))
        .at("/rows/two", queued(1, 1));
    let app = Router::new().fallback_service(gated.route()).layer(offload.layer(table));
    let server = Server::axum(app).await;
    let client = Client::http1();
    let rows = [("GET", "/"), ("GET", "/rows/one"), ("POST", "/rows/two"), ("GET", "/rows/two")];
    let ask = async |(method, path)| client.send(server.request(method, path), "").await;
    for position in [Value::Null, 1.into()] {
        for row in rows {
            assert_eq!(ask(row).await.json()["queue_position"], position, "{row:?}");
        }
    }
    for row in rows {
        is_refused(&ask(row).await, "queue");
    }
    for _ in 0..2 * rows.len() {
        calls.next().await.answer("done");
    }
}

// ------------------------------------------------------------------------ the service that is inside

/// A service that does what its test says, when it is polled for readiness and when it is called.
#[derive(Clone)]
struct Fussy {
    gated: Gated,
    mood: Arc<AtomicU8>,
}

const WELL: u8 = 0;
const PANICS_BEFORE: u8 = 1;
const PANICS_IN_CALL: u8 = 2;
const FAILS_BEFORE: u8 = 3;

impl Service<Request> for Fussy {
    type Response = Response;
    type Error = &'static str;
    type Future = future::BoxFuture<'static, Result<Response, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self.mood.load(SeqCst) {
            PANICS_BEFORE => panic!("told to"),
            FAILS_BEFORE => Poll::Ready(Err("told to")),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if self.mood.load(SeqCst) == PANICS_IN_CALL {
            panic!("told to");
        }
        let running = self.gated.clone().run(request);
        Box::pin(async { Ok(running.await) })
    }
}

/// A server around this service, which has the queue.
async fn around<S>(offload: &Offload, service: S) -> Server
where
    S: Service<Request, Response = Response, Future: Send> + Clone + Send + Sync + 'static,
    S::Error: std::fmt::Debug + Send,
{
    let infallible = service.map_err(|error| -> Infallible { panic!("{error:?}") });
    let app = Router::new().route_service("/", infallible).nest_service("/jobs", offload.status());
    Server::axum(app).await
}

#[tokio::test]
async fn a_queued_job_whose_service_panics_or_fails_ends_so_and_frees_its_place() {
    for (mood, kind) in
        [(PANICS_BEFORE, "panicked"), (PANICS_IN_CALL, "panicked"), (FAILS_BEFORE, "service-error")]
    {
        let (gated, mut calls) = gated();
        let fussy = Fussy { gated, mood: Arc::new(AtomicU8::new(WELL)) };
        let mood_of = Arc::clone(&fussy.mood);
        let offload = Offload::new("/jobs");
        let layer = offload.layer(queued(1, 2));
        let server = around(&offload, tower_layer::Layer::layer(&layer, fussy)).await;
        let client = Client::http1();
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.push(client.post(&server, "/", "").await.location().to_owned());
        }
        let first = calls.next().await;
        mood_of.store(mood, SeqCst);
        first.answer("done");
        // One after the other has the place, and fails.
        for job in &jobs[1..] {
            let document = soon("its end", client.ended(&server, job)).await;
            assert_eq!(document["status"], "failed", "{document:#}");
            let problem = &document["error"]["type"];
            assert_eq!(*problem, format!("urn:tower-offload:problem:{kind}"));
        }
        mood_of.store(WELL, SeqCst);
        let last = client.post(&server, "/", "").await.location().to_owned();
        calls.next().await.answer("done");
        let document = soon("its end", client.ended(&server, &last)).await;
        assert_eq!(document["status"], "succeeded", "{document:#}");
    }
}

/// A request that waits for a place of the layer's gives back the permit that it was readied with.
/// With one permit, held by each request that waits, the route could neither be asked nor go on.
#[tokio::test]
async fn trap_3_8_a_queued_request_gives_the_readied_service_back_at_once() {
    let (gated, mut calls) = gated();
    let offload = Offload::builder("/jobs").max_running(1).build().unwrap();
    let elsewhere = offload.layer(Policy::always()).boxed();
    let holds = tower_layer::Layer::layer(
        &elsewhere,
        tower::service_fn({
            let gated = gated.clone();
            move |request: Request| {
                let running = gated.clone().run(request);
                async { Ok::<_, Infallible>(running.await) }
            }
        }),
    );
    let body = |body: &'static str| Request::new(Body::from(body));
    assert_eq!(holds.oneshot(body("first")).await.unwrap().status(), 202);
    let first = calls.next().await;

    let inner = Fussy { gated, mood: Arc::default() };
    let layer = offload.layer(Policy::always().queue(3));
    let mut service = tower::ServiceBuilder::new().layer(layer).concurrency_limit(1).service(inner);
    for waiting in ["second", "third", "fourth"] {
        let ready = soon("the service is ready again", service.ready()).await.unwrap();
        assert_eq!(ready.call(body(waiting)).await.unwrap().status(), 202);
    }
    soon("the service is ready again", service.ready()).await.unwrap();
    // It is readied, and holds the permit: what is to run now must wait for it, as it must.
    drop(service);
    first.answer(());
    for waiting in ["second", "third", "fourth"] {
        let call = calls.next().await;
        assert_eq!(call.body, waiting);
        call.answer(());
    }
}

// ------------------------------------------------------------------- in this process, and at once

/// The client is gone while its job is being registered, which a store may take its time for: the
/// job is taken back, and neither a place nor the queue is left with it.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_its_202_leaves_no_job() {
    for insert in [Insert::Waits, Insert::WaitsAndFails] {
        for others in [0, 1] {
            let (gated, mut calls) = gated();
            let store = Held::new(Insert::Works);
            let offload = builder().store(store.clone()).build().unwrap();
            let app = Router::new().route("/", gated.route().layer(offload.layer(queued(1, 1))));
            let post = || app.clone().oneshot(Request::new(Body::empty()));
            let load = async || {
                let total = offload.stats().await.unwrap().total();
                total.running + total.queued
            };
            let mut running = Vec::new();
            for _ in 0..others {
                assert_eq!(post().await.unwrap().status(), 202);
                running.push(calls.next().await);
            }
            store.inserts(insert);
            let mut leaving = tokio_test::task::spawn(post());
            assert!(leaving.poll().is_pending());
            assert_eq!(load().await, others + 1);
            drop(leaving);
            store.let_insert();
            while load().await != others {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            store.emptied_to(others).await;
            assert!(calls.is_empty(), "nothing of it was begun");
            // Whoever is next finds what it would have had.
            store.inserts(Insert::Works);
            assert_eq!(post().await.unwrap().status(), 202);
            running.into_iter().for_each(|call| call.answer(()));
            calls.next().await.answer(());
        }
    }
}

// ----------------------------------------------------------------------------------------- races

/// What is seen of all the jobs of a race, by one clock.
#[derive(Default)]
struct Race {
    clock: AtomicUsize,
    runs: AtomicUsize,
    most: AtomicUsize,
    /// When the handler of each was begun.
    begun: Mutex<HashMap<usize, usize>>,
}

/// A job that was promised.
struct Promised {
    number: usize,
    sent: usize,
    promised: usize,
    path: String,
    canceled: bool,
}

impl Race {
    fn now(&self) -> usize {
        self.clock.fetch_add(1, SeqCst)
    }

    /// The handler: it counts those that run beside it, for as many turns as the request says.
    async fn run(self: Arc<Self>, head: HeaderMap) -> &'static str {
        let number = |name| head[name].to_str().unwrap().parse::<usize>().unwrap();
        self.begun.lock().unwrap().insert(number("x-number"), self.now());
        self.most.fetch_max(self.runs.fetch_add(1, SeqCst) + 1, SeqCst);
        let _runs = Runs(&self.runs);
        for _ in 0..number("x-turns") {
            yield_now().await;
        }
        "done"
    }
}

struct Runs<'a>(&'a AtomicUsize);

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

const RACERS: usize = 24;
const REQUESTS: usize = 60;

/// One of those who send: one request after another, and cancels some of what it is promised.
async fn racer(race: Arc<Race>, offload: Offload, app: Router, racer: usize) -> Vec<Promised> {
    let mut shuffled = Shuffled::new();
    let mut promises = Vec::new();
    for number in (racer * REQUESTS..).take(REQUESTS) {
        for _ in 0..shuffled.below(6) {
            yield_now().await;
        }
        let turns = shuffled.below(8).to_string();
        let head = Request::post("/").header("x-number", number).header("x-turns", turns);
        let sent = race.now();
        let answer = app.clone().oneshot(head.body(Body::empty()).unwrap()).await.unwrap();
        if answer.status() == 503 {
            // Some of the queue passes before the next.
            for _ in 0..50 {
                yield_now().await;
            }
            continue;
        }
        let (path, promised) = (job(&answer), race.now());
        let mut canceled = false;
        if shuffled.below(5) == 0 {
            let request = Request::delete(&path).body(()).unwrap();
            canceled = offload.status().oneshot(request).await.unwrap().status() == 200;
        }
        promises.push(Promised { number, sent, promised, path, canceled });
    }
    promises
}

/// Racing tasks at a queue with `n` places before it: never more than `n` run, whoever was promised
/// something has it, and nobody is overtaken.
async fn race(n: usize) {
    let race = Arc::<Race>::default();
    let offload = builder().build().unwrap();
    let handler = any({
        let race = Arc::clone(&race);
        move |head: HeaderMap| Arc::clone(&race).run(head)
    });
    let app = Router::new().route("/", handler.layer(offload.layer(queued(n, 12))));
    let racers = (0..RACERS)
        .map(|number| tokio::spawn(racer(Arc::clone(&race), offload.clone(), app.clone(), number)));
    let mut promises = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        promises.extend(soon("a racer comes in", racer).await.unwrap());
    }
    for promised in &promises {
        let document = soon("its end", ended(&offload, &promised.path)).await;
        let wanted = if promised.canceled { "canceled" } else { "succeeded" };
        assert_eq!(document["status"], wanted, "{document:#}");
        let begun = race.begun.lock().unwrap().contains_key(&promised.number);
        assert!(begun || promised.canceled, "{document:#}");
        assert!(!begun || document["started_at"].is_string(), "{document:#}");
    }
    while offload.stats().await.unwrap().total().running > 0 {
        yield_now().await;
    }
    assert!(race.most.load(SeqCst) <= n, "{} ran at once", race.most.load(SeqCst));
    assert_eq!(race.runs.load(SeqCst), 0);
    if n == 1 {
        nobody_is_overtaken(&race, &promises);
    }
    let total = offload.stats().await.unwrap().total();
    assert_eq!((total.running, total.queued, total.stored), (0, 0, promises.len()));
    assert_eq!(total.refused as usize + promises.len(), RACERS * REQUESTS);
    let unbegun = promises.len() - race.begun.lock().unwrap().len();
    println!("{n}: {} promised, {} refused, {unbegun} left", promises.len(), total.refused);
    assert!(promises.len() > RACERS && total.refused > 0 && unbegun > 0);
}

/// Who is sent after another's 202 begins after it. That holds for a single place: with two, one that
/// has just been given its place may be held up by its thread while others pass through the second.
fn nobody_is_overtaken(race: &Race, promises: &[Promised]) {
    let begun = race.begun.lock().unwrap();
    let begun = |promised: &Promised| begun.get(&promised.number).copied();
    for first in promises {
        let sooner = |later: &&Promised| {
            later.sent > first.promised && begun(later).is_some() && begun(later) < begun(first)
        };
        let overtook = promises.iter().filter(sooner).count();
        assert_eq!(overtook, 0, "{} was overtaken", first.number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn trap_a_queue_of_racing_tasks_is_first_come_first_served() {
    for n in [1, 1, 3] {
        race(n).await;
    }
}
