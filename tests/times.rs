//! What clients are told to expect, from what a policy's jobs took lately: `Retry-After` and
//! `eta_seconds`. Jobs take their time by a paused clock; but how long a job has run is counted by
//! the wall clock, which does not move meanwhile, so a job that runs has just begun.

mod support;

use std::time::{Duration, SystemTime};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::HeaderMap,
    routing::{MethodRouter, any},
};
use http_body_util::BodyExt;
use serde_json::Value;
use support::Answer;
use tokio::time::sleep;
use tower::ServiceExt;
use tower_offload::{JobId, MemoryStore, Offload, OffloadBuilder, Policy, Record, Store};

const S: Duration = Duration::from_secs(1);

struct Desk {
    app: Router,
    store: MemoryStore,
    offload: Offload,
}

/// A handler that takes as long as it is told.
async fn sleeps(head: HeaderMap) -> &'static str {
    let millis = head["x-millis"].to_str().unwrap().parse().unwrap();
    sleep(Duration::from_millis(millis)).await;
    "done"
}

impl Desk {
    fn with(
        builder: OffloadBuilder,
        routes: impl FnOnce(&Offload) -> Vec<(&'static str, Policy)>,
    ) -> Self {
        let store = MemoryStore::new(1 << 30);
        let offload = builder.store(store.clone()).build().unwrap();
        let mut app = Router::new().nest_service("/jobs", offload.status());
        for (path, policy) in routes(&offload) {
            let route: MethodRouter = any(sleeps);
            app = app.route(path, route.layer(offload.layer(policy)));
        }
        Self { app, store, offload }
    }

    /// One route, `/`.
    fn new(policy: Policy) -> Self {
        Self::with(Offload::builder("/jobs"), |_| vec![("/", policy)])
    }

    async fn ask(&self, request: http::request::Builder) -> Answer {
        let request: Request = request.body(Body::empty()).unwrap();
        let (head, body) = self.app.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
    }

    /// The answer to a request whose handler takes so long.
    async fn post(&self, path: &str, takes: Duration) -> Answer {
        self.ask(Request::post(path).header("x-millis", takes.as_millis().to_string())).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path)).await
    }

    /// So many jobs of this route, one after another, each of this time.
    async fn took(&self, path: &str, times: usize, takes: Duration) {
        for _ in 0..times {
            let job = self.post(path, takes).await.location().to_owned();
            sleep(takes).await;
            self.ended(&job).await;
        }
    }

    async fn ended(&self, job: &str) {
        loop {
            let poll = Request::get(format!("{job}/status")).header("prefer", "wait=30");
            let document = self.ask(poll).await.json();
            if !matches!(document["status"].as_str(), Some("running" | "queued")) {
                break;
            }
        }
        // Its place is free.
        while self.offload.stats().await.unwrap().total().running > 0 {
            sleep(S / 1000).await;
        }
    }
}

/// What this answer tells to expect: `Retry-After`, and `eta_seconds` where there is one.
fn told(answer: &Answer) -> (u64, Option<u64>) {
    let eta = match answer.status.as_u16() {
        503 => None,
        _ => answer.json()["eta_seconds"].as_u64(),
    };
    (answer.header("retry-after").parse().unwrap(), eta)
}

/// What is left by the median is known within a bucket of the histogram.
#[track_caller]
fn about(found: Option<u64>, wanted: f64) {
    let ratio = found.unwrap() as f64 / wanted;
    assert!((0.7..1.5).contains(&ratio), "{found:?} s, not about {wanted}");
}

// ------------------------------------------------------------------------------ what is known of

#[tokio::test(start_paused = true)]
async fn before_anything_is_known_retry_after_is_a_second_and_there_is_no_eta() {
    let desk = Desk::new(Policy::always().concurrency(1).queue(1));
    let running = desk.post("/", 100 * S).await;
    let queued = desk.post("/", S).await;
    assert_eq!(queued.json()["status"], "queued");
    for accepted in [running, queued] {
        assert_eq!(told(&accepted), (1, None));
        for resource in ["", "/status", "/result"] {
            let answer = desk.get(&format!("{}{resource}", accepted.location())).await;
            assert_eq!(told(&answer), (1, None), "{answer:#?}");
        }
    }
    let refused = desk.post("/", S).await;
    assert_eq!((refused.status.as_u16(), told(&refused)), (503, (1, None)));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_is_expected_to_take_what_others_took() {
    for takes in [3, 10, 20] {
        let desk = Desk::new(Policy::always());
        desk.took("/", 10, takes * S).await;
        let accepted = desk.post("/", takes * S).await;
        let (retry_after, eta) = told(&accepted);
        about(eta, f64::from(takes));
        assert_eq!(Some(retry_after), eta);
        // All resources of it say the same.
        for resource in ["", "/status", "/result"] {
            let answer = desk.get(&format!("{}{resource}", accepted.location())).await;
            assert_eq!(told(&answer).0, retry_after, "{answer:#?}");
            assert_eq!(answer.json()["eta_seconds"].as_u64(), eta);
        }
        desk.ended(accepted.location()).await;
        let ended = desk.get(&format!("{}/status", accepted.location())).await;
        assert_eq!(ended.find_header("retry-after"), None);
        assert_eq!(ended.json()["eta_seconds"], Value::Null);
    }
}

#[tokio::test(start_paused = true)]
async fn one_job_is_enough_to_know_something() {
    let desk = Desk::new(Policy::always());
    desk.took("/", 1, 10 * S).await;
    about(told(&desk.post("/", S).await).1, 10.0);
}

#[tokio::test(start_paused = true)]
async fn what_was_long_ago_fades() {
    let desk = Desk::new(Policy::always());
    desk.took("/", 40, 20 * S).await;
    desk.took("/", 40, 4 * S).await;
    about(told(&desk.post("/", S).await).1, 4.0);
}

/// As for a job of which the wall clock says that it began a while ago.
#[tokio::test(start_paused = true)]
async fn what_has_elapsed_counts() {
    let desk = Desk::new(Policy::always());
    desk.took("/", 20, 20 * S).await;
    for (elapsed, left) in [(10, 10.0), (15, 5.0), (60, 30.0), (300, 150.0)] {
        let started = SystemTime::now() - elapsed * S;
        let job = Record::running(JobId::random().unwrap(), started, 3600 * S);
        let path = format!("/jobs/{}/status", job.id());
        desk.store.insert(job.with_policy("default".into()), 0).await.unwrap();
        let (retry_after, eta) = told(&desk.get(&path).await);
        // The median of what took 20 s lies within a bucket of it, so what is left is known less.
        let eta = eta.unwrap();
        assert!((left * 0.4..left * 1.8).contains(&(eta as f64)), "after {elapsed} s: {eta}");
        assert_eq!(retry_after, eta.min(30));
    }
}

/// A store that is shared has jobs of other processes, whose policies nobody here knows.
#[tokio::test(start_paused = true)]
async fn of_a_policy_that_is_unknown_here_nothing_is_expected() {
    let desk = Desk::new(Policy::always());
    desk.took("/", 5, 20 * S).await;
    let record = || Record::running(JobId::random().unwrap(), SystemTime::now(), 3600 * S);
    let queued = Record::queued(JobId::random().unwrap(), SystemTime::now(), 3600 * S);
    for record in [record(), record().with_policy("elsewhere".into()), queued] {
        let path = format!("/jobs/{}/status", record.id());
        desk.store.insert(record, 0).await.unwrap();
        assert_eq!(told(&desk.get(&path).await), (1, None));
    }
}

// ------------------------------------------------------------------------------------- sane bounds

#[tokio::test(start_paused = true)]
async fn retry_after_is_from_1_to_30_seconds() {
    for (takes, retry_after) in [(S / 1000, 1), (S / 10, 1), (100 * S, 30), (3000 * S, 30)] {
        let desk = Desk::new(Policy::always().concurrency(1).queue(1));
        desk.took("/", 5, takes).await;
        for status in [202, 202, 503] {
            let answer = desk.post("/", takes).await;
            assert_eq!(answer.status, status);
            let (told, eta) = told(&answer);
            assert_eq!(told, retry_after, "{answer:#?}");
            if status == 202 {
                // What is expected is told as it is, in whole seconds, and never as none.
                assert!(eta >= Some(1) && (retry_after == 1 || eta > Some(30)), "{answer:#?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_eta_is_a_day_at_most() {
    let builder = Offload::builder("/jobs").max_run_time(1_000_000 * S);
    let desk = Desk::with(builder, |_| vec![("/", Policy::always().concurrency(1).queue(9))]);
    desk.took("/", 1, 80_000 * S).await;
    for _ in 0..10 {
        let eta = told(&desk.post("/", S).await).1.unwrap();
        assert!((50_000..=86_400).contains(&eta), "{eta}");
    }
}

// ------------------------------------------------------------------------------------- whose times

#[tokio::test(start_paused = true)]
async fn times_are_learned_by_the_names_of_policies() {
    let desk = Desk::with(Offload::builder("/jobs"), |_| {
        let shared = || Policy::always().name("shared");
        vec![("/a", shared()), ("/b", shared().concurrency(2)), ("/c", Policy::always())]
    });
    desk.took("/a", 5, 10 * S).await;
    about(told(&desk.post("/a", S).await).1, 10.0);
    about(told(&desk.post("/b", S).await).1, 10.0);
    assert_eq!(told(&desk.post("/c", S).await), (1, None));
}

#[tokio::test(start_paused = true)]
async fn canceled_jobs_do_not_count() {
    let desk = Desk::new(Policy::always().concurrency(1).queue(1));
    for _ in 0..3 {
        let running = desk.post("/", 100 * S).await.location().to_owned();
        let queued = desk.post("/", 100 * S).await.location().to_owned();
        sleep(50 * S).await;
        for job in [queued, running] {
            assert_eq!(desk.ask(Request::delete(&job)).await.status, 200);
            desk.get(&job).await;
        }
        while desk.offload.stats().await.unwrap().total().running > 0 {
            sleep(S / 1000).await;
        }
    }
    assert_eq!(told(&desk.post("/", S).await), (1, None));
}

/// The time in the queue is not a job's own.
#[tokio::test(start_paused = true)]
async fn what_a_job_has_waited_does_not_count() {
    let desk = Desk::new(Policy::always().concurrency(1).queue(9));
    let mut last = String::new();
    for _ in 0..10 {
        last = desk.post("/", 4 * S).await.location().to_owned();
    }
    desk.ended(&last).await;
    about(told(&desk.post("/", S).await).1, 4.0);
}

// ------------------------------------------------------------------------------------- the queue

/// A job that waits ends when those before it have passed, so many at a time, and it has run itself;
/// by the mean, which is known exactly.
#[tokio::test(start_paused = true)]
async fn the_length_of_the_queue_counts() {
    for abreast in [1, 2, 4] {
        let desk = Desk::new(Policy::always().concurrency(abreast).queue(20));
        desk.took("/", 8, 2 * S).await;
        for _ in 0..abreast {
            assert_eq!(desk.post("/", 1000 * S).await.json()["status"], "running");
        }
        let mut last = (0, 0);
        for position in 1..=20 {
            let answer = desk.post("/", S).await;
            assert_eq!(answer.json()["queue_position"], position);
            let (retry_after, eta) = told(&answer);
            let eta = eta.unwrap();
            let wanted = 2.0 * position as f64 / abreast as f64 + 2.0;
            // Jobs were seen to take a little more than they slept.
            assert!((wanted..wanted + 1.5).contains(&(eta as f64)), "{position}: {eta}, {wanted}");
            assert_eq!(retry_after, eta.min(30));
            assert!(last <= (retry_after, eta));
            last = (retry_after, eta);
        }
    }
}

/// A route without a limit of its own has all places.
#[tokio::test(start_paused = true)]
async fn where_only_max_running_bounds_the_route_all_of_it_is_abreast() {
    let builder = Offload::builder("/jobs").max_running(5);
    let desk = Desk::with(builder, |_| vec![("/", Policy::always().queue(10))]);
    desk.took("/", 4, 10 * S).await;
    for _ in 0..5 {
        desk.post("/", 1000 * S).await;
    }
    for position in 1..=10 {
        let eta = told(&desk.post("/", S).await).1.unwrap();
        let wanted = 10 + 2 * position;
        assert!((wanted..=wanted + 1).contains(&eta), "{position}: {eta}");
    }
}

/// Who was refused may come again when one of the jobs that run has ended.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_there_may_be_room() {
    for (abreast, waiting, retry_after) in [(1, 0, 20..=21), (4, 0, 5..=6), (2, 3, 10..=11)] {
        let desk = Desk::new(Policy::always().concurrency(abreast).queue(waiting));
        desk.took("/", 6, 20 * S).await;
        for _ in 0..abreast + waiting {
            assert_eq!(desk.post("/", 1000 * S).await.status, 202);
        }
        let refused = desk.post("/", S).await;
        assert_eq!(refused.status, 503);
        assert!(retry_after.contains(&told(&refused).0), "{refused:#?}");
    }
}
