//! What the tests share: a server on a free port of loopback that stops with its test, and a client.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod gated;

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A server; it is stopped when this is dropped.
pub struct Server {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves `app` by `axum::serve`.
    pub async fn axum(app: Router) -> Self {
        Self::by(async move |listener| axum::serve(listener, app).await.unwrap()).await
    }

    /// Serves by what `serve` makes of a listener.
    pub async fn by<Fut>(serve: impl FnOnce(TcpListener) -> Fut) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { addr, task: tokio::spawn(serve(listener)) }
    }

    /// Serves whatever `connection` makes of each connection.
    pub async fn connections<F, Fut>(connection: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(stream));
            }
        });
        Self { addr, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// A request to this server, for [`Client::send`].
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(self.url(path))
    }

    /// A raw connection to this server.
    pub async fn connect(&self) -> Raw {
        Raw(TcpStream::connect(self.addr).await.unwrap())
    }
}

/// A raw connection, for what no client would send.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one response: its head as text, and its body by `content-length` (none without one).
    pub async fn read_response(&mut self) -> (String, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
        self.0.read_exact(&mut body).await.unwrap();
        (head, body)
    }

    /// Reads to the end of the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes).await;
        bytes
    }
}

/// An answer that is there in whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.find_header(name).unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }

    pub fn find_header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:#?}"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The path of the job that this 202 names.
    pub fn location(&self) -> &str {
        assert_eq!(self.status, 202, "{self:#?}");
        self.header("location")
    }
}

/// A client for HTTP/1.1 or HTTP/2, with a pool of connections.
#[derive(Clone)]
pub struct Client(HyperClient<HttpConnector, Full<Bytes>>);

impl Client {
    pub fn http1() -> Self {
        Self(HyperClient::builder(TokioExecutor::new()).build_http())
    }

    /// HTTP/2 with prior knowledge.
    pub fn http2() -> Self {
        Self(HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http())
    }

    pub async fn send(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Answer {
        let request = request.body(Full::new(body.into())).unwrap();
        read(self.0.request(request).await.unwrap()).await
    }

    pub async fn get(&self, server: &Server, path: &str) -> Answer {
        self.send(server.request("GET", path), "").await
    }

    pub async fn post(&self, server: &Server, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(server.request("POST", path), body).await
    }

    pub async fn delete(&self, server: &Server, path: &str) -> Answer {
        self.send(server.request("DELETE", path), "").await
    }

    /// Waits for the job at `path` to end, as long as it takes, and gives its status document.
    pub async fn ended(&self, server: &Server, path: &str) -> serde_json::Value {
        loop {
            let request =
                server.request("GET", &format!("{path}/status")).header("prefer", "wait=30");
            let answer = self.send(request, "").await;
            assert_eq!(answer.status, 200, "{answer:#?}");
            let document = answer.json();
            if !matches!(document["status"].as_str(), Some("queued" | "running")) {
                return document;
            }
        }
    }
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

/// Bounds what must happen soon, so that a test that hangs says where.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("it did not happen within 20 s: {what}"))
}
