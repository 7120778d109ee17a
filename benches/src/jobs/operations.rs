//! The operations on jobs, through the layer and the status service, without a router.

use std::{
    convert::Infallible,
    hint::black_box,
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::{runtime::Handle, task::yield_now};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::{MemoryStore, Offload, Policy, StatusService};

use super::{batches, gets, location, request};
use crate::{
    desks::{roomy, roomy_store},
    measure::{Dice, Times},
    request::post,
    runtime,
    service::{Handler, Takes},
};

/// How long the jobs are kept whose expiry is measured.
const TTL: Duration = Duration::from_millis(100);

/// Each operation's name, and its times with so many jobs in the store.
pub fn all(jobs: usize) -> Vec<(&'static str, Times)> {
    let mut all = vec![];
    runtime().block_on(async {
        let desk = Desk::new();
        let running = desk.running(jobs).await;
        all.push(("poll of a running job", desk.polls(&running).await));
        all.push(("cancel, and the end of its task", desk.cancels(running).await));
    });
    runtime().block_on(async {
        let desk = Desk::new();
        let finished = desk.finished(jobs, 1 << 10).await;
        let (accepted, expired) = desk.accepts().await;
        let large = desk.finished(jobs.min(64), 1 << 20).await;
        all.insert(0, ("accept: 202, run, outcome kept", accepted));
        all.insert(2, ("fetch of 1 KiB", desk.fetches(&finished, 1 << 10).await));
        all.insert(3, ("fetch of 1 MiB", desk.fetches(&large, 1 << 20).await));
        all.push(("expiry", expired));
    });
    all
}

struct Desk {
    store: MemoryStore,
    offload: Offload,
    status: StatusService,
}

impl Desk {
    fn new() -> Self {
        let store = roomy_store();
        let offload = roomy(&store);
        let status = offload.status();
        Self { store, offload, status }
    }

    /// So many jobs that run for ever.
    async fn running(&self, jobs: usize) -> Vec<String> {
        let endless = service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        self.made(jobs, endless).await
    }

    /// So many jobs with an outcome of so many bytes.
    async fn finished(&self, jobs: usize, bytes: usize) -> Vec<String> {
        let data = Bytes::from(vec![b'x'; bytes]);
        let answer = service_fn(move |_: Request<Body>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from(data.clone()))))
        });
        self.made(jobs, answer).await
    }

    async fn made<S>(&self, jobs: usize, handler: S) -> Vec<String>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + Unpin + 'static,
    {
        let service = self.offload.layer(Policy::always()).layer(handler);
        let mut locations = Vec::with_capacity(jobs);
        for job in 0..jobs {
            locations.push(location(&service.clone().oneshot(post()).await.unwrap()));
            if job % 64 == 0 {
                yield_now().await;
            }
        }
        settle().await;
        locations
    }

    /// The whole way of a job; and what its expiry takes.
    async fn accepts(&self) -> (Times, Times) {
        let policy = Policy::always().ttl(TTL);
        let service = self.offload.layer(policy).layer(Handler::<32>::new(Takes::OnePending));
        let (mut accepted, mut expired) = <(Times, Times)>::default();
        let kept = self.store.bytes();
        let tasks = alive_tasks();
        let (size, batches) = batches();
        for _ in 0..batches {
            let requests: Vec<_> = (0..size * 4).map(|_| post()).collect();
            let start = Instant::now();
            for request in requests {
                let answer = service.clone().oneshot(request).await.unwrap();
                assert_eq!(black_box(answer).status(), 202);
                yield_now().await;
            }
            while alive_tasks() > tasks {
                yield_now().await;
            }
            accepted.push(start.elapsed(), size * 4);
            // The runtime stands still until all of them are due, and is measured then.
            std::thread::sleep(TTL + Duration::from_millis(5));
            let start = Instant::now();
            while self.store.bytes() > kept {
                yield_now().await;
            }
            expired.push(start.elapsed(), size * 4);
            // Memory that is given back in another thread now is no part of the next batch.
            tokio::time::sleep(TTL / 4).await;
        }
        (accepted, expired)
    }

    async fn polls(&self, running: &[String]) -> Times {
        let urls = running.iter().map(|location| format!("{location}/status")).collect::<Vec<_>>();
        self.gets(&urls, false).await
    }

    async fn fetches(&self, finished: &[String], bytes: usize) -> Times {
        let urls: Vec<_> = finished.iter().map(|location| format!("{location}/result")).collect();
        assert_eq!(self.get(request(Method::GET, &urls[0])).await.2, bytes);
        self.gets(&urls, true).await
    }

    /// Gets random ones of these, which are replays or not.
    async fn gets(&self, urls: &[String], replays: bool) -> Times {
        gets(urls, async |request| {
            let (status, is_replay, bytes) = self.get(request).await;
            assert_eq!((status, is_replay), (200, replays));
            black_box(bytes);
        })
        .await
    }

    /// The answer's status, whether it is a replay, and its length.
    async fn get(&self, request: Request<Body>) -> (u16, bool, usize) {
        let response = self.status.clone().oneshot(request).await.unwrap();
        let (head, mut body) = response.into_parts();
        let mut bytes = 0;
        while let Some(frame) =
            std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        (head.status.as_u16(), head.headers.contains_key("asyncresult"), bytes)
    }

    async fn cancels(&self, mut running: Vec<String>) -> Times {
        let (size, batches) = batches();
        let batches = batches.min(running.len() / size);
        Dice::default().shuffle(&mut running, size * batches);
        let mut times = Times::default();
        // The first starts the task by which they expire.
        let mut tasks = alive_tasks() + 1;
        for batch in running.chunks(size).take(batches) {
            let requests: Vec<_> = batch.iter().map(|url| request(Method::DELETE, url)).collect();
            tasks -= size;
            let start = Instant::now();
            for request in requests {
                let answer = self.status.clone().oneshot(request).await.unwrap();
                assert_eq!(black_box(answer).status(), 200);
            }
            while alive_tasks() > tasks {
                yield_now().await;
            }
            times.push(start.elapsed(), size);
        }
        times
    }
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Lets tasks get as far as they do.
async fn settle() {
    for _ in 0..1000 {
        yield_now().await;
    }
}
