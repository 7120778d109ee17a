//! What the layer costs a request, beside the bare service and the timeouts of tower and tower-http.
//!
//! ```text
//! cargo bench --bench overhead                         # all, in some four minutes
//! cargo bench --bench overhead -- ready                # one group
//! cargo bench --profile dev --bench overhead -- --test # each case once, to see that it runs
//! ```
//!
//! A case's cost is its time less that of `bare` in the same group and run; between runs and machines
//! only such differences can be compared. Services are called as hyper calls them, by a clone of
//! their own for each request, in a task of a current-thread runtime. `router` is axum's, with the
//! layer `inside`, on the route, or `around` it all.
//!
//! A timer that is armed while the runtime has nothing earlier to wait for costs a system call; that
//! is most of what the timeouts cost where they arm one.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use http::{Request, Response, Uri};
use http_body::Body as _;
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt};
use tower_http::timeout::TimeoutLayer as HttpTimeoutLayer;
use tower_offload::{Offload, Policies, Policy};

const BUDGET: Duration = Duration::from_millis(250);

/// Requests are built in batches of this many, outside of what is measured.
const BATCH: u64 = 64;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// The handler answers at its first poll: no timer and no deadline is needed.
fn ready(criterion: &mut Criterion) {
    around(&mut criterion.benchmark_group("ready"), Handler::ready(), || post().empty());
}

/// The handler is pending once, as nearly every one is in production.
fn pending_once(criterion: &mut Criterion) {
    around(&mut criterion.benchmark_group("pending_once"), Handler::pending_once(), || {
        post().empty()
    });
}

/// A request with the headers of a browser, which the layer has to look at.
fn ten_headers(criterion: &mut Criterion) {
    around(&mut criterion.benchmark_group("ten_headers"), Handler::ready(), || {
        post().ten_headers().empty()
    });
}

/// A request with a body, which the layer has to watch.
fn upload(criterion: &mut Criterion) {
    around(&mut criterion.benchmark_group("upload"), Handler::pending_once(), || post().body());
}

/// Each layer around the small service.
fn around(group: &mut Group<'_>, handler: Handler, request: fn() -> Request<Body>) {
    let offload = Offload::new("/jobs");
    let layer = |policy| offload.layer(policy).layer(handler);
    case(group, "bare", handler, request);
    case(group, "tower_timeout", tower::timeout::TimeoutLayer::new(BUDGET).layer(handler), request);
    case(group, "tower_http_timeout", http_timeout().layer(handler), request);
    case(group, "never", layer(Policy::never()), request);
    case(group, "on_request", layer(Policy::on_request(BUDGET)), request);
    case(group, "after", layer(Policy::after(BUDGET)), request);
    let boxed = offload.layer(Policy::after(BUDGET)).boxed().layer(handler);
    case(group, "after_boxed", boxed, request);
    case(group, "table_after", offload.layer(table()).layer(handler), request);
    case(group, "task_per_request", TaskPerRequest(handler), request);
}

/// `GET` through an axum router.
fn router(criterion: &mut Criterion) {
    let group = &mut criterion.benchmark_group("router");
    let offload = Offload::new("/jobs");
    let after = || offload.layer(Policy::after(BUDGET));
    let ok = || get(|| async { "ok" });
    let router = |route| Router::new().route("/reports", route).route("/", ok());
    let request = || Request::get(uri()).body(Body::empty()).unwrap();
    case(group, "bare", router(ok()), request);
    case(group, "inside_tower_http_timeout", router(ok().layer(http_timeout())), request);
    case(group, "inside_never", router(ok().layer(offload.layer(Policy::never()))), request);
    case(group, "inside_after", router(ok().layer(after())), request);
    case(group, "around_tower_http_timeout", http_timeout().layer(router(ok())), request);
    case(group, "around_never", offload.layer(Policy::never()).layer(router(ok())), request);
    case(group, "around_after", after().layer(router(ok())), request);
    case(group, "around_table_after", offload.layer(table()).layer(router(ok())), request);
}

/// The whole way of a job: its 202, the rest of its run, and its expiry.
fn detach(criterion: &mut Criterion) {
    let group = &mut criterion.benchmark_group("detach");
    let handler = Handler::pending_once();
    case(group, "bare", handler, || post().empty());
    case(group, "task_per_request", TaskPerRequest(handler), || post().empty());
    detached(group, "always", Policy::always(), || post().empty());
    detached(group, "after_respond_async", Policy::after(BUDGET), || {
        post().respond_async().empty()
    });
    detached(group, "always_upload", Policy::always(), || post().body());
}

fn http_timeout() -> HttpTimeoutLayer {
    HttpTimeoutLayer::with_status_code(http::StatusCode::GATEWAY_TIMEOUT, BUDGET)
}

fn table() -> Policies {
    Policies::otherwise(Policy::never())
        .at("/reports", Policy::after(BUDGET))
        .at("POST /videos", Policy::always())
        .at("/videos/{id}", Policy::never())
        .at("POST /imports/{*path}", Policy::on_request(BUDGET))
}

/// Measures a service that answers 200.
fn case<S, B>(group: &mut Group<'_>, name: &str, service: S, request: fn() -> Request<Body>)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: std::fmt::Debug,
    B: Send,
{
    let runtime = runtime();
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iters| {
            let service = service.clone();
            let measured = runtime.spawn(async move {
                let mut time = Duration::ZERO;
                for batch in batches(iters, request) {
                    let start = Instant::now();
                    for request in batch {
                        let answer = service.clone().oneshot(black_box(request)).await.unwrap();
                        assert_eq!(black_box(answer).status(), 200);
                    }
                    time += start.elapsed();
                }
                time
            });
            runtime.block_on(measured).unwrap()
        });
    });
}

/// Measures a policy by which every request becomes a job.
fn detached(group: &mut Group<'_>, name: &str, policy: Policy, request: fn() -> Request<Body>) {
    let runtime = runtime();
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iters| {
            let offload = Offload::builder("/jobs")
                .max_running(1 << 20)
                .max_stored_bytes(1 << 40)
                // Jobs go as fast as others come.
                .ttl(Duration::from_millis(20))
                .build()
                .unwrap();
            let service = offload.layer(policy.clone()).layer(Handler::pending_once());
            let measured = runtime.spawn(async move {
                let mut time = Duration::ZERO;
                for batch in batches(iters, request) {
                    let start = Instant::now();
                    for request in batch {
                        let answer = service.clone().oneshot(black_box(request)).await.unwrap();
                        assert_eq!(black_box(answer).status(), 202);
                        // The job's turn.
                        tokio::task::yield_now().await;
                    }
                    time += start.elapsed();
                }
                let start = Instant::now();
                offload.drain(Duration::from_secs(60)).await;
                time + start.elapsed()
            });
            runtime.block_on(measured).unwrap()
        });
    });
}

fn batches(
    iters: u64,
    request: fn() -> Request<Body>,
) -> impl Iterator<Item = Vec<Request<Body>>> + Send {
    let sizes = (0..iters).step_by(BATCH as usize).map(move |done| BATCH.min(iters - done));
    sizes.map(move |size| (0..size).map(|_| request()).collect())
}

/// The small service: reads its request's body, is pending as often as it is to be, and answers.
#[derive(Clone, Copy)]
struct Handler {
    pending: u32,
}

impl Handler {
    fn ready() -> Self {
        Self { pending: 0 }
    }

    fn pending_once() -> Self {
        Self { pending: 1 }
    }
}

impl Service<Request<Body>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Handling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Handling {
        Handling { body: request.into_body(), pending: self.pending }
    }
}

struct Handling {
    body: Body,
    pending: u32,
}

impl Future for Handling {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        while let Some(frame) = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            black_box(frame).unwrap();
        }
        if self.pending > 0 {
            self.pending -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(Response::new(Body::empty())))
    }
}

/// What a layer would be that spawns a task for every request, to have it when it is slow.
#[derive(Clone, Copy)]
struct TaskPerRequest(Handler);

impl Service<Request<Body>> for TaskPerRequest {
    type Response = Response<Body>;
    type Error = tokio::task::JoinError;
    type Future = Joined;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Joined {
        Joined(tokio::spawn(self.0.call(request)))
    }
}

struct Joined(tokio::task::JoinHandle<Result<Response<Body>, Infallible>>);

impl Future for Joined {
    type Output = Result<Response<Body>, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_ok(|answer| {
            let Ok(response) = answer;
            response
        })
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A `POST` to come.
struct Post(http::request::Builder);

fn post() -> Post {
    Post(Request::post(uri()))
}

/// A URI as hyper makes it: its bytes are shared, so that a clone allocates nothing.
fn uri() -> Uri {
    static URI: LazyLock<Uri> = LazyLock::new(|| "/reports".to_owned().try_into().unwrap());
    URI.clone()
}

impl Post {
    fn ten_headers(self) -> Self {
        let headers = [
            ("host", "api.example"),
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            ("accept", "application/json"),
            ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("content-type", "application/json"),
            ("origin", "https://app.example"),
            ("referer", "https://app.example/reports"),
            ("cookie", "session=0123456789abcdef0123456789abcdef"),
            ("priority", "u=0"),
        ];
        Self(headers.into_iter().fold(self.0, |request, (name, value)| request.header(name, value)))
    }

    fn respond_async(self) -> Self {
        Self(self.0.header("prefer", "respond-async"))
    }

    fn empty(self) -> Request<Body> {
        self.0.body(Body::empty()).unwrap()
    }

    fn body(self) -> Request<Body> {
        self.0.body(Body::from("id,price\n1,2.5\n")).unwrap()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    targets = ready, pending_once, ten_headers, upload, router, detach
}
criterion_main!(benches);
