//! The budget: a 202 comes at most 5% of it (or 2 ms) late and never early, whatever else waits.

#[path = "support/desk.rs"]
mod desk;

use std::{convert::Infallible, future::pending, time::Duration};

use axum::body::Body;
use desk::{Shuffled, job};
use http::{Request, Response};
use tokio::{
    runtime,
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, ServiceExt, util::BoxCloneService};
use tower_offload::{Offload, Policy};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn never() -> BoxCloneService<Request<Body>, Response<Body>, Infallible> {
    BoxCloneService::new(tower::service_fn(|_| pending()))
}

/// Jobs are as many as the test likes.
fn desk() -> Offload {
    let desk = Offload::builder("/jobs").max_running(20_000).max_stored_bytes(usize::MAX);
    desk.build().unwrap()
}

/// Sends a request whose handler never ends, and gives the time to its 202.
async fn time_to_202(offload: &Offload, policy: Policy, prefer: Option<&str>) -> Duration {
    let request = Request::post("/").header("prefer", prefer.unwrap_or("return=minimal"));
    let service = offload.layer(policy).layer(never());
    let start = Instant::now();
    let answer = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    job(&answer);
    start.elapsed()
}

#[track_caller]
fn on_time(budget: Duration, took: Duration) {
    let late = took.checked_sub(budget).unwrap_or_else(|| panic!("{budget:?} took {took:?}"));
    assert!(late <= (budget / 20).max(millis(2)), "{budget:?} took {took:?}");
}

async fn is_on_time(offload: Offload, budget: Duration) {
    on_time(budget, time_to_202(&offload, Policy::after(budget), None).await);
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other() {
    let offload = desk();
    for budget in [250, 10, 1, 5000, 40, 250, 60_000, 3, 250] {
        is_on_time(offload.clone(), millis(budget)).await;
    }
    is_on_time(offload, Duration::from_micros(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_mix_of_budgets_that_begin_at_any_time() {
    for _ in 0..20 {
        let (offload, mut shuffled, mut calls) = (desk(), Shuffled::new(), JoinSet::new());
        for budget in [1, 2, 3, 10, 40, 50, 100, 250, 251, 1000, 5000].repeat(10) {
            let (offload, begins) = (offload.clone(), shuffled.time(millis(2000)));
            calls.spawn(async move {
                sleep(begins).await;
                is_on_time(offload, millis(budget)).await;
            });
        }
        calls.join_all().await;
    }
}

/// Each request's own clock counts, not the one that looked last.
#[tokio::test(start_paused = true)]
async fn a_steady_stream_of_requests() {
    let (offload, mut calls) = (desk(), JoinSet::new());
    for _ in 0..500 {
        calls.spawn(is_on_time(offload.clone(), millis(250)));
        advance(millis(7)).await;
    }
    calls.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_pending_at_once() {
    let (offload, mut calls) = (desk(), JoinSet::new());
    for call in 0..10_000 {
        calls.spawn(is_on_time(offload.clone(), millis(200 + call % 100)));
    }
    calls.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_client_waits_for_is_its_budget() {
    let (offload, mut calls) = (desk(), JoinSet::new());
    for (policy, prefer, budget) in [
        (Policy::after(millis(250)), "respond-async, wait=1", 1000),
        (Policy::after(millis(250)), "wait=7, respond-async", 7000),
        // At most `max_wait`.
        (Policy::after(millis(250)), "respond-async, wait=99", 30_000),
        (Policy::after(millis(250)), "wait=7", 250),
        (Policy::after(millis(250)), "respond-async", 0),
        (Policy::on_request(millis(400)), "respond-async", 400),
        (Policy::on_request(millis(400)), "respond-async, wait=2", 2000),
        (Policy::always(), "respond-async, wait=2", 0),
    ] {
        let offload = offload.clone();
        calls.spawn(async move {
            let took = time_to_202(&offload, policy, Some(prefer)).await;
            on_time(millis(budget), took);
        });
    }
    calls.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn two_desks_do_not_know_of_each_other() {
    let (one, other, mut calls) = (desk(), desk(), JoinSet::new());
    for budget in [10, 250, 40] {
        calls.spawn(is_on_time(one.clone(), millis(budget)));
        calls.spawn(is_on_time(other.clone(), millis(budget)));
    }
    drop(one);
    calls.join_all().await;
    is_on_time(other, millis(250)).await;
}

fn paused() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[test]
fn one_runtime_after_another() {
    let offload = desk();
    for _ in 0..3 {
        let runtime = paused();
        runtime.block_on(is_on_time(offload.clone(), millis(250)));
        // One that waits when the runtime goes takes nothing with it.
        runtime.spawn(is_on_time(offload.clone(), millis(250)));
        runtime.block_on(tokio::task::yield_now());
    }
}

#[test]
fn a_second_runtime_beside_one_that_nobody_drives() {
    let (offload, first) = (desk(), paused());
    first.block_on(is_on_time(offload.clone(), millis(250)));
    first.block_on(async {
        let service = offload.layer(Policy::after(millis(250))).layer(never());
        let call = service.oneshot(Request::post("/").body(Body::empty()).unwrap());
        assert!(timeout(millis(10), call).await.is_err());
    });
    // The first one's scan sleeps, and is not woken. Another thread, as it is in life.
    let second = std::thread::spawn(move || {
        paused().block_on(async {
            advance(millis(1000)).await;
            timeout(millis(10_000), is_on_time(offload, millis(250))).await.is_ok()
        })
    });
    assert!(second.join().unwrap());
    drop(first);
}

/// As in a server with a runtime for each core. By the real clock only "never early" is certain.
#[test]
fn two_runtimes_at_once() {
    let offload = desk();
    let threads = [(); 2].map(|()| {
        let offload = offload.clone();
        std::thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for budget in [5, 40, 10, 80] {
                    let took = time_to_202(&offload, Policy::after(millis(budget)), None);
                    let took = timeout(Duration::from_secs(20), took).await.expect("the 202 came");
                    assert!(took >= millis(budget), "{budget} ms took {took:?}");
                }
            });
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}
