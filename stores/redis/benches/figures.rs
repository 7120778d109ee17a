//! What the store costs: calls per second with one to three nodes, each a process of its own, and the
//! memory that a job takes in Redis. `cargo bench -p tower-offload-redis`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use support::{Server, number};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tower_offload::{
    Change, Claim, Digest, End, JobId, Offload, Outcome, Record, StatusService, Store,
    store::Interest,
};
use tower_offload_redis::RedisStore;

/// Calls of each kind that a node makes, so many of them at once.
const CALLS: usize = 20_000;
const AT_ONCE: usize = 64;

/// Jobs whose memory is measured.
const KEPT: usize = 50_000;

const OPERATIONS: [&str; 5] = ["accept", "poll", "finish", "accept durable", "take"];

/// The policy of durable jobs, and the bytes of their requests.
const DURABLE: &str = "charges";
const REQUEST: Bytes = Bytes::from_static(&[b'x'; 1024]);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, kind, url, at] = &*arguments
        && kind == "node"
    {
        return node(url, at.parse().unwrap()).await;
    }
    // Cargo says `--bench`; under `cargo test` there is nothing to measure.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    rates();
    traffic().await;
    memory().await;
    wakes().await;
}

// ------------------------------------------------------------------------------------------- rates

fn rates() {
    println!(
        "\nCalls per second, {AT_ONCE} at once from each node, and the share of a core that Redis took"
    );
    println!("{:>6} {}", "nodes", OPERATIONS.map(|name| format!("{name:>18}")).concat());
    for nodes in 1..=3 {
        let server = Server::start(&[]);
        // All begin each part at the same time.
        let at = now() + Duration::from_secs(2);
        let children: Vec<_> = (0..nodes)
            .map(|_| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["node", &server.url(), &at.as_millis().to_string()]);
                command.stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let mut sums = [(0.0, 0.0); OPERATIONS.len()];
        for child in children {
            let output = child.wait_with_output().unwrap();
            let lines = String::from_utf8(output.stdout).unwrap();
            for (sum, line) in sums.iter_mut().zip(lines.lines()) {
                let (rate, share) = line.split_once(' ').unwrap();
                sum.0 += rate.parse::<f64>().unwrap();
                sum.1 += share.parse::<f64>().unwrap() / f64::from(nodes);
            }
        }
        let sums = sums.map(|(rate, share)| format!("{rate:>11.0} {share:>4.0} %"));
        println!("{nodes:>6} {}", sums.concat());
    }
}

/// Prints the calls per second for each operation, and what Redis used of a core meanwhile.
async fn node(url: &str, at: u64) {
    let store = RedisStore::connect(url).await.unwrap();
    let ids: Arc<Vec<JobId>> = Arc::new((0..CALLS).map(|_| JobId::random().unwrap()).collect());
    for (part, operation) in (0..).zip(OPERATIONS) {
        let begins = Duration::from_millis(at) + Duration::from_secs(10) * part;
        tokio::time::sleep(begins.saturating_sub(now())).await;
        let (begun, before) = (Instant::now(), cpu(url));
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (store, ids, next) = (store.clone(), Arc::clone(&ids), Arc::clone(&next));
            tasks.spawn(async move {
                while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                    call(&store, operation, *id).await;
                }
            });
        }
        tasks.join_all().await;
        let took = begun.elapsed().as_secs_f64();
        println!("{} {}", CALLS as f64 / took, (cpu(url) - before) / took * 100.0);
    }
}

async fn call(store: &RedisStore, operation: &str, id: JobId) {
    match operation {
        "accept" => drop(store.insert(job(id), 0).await.unwrap()),
        "poll" => drop(store.read(id, None).await.unwrap().unwrap()),
        "finish" => drop(store.change(id, response(1024)).await.unwrap()),
        "accept durable" => drop(store.enqueue(durable(), REQUEST, 0).await.unwrap()),
        // As many as all nodes have accepted; each looks where it has heard of one.
        _ => while store.take(DURABLE.into()).await.unwrap().is_none() {},
    }
}

fn durable() -> Record {
    let ttl = Duration::from_secs(3600);
    let record = Record::queued(JobId::random().unwrap(), SystemTime::now(), ttl);
    record.with_policy(DURABLE.into()).with_attempts(3)
}

fn job(id: JobId) -> Record {
    let record = Record::running(id, SystemTime::now(), Duration::from_secs(3600));
    record.with_policy("POST /reports".into())
}

fn response(bytes: usize) -> Change {
    let mut head = http::Response::new(()).into_parts().0;
    head.headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    Change::Finish(End::Response(Outcome::new(&head, &vec![b'x'; bytes], None)))
}

/// The seconds that Redis has used of a core.
fn cpu(url: &str) -> f64 {
    let output = Command::new("redis-cli").args(["-u", url, "info", "cpu"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    number::<f64>(&text, "used_cpu_user:") + number::<f64>(&text, "used_cpu_sys:")
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

// ----------------------------------------------------------------------------------------- traffic

/// The bytes that each call sends to Redis, and gets back.
async fn traffic() {
    const TIMES: usize = 1000;
    let server = Server::start(&[]);
    let store = RedisStore::connect(server.url()).await.unwrap();
    let ids: Vec<_> = (0..TIMES).map(|_| JobId::random().unwrap()).collect();
    // So that the scripts are there.
    let id = JobId::random().unwrap();
    for operation in OPERATIONS {
        call(&store, operation, id).await;
    }
    println!("\nBytes that a call sends to Redis, and gets back");
    for operation in OPERATIONS {
        let (sent, got) = bytes(&server);
        for id in &ids {
            call(&store, operation, *id).await;
        }
        let (sent_then, got_then) = bytes(&server);
        let each = |from: usize, to: usize| (to - from) / TIMES;
        println!("{operation:>40} {:>6} {:>6}", each(sent, sent_then), each(got, got_then));
    }
}

fn bytes(server: &Server) -> (usize, usize) {
    let text = server.cli(&["info", "stats"]);
    (number(&text, "total_net_input_bytes:"), number(&text, "total_net_output_bytes:"))
}

// ------------------------------------------------------------------------------------------ memory

async fn memory() {
    let server = Server::start(&[]);
    let store = RedisStore::connect(server.url()).await.unwrap();
    let used = || server.used_memory() as f64;
    println!("\nBytes that a job takes in Redis, of {KEPT}");
    let start = used();
    let per_job = |from: f64| (used() - from) / KEPT as f64;
    let ids: Vec<_> = (0..KEPT).map(|_| JobId::random().unwrap()).collect();
    for id in &ids {
        store.insert(job(*id), 0).await.unwrap();
    }
    println!("{:>40} {:>6.0}", "running", per_job(start));
    for id in &ids {
        store.change(*id, response(64)).await.unwrap();
    }
    println!("{:>40} {:>6.0}", "ended, with a response of 64 bytes", per_job(start));
    let start = used();
    for number in 0..KEPT as u64 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let key = Digest::from(key);
        let id = JobId::random_beside(&key).unwrap();
        let record = job(id).with_owner(key).with_claim(Claim::new(key, key));
        store.insert(record, 0).await.unwrap();
    }
    println!("{:>40} {:>6.0}", "running, with an owner and a key", per_job(start));
    let start = used();
    for _ in 0..KEPT {
        store.enqueue(durable(), REQUEST, 0).await.unwrap();
    }
    println!("{:>40} {:>6.0}", "waiting, with a request of 1 KiB", per_job(start));
}

// ------------------------------------------------------------------------------------------- wakes

/// From a change on one node until a waiter on another knows of it, and until a poll that waits there
/// is answered.
async fn wakes() {
    let server = Server::start(&[]);
    let here = RedisStore::connect(server.url()).await.unwrap();
    let there = RedisStore::connect(server.url()).await.unwrap();
    let offload = Offload::builder("/jobs").store(there.clone()).build().unwrap();
    let (mut woken, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let id = JobId::random().unwrap();
        here.insert(job(id), 0).await.unwrap();
        let waiter = there.clone();
        let waiting = tokio::spawn(async move {
            waiter.changed(id, 0, Interest::Status).await.unwrap();
            Instant::now()
        });
        let polling = tokio::spawn(poll_that_waits(offload.status(), id));
        // Both wait by then: what they asked went before these, on the same connection.
        for _ in 0..2 {
            tokio::task::yield_now().await;
            there.read(id, None).await.unwrap();
        }
        tokio::task::yield_now().await;
        let begun = Instant::now();
        here.change(id, response(64)).await.unwrap();
        woken.push(waiting.await.unwrap() - begun);
        answered.push(polling.await.unwrap() - begun);
    }
    println!("\nFrom a change on one node, on another");
    for (what, mut times) in [("a waiter is woken", woken), ("a poll is answered", answered)] {
        times.sort();
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        println!("{what:>40}: p50 {:?}, p99 {:?}", at(0.5), at(0.99));
    }
}

async fn poll_that_waits(status: StatusService, id: JobId) -> Instant {
    let request = Request::get(format!("/jobs/{id}/status")).header("prefer", "wait=30");
    let answer = status.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let document = answer.into_body().collect().await.unwrap().to_bytes();
    let then = Instant::now();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    assert_eq!(document["status"], "succeeded");
    then
}
