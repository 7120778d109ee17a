//! How long a poll takes while a million jobs expire, all at the same moment: in a thread of its own,
//! where it can only be held up by a lock; and on the very runtime that expires them, where it also
//! waits for its turn.
//!
//! A thread that loses its core to another program has nothing to do with the store, so polls in
//! which that happened, as the system counts it, are kept apart. Those in which the thread slept are
//! not: it waited for a lock, be it of the store or of the allocator. But whoever held that lock may
//! have lost its core too, so the worst of those that were awake throughout is told as well. What a
//! virtual machine's host does is not counted by anybody: that is what the same polls without any
//! expiry are for, measured beside a thread that keeps the other core as busy.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Method, Request, Response};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::task::yield_now;
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{MemoryStore, Offload, Policy, StatusService};

use super::{location, request};
use crate::{
    desks::{roomy, roomy_store},
    request::post,
    runtime,
};

/// So many running jobs are polled.
const POLLED: usize = 1000;

/// What follows the last expiry, when memory is given back, is looked at too, for so long.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// Polls, their times in nanoseconds.
#[derive(Debug, Default)]
pub struct Polls {
    /// Sorted.
    times: Vec<u64>,
    /// The worst of those in which the thread did not sleep.
    worst_awake: u64,
    /// Those in which the thread lost its core.
    preempted: Vec<u64>,
}

impl Polls {
    pub fn number(&self) -> usize {
        self.times.len()
    }

    pub fn quantile(&self, share: f64) -> f64 {
        let at = (share * self.times.len() as f64) as usize;
        self.times.get(at).or(self.times.last()).map_or(f64::NAN, |time| *time as f64)
    }

    pub fn worst_awake(&self) -> f64 {
        self.worst_awake as f64
    }

    pub fn preempted(&self) -> usize {
        self.preempted.len()
    }

    pub fn worst_of_all(&self) -> f64 {
        self.times.iter().chain(&self.preempted).max().map_or(f64::NAN, |time| *time as f64)
    }

    /// Adds what `poll` takes.
    async fn time(&mut self, switches: &mut Switches, poll: impl Future<Output = ()>) {
        let start = Instant::now();
        poll.await;
        let time = start.elapsed().as_nanos() as u64;
        let before = std::mem::replace(switches, Switches::so_far());
        if before.lost != switches.lost {
            self.preempted.push(time);
            return;
        }
        self.times.push(time);
        if before.slept == switches.slept {
            self.worst_awake = self.worst_awake.max(time);
        }
    }

    fn sort(mut self) -> Self {
        self.times.sort_unstable();
        self
    }
}

/// How often this thread has left its core.
struct Switches {
    /// To another that was to run.
    lost: i64,
    /// To wait for something.
    slept: i64,
}

impl Switches {
    fn so_far() -> Self {
        let usage =
            getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage fails on bad arguments only");
        Self {
            lost: usage.involuntary_context_switches(),
            slept: usage.voluntary_context_switches(),
        }
    }
}

/// The polls of each case.
pub fn all(jobs: usize) -> Vec<(&'static str, Polls)> {
    let (expiring, took) = from_another_thread(jobs);
    vec![
        ("another thread, jobs expire", expiring),
        ("another thread, none expire", beside_a_busy_thread(took)),
        ("same thread, jobs expire", on_the_same_runtime(jobs)),
        ("same thread, none expire", with_nothing_else(took)),
    ]
}

/// Jobs that are polled, and jobs that are to expire.
struct Desk {
    store: MemoryStore,
    offload: Offload,
    polls: Vec<Request<Body>>,
    status: StatusService,
}

impl Desk {
    /// With running jobs to poll.
    async fn new() -> Self {
        let store = roomy_store();
        let offload = roomy(&store);
        let endless = service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let service = offload.layer(Policy::always()).layer(endless);
        let mut polls = vec![];
        for _ in 0..POLLED {
            let answer = service.clone().oneshot(post()).await.unwrap();
            polls.push(request(Method::GET, &format!("{}/status", location(&answer))));
            yield_now().await;
        }
        let status = offload.status();
        Self { store, offload, polls, status }
    }

    /// Makes jobs that all expire at the same moment, which it returns.
    async fn expiring(&self, jobs: usize) -> Instant {
        let kept = self.store.bytes();
        // How long it takes is seen by some that are gone at once.
        let start = Instant::now();
        self.made(jobs / 50, Duration::from_millis(1)).await;
        let mut time = start.elapsed() * 100;
        loop {
            let moment = Instant::now() + Duration::from_secs(1) + time;
            for start in (0..jobs).step_by(500) {
                let left = moment.saturating_duration_since(Instant::now());
                self.made(500.min(jobs - start), left.max(Duration::from_millis(1))).await;
            }
            if Instant::now() < moment {
                return moment;
            }
            // Some have expired before the last was made.
            time *= 2;
            while self.store.bytes() > kept {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Jobs that have ended, and are kept for so long.
    async fn made(&self, jobs: usize, ttl: Duration) {
        let answer = service_fn(|_: Request<Body>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
        });
        let service = self.offload.layer(Policy::always().ttl(ttl)).layer(answer);
        for _ in 0..jobs {
            location(&service.clone().oneshot(post()).await.unwrap());
            yield_now().await;
        }
    }

    /// Polls a job, with as little as can be beside it.
    async fn poll(&self, round: usize) {
        let template = &self.polls[round % self.polls.len()];
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = template.uri().clone();
        let answer = self.status.clone().oneshot(request).await.unwrap();
        assert_eq!(black_box(answer).status(), 200);
    }
}

/// Polls while a thread of its own expires all jobs; and how long that took.
fn from_another_thread(jobs: usize) -> (Polls, Duration) {
    let (send, receive) = mpsc::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let is_over_there = Arc::clone(&is_over);
    let expiring = thread::spawn(move || {
        runtime().block_on(async {
            let desk = Desk::new().await;
            let kept = desk.store.bytes();
            let moment = desk.expiring(jobs).await;
            let store = desk.store.clone();
            send.send((desk, moment)).unwrap();
            tokio::time::sleep_until(moment.into()).await;
            while store.bytes() > kept {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let took = moment.elapsed();
            tokio::time::sleep(AFTERWARDS).await;
            is_over_there.store(true, Ordering::Relaxed);
            took
        })
    });
    let (desk, moment) = receive.recv().unwrap();
    thread::sleep(moment.saturating_duration_since(Instant::now()));
    let polls = polls_until(&desk, || is_over.load(Ordering::Relaxed));
    (polls, expiring.join().unwrap())
}

/// The same polls while another thread computes, and no job expires.
fn beside_a_busy_thread(time: Duration) -> Polls {
    let end = Instant::now() + time + AFTERWARDS;
    let busy = thread::spawn(move || {
        while Instant::now() < end {
            black_box(0);
        }
    });
    let made = runtime();
    let desk = made.block_on(Desk::new());
    let polls = polls_until(&desk, || Instant::now() >= end);
    busy.join().unwrap();
    polls
}

fn polls_until(desk: &Desk, is_over: impl Fn() -> bool) -> Polls {
    let mut polls = Polls::default();
    let mut switches = Switches::so_far();
    let mut round = 0;
    runtime().block_on(async {
        while !is_over() {
            polls.time(&mut switches, desk.poll(round)).await;
            round += 1;
        }
    });
    polls.sort()
}

/// Polls on the runtime that expires all jobs. A poll's time is from when it could have begun, were
/// nothing else to do.
fn on_the_same_runtime(jobs: usize) -> Polls {
    runtime().block_on(async {
        let desk = Desk::new().await;
        let kept = desk.store.bytes();
        let moment = desk.expiring(jobs).await;
        tokio::time::sleep_until(moment.into()).await;
        let mut end = None;
        let is_over = || {
            if end.is_none() && desk.store.bytes() <= kept {
                end = Some(Instant::now() + AFTERWARDS);
            }
            end.is_some_and(|end| Instant::now() >= end)
        };
        polls_in_turn(&desk, is_over).await
    })
}

fn with_nothing_else(time: Duration) -> Polls {
    runtime().block_on(async {
        let desk = Desk::new().await;
        let end = Instant::now() + time + AFTERWARDS;
        polls_in_turn(&desk, || Instant::now() >= end).await
    })
}

async fn polls_in_turn(desk: &Desk, mut is_over: impl FnMut() -> bool) -> Polls {
    let mut polls = Polls::default();
    let mut switches = Switches::so_far();
    let mut round = 0;
    while !is_over() {
        let poll = async {
            yield_now().await;
            desk.poll(round).await;
        };
        polls.time(&mut switches, poll).await;
        round += 1;
    }
    polls.sort()
}
