//! The cases: which request goes to which handler, through what. `instructions`, `overhead` and
//! `syscalls` measure the same ones.
//!
//! Services are called as hyper calls them: by a clone of their own for each request, in a task.

use std::{
    fmt,
    future::{Future, poll_fn},
    hint::black_box,
    pin::Pin,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{MethodRouter, get, post},
};
use http::{Request, Response, StatusCode};
use tower::{Layer, Service};
use tower_offload::{Offload, OffloadLayer, Policies, Policy};

use crate::{
    BUDGET, request,
    rival::{self, TaskPerRequest},
    service::{Handler, Takes},
};

/// The bytes that a handler's future of 64 B has beside its body and its timer.
const SMALL: usize = 32;
/// Those of one of 4 KiB.
const LARGE: usize = 4096 - 32;

/// One case.
pub struct Case {
    /// What is asked of which service; each group has its own `bare`.
    pub group: &'static str,
    /// What is around the service.
    pub name: &'static str,
    /// What is sent.
    pub request: fn() -> Request<Body>,
    calls: Calls,
}

type Calls = Box<dyn Fn(Vec<Request<Body>>) -> Called + Send>;

/// The calls of a case, to be run in a task.
pub type Called = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Case {
    /// `count` requests, all built before the first is sent.
    pub fn requests(&self, count: usize) -> Vec<Request<Body>> {
        (0..count).map(|_| (self.request)()).collect()
    }

    /// How many calls are counted where each is counted: what the runtime costs once is less than
    /// two instructions of each.
    pub fn counted(&self) -> usize {
        // A timer of 1 ms takes 1 ms.
        if self.group == "timer" { 64 } else { 2_000 }
    }

    /// Sends the requests, one after the other.
    pub fn calls(&self, requests: Vec<Request<Body>>) -> Called {
        (self.calls)(requests)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.group, self.name)
    }
}

/// How long jobs are kept where they are not to expire while their case is measured.
pub const LONG: Duration = Duration::from_secs(3600);

/// Every case, group by group. Jobs are kept for `ttl`.
pub fn all(ttl: Duration) -> Vec<Case> {
    let timer = Takes::Timer(Duration::from_millis(1));
    let mut cases = Vec::new();
    for group in [
        around_service::<SMALL>("ready", Takes::Nothing, request::empty),
        around_service::<SMALL>("ready_ten_headers", Takes::Nothing, request::ten_headers),
        around_service::<LARGE>("ready_4k", Takes::Nothing, request::empty),
        around_service::<SMALL>("pending", Takes::OnePending, request::empty),
        around_service::<SMALL>("pending_ten_headers", Takes::OnePending, request::ten_headers),
        around_service::<LARGE>("pending_4k", Takes::OnePending, request::empty),
        around_service::<SMALL>("pending_upload", Takes::OnePending, request::upload),
        around_service::<SMALL>("timer", timer, request::empty),
        with_router("router_get", || get(|| async { "ok" }), request::empty),
        with_router("router_post", || post(|_: Bytes| async { "ok" }), request::upload),
        detach(ttl),
    ] {
        cases.extend(group);
    }
    cases
}

/// The case of that name.
///
/// # Panics
/// If there is none.
pub fn find(group: &str, name: &str) -> Case {
    let mut cases = all(LONG).into_iter();
    let found = cases.find(|case| case.group == group && case.name == name);
    found.unwrap_or_else(|| panic!("no case {group}::{name}"))
}

/// Each rival, and ours, around the small service.
fn around_service<const SIZE: usize>(
    group: &'static str,
    takes: Takes,
    request: fn() -> Request<Body>,
) -> Vec<Case> {
    let handler = Handler::<SIZE>::new(takes);
    let new = |name, calls| Case { group, name, request, calls };
    vec![
        new("bare", answered(handler)),
        new("tower_timeout", answered(rival::timeout().layer(handler))),
        new("tower_http_timeout", answered(rival::http_timeout().layer(handler))),
        new("never", answered(ours(Policy::never()).layer(handler))),
        new("after", answered(ours(Policy::after(BUDGET)).layer(handler))),
        new("after_boxed", answered(ours(Policy::after(BUDGET)).boxed().layer(handler))),
        new("table", answered(ours(table()).layer(handler))),
        new("task_per_request", answered(TaskPerRequest(handler))),
    ]
}

/// Each layer inside an axum router, on the route, and around it all.
fn with_router(
    group: &'static str,
    route: fn() -> MethodRouter,
    request: fn() -> Request<Body>,
) -> Vec<Case> {
    let new = |name, calls| Case { group, name, request, calls };
    // The requests are for either of the paths.
    let router =
        |route: MethodRouter| Router::new().route("/", route.clone()).route("/reports", route);
    let bare = || router(route());
    let never = || ours(Policy::never());
    let after = || ours(Policy::after(BUDGET));
    vec![
        new("bare", answered(bare())),
        new("inside_tower_http_timeout", answered(router(route().layer(rival::http_timeout())))),
        new("inside_never", answered(router(route().layer(never())))),
        new("inside_after", answered(router(route().layer(after())))),
        new("inside_after_boxed", answered(router(route().layer(after().boxed())))),
        new("around_tower_timeout", answered(rival::timeout().layer(bare()))),
        new("around_tower_http_timeout", answered(rival::http_timeout().layer(bare()))),
        new("around_never", answered(never().layer(bare()))),
        new("around_after", answered(after().layer(bare()))),
        new("around_after_boxed", answered(after().boxed().layer(bare()))),
        new("around_table", answered(ours(table()).layer(bare()))),
    ]
}

/// The whole way of a job: its id, its record, its 202, and the rest of its run.
fn detach(ttl: Duration) -> Vec<Case> {
    let handler = Handler::<SMALL>::new(Takes::OnePending);
    let new = |name, request, calls| Case { group: "detach", name, request, calls };
    // Room for as many jobs as a case makes.
    let desk = || Offload::builder("/jobs").max_running(1 << 20).max_stored_bytes(1 << 40);
    let job =
        |policy: Policy| accepted(desk().ttl(ttl).build().unwrap().layer(policy).layer(handler));
    vec![
        new("bare", request::post, answered(handler)),
        new("task_per_request", request::post, answered(TaskPerRequest(handler))),
        new("always", request::post, job(Policy::always())),
        new("respond_async", request::respond_async, job(Policy::after(BUDGET))),
        new("always_upload", request::upload, job(Policy::always())),
    ]
}

fn ours(policies: impl Into<Policies>) -> OffloadLayer {
    Offload::new("/jobs").layer(policies)
}

fn table() -> Policies {
    Policies::otherwise(Policy::never())
        .at("/", Policy::after(BUDGET))
        .at("/reports", Policy::after(BUDGET))
        .at("POST /videos", Policy::always())
        .at("/videos/{id}", Policy::never())
        .at("POST /imports/{*path}", Policy::on_request(BUDGET))
}

/// Calls that the handler answers.
fn answered<S, B>(service: S) -> Calls
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: fmt::Debug,
    B: Send + 'static,
{
    Box::new(move |requests| Box::pin(each::<false, S, B>(service.clone(), requests)))
}

/// Calls by which jobs are made.
fn accepted<S, B>(service: S) -> Calls
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: fmt::Debug,
    B: Send + 'static,
{
    Box::new(move |requests| Box::pin(each::<true, S, B>(service.clone(), requests)))
}

/// Not by `ServiceExt::oneshot`, whose future would move what it is to measure.
async fn each<const JOBS: bool, S, B>(service: S, requests: Vec<Request<Body>>)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: fmt::Debug,
{
    for request in requests {
        let mut service = service.clone();
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
        let answer = service.call(request).await.unwrap();
        let expected = if JOBS { StatusCode::ACCEPTED } else { StatusCode::OK };
        assert_eq!(black_box(&answer).status(), expected);
        if JOBS {
            // The job's turn.
            tokio::task::yield_now().await;
        }
    }
}
