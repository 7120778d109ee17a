//! Quickstart: two slow routes, and `tower-offload` around them.
//!
//! This file is the server: its routes, the report's handler, and shutdown. The
//! handlers know nothing of jobs; what makes them asynchronous is one `.layer(..)`
//! on each route, and the status service beside them.
//!
//! ```text
//! cargo run --example quickstart      # ADDR=127.0.0.1:3000, port 0 for any free one
//! ```
//!
//! Then open <http://127.0.0.1:3000>, or take any CSV file and curl:
//!
//! ```text
//! # Quick enough: the handler's own 200.
//! curl -i --data-binary @orders.csv http://127.0.0.1:3000/reports
//!
//! # Its database takes 5 s today: 202 after 250 ms, with `Location: /jobs/{id}`.
//! curl -i --data-binary @orders.csv 'http://127.0.0.1:3000/reports?pause_ms=5000'
//!
//! # Always a job. Two run at once, eight wait in a queue; the next is answered 503.
//! curl -i -X POST 'http://127.0.0.1:3000/videos?seconds=20'
//!
//! curl -i http://127.0.0.1:3000/jobs/{id}/status        # how far it is
//! curl -i -H 'Prefer: wait=10' http://127.0.0.1:3000/jobs/{id}/status
//! curl -iL http://127.0.0.1:3000/jobs/{id}              # follow it to the answer
//! curl -i -X DELETE http://127.0.0.1:3000/jobs/{id}     # cancel it
//! ```
//!
//! Ctrl-C while a job runs: the server goes on until the job is done (for 30 s at
//! most) and its result could be fetched; its status URL answers until then. A
//! second Ctrl-C stops it at once.

mod problem;
mod report;
mod video;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query};
use axum::handler::Handler;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_offload::{Offload, Policy};

use problem::Problem;
use report::Report;
use video::video;

/// The largest CSV file taken. axum's default of 2 MB is less than many an export,
/// and the report holds the whole file in memory, so it should not be much more.
const LARGEST_CSV: usize = 64 * 1024 * 1024;

/// No pretended slowness lasts longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How long Ctrl-C waits for jobs that still run.
const DRAIN: Duration = Duration::from_secs(30);

/// How long their results can be fetched then. Who polls does so once a second, as
/// `Retry-After` says.
const LINGER: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let offload = Offload::new("/jobs");

    // With names of their own, the one learns nothing of how long the other takes.
    let reports = Policy::after(Duration::from_millis(250)).name("reports");
    let videos = Policy::always().concurrency(2).queue(8).name("videos");

    let app = Router::new()
        .route("/", get(Html(include_str!("page.html"))))
        .route(
            "/reports",
            post(report.layer(DefaultBodyLimit::max(LARGEST_CSV))).layer(offload.layer(reports)),
        )
        .route("/videos", post(video).layer(offload.layer(videos)))
        .nest_service("/jobs", offload.status());

    let addr = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let stop = stop_signal();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            stop.await;
            let again = stop_signal();
            tokio::spawn(async {
                again.await;
                println!("stopped at once");
                std::process::exit(1);
            });
            println!("finishing jobs, for {} s at most", DRAIN.as_secs());
            let drained = offload.drain(DRAIN).linger(LINGER).await;
            println!("{} finished, {} interrupted", drained.finished(), drained.interrupted());
        })
        .await
}

#[derive(Deserialize)]
struct Pause {
    #[serde(default)]
    pause_ms: u64,
}

/// `POST /reports?pause_ms=N`: what is in the CSV file that is the request's body.
async fn report(
    query: Result<Query<Pause>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Report>, Problem> {
    let Query(Pause { pause_ms }) = query?;
    let body = body?;

    // Stands for a database that is slow today.
    tokio::time::sleep(Duration::from_millis(pause_ms).min(LONGEST_PAUSE)).await;

    // A large file is seconds of CPU. Spent right here they would hold the thread
    // that polls this handler, and while a poll does not return, nobody can answer
    // 202 in the handler's place, or cancel it, or serve others on that thread.
    // (A report canceled during this line is still computed to its end, unseen: a
    // blocking task can't be stopped from outside.)
    let report = tokio::task::spawn_blocking(move || Report::of(&body)).await??;
    Ok(Json(report))
}

/// Resolves on Ctrl-C, and on unix at SIGTERM, which is how an orchestrator asks. It
/// listens from the call on, so that no signal is missed.
#[cfg(unix)]
fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};

    let listen = |kind| signal(kind).expect("a handler for the signal can be installed");
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
fn stop_signal() -> impl Future<Output = ()> {
    async { tokio::signal::ctrl_c().await.expect("a handler for Ctrl-C can be installed") }
}
