//! What is never offloaded, whatever the policy and whatever the client prefers: tunnels, upgrades,
//! gRPC, requests whose answer only their own connection can use; and streams that never end.

#[path = "support/durable.rs"]
mod durable;
mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use durable::DurableStore;
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use support::{
    Answer, Client, Raw, Server,
    gated::{Call, Calls, gated},
    soon,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc},
};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_offload::{JobId, Offload, OffloadBuilder, Policies, Policy};

const BUDGET: Duration = Duration::from_millis(50);

/// Long enough to see that nothing comes when the budget is over.
const SEVERAL_BUDGETS: Duration = Duration::from_millis(200);

// ------------------------------------------------------------------- an app that waits, then acts

#[derive(Debug, Clone, Copy)]
struct Case {
    policy: fn() -> Policy,
    prefer: &'static str,
}

/// Each way to be offloaded.
const CASES: [Case; 4] = [
    Case { policy: || Policy::after(BUDGET), prefer: "" },
    Case { policy: || Policy::always(), prefer: "" },
    Case { policy: || Policy::on_request(BUDGET), prefer: "respond-async" },
    Case { policy: || Policy::always(), prefer: "respond-async" },
];

/// A server with one handler, which waits for the test before it answers.
struct App {
    server: Server,
    case: Case,
    hands: Hands,
    /// Tells when a stream of the handler was dropped.
    dropped: mpsc::UnboundedReceiver<()>,
}

#[derive(Clone)]
struct Hands {
    answer: Arc<Semaphore>,
    events: Arc<tokio::sync::Mutex<mpsc::Receiver<&'static str>>>,
    send_event: mpsc::Sender<&'static str>,
    dropped: mpsc::UnboundedSender<()>,
}

impl App {
    async fn start(case: Case) -> Self {
        Self::with(case, Offload::builder("/jobs"), (case.policy)()).await
    }

    async fn with(case: Case, builder: OffloadBuilder, policy: Policy) -> Self {
        let offload = builder.build().unwrap();
        let (send_event, events) = mpsc::channel(1);
        let (sender, dropped) = mpsc::unbounded_channel();
        let hands = Hands {
            answer: Arc::new(Semaphore::new(0)),
            events: Arc::new(tokio::sync::Mutex::new(events)),
            send_event,
            dropped: sender,
        };
        // Around all of it: a CONNECT has no path that a route could have.
        let app = Router::new()
            .fallback(handle)
            .with_state(hands.clone())
            .layer(offload.layer(policy))
            .nest_service("/jobs", offload.status());
        // As `axum::serve` does with axum's feature `http2`, which this crate does not need.
        let server = Server::connections(move |stream| {
            let service = TowerToHyperService::new(app.clone());
            async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http2().enable_connect_protocol();
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            }
        });
        Self { server: server.await, case, hands, dropped }
    }

    fn let_all_answer(&self) {
        self.hands.answer.add_permits(1000);
    }

    /// A request on a connection of its own, on which nothing comes until the handler may answer.
    async fn waits(&self, head: &str) -> Raw {
        let mut raw = self.server.connect().await;
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let headers: String = headers.lines().map(|line| format!("{}\r\n", line.trim())).collect();
        let prefer = self.case.prefer;
        raw.write(format!("{line} HTTP/1.1\r\nhost: x\r\nprefer: {prefer}\r\n{headers}\r\n")).await;
        if let Ok(byte) = tokio::time::timeout(SEVERAL_BUDGETS, raw.0.read_u8()).await {
            panic!("{head:?} in {:?}: the server spoke or closed: {byte:?}", self.case);
        }
        raw
    }
}

async fn handle(State(hands): State<Hands>, mut request: Request) -> Response {
    hands.answer.acquire().await.unwrap().forget();
    match request.uri().path() {
        "/refused" | "" => (StatusCode::FORBIDDEN, "refused").into_response(),
        "/upgraded" => {
            let is_http1 = request.method() == Method::GET;
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move { echo(TokioIo::new(upgrade.await.unwrap())).await });
            match is_http1 {
                true => (
                    StatusCode::SWITCHING_PROTOCOLS,
                    [
                        (header::CONNECTION, "upgrade"),
                        (header::UPGRADE, "websocket"),
                        (header::SEC_WEBSOCKET_ACCEPT, ACCEPT),
                    ],
                )
                    .into_response(),
                false => StatusCode::OK.into_response(),
            }
        }
        "/grpc" => {
            let message = request.into_body().collect().await.unwrap().to_bytes();
            let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
            let trailers = Frame::trailers(trailers.into_iter().collect());
            let frames = stream::iter([Ok::<_, Infallible>(Frame::data(message)), Ok(trailers)]);
            let kind = [(header::CONTENT_TYPE, "application/grpc")];
            (kind, Body::new(StreamBody::new(frames))).into_response()
        }
        "/events" => {
            let events =
                stream::unfold(hands.events.clone().lock_owned().await, |mut events| async {
                    events.recv().await.map(|event| (event, events))
                });
            let kind = [(header::CONTENT_TYPE, "text/event-stream")];
            (kind, endless(&hands, events)).into_response()
        }
        "/flood" => endless(&hands, stream::repeat("a line that is told again and again\n")),
        "/stall" => endless(&hands, stream::iter(["the first line\n"]).chain(stream::pending())),
        _ => "own".into_response(),
    }
}

/// A response of this stream, which tells when it is dropped.
fn endless(hands: &Hands, stream: impl Stream<Item = &'static str> + Send + 'static) -> Response {
    let stream = Box::pin(stream.map(Ok::<_, Infallible>));
    Body::from_stream(Endless { stream, dropped: hands.dropped.clone() }).into_response()
}

struct Endless<S> {
    stream: Pin<Box<S>>,
    dropped: mpsc::UnboundedSender<()>,
}

impl<S: Stream> Stream for Endless<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl<S> Drop for Endless<S> {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

// --------------------------------------------------------------------- a WebSocket, byte by byte

/// The key of RFC 6455, section 1.3, and the answer that belongs to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The masked and the unmasked text message of RFC 6455, section 5.7.
const MASKED: [u8; 11] = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
const UNMASKED: [u8; 7] = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];

/// The server's end: sends each short message back as it came, unmasked.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut head = [0; 6];
    while stream.read_exact(&mut head).await.is_ok() {
        let [kind, len, mask @ ..] = head;
        let mut message = vec![0; usize::from(len & 0x7f)];
        stream.read_exact(&mut message).await.unwrap();
        message.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        stream.write_all(&[&[kind, len & 0x7f], &message[..]].concat()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

async fn is_echoed(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    for _ in 0..2 {
        let mut answer = UNMASKED.map(|_| 0);
        stream.write_all(&MASKED).await.unwrap();
        soon("the echo", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, UNMASKED);
    }
}

// ------------------------------------------------------------------------------------- the traps

#[tokio::test]
async fn trap_4_1_a_tunnel_is_not_opened_by_a_202() {
    for case in CASES {
        let app = App::start(case).await;
        let mut raw = app.waits("CONNECT example.com:443").await;
        app.let_all_answer();
        let (head, body) = soon("the handler's answer", raw.read_response()).await;
        assert!(head.starts_with("http/1.1 403"), "{case:?}: {head}");
        assert_eq!(body, b"refused");
    }
}

#[tokio::test]
async fn trap_4_1_a_tunnel_over_http2_is_the_handlers_to_open() {
    for case in CASES {
        let app = App::start(case).await;
        let stream = TokioIo::new(TcpStream::connect(app.server.addr).await.unwrap());
        let (mut http2, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let mut request = |method: &str, path: &str, protocol: Option<&'static str>| {
            let uri = match (method, protocol) {
                ("CONNECT", None) => "example.com:443".to_owned(),
                _ => app.server.url(path),
            };
            let mut request = http::Request::builder().method(method).uri(uri);
            request = request.header("prefer", case.prefer);
            if let Some(protocol) = protocol {
                request = request.extension(hyper::ext::Protocol::from_static(protocol));
            }
            http2.send_request(request.body(Empty::<Bytes>::new()).unwrap())
        };
        // The answer to anything shows that the server's settings have arrived.
        let known = request("GET", "/jobs/unknown", None);
        assert_eq!(soon("the settings", known).await.unwrap().status(), 404);

        let plain = request("CONNECT", "", None);
        let refused = request("CONNECT", "/refused", Some("websocket"));
        let accepted = request("CONNECT", "/upgraded", Some("websocket"));
        let all = tokio::spawn(join_all([plain, refused, accepted]));
        tokio::time::sleep(SEVERAL_BUDGETS).await;
        app.let_all_answer();
        let answers = soon("the handler's answers", all).await.unwrap();
        let [plain, refused, accepted] = answers.try_into().unwrap();
        assert_eq!(plain.unwrap().status(), 403, "{case:?}");
        assert_eq!(refused.unwrap().status(), 403, "{case:?}");
        let accepted = accepted.unwrap();
        assert_eq!(accepted.status(), 200, "{case:?}");
        let upgraded = hyper::upgrade::on(accepted).await.unwrap();
        is_echoed(&mut TokioIo::new(upgraded)).await;
    }
}

#[tokio::test]
async fn trap_4_2_a_websocket_handshake_over_budget_gives_a_socket_that_works() {
    for case in CASES {
        let app = App::start(case).await;
        let handshake = format!(
            "GET /upgraded
             Connection: keep-alive, Upgrade
             Upgrade: websocket
             Sec-WebSocket-Version: 13
             Sec-WebSocket-Key: {KEY}"
        );
        let mut raw = app.waits(&handshake).await;
        app.let_all_answer();
        let (head, _) = soon("the handshake", raw.read_response()).await;
        assert!(head.starts_with("http/1.1 101"), "{case:?}: {head}");
        assert!(head.contains(&ACCEPT.to_ascii_lowercase()), "{head}");
        is_echoed(&mut raw.0).await;
    }
}

#[tokio::test]
async fn trap_4_3_grpc_is_left_alone_with_its_trailers() {
    for case in CASES {
        let app = App::start(case).await;
        let request = app
            .server
            .request("POST", "/grpc")
            .header("content-type", "application/grpc+proto")
            .header("prefer", case.prefer);
        let call = tokio::spawn(async { Client::http2().send(request, "message").await });
        tokio::time::sleep(SEVERAL_BUDGETS).await;
        app.let_all_answer();
        let answer: Answer = soon("the handler's answer", call).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "message"), "{case:?}");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn trap_4_4_a_stream_whose_head_came_within_the_budget_goes_on_untouched() {
    // A `GET` that accepts events is never offloaded; what is, is a request that does not say so.
    for (line, accept) in [("POST", "*/*"), ("GET", "*/*"), ("GET", "text/event-stream")] {
        let app = App::start(CASES[0]).await;
        app.let_all_answer();
        let request = app.server.request(line, "/events").header("accept", accept);
        streams_on(&app, request).await;
    }
}

#[tokio::test]
async fn trap_4_4_a_get_that_accepts_events_may_take_longer_than_the_budget() {
    for case in CASES {
        let app = App::start(case).await;
        let request = app.server.request("GET", "/events").header("prefer", case.prefer);
        let request = request.header("accept", "text/html, text/event-stream;q=0.9");
        let answer_later = async {
            tokio::time::sleep(SEVERAL_BUDGETS).await;
            app.let_all_answer();
        };
        tokio::join!(streams_on(&app, request), answer_later);
    }
}

/// Events arrive one by one, long after the budget, on the request's own connection.
async fn streams_on(app: &App, request: http::request::Builder) {
    let stream = TokioIo::new(TcpStream::connect(app.server.addr).await.unwrap());
    let (mut http1, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = soon("the head", http1.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        tokio::time::timeout(SEVERAL_BUDGETS, body.frame()).await.unwrap_err();
        app.hands.send_event.send(event).await.unwrap();
        let frame = soon(event, body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
}

#[tokio::test]
async fn trap_4_4_an_endless_stream_whose_head_came_late_ends_by_its_bytes() {
    ends(Offload::builder("/jobs").max_outcome_bytes(64 * 1024), None, "/flood", 500, "too-large")
        .await;
}

#[tokio::test]
async fn trap_4_4_an_endless_stream_whose_head_came_late_ends_by_its_time() {
    let limit = Some(Duration::from_millis(300));
    ends(Offload::builder("/jobs"), limit, "/stall", 504, "timed-out").await;
}

/// The job of this endless stream ends with this problem, and the stream is dropped.
async fn ends(
    builder: OffloadBuilder,
    limit: Option<Duration>,
    path: &str,
    status: u16,
    kind: &str,
) {
    for case in CASES {
        let policy = (case.policy)();
        let policy = limit.map_or(policy.clone(), |limit| policy.timeout(limit));
        let mut app = App::with(case, builder.clone(), policy).await;
        let client = Client::http1();
        let request = app.server.request("POST", path).header("prefer", case.prefer);
        let accepted = soon("the 202", client.send(request, "")).await;
        app.let_all_answer();
        let job = accepted.location();
        let document = soon("the job's end", client.ended(&app.server, job)).await;
        assert_eq!(document["status"], "failed", "{case:?}");
        let result = client.get(&app.server, &format!("{job}/result")).await;
        assert_eq!(result.status, status, "{case:?}");
        assert_eq!(result.header("content-type"), "application/problem+json");
        assert!(result.json()["type"].as_str().unwrap().ends_with(kind), "{result:#?}");
        soon("the stream is dropped", app.dropped.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn trap_4_5_an_offer_of_h2c_alone_is_no_upgrade() {
    for case in CASES {
        let app = App::start(case).await;
        let mut raw = app.server.connect().await;
        let request = format!(
            "POST /own HTTP/1.1\r\nhost: x\r\nprefer: {}\r\ncontent-length: 4\r\n\
             connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQ\r\n\r\nbody",
            case.prefer
        );
        // Java's client and curl say so in every request of a connection.
        for _ in 0..2 {
            raw.write(&request).await;
            let (head, _) = soon("the 202", raw.read_response()).await;
            assert!(head.starts_with("http/1.1 202"), "{case:?}: {head}");
        }
        app.let_all_answer();
    }
}

#[tokio::test]
async fn what_only_its_own_connection_can_use_is_never_offloaded() {
    for case in CASES {
        let app = App::start(case).await;
        let kept = [
            "HEAD /own",
            "OPTIONS /own",
            "OPTIONS *",
            "GET /own\nrange: bytes=0-9",
            "GET /own\nrange: bytes=0-9\nif-range: \"1\"",
            "GET /own\nif-none-match: \"1\"",
            "GET /own\nif-match: \"1\"",
            "GET /own\nif-modified-since: Sun, 06 Nov 1994 08:49:37 GMT",
            "GET /own\nif-unmodified-since: Sun, 06 Nov 1994 08:49:37 GMT",
            "GET /own\naccept: text/event-stream",
            "GET /own\naccept: text/html\naccept: */*, text/event-stream",
            "POST /own\nupgrade: websocket\nconnection: upgrade\ncontent-length: 0",
            "POST /own\ncontent-type: application/grpc\ncontent-length: 0",
        ];
        let kept = join_all(kept.map(|head| app.waits(head))).await;
        app.let_all_answer();
        for mut raw in kept {
            let line = soon("the handler's answer", first_line(&mut raw)).await;
            assert_eq!(line, "HTTP/1.1 200 OK", "{case:?}");
        }
    }
}

#[tokio::test]
async fn what_looks_like_it_but_is_not_is_offloaded() {
    for case in CASES {
        let app = App::start(case).await;
        for head in [
            "GET /own",
            "GET /own\r\naccept: text/*, */*",
            "GET /own\r\naccept: text/html;v=\"text/event-stream\"",
            "POST /own\r\nrange: bytes=0-9",
            "POST /own\r\naccept: text/event-stream",
            "PUT /own\r\nif-match: \"1\"",
            "DELETE /own",
            "POST /own\r\nconnection: upgrade",
        ] {
            let mut raw = app.server.connect().await;
            let (line, headers) = head.split_once("\r\n").unwrap_or((head, "x: y"));
            let prefer = case.prefer;
            raw.write(format!(
                "{line} HTTP/1.1\r\nhost: x\r\nprefer: {prefer}\r\n{headers}\r\n\r\n"
            ))
            .await;
            let line = soon(head, first_line(&mut raw)).await;
            assert_eq!(line, "HTTP/1.1 202 Accepted", "{head} in {case:?}");
        }
    }
}

async fn first_line(raw: &mut Raw) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(raw.0.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

// ----------------------------------------------------- what bounds a request that can't be a job

/// A request that can't be a job.
#[derive(Debug, Clone, Copy)]
struct Exempt {
    method: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

/// One for each exemption.
const EXEMPT: [Exempt; 10] = [
    Exempt { method: "CONNECT", headers: &[] },
    Exempt { method: "HEAD", headers: &[] },
    Exempt { method: "OPTIONS", headers: &[] },
    Exempt { method: "GET", headers: &[("connection", "upgrade"), ("upgrade", "websocket")] },
    Exempt { method: "POST", headers: &[("connection", "upgrade"), ("upgrade", "x")] },
    Exempt { method: "POST", headers: &[("content-type", "application/grpc")] },
    Exempt { method: "GET", headers: &[("range", "bytes=0-")] },
    Exempt { method: "GET", headers: &[("if-none-match", "*")] },
    Exempt { method: "GET", headers: &[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")] },
    Exempt { method: "GET", headers: &[("accept", "text/event-stream")] },
];

const KEY_HEADER: (&str, &str) = ("idempotency-key", "k");

impl Exempt {
    fn request(self, more: &[(&str, &str)]) -> Request {
        let uri = if self.method == "CONNECT" { "example.com:443" } else { "/work" };
        let mut request = http::Request::builder().method(self.method).uri(uri);
        for (name, value) in self.headers.iter().chain(more) {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn is_safe(self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS")
    }
}

fn plain_post() -> Request {
    http::Request::post("/work").body(Body::empty()).unwrap()
}

type Sent = tokio::task::JoinHandle<Response>;

/// One route, without a server.
struct Bounded {
    service: BoxCloneSyncService<Request, Response, Infallible>,
    calls: Calls,
    offload: Offload,
}

impl Bounded {
    fn new(builder: OffloadBuilder, policy: Policy) -> Self {
        let (gated, calls) = gated();
        let offload = builder.owner(|_| Some("ann".into())).store(DurableStore::new());
        let offload = offload.build().unwrap();
        // `CONNECT` has no path that a pattern could match.
        let table = Policies::otherwise(policy.name("work")).at("/else", Policy::never());
        let service = offload.layer(table).layer(Router::new().fallback_service(gated.route()));
        Self { service: BoxCloneSyncService::new(service), calls, offload }
    }

    fn send(&self, request: Request) -> Sent {
        let service = self.service.clone();
        tokio::spawn(async move { service.oneshot(request).await.unwrap() })
    }

    /// A request that is attached, and whose handler has begun.
    async fn attached(&mut self, request: Request) -> (Sent, Call) {
        let sent = self.send(request);
        (sent, self.calls.next().await)
    }

    /// A request that is answered without its handler having begun.
    async fn refused(&mut self, request: Request) -> (u16, serde_json::Value) {
        let answer = soon("the refusal", self.send(request)).await.unwrap();
        assert!(self.calls.is_empty(), "its handler was called: {answer:?}");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn is_full(&mut self, request: Request, limit: &str) {
        let (status, problem) = self.refused(request).await;
        assert_eq!((status, &problem["limit"]), (503, &limit.into()), "{problem}");
    }

    async fn is_bad(&mut self, request: Request, kind: &str) {
        let (status, problem) = self.refused(request).await;
        assert_eq!(status, 400, "{problem}");
        assert!(problem["type"].as_str().unwrap().ends_with(kind), "{problem}");
    }

    /// The handler answers, and what was attached has that answer.
    async fn answers(&mut self, (sent, call): (Sent, Call)) {
        call.answer("own");
        let answer = soon("the handler's answer", sent).await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    async fn running(&self) -> usize {
        self.offload.stats().await.unwrap().total().running
    }
}

/// A cell of the table: each exemption beside each guarantee that a policy gives.
async fn cell(exempt: Exempt, guarantee: &str) {
    let builder = || Offload::builder("/jobs");
    let (plain, keyed) = (|| exempt.request(&[]), || exempt.request(&[KEY_HEADER]));
    let always = Policy::always;
    match guarantee {
        "concurrency" => {
            let mut route = Bounded::new(builder(), always().concurrency(1));
            let first = route.attached(plain()).await;
            route.is_full(plain(), "concurrency").await;
            route.is_full(plain_post(), "concurrency").await;
            route.answers(first).await;
            let second = route.attached(plain()).await;
            route.answers(second).await;
        }
        "queue" => {
            let mut route = Bounded::new(builder(), always().concurrency(1).queue(1));
            let first = route.attached(plain()).await;
            // A job waits for the permit; what can't be one does not.
            let queued = soon("the 202", route.send(plain_post())).await.unwrap();
            assert_eq!(queued.status(), 202);
            route.is_full(plain(), "concurrency").await;
            route.answers(first).await;
            route.calls.next().await.answer("own");
        }
        "max_running" => {
            let mut route = Bounded::new(builder().max_running(1), always());
            let first = route.attached(plain()).await;
            route.is_full(plain(), "max_running").await;
            route.is_full(plain_post(), "max_running").await;
            route.answers(first).await;
        }
        "key optional" => {
            for policy in [Policy::after(BUDGET).idempotent(), always().idempotent()] {
                let mut route = Bounded::new(builder(), policy);
                route.is_bad(keyed(), "cannot-be-a-job").await;
                let attached = route.attached(plain()).await;
                route.answers(attached).await;
            }
        }
        "key required" => {
            let mut route = Bounded::new(builder(), Policy::after(BUDGET).idempotency_required());
            route.is_bad(keyed(), "cannot-be-a-job").await;
            match exempt.is_safe() {
                true => {
                    let attached = route.attached(plain()).await;
                    route.answers(attached).await;
                }
                false => route.is_bad(plain(), "idempotency-key-missing").await,
            }
        }
        "durable" => {
            let mut route = Bounded::new(builder(), always().durable().concurrency(1));
            match exempt.method {
                // A preflight does not wait for the permits that jobs take.
                "OPTIONS" => {
                    let (first, second) =
                        (route.attached(plain()).await, route.attached(plain()).await);
                    assert_eq!(route.running().await, 0);
                    route.answers(first).await;
                    route.answers(second).await;
                }
                _ => route.is_bad(plain(), "cannot-be-a-job").await,
            }
            let accepted = soon("the 202", route.send(plain_post())).await.unwrap();
            assert_eq!(accepted.status(), 202);
        }
        _ => unreachable!("{guarantee}"),
    }
}

#[tokio::test]
async fn no_exemption_switches_a_guarantee_off() {
    for exempt in EXEMPT {
        for guarantee in
            ["concurrency", "queue", "max_running", "key optional", "key required", "durable"]
        {
            let cell = tokio::spawn(cell(exempt, guarantee));
            cell.await.unwrap_or_else(|error| panic!("{exempt:?} beside {guarantee}: {error}"));
        }
    }
}

/// Their handlers run while they are attached whatever the limits, so there is nothing to switch off.
#[tokio::test]
async fn routes_that_promise_no_bound_attach_it_freely() {
    for policy in [
        || Policy::after(BUDGET).concurrency(1),
        || Policy::on_request(BUDGET).concurrency(1),
        || Policy::after(BUDGET).idempotent().queue(1).concurrency(1),
    ] {
        let mut route = Bounded::new(Offload::builder("/jobs").max_running(1), policy());
        let mut attached = Vec::new();
        for exempt in EXEMPT {
            attached.push(route.attached(exempt.request(&[])).await);
        }
        assert_eq!(route.running().await, 0);
        for one in attached {
            route.answers(one).await;
        }
    }
}

#[tokio::test]
async fn polls_need_no_permit() {
    let mut route = Bounded::new(Offload::builder("/jobs"), Policy::always().concurrency(1));
    let held = route.attached(EXEMPT[5].request(&[])).await;
    for method in ["HEAD", "OPTIONS", "GET"] {
        let poll = http::Request::builder().method(method).uri("/jobs/x").header("range", "x");
        let poll = route.attached(poll.body(Body::empty()).unwrap()).await;
        route.answers(poll).await;
    }
    route.answers(held).await;
}

/// Inside nested routers a layer sees only the end of a path, so a path of the app may look like the URL
/// of a job. With a method that the status service does not answer, it is none.
#[tokio::test]
async fn path_like_that_of_a_job_switches_no_guarantee_off() {
    let builder = || Offload::builder("/api/jobs");
    let id = JobId::random().unwrap();
    for path in [format!("/jobs/{id}"), format!("/jobs/{id}/status"), format!("/jobs/{id}/result")]
    {
        for method in ["POST", "PUT", "PATCH"] {
            let request = || http::Request::builder().method(method).uri(&path);
            let plain = || request().body(Body::empty()).unwrap();
            let grpc = request().header("content-type", "application/grpc");

            let mut route = Bounded::new(builder(), Policy::always().concurrency(1));
            assert_eq!(soon("the 202", route.send(plain())).await.unwrap().status(), 202);
            let running = route.calls.next().await;
            route.is_full(plain(), "concurrency").await;
            route.is_full(grpc.body(Body::empty()).unwrap(), "concurrency").await;
            running.answer("own");

            let mut route = Bounded::new(builder(), Policy::always().concurrency(1).queue(1));
            for _ in 0..2 {
                assert_eq!(soon("the 202", route.send(plain())).await.unwrap().status(), 202);
            }
            let _running = route.calls.next().await;
            route.is_full(plain(), "queue").await;

            let mut route = Bounded::new(builder(), Policy::always().idempotency_required());
            route.is_bad(plain(), "idempotency-key-missing").await;

            let mut route = Bounded::new(builder(), Policy::always().durable());
            assert_eq!(soon("the 202", route.send(plain())).await.unwrap().status(), 202);
            assert!(route.calls.is_empty(), "it was run without a worker");

            let route = Bounded::new(builder(), Policy::after(BUDGET));
            assert_eq!(soon("the 202", route.send(plain())).await.unwrap().status(), 202);

            let layer = builder().owner(|_| None).build().unwrap().layer(Policy::always());
            let service = layer.layer(Router::new().fallback(async || "own"));
            assert_eq!(service.oneshot(plain()).await.unwrap().status(), 401);
        }
    }
}

/// Where the whole path is not known, the layer cannot tell a poll inside nested routers from a `GET` of
/// the app whose path ends like the URL of a job.
#[tokio::test]
async fn polls_inside_nested_routers_need_no_permit() {
    let mut route = Bounded::new(Offload::builder("/api/jobs"), Policy::always().concurrency(1));
    let held = route.attached(EXEMPT[5].request(&[])).await;
    for method in ["HEAD", "OPTIONS", "GET", "DELETE"] {
        let path = format!("/jobs/{}", JobId::random().unwrap());
        let poll = http::Request::builder().method(method).uri(path);
        let poll = route.attached(poll.body(Body::empty()).unwrap()).await;
        route.answers(poll).await;
    }
    route.answers(held).await;
}

/// The permit of an attached request is released whatever becomes of it.
#[tokio::test(start_paused = true)]
async fn the_permit_of_an_attached_request_is_released() {
    const LIMIT: Duration = Duration::from_secs(30);
    let policy = Policy::always().concurrency(1).timeout(LIMIT);
    let mut route = Bounded::new(Offload::builder("/jobs"), policy);
    let grpc = EXEMPT[5];

    // Its client has left.
    let (sent, call) = route.attached(grpc.request(&[])).await;
    assert_eq!(route.running().await, 1);
    sent.abort();
    call.gone().await;
    assert_eq!(route.running().await, 0);

    // Its handler has panicked.
    let (sent, call) = route.attached(grpc.request(&[])).await;
    call.panic();
    assert!(sent.await.unwrap_err().is_panic());
    assert_eq!(route.running().await, 0);

    // Its time is over.
    let begun = tokio::time::Instant::now();
    let (sent, call) = route.attached(grpc.request(&[])).await;
    let answer = sent.await.unwrap();
    assert_eq!((answer.status().as_u16(), begun.elapsed().as_secs()), (504, 30));
    call.gone().await;
    assert_eq!(route.running().await, 0);

    // Its response's head is there; the body may take as long as it likes.
    let (sent, call) = route.attached(grpc.request(&[])).await;
    let endless = stream::pending::<Result<Bytes, Infallible>>();
    call.answer(Body::from_stream(endless));
    let answer = sent.await.unwrap();
    assert_eq!(route.running().await, 0);
    drop(answer);
}

/// A client that stalls must not hold the permits of a route.
#[tokio::test(start_paused = true)]
async fn the_permit_of_an_upload_that_stalls_is_released() {
    let builder = Offload::builder("/jobs").body_idle_timeout(Duration::from_secs(5));
    let mut route = Bounded::new(builder, Policy::always().concurrency(1));
    let (sender, frames) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let frames = stream_of(frames);
    let request = http::Request::post("/work").header("content-type", "application/grpc");
    let sent = route.send(request.body(Body::from_stream(frames)).unwrap());
    for _ in 0..3 {
        sender.send(Ok(Bytes::from_static(b"more"))).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(route.running().await, 1);
    }
    let answer = soon("the 408", sent).await.unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(answer.headers()["connection"], "close");
    assert_eq!(route.running().await, 0);
    assert!(route.calls.is_empty(), "the handler never had its body");
}

fn stream_of<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, async |mut receiver| {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}

/// Over real sockets, as it was attacked: 40 requests with one header more on a route of two.
#[tokio::test]
async fn one_header_does_not_switch_the_limits_off() {
    for (header, attached) in [
        ("upgrade: x", 0),
        ("connection: upgrade\r\nupgrade: x", 2),
        ("content-type: application/grpc", 2),
    ] {
        let (gated, mut calls) = gated();
        let offload = Offload::new("/jobs");
        let layer = offload.layer(Policy::always().concurrency(2).queue(3));
        let server = Server::axum(Router::new().route("/", gated.route()).layer(layer)).await;
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: 0\r\n\r\n");
        let mut running = Vec::new();
        let mut statuses = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..40 {
            let mut raw = server.connect().await;
            raw.write(&head).await;
            if statuses.len() + waiting.len() < attached {
                // It is attached: nothing comes until its handler answers.
                running.push(calls.next().await);
                waiting.push(raw);
                continue;
            }
            let (head, _) = soon("an answer", raw.read_response()).await;
            statuses.push(head.split(' ').nth(1).unwrap().to_owned());
        }
        let refused = statuses.iter().filter(|status| *status == "503").count();
        let accepted = statuses.iter().filter(|status| *status == "202").count();
        match attached {
            0 => assert_eq!((accepted, refused), (5, 35)),
            _ => assert_eq!((accepted, refused), (0, 38)),
        }
        while running.len() < 2 {
            running.push(calls.next().await);
        }
        assert!(calls.is_empty(), "{header}: more than two run at once");
        running.into_iter().for_each(|call| call.answer("own"));
        for mut raw in waiting {
            let (head, _) = soon("an answer", raw.read_response()).await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
        }
    }
}
