//! Two nodes of an app behind a balancer, with one Redis: any of them answers for every job. When one
//! is killed, the other tells so, or takes the job over where its route is durable.
//!
//! `cargo run -p tower-offload-redis --example cluster`, with a `redis-server` of its own, or with the one
//! in `REDIS_URL`. Each node is a process; README.md has a session.

use std::{
    io,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{Router, body::Body, extract::Query, routing::post};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tower_offload::{BoxError, Job, Offload, Policies, Policy};
use tower_offload_redis::RedisStore;

const PROXY: &str = "127.0.0.1:3000";
const NODES: [&str; 2] = ["127.0.0.1:3001", "127.0.0.1:3002"];
const REDIS: &str = "127.0.0.1:3003";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match std::env::args().nth(1) {
        Some(address) => node(&address).await,
        None => cluster().await,
    }
}

// ------------------------------------------------------------------------------------------- a node

#[derive(serde::Deserialize)]
struct Work {
    seconds: u32,
}

/// Works for so many seconds, and tells how far it is.
async fn work(job: Job, Query(work): Query<Work>) -> String {
    for second in 0..work.seconds {
        job.progress(f64::from(second) / f64::from(work.seconds), format!("{second} s"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    format!("worked for {} s in process {}\n", work.seconds, std::process::id())
}

/// The same, on a route whose jobs outlive their process.
async fn charge(job: Job, Query(work): Query<Work>) -> String {
    let (attempt, process) = (job.attempt(), std::process::id());
    println!("charges, attempt {attempt} of {}, in process {process}", job.id());
    tokio::time::sleep(Duration::from_secs(work.seconds.into())).await;
    format!("charged in {} s, in attempt {attempt}, by process {process}\n", work.seconds)
}

async fn node(address: &str) -> Result<(), BoxError> {
    let url = std::env::var("REDIS_URL")?;
    let store = RedisStore::builder(url).prefix("cluster-example").connect().await?;
    let offload = Offload::builder("/jobs").store(store).build()?;
    let policies = Policies::otherwise(Policy::never())
        .at("/work", Policy::always())
        .at("/charges", Policy::always().durable().name("charges"));
    let app = Router::new()
        .route("/work", post(work))
        .route("/charges", post(charge))
        .layer(offload.layer(policies))
        .nest_service("/jobs", offload.status());
    offload.serve_durable::<_, Body, _>(app.clone());
    axum::serve(TcpListener::bind(address).await?, app).await?;
    Ok(())
}

// -------------------------------------------------------------------------------------- all of them

async fn cluster() -> Result<(), BoxError> {
    let (redis, url) = match std::env::var("REDIS_URL") {
        Ok(url) => (None, url),
        Err(_) => (Some(redis().await?), format!("redis://{REDIS}/")),
    };
    let mut children: Vec<Child> = redis.into_iter().collect();
    for address in NODES {
        let node = Command::new(std::env::current_exe()?)
            .arg(address)
            .env("REDIS_URL", &url)
            .kill_on_drop(true)
            .spawn()?;
        println!("node on http://{address}, process {}", node.id().unwrap_or_default());
        children.push(node);
    }
    println!("balancer on http://{PROXY}; Ctrl-C ends them all");
    tokio::select! {
        failed = balance() => failed?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// A Redis that keeps nothing on disk, once it answers.
async fn redis() -> io::Result<Child> {
    let (_, port) = REDIS.split_once(':').unwrap_or_default();
    let server = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("redis-server: {error}")))?;
    while TcpStream::connect(REDIS).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("redis-server on redis://{REDIS}/");
    Ok(server)
}

/// Gives each connection to the next node in turn, or to the other where that one is not there.
async fn balance() -> io::Result<()> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let listener = TcpListener::bind(PROXY).await?;
    loop {
        let (mut client, _) = listener.accept().await?;
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            for offset in 0..NODES.len() {
                if let Ok(mut node) = TcpStream::connect(NODES[(turn + offset) % NODES.len()]).await
                {
                    // An error is the end of a connection, too.
                    let _ = copy_bidirectional(&mut client, &mut node).await;
                    return;
                }
            }
        });
    }
}
