//! What a job takes of the heap, as the allocator counts what it is asked for: running, without its
//! future; finished; and its outcome alone. Beside it, the rivals of `desks`.
//!
//! ```text
//! cargo bench -p tower-offload-benches --bench memory                         # in some two minutes
//! cargo bench -p tower-offload-benches --profile dev --bench memory -- --test # small, to see that it runs
//! ```
//!
//! It is a bench of its own since counting takes time. A hash table doubles when it is full, so what
//! a job takes of it hangs on how many there are: told are the least and the most between half a
//! million jobs and a million, and how it is at a million.

use std::{
    convert::Infallible,
    future::{Pending, Ready, pending, ready},
    io,
    time::{Duration, SystemTime},
};

use axum::body::Body;
use http::{HeaderValue, Request, Response, header};
use peak_alloc::PeakAlloc;
use tokio::task::yield_now;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::{JobId, Outcome, Policy, Record, Store};
use tower_offload_benches::{
    desks::{Apalis, Around, ByHand, DATA, Desk, ENDLESS, KEPT, OnRoute, roomy, roomy_store},
    measure::{Results, Table, count, is_trial},
    request::post,
    runtime,
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() -> io::Result<()> {
    let jobs = if is_trial() { 2000 } else { 1_000_000 };
    let mut results = Results::default();
    let mut table = Table::new(&["bytes per job", "least", "most", &format!("at {}", count(jobs))]);
    let mut tell = |name: &str, Growth { least, most, last }: Growth| {
        for (case, bytes) in [("least", least), ("most", most), ("last", last)] {
            results.add(&["memory", name, case, &jobs.to_string()], bytes, "bytes");
        }
        table.row([name.to_owned(), whole(least), whole(most), whole(last)]);
    };
    tell("ours, running, in the store alone", in_the_store(jobs));
    tell("ours, running, future of 0 bytes, its task too", around(jobs, |_| pending()));
    tell("a bare task, future of 0 bytes", bare_task(jobs));
    tell("ours, finished, head and 64 bytes", around(jobs, |_| ready(Ok(answer()))));
    for (kind, path) in [("running", ENDLESS), ("finished", KEPT)] {
        tell(&format!("{}, {kind}", OnRoute::NAME), desk::<OnRoute>(jobs, path));
        tell(&format!("{}, {kind}", Around::NAME), desk::<Around>(jobs, path));
        tell(&format!("{}, {kind}", ByHand::NAME), desk::<ByHand>(jobs, path));
        tell(&format!("{}, {kind}", Apalis::NAME), desk::<Apalis>(jobs, path));
    }
    table.print(
        "Heap per job; from the fifth line on through an axum router, whose futures it boxes",
    );
    let outcome = outcome();
    println!("\nThe outcome of a response with two headers and 64 bytes: {outcome} bytes");
    results.add(&["memory", "outcome", "last", "1"], outcome as f64, "bytes");
    results.write("memory.tsv", "table\tcase\tof\tjobs\tnumber\tunit")
}

fn whole(bytes: f64) -> String {
    format!("{bytes:.0}")
}

/// What one job takes of the heap.
struct Growth {
    least: f64,
    most: f64,
    last: f64,
}

/// Watches the heap grow while jobs are made.
struct Watch {
    jobs: usize,
    before: usize,
    growth: Growth,
}

impl Watch {
    fn new(jobs: usize) -> Self {
        let growth = Growth { least: f64::INFINITY, most: 0.0, last: 0.0 };
        Self { jobs, before: HEAP.current_usage(), growth }
    }

    /// So many have been made.
    fn made(&mut self, jobs: usize) {
        if jobs >= self.jobs / 2 {
            let bytes = HEAP.current_usage().saturating_sub(self.before) as f64 / jobs as f64;
            self.growth.least = self.growth.least.min(bytes);
            self.growth.most = self.growth.most.max(bytes);
            self.growth.last = bytes;
        }
    }
}

/// Records in the store, without any task.
fn in_the_store(jobs: usize) -> Growth {
    runtime().block_on(async {
        let store = roomy_store();
        let mut watch = Watch::new(jobs);
        for job in 1..=jobs {
            let id = JobId::random().unwrap();
            let record = Record::running(id, SystemTime::now(), Duration::from_secs(3600));
            drop(store.insert(record, 1024).await.unwrap());
            watch.made(job);
        }
        watch.growth
    })
}

/// Jobs of a handler with this future.
fn around<F>(jobs: usize, handler: fn(Request<Body>) -> F) -> Growth
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + Unpin + 'static,
{
    runtime().block_on(async {
        let store = roomy_store();
        let service = roomy(&store).layer(Policy::always()).layer(service_fn(handler));
        grown(jobs, service, post).await
    })
}

/// The same future in a task that does nothing else.
fn bare_task(jobs: usize) -> Growth {
    runtime().block_on(async {
        let mut watch = Watch::new(jobs);
        for job in 1..=jobs {
            let future: Pending<Ready<()>> = pending();
            tokio::spawn(future);
            if job % 64 == 0 {
                yield_now().await;
                watch.made(job);
            }
        }
        watch.growth
    })
}

/// Jobs of a desk.
fn desk<D: Desk>(jobs: usize, path: &'static str) -> Growth {
    runtime().block_on(async {
        let desk = D::new();
        let request = || {
            let mut request = post();
            *request.uri_mut() = http::Uri::from_static(path);
            *request.body_mut() = Body::from(DATA);
            request
        };
        grown(jobs, desk.app(), request).await
    })
}

async fn grown<S>(jobs: usize, service: S, request: impl Fn() -> Request<Body>) -> Growth
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    // What is made once is made before.
    for _ in 0..64 {
        drop(service.clone().oneshot(request()).await);
        settle().await;
    }
    let mut watch = Watch::new(jobs);
    for job in 1..=jobs {
        let answer = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), 202);
        drop(answer);
        if job % 1000 == 0 {
            settle().await;
            watch.made(job);
        }
    }
    watch.growth
}

/// Lets tasks get as far as they do.
async fn settle() {
    for _ in 0..64 {
        yield_now().await;
    }
}

/// A small response, with the headers that axum gives to one of JSON.
fn answer() -> Response<Body> {
    let mut response = Response::new(Body::from(DATA));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("64"));
    response
}

/// What its outcome takes of the heap.
fn outcome() -> usize {
    let (head, _) = answer().into_parts();
    let before = HEAP.current_usage();
    let outcomes: [Outcome; 64] = std::array::from_fn(|_| Outcome::new(&head, &DATA, None));
    (HEAP.current_usage() - before) / outcomes.len()
}
