//! What the layer costs a request, beside the bare service and the timeouts of tower and tower-http.
//!
//! ```text
//! cargo bench -p tower-offload-benches --bench overhead                         # all, in some four minutes
//! cargo bench -p tower-offload-benches --bench overhead -- ready                # one group
//! cargo bench -p tower-offload-benches --profile dev --bench overhead -- --test # each case once, to see that it runs
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
    hint::black_box,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use http::{Request, Response};
use tower::{Layer, Service, ServiceExt};
use tower_offload::{Offload, Policies, Policy};
use tower_offload_benches::{
    BUDGET, request,
    rival::{self, TaskPerRequest},
    runtime,
    service::{Handler, Takes},
};

/// Requests are built in batches of this many, outside of what is measured.
const BATCH: u64 = 64;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// The handler answers at its first poll: no timer and no deadline is needed.
fn ready(criterion: &mut Criterion) {
    around(&mut criterion.benchmark_group("ready"), Handler::new(Takes::Nothing), request::post);
}

/// The handler is pending once, as nearly every one is in production.
fn pending_once(criterion: &mut Criterion) {
    around(
        &mut criterion.benchmark_group("pending_once"),
        Handler::new(Takes::OnePending),
        request::post,
    );
}

/// A request with the headers of a browser, which the layer has to look at.
fn ten_headers(criterion: &mut Criterion) {
    around(
        &mut criterion.benchmark_group("ten_headers"),
        Handler::new(Takes::Nothing),
        request::ten_headers,
    );
}

/// A request with a body, which the layer has to watch.
fn upload(criterion: &mut Criterion) {
    around(
        &mut criterion.benchmark_group("upload"),
        Handler::new(Takes::OnePending),
        request::upload,
    );
}

/// Each layer around the small service.
fn around(group: &mut Group<'_>, handler: Handler, request: fn() -> Request<Body>) {
    let offload = Offload::new("/jobs");
    let layer = |policy| offload.layer(policy).layer(handler);
    case(group, "bare", handler, request);
    case(group, "tower_timeout", rival::timeout().layer(handler), request);
    case(group, "tower_http_timeout", rival::http_timeout().layer(handler), request);
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
    let request = request::empty;
    case(group, "bare", router(ok()), request);
    case(group, "inside_tower_http_timeout", router(ok().layer(rival::http_timeout())), request);
    case(group, "inside_never", router(ok().layer(offload.layer(Policy::never()))), request);
    case(group, "inside_after", router(ok().layer(after())), request);
    case(group, "around_tower_http_timeout", rival::http_timeout().layer(router(ok())), request);
    case(group, "around_never", offload.layer(Policy::never()).layer(router(ok())), request);
    case(group, "around_after", after().layer(router(ok())), request);
    case(group, "around_table_after", offload.layer(table()).layer(router(ok())), request);
}

/// The whole way of a job: its 202, the rest of its run, and its expiry.
fn detach(criterion: &mut Criterion) {
    let group = &mut criterion.benchmark_group("detach");
    let handler: Handler = Handler::new(Takes::OnePending);
    case(group, "bare", handler, request::post);
    case(group, "task_per_request", TaskPerRequest(handler), request::post);
    detached(group, "always", Policy::always(), request::post);
    detached(group, "after_respond_async", Policy::after(BUDGET), request::respond_async);
    detached(group, "always_upload", Policy::always(), request::upload);
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
            let service =
                offload.layer(policy.clone()).layer(Handler::<32>::new(Takes::OnePending));
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    targets = ready, pending_once, ten_headers, upload, router, detach
}
criterion_main!(benches);
