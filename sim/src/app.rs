//! The app that each node runs: its routes, their policies, and a handler that does as its request says.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    panic::panic_any,
    pin::pin,
    task::Poll,
    time::Duration,
};

use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, service_fn, util::BoxCloneService};
use tower_offload::{BoxError, Job, Offload, Owner, Policies, Policy, Store};

use crate::{
    facts::{Execution, Fact, Route},
    log::Log,
    scenario::Scenario,
};

/// The app as a service: what clients reach.
pub type App = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

/// Text that only a leak can bring before a client.
pub const SECRET: &str = "internal-detail";

/// An outcome may be so large.
pub const MAX_OUTCOME: usize = 64 * 1024;

/// The number of jobs of the route with a queue that one node runs at once.
pub const CONCURRENCY: usize = 2;

/// What a handler does after its time, as the header `x-then` says.
pub const THEN: [&str; 12] =
    ["ok", "ok", "ok", "ok", "fail", "bad", "panic", "error", "hang", "large", "broken", "die"];

/// Makes a node's `Offload` and its app, and begins to run durable jobs.
pub fn build(
    store: impl Store,
    scenario: &Scenario,
    node: (usize, u32),
    log: &Log,
) -> (App, Offload) {
    let offload = Offload::builder("/jobs")
        .store(store)
        .owner(owner)
        .restore(|parts| user_code(parts, "restore"))
        .max_outcome_bytes(MAX_OUTCOME)
        .max_running(scenario.max_running)
        .max_run_time(Duration::from_secs(8))
        .max_wait(Duration::from_secs(5))
        .ttl(Duration::from_millis(scenario.ttl))
        .build();
    let offload = offload.unwrap_or_else(|error| panic!("the simulated app is wrong: {error}"));
    let short = Duration::from_millis(50);
    let mut policies = Policies::otherwise(Policy::never())
        .at("/after", Policy::after(short).finish_on_disconnect().name("after"))
        .at("/always", Policy::always().timeout(Duration::from_secs(3)).name("always"))
        .at("/queue", Policy::always().concurrency(CONCURRENCY).queue(6).name("queue"))
        .at("/keyed", Policy::after(short).idempotent().concurrency(3).queue(6).name("keyed"));
    if scenario.servers > 0 {
        let durable = Policy::always().durable();
        policies = policies
            .at("/durable", durable.clone().concurrency(2).name("durable"))
            .at("/durable-keyed", durable.idempotency_required().name("durable-keyed"));
    }
    let log = log.clone();
    let handler = service_fn(move |request| Box::pin(handle(request, node, log.clone())));
    let app = offload.layer(policies).mounted().layer(handler);
    if scenario.servers > 0 {
        offload.serve_durable::<_, Body, _>(app.clone());
    }
    (BoxCloneService::new(app), offload)
}

fn owner(parts: &Parts) -> Option<Owner> {
    user_code(parts, "owner");
    parts.headers.get("x-owner").cloned().map(Owner::from)
}

/// A closure of the app's, which panics where the request says so.
fn user_code(parts: &Parts, which: &str) {
    if parts.headers.get("x-panic").is_some_and(|panics| panics == which) {
        panic_any(SECRET);
    }
}

fn text<'a>(parts: &'a Parts, name: &str) -> &'a str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A handler's run. Dropped before it is over, it is noted as dropped.
struct Run {
    log: Log,
    number: u64,
    over: bool,
}

impl Run {
    fn end(&mut self, response: Option<u16>) {
        self.over = true;
        self.log.tell(format!("run {} ends with {response:?}", self.number));
        self.log.note(Fact::Ended { run: self.number, response, at: self.log.now() });
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.over {
            self.log.note(Fact::Dropped { run: self.number, at: self.log.now() });
        }
    }
}

async fn handle(
    request: Request<Body>,
    node: (usize, u32),
    log: Log,
) -> Result<Response<Body>, BoxError> {
    let (parts, body) = request.into_parts();
    let tag = text(&parts, "x-tag").parse().unwrap_or_default();
    let time: u64 = text(&parts, "x-time").parse().unwrap_or_default();
    let then = text(&parts, "x-then").to_owned();
    let asks = parts.uri.path().starts_with("/durable") || !text(&parts, "x-job").is_empty();
    let job = if asks { Job::current() } else { None };
    let (attempt, id) = job.as_ref().map_or((0, None), |job| {
        (if Route::is_path_durable(parts.uri.path()) { job.attempt() } else { 0 }, Some(job.id()))
    });
    let mut run = Run { number: log.next_run(), log: log.clone(), over: false };
    let began = Execution {
        run: run.number,
        tag,
        node,
        attempt,
        job: id.map(|id| id.to_string()),
        at: log.now(),
    };
    log.tell(format!(
        "n{} begins run {} of task {tag}{}: {time} ms, {then}",
        node.0,
        run.number,
        if attempt > 0 { format!(", attempt {attempt}") } else { String::new() },
    ));
    log.note(Fact::Began(began));
    body.collect().await?;
    let body = format!("task={tag} run={}", run.number);
    if text(&parts, "x-block").is_empty() {
        work(time, job.as_ref()).await;
    } else {
        log.note(Fact::Trouble { node: node.0, at: log.now() });
        block(Duration::from_millis(time)).await;
    }
    let (status, body) = match &*then {
        "fail" => (StatusCode::INTERNAL_SERVER_ERROR, Body::from(body)),
        "bad" => (StatusCode::BAD_REQUEST, Body::from(body)),
        "large" => (StatusCode::OK, Body::from(vec![b'x'; MAX_OUTCOME + 1])),
        "broken" => (StatusCode::OK, broken()),
        "hang" => std::future::pending().await,
        "die" if log.dies_first(tag) => {
            log.tell(format!("n{} dies by its handler", node.0));
            log.kill(node.0);
            std::future::pending().await
        }
        "panic" => {
            run.end(None);
            panic_any(SECRET);
        }
        "error" => {
            run.end(None);
            return Err(SECRET.into());
        }
        _ => (StatusCode::OK, Body::from(body)),
    };
    let whole = !matches!(&*then, "large" | "broken");
    run.end(whole.then_some(status.as_u16()));
    let response = Response::builder().status(status).header(header::LOCATION, "next");
    Ok(response.body(body)?)
}

async fn work(time: u64, job: Option<&Job>) {
    let Some(job) = job else { return tokio::time::sleep(Duration::from_millis(time)).await };
    for step in 1..=4_u32 {
        tokio::time::sleep(Duration::from_millis(time / 4)).await;
        job.progress(f64::from(step) / 4.0, "going on");
    }
}

/// Blocks this thread: its clock goes on, and nothing else is polled meanwhile.
async fn block(time: Duration) {
    let mut advance = pin!(tokio::time::advance(time));
    poll_fn(|cx| {
        // The first poll moves the clock; what it waits for after that does not matter here.
        let _ = advance.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// A body that breaks off.
fn broken() -> Body {
    let pieces: [Result<_, BoxError>; 2] =
        [Ok(http_body::Frame::data(Bytes::from_static(b"half"))), Err(SECRET.into())];
    Body::new(StreamBody::new(futures_util::stream::iter(pieces)))
}

/// A body of these bytes.
pub fn whole(text: String) -> Body {
    Body::new(Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}))
}
