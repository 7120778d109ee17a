//! What earlier releases have written is read, answered and run.
//!
//! `tests/formats/format-N.jsonl` has what Redis held after a node of format N was killed, written by
//! `WRITE_FORMAT=FILE cargo test -p tower-offload-redis --test formats` of that release. Its first line
//! has what that release answered for each job; each other line is a command that writes one key.

mod support;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use http::Request;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::Server;
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_offload::{
    Change, End, Error, ErrorKind, Failure, Job, JobId, Offload, Policies, Policy, Record, Store,
};
use tower_offload_redis::RedisStore;

const LEASE: Duration = Duration::from_secs(1);

/// Longer than the fixtures are kept.
const TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A header that names the owner of a request.
const OWNER: &str = "x-owner";

// ----------------------------------------------------------------------------------------- the app

struct Node {
    app: Router,
    offload: Offload,
}

impl Node {
    /// A node with the routes of these durable policies, and of all others. `open` lets the handlers of
    /// `slow` go on.
    async fn start(url: &str, durable: &[&'static str], open: &Arc<Notify>) -> Self {
        let store = RedisStore::builder(url).prefix("f").lease(LEASE).connect().await.unwrap();
        let offload = Offload::builder("/jobs")
            .store(store)
            .ttl(TTL)
            .max_outcome_bytes(2 << 20)
            .owner(|head| head.headers.get(OWNER).cloned().map(Into::into))
            .build()
            .unwrap();
        let plain = Policy::always().name("plain").idempotent().timeout(Duration::from_secs(1));
        let mut policies = Policies::otherwise(Policy::never())
            .at("/plain/{what}", plain)
            .at("/long/{what}", Policy::always().name("long"));
        for name in durable {
            let policy = Policy::always().durable().name(*name).idempotent();
            let attempts = if *name == "once" { 1 } else { 3 };
            policies = policies.at(&format!("/{name}/{{what}}"), policy.max_attempts(attempts));
        }
        let open = Arc::clone(open);
        let app = Router::new()
            .route(
                "/{policy}/{what}",
                post(move |job, path, body| work(Arc::clone(&open), job, path, body)),
            )
            .layer(offload.layer(policies))
            .nest_service("/jobs", offload.status());
        Self { app, offload }
    }

    fn serve(&self) {
        self.offload.serve_durable::<_, Body, _>(self.app.clone());
    }
}

async fn work(
    open: Arc<Notify>,
    job: Job,
    Path((_, what)): Path<(String, String)>,
    body: String,
) -> Response {
    match &*what {
        "panics" => panic!("as it is asked to"),
        "fails" => (StatusCode::CONFLICT, [("x-reason", "taken")], "no").into_response(),
        "large" => "x".repeat((1 << 20) + 1000).into_response(),
        "too-large" => "x".repeat(3 << 20).into_response(),
        "slow" => {
            job.progress(0.5, "half");
            open.notified().await;
            format!("attempt {}: {body}", job.attempt()).into_response()
        }
        "stuck" => std::future::pending().await,
        "keyed" => {
            open.notified().await;
            format!("{what}: {body}").into_response()
        }
        _ => {
            ([("x-kind", "plain"), ("location", "next")], format!("{what}: {body}")).into_response()
        }
    }
}

async fn post_to(app: &Router, path: &str, key: Option<&str>) -> http::Response<Vec<u8>> {
    request(app, "POST", path, key).await
}

async fn request(
    app: &Router,
    method: &str,
    path: &str,
    key: Option<&str>,
) -> http::Response<Vec<u8>> {
    let mut request = Request::builder().method(method).uri(path).header(OWNER, "ada");
    if let Some(key) = key {
        request = request.header("idempotency-key", key).header("prefer", "respond-async");
    }
    let request = request.body(Body::from("body of the request")).unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    http::Response::from_parts(head, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn document(app: &Router, job: &str) -> Value {
    let answer = request(app, "GET", &format!("{job}/status"), None).await;
    serde_json::from_slice(answer.body()).unwrap()
}

/// The document once it says so.
async fn until(app: &Router, job: &str, status: &str) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let document = document(app, job).await;
        if document["status"] == status {
            return document;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{status}: {document}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ------------------------------------------------------------------------------------ the fixtures

/// A job as the release that wrote it answered for it.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    job: String,
    document: Value,
    /// Status, some headers and a hash of the body, of what `GET` of the result answered.
    result: Value,
}

type Jobs = BTreeMap<String, Known>;

async fn result(app: &Router, job: &str) -> Value {
    let answer = request(app, "GET", &format!("{job}/result"), None).await;
    let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let body = answer.body();
    json!({
        "status": answer.status().as_u16(),
        "kind": header("x-kind"),
        "reason": header("x-reason"),
        "location": header("location"),
        "async_result": header("asyncresult"),
        "length": body.len(),
        "begins": String::from_utf8_lossy(&body[..body.len().min(100)]),
    })
}

const DURABLE: [&str; 3] = ["durable", "once", "taken"];

/// Leaves behind jobs in every state.
async fn populate(url: &str) -> Jobs {
    let open = Arc::new(Notify::new());
    let node = Node::start(url, &DURABLE, &open).await;
    let app = &node.app;
    let mut jobs = BTreeMap::new();
    for (name, path, status) in [
        ("succeeded", "/plain/works", "succeeded"),
        ("large", "/plain/large", "succeeded"),
        ("answered-409", "/plain/fails", "failed"),
        ("panicked", "/plain/panics", "failed"),
        ("too-large", "/plain/too-large", "failed"),
        ("timed-out", "/plain/stuck", "failed"),
        ("running", "/long/stuck", "running"),
        ("queued-durable", "/durable/queued", "queued"),
        ("removed", "/plain/removed", "succeeded"),
        ("canceled", "/long/stuck", "running"),
        ("canceled-queued", "/durable/canceled", "queued"),
        ("dead-letter", "/once/slow", "queued"),
        ("taken-durable", "/taken/slow", "queued"),
    ] {
        let job = accepted(&post_to(app, path, None).await);
        until(app, &job, status).await;
        jobs.insert(name.to_owned(), job);
    }
    for (name, path) in [("keyed", "/plain/keyed"), ("keyed-durable", "/durable/keyed")] {
        jobs.insert(name.to_owned(), accepted(&post_to(app, path, Some(name)).await));
    }
    open.notify_one();
    until(app, &jobs["keyed"], "succeeded").await;
    request(app, "DELETE", &format!("{}/result", jobs["removed"]), None).await;
    for name in ["canceled", "canceled-queued"] {
        request(app, "DELETE", &jobs[name], None).await;
    }
    // Its only attempt is lost with its node.
    begun_by_a_node_that_is_killed(url, "once", &jobs["dead-letter"]).await;
    until(app, &jobs["dead-letter"], "failed").await;
    begun_by_a_node_that_is_killed(url, "taken", &jobs["taken-durable"]).await;
    let mut all = Jobs::new();
    for (name, job) in jobs {
        let (document, result) = (document(app, &job).await, result(app, &job).await);
        all.insert(name, Known { job, document, result });
    }
    all
}

fn accepted(answer: &http::Response<Vec<u8>>) -> String {
    assert_eq!(answer.status(), 202, "{}", String::from_utf8_lossy(answer.body()));
    answer.headers()["location"].to_str().unwrap().to_owned()
}

async fn begun_by_a_node_that_is_killed(url: &str, policy: &'static str, job: &str) {
    let (url, job) = (url.to_owned(), job.to_owned());
    let killed = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::start(&url, &[policy], &Arc::default()).await;
            node.serve();
            until(&node.app, &job, "running").await;
        });
        // Its connection goes with its runtime, so that it gives nothing back.
        runtime.shutdown_background();
    });
    killed.await.unwrap();
}

// -------------------------------------------------------------------------- what Redis holds, as text

/// A command, each argument as runs of text: a character stands for a byte.
type Line = Vec<Vec<(String, usize)>>;

/// The commands that write all that this server holds, but for when it expires.
async fn dump(url: &str) -> Vec<Line> {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut ask = async |command: &[&[u8]]| {
        let mut asked = redis::cmd(std::str::from_utf8(command[0]).unwrap());
        for part in &command[1..] {
            asked.arg(*part);
        }
        asked.query_async::<redis::Value>(&mut connection).await.unwrap()
    };
    let mut keys: Vec<Vec<u8>> = redis::from_redis_value(ask(&[b"KEYS", b"*"]).await).unwrap();
    keys.sort();
    let mut lines = Vec::new();
    for key in keys {
        let kind: String = redis::from_redis_value(ask(&[b"TYPE", &key]).await).unwrap();
        let (read, write): (&[&[u8]], &str) = match &*kind {
            "string" => (&[b"GET", &key], "SET"),
            "hash" => (&[b"HGETALL", &key], "HSET"),
            "list" => (&[b"LRANGE", &key, b"0", b"-1"], "RPUSH"),
            "set" => (&[b"SMEMBERS", &key], "SADD"),
            "zset" => (&[b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"], "ZADD"),
            other => panic!("{other}"),
        };
        let values = ask(read).await;
        let mut values: Vec<Vec<u8>> = match kind == "string" {
            true => vec![redis::from_redis_value(values).unwrap()],
            false => redis::from_redis_value(values).unwrap(),
        };
        if kind == "zset" {
            values.chunks_mut(2).for_each(|pair| pair.reverse());
        }
        let command = [write.as_bytes().to_vec(), key];
        lines.push(command.into_iter().chain(values).map(|value| runs(&value)).collect());
    }
    lines
}

/// Bytes as text, with long runs of one byte told by their length.
fn runs(bytes: &[u8]) -> Vec<(String, usize)> {
    let mut all: Vec<(String, usize)> = Vec::new();
    for run in bytes.chunk_by(|one, other| one == other) {
        let character = char::from(run[0]);
        match all.last_mut() {
            _ if run.len() > 100 => all.push((character.to_string(), run.len())),
            Some((text, 1)) => text.extend(std::iter::repeat_n(character, run.len())),
            _ => all.push((character.to_string().repeat(run.len()), 1)),
        }
    }
    all
}

fn bytes_of(runs: &[(String, usize)]) -> Vec<u8> {
    let text = runs
        .iter()
        .flat_map(|(text, times)| text.chars().cycle().take(text.chars().count() * times));
    text.map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

async fn load(url: &str, lines: &[Line]) {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for line in lines {
        let mut parts = line.iter().map(|part| bytes_of(part));
        let mut command = redis::cmd(std::str::from_utf8(&parts.next().unwrap()).unwrap());
        for part in parts {
            command.arg(part);
        }
        command.query_async::<()>(&mut connection).await.unwrap();
    }
}

fn written(jobs: &Jobs, lines: &[Line]) -> String {
    let lines = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n");
    format!("{}\n{}", serde_json::to_string(jobs).unwrap(), lines.collect::<String>())
}

fn read(text: &str) -> (Jobs, Vec<Line>) {
    let mut lines = text.lines();
    let jobs = serde_json::from_str(lines.next().unwrap()).unwrap();
    (jobs, lines.map(|line| serde_json::from_str(line).unwrap()).collect())
}

// ------------------------------------------------------------------------------------------ the tests

/// What is left of these jobs is answered as it was, and what was promised is done.
async fn check(text: &str) {
    let (jobs, lines) = read(text);
    let server = Server::start(&[]);
    load(&server.url(), &lines).await;
    let open = Arc::new(Notify::new());
    let node = Node::start(&server.url(), &DURABLE, &open).await;
    let app = &node.app;
    for (name, known) in &jobs {
        if known.document["finished_at"].is_string() {
            assert_eq!(document(app, &known.job).await, known.document, "{name}");
            assert_eq!(result(app, &known.job).await, known.result, "{name}");
        }
    }
    // The same key is the same job, also where it has not ended.
    let again = post_to(app, "/plain/keyed", Some("keyed")).await;
    assert_eq!(again.body(), b"keyed: body of the request");
    let again = post_to(app, "/durable/keyed", Some("keyed-durable")).await;
    assert_eq!(accepted(&again), jobs["keyed-durable"].job);
    // Its node is dead.
    let lost = until(app, &jobs["running"].job, "failed").await;
    assert_eq!(lost["error"]["type"], "urn:tower-offload:problem:node-lost", "{lost}");
    node.serve();
    for name in ["queued-durable", "keyed-durable", "taken-durable"] {
        open.notify_one();
        until(app, &jobs[name].job, "succeeded").await;
    }
    let result = result(app, &jobs["taken-durable"].job).await;
    assert_eq!(result["begins"], "attempt 2: body of the request");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_earlier_formats_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read_to_string(file).unwrap()).await;
    }
}

/// A durable job of a partition that is the same for all.
fn durable(name: &str) -> Record {
    let id = JobId::random_beside(&[0; 32].into()).unwrap();
    let record = Record::queued(id, SystemTime::now(), TTL).with_policy(name.into());
    record.with_attempts(3)
}

/// The name of a job's key.
fn key(record: &Record) -> String {
    format!("{{f:{:02}}}:j:{}", record.id().partition(), record.id())
}

/// The next job to be begun is this one, in this attempt.
async fn begun(store: &RedisStore, id: JobId, attempt: u16) {
    loop {
        if let Some((taken, _)) = store.take("work".into()).await.unwrap() {
            return assert_eq!((taken.id(), taken.attempt()), (id, Some(attempt)));
        }
        store.arrival("work".into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_later_release_are_left_to_its_processes() {
    let server = Server::start(&[]);
    let builder = || RedisStore::builder(server.url()).prefix("f").lease(LEASE);
    let store = builder().connect().await.unwrap();
    let (later, other) = (durable("work"), durable("work"));
    for record in [&later, &other] {
        store.enqueue(record.clone(), "".into(), 0).await.unwrap();
    }
    let is_of_format = |record: &Record, format: &str| {
        server.cli(&["hset", &key(record), "F", format]);
    };
    is_of_format(&later, "99");
    let unknown = |answer: Result<_, Error>| answer.unwrap_err().kind() == ErrorKind::NewerFormat;
    assert!(unknown(store.read(later.id(), None).await.map(drop)));
    assert!(unknown(store.change(later.id(), Change::Cancel).await.map(drop)));
    // It is the first in the queue, and keeps no other from its turn.
    let (taken, _) = store.take("work".into()).await.unwrap().unwrap();
    assert_eq!(taken.id(), other.id());
    assert!(store.take("work".into()).await.unwrap().is_none());
    // It is as it was for a process that can read it.
    is_of_format(&later, "1");
    begun(&store, later.id(), 1).await;

    // Its node is lost, as is that of the other: only the other is begun again here.
    is_of_format(&later, "99");
    drop(store);
    let store = builder().connect().await.unwrap();
    begun(&store, other.id(), 2).await;
    assert_eq!(server.cli(&["hget", &key(&later), "s"]).trim(), "running");
    is_of_format(&later, "1");
    begun(&store, later.id(), 2).await;
}

#[tokio::test]
async fn jobs_of_a_later_release_that_were_given_up_are_counted_and_hide_no_other() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix("f").connect().await.unwrap();
    for _ in 0..5 {
        let record = durable("work").with_attempts(1);
        store.enqueue(record.clone(), "".into(), 0).await.unwrap();
        begun(&store, record.id(), 1).await;
        let lost = Change::Finish(End::Failure(Failure::Interrupted));
        store.change(record.id(), lost).await.unwrap();
    }
    let all = server.cli(&["zrange", "{f:00}:d", "0", "-1"]);
    let all: Vec<JobId> = all.lines().map(|id| id.parse().unwrap()).collect();
    for later in [all[0], all[1], all[3]] {
        server.cli(&["hset", &format!("{{f:00}}:j:{later}"), "F", "99"]);
    }
    for most in [1, 2, 10] {
        let given_up = store.given_up(most).await.unwrap();
        let ids: Vec<_> = given_up.jobs.iter().map(Record::id).collect();
        assert_eq!(ids, [all[2], all[4]][..most.min(2)]);
        assert_eq!(given_up.later, if most == 1 { 2 } else { 3 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_this_format_are_read() {
    let server = Server::start(&[]);
    let jobs = populate(&server.url()).await;
    let text = written(&jobs, &dump(&server.url()).await);
    if let Ok(file) = std::env::var("WRITE_FORMAT") {
        std::fs::write(file, &text).unwrap();
    }
    check(&text).await;
}
