//! Clients that leave before they have an answer: their work is dropped as without the layer, or
//! finished where the policy says so.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use bytes::Bytes;
use desk::{Held, Insert};
use futures_util::FutureExt;
use http_body_util::{
    BodyExt, Full,
    channel::{Channel, Sender},
    combinators::UnsyncBoxBody,
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    Client, Raw, Server,
    gated::{Call, Calls, Gated, gated},
    soon,
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    runtime,
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, task};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service as _, ServiceExt, util::BoxCloneSyncService};
use tower_http::timeout::TimeoutLayer;
use tower_offload::{Job, Offload, Policy};

/// Longer than any test.
const ATTACHED: Duration = Duration::from_secs(600);
const BUDGET: Duration = Duration::from_millis(50);

fn finishing() -> Policy {
    Policy::after(ATTACHED).finish_on_disconnect()
}

// --------------------------------------------------------------------------------- a handler to see

/// A handler that waits for its test, and tells when it has come to its end.
#[derive(Clone)]
struct Work {
    gated: Gated,
    done: mpsc::UnboundedSender<()>,
}

/// The test's side of it.
struct Hands {
    calls: Calls,
    done: mpsc::UnboundedReceiver<()>,
}

fn work() -> (Work, Hands) {
    let ((gated, calls), (sender, done)) = (gated(), mpsc::unbounded_channel());
    (Work { gated, done: sender }, Hands { calls, done })
}

impl Work {
    async fn run(self, request: Request) -> Response {
        let response = self.gated.run(request).await;
        // It has more than one thing left to do.
        yield_now().await;
        let _ = self.done.send(());
        response
    }

    /// It behind a layer, in this process.
    fn behind(&self, offload: &Offload, policy: Policy) -> Service {
        let work = self.clone();
        let handler = move |request: Request| {
            let work = work.clone();
            async move { Ok::<_, Infallible>(work.run(request).await) }
        };
        let layered = offload.layer(policy).boxed().layer(tower::service_fn(handler));
        BoxCloneSyncService::new(layered)
    }

    /// It behind a layer, as a server.
    async fn served(&self, offload: &Offload, policy: Policy) -> Server {
        Server::axum(self.app(offload, policy)).await
    }

    fn app(&self, offload: &Offload, policy: Policy) -> Router {
        let work = self.clone();
        let handler = any(move |request: Request| work.clone().run(request));
        Router::new()
            .route("/bare", handler.clone())
            .route("/", handler.layer(offload.layer(policy)))
            .nest_service("/jobs", offload.status())
    }
}

impl Hands {
    /// That this handler, told to answer, comes to its end.
    async fn finishes(&mut self, call: Call) {
        assert!(!call.is_gone());
        call.answer("nobody hears it");
        soon("the handler comes to its end", self.done.recv()).await.unwrap();
    }

    /// That this handler is dropped before its end.
    async fn is_dropped(&mut self, call: Call) {
        call.gone().await;
        assert!(self.done.is_empty());
    }
}

type Service = BoxCloneSyncService<Request, Response, Infallible>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

fn request() -> Request {
    Request::post("/").body(Body::empty()).unwrap()
}

/// A call that was polled once.
async fn begun(service: &Service, request: Request) -> task::Spawn<Answer> {
    let mut call = unpolled(service, request).await;
    assert_pending!(call.poll());
    call
}

async fn unpolled(service: &Service, request: Request) -> task::Spawn<Answer> {
    let mut service = service.clone();
    task::spawn(service.ready().await.unwrap().call(request))
}

/// Lets a paused clock go on until the call is woken, and polls it.
async fn woken(call: &mut task::Spawn<Answer>) {
    while !call.is_woken() {
        yield_now().await;
    }
    assert_pending!(call.poll());
}

fn desk(max_running: usize) -> Offload {
    Offload::builder("/jobs").max_running(max_running).build().unwrap()
}

async fn numbers(offload: &Offload) -> (usize, u64) {
    let total = offload.stats().await.unwrap().total();
    (total.running, total.refused)
}

/// Resolves when so much runs; tells how many requests were refused until then.
async fn runs(offload: &Offload, running: usize) -> u64 {
    let so_many = async {
        loop {
            match numbers(offload).await {
                (now, refused) if now == running => return refused,
                _ => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    soon("so much runs", so_many).await
}

// --------------------------------------------------------------------------------- ways to leave

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Close,
    Reset,
    /// The client can send no more, but would still read.
    HalfClose,
    /// HTTP/2: one stream of a connection that goes on.
    StreamReset,
}

const WAYS: [Leave; 4] = [Leave::Close, Leave::Reset, Leave::HalfClose, Leave::StreamReset];

/// A client with a request under way.
enum Leaving {
    Http1(Leave, Raw),
    Http2(Http2, tokio::task::JoinHandle<()>),
}

/// One connection of HTTP/2.
type Http2 = http2::SendRequest<UnsyncBoxBody<Bytes, std::io::Error>>;

impl Leaving {
    /// Sends a request, and leaves when it is told to.
    async fn send(server: &Server, path: &str, leave: Leave) -> Self {
        if leave == Leave::StreamReset {
            let body = Full::from("body").map_err(|never: Infallible| match never {});
            let (connection, answer) = stream(server, path, body.boxed_unsync()).await;
            return Self::Http2(connection, answer);
        }
        let mut raw = server.connect().await;
        raw.write(format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"))
            .await;
        Self::Http1(leave, raw)
    }

    /// Leaves; what it gives back is kept open.
    async fn leave(self) -> (Option<Raw>, Option<Http2>) {
        match self {
            Self::Http1(Leave::HalfClose, mut raw) => {
                raw.0.shutdown().await.unwrap();
                return (Some(raw), None);
            }
            Self::Http1(Leave::Reset, raw) => raw.0.set_zero_linger().unwrap(),
            Self::Http1(..) => {}
            Self::Http2(connection, answer) => {
                answer.abort();
                return (None, Some(connection));
            }
        }
        (None, None)
    }
}

/// A request on a connection of HTTP/2. Aborted, it resets its stream.
async fn stream(
    server: &Server,
    path: &str,
    body: UnsyncBoxBody<Bytes, std::io::Error>,
) -> (Http2, tokio::task::JoinHandle<()>) {
    let stream = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(server.request("POST", path).body(body).unwrap());
    (sender, tokio::spawn(async move { drop(answer.await) }))
}

#[tokio::test]
async fn trap_2_1_the_work_of_a_client_that_leaves_is_dropped_as_without_the_layer() {
    let offload = desk(8);
    let (work, mut hands) = work();
    let server = work.served(&offload, Policy::after(ATTACHED)).await;
    for path in ["/bare", "/"] {
        for leave in WAYS {
            let client = Leaving::send(&server, path, leave).await;
            let call = hands.calls.next().await;
            let _open = client.leave().await;
            hands.is_dropped(call).await;
        }
    }
    assert_eq!(numbers(&offload).await, (0, 0));
}

/// What hyper does, with a layer or without: while it reads nothing it learns of no close. A layer
/// could not know either.
#[tokio::test]
async fn trap_2_1_a_connection_that_is_not_read_is_not_seen_to_close() {
    let offload = desk(8);
    let (work, mut hands) = work();
    let (held, mut holds) = mpsc::unbounded_channel();
    // It holds its body, and polls it no more.
    let holding = move |request: Request| {
        let held = held.clone();
        async move {
            let (answer, told) = oneshot::channel::<()>();
            held.send(answer).unwrap();
            let _ = told.await;
            drop(request);
        }
    };
    let policies = [Policy::after(ATTACHED), finishing()];
    let [app, finishing] = policies.map(|policy| {
        let holding = any(holding.clone()).layer(offload.layer(policy.clone()));
        work.app(&offload, policy).route("/held", holding)
    });
    for app in [app, finishing] {
        let server = Server::axum(app).await;
        let mut pipelined = server.connect().await;
        let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        pipelined.write(format!("{get}{get}")).await;
        let first = hands.calls.next().await;
        let mut unread = server.connect().await;
        unread.write("POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").await;
        let second = soon("the handler is called", holds.recv()).await.unwrap();
        drop((pipelined, unread));
        // A close that can be seen is, and theirs was before it.
        let client = Leaving::send(&server, "/bare", Leave::Close).await;
        let seen = hands.calls.next().await;
        client.leave().await;
        hands.is_dropped(seen).await;
        assert!(!first.is_gone() && !second.is_closed());
        // So each goes on to its end, where it stands.
        assert_eq!(numbers(&offload).await.0, 0);
        hands.finishes(first).await;
        second.send(()).unwrap();
    }
}

#[tokio::test]
async fn trap_2_2_the_work_of_a_client_that_leaves_is_finished_where_its_policy_says_so() {
    let offload = desk(8);
    let (work, mut hands) = work();
    let server = work.served(&offload, finishing()).await;
    for leave in WAYS {
        let client = Leaving::send(&server, "/", leave).await;
        let call = hands.calls.next().await;
        assert_eq!(call.body, "body");
        assert_eq!(numbers(&offload).await, (0, 0), "attached: nothing of ours runs");
        let _open = client.leave().await;
        runs(&offload, 1).await;
        hands.finishes(call).await;
        assert_eq!(runs(&offload, 0).await, 0, "{leave:?}");
    }
    let total = offload.stats().await.unwrap().total();
    assert_eq!((total.stored, total.bytes), (0, 0), "it is no job");
}

#[tokio::test]
async fn trap_2_2_a_request_dropped_on_a_thread_without_a_runtime_is_finished() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let service = work.behind(&offload, finishing());
    let call = begun(&service, request()).await;
    let handler = hands.calls.next().await;
    std::thread::spawn(move || drop(call)).join().unwrap();
    assert_eq!(numbers(&offload).await, (1, 0));
    hands.finishes(handler).await;
    runs(&offload, 0).await;
}

// ------------------------------------------------------------------------------------------- panics

/// A future that panics the second time it is polled, and counts.
struct Panics(Arc<AtomicUsize>);

impl Future for Panics {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.fetch_add(1, SeqCst) {
            0 => cx.waker().wake_by_ref(),
            1 => panic!("told to"),
            _ => {}
        }
        Poll::Pending
    }
}

#[tokio::test]
async fn trap_2_3_a_handler_that_has_panicked_is_not_begun_again() {
    let offload = desk(1);
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let panics = move |_: Request| Panics(Arc::clone(&counted));
    let layer = offload.layer(finishing());
    let mut service = layer.layer(tower::service_fn(panics));
    // Dropped by the unwinding itself, and after it was caught.
    let call = service.call(request());
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    polls.store(0, SeqCst);
    let mut call = task::spawn(service.call(request()));
    assert_pending!(call.poll());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| call.poll())).is_err());
    drop(call);
    assert_eq!(numbers(&offload).await, (0, 0));
    let drained = offload.drain(ATTACHED).await;
    assert_eq!((drained.finished(), drained.interrupted()), (0, 0));
    assert_eq!(polls.load(SeqCst), 2);
}

#[tokio::test]
async fn trap_2_3_nor_where_the_connections_task_unwinds() {
    let offload = desk(1);
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let panics = tower::service_fn(move |_: Request| Panics(Arc::clone(&counted)));
    let app = Router::new().route_service("/", offload.layer(finishing()).layer(panics));
    let server = Server::axum(app).await;
    let mut raw = server.connect().await;
    raw.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(soon("the connection closes", raw.read_to_end()).await, b"");
    assert_eq!(polls.swap(0, SeqCst), 2);
    let body = Full::default().map_err(|never: Infallible| match never {});
    let (_http2, answer) = stream(&server, "/", body.boxed_unsync()).await;
    soon("the stream ends", answer).await.unwrap();
    assert_eq!(offload.drain(ATTACHED).await.finished(), 0);
    assert_eq!((polls.load(SeqCst), numbers(&offload).await), (2, (0, 0)));
}

/// Another request in the same task has not panicked itself.
#[tokio::test]
async fn trap_2_3_a_request_dropped_while_another_unwinds_is_finished() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let call = begun(&work.behind(&offload, finishing()), request()).await;
    let handler = hands.calls.next().await;
    let both = async move {
        let _call = call;
        panic!("told to");
    };
    assert!(tokio::spawn(both).await.unwrap_err().is_panic());
    assert_eq!(numbers(&offload).await, (1, 0));
    hands.finishes(handler).await;
}

#[tokio::test]
async fn a_panic_after_the_client_has_left_is_caught_and_frees_the_place() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let server = work.served(&offload, finishing()).await;
    for _ in 0..3 {
        let client = Leaving::send(&server, "/", Leave::Close).await;
        let call = hands.calls.next().await;
        client.leave().await;
        runs(&offload, 1).await;
        call.panic();
        assert_eq!(runs(&offload, 0).await, 0);
    }
    assert!(hands.done.is_empty());
}

// --------------------------------------------------------------------------- timeouts and shutdown

#[tokio::test]
async fn trap_2_4_a_timeout_outside_answers_408_and_the_work_goes_on() {
    for (policy, goes_on) in [(finishing(), true), (Policy::after(ATTACHED), false)] {
        let offload = desk(1);
        let (work, mut hands) = work();
        let status = http::StatusCode::REQUEST_TIMEOUT;
        let timeout = TimeoutLayer::with_status_code(status, BUDGET);
        let server = Server::axum(work.app(&offload, policy).layer(timeout)).await;
        let client = Client::http1();
        let answer = client.post(&server, "/", "body");
        let (answer, call) = tokio::join!(answer, hands.calls.next());
        assert_eq!(answer.status, status);
        match goes_on {
            true => {
                runs(&offload, 1).await;
                hands.finishes(call).await;
            }
            false => hands.is_dropped(call).await,
        }
        assert_eq!(runs(&offload, 0).await, 0);
    }
}

#[test]
fn trap_2_5_a_runtime_that_shuts_down_takes_its_requests_with_it() {
    let multi_thread =
        || runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let current_thread = || runtime::Builder::new_current_thread().enable_all().build();
    for make in [&multi_thread as &dyn Fn() -> _, &current_thread] {
        for has_left in [false, true] {
            let (offload, lost) = (desk(8), make().unwrap());
            let (work, mut hands) = work();
            let service = work.behind(&offload, finishing());
            let calls = lost.block_on(async {
                let mut calls = Vec::new();
                for _ in 0..4 {
                    let call = begun(&service, request()).await;
                    calls.push(hands.calls.next().await);
                    match has_left {
                        true => drop(call),
                        false => drop(tokio::spawn(call.into_inner())),
                    }
                }
                calls
            });
            let (gone, is_gone) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop(lost);
                gone.send(()).unwrap();
            });
            is_gone.recv_timeout(Duration::from_secs(20)).expect("the runtime hangs at its end");
            assert!(calls.iter().all(Call::is_gone) && hands.done.is_empty());
            let after = current_thread().unwrap();
            assert_eq!(after.block_on(numbers(&offload)).0, 0, "places are given back");
        }
    }
}

// ------------------------------------------------------------------------------- requests' bodies

/// A handler that reads one frame of its body, then drops the rest or reads on; then it works,
/// whether its body has arrived or broken off. It tells when it has read, and is gone when what it
/// tells with is.
async fn reads(drops: bool, read: mpsc::Sender<()>, work: Work, request: Request) {
    let (head, mut body) = request.into_parts();
    body.frame().await.unwrap().unwrap();
    read.send(()).await.unwrap();
    while !drops && body.frame().await.is_some_and(|frame| frame.is_ok()) {}
    drop(body);
    drop(work.run(Request::from_parts(head, Body::empty())).await);
}

/// A server with such a handler, for one request.
async fn reading(offload: &Offload, drops: bool) -> (Server, Hands, mpsc::Receiver<()>) {
    let (work, hands) = work();
    let (sender, read) = mpsc::channel(1);
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let handler = any(move |request: Request| {
        reads(drops, sender.lock().unwrap().take().unwrap(), work.clone(), request)
    });
    let app = Router::new().route("/", handler.layer(offload.layer(finishing())));
    (Server::axum(app).await, hands, read)
}

#[tokio::test]
async fn a_request_whose_client_leaves_in_mid_upload_is_dropped() {
    let offload = desk(1);
    let (server, hands, mut read) = reading(&offload, false).await;
    let (mut sender, body): (Sender<Bytes, std::io::Error>, _) = Channel::new(1);
    let (_open, answer) = stream(&server, "/", body.boxed_unsync()).await;
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    soon("the handler reads", read.recv()).await.unwrap();
    answer.abort();
    assert_eq!(soon("the handler is dropped", read.recv()).await, None);
    assert!(hands.done.is_empty());
    assert_eq!(numbers(&offload).await, (0, 0));
}

/// hyper sees a client of HTTP/1.1 leave by the body that breaks off, and leaves the rest to the
/// handler. Whoever drops the request then, there is nothing to be finished.
#[tokio::test]
async fn a_request_whose_body_has_broken_off_is_dropped() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let (read, mut reader) = mpsc::channel(1);
    let handler = move |request: Request| {
        let (read, work) = (read.clone(), work.clone());
        async move {
            reads(false, read, work, request).await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    };
    let layered = offload.layer(finishing()).boxed().layer(tower::service_fn(handler));
    let (mut sender, body): (Sender<Bytes, std::io::Error>, _) = Channel::new(1);
    let mut call = begun(&Service::new(layered), Request::new(Body::new(body))).await;
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    woken(&mut call).await;
    reader.recv().await.unwrap();
    sender.abort(std::io::Error::other("the client is gone"));
    woken(&mut call).await;
    let handler = hands.calls.next().await;
    drop(call);
    hands.is_dropped(handler).await;
    assert_eq!(numbers(&offload).await, (0, 0));
}

#[tokio::test]
async fn a_body_that_the_handler_has_dropped_is_over() {
    let offload = desk(1);
    let (server, mut hands, _read) = reading(&offload, true).await;
    let (mut sender, body): (Sender<Bytes, std::io::Error>, _) = Channel::new(1);
    let (_open, answer) = stream(&server, "/", body.boxed_unsync()).await;
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    let call = hands.calls.next().await;
    answer.abort();
    runs(&offload, 1).await;
    hands.finishes(call).await;
    runs(&offload, 0).await;

    // Over HTTP/1.1 the rest stands unread in front of the close.
    let (server, mut hands, _read) = reading(&offload, true).await;
    let mut raw = server.connect().await;
    raw.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").await;
    let call = hands.calls.next().await;
    drop(raw);
    hands.finishes(call).await;
}

/// hyper would go on feeding it from its connection, on which the next request may come.
#[tokio::test(start_paused = true)]
async fn a_body_that_the_handler_has_not_read_yet_is_not_over() {
    let offload = desk(1);
    let (held, mut holds) = mpsc::unbounded_channel();
    let holding = move |request: Request| {
        let held = held.clone();
        async move {
            let (alive, gone) = oneshot::channel::<()>();
            held.send(gone).unwrap();
            std::future::pending::<()>().await;
            drop((request, alive));
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    };
    let layered = offload.layer(finishing()).boxed().layer(tower::service_fn(holding));
    let call = begun(&Service::new(layered), Request::new(Body::from("unread"))).await;
    let gone = holds.recv().await.unwrap();
    drop(call);
    assert!(gone.await.is_err());
    assert_eq!(numbers(&offload).await, (0, 0));
}

// ------------------------------------------------------------------------------------------- limits

#[tokio::test]
async fn work_that_finds_no_place_is_dropped_and_counted() {
    let all = desk(1);
    let own = desk(8);
    for (offload, policy) in [(all, finishing()), (own, finishing().concurrency(1))] {
        let (work, mut hands) = work();
        let server = work.served(&offload, policy).await;
        let mut calls = Vec::new();
        for _ in 0..2 {
            let client = Leaving::send(&server, "/", Leave::Close).await;
            let call = hands.calls.next().await;
            client.leave().await;
            if calls.is_empty() {
                runs(&offload, 1).await;
            }
            calls.push(call);
        }
        hands.is_dropped(calls.pop().unwrap()).await;
        assert_eq!(numbers(&offload).await, (1, 1));
        hands.finishes(calls.pop().unwrap()).await;
        assert_eq!(runs(&offload, 0).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_run_time_limit_stops_it() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let service = work.behind(&offload, finishing().timeout(BUDGET * 10));
    drop(begun(&service, request()).await);
    let call = hands.calls.next().await;
    sleep(BUDGET * 9).await;
    assert!(!call.is_gone());
    assert_eq!(numbers(&offload).await.0, 1);
    sleep(BUDGET * 2).await;
    hands.is_dropped(call).await;
    assert_eq!(numbers(&offload).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_it_and_at_its_deadline_drops_it() {
    let offload = desk(8);
    let (work, mut hands) = work();
    let service = work.behind(&offload, finishing());
    drop((begun(&service, request()).await, begun(&service, request()).await));
    let [first, second] = [hands.calls.next().await, hands.calls.next().await];
    // It is attached while the drain begins: no more work is taken on.
    let attached = begun(&service, request()).await;
    let third = hands.calls.next().await;
    let drain = tokio::spawn(offload.drain(BUDGET * 10));
    sleep(BUDGET).await;
    hands.finishes(first).await;
    drop(attached);
    hands.is_dropped(third).await;
    assert!(!drain.is_finished() && !second.is_gone());
    let drained = drain.await.unwrap();
    assert_eq!((drained.finished(), drained.interrupted()), (1, 1));
    hands.is_dropped(second).await;
    assert_eq!(runs(&offload, 0).await, 1);
}

// ------------------------------------------------------------------------------------------- stages

#[tokio::test(start_paused = true)]
async fn a_request_that_was_never_polled_is_finished_too() {
    let offload = desk(1);
    let (work, mut hands) = work();
    for policy in [finishing(), Policy::always().finish_on_disconnect()] {
        let service = work.behind(&offload, policy);
        drop(unpolled(&service, request()).await);
        let call = hands.calls.next().await;
        hands.finishes(call).await;
        assert_eq!(runs(&offload, 0).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_body_is_dropped() {
    let offload = desk(1);
    let (server, hands, mut read) = {
        let (work, hands) = work();
        let (sender, read) = mpsc::channel(1);
        let handler = move |request: Request| {
            let (sender, work) = (sender.clone(), work.clone());
            async move {
                reads(false, sender, work, request).await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        };
        let policy = Policy::after(BUDGET).finish_on_disconnect();
        let layered = offload.layer(policy).boxed().layer(tower::service_fn(handler));
        (Service::new(layered), hands, read)
    };
    let (mut sender, body): (Sender<Bytes, std::io::Error>, _) = Channel::new(4);
    let mut call = begun(&server, Request::new(Body::new(body))).await;
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    woken(&mut call).await;
    read.recv().await.unwrap();
    advance(BUDGET * 2).await;
    woken(&mut call).await;
    drop((call, server));
    // The handler and its service had the last senders.
    assert_eq!(read.recv().await, None);
    assert!(hands.done.is_empty());
    assert_eq!(numbers(&offload).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_job_is_being_registered_is_finished_and_the_job_taken_back() {
    for policy in [Policy::after(BUDGET), Policy::always()] {
        for max_running in [1, 2] {
            let store = Held::new(Insert::Waits);
            let builder = Offload::builder("/jobs").store(store.clone());
            let offload = builder.max_running(max_running).build().unwrap();
            let (work, mut hands) = work();
            let service = work.behind(&offload, policy.clone().finish_on_disconnect());
            let mut call = begun(&service, request()).await;
            if numbers(&offload).await.0 == 0 {
                advance(BUDGET).await;
                woken(&mut call).await;
            }
            assert_eq!(numbers(&offload).await, (1, 0));
            drop(call);
            match max_running {
                // The registration has the only place, as long as the store takes.
                1 => assert_eq!(numbers(&offload).await, (1, 1)),
                _ => {
                    let call = hands.calls.next().await;
                    assert_eq!(numbers(&offload).await, (2, 0));
                    hands.finishes(call).await;
                }
            }
            store.let_insert();
            runs(&offload, 0).await;
            assert_eq!((store.jobs.jobs(), store.take_backs()), (0, 1));
            assert!(hands.done.is_empty());
        }
    }
}

/// A route with a queue makes jobs of its requests before they are begun.
#[tokio::test(start_paused = true)]
async fn a_queued_request_whose_client_leaves_becomes_a_job_where_its_policy_says_so() {
    let policy = Policy::always().concurrency(1).queue(1);
    for (policy, becomes_a_job) in [(policy.clone().finish_on_disconnect(), true), (policy, false)]
    {
        let store = Held::new(Insert::Waits);
        let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
        let (work, mut hands) = work();
        drop(begun(&work.behind(&offload, policy), request()).await);
        yield_now().await;
        store.let_insert();
        if becomes_a_job {
            let call = hands.calls.next().await;
            hands.finishes(call).await;
        }
        runs(&offload, 0).await;
        assert_eq!(store.jobs.jobs(), usize::from(becomes_a_job));
        assert!(hands.calls.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_refused_is_finished_if_there_is_room_by_then() {
    for room in [true, false] {
        let offload = desk(1);
        let (work, mut hands) = work();
        let service = work.behind(&offload, finishing());
        drop(begun(&service, request()).await);
        let holder = hands.calls.next().await;
        let slow = work.behind(&offload, Policy::after(BUDGET).finish_on_disconnect());
        let mut call = begun(&slow, request()).await;
        let refused = hands.calls.next().await;
        advance(BUDGET * 2).await;
        woken(&mut call).await;
        assert_eq!(numbers(&offload).await, (1, 1));
        if room {
            hands.finishes(holder).await;
            runs(&offload, 0).await;
            drop(call);
            hands.finishes(refused).await;
        } else {
            drop(call);
            hands.is_dropped(refused).await;
        }
        // It was counted when it found no room, and counts once.
        assert_eq!(numbers(&offload).await.1, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_watched_is_dropped() {
    let offload = desk(1);
    let (work, mut hands) = work();
    let asked =
        |prefer: &str| Request::post("/").header("prefer", prefer).body(Body::empty()).unwrap();
    let service = work.behind(&offload, Policy::on_request(ATTACHED).finish_on_disconnect());
    drop(begun(&service, asked("wait=5")).await);
    let call = hands.calls.next().await;
    hands.is_dropped(call).await;
    drop(begun(&service, asked("respond-async, wait=20")).await);
    let call = hands.calls.next().await;
    hands.finishes(call).await;
    drop(begun(&work.behind(&offload, Policy::never().finish_on_disconnect()), request()).await);
    let call = hands.calls.next().await;
    hands.is_dropped(call).await;
}

// -------------------------------------------------------------------------------- the handler's job

#[tokio::test(start_paused = true)]
async fn the_handlers_job_stays_its_own_and_is_not_canceled_by_the_leaving() {
    for is_stopped in [false, true] {
        let offload = desk(1);
        let (jobs, mut asked) = mpsc::unbounded_channel();
        let handler = move |_: Request| {
            let jobs = jobs.clone();
            async move {
                let before = Job::current().unwrap();
                jobs.send(before.cancellation()).unwrap();
                sleep(BUDGET * 2).await;
                let after = Job::current().unwrap();
                after.progress(0.5, "nobody reads it");
                assert_eq!(before.id(), after.id());
                jobs.send(after.cancellation()).unwrap();
                sleep(BUDGET * 2).await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        };
        let limit = if is_stopped { BUDGET * 3 } else { ATTACHED };
        let layer = offload.layer(finishing().timeout(limit)).boxed();
        drop(begun(&Service::new(layer.layer(tower::service_fn(handler))), request()).await);
        let before = asked.recv().await.unwrap();
        let after = asked.recv().await.unwrap();
        assert!(!before.is_cancelled() && !after.is_cancelled());
        runs(&offload, 0).await;
        assert_eq!((before.is_cancelled(), after.is_cancelled()), (is_stopped, is_stopped));
    }
}

#[tokio::test]
async fn by_default_the_leaving_cancels_what_the_handler_has_started() {
    let offload = desk(1);
    let (jobs, mut asked) = mpsc::unbounded_channel();
    let handler = any(move || {
        let jobs = jobs.clone();
        async move {
            jobs.send(Job::current().unwrap().cancellation()).unwrap();
            std::future::pending::<()>().await;
        }
    });
    let layer = offload.layer(Policy::after(ATTACHED));
    let server = Server::axum(Router::new().route("/", handler.layer(layer))).await;
    for leave in [Leave::Close, Leave::StreamReset] {
        let client = Leaving::send(&server, "/", leave).await;
        let token = soon("the handler is called", asked.recv()).await.unwrap();
        let _open = client.leave().await;
        soon("it is canceled", token.cancelled()).await;
    }
}

/// What a handler has started, which its drop waits for.
struct Helper(CancellationToken, Arc<Mutex<Option<bool>>>);

impl Drop for Helper {
    fn drop(&mut self) {
        *self.1.lock().unwrap() = Some(self.0.is_cancelled());
    }
}

/// Were it told after the handler's drop, a drop that waits for it would never come back.
#[tokio::test(start_paused = true)]
async fn what_the_handler_has_started_is_told_before_the_handler_is_dropped() {
    let told = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&told);
    let handler = BoxCloneSyncService::new(tower::service_fn(move |request: Request| {
        let seen = Arc::clone(&seen);
        async move {
            let _body = request.into_body();
            let _helper = Helper(Job::current().unwrap().cancellation(), seen);
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    }));
    for (policy, mid_upload, places) in [
        (Policy::after(ATTACHED), false, 1),
        (finishing(), true, 1),
        // There is no place for it.
        (finishing(), false, 0),
    ] {
        let offload = desk(1);
        let _busy = match places {
            0 => Some(
                desk::send(&offload, Policy::always(), desk::service(std::future::pending::<()>))
                    .await,
            ),
            _ => None,
        };
        let mut service = offload.layer(policy).layer(handler.clone());
        let (_sender, body) = Channel::<Bytes, Infallible>::new(1);
        let body = if mid_upload { Body::new(body) } else { Body::empty() };
        let mut call = task::spawn(service.call(Request::new(body)));
        assert_pending!(call.poll());
        drop(call);
        assert_eq!(told.lock().unwrap().take(), Some(true), "{mid_upload} {places}");
    }
}
