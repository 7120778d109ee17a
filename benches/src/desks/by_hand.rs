//! What is written by hand today: axum, `tokio::spawn`, and a `Mutex<HashMap>` of jobs with a status
//! route. It has no limits, no expiry and no cancellation, keeps a result without its status and
//! headers, and tells a panic by a job that runs for ever.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Serialize;
use uuid::Uuid;

use super::{BRIEF, Desk, ENDLESS, KEPT, brief, endless};

/// The jobs, by their ids.
pub(super) type Jobs<Id> = Arc<Mutex<HashMap<Id, Job>>>;

/// A job as it is kept: its status document, and its result.
#[derive(Clone, Serialize)]
pub(super) struct Job {
    job_id: String,
    status: &'static str,
    created_at: u64,
    finished_at: Option<u64>,
    #[serde(skip)]
    result: Option<Bytes>,
}

impl Job {
    pub(super) fn new(id: String) -> Self {
        let created_at = unix_time();
        Self { job_id: id, status: "running", created_at, finished_at: None, result: None }
    }

    pub(super) fn finish(&mut self, result: Bytes) {
        self.status = "succeeded";
        self.finished_at = Some(unix_time());
        self.result = Some(result);
    }

    /// The 202 of a new job.
    pub(super) fn accepted(&self) -> Response {
        let location = format!("/jobs/{}", self.job_id);
        (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(self)).into_response()
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Does something to the jobs, under their lock.
pub(super) fn with<Id, T>(jobs: &Jobs<Id>, change: impl FnOnce(&mut HashMap<Id, Job>) -> T) -> T {
    change(&mut jobs.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Takes on a job for `handler`.
fn accept<F>(jobs: Jobs<Uuid>, handler: F) -> Response
where
    F: Future<Output = Bytes> + Send + 'static,
{
    let id = Uuid::new_v4();
    let job = Job::new(id.to_string());
    let answer = job.accepted();
    with(&jobs, |jobs| jobs.insert(id, job));
    tokio::spawn(async move {
        let result = handler.await;
        with(&jobs, |jobs| jobs.get_mut(&id).map(|job| job.finish(result)));
    });
    answer
}

/// `GET /jobs/{id}`.
async fn status(State(jobs): State<Jobs<Uuid>>, Path(id): Path<Uuid>) -> Response {
    // Cloned, so that nothing is serialized under the lock.
    let job = with(&jobs, |jobs| jobs.get(&id).cloned());
    job.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |job| Json(job).into_response())
}

/// Written by hand.
pub struct ByHand {
    jobs: Jobs<Uuid>,
}

impl Desk for ByHand {
    const NAME: &'static str = "by hand";
    type App = Router;

    fn new() -> Self {
        Self { jobs: Jobs::default() }
    }

    fn app(&self) -> Router {
        let brief = |State(jobs): State<_>, body| async { accept(jobs, brief(body)) };
        let endless = |State(jobs): State<_>, body| async { accept(jobs, endless(body)) };
        Router::new()
            .route(BRIEF, post(brief))
            .route(KEPT, post(brief))
            .route(ENDLESS, post(endless))
            .route("/jobs/{id}", get(status))
            .with_state(Arc::clone(&self.jobs))
    }

    fn status_of(location: &str) -> String {
        location.to_owned()
    }

    fn jobs(&self) -> usize {
        with(&self.jobs, |jobs| jobs.len())
    }

    async fn forget(&self, locations: &[String], _: usize) {
        let ids = locations.iter().filter_map(|location| location.rsplit('/').next()?.parse().ok());
        with(&self.jobs, |jobs| ids.for_each(|id| drop(jobs.remove(&id))));
    }
}
