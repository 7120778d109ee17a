//! Clients that mean harm, and handlers that overdo it: what a guess at an id is worth, what of a
//! request comes back, and that the process stays within its limits and answers others.
//!
//! One test at a time: the allocator counts for the process, and descriptors are few.

mod support;

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{join_all, try_join_all},
    stream,
};
use http::{HeaderValue, StatusCode};
use peak_alloc::PeakAlloc;
use support::{
    Answer, Client, Raw, Server,
    gated::{Call, Calls, gated},
    soon,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard, watch},
    task::JoinSet,
};
use tower_offload::{Job, Offload, OffloadBuilder, Owner, Policy};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by each test here.
static ALONE: Mutex<()> = Mutex::const_new(());

const MIB: usize = 1 << 20;

/// A healthy client's: it must have its answers, whatever the others do.
async fn is_served(client: &Client, server: &Server, job: &str) {
    let answer = soon("a healthy client is answered", client.get(server, job)).await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    let answer = soon("a healthy client is answered", client.get(server, "/hello")).await;
    assert_eq!(answer.text(), "hello");
}

/// An app over sockets with a job that runs all the while.
struct Desk {
    server: Server,
    offload: Offload,
    calls: Calls,
    healthy: Client,
    job: String,
    _call: Call,
    _alone: MutexGuard<'static, ()>,
}

impl Desk {
    async fn new(builder: OffloadBuilder, more: impl FnOnce(&Offload) -> Router) -> Self {
        let alone = ALONE.lock().await;
        let offload = builder.build().unwrap();
        let (gated, mut calls) = gated();
        let app = Router::new()
            .route("/held", gated.route().layer(offload.layer(Policy::always().name("held"))))
            .route("/hello", get(async || "hello"))
            .merge(more(&offload))
            .nest_service("/jobs", offload.status());
        let server = Server::axum(app).await;
        let healthy = Client::http1();
        let job = healthy.post(&server, "/held", "").await.location().to_owned();
        let call = calls.next().await;
        Self { server, offload, calls, healthy, job, _call: call, _alone: alone }
    }

    async fn is_served(&self) {
        is_served(&self.healthy, &self.server, &self.job).await;
    }

    /// A job that runs until its call says more.
    async fn hold(&mut self) -> (String, Call) {
        let accepted = self.healthy.post(&self.server, "/held", "").await;
        (accepted.location().to_owned(), self.calls.next().await)
    }
}

fn builder() -> OffloadBuilder {
    Offload::builder("/jobs")
}

fn nothing_more(_: &Offload) -> Router {
    Router::new()
}

/// What is taken at most while this runs, beyond what was taken before.
async fn at_most<T>(future: impl Future<Output = T>) -> (T, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let value = future.await;
    (value, MEMORY.peak_usage().saturating_sub(before))
}

// ------------------------------------------------------------------------------------------ ids

/// So many that a bit which is not random shows: the share of ones has a deviation of 0.8%.
const IDS: usize = 4000;

/// More than six deviations.
const BALANCED: std::ops::Range<f64> = 0.45..0.55;

fn balanced(what: &str, ids: impl Iterator<Item = u128> + Clone) {
    let all = ids.clone().count() as f64;
    for bit in 0..128 {
        let ones = ids.clone().filter(|id| id >> bit & 1 == 1).count() as f64;
        assert!(BALANCED.contains(&(ones / all)), "{what}: bit {bit} is set in {ones} of {all}");
    }
}

#[tokio::test]
async fn ids_are_128_bits_that_tell_nothing_of_one_another() {
    let quick = |offload: &Offload| {
        let layer = offload.layer(Policy::always());
        Router::new().route("/quick", post(async || "").layer(layer))
    };
    let desk = Desk::new(builder().max_running(IDS), quick).await;
    let client = Client::http2();
    let sent = stream::iter(0..IDS).map(async |_| {
        let accepted = client.post(&desk.server, "/quick", "").await;
        let id = accepted.location().strip_prefix("/jobs/").unwrap().to_owned();
        assert_eq!(id.len(), 32);
        u128::from_str_radix(&id, 16).unwrap()
    });
    let ids: Vec<u128> = sent.buffered(50).collect().await;
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), IDS, "an id was given twice");
    balanced("the ids", ids.iter().copied());
    // Nor is there anything to be learned from the one before: no counter, no clock, no xorshift's
    // next state that differs in few bits.
    balanced("what changes", ids.windows(2).map(|pair| pair[0] ^ pair[1]));
    balanced("differences", ids.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
    let rising = ids.windows(2).filter(|pair| pair[0] < pair[1]).count() as f64 / IDS as f64;
    assert!(BALANCED.contains(&rising), "{rising} of the ids are larger than the one before");
}

#[tokio::test]
async fn whoever_has_127_bits_of_an_id_has_nothing() {
    let desk = Desk::new(builder(), nothing_more).await;
    let client = Client::http2();
    let id = desk.job.strip_prefix("/jobs/").unwrap();
    let number = u128::from_str_radix(id, 16).unwrap();
    let mut guesses: Vec<String> =
        (0..128).map(|bit| format!("{:032x}", number ^ 1 << bit)).collect();
    for near in [
        id[1..].to_owned(),
        id[..31].to_owned(),
        format!("{id}0"),
        format!("0{id}"),
        format!("0x{id}"),
        format!("{id}%20"),
        format!("%20{id}"),
        format!("{id}%00"),
        format!("{}%{:02x}{}", &id[..8], id.as_bytes()[8], &id[9..]),
        format!("{id},{id}"),
        format!("{}*", &id[..31]),
        format!("{}-{}", &id[..8], &id[8..]),
        format!("./{id}"),
        format!("{id}/."),
        format!("{id}/"),
        format!("{id}//status"),
        format!("../jobs/{id}"),
    ] {
        guesses.push(near);
    }
    if id.to_uppercase() != id {
        guesses.push(id.to_uppercase());
    }
    let unknown = client.get(&desk.server, &format!("/jobs/{:032x}", 0)).await;
    assert_eq!(unknown.status, 404);
    for guess in &guesses {
        for (method, end) in [
            ("GET", ""),
            ("GET", "/status"),
            ("GET", "/result"),
            ("DELETE", ""),
            ("DELETE", "/result"),
        ] {
            let url = format!("/jobs/{guess}{end}");
            let answer = client.send(desk.server.request(method, &url), "").await;
            assert_eq!((answer.status, &answer.body), (unknown.status, &unknown.body), "{url}");
            assert_eq!(header_names(&answer), header_names(&unknown), "{url}");
        }
    }
    desk.is_served().await;
}

fn header_names(answer: &Answer) -> Vec<&str> {
    answer.headers.keys().map(|name| name.as_str()).collect()
}

// ----------------------------------------------------------------------------------------- echo

/// What is sent everywhere, and must come back nowhere.
const CANARY: &str = "c4n4ry<script>\"'%0d%0aset-cookie:x=1";

/// It as far as a place of the request lets it be.
const CANARY_WORD: &str = "c4n4ry";

/// What routes make of it is their affair; here they are ours all.
fn echo_routes(offload: &Offload) -> Router {
    let held = || any(async |_: Bytes| std::future::pending::<()>().await);
    let with = |policy: Policy| held().layer(offload.layer(policy.name(CANARY)));
    let short = Policy::after(Duration::from_millis(1));
    Router::new()
        .route("/always/{*rest}", with(Policy::always()))
        .route("/after/{*rest}", with(short.clone()))
        .route("/keyed/{*rest}", with(short.clone().idempotent()))
        .route("/required/{*rest}", with(short.idempotency_required()))
        .route("/full/{*rest}", with(Policy::always().concurrency(1)))
        .route("/queue/{*rest}", with(Policy::always().concurrency(1).queue(1)))
}

/// Owners, of whom one has the job that runs all the while.
fn owned(builder: OffloadBuilder) -> OffloadBuilder {
    builder.owner(|request| match request.headers.get("x-owner") {
        Some(owner) => Some(Owner::from(owner.clone())),
        None if request.headers.contains_key("x-nobody") => None,
        None => Some(Owner::from("the test")),
    })
}

/// A request with the canary in all its places.
fn poisoned(method: &str, path: &str, owner: &str, body: &str) -> String {
    let len = body.len();
    let separator = if path.contains('?') { '&' } else { '?' };
    format!(
        "{method} {path}{separator}q=c4n4ry'%22%3Cscript%3E HTTP/1.1\r\n\
         host: {CANARY_WORD}.example\r\n\
         x-owner: {owner}\r\n\
         referer: http://{CANARY}\r\n\
         origin: http://{CANARY}\r\n\
         x-forwarded-host: {CANARY}\r\n\
         forwarded: host={CANARY_WORD}\r\n\
         accept: {CANARY}\r\n\
         accept-language: {CANARY}\r\n\
         content-type: {CANARY}\r\n\
         user-agent: {CANARY}\r\n\
         x-request-id: {CANARY}\r\n\
         cookie: {CANARY}\r\n\
         prefer: {CANARY}, wait=0; {CANARY_WORD}, respond-async; x=\"{CANARY_WORD}\"\r\n\
         connection: close\r\n\
         content-length: {len}\r\n\r\n{body}"
    )
}

/// The answer, in which nothing of the request is.
async fn without_echo(server: &Server, request: impl AsRef<[u8]>) -> (u16, String) {
    let mut raw = server.connect().await;
    raw.write(request.as_ref()).await;
    let answer = soon("an answer, or an end", raw.read_to_end()).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let sent = String::from_utf8_lossy(request.as_ref()).into_owned();
    let lower = text.to_ascii_lowercase();
    assert!(!lower.contains(CANARY_WORD) && !lower.contains("script"), "{sent}\n\n{text}");
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
    if status > 0 {
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        let is_control = |c: char| c.is_control() && !matches!(c, '\r' | '\n');
        assert!(!head.contains(is_control), "{text}");
    }
    (status, text)
}

#[tokio::test]
async fn no_answer_of_ours_holds_what_was_sent() {
    let desk = Desk::new(owned(builder()), echo_routes).await;
    let server = &desk.server;
    let me = format!("me {CANARY}");
    let send = |method: &'static str, path: String, owner: String, extra: String| async move {
        let request = poisoned(method, &path, &owner, "c4n4ry<script>");
        let request =
            request.replacen("connection: close", &format!("{extra}connection: close"), 1);
        let (status, text) = without_echo(server, request).await;
        let location =
            text.lines().find_map(|line| line.strip_prefix("location: ")).map(str::to_owned);
        (status, location)
    };
    let key = |key: &str| format!("idempotency-key: {key}\r\n");
    let at = |route: &str| format!("/{route}/c4n4ry\"%3Cscript%3E");
    let none = String::new;

    // 202, by each way to it; then everything that can be asked of the job.
    let canary_key = key("\"c4n4ry<script>\\\"'\"");
    for (route, extra) in [
        ("always", none()),
        ("after", none()),
        ("keyed", canary_key.clone()),
        ("required", key("\"c4n4ry<script>\"")),
        ("full", none()),
        ("queue", none()),
        ("queue", none()),
    ] {
        let (status, location) = send("POST", at(route), me.clone(), extra).await;
        assert_eq!(status, 202, "{route}");
        let job = location.unwrap();
        for end in ["", "/status", "/result"] {
            for method in ["GET", "HEAD", "OPTIONS", "PATCH", "C4N4RY"] {
                let (status, _) = send(method, format!("{job}{end}"), me.clone(), none()).await;
                assert!([200, 202, 204, 405].contains(&status), "{method} {end}: {status}");
                send(method, format!("{job}{end}"), "another".into(), none()).await;
            }
        }
    }
    // What is refused.
    for (expected, method, path, owner, extra) in [
        (503, "POST", at("full"), me.clone(), none()),
        (503, "POST", at("queue"), me.clone(), none()),
        (422, "PUT", at("keyed"), me.clone(), canary_key.clone()),
        (400, "POST", at("required"), me.clone(), none()),
        (400, "POST", at("keyed"), me.clone(), key("c4n4ry<script>,")),
        (400, "POST", at("keyed"), me.clone(), key("\"c4n4ry<script>")),
        (400, "POST", at("keyed"), me.clone(), key(&"c4n4ry".repeat(60))),
        (400, "POST", at("keyed"), me.clone(), format!("{0}{0}", key("c4n4ry"))),
        (404, "GET", "/jobs/c4n4ry\"%3Cscript%3E".into(), me.clone(), none()),
        (404, "GET", "/jobs/c4n4ry/c4n4ry".into(), me.clone(), none()),
        (404, "DELETE", "/jobs/c4n4ry/result".into(), me.clone(), none()),
        (405, "C4N4RY", "/jobs/c4n4ry".into(), me.clone(), none()),
        (204, "OPTIONS", "/jobs/c4n4ry".into(), me.clone(), none()),
    ] {
        let (status, _) = send(method, path.clone(), owner, extra).await;
        assert_eq!(status, expected, "{method} {path}");
    }
    // 401: from nobody.
    let request = poisoned("POST", &at("always"), &me, "").replace("x-owner", "x-nobody");
    assert_eq!(without_echo(server, request).await.0, 401);
    // 413: more than is taken in.
    let request = poisoned("POST", &at("keyed"), &me, "");
    let large = format!("{}content-length: 99999999", key("c4n4ry"));
    let request = request.replace("content-length: 0", &large);
    assert_eq!(without_echo(server, request).await.0, 413);
    // 503: shutting down.
    desk.offload.drain(Duration::from_millis(1)).await;
    assert_eq!(send("POST", at("always"), me.clone(), none()).await.0, 503);
}

#[tokio::test]
async fn what_a_handler_says_is_told_as_text_and_nothing_else() {
    const NASTY: &str = "\"}],</script><b>\r\nset-cookie: x=1\r\n\r\n\u{0}\u{1b}[2J\u{7f}\u{2028}é";
    let says = |offload: &Offload| {
        let handler = async || {
            Job::current().unwrap().progress(0.5, NASTY);
            std::future::pending::<()>().await
        };
        Router::new().route("/says", any(handler).layer(offload.layer(Policy::always())))
    };
    let desk = Desk::new(builder(), says).await;
    let job = desk.healthy.post(&desk.server, "/says", "").await.location().to_owned();
    for end in ["", "/status", "/result"] {
        let url = format!("{job}{end}");
        let told = soon("the progress is told", async {
            loop {
                let answer = desk.healthy.get(&desk.server, &url).await;
                if answer.json()["progress"]["message"].is_string() {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        });
        let told = told.await;
        assert_eq!(told.json()["progress"]["message"], NASTY);
        assert_eq!(told.header("content-type"), "application/json");
        assert!(told.find_header("set-cookie").is_none());
        // Escaped, as RFC 8259 wants control characters and quotes.
        assert!(!told.text().contains(|c: char| c.is_ascii_control() && c != '\u{7f}'));
        assert!(told.text().contains(r#"\"}]"#));
    }
}

// --------------------------------------------------------------------------------- slow readers

const READERS: usize = 200;

/// A result of nearly the largest size, read by many, a byte at a time.
#[tokio::test]
async fn slow_readers_share_one_result() {
    const SIZE: usize = 4 * MIB - 4096;
    let mut desk = Desk::new(builder(), nothing_more).await;
    let (job, call) = desk.hold().await;
    call.answer(vec![b'x'; SIZE]);
    desk.healthy.ended(&desk.server, &job).await;
    let request = format!("GET {job}/result HTTP/1.1\r\nhost: x\r\n\r\n");

    let (readers, memory) = at_most(async {
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut raw = desk.server.connect().await;
            raw.write(&request).await;
            readers.push(raw);
        }
        for _ in 0..20 {
            for reader in &mut readers {
                soon("a byte", reader.0.read_u8()).await.unwrap();
            }
            desk.is_served().await;
        }
        readers
    })
    .await;
    println!("{READERS} slow readers of {SIZE} bytes take {memory} bytes at most");
    // A copy for each would be 800 MiB.
    assert!(memory < READERS * 128 * 1024, "{memory} bytes");

    // Removed meanwhile, it is theirs to the end; nobody else's.
    let removed = desk.healthy.delete(&desk.server, &format!("{job}/result")).await;
    assert_eq!(removed.status, 204);
    let gone = desk.healthy.get(&desk.server, &format!("{job}/result")).await;
    assert_eq!(gone.status, 410);
    let mut readers = readers;
    let mut one = readers.pop().unwrap();
    drop(readers);
    let mut rest = vec![0; SIZE];
    soon("the whole of it", one.0.read_exact(&mut rest)).await.unwrap();
    assert!(rest.ends_with(b"xxxx"));
    desk.is_served().await;
}

/// Each reads a result of its own, which it has removed, and stalls: the memory is in use, and counts.
#[tokio::test]
async fn removed_results_that_stalled_readers_hold_stay_within_the_limit() {
    const LIMIT: usize = 64 * MIB;
    const SIZE: usize = 4 * MIB - 4096;
    let mut desk = Desk::new(builder().max_stored_bytes(LIMIT), nothing_more).await;
    let (readers, memory) = at_most(async {
        let mut readers = Vec::new();
        loop {
            let answer = desk.healthy.post(&desk.server, "/held", "").await;
            if answer.status == 503 {
                break readers;
            }
            let job = answer.location();
            desk.calls.next().await.answer(vec![b'x'; SIZE]);
            desk.healthy.ended(&desk.server, job).await;
            let mut raw = desk.server.connect().await;
            raw.write(format!("GET {job}/result HTTP/1.1\r\nhost: x\r\n\r\n")).await;
            soon("a byte", raw.0.read_u8()).await.unwrap();
            let removed = desk.healthy.delete(&desk.server, &format!("{job}/result")).await;
            assert_eq!(removed.status, 204);
            readers.push(raw);
            assert!(readers.len() < READERS, "removed results count nothing while they are read");
        }
    })
    .await;
    println!("{} stalled readers take {memory} bytes at most", readers.len());
    assert!(memory < LIMIT + 4 * SIZE, "{memory} bytes");
    desk.is_served().await;
    // Room is there again once they have gone.
    drop(readers);
    let accepted =
        async { while desk.healthy.post(&desk.server, "/held", "").await.status != 202 {} };
    soon("a job is accepted", accepted).await;
    desk.calls.next().await.answer("done");
}

// --------------------------------------------------------------------------- 10,000 that poll

const POLLS: usize = 10_000;

/// How many descriptors this process may have.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    open.and_then(|limits| limits.split_whitespace().next()?.parse().ok()).unwrap_or(1024)
}

/// Counts the requests that are being answered.
fn counted(app: Router, now: &watch::Sender<usize>) -> Router {
    struct One(watch::Sender<usize>);
    impl Drop for One {
        fn drop(&mut self) {
            self.0.send_modify(|now| *now -= 1);
        }
    }
    let now = now.clone();
    app.layer(middleware::from_fn(move |request: Request, next: Next| {
        now.send_modify(|now| *now += 1);
        let one = One(now.clone());
        async move {
            let answer = next.run(request).await;
            drop(one);
            answer
        }
    }))
}

/// As many connections as this process may have, and streams of HTTP/2 for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_that_wait_are_answered_and_so_are_others() {
    let _alone = ALONE.lock().await;
    let polling = watch::Sender::new(0);
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let app = Router::new()
        .route("/held", gated.route().layer(offload.layer(Policy::always())))
        .route("/hello", get(async || "hello"));
    let status = Router::new().nest_service("/jobs", offload.status());
    let server = Server::axum(app.merge(counted(status, &polling))).await;
    let healthy = Client::http1();
    let job = healthy.post(&server, "/held", "").await.location().to_owned();
    let call = calls.next().await;
    let other = healthy.post(&server, "/held", "").await.location().to_owned();

    // Each takes two, the server's end and ours.
    let connections = (descriptors() / 2).saturating_sub(256).min(POLLS);
    let streams = POLLS - connections;
    let ((raw, multiplexed), memory) = at_most(async {
        let raw = raw_polls(&server, &job, connections, &polling).await;
        let multiplexed = multiplexed_polls(&server, &job, streams);
        let mut now = polling.subscribe();
        let all = now.wait_for(|now| *now == POLLS);
        tokio::time::timeout(Duration::from_secs(120), all).await.expect("all poll").unwrap();
        for _ in 0..20 {
            is_served(&healthy, &server, &other).await;
        }
        assert_eq!(*polling.borrow(), POLLS, "they wait still");
        (raw, multiplexed)
    })
    .await;
    println!(
        "{connections} connections and {streams} streams that wait take {memory} bytes at most"
    );
    assert!(memory < POLLS * 64 * 1024, "{memory} bytes");

    call.answer("the result");
    let answers = async {
        let raw = join_all(raw.into_iter().map(async |mut raw| raw.read_response().await.0));
        for head in raw.await {
            assert!(head.starts_with("http/1.1 303"), "{head}");
        }
        for answer in multiplexed.join_all().await {
            assert_eq!(answer.status, 303);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), answers).await.expect("all are answered");
    is_served(&healthy, &server, &other).await;
}

async fn raw_polls(
    server: &Server,
    job: &str,
    polls: usize,
    polling: &watch::Sender<usize>,
) -> Vec<Raw> {
    let request = format!("GET {job} HTTP/1.1\r\nhost: x\r\nprefer: wait=30\r\n\r\n");
    let mut all = Vec::new();
    while all.len() < polls {
        // Not more at once than a listener's backlog: what it has no room for is sent again after
        // ever longer times, of minutes in the end. A client is connected before it is accepted.
        let more = (polls - all.len()).min(100);
        let connected = (0..more).map(|_| TcpStream::connect(server.addr));
        for stream in try_join_all(connected).await.unwrap() {
            let mut raw = Raw(stream);
            raw.write(&request).await;
            all.push(raw);
        }
        polling.subscribe().wait_for(|now| *now >= all.len()).await.unwrap();
    }
    all
}

fn multiplexed_polls(server: &Server, job: &str, polls: usize) -> JoinSet<Answer> {
    // Fewer than hyper lets a connection have at once.
    const STREAMS: usize = 150;
    let mut all = JoinSet::new();
    for at in (0..polls).step_by(STREAMS) {
        let client = Client::http2();
        let requests: Vec<_> = (at..(at + STREAMS).min(polls))
            .map(|_| server.request("GET", job).header("prefer", "wait=30"))
            .collect();
        for request in requests {
            let client = client.clone();
            all.spawn(async move { client.send(request, "").await });
        }
    }
    all
}

// ------------------------------------------------------------------------ outcomes beyond measure

/// Counts the pieces that were made of a body, and whether it is gone.
#[derive(Clone, Default)]
struct Made {
    pieces: Arc<AtomicUsize>,
    alive: Arc<()>,
}

impl Made {
    fn body(&self, piece: Bytes, pieces: usize, pause: Option<Duration>) -> Body {
        let (made, alive) = (Arc::clone(&self.pieces), Arc::clone(&self.alive));
        Body::from_stream(stream::iter(0..pieces).then(move |_| {
            let (piece, _alive) = (piece.clone(), Arc::clone(&alive));
            made.fetch_add(1, Ordering::Relaxed);
            async move {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                Ok::<_, Infallible>(piece)
            }
        }))
    }

    fn pieces(&self) -> usize {
        self.pieces.load(Ordering::Relaxed)
    }

    async fn is_gone(&self) {
        soon("the body is dropped", async {
            while Arc::strong_count(&self.alive) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_gigabyte_on_a_limit_of_8_mib_ends_at_once() {
    const PIECE: usize = 64 * 1024;
    let mut desk = Desk::new(builder().max_outcome_bytes(8 * MIB), nothing_more).await;
    let (job, call) = desk.hold().await;
    let made = Made::default();
    let body = made.body(vec![b'x'; PIECE].into(), (1 << 30) / PIECE, None);
    let (document, memory) = at_most(async {
        call.answer(Response::new(body));
        desk.healthy.ended(&desk.server, &job).await
    })
    .await;
    assert_eq!(document["status"], "failed");
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:outcome-too-large");
    let result = desk.healthy.get(&desk.server, &format!("{job}/result")).await;
    assert_eq!((result.status.as_u16(), &result.json()["type"]), (500, &document["error"]["type"]));
    println!("{} pieces of 64 KiB were made, {memory} bytes taken at most", made.pieces());
    assert!(made.pieces() <= 8 * MIB / PIECE + 1, "{} pieces", made.pieces());
    // What was collected, and its copy as it grows.
    assert!(memory < 32 * MIB, "{memory} bytes");
    made.is_gone().await;
    desk.is_served().await;
    // Nothing of it is kept.
    let kept = desk.offload.stats().await.unwrap().total();
    assert_eq!((kept.running, kept.stored), (1, 2));
    assert!(kept.bytes < 8 * MIB + 4096, "{} bytes", kept.bytes);
}

#[tokio::test]
async fn a_gigabyte_that_says_so_is_not_begun() {
    let mut desk = Desk::new(builder().max_outcome_bytes(8 * MIB), nothing_more).await;
    let (job, call) = desk.hold().await;
    let made = Made::default();
    let sized = Sized { body: made.body(Bytes::from_static(b"x"), usize::MAX, None), len: 1 << 30 };
    call.answer(Response::new(Body::new(sized)));
    let document = desk.healthy.ended(&desk.server, &job).await;
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:outcome-too-large");
    assert_eq!(made.pieces(), 0);
    made.is_gone().await;
    desk.is_served().await;
}

/// A body that says how long it is.
struct Sized {
    body: Body,
    len: u64,
}

impl http_body::Body for Sized {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.len)
    }
}

/// By its bytes where it is fast, by its time where it trickles or has nothing in its pieces.
#[tokio::test]
async fn a_body_that_never_ends_is_ended() {
    let pause = Duration::from_millis(5);
    for (piece, pause, problem) in [
        (&b"a piece of it"[..], None, "outcome-too-large"),
        (b"x", Some(pause), "timed-out"),
        (b"", Some(pause), "timed-out"),
        (b"", None, "timed-out"),
    ] {
        let limits = builder().max_outcome_bytes(MIB);
        let made = Made::default();
        let body = Arc::new(std::sync::Mutex::new(Some(made.body(
            Bytes::from_static(piece),
            usize::MAX,
            pause,
        ))));
        let endless = |offload: &Offload| {
            let policy = Policy::always().timeout(Duration::from_millis(500));
            let handler = async move || Response::new(body.lock().unwrap().take().unwrap());
            Router::new().route("/endless", any(handler).layer(offload.layer(policy)))
        };
        let desk = Desk::new(limits, endless).await;
        let (document, memory) = at_most(async {
            let accepted = desk.healthy.post(&desk.server, "/endless", "").await;
            desk.is_served().await;
            desk.healthy.ended(&desk.server, accepted.location()).await
        })
        .await;
        let told = &document["error"]["type"];
        assert_eq!(told, &format!("urn:tower-offload:problem:{problem}"), "{piece:?} {pause:?}");
        assert!(made.pieces() > 0);
        assert!(memory < 8 * MIB, "{memory} bytes");
        made.is_gone().await;
        desk.is_served().await;
    }
}

/// The trailers and the head count too.
#[tokio::test]
async fn a_head_beyond_measure_is_too_large_as_well() {
    let mut desk = Desk::new(builder().max_outcome_bytes(64 * 1024), nothing_more).await;
    let (job, call) = desk.hold().await;
    let mut response = "x".into_response();
    for number in 0..1000 {
        let value = HeaderValue::from_str(&format!("{number}{}", "y".repeat(100))).unwrap();
        response.headers_mut().append("x-many", value);
    }
    call.answer(response);
    let document = desk.healthy.ended(&desk.server, &job).await;
    assert_eq!(document["error"]["type"], "urn:tower-offload:problem:outcome-too-large");
    desk.is_served().await;
}

// ------------------------------------------------------------------------- paths beyond measure

#[tokio::test]
async fn an_id_of_a_megabyte_is_refused_and_others_are_answered() {
    let desk = Desk::new(builder(), nothing_more).await;
    for (size, answers) in [(60_000, &[404][..]), (MIB, &[414, 431, 0]), (20 * MIB, &[414, 431, 0])]
    {
        for end in ["", "/status", "/result"] {
            let request = format!("GET /jobs/{}{end} HTTP/1.1\r\nhost: x\r\n", "a".repeat(size));
            let (status, memory) = at_most(async {
                let mut raw = desk.server.connect().await;
                // The server may hang up in the midst of it.
                for part in [request.as_bytes(), b"connection: close\r\n\r\n"] {
                    let _ = soon("it is taken or refused", raw.0.write_all(part)).await;
                }
                let answer = soon("an answer or an end", raw.read_to_end()).await;
                let head = String::from_utf8_lossy(&answer);
                assert!(!head.contains("aaaa"));
                head.get(9..12).map_or(0, |status| status.parse::<u16>().unwrap())
            })
            .await;
            assert!(answers.contains(&status), "{size} bytes were answered {status}");
            assert!(memory < 2 * MIB, "{memory} bytes for {size}");
            desk.is_served().await;
        }
    }
}

#[tokio::test]
async fn the_longest_path_there_is_is_an_unknown_one() {
    use tower::ServiceExt;
    let desk = Desk::new(builder(), nothing_more).await;
    // `http` holds no longer one.
    let long = "a".repeat(usize::from(u16::MAX) - 100);
    let slashes = "/".repeat(usize::from(u16::MAX) - 100);
    let job = desk.job.strip_prefix("/jobs/").unwrap();
    for path in [
        format!("/jobs/{long}"),
        format!("/{long}"),
        format!("/jobs{slashes}"),
        format!("/jobs/{job}/{long}"),
        format!("/jobs{slashes}{job}"),
    ] {
        for method in ["GET", "DELETE", "HEAD"] {
            let request = http::Request::builder().method(method).uri(&path).body(()).unwrap();
            let answer = desk.offload.status().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), 404, "{method} {path:.40}");
        }
    }
    desk.is_served().await;
}

// ------------------------------------------------------------------------- what is no request

#[tokio::test]
async fn malformed_requests_make_no_job_and_disturb_nobody() {
    let desk = Desk::new(owned(builder()), echo_routes).await;
    let before = desk.offload.stats().await.unwrap();
    let post = |path: &str, rest: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nx-owner: me\r\n{rest}").into_bytes()
    };
    let key = "idempotency-key: k\r\n";
    let requests: Vec<Vec<u8>> = vec![
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /jobs/x HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /jobs/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /jobs/\0 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /jobs/x HTTP/1.1\r\nhost: x\r\nprefer: wait=\0\r\n\r\n".to_vec(),
        b"GET /jobs/x HTTP/1.1\r\nhost: x\r\nprefer\r\n\r\n".to_vec(),
        b"GET /jobs/x HTTP/1.1\r\nhost: x\r\n folded: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello".to_vec(),
        post("/always/x", "content-length: -1\r\n\r\n"),
        post("/always/x", "content-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        post("/always/x", "content-length: 99999999999999999999999\r\n\r\n"),
        post("/always/x", "transfer-encoding: chunked\r\n\r\nnonsense\r\n"),
        post("/always/x", "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
        post("/always/x", "content-length: 10\r\n\r\nhalf"),
        post("/after/x", "content-length: 10\r\n\r\nhalf"),
        post("/queue/x", "content-length: 10\r\n\r\nhalf"),
        post("/queue/x", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        post("/queue/x", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nz\r\n"),
        post("/keyed/x", &format!("{key}content-length: 10\r\n\r\nhalf")),
        post("/keyed/x", &format!("{key}transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nz\r\n")),
        post("/keyed/x", "idempotency-key: \x01\r\ncontent-length: 0\r\n\r\n"),
        post("/keyed/x", "idempotency-key: \"\r\ncontent-length: 0\r\n\r\n"),
    ];
    for request in &requests {
        let shown = String::from_utf8_lossy(request).into_owned();
        let mut raw = desk.server.connect().await;
        raw.write(request).await;
        // No more comes: the server may take that as the end of it.
        let _ = raw.0.shutdown().await;
        let answer = soon("an answer or an end", raw.read_to_end()).await;
        let head = String::from_utf8_lossy(&answer);
        if let Some(status) = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
            assert!(status.starts_with('4'), "{shown:?} is answered {head}");
        }
        desk.is_served().await;
    }
    soon("nothing is left of them", async {
        loop {
            let now = desk.offload.stats().await.unwrap().total();
            if (now.running, now.queued) == (1, 0) {
                assert_eq!(now.stored, before.total().stored, "a job of half a request");
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // And the key is free: the request that it was meant for can be sent.
    let request = desk.server.request("POST", "/keyed/x").header("x-owner", "me");
    let answer = desk.healthy.send(request.header("idempotency-key", "k"), "0123456789").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
}
