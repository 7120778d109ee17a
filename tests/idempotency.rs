//! `Idempotency-Key`: a request with a key is done once, however often it is sent, by however many at
//! once, and whatever becomes of its connection; whoever sends it again gets its own response, or
//! the way to it.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use desk::{Held, Insert, Shuffled, get, job};
use http::{HeaderValue, Request, Response, header, request::Parts};
use http_body_util::BodyExt;
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, gated, with_trailers},
    soon,
};
use tokio::{
    io::AsyncWriteExt,
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, make::Shared,
    service_fn, util::BoxCloneSyncService,
};
use tower_offload::{
    BoxError, ErrorKind, JobId, MemoryStore, Offload, OffloadBuilder, Owner, Policies, Policy,
    Record, Status, Store,
};
use tower_test::mock;

const HOUR: Duration = Duration::from_secs(3600);
/// Surely over before a test's handler is told to answer.
const BRIEF: Duration = Duration::from_millis(10);

/// Whoever sent the `Authorization` header; those who did not are one owner too.
fn owner(request: &Parts) -> Option<Owner> {
    let name = request.headers.get(header::AUTHORIZATION).cloned();
    Some(name.map_or(Owner::from("whoever"), Owner::from))
}

fn builder() -> OffloadBuilder {
    Offload::builder("/jobs").owner(owner)
}

// ------------------------------------------------------------------------------ a server to ask

struct Desk {
    server: Server,
    calls: Calls,
    offload: Offload,
    store: Held,
}

/// By default the client waits for the response.
fn policies() -> Policies {
    let brief = || Policy::after(BRIEF).idempotent();
    Policies::otherwise(Policy::after(HOUR).idempotent())
        .at("/brief", brief())
        .at("/always", Policy::always().idempotent())
        .at("/required", Policy::after(HOUR).idempotency_required())
        .at("/asked", Policy::on_request(BRIEF).idempotent())
        .at("/one", brief().concurrency(1))
        .at("/queue", brief().concurrency(1).queue(5))
        .at("/unkeyed", Policy::after(HOUR))
}

impl Desk {
    async fn new() -> Self {
        Self::with(builder(), Insert::Works).await
    }

    async fn with(builder: OffloadBuilder, insert: Insert) -> Self {
        let store = Held::new(insert);
        let offload = builder.store(store.clone()).build().unwrap();
        let (gated, calls) = gated();
        let app =
            Router::new().fallback_service(gated.route()).nest_service("/jobs", offload.status());
        let shared = Shared::new(offload.layer(policies()).layer(app));
        let server =
            Server::by(async |listener| axum::serve(listener, shared).await.unwrap()).await;
        Self { server, calls, offload, store }
    }

    fn send(
        &self,
        client: &Client,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let mut request = self.server.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = client.clone();
        async move { soon("an answer", client.send(request, body)).await }
    }

    fn post(
        &self,
        client: &Client,
        path: &str,
        key: &str,
    ) -> impl Future<Output = Answer> + Send + use<> {
        self.send(client, "POST", path, &[("idempotency-key", key), ("te", "trailers")], "body")
    }

    /// Sends the request by a raw connection.
    async fn raw(&self, path: &str, key: &str) -> support::Raw {
        let mut raw = self.server.connect().await;
        raw.write(format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\ncontent-length: 4\r\n\r\nbody"
        ))
        .await;
        raw
    }

    /// What answers a request whose handler is told to answer so.
    async fn answered(
        &mut self,
        sent: impl Future<Output = Answer>,
        how: impl FnOnce(Call),
    ) -> Answer {
        let calls = &mut self.calls;
        let (answer, ()) = tokio::join!(sent, async { how(calls.next().await) });
        answer
    }

    /// No handler was called that the test has not seen.
    fn is_quiet(&mut self) -> bool {
        self.calls.is_empty()
    }
}

fn new_key() -> String {
    JobId::random().unwrap().to_string()
}

fn protocols() -> [Client; 2] {
    [Client::http1(), Client::http2()]
}

/// All of an answer but its date.
fn all_of(mut answer: Answer) -> String {
    answer.headers.remove("date").expect("a date");
    format!("{answer:?}")
}

fn is_problem(answer: &Answer, status: u16, kind: &str) {
    assert_eq!(answer.status, status, "{answer:#?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.json()["type"], format!("urn:tower-offload:problem:{kind}"));
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.find_header("retry-after").is_some(), status == 503 && kind != "interrupted");
}

/// A response with all that one can have.
fn rich() -> Response<Body> {
    let mut response = with_trailers("the body", "x-sum", "42");
    *response.status_mut() = http::StatusCode::CREATED;
    for (name, value) in [
        ("cache-control", "public, max-age=60"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("etag", "\"1\""),
        ("location", "/things/1"),
    ] {
        response.headers_mut().append(name, HeaderValue::from_static(value));
    }
    response
}

// ------------------------------------------------------------------------- one job, one response

#[tokio::test]
async fn within_the_budget_it_is_the_response_itself_for_all_and_ever_after() {
    let mut desk = Desk::new().await;
    for client in protocols() {
        let bare = desk.send(&client, "POST", "/", &[("te", "trailers")], "body");
        let bare = all_of(desk.answered(bare, |call| call.answer(rich())).await);
        assert!(bare.contains("x-sum") && bare.contains("max-age=60") && bare.contains("201"));
        let key = new_key();
        let mut waiting = JoinSet::new();
        for _ in 0..50 {
            waiting.spawn(desk.post(&client, "/", &key));
        }
        let call = desk.calls.next().await;
        assert_eq!(call.body, "body");
        assert_eq!(call.head.headers["idempotency-key"], key);
        call.answer(rich());
        for answer in waiting.join_all().await {
            assert_eq!(all_of(answer), bare);
        }
        for client in protocols() {
            let again = desk.post(&client, "/", &key).await;
            assert_eq!(again.find_header("asyncresult"), None);
            assert_eq!(again.body, "the body");
        }
        assert_eq!(all_of(desk.post(&client, "/", &key).await), bare);
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn a_handlers_own_202_and_failures_are_its_answers_too() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    for status in [202_u16, 204, 304, 404, 409, 500, 503] {
        let status = http::StatusCode::from_u16(status).unwrap();
        println!("{status}");
        let key = status.as_str();
        let first = desk.post(&client, "/", key);
        let first = desk.answered(first, |call| call.answer(status)).await;
        assert_eq!((first.status, first.find_header("location")), (status, None));
        assert_eq!(all_of(desk.post(&client, "/", key).await), all_of(first));
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn past_the_budget_all_are_told_of_one_job() {
    let mut desk = Desk::new().await;
    for path in ["/brief", "/always"] {
        for client in protocols() {
            let key = new_key();
            let first = desk.post(&client, path, &key).await;
            let call = desk.calls.next().await;
            for client in protocols() {
                let again = desk.post(&client, path, &key).await;
                assert_eq!(again.location(), first.location());
                for header in ["retry-after", "link"] {
                    assert!(again.find_header(header).is_some());
                }
                assert_eq!(again.json()["status"], "running");
            }
            call.answer("done");
            let document = client.ended(&desk.server, first.location()).await;
            assert_eq!(document["status"], "succeeded");
            let again = desk.post(&client, path, &key).await;
            assert_eq!((again.status.as_u16(), again.text()), (200, "done"));
        }
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn another_request_under_the_key_is_refused_and_not_run() {
    let mut desk = Desk::new().await;
    for client in protocols() {
        let key = new_key();
        let headers = [("idempotency-key", &*key)];
        let others = [
            ("PUT", "/a?b", "body"),
            ("GET", "/a?b", "body"),
            ("POST", "/b?b", "body"),
            ("POST", "/a/?b", "body"),
            ("POST", "/a?c", "body"),
            ("POST", "/a?", "body"),
            ("POST", "/a", "body"),
            ("POST", "/a?b", "Body"),
            ("POST", "/a?b", "body "),
            ("POST", "/a?b", ""),
            ("POST", "/brief", "body"),
        ];
        let first = tokio::spawn(desk.send(&client, "POST", "/a?b", &headers, "body"));
        let call = desk.calls.next().await;
        for (method, path, body) in others {
            let refused = desk.send(&client, method, path, &headers, body).await;
            is_problem(&refused, 422, "idempotency-key-reused");
        }
        call.answer("done");
        assert_eq!(first.await.unwrap().text(), "done");
        for (method, path, body) in others {
            let refused = desk.send(&client, method, path, &headers, body).await;
            is_problem(&refused, 422, "idempotency-key-reused");
        }
        let again = desk.send(&client, "POST", "/a?b", &headers, "body").await;
        assert_eq!(again.text(), "done");
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn equal_keys_of_two_owners_never_meet() {
    let mut desk = Desk::new().await;
    for client in protocols() {
        let key = new_key();
        let by = |who, body| {
            let headers = [("idempotency-key", &*key), ("authorization", who)];
            desk.send(&client, "POST", "/always", &headers, body)
        };
        let (ann, bob) = (by("ann", "of ann").await, by("bob", "of bob").await);
        assert_ne!(ann.location(), bob.location());
        assert_eq!(by("ann", "of ann").await.location(), ann.location());
        is_problem(&by("bob", "of ann").await, 422, "idempotency-key-reused");
        let poll = desk.send(&client, "GET", ann.location(), &[("authorization", "bob")], "");
        assert_eq!(poll.await.status, 404);
        for body in ["of ann", "of bob"] {
            assert_eq!(desk.calls.next().await.body, body);
        }
    }
    assert!(desk.is_quiet());
}

// ------------------------------------------------------------------------------- what is no key

#[tokio::test]
async fn where_a_key_is_required_only_safe_methods_do_without() {
    let mut desk = Desk::new().await;
    for client in protocols() {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let refused = desk.send(&client, method, "/required", &[], "").await;
            is_problem(&refused, 400, "idempotency-key-missing");
        }
        assert!(desk.is_quiet());
        for method in ["GET", "HEAD", "OPTIONS"] {
            let sent = desk.send(&client, method, "/required", &[], "");
            assert_eq!(desk.answered(sent, |call| call.answer("done")).await.status, 200);
        }
        for path in ["/", "/brief"] {
            let sent = desk.send(&client, "POST", path, &[], "");
            assert_ne!(desk.answered(sent, |call| call.answer("done")).await.status, 400);
        }
        let key = new_key();
        let sent = desk.post(&client, "/required", &key);
        assert_eq!(desk.answered(sent, |call| call.answer("done")).await.status, 200);
    }
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_not_repeated() {
    let mut desk = Desk::new().await;
    let (long, quoted) = ("s3cret".repeat(43), format!("\"{}\"", "s3cret".repeat(43)));
    let client = Client::http1();
    let mut details = Vec::new();
    for lines in [
        &["s3cret", "s3cret"][..],
        &["s3cret", "\"another\""],
        &[""],
        &["\"\""],
        &[&*long],
        &[&*quoted],
        &["\"s3cret"],
        &["s3cret, s3cret"],
        &["\"s3cret\";a=1"],
        &["s3cret <script>"],
        &["\"s3cret\\n\""],
    ] {
        for path in ["/", "/required", "/always"] {
            let headers: Vec<_> = lines.iter().map(|line| ("idempotency-key", *line)).collect();
            let refused = desk.send(&client, "POST", path, &headers, "s3cret").await;
            is_problem(&refused, 400, "idempotency-key-malformed");
            assert!(!format!("{refused:?} {}", refused.text()).contains("s3cret"), "{refused:?}");
            details.push(refused.json()["detail"].as_str().unwrap().to_owned());
        }
    }
    details.sort_unstable();
    details.dedup();
    assert_eq!(details.len(), 4, "several, empty, too long, malformed: {details:#?}");
    let mut raw = desk.server.connect().await;
    raw.write(b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: \xe9\xff\r\n\r\n").await;
    let (head, _) = raw.read_response().await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    assert!(desk.is_quiet());
    // Where no keys are honoured they are the handler's affair.
    let sent = desk.send(&client, "POST", "/unkeyed", &[("idempotency-key", "")], "");
    assert_eq!(desk.answered(sent, |call| call.answer("done")).await.status, 200);
}

#[tokio::test]
async fn a_key_is_the_same_in_quotes_and_without() {
    let mut desk = Desk::new().await;
    let client = Client::http2();
    let first = desk.post(&client, "/", "order-7");
    assert_eq!(desk.answered(first, |call| call.answer("done")).await.text(), "done");
    for key in ["\"order-7\"", " order-7 ", "order-7"] {
        assert_eq!(desk.post(&client, "/", key).await.text(), "done");
    }
    assert!(desk.is_quiet());
    let other = desk.post(&client, "/", "\"Order-7\"");
    assert_eq!(desk.answered(other, |call| call.answer("other")).await.text(), "other");
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused_and_its_key_is_free() {
    let mut desk = Desk::with(builder().max_body_bytes(4), Insert::Works).await;
    for client in protocols() {
        let key = new_key();
        let headers = [("idempotency-key", &*key)];
        let refused = desk.send(&client, "POST", "/", &headers, "body.").await;
        is_problem(&refused, 413, "body-too-large");
        assert_eq!(refused.json()["limit"], "max_body_bytes");
        let fits = desk.send(&client, "POST", "/", &headers, "body");
        assert_eq!(desk.answered(fits, |call| call.answer("done")).await.text(), "done");
        // Without a key it is read as a stream.
        let unkeyed = desk.send(&client, "POST", "/", &[], "body.");
        assert_eq!(desk.answered(unkeyed, |call| call.answer("done")).await.text(), "done");
    }
    // Of a length that is not told.
    let mut raw = desk.server.connect().await;
    raw.write(
        "POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .await;
    raw.write("3\r\nabc\r\n2\r\nde\r\n").await;
    let (head, _) = raw.read_response().await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    assert!(desk.is_quiet());
    assert_eq!(desk.offload.stats().await.unwrap().total().running, 0);
}

// ----------------------------------------------------------------------------- clients that leave

/// Closes the connection, and waits until the server has let go of the request.
async fn leave(mut raw: support::Raw) {
    raw.0.shutdown().await.unwrap();
    assert_eq!(soon("the server closes", raw.read_to_end()).await, b"");
}

#[tokio::test]
async fn a_client_fetches_the_outcome_of_a_request_whose_answer_it_never_saw() {
    let client = Client::http1();
    for path in ["/", "/asked", "/brief"] {
        let mut desk = Desk::new().await;
        let raw = desk.raw(path, "k").await;
        let call = desk.calls.next().await;
        match path {
            "/brief" => drop(raw),
            _ => leave(raw).await,
        }
        assert!(!call.is_gone());
        call.answer("done");
        // A `/brief` one may still run.
        let outcome = loop {
            let answer = desk.post(&client, path, "k").await;
            if answer.status != 202 {
                break answer;
            }
        };
        assert_eq!(outcome.text(), "done");
        assert!(desk.is_quiet());
    }
    // What the test relies on: without a key the work is dropped.
    let mut desk = Desk::new().await;
    let mut raw = desk.server.connect().await;
    raw.write("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    let call = desk.calls.next().await;
    leave(raw).await;
    call.gone().await;
}

#[tokio::test]
async fn a_stream_that_is_reset_drops_no_work() {
    let mut desk = Desk::new().await;
    let client = Client::http2();
    let sent = tokio::spawn(desk.post(&client, "/", "k"));
    let call = desk.calls.next().await;
    sent.abort();
    assert!(sent.await.unwrap_err().is_cancelled());
    let again = desk.post(&client, "/", "k");
    let (again, ()) = tokio::join!(again, async { call.answer("done") });
    assert_eq!(again.text(), "done");
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn a_client_that_leaves_in_the_midst_of_its_body_has_done_nothing() {
    let mut desk = Desk::new().await;
    let mut raw = desk.server.connect().await;
    raw.write("POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ncontent-length: 4\r\n\r\nbo")
        .await;
    raw.0.shutdown().await.unwrap();
    soon("the server closes", raw.read_to_end()).await;
    let again = desk.post(&Client::http1(), "/", "k");
    assert_eq!(desk.answered(again, |call| call.answer("done")).await.text(), "done");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_midst_of_its_registration_has_its_work_done() {
    let mut desk = Desk::with(builder(), Insert::Waits).await;
    for path in ["/", "/always", "/queue"] {
        let raw = desk.raw(path, path).await;
        soon("its registration begins", async {
            while desk.offload.stats().await.unwrap().total().running == 0 {
                yield_now().await;
            }
        })
        .await;
        leave(raw).await;
        desk.store.let_insert();
        let call = desk.calls.next().await;
        // Others must not wait for the store.
        desk.store.inserts(Insert::Works);
        let again = desk.post(&Client::http1(), path, path);
        let (again, ()) = tokio::join!(again, async { call.answer("done") });
        assert!([200, 202].contains(&again.status.as_u16()), "{again:?}");
        while desk.post(&Client::http1(), path, path).await.text() != "done" {}
        desk.store.inserts(Insert::Waits);
    }
    assert!(desk.is_quiet());
}

// --------------------------------------------------------------------------- limits and shutdown

#[tokio::test]
async fn without_room_it_is_refused_and_a_repeat_is_answered() {
    for (limit, builder, path) in
        [("max_running", builder().max_running(1), "/brief"), ("concurrency", builder(), "/one")]
    {
        let mut desk = Desk::with(builder, Insert::Works).await;
        for client in protocols() {
            let key = new_key();
            let first = desk.post(&client, path, &key).await;
            let call = desk.calls.next().await;
            for other in ["another", "a-third"] {
                let refused = desk.post(&client, path, other).await;
                is_problem(&refused, 503, "limit-reached");
                assert_eq!(refused.json()["limit"], limit);
            }
            assert_eq!(desk.post(&client, path, &key).await.location(), first.location());
            let reused = desk.send(&client, "PUT", path, &[("idempotency-key", &key)], "body");
            is_problem(&reused.await, 422, "idempotency-key-reused");
            assert!(desk.is_quiet());
            call.answer("done");
            client.ended(&desk.server, first.location()).await;
        }
        assert_eq!(desk.offload.stats().await.unwrap().total().refused, 4);
    }
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_answers_old_ones() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let first = desk.post(&client, "/", "old");
    desk.answered(first, |call| call.answer("done")).await;
    desk.store.inserts(Insert::IsFull);
    let refused = desk.post(&client, "/", "new").await;
    is_problem(&refused, 503, "limit-reached");
    assert_eq!(refused.json()["limit"], "max_stored_bytes");
    assert_eq!(desk.post(&client, "/", "old").await.text(), "done");
    assert!(desk.is_quiet());
    desk.store.inserts(Insert::Works);
    let new = desk.post(&client, "/", "new");
    assert_eq!(desk.answered(new, |call| call.answer("now")).await.text(), "now");
}

#[tokio::test]
async fn what_waits_with_its_body_counts_as_buffered() {
    // A head of these counts with some 600 bytes.
    let mut desk = Desk::with(builder().max_buffered_bytes(1000), Insert::Works).await;
    let client = Client::http1();
    desk.post(&client, "/queue", "runs").await;
    // Its handler has read its body.
    let call = desk.calls.next().await;
    let queued = desk.post(&client, "/queue", "waits").await;
    let refused = desk.post(&client, "/queue", "another").await;
    is_problem(&refused, 503, "limit-reached");
    assert_eq!(refused.json()["limit"], "max_buffered_bytes");
    assert_eq!(client.delete(&desk.server, queued.location()).await.status, 200);
    soon("its bytes are given back", async {
        while desk.post(&client, "/queue", "another").await.status != 202 {}
    })
    .await;
    call.answer("done");
    assert_eq!(desk.calls.next().await.head.headers["idempotency-key"], "another");
}

#[tokio::test]
async fn a_drain_begins_no_key_and_answers_those_that_are_held() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let ended = desk.post(&client, "/", "ended");
    desk.answered(ended, |call| call.answer("done")).await;
    let runs = desk.post(&client, "/brief", "runs").await;
    let call = desk.calls.next().await;
    let offload = desk.offload.clone();
    let drain = tokio::spawn(async move { offload.drain(HOUR).await });
    // A new key is refused once it has begun.
    let refused = soon("the drain begins", async {
        for number in 0.. {
            let sent = desk.post(&client, "/brief", &number.to_string()).await;
            if sent.status == 503 {
                return sent;
            }
            desk.calls.next().await.answer("early");
        }
        unreachable!()
    });
    is_problem(&refused.await, 503, "shutting-down");
    assert_eq!(desk.post(&client, "/", "ended").await.text(), "done");
    assert_eq!(desk.post(&client, "/brief", "runs").await.location(), runs.location());
    // Without a key it stays attached.
    let unkeyed = desk.send(&client, "POST", "/brief", &[], "");
    assert_eq!(desk.answered(unkeyed, |call| call.answer("done")).await.text(), "done");
    assert!(desk.is_quiet());
    call.answer("finished");
    assert_eq!(soon("the drain ends", drain).await.unwrap().interrupted(), 0);
    assert_eq!(desk.post(&client, "/brief", "runs").await.text(), "finished");
}

#[tokio::test]
async fn a_drain_answers_who_waits_for_a_job_that_it_interrupts() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let waits = tokio::spawn(desk.post(&client, "/", "k"));
    let call = desk.calls.next().await;
    assert_eq!(desk.offload.drain(Duration::ZERO).await.interrupted(), 1);
    is_problem(&waits.await.unwrap(), 503, "interrupted");
    is_problem(&desk.post(&client, "/", "k").await, 503, "interrupted");
    call.gone().await;
}

#[tokio::test]
async fn with_a_queue_keyed_requests_wait_their_turn() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let first = desk.post(&client, "/queue", "first").await;
    let call = desk.calls.next().await;
    let second = desk.post(&client, "/queue", "second").await;
    assert_eq!(second.json()["status"], "queued");
    assert_eq!(second.json()["queue_position"], 1);
    let third = desk.post(&client, "/queue", "third").await;
    for client in protocols() {
        for (key, of) in [("second", &second), ("third", &third)] {
            assert_eq!(desk.post(&client, "/queue", key).await.location(), of.location());
        }
    }
    // One without a key has no place in that queue, and stays attached.
    let unkeyed = desk.send(&client, "POST", "/queue", &[], "unkeyed");
    let unkeyed = desk.answered(unkeyed, |call| {
        assert_eq!(call.body, "unkeyed");
        call.answer("attached");
    });
    assert_eq!(unkeyed.await.text(), "attached");
    assert!(desk.is_quiet(), "nothing of what is queued runs");
    call.answer("1");
    client.ended(&desk.server, first.location()).await;
    desk.calls.next().await.answer("2");
    client.ended(&desk.server, second.location()).await;
    desk.calls.next().await.answer("3");
    client.ended(&desk.server, third.location()).await;
    for (key, outcome) in [("first", "1"), ("second", "2"), ("third", "3")] {
        assert_eq!(desk.post(&client, "/queue", key).await.text(), outcome);
    }
    assert!(desk.is_quiet());
}

// ------------------------------------------------------------------------ cancellation and panics

#[tokio::test]
async fn a_job_that_was_canceled_in_the_queue_lets_go_of_its_key() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    desk.post(&client, "/queue", "first").await;
    let call = desk.calls.next().await;
    let queued = desk.post(&client, "/queue", "k").await;
    assert_eq!(client.delete(&desk.server, queued.location()).await.status, 200);
    let again = desk.post(&client, "/queue", "k").await;
    assert_ne!(again.location(), queued.location());
    // The key may be another request's now.
    assert_eq!(client.delete(&desk.server, again.location()).await.status, 200);
    let headers = [("idempotency-key", "k")];
    let other = desk.send(&client, "PUT", "/queue", &headers, "other").await;
    call.answer("done");
    let call = desk.calls.next().await;
    assert_eq!((call.head.method.as_str(), &call.body[..]), ("PUT", &b"other"[..]));
    call.answer("of the other");
    client.ended(&desk.server, other.location()).await;
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn a_job_that_was_canceled_while_it_ran_keeps_its_key() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let accepted = desk.post(&client, "/brief", "k").await;
    let call = desk.calls.next().await;
    assert_eq!(client.delete(&desk.server, accepted.location()).await.status, 200);
    call.gone().await;
    for client in protocols() {
        is_problem(&desk.post(&client, "/brief", "k").await, 410, "canceled");
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn whoever_waits_for_a_job_that_is_canceled_is_told() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let waits = tokio::spawn(desk.post(&client, "/", "k"));
    desk.calls.next().await;
    let headers = [("idempotency-key", "k"), ("prefer", "respond-async"), ("te", "trailers")];
    let again = desk.send(&client, "POST", "/", &headers, "body").await;
    assert_eq!(client.delete(&desk.server, again.location()).await.status, 200);
    is_problem(&waits.await.unwrap(), 410, "canceled");
}

#[tokio::test]
async fn a_result_that_was_removed_is_gone_for_repeats_too() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    let accepted = desk.post(&client, "/brief", "k").await;
    desk.calls.next().await.answer("done");
    client.ended(&desk.server, accepted.location()).await;
    let result = format!("{}/result", accepted.location());
    assert_eq!(client.delete(&desk.server, &result).await.status, 204);
    is_problem(&desk.post(&client, "/brief", "k").await, 410, "removed");
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn a_panic_is_told_to_all_and_not_tried_again() {
    let mut desk = Desk::new().await;
    for client in protocols() {
        let key = new_key();
        let first = desk.post(&client, "/", &key);
        is_problem(&desk.answered(first, Call::panic).await, 500, "panicked");
        is_problem(&desk.post(&client, "/", &key).await, 500, "panicked");
    }
    assert!(desk.is_quiet());
}

#[tokio::test]
async fn a_keyed_request_that_cannot_be_a_job_is_refused() {
    let mut desk = Desk::new().await;
    let client = Client::http1();
    for (method, header) in [
        ("POST", ("content-type", "application/grpc")),
        ("GET", ("range", "bytes=0-")),
        ("GET", ("accept", "text/event-stream")),
    ] {
        let headers = [("idempotency-key", "k"), header];
        let answer = desk.send(&client, method, "/", &headers, "").await;
        is_problem(&answer, 400, "cannot-be-a-job");
    }
    // Without its key it is as if the layer were not there; and an `Upgrade` that is none is a job.
    let sent = desk.send(&client, "POST", "/", &[("content-type", "application/grpc")], "");
    assert_eq!(desk.answered(sent, |call| call.answer("done")).await.text(), "done");
    let headers = [("idempotency-key", "k"), ("upgrade", "websocket")];
    let sent = desk.send(&client, "POST", "/", &headers, "");
    assert_eq!(desk.answered(sent, |call| call.answer("once")).await.text(), "once");
    let again = desk.send(&client, "POST", "/", &headers, "").await;
    assert_eq!(again.text(), "once");
    assert_eq!(desk.store.jobs.jobs(), 1);
}

// ------------------------------------------------------------------------- without a server

type Handler = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

/// How often the handler has run under each key.
type Runs = Arc<Mutex<HashMap<String, usize>>>;

fn key_of(request: &Request<Body>) -> String {
    request.headers()["idempotency-key"].to_str().unwrap().to_owned()
}

/// A handler that notes its run, takes its time, and answers with the number of the run.
fn counting(runs: &Runs, takes: Duration) -> Handler {
    let runs = Arc::clone(runs);
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let runs = Arc::clone(&runs);
        async move {
            let run = {
                let mut runs = runs.lock().unwrap();
                let run = runs.entry(key_of(&request)).or_default();
                *run += 1;
                run.to_string()
            };
            let body = request.into_body().collect().await?.to_bytes();
            sleep(takes).await;
            Ok(Response::new(Body::from([run.as_bytes(), b" ", &body].concat())))
        }
    }))
}

fn layered(offload: &Offload, policy: Policy, handler: Handler) -> Handler {
    BoxCloneSyncService::new(offload.layer(policy).boxed().layer(handler))
}

fn keyed(key: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::post("/").header("idempotency-key", key);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

/// A desk whose handler counts its runs.
struct Local {
    store: Held,
    service: Handler,
    runs: Runs,
}

impl Local {
    fn new(builder: OffloadBuilder, policy: Policy, takes: Duration) -> Self {
        let (store, runs) = (Held::new(Insert::Works), Runs::default());
        let offload = builder.store(store.clone()).build().unwrap();
        let service = layered(&offload, policy, counting(&runs, takes));
        Self { store, service, runs }
    }

    /// What is answered to a request with this key: its status and its body.
    fn send(&self, key: &str) -> impl Future<Output = (u16, String)> + Send + use<> {
        told(self.service.clone(), keyed(key, &[], "body"))
    }

    fn runs(&self, key: &str) -> usize {
        self.runs.lock().unwrap().get(key).copied().unwrap_or_default()
    }
}

async fn told(service: Handler, request: Request<Body>) -> (u16, String) {
    let answer = service.oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn response(run: usize) -> (u16, String) {
    (200, format!("{run} body"))
}

fn is_problem_of(answer: &(u16, String), status: u16, kind: &str) {
    assert_eq!(answer.0, status, "{answer:?}");
    assert!(answer.1.contains(&format!("urn:tower-offload:problem:{kind}\"")), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_kept_as_long_as_its_job() {
    let ttl = Duration::from_secs(60);
    let local =
        Local::new(builder().ttl(ttl), Policy::after(HOUR).idempotent(), Duration::from_secs(1));
    assert_eq!(local.send("k").await, response(1));
    sleep(ttl - Duration::from_secs(1)).await;
    assert_eq!(local.send("k").await, response(1), "and a repeat makes it no longer");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(local.send("k").await, response(2));
    assert_eq!(local.send("k").await, response(2));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_has_its_key_for_as_long_as_it_takes() {
    let builder = builder().ttl(Duration::from_secs(1)).max_run_time(HOUR * 100);
    let local = Local::new(builder, Policy::after(BRIEF).idempotent(), HOUR * 50);
    for _ in 0..4 {
        assert_eq!(local.send("k").await.0, 202);
        sleep(HOUR * 10).await;
    }
    assert_eq!(local.runs("k"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_store_failing_it_is_refused_and_its_key_is_free() {
    for insert in [Insert::Fails, Insert::IsLost] {
        let policy = Policy::after(HOUR).idempotent();
        let local = Local::new(builder().max_running(1), policy, Duration::from_secs(1));
        local.store.inserts(insert);
        is_problem_of(&local.send("k").await, 503, "store-unavailable");
        // It is taken back by now.
        sleep(Duration::from_secs(1)).await;
        assert_eq!((local.runs("k"), local.store.jobs.jobs()), (0, 0));
        local.store.inserts(Insert::Works);
        assert_eq!(local.send("k").await, response(1));
        assert_eq!(local.send("k").await, response(1));
        assert_eq!(local.runs("k"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_of_a_job_whose_registration_was_lost_is_told_of_its_end() {
    let local = Local::new(builder(), Policy::after(HOUR).idempotent(), Duration::from_secs(1));
    local.store.inserts(Insert::IsLost);
    local.store.changes_take(Duration::from_secs(1));
    let lost = local.send("k").await;
    is_problem_of(&lost, 503, "store-unavailable");
    // It is in the store, and its end not yet.
    local.store.inserts(Insert::Works);
    let asked = keyed("k", &[("prefer", "respond-async")], "body");
    let promised = local.service.clone().oneshot(asked).await.unwrap();
    let id: JobId = job(&promised).rsplit('/').next().unwrap().parse().unwrap();
    is_problem_of(&local.send("k").await, 503, "interrupted");
    let record: Record = local.store.read(id, None).await.unwrap().unwrap();
    assert_eq!((record.status(), record.claim()), (Status::Failed, None));
    assert_eq!(local.runs("k"), 0);
    assert_eq!(local.send("k").await, response(1));
    assert_eq!(local.send("k").await, response(1));
}

#[tokio::test(start_paused = true)]
async fn preferences_say_how_long_the_client_waits() {
    let second = Duration::from_secs(1);
    for (policy, prefer, waits, status, applied) in [
        (Policy::after(2 * second), "", 2, 202, None),
        (Policy::after(9 * second), "", 5, 200, None),
        (Policy::after(2 * second), "wait=9", 2, 202, None),
        (Policy::after(9 * second), "respond-async", 0, 202, Some("respond-async")),
        (Policy::after(9 * second), "respond-async, wait=2", 2, 202, Some("respond-async, wait=2")),
        (Policy::after(2 * second), "respond-async, wait=9", 5, 200, None),
        (Policy::always(), "", 0, 202, None),
        (Policy::always(), "respond-async, wait=9", 0, 202, Some("respond-async")),
        (Policy::on_request(2 * second), "", 5, 200, None),
        (Policy::on_request(2 * second), "wait=1", 5, 200, None),
        (Policy::on_request(2 * second), "respond-async", 2, 202, Some("respond-async")),
        (
            Policy::on_request(second),
            "respond-async, wait=3",
            3,
            202,
            Some("respond-async, wait=3"),
        ),
    ] {
        let local = Local::new(builder(), policy.clone().idempotent(), 5 * second);
        for (again, waits) in [(false, waits), (true, waits.min(5 - waits))] {
            let asked = match prefer {
                "" => keyed("k", &[], "body"),
                prefer => keyed("k", &[("prefer", prefer)], "body"),
            };
            let begun = Instant::now();
            let answer = local.service.clone().oneshot(asked).await.unwrap();
            // A repeat may see the end within its own time.
            if !again {
                assert_eq!(answer.status(), status, "{policy:?} {prefer}");
                let told = answer.headers().get("preference-applied");
                assert_eq!(told.map(|told| told.to_str().unwrap()), applied, "{policy:?} {prefer}");
            }
            let waited = begun.elapsed();
            let expected = second * waits;
            assert!(
                waited >= expected && waited < expected + BRIEF,
                "{policy:?} {prefer} {waited:?}"
            );
        }
        sleep(6 * second).await;
        assert_eq!(local.send("k").await, response(1));
    }
}

#[tokio::test(start_paused = true)]
async fn on_request_without_a_preference_waits_to_the_end() {
    let builder = builder().max_run_time(HOUR * 100);
    let local = Local::new(builder, Policy::on_request(BRIEF).idempotent(), HOUR * 50);
    let (one, two) = tokio::join!(local.send("k"), local.send("k"));
    assert_eq!((one, two), (response(1), response(1)));
}

#[tokio::test(start_paused = true)]
async fn past_the_bound_on_waiters_nobody_waits_and_nothing_is_lost() {
    let builder = builder().max_waiters(1);
    let local = Local::new(builder, Policy::after(HOUR).idempotent(), Duration::from_secs(5));
    let waits = tokio::spawn(local.send("k"));
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    assert_eq!(local.send("k").await.0, 202);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(waits.await.unwrap(), response(1));
}

#[tokio::test(start_paused = true)]
async fn what_ends_without_a_response_is_the_same_for_all() {
    let broken = service_fn(async |_: Request<Body>| {
        sleep(Duration::from_secs(1)).await;
        Err::<Response<Body>, _>(BoxError::from("broken"))
    });
    let endless = service_fn(async |_: Request<Body>| std::future::pending().await);
    let large = service_fn(async |_: Request<Body>| {
        Ok::<_, BoxError>(Response::new(Body::from("x".repeat(200_000))))
    });
    let runs = Arc::new(AtomicUsize::new(0));
    for (handler, status, kind) in [
        (BoxCloneSyncService::new(broken), 500, "service-error"),
        (BoxCloneSyncService::new(endless), 504, "timed-out"),
        (BoxCloneSyncService::new(large), 500, "outcome-too-large"),
    ] {
        let offload = builder().max_outcome_bytes(100_000).build().unwrap();
        let begun = Arc::clone(&runs);
        let counted = handler.map_request(move |request| {
            begun.fetch_add(1, SeqCst);
            request
        });
        let policy = Policy::after(HOUR).idempotent().timeout(Duration::from_secs(60));
        let service = layered(&offload, policy, BoxCloneSyncService::new(counted));
        for _ in 0..3 {
            let answer = told(service.clone(), keyed("k", &[], "body")).await;
            is_problem_of(&answer, status, kind);
        }
        assert_eq!(runs.swap(0, SeqCst), 1);
    }
}

// --------------------------------------------------------------------------- tower and settings

/// Takes a permit at each `poll_ready`, and gives it back when it is dropped or its call has ended.
#[tokio::test(start_paused = true)]
async fn the_readied_service_is_given_back() {
    let runs = Runs::default();
    let store = Held::new(Insert::Waits);
    let offload = builder().store(store.clone()).build().unwrap();
    let policy = Policy::after(HOUR).idempotent().queue(5).concurrency(1);
    let mut service = ServiceBuilder::new()
        .layer(offload.layer(policy).boxed())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(counting(&runs, Duration::from_secs(1)));
    let mut calls = JoinSet::new();
    for number in 0..4 {
        // The one permit is free though the requests before have not ended.
        let ready = timeout(Duration::from_secs(3600), service.ready()).await.unwrap().unwrap();
        calls.spawn(ready.call(keyed(&number.to_string(), &[], "body")));
    }
    // Nor does the service that is kept hold it.
    for _ in 0..4 {
        store.let_insert();
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status(), 200);
    }
    assert_eq!(runs.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_service_that_is_broken_at_its_turn_fails_the_job() {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let offload = builder().build().unwrap();
    let mut service = offload.layer(Policy::after(HOUR).idempotent()).boxed().layer(service);
    handle.allow(1);
    let call = service.ready().await.unwrap().call(keyed("k", &[], "body"));
    handle.allow(0);
    handle.send_error("broken");
    let answer = soon("an answer", call).await.unwrap();
    assert_eq!(answer.status(), 500);
    assert!(timeout(Duration::ZERO, handle.next_request()).await.is_err(), "it was called");
}

#[tokio::test]
async fn a_request_comes_to_its_handler_as_it_was_sent() {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let offload = builder().build().unwrap();
    let mut service = offload.layer(Policy::after(HOUR).idempotent()).boxed().layer(service);
    handle.allow(2);
    let mut request = keyed("k", &[("x-own", "1")], "body");
    *request.uri_mut() = "/path?query".parse().unwrap();
    request.extensions_mut().insert(7_u8);
    let trailers: http::HeaderMap =
        [("x-sum".parse().unwrap(), HeaderValue::from_static("42"))].into_iter().collect();
    let frames = futures_util::stream::iter([
        Ok::<_, io::Error>(http_body::Frame::data(Bytes::from("bo"))),
        Ok(http_body::Frame::data(Bytes::from("dy"))),
        Ok(http_body::Frame::trailers(trailers.clone())),
    ]);
    *request.body_mut() = Body::new(http_body_util::StreamBody::new(frames));
    let call = service.ready().await.unwrap().call(request);
    let handler = async {
        let (request, answer) = handle.next_request().await.unwrap();
        let (head, body) = request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.to_string()), ("POST", "/path?query".into()));
        assert_eq!(
            (&head.headers["x-own"], head.extensions.get()),
            (&"1".parse().unwrap(), Some(&7_u8))
        );
        let body = body.collect().await.unwrap();
        assert_eq!(body.trailers(), Some(&trailers));
        assert_eq!(body.to_bytes(), "body");
        answer.send_response(Response::new(Body::from("done")));
    };
    let (answer, ()) = soon("an answer", async { tokio::join!(call, handler) }).await;
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn under_nested_routers_names_tell_routes_apart() {
    let offload = builder().build().unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let route = |name: &str| {
        let runs = Arc::clone(&runs);
        let handler = any(async move || _ = runs.fetch_add(1, SeqCst));
        let policy = Policy::after(HOUR).idempotent().name(name);
        Router::new().route("/run", handler).route_layer(offload.layer(policy))
    };
    let app =
        Router::new().nest("/a", route("a")).nest("/b", route("b")).nest("/also-a", route("a"));
    let send = async |path: &str| {
        let mut request = keyed("k", &[], "body");
        *request.uri_mut() = path.parse().unwrap();
        app.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!(send("/a/run").await, 200);
    assert_eq!(send("/b/run").await, 422);
    // Of one name and one rest of a path they are one route.
    assert_eq!(send("/also-a/run").await, 200);
    assert_eq!(runs.load(SeqCst), 1);
}

/// What the documentation of `Policy::idempotent` warns of.
#[tokio::test(start_paused = true)]
async fn of_layers_around_each_other_the_outer_one_counts() {
    let offload = builder().build().unwrap();
    let idempotent = || Policy::after(HOUR).idempotent();
    for (outer, inner, expected) in [
        (idempotent(), Policy::after(HOUR), 1),
        (idempotent(), idempotent(), 1),
        (Policy::never(), idempotent(), 1),
        (Policy::on_request(HOUR), idempotent(), 1),
        (Policy::after(HOUR), idempotent(), 2),
    ] {
        let runs = Runs::default();
        let key = new_key();
        let handler = layered(&offload, inner, counting(&runs, Duration::from_secs(1)));
        let service = layered(&offload, outer.clone(), handler);
        for _ in 0..2 {
            assert_eq!(told(service.clone(), keyed(&key, &[], "body")).await.0, 200);
        }
        assert_eq!(runs.lock().unwrap()[&key], expected, "{outer:?}");
    }
}

#[test]
fn policies_that_cannot_honour_a_key_are_refused() {
    let (owned, anonymous) = (builder().build().unwrap(), Offload::new("/jobs"));
    for (offload, policy, word) in [
        (&anonymous, Policy::after(HOUR).idempotent(), "owner"),
        (&anonymous, Policy::always().idempotency_required(), "owner"),
        (&anonymous, Policy::on_request(HOUR).idempotent(), "owner"),
        (&owned, Policy::never().idempotent(), "never"),
        (&owned, Policy::never().idempotency_required(), "never"),
        (&owned, Policy::after(HOUR).queue(5), "queue"),
        (&owned, Policy::on_request(HOUR).queue(5), "queue"),
    ] {
        // The only one of a table is enough.
        let table = Policies::otherwise(Policy::never()).at("POST /a", policy.clone());
        for policies in [Policies::from(policy), table] {
            let error = offload.try_layer(policies.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(word), "{error}");
            let made = std::panic::AssertUnwindSafe(|| offload.layer(policies));
            let panic = std::panic::catch_unwind(made).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains(word));
        }
    }
    assert!(owned.try_layer(Policy::after(HOUR).queue(5).idempotent()).is_ok());
}

// --------------------------------------------------------------------------------------- races

const RACERS: usize = 200;

/// The handlers, behind one layer each, and how often they ran.
struct Race {
    nodes: Vec<(Offload, Handler)>,
    runs: Runs,
    shuffled: Shuffled,
    /// Some may find no room.
    is_narrow: bool,
}

/// What one of the racers was told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Told {
    Response(String),
    Job(String),
    Reused,
    NoRoom,
}

impl Race {
    /// So many desks with this store, as on so many nodes, with room for so many jobs on each.
    fn new<S: Store + Clone>(store: &S, nodes: usize, room: usize, policy: &Policy) -> Self {
        let runs = Runs::default();
        let node = |_| {
            let offload = builder().store(store.clone()).max_running(room).build().unwrap();
            let handler = counting(&runs, Duration::from_millis(2));
            let service = layered(&offload, policy.clone(), handler);
            (offload, service)
        };
        let nodes = (0..nodes).map(node).collect();
        Self { nodes, runs, shuffled: Shuffled::new(), is_narrow: room < RACERS }
    }

    /// Sends the key from all sides at once, with these bodies in turn; what each racer was told, and
    /// with which body.
    async fn run(&mut self, key: &str, bodies: &[&'static str]) -> Vec<(&'static str, Told)> {
        let mut racers = JoinSet::new();
        for number in 0..RACERS {
            let (_, service) = &self.nodes[number % self.nodes.len()];
            let service = service.clone();
            let body = bodies[self.shuffled.below(bodies.len() as u64) as usize];
            let request = keyed(key, &[], body);
            let delay = match self.shuffled.below(4) {
                0 => Duration::ZERO,
                _ => self.shuffled.time(Duration::from_millis(4)),
            };
            racers.spawn(async move {
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                let answer = service.oneshot(request).await.unwrap();
                (body, told_of(answer).await)
            });
        }
        soon("all are answered", racers.join_all()).await
    }

    /// The handler ran once under this key, and the winners were told of it and of no other.
    async fn has_run_once(&self, key: &str, told: &[(&str, Told)]) {
        let has_won = |told: &Told| !matches!(told, Told::Reused | Told::NoRoom);
        let won = told.iter().find(|(_, told)| has_won(told)).expect("a winner").0;
        let response = format!("1 {won}");
        let mut jobs: Vec<_> = Vec::new();
        for (body, told) in told {
            match told {
                Told::Reused => assert_ne!(*body, won),
                Told::NoRoom => assert!(self.is_narrow),
                Told::Response(text) => assert_eq!((*body, text), (won, &response)),
                Told::Job(job) => {
                    assert_eq!(*body, won);
                    jobs.push(job);
                }
            }
        }
        jobs.sort_unstable();
        jobs.dedup();
        assert!(jobs.len() <= 1, "{jobs:?}");
        for (offload, _) in &self.nodes {
            for job in &jobs {
                // Waits for its end.
                let answer = get(offload, &format!("{job}/result")).await;
                assert_eq!(answer.body(), &response);
            }
        }
        // Of a job that nobody waited for, the handler may have run only now.
        let runs = self.runs.lock().unwrap().get(key).copied();
        assert_eq!(runs, Some(1), "{key}");
    }

    /// Resolves when all places are free.
    async fn is_idle(&self) {
        for (offload, _) in &self.nodes {
            soon("all places are free", async {
                while offload.stats().await.unwrap().total().running > 0 {
                    yield_now().await;
                }
            })
            .await;
        }
    }
}

async fn told_of(answer: Response<Body>) -> Told {
    match answer.status().as_u16() {
        202 => Told::Job(job(&answer)),
        422 => Told::Reused,
        503 => Told::NoRoom,
        status => {
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(status, 200, "{text}");
            Told::Response(text)
        }
    }
}

/// Some are over before their handler is, some wait for it.
fn race_policies() -> [Policy; 3] {
    [
        Policy::after(Duration::from_millis(2)).idempotent(),
        Policy::after(HOUR).idempotency_required(),
        Policy::always().idempotent().queue(10_000).concurrency(1),
    ]
}

async fn races<S: Store + Clone>(store: S, nodes: usize, mut between: impl FnMut(&mut Shuffled)) {
    for policy in race_policies() {
        let mut race = Race::new(&store, nodes, 10_000, &policy);
        for round in 0..20 {
            between(&mut race.shuffled);
            let key = format!("{round} of {policy:?}").replace('"', "'");
            let key = format!("\"{}\"", &key[..key.len().min(200)]);
            let bodies: &[&str] = if round % 2 == 0 { &["body"] } else { &["one", "another"] };
            let told = race.run(&key, bodies).await;
            race.has_run_once(&key, &told).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_at_once_one_runs() {
    races(MemoryStore::new(usize::MAX), 1, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_at_once_on_two_nodes_one_runs() {
    races(MemoryStore::new(usize::MAX), 2, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_at_once_with_a_slow_store_one_runs() {
    let store = Held::new(Insert::Works);
    let held = store.clone();
    races(store, 2, move |shuffled| {
        held.inserts(Insert::Takes(shuffled.time(Duration::from_millis(3))));
        held.changes_take(shuffled.time(Duration::from_millis(2)));
    })
    .await;
}

/// Those that come while the one place is taken, and the one that took it is not in the store yet, are
/// told to come again; nobody is let in beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_at_once_with_room_for_one_one_runs() {
    let store = Held::new(Insert::Works);
    let mut race = Race::new(&store, 2, 1, &Policy::after(HOUR).idempotent());
    for round in 0..40 {
        store.inserts(Insert::Takes(race.shuffled.time(Duration::from_millis(2))));
        let key = round.to_string();
        let told = race.run(&key, &["one", "another"]).await;
        race.has_run_once(&key, &told).await;
        race.is_idle().await;
    }
}

/// Nobody sees the answer of some, nor of all in some rounds; and at last one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_that_leave_when_they_like_one_runs() {
    let store = Held::new(Insert::Takes(Duration::from_millis(1)));
    let policy = Policy::after(HOUR).idempotent();
    let mut race = Race::new(&store, 2, 10_000, &policy);
    for round in 0..40 {
        store.inserts(Insert::Takes(race.shuffled.time(Duration::from_millis(2))));
        let key = round.to_string();
        let mut racers = JoinSet::new();
        for number in 0..RACERS {
            let call = race.nodes[number % 2].1.clone().oneshot(keyed(&key, &[], "body"));
            let patience = race.shuffled.time(Duration::from_millis(6));
            let stays = round % 2 == 0 && race.shuffled.below(10) == 0;
            racers.spawn(async move {
                match stays {
                    true => Some(("body", told_of(call.await.unwrap()).await)),
                    false => match timeout(patience, call).await {
                        Ok(answer) => Some(("body", told_of(answer.unwrap()).await)),
                        Err(_) => None,
                    },
                }
            });
        }
        let mut told: Vec<_> =
            soon("all are over", racers.join_all()).await.into_iter().flatten().collect();
        let last = race.nodes[0].1.clone().oneshot(keyed(&key, &[], "body")).await.unwrap();
        told.push(("body", told_of(last).await));
        race.has_run_once(&key, &told).await;
    }
    race.is_idle().await;
}

/// Of jobs that are canceled while they wait, and sent again at the same time, none runs that was
/// canceled, and no key is run by two.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cancellations_in_the_queue_race_with_repeats() {
    let store = MemoryStore::new(usize::MAX);
    let policy = Policy::always().idempotent().queue(10_000).concurrency(1);
    let mut race = Race::new(&store, 1, 10_000, &policy);
    for round in 0..100 {
        let key = round.to_string();
        let (offload, service) = &race.nodes[0];
        // The one place is taken for two milliseconds.
        told(service.clone(), keyed(&format!("before {round}"), &[], "")).await;
        let queued = service.clone().oneshot(keyed(&key, &[], "body")).await.unwrap();
        // On a busy machine it may have ended already.
        let Told::Job(queued) = told_of(queued).await else { continue };
        let delay = race.shuffled.time(Duration::from_millis(4));
        let cancel = Request::delete(&queued).body(()).unwrap();
        let cancel = async {
            sleep(delay).await;
            offload.status().oneshot(cancel).await.unwrap()
        };
        let mut repeats = JoinSet::new();
        for _ in 0..10 {
            let (service, request) = (service.clone(), keyed(&key, &[], "body"));
            let delay = race.shuffled.time(Duration::from_millis(4));
            repeats.spawn(async move {
                sleep(delay).await;
                service.oneshot(request).await.unwrap().headers().get("location").cloned()
            });
        }
        let (_, repeats) = tokio::join!(cancel, repeats.join_all());
        let mut jobs: Vec<_> = repeats
            .iter()
            .flatten()
            .map(|location| location.to_str().unwrap().to_owned())
            .chain([queued])
            .collect();
        jobs.sort_unstable();
        jobs.dedup();
        let mut begun = 0;
        for job in jobs {
            let document: serde_json::Value = {
                get(offload, &job).await;
                serde_json::from_slice(get(offload, &format!("{job}/status")).await.body()).unwrap()
            };
            begun += usize::from(!document["started_at"].is_null());
        }
        let ran = race.runs.lock().unwrap().get(&key).copied().unwrap_or_default();
        assert!(ran <= 1 && begun <= 1 && ran <= begun, "{ran} of {begun}");
    }
}
