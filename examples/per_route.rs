//! Four routes, four policies: once as a layer on each route, once as a table around the router.
//!
//! ```text
//! cargo run --example per_route        # ADDR=127.0.0.1:3002 TABLE_ADDR=127.0.0.1:3003
//!
//! curl -i -X POST '127.0.0.1:3002/never?ms=1000'      # 200 after a second, whatever is asked
//! curl -i -X POST '127.0.0.1:3002/after?ms=100'       # 200 after 100 ms
//! curl -i -X POST '127.0.0.1:3002/after?ms=1000'      # 202 after 250 ms
//! curl -i -X POST '127.0.0.1:3002/always?ms=1000'     # 202 at once
//! curl -i -X POST '127.0.0.1:3002/on-request?ms=1000' # 200 after a second
//! curl -i -X POST '127.0.0.1:3002/on-request?ms=1000' -H 'Prefer: respond-async' # 202 after 250 ms
//!
//! curl -iL 127.0.0.1:3002/jobs/{id}    # what the handler answered, once it has
//! ```
//!
//! Port 3003 answers all of it just the same. Both share one `Offload`, so a job of the one is known
//! at the other's `/jobs` too. Ctrl-C finishes the jobs that run, then stops.

use std::time::Duration;

use axum::{Router, ServiceExt, extract::Query, extract::Request, routing::post};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower::Layer;
use tower_offload::{Offload, Policies, Policy};

const BUDGET: Duration = Duration::from_millis(250);

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let offload = Offload::new("/jobs");

    // By route: each policy stands beside the route that it is for.
    let layered = Router::new()
        .route("/never", post(work).layer(offload.layer(Policy::never())))
        .route("/after", post(work).layer(offload.layer(Policy::after(BUDGET))))
        .route("/always", post(work).layer(offload.layer(Policy::always())))
        .route("/on-request", post(work).layer(offload.layer(Policy::on_request(BUDGET))))
        .nest_service("/jobs", offload.status());

    // By a table: one layer around the whole router. It costs a request far less, since axum boxes
    // what goes through a layer inside it. Paths are written as for `Router::route`, with a method
    // in front or without one.
    let router = Router::new()
        .route("/never", post(work))
        .route("/after", post(work))
        .route("/always", post(work))
        .route("/on-request", post(work))
        .nest_service("/jobs", offload.status());
    let policies = Policies::otherwise(Policy::never())
        .at("POST /after", Policy::after(BUDGET))
        .at("POST /always", Policy::always())
        .at("/on-request", Policy::on_request(BUDGET));
    let tabled = offload.layer(policies).layer(router);

    let by_route = axum::serve(listen("ADDR", "127.0.0.1:3002").await?, layered)
        .with_graceful_shutdown(drained(offload.clone()));
    let by_table = axum::serve(
        listen("TABLE_ADDR", "127.0.0.1:3003").await?,
        ServiceExt::<Request>::into_make_service(tabled),
    )
    .with_graceful_shutdown(drained(offload));
    tokio::try_join!(async { by_route.await }, async { by_table.await })?;
    Ok(())
}

#[derive(Deserialize)]
struct Work {
    #[serde(default)]
    ms: u64,
}

/// The handler of every route. It knows nothing of policies.
async fn work(Query(Work { ms }): Query<Work>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("done in {ms} ms\n")
}

async fn listen(variable: &str, default: &str) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(std::env::var(variable).as_deref().unwrap_or(default)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(listener)
}

/// Resolves when the server may stop: after Ctrl-C, once nothing runs that was promised, and the last
/// outcome could be fetched.
async fn drained(offload: Offload) {
    tokio::signal::ctrl_c().await.expect("a handler for Ctrl-C can be installed");
    offload.drain(Duration::from_secs(30)).linger(Duration::from_secs(2)).await;
}
