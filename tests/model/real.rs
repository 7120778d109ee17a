//! The crate itself, driven without sockets: one desk, a route of each kind, handlers that do as they
//! are told, and requests in tasks of their own.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, yield_now},
};
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_offload::{Drained, Job, MemoryStore, Offload, Owner as Name, Policy};

use super::expected::{self, BUDGET, LIMIT, MAX_RUNNING, Owner, Route, Sent, TTL, To, Url, WAIT};

pub const PANIC: &str = "as the model wants it";
pub const MAX_OUTCOME: usize = 4096;

/// More turns than anything takes that is not waiting for time to go by.
const TURNS: usize = 40;

#[derive(Debug)]
pub enum Command {
    Respond(u16),
    Panic,
    Progress(u8),
}

/// A handler that has begun.
pub struct Call {
    commands: mpsc::UnboundedSender<Command>,
    pub job: Option<Job>,
}

impl Call {
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }
}

type Calls = Arc<Mutex<BTreeMap<usize, Call>>>;
type Service = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub struct Real {
    pub offload: Offload,
    pub calls: Calls,
    services: Vec<Service>,
    /// The ids of the jobs that somebody was told of, by the model's numbers.
    pub ids: BTreeMap<usize, String>,
    tasks: BTreeMap<To, JoinHandle<Answer>>,
    requests: usize,
    polls: usize,
    drain: Option<JoinHandle<Drained>>,
}

/// The handler of all routes.
async fn handle(calls: Calls, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let number = request.headers()["x-number"].to_str().unwrap().parse().unwrap();
    request.into_body().collect().await.unwrap();
    let (commands, mut told) = mpsc::unbounded_channel();
    let job = Job::current();
    let before = calls.lock().unwrap().insert(number, Call { commands, job: job.clone() });
    assert!(before.is_none(), "request {number} was run twice");
    drop(before);
    loop {
        match told.recv().await {
            Some(Command::Respond(status)) => return Ok(response(number, status)),
            Some(Command::Panic) => panic!("{PANIC}"),
            Some(Command::Progress(percent)) => {
                if let Some(job) = &job {
                    job.progress(f64::from(percent) / 100.0, "");
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// What the handler of this request responds.
pub fn response<B: From<String>>(number: usize, status: u16) -> Response<B> {
    Response::builder().status(status).body(format!("done {number}").into()).unwrap()
}

impl Real {
    pub fn new() -> Self {
        let millis = Duration::from_millis;
        let offload = Offload::builder("/jobs")
            .store(MemoryStore::new(64 << 20))
            .owner(|request| request.headers.get("x-owner").cloned().map(Name::from))
            .max_running(MAX_RUNNING)
            .max_outcome_bytes(MAX_OUTCOME)
            .max_run_time(millis(LIMIT))
            .ttl(millis(TTL))
            .progress_interval(millis(1))
            .build()
            .unwrap();
        let calls = Calls::default();
        let after = Policy::after(millis(BUDGET));
        let services = Route::ALL.map(|route| {
            let policy = match route {
                Route::After => after.clone(),
                Route::Finished => after.clone().finish_on_disconnect(),
                Route::Always => Policy::always(),
                Route::Queued => Policy::always(),
                Route::Keyed => after.clone().idempotent(),
            };
            let policy = match route.places() {
                (_, 0) => policy,
                (concurrency, queue) => policy.concurrency(concurrency).queue(queue),
            };
            let calls = Arc::clone(&calls);
            let service = service_fn(move |request| handle(Arc::clone(&calls), request));
            let layer = offload.layer(policy.name(route.name())).boxed();
            BoxCloneSyncService::new(layer.layer(service))
        });
        Self {
            offload,
            calls,
            services: services.into(),
            ids: BTreeMap::new(),
            tasks: BTreeMap::new(),
            requests: 0,
            polls: 0,
            drain: None,
        }
    }

    /// Lets everything happen that waits for nothing.
    pub async fn settle(&self) {
        for _ in 0..TURNS {
            yield_now().await;
        }
    }

    pub fn send(&mut self, sent: Sent) {
        let mut request = Request::post(format!("/{}", sent.route.name()))
            .header("x-number", self.requests.to_string());
        if sent.route == Route::Keyed {
            request = request.header("idempotency-key", format!("\"key {}\"", sent.key));
        }
        if sent.asked {
            request = request.header("prefer", "respond-async");
        }
        let body = if sent.body == 0 { Body::empty() } else { Body::from("a body") };
        let request = owned(request, sent.owner).body(body).unwrap();
        let service = self.services[sent.route as usize].clone();
        let to = To::Sender(self.requests);
        self.requests += 1;
        let answer = async move { read(service.oneshot(request).await.unwrap()).await };
        self.tasks.insert(to, tokio::spawn(answer));
    }

    /// The client of this request leaves.
    pub fn leave(&mut self, number: usize) {
        self.tasks.remove(&To::Sender(number)).expect("it waits").abort();
    }

    pub fn command(&self, number: usize, command: Command) {
        self.calls.lock().unwrap()[&number].commands.send(command).unwrap();
    }

    pub fn poll(&mut self, method: &str, job: usize, url: Url, owner: Owner, waits: bool) {
        let end = match url {
            Url::Job => "",
            Url::Status => "/status",
            Url::Result => "/result",
        };
        let path = format!("/jobs/{}{end}", self.ids[&job]);
        let mut request = owned(Request::builder().method(method).uri(path), owner);
        if waits {
            request = request.header("prefer", format!("wait={}", WAIT / 1000));
        }
        let request = request.body(()).unwrap();
        let status = self.offload.status();
        let to = To::Poller(self.polls);
        self.polls += 1;
        let answer = async move { read(status.oneshot(request).await.unwrap()).await };
        self.tasks.insert(to, tokio::spawn(answer));
    }

    pub fn drain(&mut self) {
        let drain = self.offload.drain(Duration::from_millis(expected::DEADLINE));
        self.drain = Some(tokio::spawn(drain));
    }

    pub async fn report(&mut self) -> Option<Drained> {
        let ended = self.drain.take_if(|drain| drain.is_finished())?;
        Some(ended.await.unwrap())
    }

    /// The answers that have come; `None` for one whose task has panicked.
    pub async fn answers(&mut self) -> BTreeMap<To, Option<Answer>> {
        let mut answers = BTreeMap::new();
        let done = |to: &To| self.tasks[to].is_finished();
        let ended: Vec<To> = self.tasks.keys().copied().filter(done).collect();
        for to in ended {
            let answer = self.tasks.remove(&to).expect("it was there").await;
            answers.insert(to, answer.ok());
        }
        answers
    }
}

fn owned(request: http::request::Builder, owner: Owner) -> http::request::Builder {
    match owner {
        Some(owner) => request.header("x-owner", format!("owner {owner}")),
        None => request,
    }
}

async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}
