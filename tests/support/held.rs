//! A desk of jobs that end when the test says so; asked in this process, or over a socket.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_offload::{JobId, MemoryStore, Offload, OffloadBuilder, Policy};

use crate::support::{Answer, Client, Server};

type Handler = BoxCloneSyncService<Request<Body>, Response<Full<Bytes>>, Infallible>;
type Responses = Arc<Mutex<HashMap<String, oneshot::Receiver<Response<Full<Bytes>>>>>>;

/// The desk, its store, and the requests whose response is still to be given.
#[derive(Clone)]
pub struct Desk {
    pub offload: Offload,
    pub store: MemoryStore,
    handler: Handler,
    responses: Responses,
    socket: Option<(Client, Arc<Server>)>,
}

/// A job that was promised to the test.
pub struct Held {
    pub path: String,
    pub id: JobId,
    response: oneshot::Sender<Response<Full<Bytes>>>,
}

impl Desk {
    pub fn new(builder: OffloadBuilder, store: MemoryStore, policy: Policy) -> Self {
        let offload = builder.store(store.clone()).build().unwrap();
        let responses = Responses::default();
        let given = Arc::clone(&responses);
        let held = move |request: Request<Body>| {
            let response = given.lock().unwrap().remove(&key(&request)).unwrap();
            async move {
                match response.await {
                    Ok(response) => Ok::<_, Infallible>(response),
                    // The test has let go of it: a handler that never answers.
                    Err(_) => std::future::pending().await,
                }
            }
        };
        let handler = offload.layer(policy).boxed().layer(tower::service_fn(held));
        let handler = BoxCloneSyncService::new(handler);
        Self { offload, store, handler, responses, socket: None }
    }

    /// The same desk, asked over a socket.
    pub async fn over(&self, client: Client) -> Self {
        let app = Router::new()
            .route_service("/held", self.handler.clone())
            .nest_service("/jobs", self.offload.status());
        let socket = Some((client, Arc::new(Server::axum(app).await)));
        Self { socket, ..self.clone() }
    }

    /// What answers a request, and what the handler makes it answer.
    pub async fn start(&self) -> (Answer, oneshot::Sender<Response<Full<Bytes>>>) {
        let (response, receiver) = oneshot::channel();
        let key = JobId::random().unwrap().to_string();
        self.responses.lock().unwrap().insert(key.clone(), receiver);
        (self.send("POST", "/held", &[("x-key", &key)]).await, response)
    }

    /// A job that is accepted at once.
    pub async fn hold(&self) -> Held {
        let (accepted, response) = self.start().await;
        let path = accepted.location().to_owned();
        let id = path.rsplit('/').next().unwrap().parse().unwrap();
        Held { path, id, response }
    }

    pub async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[]).await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = match &self.socket {
            Some((_, server)) => server.request(method, path),
            None => Request::builder().method(method).uri(path),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some((client, _)) = &self.socket {
            return client.send(request, "").await;
        }
        let request = request.body(Body::empty()).unwrap();
        if path.starts_with("/jobs") {
            let Ok(response) = self.offload.status().oneshot(request).await;
            read(response).await
        } else {
            let Ok(response) = self.handler.clone().oneshot(request).await;
            read(response).await
        }
    }

    /// Waits for the end of this job.
    pub async fn ended(&self, job: &str) {
        while self.send("GET", job, &[("prefer", "wait=30")]).await.status == 202 {}
    }
}

impl Held {
    /// Lets the handler answer, if it is there to.
    pub fn finish(self, response: Response<Full<Bytes>>) {
        let _ = self.response.send(response);
    }

    pub fn at(&self, resource: &str) -> String {
        format!("{}/{resource}", self.path)
    }
}

fn key(request: &Request<Body>) -> String {
    request.headers()["x-key"].to_str().unwrap().to_owned()
}

async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
}
