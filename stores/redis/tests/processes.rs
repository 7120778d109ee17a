//! Nodes as processes of their own, which are killed and stopped: this program is each of them, too.
//!
//! So it has a `main` of its own, which lists and runs its tests as others do.

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, routing::post};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::{Server, fresh_prefix};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tower_offload::{Job, Offload, Policies, Policy};
use tower_offload_redis::RedisStore;

/// Long enough that no node of a busy machine is taken for dead while it lives.
const LEASE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    if let Ok(url) = std::env::var("NODE_REDIS") {
        return runtime().block_on(node(&url, &std::env::var("NODE_PREFIX").unwrap()));
    }
    let trial = |name: &str, test: fn(Cluster)| {
        Trial::test(name, move || {
            test(Cluster::start());
            Ok(())
        })
    };
    let trials = vec![
        trial("the_job_of_a_killed_node_is_taken_over", killed),
        trial("a_node_that_was_stopped_ends_nothing_when_it_goes_on", stopped),
        trial("ten_thousand_jobs_survive_kills_of_nodes_and_a_restart_of_redis", ten_thousand),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

// ------------------------------------------------------------------------------------------- a node

/// Prints its port, and serves until it is killed.
async fn node(url: &str, prefix: &str) {
    let store = loop {
        match RedisStore::builder(url).prefix(prefix).lease(LEASE).connect().await {
            Ok(store) => break store,
            // Redis may be on its way back.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let policy = Policy::always().durable().max_attempts(50).name("charges");
    let table = Policies::otherwise(Policy::never())
        .at("/charges/{milliseconds}", policy)
        .at("/plain/{milliseconds}", Policy::always());
    let work = post(async |job: Job, Path(milliseconds): Path<u64>| {
        sleep(Duration::from_millis(milliseconds)).await;
        format!("attempt {}", job.attempt())
    });
    let app = Router::new()
        .route("/charges/{milliseconds}", work.clone())
        .route("/plain/{milliseconds}", work)
        .layer(offload.layer(table))
        .nest_service("/jobs", offload.status());
    offload.serve_durable::<_, Body, _>(app.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

struct Node {
    child: Child,
    address: String,
}

impl Node {
    fn start(url: &str, prefix: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env("NODE_REDIS", url)
            .env("NODE_PREFIX", prefix)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SIGKILL, which nothing in it hears.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// -------------------------------------------------------------------------------------- all of them

struct Cluster {
    redis: Server,
    prefix: String,
    nodes: Vec<Mutex<Node>>,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Cluster {
    /// Three nodes and a Redis that loses nothing.
    fn start() -> Self {
        let redis = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
        let prefix = fresh_prefix();
        let node = || Mutex::new(Node::start(&redis.url(), &prefix));
        let nodes = vec![node(), node(), node()];
        Self { nodes, redis, prefix, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// What a node answers, if it does.
    async fn ask(
        &self,
        node: usize,
        method: Method,
        path: &str,
    ) -> Option<(StatusCode, Option<String>, Bytes)> {
        let address = self.nodes[node].lock().unwrap().address.clone();
        let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        let request = request.body(Full::default()).unwrap();
        let asked = async {
            let answer = self.client.request(request).await.ok()?;
            let location = answer.headers().get(header::LOCATION);
            let location = location.map(|url| url.to_str().unwrap().to_owned());
            let (status, body) = (answer.status(), answer.into_body());
            Some((status, location, body.collect().await.ok()?.to_bytes()))
        };
        tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?
    }

    /// A job, by whichever node accepts it.
    async fn accepted(&self, from: usize, path: &str) -> String {
        for node in from.. {
            match self.ask(node % self.nodes.len(), Method::POST, path).await {
                Some((StatusCode::ACCEPTED, location, _)) => return location.unwrap(),
                Some((StatusCode::SERVICE_UNAVAILABLE, ..)) | None => {}
                Some(other) => panic!("{other:?}"),
            }
            sleep(Duration::from_millis(10)).await;
        }
        unreachable!("it never gives up")
    }

    /// The document of a job that has been promised: it is never unknown.
    async fn document(&self, from: usize, job: &str) -> Value {
        for node in from.. {
            match self.ask(node % self.nodes.len(), Method::GET, &format!("{job}/status")).await {
                Some((StatusCode::OK, _, body)) => return serde_json::from_slice(&body).unwrap(),
                Some((StatusCode::SERVICE_UNAVAILABLE, ..)) | None => {}
                Some(other) => panic!("{job}: {other:?}"),
            }
            sleep(Duration::from_millis(10)).await;
        }
        unreachable!("it never gives up")
    }

    async fn until(&self, from: usize, job: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let document = self.document(from, job).await;
            if holds(&document) {
                return document;
            }
            assert!(begun.elapsed() < PATIENCE, "{document}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn kill(&self, node: usize) {
        let mut killed = self.nodes[node].lock().unwrap();
        let _ = killed.child.kill();
        let _ = killed.child.wait();
    }

    fn replace(&self, node: usize) {
        let next = Node::start(&self.redis.url(), &self.prefix);
        *self.nodes[node].lock().unwrap() = next;
    }

    /// Which of the nodes runs the one job that there is.
    fn runner(&self) -> usize {
        let key = self.redis.cli(&["keys", "*:j:*"]);
        let name = self.redis.cli(&["hget", key.trim(), "y"]);
        let leases =
            self.redis.cli(&["zrange", &format!("{{{}:nodes}}:l", self.prefix), "0", "-1"]);
        assert!(leases.contains(name.trim()));
        // Whoever is asked to stop and is the one does not renew its lease.
        let names = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let score = |name: &str| {
            let key = format!("{{{}:nodes}}:l", self.prefix);
            self.redis.cli(&["zscore", &key, name]).trim().to_owned()
        };
        assert!(names(&leases).len() >= 3);
        for node in 0..self.nodes.len() {
            self.nodes[node].lock().unwrap().signal("STOP");
            let before = score(name.trim());
            std::thread::sleep(LEASE / 2);
            let same = score(name.trim()) == before;
            self.nodes[node].lock().unwrap().signal("CONT");
            if same {
                return node;
            }
        }
        panic!("nobody runs it");
    }
}

fn is_end(document: &Value) -> bool {
    !["queued", "running"].contains(&document["status"].as_str().unwrap())
}

fn killed(cluster: Cluster) {
    runtime().block_on(async {
        // All have seen Redis for as long as a lease.
        sleep(LEASE * 2).await;
        let job = cluster.accepted(0, "/charges/20000").await;
        cluster.until(0, &job, |document| document["status"] == "running").await;
        let runner = cluster.runner();
        let watches = runner + 1;
        cluster.kill(runner);
        let begun = Instant::now();
        let is_second =
            |document: &Value| document["attempt"] == 2 && document["status"] == "running";
        cluster.until(watches, &job, is_second).await;
        assert!(begun.elapsed() >= LEASE / 2, "its lease was not over");
        assert_eq!(cluster.until(watches, &job, is_end).await["status"], "succeeded");
        // A job that is not durable fails with its node.
        let jobs = [cluster.accepted(watches, "/plain/600000").await];
        cluster.kill(watches % 3);
        let failed = cluster.until(watches + 1, &jobs[0], is_end).await;
        assert_eq!(failed["error"]["type"], "urn:tower-offload:problem:node-lost");
    });
}

fn stopped(cluster: Cluster) {
    runtime().block_on(async {
        sleep(LEASE * 2).await;
        let job = cluster.accepted(0, "/charges/15000").await;
        cluster.until(0, &job, |document| document["status"] == "running").await;
        let runner = cluster.runner();
        let watches = runner + 1;
        cluster.nodes[runner].lock().unwrap().signal("STOP");
        let is_second =
            |document: &Value| document["attempt"] == 2 && document["status"] == "running";
        cluster.until(watches, &job, is_second).await;
        cluster.nodes[runner].lock().unwrap().signal("CONT");
        // Its own time is over, and it has come to its end by now.
        sleep(LEASE * 2).await;
        let document = cluster.document(watches, &job).await;
        assert_eq!((&document["status"], &document["attempt"]), (&"running".into(), &2.into()));
        let ended = cluster.until(watches, &job, is_end).await;
        assert_eq!((&ended["status"], &ended["attempt"]), (&"succeeded".into(), &2.into()));
        // It works on, under another name.
        let next = cluster.accepted(runner, "/plain/10").await;
        assert_eq!(cluster.until(runner, &next, is_end).await["status"], "succeeded");
    });
}

/// So many are accepted while this goes on: a node is killed every second, and Redis once.
fn ten_thousand(cluster: Cluster) {
    const JOBS: usize = 10_000;
    const AT_ONCE: usize = 48;
    let (cluster, over) = (Arc::new(cluster), Arc::new(AtomicBool::new(false)));
    let accepted = Arc::new(AtomicUsize::new(0));
    let killer = {
        let (cluster, over, accepted) =
            (Arc::clone(&cluster), Arc::clone(&over), Arc::clone(&accepted));
        std::thread::spawn(move || {
            let (mut kills, mut restarted) = (0, false);
            while !over.load(SeqCst) {
                std::thread::sleep(Duration::from_secs(1));
                if !restarted && accepted.load(SeqCst) > JOBS / 2 {
                    cluster.redis.restart();
                    restarted = true;
                    continue;
                }
                // Any order will do; this one is the same each time.
                let node = kills * 7 % 5 % 3;
                cluster.kill(node);
                std::thread::sleep(Duration::from_millis(200));
                cluster.replace(node);
                kills += 1;
            }
            (kills, restarted)
        })
    };
    let begun = std::time::Instant::now();
    let counts = runtime().block_on(async {
        let jobs = many(AT_ONCE, {
            let (cluster, accepted) = (Arc::clone(&cluster), Arc::clone(&accepted));
            move |number| {
                let (cluster, accepted) = (Arc::clone(&cluster), Arc::clone(&accepted));
                async move {
                    let mut jobs = Vec::new();
                    while accepted.fetch_add(1, SeqCst) < JOBS {
                        jobs.push(cluster.accepted(number + jobs.len(), "/charges/200").await);
                    }
                    jobs
                }
            }
        })
        .await;
        assert_eq!(jobs.len(), JOBS);
        let jobs = Arc::new(jobs);
        let cluster = Arc::clone(&cluster);
        let documents = many(AT_ONCE, move |number| {
            let (cluster, jobs) = (Arc::clone(&cluster), Arc::clone(&jobs));
            async move {
                let mut documents = Vec::new();
                for job in jobs.iter().skip(number).step_by(AT_ONCE) {
                    documents.push(cluster.until(number, job, is_end).await);
                }
                documents
            }
        })
        .await;
        over.store(true, SeqCst);
        let of =
            |holds: fn(&Value) -> bool| documents.iter().filter(|document| holds(document)).count();
        [
            documents.len(),
            of(|document| document["status"] == "succeeded"),
            of(|document| document["attempt"].as_u64().unwrap() > 1),
        ]
    });
    let (kills, restarted) = killer.join().unwrap();
    let [ended, succeeded, again] = counts;
    println!(
        "{JOBS} accepted, {ended} ended, {succeeded} succeeded, {again} of them not with the first \
         attempt; {kills} nodes killed, Redis restarted: {restarted}; {:?}",
        begun.elapsed()
    );
    assert_eq!((ended, succeeded), (JOBS, JOBS));
    assert!(restarted && kills >= 3 && again > 0, "nothing was hard about it");
}

/// What so many tasks come to.
async fn many<T: Send + 'static, F>(tasks: usize, task: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = Vec<T>> + Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    for number in 0..tasks {
        running.spawn(task(number));
    }
    running.join_all().await.into_iter().flatten().collect()
}
