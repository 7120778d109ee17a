//! hyper without a router: HTTP/1.1 and HTTP/2 in clear text on one port, and `tower-offload` in
//! front of one `async fn`.
//!
//! ```text
//! cargo run --example hyper_server                      # ADDR=127.0.0.1:3001
//! ```
//!
//! Then, with any file:
//!
//! ```text
//! # Quick enough: the handler's own 200.
//! curl -i --data-binary @file http://127.0.0.1:3001/digest
//!
//! # It takes 5 s more: 202 after 250 ms, with `Location: /jobs/{id}`.
//! curl -i --data-binary @file 'http://127.0.0.1:3001/digest?pause_ms=5000'
//! curl -iL http://127.0.0.1:3001/jobs/{id}              # follow it to the answer
//!
//! # A slow upload is no slow handler: the budget counts from its end.
//! curl -i --limit-rate 1M --data-binary @file http://127.0.0.1:3001/digest
//!
//! curl -i --http2-prior-knowledge --data-binary @file http://127.0.0.1:3001/digest
//! ```
//!
//! Ctrl-C while a job runs: the server goes on until the job is done (for 30 s at most) and its
//! result could be fetched; its status URL answers until then.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder};
use tower_offload::{Offload, Policy};

/// What answers within this time is answered as if there were no layer.
const BUDGET: Duration = Duration::from_millis(250);

/// No pretended slowness lasts longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How long Ctrl-C waits for jobs that still run, and then for answers that are still being sent.
const DRAIN: Duration = Duration::from_secs(30);

/// How long results can be fetched then. Who polls does so once a second, as `Retry-After` says.
const LINGER: Duration = Duration::from_secs(2);

/// The layer has to wrap a request's body and give it back as the same type, which hyper's
/// `Incoming` does not allow; so it is boxed in front of the layer.
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

type Answer = Response<Full<Bytes>>;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let offload = Offload::new("/jobs");

    let service = ServiceBuilder::new()
        // A named function: a closure's types would not be general enough for a spawned connection.
        .map_request(boxed)
        // `boxed`, since the future of an `async fn` cannot be moved once it was polled; `mounted`,
        // since there is no router to mount the status service in.
        .layer(offload.layer(Policy::after(BUDGET)).boxed().mounted())
        .service_fn(route);

    let addr = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3001".to_owned());
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);

    // While jobs are drained, connections are still taken, so that status URLs are answered.
    let mut drained = std::pin::pin!(async {
        tokio::signal::ctrl_c().await.expect("a handler for Ctrl-C can be installed");
        println!("finishing jobs, for {} s at most", DRAIN.as_secs());
        offload.drain(DRAIN).linger(LINGER).await
    });
    let closing = CancellationToken::new();
    let mut connections = JoinSet::new();
    let drained = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, service.clone(), closing.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, say: let some connections end first.
                    eprintln!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            drained = &mut drained => break drained,
        }
    };
    println!("{} finished, {} interrupted", drained.finished(), drained.interrupted());

    drop(listener);
    closing.cancel();
    let closed = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, closed).await;
    Ok(())
}

/// Serves one connection until it ends or, once the server is `closing`, until what has begun is
/// answered.
async fn serve<S>(stream: TcpStream, service: S, closing: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Answer, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let server = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(service);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        eprintln!("connection: {error}");
    }
}

fn boxed(request: Request<Incoming>) -> Request<Body> {
    request.map(BodyExt::boxed_unsync)
}

/// The routes. Nothing from here on knows of jobs.
async fn route(request: Request<Body>) -> Result<Answer, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::POST, "/digest") => digest(request).await,
        (_, "/digest") => text(StatusCode::METHOD_NOT_ALLOWED, "POST something\n"),
        _ => text(StatusCode::NOT_FOUND, "POST /digest is all there is\n"),
    })
}

/// `POST /digest?pause_ms=N`: how many bytes the upload has, and their Adler-32 checksum, after N
/// milliseconds more.
async fn digest(request: Request<Body>) -> Answer {
    let pause = pause(request.uri().query().unwrap_or_default());
    let mut body = request.into_body();

    // Frame by frame, so that an upload of any size takes the memory of one frame.
    let (mut bytes, mut adler) = (0, Adler32::default());
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => {
                bytes += data.len();
                adler.update(&data);
            }
            // Trailers count for nothing here.
            Ok(Err(_)) => {}
            Err(_) => return text(StatusCode::BAD_REQUEST, "the upload broke off\n"),
        }
    }

    // Stands for a database that is slow today.
    tokio::time::sleep(pause).await;

    let json = format!("{{\"bytes\":{bytes},\"adler32\":\"{:08x}\"}}\n", adler.value());
    answer(StatusCode::OK, "application/json", json)
}

fn pause(query: &str) -> Duration {
    let millis = query.split('&').find_map(|pair| pair.strip_prefix("pause_ms="));
    let millis = millis.and_then(|millis| millis.parse().ok()).unwrap_or(0);
    Duration::from_millis(millis).min(LONGEST_PAUSE)
}

/// The checksum of RFC 1950, section 8: `zlib.adler32` in Python.
struct Adler32(u32, u32);

impl Default for Adler32 {
    fn default() -> Self {
        Self(1, 0)
    }
}

impl Adler32 {
    fn update(&mut self, data: &[u8]) {
        for byte in data {
            self.0 = (self.0 + u32::from(*byte)) % 65521;
            self.1 = (self.1 + self.0) % 65521;
        }
    }

    fn value(&self) -> u32 {
        self.1 << 16 | self.0
    }
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    answer(status, "text/plain", text)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
