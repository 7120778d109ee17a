//! Progress, from a handler's `Job` to its status document: what is written, how often, who is woken,
//! and that no job hangs on it.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    future::{Future, pending},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse, routing::post};
use desk::{ended, job};
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::{Client, Server, soon};
use tokio::{
    sync::{Notify, oneshot},
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, util::BoxCloneService};
use tower_offload::{
    Change, Digest, Error, ErrorKind, Job, JobId, MemoryStore, Offload, Owner, Policy, Progress,
    Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

const BUDGET: Duration = Duration::from_millis(50);

/// The default of `progress_interval`.
const INTERVAL: Duration = Duration::from_millis(100);

type Handler = BoxCloneService<Request<Body>, Response<Body>, tower::BoxError>;

/// A handler as a service.
fn service<F, Fut, R>(handler: F) -> Handler
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoResponse,
{
    BoxCloneService::new(tower::service_fn(move |request| {
        let answer = handler(request);
        async move { Ok(answer.await.into_response()) }
    }))
}

fn request() -> Request<Body> {
    Request::post("/").body(Body::empty()).unwrap()
}

fn current() -> Job {
    Job::current().expect("the request is watched")
}

/// The job that this handler becomes under this policy.
async fn accepted(offload: &Offload, policy: Policy, handler: Handler) -> String {
    job(&offload.layer(policy).layer(handler).oneshot(request()).await.unwrap())
}

/// The status document as it is now.
async fn document(offload: &Offload, job: &str) -> Value {
    let request = Request::get(format!("{job}/status")).body(()).unwrap();
    let answer = offload.status().oneshot(request).await.unwrap();
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

fn id_of(job: &str) -> JobId {
    job.rsplit('/').next().unwrap().parse().unwrap()
}

// ------------------------------------------------------------------------------------- the store

/// A store in memory that notes each write of progress, and does with them as the test says.
#[derive(Clone)]
struct Noted {
    jobs: MemoryStore,
    writes: Arc<Mutex<Vec<(Instant, Progress)>>>,
    mode: Arc<Mutex<Mode>>,
}

#[derive(Clone, Copy)]
enum Mode {
    Works,
    Takes(Duration),
    Fails,
    Hangs,
}

impl Noted {
    fn new(mode: Mode) -> Self {
        let jobs = MemoryStore::new(1 << 30);
        Self { jobs, writes: Arc::default(), mode: Arc::new(Mutex::new(mode)) }
    }

    fn desk(&self) -> Offload {
        Offload::builder("/jobs").store(self.clone()).build().unwrap()
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// What was written, and when.
    fn writes(&self) -> Vec<(Instant, Progress)> {
        self.writes.lock().unwrap().clone()
    }
}

impl Store for Noted {
    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        let Change::Progress(progress) = &change else { return self.jobs.change(id, change) };
        self.writes.lock().unwrap().push((Instant::now(), progress.clone()));
        let (jobs, mode) = (self.jobs.clone(), *self.mode.lock().unwrap());
        StoreFuture::new(async move {
            match mode {
                Mode::Works => {}
                Mode::Takes(time) => sleep(time).await,
                Mode::Fails => {
                    return Err(Error::new(ErrorKind::StoreUnavailable, "the test says so"));
                }
                Mode::Hangs => pending().await,
            }
            jobs.change(id, change).await
        })
    }

    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.jobs.insert(record, outcome_bytes)
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.jobs.take_back(id)
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.jobs.read(id, owner)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.jobs.fetch(id, owner)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.jobs.claimed(key)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.jobs.changed(id, seen, interest)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.jobs.usage()
    }
}

// --------------------------------------------------------------------------------- what is told

#[tokio::test(start_paused = true)]
async fn what_was_said_before_the_202_is_in_it_and_the_rest_follows() {
    let offload = Offload::new("/jobs");
    let handler = service(|_| async {
        let job = current();
        job.progress(0.25, "reading");
        sleep(BUDGET * 2).await;
        job.progress(0.5, "counting");
        sleep(BUDGET * 4).await;
        // Another `Job` of the same handler is the same job.
        current().progress(1.0, "");
    });
    let answer = offload.layer(Policy::after(BUDGET)).layer(handler).oneshot(request()).await;
    let answer = answer.unwrap();
    let job = job(&answer);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let at_first: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(at_first["progress"], json!({"ratio": 0.25, "message": "reading"}));
    assert_eq!(document(&offload, &job).await["progress"], at_first["progress"]);
    sleep(BUDGET * 3).await;
    let later = document(&offload, &job).await;
    assert_eq!(later["progress"], json!({"ratio": 0.5, "message": "counting"}));
    assert_eq!(later["status"], "running");
    assert_eq!(ended(&offload, &job).await["progress"], json!({"ratio": 1.0}));
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_job_has_progress() {
    let offload = Offload::builder("/jobs").owner(|_| Some(Owner::from("me"))).build().unwrap();
    let handler = service(|_| async {
        let job = current();
        job.set_total(4);
        job.advance(1);
        sleep(BUDGET * 9).await;
        job.advance(3);
    });
    for policy in [
        Policy::after(BUDGET),
        Policy::always(),
        Policy::always().queue(1),
        Policy::after(BUDGET).idempotent(),
    ] {
        let keyed = Request::post("/").header("idempotency-key", "\"1\"").body(Body::empty());
        let layered = offload.layer(policy.clone()).layer(handler.clone());
        let job = job(&layered.oneshot(keyed.unwrap()).await.unwrap());
        sleep(BUDGET * 3).await;
        let running = document(&offload, &job).await;
        assert_eq!(running["progress"], json!({"ratio": 0.25}), "{policy:?}");
        let document = ended(&offload, &job).await;
        assert_eq!(document["progress"], json!({"ratio": 1.0}), "{policy:?}");
        assert_eq!(document["job_id"], id_of(&job).to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_are_clamped_and_messages_cut_and_escaped() {
    let long = "é".repeat(1000);
    let cut = "é".repeat(Progress::MAX_MESSAGE / 2);
    let nasty = "\"}\\ \u{0}\u{1f}\r\n\t</script> \u{2028}";
    for (ratio, message, expected) in [
        (0.5, "half", json!({"ratio": 0.5, "message": "half"})),
        (-1.0, "", json!({"ratio": 0.0})),
        (1e300, "", json!({"ratio": 1.0})),
        (f64::INFINITY, "", json!({"ratio": 1.0})),
        (f64::NEG_INFINITY, "", json!({"ratio": 0.0})),
        (f64::NAN, "no number", json!({"message": "no number"})),
        (0.5, &*long, json!({"ratio": 0.5, "message": cut})),
        (0.5, nasty, json!({"ratio": 0.5, "message": nasty})),
    ] {
        let said = message.to_owned();
        let handler = service(move |_| {
            let said = said.clone();
            async move {
                current().progress(ratio, said);
                pending::<()>().await;
            }
        });
        let offload = Offload::new("/jobs");
        let answer = offload.layer(Policy::after(BUDGET)).layer(handler).oneshot(request()).await;
        let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert!(body.iter().all(|byte| *byte >= b' '), "no control character stands in JSON");
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(document["progress"], expected, "{ratio} {message:?}");
    }
}

// ------------------------------------------------------------------------- how often it is written

/// Imports a million rows in ten seconds.
async fn import() {
    let job = current();
    job.set_total(1_000_000);
    for _ in 0..1000 {
        (0..1000).for_each(|_| job.advance(1));
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_million_calls_are_few_writes_and_the_last_is_one_of_them() {
    for interval in [INTERVAL, Duration::from_secs(1), Duration::from_millis(5)] {
        let store = Noted::new(Mode::Works);
        let builder = Offload::builder("/jobs").store(store.clone());
        let builder = match interval {
            INTERVAL => builder,
            other => builder.progress_interval(other),
        };
        let offload = builder.build().unwrap();
        let job = accepted(&offload, Policy::after(BUDGET), service(|_| import())).await;
        assert_eq!(ended(&offload, &job).await["progress"], json!({"ratio": 1.0}));
        let writes = store.writes();
        // Something is new each 10 ms only.
        let most = 10_000 / interval.as_millis().max(10) as usize + 2;
        assert!(
            (most * 9 / 10 - 1..=most).contains(&writes.len()),
            "{interval:?} {}",
            writes.len()
        );
        let (last, before) = writes.split_last().unwrap();
        assert_eq!(last.1.ratio(), Some(1.0));
        for pair in before.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= interval, "{pair:?}");
            assert!(pair[1].1.ratio() > pair[0].1.ratio(), "{pair:?}");
        }
    }
}

/// However a handler ends right after its last word, that word stands in the document: also when
/// the write of the one before is still under way.
#[tokio::test(start_paused = true)]
async fn the_last_word_is_written_however_the_handler_ends() {
    #[derive(Debug, Clone, Copy)]
    enum Ends {
        Answers,
        Errs,
        Panics,
        RunsOutOfTime,
        AnswersTooMuch,
    }
    for ends in [Ends::Answers, Ends::Errs, Ends::Panics, Ends::RunsOutOfTime, Ends::AnswersTooMuch]
    {
        for mode in [Mode::Works, Mode::Takes(INTERVAL / 2)] {
            let handler = BoxCloneService::new(tower::service_fn(move |_| async move {
                sleep(BUDGET * 2).await;
                let job = current();
                job.progress(0.5, "the one before");
                yield_now().await;
                job.progress(0.9, "the last");
                match ends {
                    Ends::Answers => Ok(Response::new(Body::empty())),
                    Ends::Errs => Err("told to".into()),
                    Ends::Panics => panic!("told to"),
                    Ends::RunsOutOfTime => pending().await,
                    Ends::AnswersTooMuch => Ok(Response::new(Body::from(vec![0; 5 << 20]))),
                }
            }));
            let (store, policy) = (Noted::new(mode), Policy::after(BUDGET).timeout(BUDGET * 4));
            let offload = store.desk();
            let job = accepted(&offload, policy, handler).await;
            let document = ended(&offload, &job).await;
            let succeeded = matches!(ends, Ends::Answers);
            assert_eq!(document["status"] == "succeeded", succeeded, "{ends:?}");
            let last = json!({"ratio": 0.9, "message": "the last"});
            assert_eq!(document["progress"], last, "{ends:?}");
        }
    }
}

// ------------------------------------------------------------------------------------ who is woken

#[tokio::test(start_paused = true)]
async fn each_write_wakes_those_who_asked_for_progress_and_nobody_else() {
    let store = Noted::new(Mode::Works);
    let (offload, go) = (store.desk(), Arc::new(Notify::new()));
    let told = Arc::clone(&go);
    let handler = service(move |_| {
        let told = Arc::clone(&told);
        async move {
            told.notified().await;
            for ratio in [0.5, 0.75] {
                current().progress(ratio, "");
                sleep(INTERVAL * 2).await;
            }
        }
    });
    let job = accepted(&offload, Policy::after(BUDGET), handler).await;
    let id = id_of(&job);
    let version = store.read(id, None).await.unwrap().unwrap().version();

    let mut progress = task::spawn(store.changed(id, version, Interest::Progress));
    let mut status = task::spawn(store.changed(id, version, Interest::Status));
    let waiting = Request::get(format!("{job}/status")).header("prefer", "wait=30");
    let mut poll = task::spawn(offload.status().call(waiting.body(()).unwrap()));
    assert_pending!(progress.poll());
    assert_pending!(status.poll());
    assert_pending!(poll.poll());

    go.notify_one();
    sleep(INTERVAL).await;
    assert!(progress.is_woken());
    assert_ready!(progress.poll()).unwrap();
    let seen = store.read(id, None).await.unwrap().unwrap();
    assert_eq!(seen.progress().unwrap().ratio(), Some(0.5));
    // The next one, too.
    let mut progress = task::spawn(store.changed(id, seen.version(), Interest::Progress));
    assert_pending!(progress.poll());
    sleep(INTERVAL * 2).await;
    assert!(progress.is_woken());
    assert_eq!(document(&offload, &job).await["progress"]["ratio"], 0.75);
    assert!(!status.is_woken() && !poll.is_woken(), "a client that waits for the end still does");

    sleep(INTERVAL * 2).await;
    assert!(status.is_woken() && poll.is_woken());
    let answer = assert_ready!(poll.poll()).unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(document["status"], "succeeded");
}

// ------------------------------------------------------------------------------ code that blocks

/// What a loop under `spawn_blocking` does: it says how far it is, and looks whether it is to stop.
fn work(job: &Job, stopped: oneshot::Sender<()>) {
    let canceled = job.cancellation();
    job.set_total(u64::MAX);
    while !canceled.is_cancelled() {
        job.advance(1 << 40);
        std::thread::yield_now();
    }
    let _ = stopped.send(());
}

/// How a job that blocks is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Delete,
    Drain,
    RunTime,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_code_says_how_far_it_is_and_is_told_to_stop() {
    for (stop, status, problem) in [
        (Stop::Delete, "canceled", 410),
        (Stop::Drain, "failed", 503),
        (Stop::RunTime, "failed", 504),
    ] {
        let run_time = Duration::from_millis(if stop == Stop::RunTime { 500 } else { 60_000 });
        let offload = Offload::builder("/jobs").max_run_time(run_time).build().unwrap();
        let (sender, stopped) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let handler = move |job: Job| async move {
            let sender = sender.lock().unwrap().take().unwrap();
            spawn_blocking(move || work(&job, sender)).await.unwrap();
        };
        let app = Router::new()
            .route("/", post(handler).layer(offload.layer(Policy::after(BUDGET))))
            .nest_service("/jobs", offload.status());
        let (server, client) = (Server::axum(app).await, Client::http1());
        let job = client.post(&server, "/", "").await.location().to_owned();
        let status_path = format!("{job}/status");
        let ratio = async || {
            let document = client.get(&server, &status_path).await.json();
            document["progress"]["ratio"].as_f64().unwrap_or(0.0)
        };
        if stop != Stop::RunTime {
            let goes_on = async {
                let first = ratio().await;
                while ratio().await <= first {}
            };
            soon("its progress goes on", goes_on).await;
        }
        match stop {
            Stop::Delete => assert_eq!(client.delete(&server, &job).await.status, 200),
            Stop::Drain => {
                assert_eq!(offload.drain(Duration::from_millis(50)).await.interrupted(), 1)
            }
            Stop::RunTime => {}
        }
        soon("the loop is told", stopped).await.unwrap();
        let document = soon("its end", client.ended(&server, &job)).await;
        let end = (document["status"].as_str(), document["error"]["status"].as_u64());
        assert_eq!(end, (Some(status), Some(problem)), "{stop:?}");
        assert!(document["progress"]["ratio"].as_f64().unwrap() > 0.0, "it stays: {document}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_threads_count_is_all_there() {
    let offload = Offload::new("/jobs");
    let handler = service(|_| async {
        let job = current();
        job.set_total(8 * 50_000);
        let count = |job: Job| move || (0..50_000).for_each(|_| job.advance(1));
        let threads: Vec<_> = (0..8).map(|_| spawn_blocking(count(job.clone()))).collect();
        for thread in threads {
            thread.await.unwrap();
        }
    });
    let job = accepted(&offload, Policy::always(), handler).await;
    let document = soon("its end", ended(&offload, &job)).await;
    assert_eq!(document["progress"], json!({"ratio": 1.0}));
}

// ----------------------------------------------------------------- what it costs, and what it risks

#[tokio::test(start_paused = true)]
async fn progress_costs_no_task_and_silence_no_write() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let store = Noted::new(Mode::Works);
    let offload = store.desk();
    let silent = service(|_| sleep(BUDGET * 90));
    let asks_only = service(|_| async {
        let job = current();
        job.cancellation();
        job.advance(1);
        sleep(BUDGET * 90).await;
    });
    let says = service(|_| async {
        current().progress(0.5, "half");
        sleep(BUDGET * 90).await;
    });
    for (handler, writes) in [(silent, 0), (asks_only, 0), (says, 1)] {
        let before = tasks();
        let job = accepted(&offload, Policy::always(), handler).await;
        sleep(BUDGET * 10).await;
        assert_eq!(tasks() - before, 1, "its own");
        ended(&offload, &job).await;
        assert_eq!(store.writes().len(), writes);
    }
}

/// A store whose writes of progress fail, or never end: the job goes on, ends, and is stopped as if
/// there were none.
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_take_progress_holds_up_no_job() {
    for mode in [Mode::Fails, Mode::Hangs] {
        for (takes, status) in [(BUDGET * 9, "succeeded"), (BUDGET * 900, "failed")] {
            let store = Noted::new(mode);
            let offload = store.desk();
            let handler = service(move |_| async move {
                current().progress(0.1, "before");
                sleep(BUDGET * 2).await;
                current().progress(0.5, "half");
                sleep(takes).await;
                current().progress(0.9, "the last");
                "done"
            });
            let policy = Policy::after(BUDGET).timeout(BUDGET * 100);
            let start = Instant::now();
            let job = accepted(&offload, policy, handler).await;
            let document = ended(&offload, &job).await;
            assert_eq!(document["status"], status);
            // The last word was tried for a second.
            let due = BUDGET + (BUDGET + takes).min(BUDGET * 100) + Duration::from_secs(1);
            assert!(start.elapsed() <= due, "{:?}", start.elapsed());
            assert_eq!(document["progress"]["message"], "before", "what the 202 had stays");
            assert!(!store.writes().is_empty());
        }
        // It can be canceled meanwhile.
        let (store, dropped) = (Noted::new(mode), Arc::new(AtomicBool::new(false)));
        let (offload, seen) = (store.desk(), Arc::clone(&dropped));
        let handler = service(move |_| {
            let last = OnDrop(Arc::clone(&seen));
            async move {
                let _last = last;
                current().progress(0.5, "half");
                pending::<()>().await;
            }
        });
        let job = accepted(&offload, Policy::always(), handler).await;
        sleep(BUDGET).await;
        let delete = Request::delete(&job).body(()).unwrap();
        assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
        assert_eq!(ended(&offload, &job).await["status"], "canceled");
        while !dropped.load(SeqCst) {
            yield_now().await;
        }
    }
}

struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_once_the_store_is_back() {
    let store = Noted::new(Mode::Fails);
    let offload = store.desk();
    let handler = service(|_| async {
        current().progress(0.5, "half");
        pending::<()>().await;
    });
    let job = accepted(&offload, Policy::always(), handler).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(document(&offload, &job).await["progress"], Value::Null);
    let tries = store.writes().len();
    assert!((3..20).contains(&tries), "it is not asked all the time: {tries}");
    store.set(Mode::Works);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(document(&offload, &job).await["progress"]["ratio"], 0.5);
    let tries = store.writes().len();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(store.writes().len(), tries, "there is nothing new");
}

// --------------------------------------------------------------------------------- beyond the job

/// A `Job` may outlive its handler: what it says then goes nowhere.
#[tokio::test(start_paused = true)]
async fn what_is_said_after_the_end_is_ignored() {
    let store = Noted::new(Mode::Works);
    let offload = store.desk();
    for fails in [false, true] {
        let (sender, outlives) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let handler = BoxCloneService::new(tower::service_fn(move |_| {
            let (sender, job) = (Arc::clone(&sender), current());
            async move {
                job.progress(0.5, "in time");
                sleep(BUDGET * 9).await;
                let done = tokio::spawn(async move {
                    sleep(BUDGET * 9).await;
                    job.progress(0.9, "too late");
                    job.advance(1);
                    job.id()
                });
                let _ = sender.lock().unwrap().take().unwrap().send(done);
                match fails {
                    true => Err("told to".into()),
                    false => Ok::<_, tower::BoxError>(Response::new(Body::empty())),
                }
            }
        }));
        let job = accepted(&offload, Policy::after(BUDGET), handler).await;
        let at_end = ended(&offload, &job).await;
        let writes = store.writes().len();
        assert_eq!(outlives.await.unwrap().await.unwrap(), id_of(&job));
        sleep(BUDGET * 9).await;
        assert_eq!(document(&offload, &job).await, at_end);
        assert_eq!(at_end["progress"]["message"], "in time");
        assert_eq!(store.writes().len(), writes);
    }
}

/// The `Job` of a request that is answered in time, or whose client leaves, says it to nobody.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_no_job_has_nowhere_to_say_it() {
    let store = Noted::new(Mode::Works);
    let offload = store.desk();
    let (sender, mut jobs) = tokio::sync::mpsc::unbounded_channel();
    let handler = service(move |_| {
        let job = current();
        sender.send(job.clone()).unwrap();
        async move {
            job.progress(0.5, "half");
            sleep(BUDGET / 2).await;
        }
    });
    let layered = offload.layer(Policy::after(BUDGET)).layer(handler);
    let answer = layered.clone().oneshot(request()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let left = tokio::time::timeout(BUDGET / 4, layered.oneshot(request())).await;
    assert!(left.is_err());
    for _ in 0..2 {
        let job = jobs.recv().await.unwrap();
        job.set_total(2);
        job.advance(1);
        job.progress(1.0, "");
    }
    sleep(INTERVAL * 9).await;
    assert!(store.writes().is_empty());
    assert_eq!(store.jobs.jobs(), 0);
}

/// Text of a message that has something to say of the job itself.
#[tokio::test(start_paused = true)]
async fn a_message_may_be_made_by_code_that_asks_for_the_job() {
    struct Text;
    impl AsRef<str> for Text {
        fn as_ref(&self) -> &str {
            current().advance(1);
            "made"
        }
    }
    let offload = Offload::new("/jobs");
    let handler = service(|_| async {
        current().progress(0.5, Text);
        pending::<()>().await;
    });
    let job = accepted(&offload, Policy::after(BUDGET), handler).await;
    assert_eq!(document(&offload, &job).await["progress"]["message"], "made");
}
