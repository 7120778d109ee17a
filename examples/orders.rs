//! Orders that must not be placed twice, each seen only by whoever placed it.
//!
//! ```text
//! cargo run --example orders           # ADDR=127.0.0.1:3004
//!
//! order() { curl -i 127.0.0.1:3004/orders -H 'Authorization: Bearer ada' "$@"; }
//!
//! order -H 'Idempotency-Key: "1"' -d 'two lamps'            # 201, order 1
//! order -H 'Idempotency-Key: "1"' -d 'two lamps'            # the same 201: nothing runs again
//! order -H 'Idempotency-Key: "1"' -d 'a chair'              # 422: another order under that key
//! order -d 'a chair'                                        # 400: this route wants a key
//!
//! # The bank is slow, and the client gives up before it has any answer. The order is placed all the
//! # same; sent again, the request gets the outcome of the first.
//! order -m 0.1 -H 'Idempotency-Key: "2"' -d 'a rug' '127.0.0.1:3004/orders?bank_ms=3000'
//! order -H 'Idempotency-Key: "2"' -d 'a rug' '127.0.0.1:3004/orders?bank_ms=3000'  # 202, then 201
//!
//! # Somebody else knows nothing of the job: 404. Without a token nobody is asked: 401.
//! curl -i 127.0.0.1:3004/jobs/{id} -H 'Authorization: Bearer eve'
//! ```
//!
//! `POST /receipts` is a route without keys whose work is finished even if its client leaves. Ctrl-C
//! finishes what runs, and prints what each policy has seen.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::Query,
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
    routing::post,
};
use serde::Deserialize;
use tower_offload::{Offload, Owner, Policy};

const BUDGET: Duration = Duration::from_millis(250);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let offload = Offload::builder("/jobs").owner(bearer).build()?;

    let orders = Policy::after(BUDGET).idempotency_required().concurrency(4).queue(64);
    let receipts = Policy::after(BUDGET).finish_on_disconnect();
    let app = Router::new()
        .route("/orders", post(order).layer(offload.layer(orders.name("orders"))))
        .route("/receipts", post(receipt).layer(offload.layer(receipts.name("receipts"))))
        .nest_service("/jobs", offload.status());

    let addr = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3004".to_owned());
    let listener = tokio::net::TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let draining = offload.clone();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            tokio::signal::ctrl_c().await.expect("a handler for Ctrl-C can be installed");
            draining.drain(Duration::from_secs(30)).linger(Duration::from_secs(2)).await;
        })
        .await?;

    for (name, policy) in offload.stats().await?.policies() {
        println!(
            "{name}: {} kept in {} bytes, {} refused",
            policy.stored, policy.bytes, policy.refused
        );
    }
    Ok(())
}

/// Whose request it is: the bearer token itself. That the token is a good one is for a layer outside
/// of this one to check; here it only tells one sender from another.
fn bearer(request: &Parts) -> Option<Owner> {
    let token = request.headers.get(AUTHORIZATION)?;
    token.as_bytes().starts_with(b"Bearer ").then(|| token.clone().into())
}

#[derive(Deserialize)]
struct Bank {
    #[serde(default)]
    bank_ms: u64,
}

/// `POST /orders?bank_ms=N`: charges the customer, which takes the bank N milliseconds.
async fn order(Query(Bank { bank_ms }): Query<Bank>, order: String) -> (StatusCode, String) {
    static PLACED: AtomicU64 = AtomicU64::new(0);
    let number = PLACED.fetch_add(1, Ordering::Relaxed) + 1;
    println!("order {number}: charging");
    tokio::time::sleep(Duration::from_millis(bank_ms)).await;
    println!("order {number}: placed");
    (StatusCode::CREATED, format!("order {number}: {order}\n"))
}

/// `POST /receipts?bank_ms=N`: a mail, sent when the bank has answered.
async fn receipt(Query(Bank { bank_ms }): Query<Bank>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(bank_ms)).await;
    println!("receipt sent");
    "sent\n"
}
