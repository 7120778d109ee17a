//! The request's body and the detach, over real sockets: no 202 before the body is over on the wire,
//! nothing of it lost, and the next request on the same connection answered rightly.

mod support;

use std::{
    convert::Infallible,
    io::{Read, Write},
    sync::{Arc, Mutex, mpsc as blocking},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    handler::Handler,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{any, get, post},
};
use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, Channel, Full, channel, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Client, Raw, Server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
};
use tower_offload::{Offload, OffloadBuilder, Policy};

const BUDGET: Duration = Duration::from_millis(50);

/// Long enough to see that nothing comes when the budget is over.
const SEVERAL_BUDGETS: Duration = Duration::from_millis(200);

// ------------------------------------------------------------------ an app whose handlers wait

/// Each way to be offloaded: the route's policy, and the request's `Prefer` header.
const CASES: [Case; 4] = [
    Case { policy: "after", prefer: "" },
    Case { policy: "always", prefer: "" },
    Case { policy: "asked", prefer: "respond-async" },
    Case { policy: "after", prefer: "respond-async, wait=0" },
];

#[derive(Debug, Clone, Copy)]
struct Case {
    policy: &'static str,
    prefer: &'static str,
}

/// What a handler does with its body, once it may.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reads {
    /// All of it.
    All,
    /// All of it, in a task of its own.
    Task,
    /// The first field of a multipart body.
    Field,
    /// Nothing: it keeps it.
    Nothing,
    /// Nothing: it drops it.
    Drops,
}

/// A server whose handlers wait twice: before they read, and before they answer.
struct App {
    server: Server,
    offload: Offload,
    hands: Hands,
    /// What each handler has seen of its body, or that it was dropped before it had an answer.
    seen: mpsc::UnboundedReceiver<String>,
}

#[derive(Clone)]
struct Hands {
    read: Arc<Semaphore>,
    answer: Arc<Semaphore>,
    seen: mpsc::UnboundedSender<String>,
}

impl App {
    async fn start() -> Self {
        Self::with(Offload::builder("/jobs")).await
    }

    async fn with(builder: OffloadBuilder) -> Self {
        let offload = builder.build().unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let closed = || Arc::new(Semaphore::new(0));
        let hands = Hands { read: closed(), answer: closed(), seen: sender };
        let route = |policy| any(handle.layer(offload.layer(policy)));
        let app = Router::new()
            .route("/after/{reads}", route(Policy::after(BUDGET)))
            .route("/always/{reads}", route(Policy::always()))
            .route("/asked/{reads}", route(Policy::on_request(BUDGET)))
            .route("/next", get(async || "next"))
            .route("/echo", post(async |body: Bytes| body))
            .with_state(hands.clone())
            .nest_service("/jobs", offload.status());
        Self { server: Server::axum(app).await, offload, hands, seen }
    }

    fn let_all_read(&self) {
        self.hands.read.add_permits(1000);
    }

    fn let_all_answer(&self) {
        self.hands.answer.add_permits(1000);
    }

    /// The outcome of this job, once the handlers may end.
    async fn outcome(&self, job: &str) -> String {
        self.let_all_read();
        self.let_all_answer();
        let client = Client::http1();
        assert_eq!(soon(job, client.ended(&self.server, job)).await["status"], "succeeded");
        let result = client.get(&self.server, &format!("{job}/result")).await;
        assert_eq!(result.status, 200, "{result:#?}");
        result.text().to_owned()
    }

    /// No job was begun, and no place for one is taken any more.
    async fn has_no_job(&self) {
        let drained = soon("no place is taken", self.offload.drain(Duration::MAX)).await;
        assert_eq!((drained.finished(), drained.interrupted()), (0, 0));
    }
}

async fn handle(
    State(hands): State<Hands>,
    Path(reads): Path<Reads>,
    body: Body,
) -> impl IntoResponse {
    let mut dropped = Dropped(Some(hands.seen.clone()));
    let mut seen = String::new();
    if http_body::Body::is_end_stream(&body) {
        seen += "over at the call, ";
    }
    let mut kept = None;
    let read = match reads {
        Reads::Drops => {
            drop(body);
            Ok(seen + "dropped it")
        }
        Reads::Nothing => {
            kept = Some(body);
            Ok(seen + "kept it")
        }
        Reads::Field => {
            hands.pass_read().await;
            first_field(kept.insert(body)).await
        }
        Reads::All => {
            hands.pass_read().await;
            all(body).await.map(|all| seen + &all)
        }
        Reads::Task => {
            let task = tokio::spawn({
                let hands = hands.clone();
                async move {
                    hands.pass_read().await;
                    all(body).await
                }
            });
            task.await.unwrap()
        }
    };
    let _ = hands.seen.send(read.clone().unwrap_or_else(|error| error));
    hands.answer.acquire().await.unwrap().forget();
    drop(kept);
    dropped.0 = None;
    read.map_err(|error| (StatusCode::BAD_REQUEST, error))
}

impl Hands {
    async fn pass_read(&self) {
        self.read.acquire().await.unwrap().forget();
    }
}

struct Dropped(Option<mpsc::UnboundedSender<String>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            let _ = seen.send("dropped".to_owned());
        }
    }
}

async fn all(body: Body) -> Result<String, String> {
    let all = body.collect().await.map_err(|error| format!("broken: {error}"))?;
    let trailers = all.trailers().cloned().unwrap_or_default();
    Ok(told(&all.to_bytes(), &trailers))
}

/// Reads up to the second boundary of `--B`, and no further.
async fn first_field(body: &mut Body) -> Result<String, String> {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read);
        if let [_, field, _, ..] = text.split("--B").collect::<Vec<_>>()[..] {
            return Ok(field.split("\r\n\r\n").nth(1).unwrap().trim_end().to_owned());
        }
        let frame = body.frame().await.ok_or("no second field")?;
        read.extend(frame.map_err(|error| error.to_string())?.into_data().unwrap());
    }
}

/// What a handler answers to this body.
fn told(body: &[u8], trailers: &HeaderMap) -> String {
    let hash = body.iter().fold(0_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(31));
    let trailers: Vec<_> = trailers.iter().map(|(name, value)| (name.as_str(), value)).collect();
    format!("{} bytes, {hash:x}, {trailers:?}", body.len())
}

fn untrailed(body: &[u8]) -> String {
    told(body, &HeaderMap::new())
}

/// Bytes without a pattern that would hide a piece that is lost or told twice.
fn upload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

// ------------------------------------------------------------------------- a client, byte by byte

impl Case {
    /// The head of a request to this case's route.
    fn head(&self, reads: &str, headers: &str) -> String {
        let Self { policy, prefer } = self;
        format!(
            "POST /{policy}/{reads} HTTP/1.1\r\nhost: x\r\nprefer: {prefer}\r\n{headers}\r\n\r\n"
        )
    }

    fn with_length(&self, reads: &str, length: usize) -> String {
        self.head(reads, &format!("content-length: {length}"))
    }

    fn chunked(&self, reads: &str) -> String {
        self.head(reads, "transfer-encoding: chunked")
    }
}

/// Both framings of a body that comes in two halves.
fn framings(case: &Case, reads: &str, body: &[u8]) -> [[Vec<u8>; 2]; 2] {
    let (first, second) = body.split_at(body.len() / 2);
    [
        [[case.with_length(reads, body.len()).as_bytes(), first].concat(), second.to_vec()],
        [
            [case.chunked(reads).as_bytes(), &chunk(first)].concat(),
            [chunk(second), b"0\r\n\r\n".to_vec()].concat(),
        ],
    ]
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

impl Raw {
    /// Nothing comes, though the budget has run out several times.
    async fn says_nothing(&mut self) {
        if let Ok(byte) = tokio::time::timeout(SEVERAL_BUDGETS, self.0.read_u8()).await {
            panic!("the server spoke or closed: {byte:?}");
        }
    }

    /// Reads a 202, and gives its job.
    async fn accepted(&mut self) -> String {
        let (head, _) = soon("the 202", self.read_response()).await;
        assert!(head.starts_with("http/1.1 202"), "{head}");
        head.lines().find_map(|line| line.strip_prefix("location: ")).unwrap().to_owned()
    }

    /// Sends another request, and reads its answer.
    async fn next_is_answered(&mut self) {
        self.write("GET /next HTTP/1.1\r\nhost: x\r\n\r\n").await;
        self.reads_next().await;
    }

    async fn reads_next(&mut self) {
        let (head, body) = soon("the next answer", self.read_response()).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(body, b"next");
    }

    async fn continues(&mut self) {
        let (head, _) = soon("100 Continue", self.read_response()).await;
        assert!(head.starts_with("http/1.1 100"), "{head}");
    }
}

/// One connection of HTTP/2.
type Http2 = SendRequest<UnsyncBoxBody<Bytes, std::io::Error>>;

async fn http2(server: &Server) -> Http2 {
    let stream = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

type Sent = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

fn send(http2: &Http2, app: &App, case: Case, reads: &str, body: impl Into<Upload>) -> Sent {
    let request = app
        .server
        .request("POST", &format!("/{}/{reads}", case.policy))
        .header("prefer", case.prefer)
        .body(body.into().0)
        .unwrap();
    Box::pin(http2.clone().send_request(request))
}

struct Upload(UnsyncBoxBody<Bytes, std::io::Error>);

impl From<Channel<Bytes, std::io::Error>> for Upload {
    fn from(body: Channel<Bytes, std::io::Error>) -> Self {
        Self(body.boxed_unsync())
    }
}

impl From<Vec<u8>> for Upload {
    fn from(body: Vec<u8>) -> Self {
        Self(Full::from(body).map_err(|never: Infallible| match never {}).boxed_unsync())
    }
}

fn job_of(response: hyper::Result<Response<Incoming>>) -> String {
    let response = response.unwrap();
    assert_eq!(response.status(), 202);
    response.headers()["location"].to_str().unwrap().to_owned()
}

// ------------------------------------------------------------------------------------- the traps

#[tokio::test]
async fn trap_1_1_the_next_request_is_not_read_as_body() {
    let body = upload(1000);
    for case in CASES {
        for [first, second] in framings(&case, "all", &body) {
            let app = App::start().await;
            let mut raw = app.server.connect().await;
            raw.write(first).await;
            raw.says_nothing().await;
            raw.write(second).await;
            let job = raw.accepted().await;
            // The handler has not yet read a byte.
            raw.next_is_answered().await;
            raw.next_is_answered().await;
            assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
        }
    }
}

#[tokio::test]
async fn trap_1_1_pipelined_requests_are_not_read_as_body() {
    let body = upload(1000);
    for case in CASES {
        for [first, second] in framings(&case, "all", &body) {
            let app = App::start().await;
            let mut raw = app.server.connect().await;
            let pipelined = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n";
            raw.write([first.clone(), second.clone(), first, second].concat()).await;
            raw.write(pipelined).await;
            let jobs = [raw.accepted().await, raw.accepted().await];
            raw.reads_next().await;
            for job in jobs {
                assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
            }
        }
    }
}

#[tokio::test]
async fn trap_1_2_a_handler_that_reads_late_sees_the_end_though_the_client_has_closed() {
    let body = upload(1000);
    for case in CASES {
        for framing in framings(&case, "all", &body) {
            let app = App::start().await;
            let mut raw = app.server.connect().await;
            raw.write(framing.concat()).await;
            let job = raw.accepted().await;
            drop(raw);
            assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
        }
    }
}

#[tokio::test]
async fn trap_1_3_a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let body = upload(1000);
    for case in CASES {
        let app = App::start().await;
        let mut raw = app.server.connect().await;
        raw.write(case.head("all", "content-length: 1000\r\nexpect: 100-continue")).await;
        raw.continues().await;
        raw.says_nothing().await;
        raw.write(&body).await;
        let job = raw.accepted().await;
        raw.next_is_answered().await;
        assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
    }
}

#[tokio::test]
async fn trap_1_4_a_large_body_held_unread_does_not_block_its_connection() {
    let body = upload(1_000_000);
    for case in CASES {
        for framing in framings(&case, "all", &body) {
            let app = App::start().await;
            let mut raw = app.server.connect().await;
            raw.write(framing.concat()).await;
            let job = raw.accepted().await;
            raw.next_is_answered().await;
            assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
        }
    }
}

#[tokio::test]
async fn trap_1_4_bodies_held_unread_do_not_stall_the_other_streams() {
    let body = upload(65_536);
    for case in CASES {
        let app = App::start().await;
        let http2 = http2(&app.server).await;
        let held: Vec<_> = (0..20).map(|_| send(&http2, &app, case, "all", body.clone())).collect();
        let held = tokio::spawn(futures_util::future::join_all(held));
        for _ in 0..3 {
            let request = app.server.request("POST", "/echo").body(Upload::from(body.clone()).0);
            let answer = http2.clone().send_request(request.unwrap());
            let answer = soon("another stream", answer).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
        }
        for accepted in soon("all are accepted", held).await.unwrap() {
            assert_eq!(app.outcome(&job_of(accepted)).await, untrailed(&body), "{case:?}");
        }
    }
}

#[tokio::test]
async fn trap_1_5_a_client_that_closes_in_mid_upload_gets_no_job() {
    for case in CASES {
        for [first, _] in framings(&case, "all", &upload(1000)) {
            for (reads, half_close) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let mut app = App::start().await;
                app.let_all_answer();
                if reads {
                    app.let_all_read();
                }
                let mut raw = app.server.connect().await;
                raw.write(&first).await;
                raw.says_nothing().await;
                if half_close {
                    raw.0.shutdown().await.unwrap();
                    app.let_all_read();
                    let rest = soon("the connection's end", raw.read_to_end()).await;
                    assert!(!rest.starts_with(b"HTTP/1.1 2"), "{case:?}");
                }
                drop(raw);
                // hyper does not drop a handler that has not yet asked for its body.
                app.let_all_read();
                let seen = soon("the handler's end", app.seen.recv()).await.unwrap();
                assert!(seen == "dropped" || seen.starts_with("broken"), "{case:?}: {seen}");
                app.has_no_job().await;
            }
        }
    }
}

#[tokio::test]
async fn trap_1_5_a_stream_reset_in_mid_upload_gets_no_job() {
    for case in CASES {
        for reads in [false, true] {
            let mut app = App::start().await;
            app.let_all_answer();
            if reads {
                app.let_all_read();
            }
            let (mut sender, body) = Channel::new(1);
            let http2 = http2(&app.server).await;
            let mut accepted = send(&http2, &app, case, "all", body);
            sender.send_data(Bytes::from_static(b"half")).await.unwrap();
            tokio::time::timeout(SEVERAL_BUDGETS, &mut accepted).await.unwrap_err();
            sender.abort(std::io::Error::other("the client gave up"));
            assert!(soon("the client's end", accepted).await.is_err(), "{case:?}");
            let seen = soon("the handler's end", app.seen.recv()).await.unwrap();
            assert!(seen == "dropped" || seen.starts_with("broken"), "{case:?}: {seen}");
            app.has_no_job().await;
        }
    }
}

#[tokio::test]
async fn trap_1_6_a_body_that_is_over_at_the_call_and_one_that_only_polling_tells() {
    for case in CASES {
        for (reads, framing, seen) in [
            ("nothing", "content-length: 0\r\n\r\n", "over at the call, kept it"),
            ("nothing", "\r\n", "over at the call, kept it"),
            ("all", "content-length: 0\r\n\r\n", "over at the call, 0 bytes, 0, []"),
            ("nothing", "content-length: 5\r\n\r\n12345", "kept it"),
            ("nothing", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n", "kept it"),
            ("all", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n", "0 bytes, 0, []"),
        ] {
            let app = App::start().await;
            let mut raw = app.server.connect().await;
            let head = case.head(reads, "").trim_end().to_owned();
            raw.write(format!("{head}\r\n{framing}")).await;
            let job = raw.accepted().await;
            raw.next_is_answered().await;
            assert_eq!(app.outcome(&job).await, seen, "{case:?} {framing}");
        }
        // A head that ends its stream.
        let app = App::start().await;
        let http2 = http2(&app.server).await;
        let job = job_of(soon("the 202", send(&http2, &app, case, "nothing", Vec::new())).await);
        assert_eq!(app.outcome(&job).await, "over at the call, kept it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_1_7_a_body_that_is_read_in_another_task() {
    let body = upload(100_000);
    for case in CASES {
        for [first, second] in framings(&case, "task", &body) {
            let mut app = App::start().await;
            // The task reads from the start, and waits for the second half.
            app.let_all_read();
            let mut raw = app.server.connect().await;
            raw.write(first).await;
            raw.says_nothing().await;
            raw.write(second).await;
            let job = raw.accepted().await;
            raw.next_is_answered().await;
            let seen = soon("the handler has read", app.seen.recv()).await.unwrap();
            assert_eq!(seen, untrailed(&body), "{case:?}: before it may answer");
            assert_eq!(app.outcome(&job).await, untrailed(&body));
        }
    }
}

#[tokio::test]
async fn trap_1_8_a_body_that_cannot_be_buffered_is_not_asked_for() {
    let body = upload(4001);
    for case in CASES {
        let app = App::with(Offload::builder("/jobs").max_body_bytes(4000)).await;
        let mut raw = app.server.connect().await;
        raw.write(case.head("all", "content-length: 4001\r\nexpect: 100-continue")).await;
        raw.says_nothing().await;
        // Only the handler itself asks for it.
        app.let_all_read();
        app.let_all_answer();
        raw.continues().await;
        raw.says_nothing().await;
        raw.write(&body).await;
        if case.policy == "always" {
            let job = raw.accepted().await;
            assert_eq!(app.outcome(&job).await, untrailed(&body));
        } else {
            let (head, answer) = soon("the answer", raw.read_response()).await;
            assert!(head.starts_with("http/1.1 200"), "{case:?}: {head}");
            assert_eq!(String::from_utf8(answer).unwrap(), untrailed(&body));
        }
        raw.next_is_answered().await;
    }
}

#[tokio::test]
async fn trap_1_9_a_handler_that_reads_only_the_first_field() {
    let field = |name: &str, value: &str| {
        format!("--B\r\ncontent-disposition: form-data; name={name}\r\n\r\n{value}\r\n")
    };
    let form = field("first", "one") + &field("second", &"2".repeat(500_000)) + "--B--\r\n";
    for case in CASES {
        for [first, second] in framings(&case, "field", form.as_bytes()) {
            let app = App::start().await;
            app.let_all_read();
            let mut raw = app.server.connect().await;
            raw.write(first).await;
            raw.says_nothing().await;
            raw.write(second).await;
            let job = raw.accepted().await;
            raw.next_is_answered().await;
            assert_eq!(app.outcome(&job).await, "one", "{case:?}");
        }
    }
}

// ------------------------------------------------------------------------------------- the rest

#[tokio::test]
async fn over_http2_the_202_waits_for_the_end_and_trailers_arrive() {
    let trailers: HeaderMap =
        [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
    for case in CASES {
        let app = App::start().await;
        let http2 = http2(&app.server).await;
        let (mut sender, body) = Channel::new(1);
        let mut accepted = send(&http2, &app, case, "all", body);
        sender.send_data(Bytes::from_static(b"first")).await.unwrap();
        tokio::time::timeout(SEVERAL_BUDGETS, &mut accepted).await.unwrap_err();
        end(sender, trailers.clone()).await;
        let job = job_of(soon("the 202", accepted).await);
        assert_eq!(app.outcome(&job).await, told(b"firstsecond", &trailers), "{case:?}");
    }
}

async fn end(mut sender: channel::Sender<Bytes, std::io::Error>, trailers: HeaderMap) {
    sender.send_data(Bytes::from_static(b"second")).await.unwrap();
    sender.send(Frame::trailers(trailers)).await.unwrap();
}

#[tokio::test]
async fn trailers_of_a_chunked_body_arrive_after_the_detach() {
    let trailers: HeaderMap =
        [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
    for case in CASES {
        let app = App::start().await;
        let mut raw = app.server.connect().await;
        raw.write(case.head("all", "transfer-encoding: chunked\r\ntrailer: x-sum")).await;
        raw.write(chunk(b"data")).await;
        raw.says_nothing().await;
        raw.write("0\r\nx-sum: 7\r\n\r\n").await;
        let job = raw.accepted().await;
        raw.next_is_answered().await;
        drop(raw);
        assert_eq!(app.outcome(&job).await, told(b"data", &trailers), "{case:?}");
    }
}

#[tokio::test]
async fn an_upload_that_outlasts_the_budget_gives_its_handler_one_more() {
    let body = upload(1000);
    for case in [CASES[0], CASES[2]] {
        for [first, second] in framings(&case, "all", &body) {
            let app = App::start().await;
            app.let_all_read();
            let mut raw = app.server.connect().await;
            // Slow to answer: the budget counts from the end of the upload.
            raw.write(&first).await;
            raw.says_nothing().await;
            let start = Instant::now();
            raw.write(&second).await;
            let job = raw.accepted().await;
            assert!(start.elapsed() >= BUDGET, "{case:?}: {:?}", start.elapsed());
            assert_eq!(app.outcome(&job).await, untrailed(&body));
            // Quick: there is no job.
            raw.write(&first).await;
            raw.says_nothing().await;
            raw.write(&second).await;
            let (head, answer) = soon("the answer", raw.read_response()).await;
            assert!(head.starts_with("http/1.1 200"), "{case:?}: {head}");
            assert_eq!(String::from_utf8(answer).unwrap(), untrailed(&body));
        }
    }
}

#[tokio::test]
async fn over_the_bound_a_request_stays_attached_until_its_handler_has_read() {
    let body = upload(256 * 1024);
    for case in CASES {
        for framing in framings(&case, "all", &body) {
            let mut app = App::with(Offload::builder("/jobs").max_body_bytes(64 * 1024)).await;
            let mut raw = app.server.connect().await;
            raw.write(framing.concat()).await;
            raw.says_nothing().await;
            app.let_all_read();
            let job = raw.accepted().await;
            raw.next_is_answered().await;
            let seen = soon("the handler has read", app.seen.recv()).await.unwrap();
            assert_eq!(seen, untrailed(&body), "{case:?}");
            assert_eq!(app.outcome(&job).await, untrailed(&body), "{case:?}");
        }
    }
}

#[tokio::test]
async fn a_handler_that_drops_its_body_is_detached() {
    for case in CASES {
        // hyper has all of it, and goes on with the connection.
        let app = App::start().await;
        let mut raw = app.server.connect().await;
        raw.write([case.with_length("drops", 5).as_bytes(), b"12345"].concat()).await;
        let job = raw.accepted().await;
        raw.next_is_answered().await;
        assert_eq!(app.outcome(&job).await, "dropped it", "{case:?}");
        // The client still sends; hyper closes the connection after the answer, as it would
        // without the layer.
        let mut raw = app.server.connect().await;
        app.hands.answer.forget_permits(1000);
        raw.write([case.with_length("drops", 10).as_bytes(), b"12345"].concat()).await;
        let job = raw.accepted().await;
        assert_eq!(soon("the end", raw.read_to_end()).await, b"", "{case:?}");
        assert_eq!(app.outcome(&job).await, "dropped it", "{case:?}");
    }
}

#[tokio::test]
async fn a_handler_that_answers_before_the_upload_is_over_is_left_alone() {
    for case in CASES {
        let app = App::start().await;
        app.let_all_answer();
        let mut raw = app.server.connect().await;
        raw.write([case.with_length("nothing", 10).as_bytes(), b"12345"].concat()).await;
        let (head, body) = soon("the answer", raw.read_response()).await;
        assert!(head.starts_with("http/1.1 200"), "{case:?}: {head}");
        assert_eq!(body, b"kept it");
        app.has_no_job().await;
    }
}

/// In a runtime of one thread nobody else could send the 202 while the handler blocks.
#[test]
fn an_always_handler_that_blocks_its_thread_after_the_body_has_its_202_at_once() {
    let (unblock, blocked) = blocking::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let handler = async move |body: Bytes| {
        blocked.lock().unwrap().recv().unwrap();
        untrailed(&body)
    };
    let offload = Offload::new("/jobs");
    let app = Router::new()
        .route("/always", post(handler).layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status());
    let (started, addr) = blocking::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            started.send(listener.local_addr().unwrap()).unwrap();
            let stopped = async move { drop(stopped.await) };
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.unwrap();
        });
    });
    let addr = addr.recv().unwrap();
    let connect = || {
        let stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let body = upload(1000);
    for pieces in [1, 2] {
        let mut stream = connect();
        let head = "POST /always HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
        let request = [head.as_bytes(), &body].concat();
        for piece in request.chunks(request.len().div_ceil(pieces)) {
            stream.write_all(piece).unwrap();
        }
        let answer = read_answer(&mut stream);
        assert!(answer.starts_with("http/1.1 202"), "{answer}");
        unblock.send(()).unwrap();
        let job = answer.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
        let mut stream = connect();
        let request = format!("GET {job}/result HTTP/1.1\r\nhost: x\r\nprefer: wait=20\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_answer(&mut stream);
        assert!(answer.ends_with(&untrailed(&body)), "{answer}");
    }
    stop.send(()).unwrap();
    server.join().unwrap();
}

/// Reads a response with a `Content-Length`.
fn read_answer(stream: &mut std::net::TcpStream) -> String {
    let mut answer = String::new();
    let mut byte = [0];
    let mut end = usize::MAX;
    while answer.len() < end {
        stream.read_exact(&mut byte).expect("an answer, though the handler blocks");
        answer.push(char::from(byte[0].to_ascii_lowercase()));
        if answer.ends_with("\r\n\r\n") && end == usize::MAX {
            let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
            end = answer.len() + length.unwrap().parse::<usize>().unwrap();
        }
    }
    answer
}
