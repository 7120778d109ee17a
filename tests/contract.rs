//! The wire contract. First one table: a row for each URL and method, a column for each place where
//! a job may stand. Then what a table cannot say: the 202, the document, problems, and replays.

mod support;

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use axum::{
    BoxError, Router,
    body::Body,
    error_handling::HandleErrorLayer,
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use iri_string::{
    format::ToDedicatedString,
    types::{UriAbsoluteStr, UriReferenceStr},
};
use jiff::Timestamp;
use serde_json::Value;
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, gated, with_trailers},
    soon,
};
use tower::{ServiceBuilder, service_fn};
use tower_offload::{JobId, LocationStyle, Offload, OffloadBuilder, Owner, Policy};
use url::Url;

// --------------------------------------------------------------------------- a server to ask

/// An app with a gated handler, and both protocols' clients to ask it.
struct Desk {
    server: Server,
    calls: Calls,
    offload: Offload,
}

impl Desk {
    async fn new() -> Self {
        Self::with(Offload::builder("/jobs")).await
    }

    async fn with(builder: OffloadBuilder) -> Self {
        let offload = builder.build().unwrap();
        let (gated, calls) = gated();
        let route = |policy| gated.route().layer(offload.layer(policy));
        let app = Router::new()
            .route("/always", route(Policy::always()))
            .route("/always/{*rest}", route(Policy::always()))
            .route("/patient", route(Policy::after(Duration::from_secs(3600))))
            .route("/short", route(Policy::always().timeout(Duration::from_millis(20))))
            .route("/bare", gated.route())
            .nest_service("/jobs", offload.status());
        Self { server: Server::axum(app).await, calls, offload }
    }

    /// A job that runs: the path that its 202 named, and its handler's call.
    async fn running(&mut self, client: &Client) -> (String, Call) {
        let accepted = client.post(&self.server, "/always", "").await;
        (accepted.location().to_owned(), self.calls.next().await)
    }

    /// A job that has ended with this response, and its path.
    async fn ended(&mut self, client: &Client, response: impl IntoResponse) -> String {
        self.ended_at(client, "/always", response).await
    }

    async fn ended_at(&mut self, client: &Client, to: &str, with: impl IntoResponse) -> String {
        let accepted = client.post(&self.server, to, "").await;
        self.calls.next().await.answer(with);
        let job = accepted.location().to_owned();
        client.ended(&self.server, &job).await;
        job
    }
}

fn clients() -> [(&'static str, Client); 2] {
    [("HTTP/1.1", Client::http1()), ("HTTP/2", Client::http2())]
}

/// The names of the headers, but for those that every response has.
fn names(headers: &HeaderMap) -> BTreeSet<&str> {
    let names = headers.keys().map(http::HeaderName::as_str);
    names.filter(|name| !matches!(*name, "date" | "content-length" | "transfer-encoding")).collect()
}

/// Whether this is a problem of this kind, and nothing but it.
fn is_problem(answer: &Answer, status: u16, kind: &str) {
    assert_eq!(answer.status, status, "{answer:#?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    let problem = answer.json();
    assert_eq!(problem["type"], format!("urn:tower-offload:problem:{kind}"));
    assert_eq!(problem["status"], status);
    for text in ["title", "detail"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    let members: Vec<_> = problem.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["detail", "status", "title", "type"]);
}

// ------------------------------------------------------------------------------ the table

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Column {
    Running,
    Succeeded,
    /// With a response of 400 or above.
    Failed,
    /// Without a response.
    Broken,
    Canceled,
    Removed,
    CanceledThenRemoved,
    Unknown,
}
use Column::*;

const COLUMNS: [Column; 8] =
    [Running, Succeeded, Failed, Broken, Canceled, Removed, CanceledThenRemoved, Unknown];

impl Column {
    /// A job that stands there, by its path.
    async fn job(self, desk: &mut Desk, client: &Client) -> String {
        match self {
            Running => desk.running(client).await.0,
            Succeeded => desk.ended(client, own(201)).await,
            Failed => desk.ended(client, own(422)).await,
            Broken => {
                let (job, call) = desk.running(client).await;
                call.panic();
                client.ended(&desk.server, &job).await;
                job
            }
            Canceled => {
                let (job, _) = desk.running(client).await;
                assert_eq!(client.delete(&desk.server, &job).await.status, 200);
                job
            }
            Removed | CanceledThenRemoved => {
                let before = if self == Removed { Succeeded } else { Canceled };
                let job = Box::pin(before.job(desk, client)).await;
                let removed = client.delete(&desk.server, &format!("{job}/result")).await;
                assert_eq!(removed.status, 204);
                job
            }
            Unknown => format!("/jobs/{:032x}", 7),
        }
    }

    /// What its document says.
    fn status(self) -> &'static str {
        match self {
            Running => "running",
            Succeeded | Removed => "succeeded",
            Failed | Broken => "failed",
            Canceled | CanceledThenRemoved => "canceled",
            Unknown => unreachable!("there is no document"),
        }
    }

    /// What the handler answered.
    fn response(self) -> Option<u16> {
        match self {
            Succeeded | Removed => Some(201),
            Failed => Some(422),
            _ => None,
        }
    }
}

/// The handler's own response.
fn own(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, [("content-type", "text/x-own"), ("x-own", "1")], "own").into_response()
}

/// What stands in a cell of the table.
#[derive(Debug, Clone, Copy)]
struct Cell {
    /// `None` where it is the handler's.
    status: Option<u16>,
    says: Says,
    /// The URL in `Location`, from the job's on.
    location: Option<&'static str>,
    retry: bool,
    allow: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Says {
    Nothing,
    Document,
    Problem(&'static str),
    Replay,
}

const fn cell(status: u16, says: Says) -> Cell {
    Cell { status: Some(status), says, location: None, retry: false, allow: None }
}

/// The table, without the rows of `HEAD`, which are those of `GET`.
fn table() -> Vec<(&'static str, &'static str, [Cell; 8])> {
    use Says::*;

    let poll = Cell { location: Some(""), retry: true, ..cell(202, Document) };
    let found = Cell { location: Some("/result"), ..cell(303, Document) };
    let going = Cell { retry: true, ..cell(200, Document) };
    let ended = cell(200, Document);
    let conflict = cell(409, Document);
    let replay = Cell { status: None, ..cell(0, Replay) };
    let broken = cell(500, Problem("panicked"));
    let canceled = cell(410, Problem("canceled"));
    let removed = cell(410, Problem("removed"));
    let unknown = cell(404, Problem("unknown-job"));
    let nothing = cell(204, Nothing);
    let all = Some("GET, HEAD, DELETE, OPTIONS");
    let options = Cell { allow: all, ..nothing };
    let refused = Cell { allow: all, ..cell(405, Problem("method-not-allowed")) };
    let reading = Some("GET, HEAD, OPTIONS");
    let no_delete = Cell { allow: reading, ..refused };

    #[rustfmt::skip]
    let mut table = vec![
        //                    running  succeeded failed    broken    canceled  removed   both      unknown
        ("GET", "",          [poll,    found,    found,    found,    found,    removed,  removed,  unknown]),
        ("GET", "/status",   [going,   ended,    ended,    ended,    ended,    removed,  removed,  unknown]),
        ("GET", "/result",   [poll,    replay,   replay,   broken,   canceled, removed,  removed,  unknown]),
        ("DELETE", "",       [ended,   conflict, conflict, conflict, ended,    conflict, ended,    unknown]),
        ("DELETE", "/result",[ended,   nothing,  nothing,  nothing,  nothing,  nothing,  nothing,  unknown]),
        ("DELETE", "/status",[no_delete; 8]),
        ("OPTIONS", "",      [options; 8]),
        ("OPTIONS", "/result", [options; 8]),
        ("OPTIONS", "/status", [Cell { allow: reading, ..options }; 8]),
    ];
    for method in ["PUT", "POST", "PATCH", "TRACE", "PURGE"] {
        table.extend([
            (method, "", [refused; 8]),
            (method, "/result", [refused; 8]),
            (method, "/status", [no_delete; 8]),
        ]);
    }
    table
}

#[tokio::test]
async fn the_table() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for (method, resource, row) in table() {
            for (column, cell) in COLUMNS.into_iter().zip(row) {
                let job = column.job(&mut desk, &client).await;
                let url = format!("{job}{resource}");
                let what = format!("{method} {resource} of a job that is {column:?}, {protocol}");
                let before = client.get(&desk.server, &format!("{job}/status")).await;

                let answer = client.send(desk.server.request(method, &url), "").await;
                let ends = method == "DELETE" && resource != "/status";
                let status = match column {
                    Unknown => "",
                    Running if ends => "canceled",
                    column => column.status(),
                };
                check(cell, &answer, column, status, &job, &what);
                if method == "GET" {
                    let head = client.send(desk.server.request("HEAD", &url), "").await;
                    is_the_head_of(&head, &answer, &what);
                }

                // And what it has changed, as the very next request sees it.
                let after = client.get(&desk.server, &format!("{job}/status")).await;
                match (ends, column) {
                    (true, Running) => assert_eq!(after.json()["status"], "canceled", "{what}"),
                    (true, Unknown) => is_problem(&after, 404, "unknown-job"),
                    (true, _) if resource == "/result" => is_problem(&after, 410, "removed"),
                    _ => assert_eq!(after.body, before.body, "{what}"),
                }
            }
        }
    }
}

fn check(cell: Cell, answer: &Answer, column: Column, status: &str, job: &str, what: &str) {
    let what = format!("{what}: {answer:#?}");
    assert_eq!(answer.status, cell.status.or(column.response()).unwrap(), "{what}");
    let location = cell.location.map(|end| format!("{job}{end}"));
    let result = column.response().map(|status| status.to_string());
    let (kind, own, result) = match cell.says {
        Says::Nothing => {
            assert!(answer.body.is_empty(), "{what}");
            (None, None, None)
        }
        Says::Document => {
            let document = answer.json();
            assert_eq!(document["status"], status, "{what}");
            assert_eq!(document["job_id"], job.trim_start_matches("/jobs/"), "{what}");
            assert_eq!(document["links"]["self"], *job, "{what}");
            (Some("application/json"), None, None)
        }
        Says::Problem(problem) => {
            is_problem(answer, cell.status.unwrap(), problem);
            (Some("application/problem+json"), None, None)
        }
        Says::Replay => {
            assert_eq!(answer.body, "own", "{what}");
            (Some("text/x-own"), Some("1"), result.as_deref())
        }
    };
    let mut expected = BTreeSet::new();
    for (name, value) in [
        ("cache-control", Some("no-store")),
        ("content-type", kind),
        ("location", location.as_deref()),
        ("retry-after", cell.retry.then_some("1")),
        ("allow", cell.allow),
        ("asyncresult", result),
        ("x-own", own),
    ] {
        assert_eq!(answer.find_header(name), value, "{name} of {what}");
        assert!(answer.headers.get_all(name).iter().count() < 2, "{name} of {what}");
        expected.extend(value.map(|_| name));
    }
    assert_eq!(names(&answer.headers), expected, "{what}");
    assert!(answer.trailers.is_none(), "{what}");
}

/// `HEAD` is answered as `GET`, less the body.
fn is_the_head_of(head: &Answer, get: &Answer, what: &str) {
    let headers = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.remove("date");
        headers
    };
    assert_eq!((head.status, headers(head)), (get.status, headers(get)), "HEAD for {what}");
    assert_eq!(get.header("content-length"), get.body.len().to_string(), "{what}");
    assert!(head.body.is_empty(), "HEAD for {what}");
}

// ------------------------------------------------------------------------- ids that are none

#[tokio::test]
async fn no_job_looks_like_another() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        let (job, _call) = desk.running(&client).await;
        let id = job.trim_start_matches("/jobs/").to_owned();
        // Over HTTP/2 a server takes 16 kB of headers by default.
        let long = if protocol == "HTTP/2" { 12_000 } else { 60_000 };
        let strange = [
            format!("{:032x}", 1),
            id.to_uppercase(),
            id[1..].to_owned(),
            format!("{id}0"),
            format!("{}g", &id[1..]),
            format!("%3{}{}", &id[..1], &id[1..]),
            "a".repeat(long),
            "f".repeat(long) + "/result",
            format!("{id}/"),
            format!("{id}/other"),
            format!("{id}/result/"),
            format!("{id}/status/x"),
            format!("//{id}"),
            "..".to_owned(),
            String::new(),
        ];
        let mut paths: Vec<_> = strange.iter().map(|id| format!("/jobs/{id}")).collect();
        paths.push("/jobs".to_owned());
        // An id without letters is its own upper case.
        paths.retain(|path| *path != job);
        for method in ["GET", "HEAD", "DELETE"] {
            let mut seen: Option<Answer> = None;
            for path in &paths {
                let mut answer = client.send(desk.server.request(method, path), "").await;
                answer.headers.remove("date");
                assert_eq!(answer.status, 404, "{method} {path:.80} {answer:#?}");
                if method != "HEAD" {
                    is_problem(&answer, 404, "unknown-job");
                }
                let first = seen.get_or_insert_with(|| answer.clone());
                assert_eq!(
                    (answer.status, &answer.headers, &answer.body),
                    (first.status, &first.headers, &first.body),
                    "{method} {path:.80}, {protocol}"
                );
            }
        }
        assert_eq!(client.get(&desk.server, &job).await.json()["status"], "running");
    }
}

// ------------------------------------------------------------------- the 202 and the document

#[tokio::test]
async fn the_202_in_full() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for (prefer, applied) in [
            (None, None),
            (Some("respond-async"), Some("respond-async")),
            (Some("respond-async, wait=5"), Some("respond-async")),
        ] {
            let mut request = desk.server.request("POST", "/always?x=1");
            if let Some(prefer) = prefer {
                request = request.header("prefer", prefer);
            }
            let answer = client.send(request, "body").await;
            let call = desk.calls.next().await;
            assert_eq!((&*call.body, call.head.uri.query()), (&b"body"[..], Some("x=1")));

            let document = answer.json();
            let job = format!("/jobs/{}", document["job_id"].as_str().unwrap());
            assert_eq!(answer.status, 202, "{protocol}");
            for (name, value) in [
                ("location", Some(&*job)),
                ("retry-after", Some("1")),
                ("link", Some(&*format!("<{job}/status>; rel=\"status monitor\""))),
                ("cache-control", Some("no-store")),
                ("vary", Some("Prefer")),
                ("content-type", Some("application/json")),
                ("preference-applied", applied),
                ("operation-location", None),
            ] {
                assert_eq!(answer.find_header(name), value, "{name} of {answer:#?}");
            }
            // The job is in the store by now: the same document is at its URL.
            let status = client.get(&desk.server, &format!("{job}/status")).await;
            assert_eq!(status.json(), document, "{protocol}");
        }
    }
}

#[tokio::test]
async fn the_document_in_full() {
    const TTL: Duration = Duration::from_secs(90);
    let mut desk = Desk::with(Offload::builder("/jobs").ttl(TTL)).await;
    let client = Client::http1();
    let earliest = Timestamp::now();
    let (job, call) = desk.running(&client).await;

    let status = format!("{job}/status");
    let running = client.get(&desk.server, &status).await.json();
    let created = time(&running["created_at"]);
    // Milliseconds are cut off.
    assert!(created >= earliest - Duration::from_millis(1) && created <= Timestamp::now());
    assert!(time(&running["started_at"]) >= created);
    assert_eq!(time(&running["expires_at"]), created + TTL);
    let members: BTreeSet<_> = running.as_object().unwrap().keys().map(String::as_str).collect();
    let always = ["created_at", "expires_at", "job_id", "links", "started_at", "status"];
    assert_eq!(members, always.into());

    call.answer(own(422));
    let failed = client.ended(&desk.server, &job).await;
    let finished = time(&failed["finished_at"]);
    assert!(finished >= time(&failed["started_at"]) && finished <= Timestamp::now());
    assert_eq!(time(&failed["expires_at"]), finished + TTL);
    assert!(time(&failed["expires_at"]) >= time(&running["expires_at"]));
    assert_eq!(failed["response_status"], 422);
    for member in ["job_id", "created_at", "started_at", "links"] {
        assert_eq!(failed[member], running[member], "{member}");
    }
    assert_eq!(
        failed["links"],
        serde_json::json!({ "self": job, "status": status, "result": format!("{job}/result") })
    );
    let members: BTreeSet<_> = failed.as_object().unwrap().keys().map(String::as_str).collect();
    let ended = always.into_iter().chain(["finished_at", "response_status"]).collect();
    assert_eq!(members, ended, "there is no error where there is a response");
}

/// A time as RFC 3339 has it.
fn time(text: &Value) -> Timestamp {
    let text = text.as_str().unwrap();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    text.parse().unwrap()
}

// ------------------------------------------------------------------- ends without a response

#[tokio::test]
async fn every_end_without_a_response_has_a_problem_of_its_own() {
    let builder = || Offload::builder("/jobs").max_outcome_bytes(10_000);
    for (protocol, client) in clients() {
        let mut desk = Desk::with(builder()).await;
        let client = &client;

        let (job, call) = desk.running(client).await;
        call.panic();
        ended_without_response(&desk, client, &job, 500, "panicked").await;

        let broken = futures_util::stream::iter([
            Ok(Bytes::from_static(b"some")),
            Err(std::io::Error::other("a secret of the database")),
        ]);
        let job = desk.ended(client, Body::from_stream(broken)).await;
        ended_without_response(&desk, client, &job, 500, "service-error").await;

        let job = desk.ended(client, "x".repeat(20_000)).await;
        ended_without_response(&desk, client, &job, 500, "outcome-too-large").await;

        let accepted = client.post(&desk.server, "/short", "").await;
        let call = desk.calls.next().await;
        let job = accepted.location();
        client.ended(&desk.server, job).await;
        call.gone().await;
        ended_without_response(&desk, client, job, 504, "timed-out").await;

        let (job, call) = desk.running(client).await;
        let drained = desk.offload.drain(Duration::ZERO).await;
        assert_eq!((drained.finished(), drained.interrupted()), (0, 1), "{protocol}");
        ended_without_response(&desk, client, &job, 503, "interrupted").await;
        call.gone().await;
    }
}

#[tokio::test]
async fn an_error_of_the_service_ends_the_job() {
    let offload = Offload::new("/jobs");
    let fails = service_fn(|_: Request<Body>| async {
        Err::<Response, BoxError>("a secret of the database".into())
    });
    let service = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|_: BoxError| async { StatusCode::IM_A_TEAPOT }))
        .layer(offload.layer(Policy::always()).boxed())
        .service(fails);
    let app =
        Router::new().route_service("/always", service).nest_service("/jobs", offload.status());
    let desk = Desk { server: Server::axum(app).await, calls: gated().1, offload };
    for (_, client) in clients() {
        let accepted = client.post(&desk.server, "/always", "").await;
        let job = accepted.location();
        client.ended(&desk.server, job).await;
        ended_without_response(&desk, &client, job, 500, "service-error").await;
    }
}

/// The four answers that tell of such an end.
async fn ended_without_response(desk: &Desk, client: &Client, job: &str, status: u16, kind: &str) {
    let found = client.get(&desk.server, job).await;
    assert_eq!((found.status.as_u16(), found.header("location")), (303, &*format!("{job}/result")));
    let result = client.get(&desk.server, found.header("location")).await;
    is_problem(&result, status, kind);
    assert_eq!(result.find_header("asyncresult"), None);
    for secret in ["told to", "secret", "src/"] {
        assert!(!result.text().contains(secret), "{}", result.text());
    }
    let document = client.get(&desk.server, &format!("{job}/status")).await.json();
    assert_eq!(document["status"], "failed");
    assert_eq!(document["error"], result.json());
    assert_eq!(document["response_status"], Value::Null);
    assert_eq!(client.delete(&desk.server, job).await.status, 409);
}

// ---------------------------------------------------------------------------- cancellation

#[tokio::test]
async fn delete_cancels_on_both_urls_and_the_next_poll_says_so() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for resource in ["", "/result"] {
            let (job, call) = desk.running(&client).await;
            assert!(!call.is_gone());
            let url = format!("{job}{resource}");
            let canceled = client.delete(&desk.server, &url).await;
            assert_eq!(
                (canceled.status.as_u16(), &canceled.json()["status"]),
                (200, &"canceled".into())
            );
            assert_eq!(canceled.find_header("retry-after"), None);

            // Another connection, at once.
            let other = if protocol == "HTTP/2" { Client::http1() } else { Client::http2() };
            let found = other.get(&desk.server, &job).await;
            assert_eq!((found.status.as_u16(), &found.json()["status"]), (303, &"canceled".into()));
            is_problem(&other.get(&desk.server, found.header("location")).await, 410, "canceled");
            let document = other.get(&desk.server, &format!("{job}/status")).await.json();
            assert!(time(&document["finished_at"]) >= time(&document["created_at"]));
            assert_eq!(document["error"]["status"], 410);
            call.gone().await;
        }
    }
}

#[tokio::test]
async fn a_retried_delete_destroys_nothing() {
    let client = Client::http1();
    let mut desk = Desk::new().await;

    // Canceled, and told so as often as it is asked.
    let (job, _call) = desk.running(&client).await;
    let first = client.delete(&desk.server, &job).await;
    for _ in 0..3 {
        let again = client.delete(&desk.server, &job).await;
        assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
    }

    // Too late to cancel: the outcome stays, however often that is tried.
    let job = desk.ended(&client, own(200)).await;
    for _ in 0..3 {
        let late = client.delete(&desk.server, &job).await;
        assert_eq!((late.status.as_u16(), &late.json()["status"]), (409, &"succeeded".into()));
        assert_eq!(client.get(&desk.server, &format!("{job}/result")).await.body, "own");
    }

    // Removed on purpose, and again.
    let result = format!("{job}/result");
    for _ in 0..3 {
        let removed = client.delete(&desk.server, &result).await;
        assert_eq!((removed.status.as_u16(), removed.body.len()), (204, 0));
        is_problem(&client.get(&desk.server, &result).await, 410, "removed");
    }
}

// ------------------------------------------------------------------------------- the replay

#[tokio::test]
async fn a_202_of_the_handler_is_replayed_as_200() {
    for (_, client) in clients() {
        let mut desk = Desk::new().await;
        let job = desk.ended(&client, own(202)).await;
        let result = client.get(&desk.server, &format!("{job}/result")).await;
        assert_eq!((result.status.as_u16(), result.header("asyncresult")), (200, "202"));
        assert_eq!(result.body, "own");
        let document = client.get(&desk.server, &format!("{job}/status")).await.json();
        assert_eq!(document["response_status"], 202);
    }
}

#[tokio::test]
async fn a_replay_is_the_response_less_what_belongs_to_its_connection_or_to_caches() {
    let body: Vec<u8> = (0..70_000u32).map(|n| (n * 31 % 256) as u8).collect();
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        let mut response = Response::new(Body::from(body.clone()));
        *response.status_mut() = StatusCode::CREATED;
        let kept = [
            ("content-type", "application/octet-stream"),
            ("content-disposition", "attachment; filename=\"a.bin\""),
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=2"),
            ("set-cookie", "a=3"),
            ("etag", "\"v1\""),
            ("last-modified", "Tue, 15 Nov 1994 12:45:26 GMT"),
            ("vary", "Accept"),
            ("www-authenticate", "Basic"),
            ("x-latin", "caf\u{e9}"),
            ("x-empty", ""),
            ("location", "/somewhere/else"),
        ];
        let dropped = [
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("upgrade", "h2c"),
            ("cache-control", "public, max-age=600"),
            ("expires", "Thu, 01 Dec 2044 16:00:00 GMT"),
            ("age", "3"),
            ("cdn-cache-control", "max-age=60"),
            ("surrogate-control", "max-age=60"),
            ("accept-ranges", "bytes"),
            ("content-length", "70000"),
            ("asyncresult", "999"),
        ];
        for (name, value) in kept.into_iter().chain(dropped) {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            response.headers_mut().append(name, value);
        }
        let job = desk.ended(&client, response).await;
        let request = desk.server.request("GET", &format!("{job}/result"));
        // Conditions and ranges are ignored: a replay is the whole response.
        let request = request.header("if-none-match", "\"v1\"").header("range", "bytes=0-3");
        let result = client.send(request, "").await;

        assert_eq!(result.status, 201, "{protocol}");
        assert_eq!(result.body, body);
        let mut headers: Vec<_> = result
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), std::str::from_utf8(value.as_bytes()).unwrap()))
            .filter(|(name, _)| !matches!(*name, "date" | "content-length"))
            .collect();
        let mut expected = kept.to_vec();
        expected.extend([("cache-control", "no-store"), ("asyncresult", "201")]);
        // Sorted by name only: repeated ones keep their order.
        headers.sort_by_key(|(name, _)| *name);
        expected.sort_by_key(|(name, _)| *name);
        assert_eq!(headers, expected, "{protocol}");
        assert_eq!(result.header("content-length"), "70000");
    }
}

#[tokio::test]
async fn trailers_are_replayed() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        let job = desk.ended(&client, with_trailers("data", "x-sum", "4711")).await;
        let result = format!("{job}/result");
        let request = desk.server.request("GET", &result).header("te", "trailers");
        let answer = client.send(request, "").await;
        assert_eq!((answer.body.as_ref(), answer.header("trailer")), (&b"data"[..], "x-sum"));
        assert_eq!(answer.trailers.expect(protocol)["x-sum"], "4711");

        let head = client.send(desk.server.request("HEAD", &result), "").await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
        assert_eq!(head.find_header("content-length"), None, "no length is told, as for GET");
    }
}

#[tokio::test]
async fn trailers_without_data_are_replayed() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        let trailers = [("x-sum".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
        let frames = futures_util::stream::iter([Ok::<_, Infallible>(Frame::trailers(trailers))]);
        let response = ([("trailer", "x-sum")], Body::new(StreamBody::new(frames)));
        let job = desk.ended(&client, response).await;
        let request = desk.server.request("GET", &format!("{job}/result")).header("te", "trailers");
        let answer = client.send(request, "").await;
        assert_eq!(answer.body, "");
        assert_eq!(answer.trailers.expect(protocol)["x-sum"], "0");
    }
}

#[tokio::test]
async fn statuses_without_content_are_replayed_without_a_length() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
            let job = desk.ended(&client, (status, [("etag", "\"1\"")])).await;
            for method in ["GET", "HEAD"] {
                let request = desk.server.request(method, &format!("{job}/result"));
                let answer = client.send(request, "").await;
                assert_eq!((answer.status, answer.header("etag")), (status, "\"1\""));
                assert_eq!(answer.find_header("content-length"), None, "{method} {protocol}");
            }
        }
    }
}

#[tokio::test]
async fn relative_references_are_resolved_against_the_original_request() {
    for (_, client) in clients() {
        let mut desk = Desk::new().await;
        for (target, reference, resolved) in [
            ("/always/a/b?q=1", "c?d=e", "/always/a/c?d=e"),
            ("/always/a/b/", "../c", "/always/a/c"),
            ("/always/a/b?q=1", "?page=2", "/always/a/b?page=2"),
            ("/always/a", "/elsewhere", "/elsewhere"),
            ("/always/a", "//other.example/x", "//other.example/x"),
            ("/always/a", "https://other.example/x", "https://other.example/x"),
        ] {
            let response =
                (StatusCode::CREATED, [("location", reference), ("content-location", reference)]);
            let job = desk.ended_at(&client, target, response).await;
            let result = client.get(&desk.server, &format!("{job}/result")).await;
            assert_eq!(result.header("location"), resolved, "{reference} at {target}");
            assert_eq!(result.header("content-location"), resolved);
        }
    }
}

#[tokio::test]
async fn following_redirects_gives_what_a_quick_request_gave() {
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let responses: [fn(Vec<u8>) -> Response; 5] = [
        |_| "text".into_response(),
        |binary| binary.into_response(),
        |_| (StatusCode::NOT_FOUND, [("x-why", "gone")], "{}").into_response(),
        |_| StatusCode::NO_CONTENT.into_response(),
        |_| with_trailers("data", "x-sum", "4"),
    ];
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for response in responses {
            let send = |path| {
                let request = desk.server.request("POST", path).header("te", "trailers");
                client.send(request, "body")
            };
            let answer = async {
                desk.calls.next().await.answer(response(binary.clone()));
            };
            let (quick, ()) = tokio::join!(send("/bare"), answer);
            let answer = async {
                desk.calls.next().await.answer(response(binary.clone()));
            };
            let (accepted, ()) = tokio::join!(send("/always"), answer);

            // All that such a client knows: ask until it is not 202, then follow.
            let mut at = accepted.location().to_owned();
            let replayed = loop {
                let request = desk.server.request("GET", &at).header("te", "trailers");
                let answer = client.send(request.header("prefer", "wait=30"), "").await;
                match answer.status.as_u16() {
                    202 | 303 => at = answer.header("location").to_owned(),
                    _ => break answer,
                }
            };
            assert_eq!(replayed.status, quick.status, "{protocol}");
            assert_eq!(replayed.body, quick.body, "{protocol}");
            assert_eq!(replayed.trailers, quick.trailers, "{protocol}");
            let mut headers = replayed.headers.clone();
            assert!(headers.remove("cache-control").is_some());
            assert!(headers.remove("asyncresult").is_some());
            let mut quick = quick.headers.clone();
            if replayed.status == 204 {
                // axum tells a length here over HTTP/2, where there can be none.
                quick.remove("content-length");
            }
            for headers in [&mut quick, &mut headers] {
                headers.remove("date");
            }
            assert_eq!(headers, quick, "{protocol}");
        }
    }
}

// -------------------------------------------------- references, where the client chooses the path

type Routed = fn(MethodRouter) -> Router;

/// An app whose handler answers at every path, and where the layer sees all of it or its end.
const ANY_PATH: [(&str, Routed); 3] = [
    ("", |handler| Router::new().route("/{*rest}", handler)),
    ("", |handler| Router::new().fallback_service(handler)),
    // axum removes the slash behind a prefix too.
    ("/nested/", |handler| Router::new().nest("/nested", Router::new().fallback_service(handler))),
];

impl Desk {
    async fn any_path(policy: Policy, routed: Routed) -> Self {
        let offload = Offload::builder("/jobs").owner(|_| Some(Owner::from("anyone")));
        let offload = offload.build().unwrap();
        let (gated, calls) = gated();
        let app = routed(gated.route().layer(offload.layer(policy)));
        let app = app.nest_service("/jobs", offload.status());
        Self { server: Server::axum(app).await, calls, offload }
    }

    /// Writes a request as it is, has its handler answer with this reference, and reads the answer.
    async fn answer_to(&mut self, target: &str, reference: &str) -> String {
        let mut raw = self.server.connect().await;
        raw.write(format!(
            "POST {target} HTTP/1.1\r\nhost: host\r\nidempotency-key: {}\r\ncontent-length: 0\r\n\r\n",
            JobId::random().unwrap()
        ))
        .await;
        let call = self.calls.next().await;
        let reference = HeaderValue::from_bytes(reference.as_bytes()).unwrap();
        call.answer((StatusCode::CREATED, [("location", reference)]));
        soon("an answer", raw.read_response()).await.0
    }

    /// The `Location` of the replay.
    async fn replayed_location(&mut self, target: &str, reference: &str) -> String {
        let client = Client::http1();
        let job = location_in(&self.answer_to(target, reference).await).to_owned();
        client.ended(&self.server, &job).await;
        let result = format!("{job}/result");
        let location = client.get(&self.server, &result).await.header("location").to_owned();
        assert_stays_on_the_origin(&result, &location);
        location
    }
}

fn location_in(head: &str) -> &str {
    head.lines()
        .find_map(|line| line.strip_prefix("location: "))
        .unwrap_or_else(|| panic!("{head}"))
}

/// Whether a reference read at this path leads to the same origin, as RFC 3986 and as browsers have it.
fn assert_stays_on_the_origin(at: &str, reference: &str) {
    let at = format!("http://host{at}");
    let by_browsers = Url::parse(&at).unwrap().join(reference).unwrap();
    assert_eq!(by_browsers.origin().ascii_serialization(), "http://host", "{reference}");
    let strict = UriReferenceStr::new(reference).unwrap();
    let by_rfc = strict.resolve_against(UriAbsoluteStr::new(&at).unwrap()).to_dedicated_string();
    assert_eq!(by_rfc.authority_str(), Some("host"), "{reference}");
    assert_eq!(by_rfc.as_str(), by_browsers.as_str());
}

/// That each reference, answered to a request for its target, is replayed as this.
async fn assert_replayed(table: &[(&str, &str, &str)]) {
    for (prefix, routed) in ANY_PATH {
        let mut desk = Desk::any_path(Policy::always(), routed).await;
        for (target, reference, expected) in table {
            let target = match target.strip_prefix("http://host") {
                Some(path) => format!("http://host{prefix}{path}"),
                None => format!("{prefix}{target}"),
            };
            let location = desk.replayed_location(&target, reference).await;
            assert_eq!(location, *expected, "{reference:?} at {target}");
        }
    }
}

#[tokio::test]
async fn a_path_with_two_slashes_is_no_host_in_a_replay() {
    assert_replayed(&[
        ("//evil.example/x", "next", "/.//evil.example/next"),
        ("//evil.example/x", "?page=2", "/.//evil.example/x?page=2"),
        ("//evil.example/x?q=1", "#top", "/.//evil.example/x?q=1#top"),
        ("//evil.example/x", ".", "/.//evil.example/"),
        ("///evil.example/x", "next", "/.///evil.example/next"),
    ])
    .await;
}

#[tokio::test]
async fn a_path_with_two_slashes_is_no_host_over_http_2() {
    let mut desk = Desk::any_path(Policy::always(), ANY_PATH[0].1).await;
    let client = Client::http2();
    let created = (StatusCode::CREATED, [("location", "next"), ("content-location", "?page=2")]);
    let job = desk.ended_at(&client, "//evil.example/x", created).await;
    let result = client.get(&desk.server, &format!("{job}/result")).await;
    assert_eq!(result.header("location"), "/.//evil.example/next");
    assert_eq!(result.header("content-location"), "/.//evil.example/x?page=2");
}

#[tokio::test]
async fn the_path_of_an_absolute_form_target_is_no_host_in_a_replay() {
    assert_replayed(&[
        ("http://host//evil.example/x", "next", "/.//evil.example/next"),
        ("http://host/\\evil.example/x", "next", "/.//evil.example/next"),
    ])
    .await;
}

#[tokio::test]
async fn dot_segments_before_two_slashes_make_no_host_in_a_replay() {
    assert_replayed(&[
        ("/a/..//evil.example/", "next", "/.//evil.example/next"),
        ("/.//evil.example/", "next", "/.//evil.example/next"),
        ("/a/%2e%2E//evil.example/", "next", "/.//evil.example/next"),
    ])
    .await;
}

#[tokio::test]
async fn a_backslash_in_the_path_makes_no_host_in_a_replay() {
    assert_replayed(&[
        ("/\\evil.example/x", "next", "/.//evil.example/next"),
        ("/\\evil.example/x", "", "/.//evil.example/x"),
        ("/a/..\\\\evil.example/x", "next", "/.//evil.example/next"),
    ])
    .await;
}

#[tokio::test]
async fn a_relative_reference_of_the_handler_makes_no_host_in_a_replay() {
    assert_replayed(&[
        ("/a/b", "..//evil.example/", "/.//evil.example/"),
        ("/a", ".//evil.example/", "/.//evil.example/"),
        ("/a/b", "..\\\\evil.example/", "/.//evil.example/"),
        ("/a/b", ".\t./\t/evil.example/", "/.//evil.example/"),
    ])
    .await;
}

#[tokio::test]
async fn references_are_resolved_where_a_strict_parser_refuses_the_target() {
    assert_replayed(&[
        ("/a/b?f[]=1", "next", "/a/next"),
        ("/a/b?f[]=1", "?page=2", "/a/b?page=2"),
        ("/a/b?q=x|y", "next", "/a/next"),
        ("/a/b?{^`}", "#top", "/a/b?%7B%5E%60%7D#top"),
        ("/a/b?%zz", "next", "/a/next"),
        ("/a/b?\u{e9}", "next", "/a/next"),
        ("/a/\u{e9}/c", "next", "/a/%C3%A9/next"),
        ("/a/[b]/c", "next", "/a/%5Bb%5D/next"),
        ("/a/b", "f[]|", "/a/f%5B%5D%7C"),
        ("/a/b", "\u{e9} \u{e9}", "/a/%C3%A9%20%C3%A9"),
    ])
    .await;
}

#[tokio::test]
async fn an_idempotent_route_answers_and_replays_with_the_same_safe_reference() {
    for (target, reference) in [
        ("//evil.example/x", "next"),
        ("/a/..//evil.example/x", "next"),
        ("http://host//evil.example/x", "next"),
        ("/\\evil.example/x", "next"),
        ("/a/b", "..//evil.example/next"),
    ] {
        let catch_all = ANY_PATH[0].1;
        let patient = Policy::after(Duration::from_secs(3600)).idempotent();
        let mut desk = Desk::any_path(patient, catch_all).await;
        let head = desk.answer_to(target, reference).await;
        assert!(head.starts_with("http/1.1 201"), "{head}");
        let immediate = location_in(&head);
        assert_stays_on_the_origin("//evil.example/x", immediate);
        assert_eq!(immediate, "/.//evil.example/next");
        let mut desk = Desk::any_path(Policy::always().idempotent(), catch_all).await;
        assert_eq!(desk.replayed_location(target, reference).await, immediate);
    }
}

#[tokio::test]
async fn the_urls_of_a_job_do_not_depend_on_its_requests() {
    const HOSTILE: &str = "host: evil.example\r\nx-forwarded-host: evil.example\r\n\
        x-forwarded-prefix: //evil.example\r\nforwarded: host=evil.example\r\n\
        x-original-url: //evil.example/\r\nreferer: http://evil.example/\r\n\
        content-length: 0\r\n";
    let mut desk = Desk::with(Offload::builder("/jobs").operation_location(true)).await;
    let mut raw = desk.server.connect().await;
    let mut send = async |method: &str, target: &str| {
        raw.write(format!("{method} {target} HTTP/1.1\r\n{HOSTILE}\r\n")).await;
        let (head, body) = soon("an answer", raw.read_response()).await;
        let body = String::from_utf8(body).unwrap();
        assert!(!head.contains("evil") && !body.contains("evil"), "{head}{body}");
        (head, serde_json::from_str::<Value>(&body).unwrap())
    };
    let is_of_job = |(head, document): (String, Value), job: &str, location: Option<&str>| {
        if let Some(end) = location {
            assert_eq!(location_in(&head), format!("{job}{end}"));
        }
        assert_eq!(document["links"]["self"], job);
        assert_eq!(document["links"]["status"], format!("{job}/status"));
        assert_eq!(document["links"]["result"], format!("{job}/result"));
    };
    let accepted = send("POST", "http://evil.example/always").await;
    let job = location_in(&accepted.0).to_owned();
    assert!(job.strip_prefix("/jobs/").is_some_and(|id| id.parse::<JobId>().is_ok()), "{job}");
    assert!(accepted.0.contains(&format!("link: <{job}/status>;")), "{}", accepted.0);
    assert!(accepted.0.contains(&format!("operation-location: {job}/status\r\n")));
    is_of_job(accepted, &job, Some(""));
    let absolute = format!("http://evil.example{job}");
    is_of_job(send("GET", &absolute).await, &job, Some(""));
    is_of_job(send("GET", &format!("{job}/status?//evil.example/")).await, &job, None);
    desk.calls.next().await.answer("done");
    Client::http1().ended(&desk.server, &job).await;
    is_of_job(send("GET", &absolute).await, &job, Some("/result"));
    is_of_job(send("DELETE", &absolute).await, &job, None);
}

// ------------------------------------------------------------------------- other pollers

#[tokio::test]
async fn operation_location_and_resource_location() {
    for (_, client) in clients() {
        let mut desk = Desk::with(Offload::builder("/jobs").operation_location(true)).await;
        let accepted = client.post(&desk.server, "/always", "").await;
        let job = accepted.location();
        let operation = accepted.header("operation-location");
        assert_eq!(operation, format!("{job}/status"));
        assert_eq!(accepted.json()["resourceLocation"], Value::Null);
        let running = client.get(&desk.server, operation).await;
        assert_eq!(running.json()["resourceLocation"], Value::Null);

        desk.calls.next().await.answer(own(200));
        let ended = client.ended(&desk.server, job).await;
        let resource = ended["resourceLocation"].as_str().unwrap();
        assert_eq!(resource, format!("{job}/result"));
        assert_eq!(client.get(&desk.server, resource).await.body, "own");
    }
}

#[tokio::test]
async fn location_styles() {
    for (_, client) in clients() {
        for (style, end, while_running, at_the_end) in [
            (LocationStyle::Job, "", 202, 303),
            (LocationStyle::Result, "/result", 202, 201),
            (LocationStyle::Status, "/status", 200, 200),
        ] {
            let mut desk = Desk::with(Offload::builder("/jobs").location(style)).await;
            let accepted = client.post(&desk.server, "/always", "").await;
            let job = accepted.json()["links"]["self"].as_str().unwrap().to_owned();
            let location = accepted.location();
            assert_eq!(location, format!("{job}{end}"));

            let running = client.get(&desk.server, location).await;
            assert_eq!(
                (running.status.as_u16(), running.header("retry-after")),
                (while_running, "1")
            );
            if while_running == 202 {
                // A poller that takes the last Location there was goes on asking there.
                assert_eq!(running.header("location"), location);
            }
            // The others of the three are there all the same.
            for resource in ["", "/result"] {
                let poll = client.get(&desk.server, &format!("{job}{resource}")).await;
                assert_eq!((poll.status.as_u16(), poll.header("location")), (202, location));
            }

            desk.calls.next().await.answer(own(201));
            client.ended(&desk.server, &job).await;
            let ended = client.get(&desk.server, location).await;
            assert_eq!(
                (ended.status.as_u16(), ended.find_header("retry-after")),
                (at_the_end, None)
            );
        }
    }
}

// -------------------------------------------------------------- Prefer on the original request

#[tokio::test]
async fn prefer_is_a_list_over_several_lines() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for (lines, applied) in [
            (&["respond-async"][..], "respond-async"),
            (&["Respond-Async"], "respond-async"),
            (&["return=minimal", "respond-async"], "respond-async"),
            (&["handling=lenient; x=\"a, b\", respond-async;y=z"], "respond-async"),
            (&["respond-async", "wait=0"], "respond-async, wait=0"),
            (&["wait=0", "foo, respond-async"], "respond-async, wait=0"),
            (&["wait=0, wait=99", "respond-async"], "respond-async, wait=0"),
            (&["wait=soon, respond-async"], "respond-async"),
        ] {
            let mut request = desk.server.request("POST", "/patient");
            for line in lines {
                request = request.header("prefer", *line);
            }
            let accepted = client.send(request, "").await;
            assert_eq!(accepted.status, 202, "{lines:?} {protocol}");
            assert_eq!(accepted.header("preference-applied"), applied, "{lines:?} {protocol}");
            desk.calls.next().await.answer(());
            assert_eq!(
                client.ended(&desk.server, accepted.location()).await["status"],
                "succeeded"
            );
        }
    }
}

#[tokio::test]
async fn what_does_not_ask_for_it_changes_nothing() {
    for (protocol, client) in clients() {
        let mut desk = Desk::new().await;
        for line in [
            "wait=0",
            "wait",
            "respond-async=yes",
            "respond async",
            "\"respond-async\"",
            "x=\"respond-async, wait=0\"",
            "x=\"respond-async",
            "respond-asynchronously",
            ";,=;respond-async",
            "",
        ] {
            let request = desk.server.request("POST", "/patient").header("prefer", line);
            let answered = async { desk.calls.next().await.answer(own(200)) };
            let (answer, ()) = tokio::join!(client.send(request, ""), answered);
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"own"[..]), "{line}");
            assert_eq!(names(&answer.headers), ["content-type", "x-own"].into(), "{protocol}");
        }
    }
}

#[tokio::test]
async fn a_response_ready_at_the_first_poll_goes_through_untouched() {
    let offload = Offload::new("/jobs");
    let ready = || async { (StatusCode::ACCEPTED, [("location", "/own"), ("x-own", "1")], "own") };
    let app = Router::new()
        .route("/", any(ready).layer(offload.layer(Policy::after(Duration::from_secs(1)))))
        .nest_service("/jobs", offload.status());
    let server = Server::axum(app).await;
    for (_, client) in clients() {
        for method in ["GET", "POST"] {
            for prefer in ["respond-async", "respond-async, wait=0", "respond-async, wait=9"] {
                let request = server.request(method, "/").header("prefer", prefer);
                let answer = client.send(request, "").await;
                // Even a 202 of the handler's own, and a Location that is no job's.
                assert_eq!((answer.status.as_u16(), answer.header("location")), (202, "/own"));
                assert_eq!(answer.body, "own");
                let own = ["content-type", "location", "x-own"];
                assert_eq!(names(&answer.headers), own.into());
            }
        }
    }
}

#[tokio::test]
async fn wait_is_clamped_and_confirmed() {
    let builder = Offload::builder("/jobs").max_wait(Duration::from_secs(1));
    let mut desk = Desk::with(builder).await;
    let client = Client::http2();
    let started = std::time::Instant::now();
    let request =
        desk.server.request("POST", "/patient").header("prefer", "respond-async, wait=86400");
    let accepted = support::soon("the 202", client.send(request, "")).await;
    assert_eq!(accepted.status, 202);
    assert_eq!(accepted.header("preference-applied"), "respond-async, wait=1");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(!desk.calls.next().await.is_gone());
}
