//! Large outcomes on their way to a client: a chunk at a time, as the client takes them.

mod support;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    routing::post,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use support::{Server, app};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{Change, End, JobId, Offload, Outcome, Owner, Policy, Record, Status, Store};
use tower_offload_redis::RedisStore;

/// Many chunks, and more than the buffers of a connection hold.
const BYTES: usize = 40 << 20;

/// Made a block at a time: nothing else runs meanwhile.
fn long() -> Bytes {
    let mut bytes = Vec::with_capacity(BYTES);
    for block in 0..BYTES >> 12 {
        bytes.extend_from_slice(&[block as u8 ^ (block >> 8) as u8; 4096]);
    }
    bytes.into()
}

async fn offload(server: &Server) -> Offload {
    // A machine that is busy takes long to send a chunk.
    let store = RedisStore::builder(server.url()).timeout(Duration::from_secs(8));
    let store = store.connect().await.unwrap();
    let builder = Offload::builder("/jobs").store(store).max_outcome_bytes(64 << 20);
    builder.owner(|_| Some(Owner::from("everybody"))).build().unwrap()
}

fn app(offload: &Offload) -> Router {
    let layer = offload.layer(Policy::always().idempotent());
    Router::new()
        .route("/export", post(|| async { long() }).layer(layer))
        .nest_service("/jobs", offload.status())
}

fn keyed() -> http::request::Builder {
    Request::post("/export").header("idempotency-key", "\"k\"")
}

/// The path of a job that has ended with the whole export.
async fn exported(app: &Router) -> String {
    let accepted = app.clone().oneshot(keyed().body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(accepted.status(), 202);
    let job = accepted.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(app::ended(app, &job).await["status"], "succeeded");
    job
}

async fn get(app: &Router, path: &str) -> Response<Body> {
    app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
}

/// How many chunks Redis has been asked for.
fn chunks_read(server: &Server) -> usize {
    server.calls("lindex")
}

#[tokio::test]
async fn a_chunk_is_read_when_its_client_has_taken_those_before() {
    let server = Server::start(&[]);
    let app = app(&offload(&server).await);
    let job = exported(&app).await;
    let answer = get(&app, &format!("{job}/result")).await;
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    for chunks in 1..=(BYTES >> 20) {
        bytes.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        assert_eq!(chunks_read(&server), chunks);
    }
    // The head takes some of the first chunk, so there is one more.
    bytes.extend(body.collect().await.unwrap().to_bytes());
    assert!(bytes == long());
}

#[tokio::test]
async fn its_length_is_told_and_a_head_reads_the_first_chunk_alone() {
    let server = Server::start(&[]);
    let app = app(&offload(&server).await);
    let job = exported(&app).await;
    let result = format!("{job}/result");
    let answer = app::send(&app, "HEAD", &result).await;
    assert_eq!(answer.headers()["content-length"], BYTES.to_string());
    assert_eq!(chunks_read(&server), 1);
    assert_eq!(get(&app, &result).await.into_body().size_hint().exact(), Some(BYTES as u64));
}

/// Sends a request over a connection of its own, and reads the head of the answer, and what has come
/// with it of the body.
async fn connected(app: Router, request: &str) -> (TcpStream, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    client.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let end = loop {
        assert!(client.read_buf(&mut read).await.unwrap() > 0, "closed");
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let body = read.split_off(end + 4);
    assert!(read.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&read));
    (client, body)
}

#[tokio::test]
async fn one_that_is_removed_in_the_midst_is_not_taken_for_the_whole() {
    let server = Server::start(&[]);
    let app = app(&offload(&server).await);
    let job = exported(&app).await;
    let request = format!("GET {job}/result HTTP/1.1\r\nhost: a\r\n\r\n");
    let (mut client, mut body) = connected(app.clone(), &request).await;
    assert_eq!(app::send(&app, "DELETE", &format!("{job}/result")).await.status(), 204);
    // The connection ends before the length that was told.
    let _ = client.read_to_end(&mut body).await;
    assert!(body.len() < BYTES, "{} bytes", body.len());
    assert!(long().starts_with(&body));
}

#[tokio::test]
async fn whoever_sends_the_same_key_again_gets_it_in_chunks_too() {
    let server = Server::start(&[]);
    let app = app(&offload(&server).await);
    exported(&app).await;
    let again = app.clone().oneshot(keyed().body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((again.status(), chunks_read(&server)), (StatusCode::OK, 1));
    assert!(again.into_body().collect().await.unwrap().to_bytes() == long());
}

/// A body type whose errors are not ours to make, so that it is made of bytes alone.
type Boxed = UnsyncBoxBody<Bytes, Infallible>;

#[tokio::test]
async fn a_body_type_that_takes_no_pieces_gets_the_whole_with_its_trailers() {
    let server = Server::start(&[]);
    let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("\"sum\""))]);
    let sent = trailers.clone();
    let export = service_fn(move |_: Request<Boxed>| {
        let trailers = sent.clone();
        let body = Full::from(long()).with_trailers(async { Some(Ok(trailers)) });
        std::future::ready(Ok::<_, Infallible>(Response::new(body.boxed_unsync())))
    });
    let offload = offload(&server).await;
    let service = offload.layer(Policy::always().idempotent()).boxed().mounted().layer(export);
    let send = |request: http::request::Builder| {
        let empty = Full::<Bytes>::default().boxed_unsync();
        service.clone().oneshot(request.body(empty).unwrap())
    };
    let accepted = send(keyed()).await.unwrap();
    let job = accepted.headers()["location"].to_str().unwrap();
    let waits = Request::get(format!("{job}/status")).header("prefer", "wait=30");
    assert_eq!(send(waits).await.unwrap().status(), 200);
    for again in [keyed(), Request::get(format!("{job}/result"))] {
        let answer = send(again).await.unwrap();
        assert_eq!(answer.status(), 200);
        let whole = answer.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers(), Some(&trailers));
        assert!(whole.to_bytes() == long());
    }
}

/// The numbers of the connections of stores.
fn connections(server: &Server) -> Vec<String> {
    let clients = server.cli(&["client", "list"]);
    let stores = clients.lines().filter(|line| !line.contains("cmd=client|list"));
    stores.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// By default Redis closes a connection with subscriptions once it has more than 32 MiB to send on it. Many
/// readers of outcomes must not cause that, whether they wait for the answer or have disconnected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_that_many_read_at_once_hold_up_nothing_else() {
    let server = Server::start(&[]);
    // A lease that is soon over when it is not renewed, and the time that a busy machine needs.
    let builder = RedisStore::builder(server.url()).timeout(Duration::from_secs(8));
    let builder = builder.lease(Duration::from_secs(2));
    let store = Arc::new(builder.clone().connect().await.unwrap());
    // It would end the jobs of the first.
    let _other = builder.connect().await.unwrap();
    let new = || async {
        let record =
            Record::queued(JobId::random().unwrap(), SystemTime::now(), Duration::from_secs(600));
        store.insert(record.clone(), 0).await.unwrap();
        store.change(record.id(), Change::Start).await.unwrap();
        record.id()
    };
    let (ended, running) = (new().await, new().await);
    let head = Response::new(()).into_parts().0;
    // As much as is read at once.
    let outcome = Outcome::new(&head, &vec![b'x'; (1 << 20) - 1024], None);
    let change = Change::Finish(End::Response(outcome));
    store.change(ended, change).await.unwrap();
    let before = connections(&server);
    let poll = Arc::clone(&store);
    let polls = tokio::spawn(async move {
        loop {
            assert_eq!(poll.read(running, None).await.unwrap().unwrap().status(), Status::Running);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let (begun, mut rounds) = (Instant::now(), 0);
    // For as long as a few leases last.
    while rounds < 3 || begun.elapsed() < Duration::from_secs(5) {
        let mut fetches = JoinSet::new();
        for index in 0..96 {
            let fetch = store.fetch(ended, None);
            fetches.spawn(async move {
                match index % 3 {
                    // A client that goes away.
                    2 => drop(tokio::time::timeout(Duration::from_millis(5), fetch).await),
                    _ => drop(fetch.await.unwrap().unwrap().1.unwrap()),
                }
            });
        }
        while let Some(fetched) = fetches.join_next().await {
            fetched.unwrap();
        }
        rounds += 1;
    }
    assert_eq!(connections(&server), before, "none was closed");
    assert!(!polls.is_finished(), "{:?}", polls.await);
    polls.abort();
}
