//! apalis with its storage in memory: the axum handler pushes a task, a worker runs it in a task of
//! its own (`parallelize`, as its README does), and a map written by hand says how far it is. The
//! storage is a channel: it tells nothing of what it has been given, and has neither limits nor an
//! end of what is kept here.
//!
//! Its `MemoryStorage` has no second handle to push by, so the sink is made first and shared
//! (apalis-core, src/backend/impls/memory.rs).

use std::sync::{Arc, Mutex};

use apalis::prelude::{
    Data, MemorySink, MemoryStorage, MemoryStorageError, Monitor, ParallelizeExt, RandomId, Task,
    TaskBuilder, TaskId, WorkerBuilder,
};
use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, channel::mpsc};
use http::StatusCode;
use tokio::task::JoinHandle;

use super::{
    BRIEF, Desk, ENDLESS, KEPT, brief,
    by_hand::{Job, Jobs, with},
    endless,
};

/// What the worker is given.
#[derive(Debug, Clone)]
enum Work {
    Brief(Bytes),
    Endless(Bytes),
}

#[derive(Clone)]
struct Shared {
    sink: MemorySink<Work>,
    jobs: Jobs<TaskId>,
}

/// Takes on a job.
async fn accept(Shared { mut sink, jobs }: Shared, work: Work) -> Response {
    let id = TaskId::from_string(RandomId::default());
    let job = Job::new(id.to_string());
    let answer = job.accepted();
    with(&jobs, |jobs| jobs.insert(id.clone(), job));
    match sink.send(TaskBuilder::new(work).task_id(id).build()).await {
        Ok(()) => answer,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// What the worker does.
async fn run(work: Work, id: TaskId, jobs: Data<Jobs<TaskId>>) {
    let result = match work {
        Work::Brief(body) => brief(body).await,
        Work::Endless(body) => endless(body).await,
    };
    with(&jobs, |jobs| jobs.get_mut(&id).map(|job| job.finish(result)));
}

/// `GET /jobs/{id}`.
async fn status(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let job = with(&shared.jobs, |jobs| jobs.get(&TaskId::from_string(id)).cloned());
    job.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |job| Json(job).into_response())
}

/// apalis, with a worker in a task of its own.
pub struct Apalis {
    shared: Shared,
    worker: JoinHandle<()>,
}

impl Desk for Apalis {
    const NAME: &'static str = "apalis in memory";
    type App = Router;

    fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded::<Task<Work>>();
        let sender = sender.sink_map_err(MemoryStorageError::from);
        let sink = MemorySink::new(Arc::new(futures::lock::Mutex::new(Box::new(sender))));
        let shared = Shared { sink, jobs: Jobs::default() };
        let worker = shared.clone();
        // The monitor could make the worker again; there is only one receiver.
        let receiver = Mutex::new(Some(receiver.boxed()));
        let monitor = Monitor::new().register(move |_| {
            let receiver = receiver.lock().ok().and_then(|mut receiver| receiver.take());
            let receiver = receiver.expect("the worker has ended");
            WorkerBuilder::new("reports")
                .backend(MemoryStorage::new_with(worker.sink.clone(), receiver))
                .parallelize(tokio::spawn)
                .data(Arc::clone(&worker.jobs))
                .build(run)
        });
        Self { shared, worker: tokio::spawn(async { monitor.run().await.expect("apalis failed") }) }
    }

    fn app(&self) -> Router {
        let brief = |State(shared): State<_>, body| accept(shared, Work::Brief(body));
        let endless = |State(shared): State<_>, body| accept(shared, Work::Endless(body));
        Router::new()
            .route(BRIEF, post(brief))
            .route(KEPT, post(brief))
            .route(ENDLESS, post(endless))
            .route("/jobs/{id}", get(status))
            .with_state(self.shared.clone())
    }

    fn status_of(location: &str) -> String {
        location.to_owned()
    }

    fn jobs(&self) -> usize {
        with(&self.shared.jobs, |jobs| jobs.len())
    }

    async fn forget(&self, locations: &[String], _: usize) {
        let ids = locations.iter().filter_map(|location| location.rsplit('/').next());
        let ids = ids.map(TaskId::from_string);
        with(&self.shared.jobs, |jobs| ids.for_each(|id| drop(jobs.remove(&id))));
    }
}

impl Drop for Apalis {
    fn drop(&mut self) {
        self.worker.abort();
    }
}
