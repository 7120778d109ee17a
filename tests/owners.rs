//! Owners: a job is there for nobody else. Whatever another asks of it, in whatever state, by
//! whatever method, is answered byte for byte as an unknown id is, and changes nothing; and who asks
//! is found out once, before the call, where it matters and nowhere else.

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::{
    convert::Infallible,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body};
use desk::get;
use http::{Request, Response, header, request::Parts};
use http_body_util::BodyExt;
use support::{
    Client, Server,
    gated::{Call, Calls, gated},
    soon,
};
use tokio::{task::yield_now, time::sleep};
use tower::{Layer, Service, ServiceExt, make::Shared, service_fn, util::BoxCloneService};
use tower_offload::{
    Change, Digest, JobId, MemoryStore, Offload, Owner, Policies, Policy, Record, Store,
    store::{Changed, Fetched, Inserted, Interest, StoreFuture, Usage},
};

const UNKNOWN: &str = "/jobs/00000000000000000000000000000000";
const METHODS: [&str; 7] = ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"];
const RESOURCES: [&str; 3] = ["", "/status", "/result"];

/// Whoever sent the `Authorization` header.
fn bearer(request: &Parts) -> Option<Owner> {
    request.headers.get(header::AUTHORIZATION).cloned().map(Owner::from)
}

// ------------------------------------------------------------------------------ a server to ask

/// Where the status service is.
#[derive(Debug, Clone, Copy)]
enum Form {
    Router,
    Mounted,
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

struct Desk {
    server: Server,
    calls: Calls,
}

fn policies() -> Policies {
    Policies::otherwise(Policy::never())
        .at("/always", Policy::always())
        .at("/after", Policy::after(Duration::from_secs(3600)))
        .at("/one", Policy::always().concurrency(1).queue(9))
}

impl Desk {
    async fn new(form: Form) -> Self {
        let offload = Offload::builder("/jobs").owner(bearer).build().unwrap();
        let (gated, calls) = gated();
        let layer = offload.layer(policies());
        let app = Router::new().fallback_service(gated.route());
        let server = match form {
            Form::Router => {
                let app = app.nest_service("/jobs", offload.status());
                let shared = Shared::new(layer.layer(app));
                Server::by(async |listener| axum::serve(listener, shared).await.unwrap()).await
            }
            Form::Mounted => {
                let shared = Shared::new(layer.mounted().layer(app));
                Server::by(async |listener| axum::serve(listener, shared).await.unwrap()).await
            }
        };
        Self { server, calls }
    }

    async fn ask(&self, by: Protocol, who: Option<&str>, method: &str, path: &str) -> String {
        ask(&self.server, by, who, method, path, None).await
    }

    async fn prefer(
        &self,
        by: Protocol,
        who: Option<&str>,
        method: &str,
        path: &str,
        prefer: &str,
    ) -> String {
        ask(&self.server, by, who, method, path, Some(prefer)).await
    }

    /// A job of Ann's.
    async fn job(&self, path: &str) -> String {
        let request = self.server.request("POST", path).header("authorization", "ann");
        Client::http1().send(request, "").await.location().to_owned()
    }

    async fn running(&mut self) -> (String, Call) {
        (self.job("/always").await, self.calls.next().await)
    }

    /// A job that has ended.
    async fn ended(&mut self, how: impl FnOnce(Call)) -> String {
        let (job, call) = self.running().await;
        how(call);
        while self.as_ann("GET", &job, Some("wait=30")).await.starts_with("HTTP/1.1 202") {}
        job
    }

    async fn as_ann(&self, method: &str, path: &str, prefer: Option<&str>) -> String {
        ask(&self.server, Protocol::Http1, Some("ann"), method, path, prefer).await
    }

    /// A job of Ann's in each state, and the handlers that still run: of the one that runs, and of
    /// the one that another waits for.
    async fn in_all_states(&mut self) -> (Vec<(&'static str, String)>, [Call; 2]) {
        self.job("/one").await;
        let holds_place = self.calls.next().await;
        let queued = self.job("/one").await;
        let (running, runs) = self.running().await;
        let succeeded = self.ended(|call| call.answer("done")).await;
        let failed = self.ended(Call::panic).await;
        let removed = self.ended(|call| call.answer("done")).await;
        self.as_ann("DELETE", &format!("{removed}/result"), None).await;
        let (canceled, _) = self.running().await;
        self.as_ann("DELETE", &canceled, None).await;
        let jobs = [
            ("running", running),
            ("queued", queued),
            ("succeeded", succeeded),
            ("failed", failed),
            ("removed", removed),
            ("canceled", canceled),
        ];
        (jobs.into(), [runs, holds_place])
    }

    /// What Ann is told of a job, less what changes with the time.
    async fn seen_by_ann(&self, job: &str) -> String {
        let request = self.server.request("GET", &format!("{job}/status"));
        let answer = Client::http1().send(request.header("authorization", "ann"), "").await;
        let mut document = answer.json();
        document.as_object_mut().unwrap().remove("eta_seconds");
        format!("{} {document}", answer.status)
    }
}

/// All that is answered, less the date: the bytes themselves over HTTP/1.1.
async fn ask(
    server: &Server,
    by: Protocol,
    who: Option<&str>,
    method: &str,
    path: &str,
    prefer: Option<&str>,
) -> String {
    let headers = [("authorization", who), ("prefer", prefer)];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let answer = async {
        match by {
            Protocol::Http1 => ask_raw(server, method, path, headers).await,
            Protocol::Http2 => {
                let request = headers.fold(server.request(method, path), |request, header| {
                    request.header(header.0, header.1)
                });
                let mut answer = Client::http2().send(request, "").await;
                answer.headers.remove("date").expect("a date");
                format!("{answer:?}")
            }
        }
    };
    soon("an answer", answer).await
}

async fn ask_raw<'a>(
    server: &Server,
    method: &str,
    path: &str,
    headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    let mut raw = server.connect().await;
    raw.write(request + "\r\n").await;
    let bytes = String::from_utf8(raw.read_to_end().await).unwrap();
    let (before, rest) = bytes.split_once("\r\ndate: ").expect("a date");
    let (_, after) = rest.split_once("\r\n").unwrap();
    format!("{before}\r\n{after}")
}

async fn for_all(test: impl AsyncFn(Desk, Protocol)) {
    for form in [Form::Router, Form::Mounted] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            println!("{form:?}, {protocol:?}");
            test(Desk::new(form).await, protocol).await;
        }
    }
}

// ------------------------------------------------------------------------ what others are told

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_is_told_byte_for_byte_what_an_unknown_id_gets() {
    for_all(async |mut desk, by| {
        let (jobs, [runs, holds_place]) = desk.in_all_states().await;
        for (state, job) in &jobs {
            let before = desk.seen_by_ann(job).await;
            if *state != "removed" {
                assert!(before.contains(&format!(r#""status":"{state}""#)), "{before}");
            }
            for (resource, method) in RESOURCES.iter().flat_map(|r| METHODS.map(|m| (r, m))) {
                let unknown = format!("{UNKNOWN}{resource}");
                let unknown = desk.ask(by, Some("ann"), method, &unknown).await;
                for other in [None, Some("bob"), Some("anna")] {
                    let answer = desk.ask(by, other, method, &format!("{job}{resource}")).await;
                    assert_eq!(answer, unknown, "{method} {resource} of {state} by {other:?}");
                }
            }
            assert_eq!(desk.seen_by_ann(job).await, before, "it has changed something");
        }
        assert!(!runs.is_gone() && !holds_place.is_gone());

        // The very requests that told the others nothing tell Ann.
        for (state, job) in &jobs {
            for (resource, method) in RESOURCES.iter().flat_map(|r| ["GET", "HEAD"].map(|m| (r, m)))
            {
                let ask = async |job: &str| {
                    desk.ask(by, Some("ann"), method, &format!("{job}{resource}")).await
                };
                assert_ne!(ask(job).await, ask(UNKNOWN).await, "{method} {resource} of {state}");
            }
        }
        let (canceled, call) = desk.running().await;
        let answer = desk.ask(by, Some("ann"), "DELETE", &canceled).await;
        assert!(answer.contains("200"), "{answer}");
        call.gone().await;
        runs.answer("the outcome");
        let result = format!("{}/result", jobs[0].1);
        while !desk.ask(by, Some("ann"), "GET", &result).await.contains("the outcome") {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_waits_for_nothing() {
    for_all(async |mut desk, by| {
        let (job, call) = desk.running().await;
        let unknown = desk.ask(by, Some("ann"), "GET", UNKNOWN).await;
        for other in [None, Some("bob")] {
            for resource in RESOURCES {
                // It would wait for longer than the test does.
                let path = format!("{job}{resource}");
                let waits = desk.prefer(by, other, "GET", &path, "wait=30").await;
                if resource.is_empty() {
                    assert_eq!(waits, unknown);
                }
                assert!(waits.contains("404"), "{waits}");
            }
        }
        assert!(!call.is_gone());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_tries_while_ann_waits_does_not_disturb_her() {
    for_all(async |mut desk, by| {
        let (job, call) = desk.running().await;
        let ann = desk.prefer(by, Some("ann"), "GET", &job, "wait=30");
        let others = async {
            for method in ["DELETE", "DELETE", "GET"] {
                desk.ask(by, Some("bob"), method, &job).await;
                desk.ask(by, None, method, &format!("{job}/result")).await;
            }
            call.answer("done");
        };
        let (ann, ()) = tokio::join!(ann, others);
        assert!(ann.contains("303"), "{ann}");
    })
    .await;
}

#[tokio::test]
async fn without_an_owner_function_the_id_is_the_key() {
    let (gated, mut calls) = gated();
    let offload = Offload::new("/jobs");
    let app = Router::new()
        .route("/always", gated.route().layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status());
    let server = Server::axum(app).await;
    let client = Client::http1();
    let by = |who: &'static str, method: &str, path: &str| {
        client.send(server.request(method, path).header("authorization", who), "")
    };
    let accepted = by("ann", "POST", "/always").await;
    let job = accepted.location();
    let call = calls.next().await;
    assert_eq!(by("bob", "GET", job).await.status, 202);
    assert_eq!(client.get(&server, job).await.status, 202);
    assert_eq!(by("bob", "DELETE", job).await.status, 200);
    call.gone().await;
}

/// A store that notes its calls, and whether they found a job.
#[derive(Clone)]
struct Noting {
    jobs: MemoryStore,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Noting {
    fn note<T: Send + 'static>(
        &self,
        call: &'static str,
        answer: StoreFuture<T>,
        found: fn(&T) -> bool,
    ) -> StoreFuture<T> {
        let calls = Arc::clone(&self.calls);
        StoreFuture::new(async move {
            let answer = answer.await;
            let found = answer.as_ref().is_ok_and(found);
            calls.lock().unwrap().push(format!("{call}, found: {found}"));
            answer
        })
    }

    /// What was noted since the last time.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Store for Noting {
    fn insert(&self, record: Record, outcome_bytes: usize) -> StoreFuture<Inserted> {
        self.note("insert", self.jobs.insert(record, outcome_bytes), |_| true)
    }

    fn take_back(&self, id: JobId) -> StoreFuture<bool> {
        self.note("take_back", self.jobs.take_back(id), |_| true)
    }

    fn read(&self, id: JobId, owner: Option<Digest>) -> StoreFuture<Option<Record>> {
        self.note("read", self.jobs.read(id, owner), Option::is_some)
    }

    fn fetch(
        &self,
        id: JobId,
        owner: Option<Digest>,
    ) -> StoreFuture<Option<(Record, Option<Fetched>)>> {
        self.note("fetch", self.jobs.fetch(id, owner), Option::is_some)
    }

    fn claimed(&self, key: Digest) -> StoreFuture<Option<Record>> {
        self.note("claimed", self.jobs.claimed(key), Option::is_some)
    }

    fn change(&self, id: JobId, change: Change) -> StoreFuture<Changed> {
        self.note("change", self.jobs.change(id, change), |_| true)
    }

    fn changed(&self, id: JobId, seen: u32, interest: Interest) -> StoreFuture<()> {
        self.note("changed", self.jobs.changed(id, seen, interest), |()| true)
    }

    fn usage(&self) -> StoreFuture<Vec<Usage>> {
        self.note("usage", self.jobs.usage(), |_| true)
    }
}

/// What takes longer for a job than for an unknown id tells that there is the job.
#[tokio::test(start_paused = true)]
async fn another_costs_the_store_the_same_calls_as_an_unknown_id() {
    let store = Noting { jobs: MemoryStore::new(1 << 30), calls: Arc::default() };
    let offload = Offload::builder("/jobs").owner(bearer).store(store.clone()).build().unwrap();
    let ann = [("authorization", "ann")];
    let accepted = async || {
        let slow = takes_an_hour(&offload, Policy::always().ttl(HOUR * 10));
        let answer = slow.oneshot(request("POST", "/", &ann)).await.unwrap();
        answer.headers()[header::LOCATION].to_str().unwrap().to_owned()
    };
    let (ended, removed) = (accepted().await, accepted().await);
    sleep(HOUR * 2).await;
    let removal = request("DELETE", &format!("{removed}/result"), &ann);
    assert_eq!(offload.status().oneshot(removal).await.unwrap().status(), 204);
    let runs = accepted().await;
    // What each asked of the store, and was told.
    let ask = async |name: Option<&str>, method: &str, path: &str| {
        store.calls();
        let mut headers = vec![("prefer", "wait=5")];
        headers.extend(name.map(|name| ("authorization", name)));
        let answer = offload.status().oneshot(request(method, path, &headers)).await.unwrap();
        (store.calls(), answer.status())
    };
    for job in [ended, removed, runs] {
        for (resource, method) in RESOURCES.iter().flat_map(|r| METHODS.map(|m| (r, m))) {
            for other in [None, Some("bob")] {
                let told = ask(other, method, &format!("{job}{resource}")).await;
                let unknown = ask(other, method, &format!("{UNKNOWN}{resource}")).await;
                assert_eq!(told, unknown, "{method} {job}{resource} by {other:?}");
            }
        }
        let (calls, _) = ask(Some("ann"), "GET", &job).await;
        assert!(calls.contains(&"read, found: true".to_owned()), "{calls:?}");
    }
}

// -------------------------------------------------------------------------- whoever has no name

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_name_is_answered_401_where_there_must_be_a_job() {
    for_all(async |mut desk, by| {
        for path in ["/always", "/one"] {
            let refused = desk.ask(by, None, "POST", path).await;
            for part in [
                "401",
                "urn:tower-offload:problem:no-owner",
                "application/problem+json",
                "no-store",
            ] {
                assert!(refused.contains(part), "{refused}");
            }
        }
        assert!(desk.calls.is_empty(), "a handler ran for it");
        // It stays attached, though it asks not to.
        let attached = ask(&desk.server, by, None, "POST", "/after", Some("respond-async"));
        let answers = async { desk.calls.next().await.answer("attached") };
        let ((), attached) = tokio::join!(answers, attached);
        assert!(attached.contains("200") && attached.contains("attached"), "{attached}");
    })
    .await;
}

type Handler = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

const HOUR: Duration = Duration::from_secs(3600);

/// A service that takes an hour, behind this policy.
fn takes_an_hour(offload: &Offload, policy: Policy) -> Handler {
    let slow = |_: Request<Body>| async {
        sleep(HOUR).await;
        Ok::<_, Infallible>(Response::new(Body::from("after an hour")))
    };
    BoxCloneService::new(offload.layer(policy).boxed().layer(service_fn(slow)))
}

fn owned() -> (Offload, MemoryStore) {
    let store = MemoryStore::new(1 << 30);
    (Offload::builder("/jobs").owner(bearer).store(store.clone()).build().unwrap(), store)
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
        request.header(*name, *value)
    };
    headers
        .iter()
        .fold(Request::builder().method(method).uri(path), add)
        .body(Body::empty())
        .unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn whoever_has_no_name_stays_attached_whatever_it_takes() {
    let (offload, store) = owned();
    let budget = Duration::from_millis(1);
    for (policy, prefer) in [
        (Policy::after(budget), "wait=0"),
        (Policy::after(budget), "respond-async"),
        (Policy::after(budget).idempotent(), "respond-async, wait=0"),
        (Policy::after(budget).finish_on_disconnect(), "respond-async"),
        (Policy::on_request(budget), "respond-async"),
    ] {
        let headers = [("prefer", prefer)];
        let answer =
            takes_an_hour(&offload, policy.clone()).oneshot(request("POST", "/", &headers));
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), store.jobs()), (200, 0), "{policy:?} {prefer}");
        assert_eq!(text(answer).await, "after an hour");
        // With a name it is a job.
        let headers = [("prefer", prefer), ("authorization", "ann")];
        let answer = takes_an_hour(&offload, policy).oneshot(request("POST", "/", &headers)).await;
        assert_eq!((answer.unwrap().status().as_u16(), store.jobs()), (202, 1));
        sleep(HOUR * 3).await;
        assert_eq!(store.jobs(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_of_nobody_is_refused() {
    let (offload, store) = owned();
    let budget = Duration::from_millis(1);
    for policy in [
        Policy::after(budget).idempotent(),
        Policy::always().idempotency_required(),
        Policy::on_request(budget).idempotent(),
        Policy::always().idempotent().queue(5),
    ] {
        let headers = [("idempotency-key", "k")];
        let answer = takes_an_hour(&offload, policy).oneshot(request("POST", "/", &headers));
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), store.jobs()), (401, 0));
        assert!(text(answer).await.contains("urn:tower-offload:problem:no-owner"));
    }
}

// ----------------------------------------------------------------------------- when it is asked

type Log = Arc<Mutex<Vec<&'static str>>>;

/// A service that notes its calls and answers at the second poll, behind a layer whose owner function
/// notes its calls.
struct Noted {
    log: Log,
    service: Handler,
}

impl Noted {
    fn new(policies: Policies) -> Self {
        let log = Log::default();
        let (owner_log, call_log) = (Arc::clone(&log), Arc::clone(&log));
        let owner = move |request: &Parts| {
            owner_log.lock().unwrap().push("owner");
            bearer(request)
        };
        let offload = Offload::builder("/jobs").owner(owner).build().unwrap();
        let service = service_fn(move |_: Request<Body>| {
            call_log.lock().unwrap().push("call");
            async {
                yield_now().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let layer = offload.layer(policies).boxed();
        // What an outer layer watches, an inner one of the same desk does not.
        let nested = layer.clone().mounted().layer(layer.layer(service));
        Self { log, service: BoxCloneService::new(nested) }
    }

    /// The status of an answer to Ann, and what was noted until all was done.
    async fn send(&self, request: Request<Body>) -> (u16, Vec<&'static str>) {
        let status = self.service.clone().oneshot(request).await.unwrap().status();
        // Jobs have their turns.
        for _ in 0..50 {
            yield_now().await;
        }
        (status.as_u16(), std::mem::take(&mut *self.log.lock().unwrap()))
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_found_out_once_before_the_call_and_only_where_it_matters() {
    let keyed = || Policy::after(HOUR).idempotency_required();
    let policies = policies().at("/asked", Policy::on_request(HOUR)).at("/keyed", keyed());
    let noted = Noted::new(policies);
    let key = &[("idempotency-key", "k")][..];
    let async_ = &[("prefer", "respond-async")][..];
    let (both, called, asked) = (&["owner", "call"][..], &["call"][..], &["owner"][..]);
    for (method, path, headers, status, expected) in [
        ("POST", "/always", &[][..], 202, both),
        ("POST", "/one", &[], 202, both),
        ("POST", "/after", &[], 200, both),
        ("GET", "/after", async_, 202, both),
        ("POST", "/asked", async_, 200, both),
        ("POST", "/keyed", key, 200, both),
        ("POST", "/keyed", key, 200, asked),
        ("DELETE", "/keyed", key, 422, asked),
        ("GET", "/keyed", &[], 200, both),
        ("GET", UNKNOWN, &[], 404, asked),
        // Nobody needs to know.
        ("POST", "/keyed", &[], 400, &[]),
        ("POST", "/keyed", &[("idempotency-key", "")], 400, &[]),
        ("POST", "/else", async_, 200, called),
        ("POST", "/else", key, 200, called),
        ("POST", "/asked", &[], 200, called),
        ("HEAD", "/always", &[], 200, called),
        ("OPTIONS", "/always", async_, 200, called),
        ("GET", "/always", &[("range", "bytes=0-")], 200, called),
        ("POST", "/always", &[("upgrade", "websocket"), ("connection", "upgrade")], 200, called),
        ("POST", "/always", &[("content-type", "application/grpc")], 200, called),
    ] {
        let headers = [headers, &[("authorization", "ann")]].concat();
        let (answer, noted) = noted.send(request(method, path, &headers)).await;
        assert_eq!((answer, &noted[..]), (status, expected), "{method} {path} {headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_may_be_named_by_a_layer_outside() {
    let owner = |request: &Parts| request.extensions.get::<Arc<str>>().cloned().map(Owner::from);
    let offload = Offload::builder("/jobs").owner(owner).build().unwrap();
    let mut service = takes_an_hour(&offload, Policy::always());
    let mut request = request("POST", "/", &[]);
    request.extensions_mut().insert(Arc::<str>::from("ann"));
    let accepted = service.ready().await.unwrap().call(request).await.unwrap();
    let job = desk::job(&accepted);
    assert_eq!(get(&offload, &job).await.status(), 404);
    let mut poll = Request::get(&job).body(()).unwrap();
    poll.extensions_mut().insert(Arc::<str>::from("ann"));
    assert_eq!(offload.status().oneshot(poll).await.unwrap().status(), 202);
}

// ------------------------------------------------------------------------------- what is stored

/// How many bits of two hashes differ. Of two things that differ in one letter it is about half.
fn apart(one: &Digest, other: &Digest) -> u32 {
    one.as_bytes().iter().zip(other.as_bytes()).map(|(one, other)| (one ^ other).count_ones()).sum()
}

/// What is stored of a job of this owner.
async fn stored(policy: Policy, owner: &str, key: &str, path: &str) -> Record {
    let (offload, store) = owned();
    let headers = [("authorization", owner), ("idempotency-key", key), ("prefer", "respond-async")];
    let request = request("POST", path, &headers);
    let accepted = takes_an_hour(&offload, policy).oneshot(request).await.unwrap();
    let id: JobId = desk::job(&accepted).rsplit('/').next().unwrap().parse().unwrap();
    store.read(id, None).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_store_is_told_hashes_and_no_name_and_no_key() {
    for policy in [
        Policy::always(),
        Policy::always().queue(5),
        Policy::always().idempotent(),
        Policy::after(HOUR),
    ] {
        let one = stored(policy.clone(), "s3cret-tokena", "s3cret-keya", "/s3cret-patha").await;
        for kept in [one.to_bytes(), format!("{one:?}").into_bytes()] {
            let kept = String::from_utf8(kept).unwrap();
            assert!(!kept.contains("s3cret"), "{kept}");
        }
        let owner = one.owner().unwrap();
        let again = stored(policy.clone(), "s3cret-tokena", "another", "/another").await;
        assert_eq!(again.owner(), Some(owner), "one owner, one hash");

        let other = stored(policy, "s3cret-tokenb", "s3cret-keya", "/s3cret-pathb").await;
        assert!(apart(owner, other.owner().unwrap()) > 80);
        if let (Some(one), Some(other)) = (one.claim(), other.claim()) {
            assert!(apart(one.key(), other.key()) > 80);
            assert!(apart(one.fingerprint(), other.fingerprint()) > 80);
        }
    }
}
