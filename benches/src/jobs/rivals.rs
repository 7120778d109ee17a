//! Accepting and polling by each of the desks, through its whole app.

use std::{hint::black_box, time::Instant};

use axum::body::Body;
use http::{Method, Request};
use tokio::{runtime::Handle, task::yield_now};
use tower::ServiceExt;

use super::{batches, gets, location, request};
use crate::{
    desks::{BRIEF, DATA, Desk, ENDLESS, KEPT},
    measure::Times,
    runtime,
};

/// What is measured: its name among the results, and what it is.
pub const OPERATIONS: [(&str, &str); 3] = [
    ("accept", "Accepting a job, until its 202 is there"),
    ("accept and run", "Accepting a job, its run, and its outcome kept"),
    ("poll", "Polling a running job"),
];

/// The desk's name, and the times of its operations while so many of its jobs run.
pub fn all<D: Desk>(jobs: usize) -> (&'static str, [Times; 3]) {
    let times = runtime().block_on(async {
        let desk = D::new();
        let app = desk.app();
        // With it the task by which jobs expire, where there is one, is there from the start.
        location(&app.clone().oneshot(new(KEPT)).await.unwrap());
        let mut running = Vec::with_capacity(jobs);
        for job in 0..jobs {
            let location = location(&app.clone().oneshot(new(ENDLESS)).await.unwrap());
            running.push(D::status_of(&location));
            if job % 64 == 0 {
                yield_now().await;
            }
        }
        for _ in 0..1000 {
            yield_now().await;
        }
        let [accepted, done] = accepts(&desk).await;
        [accepted, done, polls(&desk, &running).await]
    });
    (D::NAME, times)
}

/// Until the answers are there, and until the jobs have ended.
async fn accepts<D: Desk>(desk: &D) -> [Times; 2] {
    let app = desk.app();
    let alive_tasks = || Handle::current().metrics().num_alive_tasks();
    let (tasks, kept) = (alive_tasks(), desk.jobs());
    let mut times: [Times; 2] = Default::default();
    let (size, batches) = batches();
    for _ in 0..batches {
        let requests: Vec<_> = (0..size).map(|_| new(BRIEF)).collect();
        let mut answers = Vec::with_capacity(size);
        let start = Instant::now();
        for request in requests {
            answers.push(app.clone().oneshot(request).await.unwrap());
        }
        let accepted = start.elapsed();
        loop {
            yield_now().await;
            if alive_tasks() <= tasks {
                break;
            }
        }
        times[0].push(accepted, size);
        times[1].push(start.elapsed(), size);
        let locations: Vec<_> = answers.iter().map(location).collect();
        for location in &locations {
            let poll = request(Method::GET, &D::status_of(location));
            assert_eq!(app.clone().oneshot(poll).await.unwrap().status(), 200);
        }
        desk.forget(&locations, kept).await;
        assert_eq!(desk.jobs(), kept);
    }
    times
}

async fn polls<D: Desk>(desk: &D, running: &[String]) -> Times {
    let app = desk.app();
    gets(running, async |request| {
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_eq!(black_box(answer).status(), 200);
    })
    .await
}

/// A request for a new job.
fn new(path: &str) -> Request<Body> {
    let mut request = request(Method::POST, path);
    *request.body_mut() = Body::from(DATA);
    request
}
