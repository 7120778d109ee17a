//! Which requests become jobs, and when: the policies by themselves and as a table around a router,
//! one `Offload` layered several times, and what stays on its connection whatever the policy.

mod support;

use std::time::Duration;

use axum::{Router, extract::Request, routing::any};
use futures_util::future;
use support::{
    Answer, Client, Server,
    gated::{Call, Calls, Gated, gated},
    soon,
};
use tokio::task::JoinHandle;
use tower::{Layer, make::Shared};
use tower_offload::{Job, Offload, Policies, Policy};

const BUDGET: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(3600);

// ------------------------------------------------------------------------------ a server to ask

struct Desk {
    server: Server,
    calls: Calls,
    client: Client,
}

impl Desk {
    async fn new(app: Router, calls: Calls, client: Client) -> Self {
        Self { server: Server::axum(app).await, calls, client }
    }

    /// Sends a request, in a task of its own.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> JoinHandle<Answer> {
        let mut request = self.server.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = self.client.clone();
        tokio::spawn(async move { soon("an answer", client.send(request, "")).await })
    }

    /// The answer becomes a 202 while the handler waits. Ends the job, and gives the 202.
    async fn is_offloaded(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let what = format!("{method} {path} {headers:?}");
        let accepted = self.send(method, path, headers).await.unwrap();
        assert_eq!(accepted.status, 202, "{what}");
        self.calls.next().await.answer("own");
        let job = accepted.location();
        assert_eq!(self.client.ended(&self.server, job).await["status"], "succeeded", "{what}");
        let result = self.client.get(&self.server, &format!("{job}/result")).await;
        assert_eq!(result.text(), "own", "{what}");
        accepted
    }

    /// The answer is the handler's, however long that takes: `pass` makes the time go by.
    async fn stays<T>(
        &mut self,
        (method, path, headers): (&str, &str, &[(&str, &str)]),
        pass: impl AsyncFnOnce(&mut Self) -> T,
    ) -> T {
        let what = format!("{method} {path} {headers:?}");
        let answer = self.send(method, path, headers);
        let call = self.calls.next().await;
        let passed = pass(self).await;
        assert!(!answer.is_finished() && !call.is_gone(), "{what}");
        call.answer("own");
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{what}");
        let expected = if method == "HEAD" { "" } else { "own" };
        assert_eq!(answer.text(), expected, "{what}");
        for name in ["location", "preference-applied", "vary", "retry-after"] {
            assert_eq!(answer.find_header(name), None, "{name} of {what}");
        }
        passed
    }

    /// Lets more than the budget go by: another request's runs out twice.
    async fn outlast(&mut self) {
        for _ in 0..2 {
            self.is_offloaded("POST", "/after", &[]).await;
        }
    }
}

// ---------------------------------------------------------------------------------- the policies

/// One layer for each route.
fn by_route(gated: &Gated) -> Router {
    let offload = Offload::new("/jobs");
    let route = |policy| gated.route().layer(offload.layer(policy));
    Router::new()
        .route("/never", route(Policy::never()))
        .route("/after", route(Policy::after(BUDGET)))
        .route("/patient", route(Policy::after(LONG)))
        .route("/always", route(Policy::always()))
        .route("/asked", route(Policy::on_request(BUDGET)))
        .route("/patiently-asked", route(Policy::on_request(LONG)))
        .nest_service("/jobs", offload.status())
}

/// One layer with a table, on the router.
fn by_table(gated: &Gated) -> Router {
    let offload = Offload::new("/jobs");
    let table = Policies::otherwise(Policy::never())
        .at("/after", Policy::after(BUDGET))
        .at("/patient", Policy::after(LONG))
        .at("/always", Policy::always())
        .at("/asked", Policy::on_request(BUDGET))
        .at("/patiently-asked", Policy::on_request(LONG));
    Router::new()
        .route("/{route}", gated.route())
        .nest_service("/jobs", offload.status())
        .layer(offload.layer(table))
}

async fn desks() -> Vec<Desk> {
    let mut desks = Vec::new();
    for client in [Client::http1(), Client::http2()] {
        for build in [by_route, by_table] {
            let (gated, calls) = gated();
            desks.push(Desk::new(build(&gated), calls, client.clone()).await);
        }
    }
    desks
}

const ASKED: (&str, &str) = ("prefer", "respond-async");
const ASKED_AT_ONCE: (&str, &str) = ("prefer", "respond-async, wait=0");
const ASKED_PATIENTLY: (&str, &str) = ("prefer", "respond-async, wait=30");

#[tokio::test]
async fn never() {
    for mut desk in desks().await {
        for headers in [&[][..], &[ASKED], &[ASKED_AT_ONCE]] {
            desk.stays(("POST", "/never", headers), Desk::outlast).await;
        }
    }
}

#[tokio::test]
async fn after() {
    for mut desk in desks().await {
        for method in ["POST", "PUT", "PATCH", "DELETE", "GET"] {
            let accepted = desk.is_offloaded(method, "/after", &[]).await;
            assert_eq!(accepted.find_header("preference-applied"), None);
            assert_eq!(accepted.header("vary"), "Prefer");
        }
        // `wait` alone changes nothing.
        desk.is_offloaded("POST", "/after", &[("prefer", "wait=30")]).await;
        desk.stays(("POST", "/patient", &[("prefer", "wait=0")]), Desk::outlast).await;
        desk.stays(("POST", "/patient", &[]), Desk::outlast).await;

        for (headers, applied) in
            [([ASKED], "respond-async"), ([ASKED_AT_ONCE], "respond-async, wait=0")]
        {
            let accepted = desk.is_offloaded("POST", "/patient", &headers).await;
            assert_eq!(accepted.header("preference-applied"), applied);
        }
        // A client may have more patience than the route.
        desk.stays(("POST", "/after", &[ASKED_PATIENTLY]), Desk::outlast).await;
    }
}

#[tokio::test]
async fn always() {
    for mut desk in desks().await {
        for (headers, applied) in [
            (&[][..], None),
            (&[("prefer", "wait=30")], None),
            (&[ASKED], Some("respond-async")),
            (&[ASKED_PATIENTLY], Some("respond-async")),
        ] {
            for method in ["POST", "GET", "DELETE"] {
                let accepted = desk.is_offloaded(method, "/always", headers).await;
                assert_eq!(accepted.find_header("preference-applied"), applied);
            }
        }
    }
}

#[tokio::test]
async fn always_is_a_202_even_where_the_handler_is_ready_at_once() {
    let offload = Offload::new("/jobs");
    let ready = any(async |body: String| body).layer(offload.layer(Policy::always()));
    let app = Router::new().route("/", ready).nest_service("/jobs", offload.status());
    let server = Server::axum(app).await;
    for client in [Client::http1(), Client::http2()] {
        for body in ["", "body"] {
            let accepted = client.post(&server, "/", body).await;
            client.ended(&server, accepted.location()).await;
            let result = client.get(&server, &format!("{}/result", accepted.location())).await;
            assert_eq!(result.text(), body);
        }
    }
}

#[tokio::test]
async fn on_request() {
    for mut desk in desks().await {
        for headers in [&[][..], &[("prefer", "wait=0")], &[("prefer", "return=minimal")]] {
            desk.stays(("POST", "/asked", headers), Desk::outlast).await;
        }
        for (path, headers, applied) in [
            ("/asked", [ASKED], "respond-async"),
            ("/asked", [ASKED_AT_ONCE], "respond-async, wait=0"),
            ("/patiently-asked", [ASKED_AT_ONCE], "respond-async, wait=0"),
        ] {
            let accepted = desk.is_offloaded("POST", path, &headers).await;
            assert_eq!(accepted.header("preference-applied"), applied);
        }
        desk.stays(("POST", "/asked", &[ASKED_PATIENTLY]), Desk::outlast).await;
        desk.stays(("POST", "/patiently-asked", &[ASKED]), Desk::outlast).await;
    }
}

// --------------------------------------------------------------------------- the table of policies

#[tokio::test]
async fn a_table_goes_by_method_and_pattern() {
    let offload = Offload::new("/jobs");
    let table = Policies::otherwise(Policy::never())
        .at("POST /reports", Policy::always())
        .at("/reports/{id}", Policy::always())
        .at("GET /reports/{id}", Policy::never())
        .at("/reports/latest", Policy::never())
        .at("PUT /files/{*rest}", Policy::always())
        .at("PURGE /", Policy::always());
    let (gated, calls) = gated();
    let router =
        Router::new().fallback_service(gated.route()).nest_service("/jobs", offload.status());
    let around = Shared::new(offload.layer(table).layer(router));
    let server = Server::by(async |listener| axum::serve(listener, around).await.unwrap()).await;
    let mut desk = Desk { server, calls, client: Client::http1() };
    for (method, path, is_offloaded) in [
        ("POST", "/reports", true),
        ("POST", "/reports?x=1", true),
        ("GET", "/reports", false),
        ("PUT", "/reports", false),
        ("POST", "/reports/", false),
        ("POST", "/REPORTS", false),
        ("PUT", "/reports/7", true),
        ("POST", "/reports/7?x", true),
        ("GET", "/reports/7", false),
        ("PUT", "/reports/latest", false),
        ("PUT", "/reports/7/parts", false),
        ("PUT", "/files/a", true),
        ("PUT", "/files/a/b/c", true),
        ("POST", "/files/a", false),
        ("PUT", "/files", false),
        ("PURGE", "/", true),
        ("POST", "/", false),
        ("POST", "/elsewhere", false),
    ] {
        if is_offloaded {
            desk.is_offloaded(method, path, &[]).await;
        } else {
            desk.stays((method, path, &[]), async |_| ()).await;
        }
    }
}

#[tokio::test]
async fn what_a_table_says_of_the_rest_holds_for_the_rest() {
    let offload = Offload::new("/jobs");
    let table = Policies::otherwise(Policy::always()).at("GET /quick/{id}", Policy::never());
    let (gated, calls) = gated();
    let app = Router::new()
        .fallback_service(gated.route())
        .nest_service("/jobs", offload.status())
        .layer(offload.layer(table));
    let mut desk = Desk::new(app, calls, Client::http2()).await;
    desk.stays(("GET", "/quick/7", &[]), async |_| ()).await;
    desk.is_offloaded("POST", "/quick/7", &[]).await;
    desk.is_offloaded("GET", "/elsewhere", &[]).await;
}

// ---------------------------------------------------------------- one `Offload`, several layers

#[tokio::test]
async fn the_outermost_layer_that_watches_decides() {
    let offload = Offload::new("/jobs");
    let (gated, calls) = gated();
    let inside = |policy| gated.route().layer(offload.layer(policy));
    // Here the handler tells which job it is.
    let tells = any(async |job: Option<Job>, request: Request| {
        let id = job.map(|job| job.id().to_string());
        drop(request);
        id.unwrap_or_default()
    });
    let app = Router::new()
        .route("/patient/always", inside(Policy::always()))
        .route("/always/never", inside(Policy::never()))
        .route("/never/always", inside(Policy::always()))
        .route("/always/always", tells.layer(offload.layer(Policy::always())))
        .nest_service("/jobs", offload.status())
        .layer(
            offload.layer(
                Policies::otherwise(Policy::always())
                    .at("/patient/{*rest}", Policy::after(LONG))
                    .at("/never/{*rest}", Policy::never()),
            ),
        );
    let mut desk = Desk::new(app, calls, Client::http1()).await;
    desk.stays(("POST", "/patient/always", &[]), async |_| ()).await;
    desk.is_offloaded("POST", "/patient/always", &[ASKED]).await;
    desk.is_offloaded("POST", "/always/never", &[]).await;
    desk.is_offloaded("POST", "/never/always", &[]).await;

    let accepted = desk.send("POST", "/always/always", &[]).await.unwrap();
    let job = accepted.location();
    desk.client.ended(&desk.server, job).await;
    let result = desk.client.get(&desk.server, &format!("{job}/result")).await;
    assert_eq!(format!("/jobs/{}", result.text()), job, "there is one job, not two");
}

#[tokio::test]
async fn two_desks_one_inside_the_other() {
    let (outer, inner) = (Offload::new("/outer"), Offload::new("/inner"));
    let (gated, calls) = gated();
    let app = Router::new()
        .route("/", gated.route().layer(inner.layer(Policy::always())))
        .nest_service("/outer", outer.status())
        .nest_service("/inner", inner.status())
        .layer(outer.layer(Policies::otherwise(Policy::never()).at("/", Policy::after(LONG))));
    let mut desk = Desk::new(app, calls, Client::http1()).await;
    // The inner one's 202 is a response as any other.
    let accepted = desk.is_offloaded("POST", "/", &[]).await;
    assert!(accepted.location().starts_with("/inner/"));
}

#[tokio::test]
async fn layers_of_one_desk_share_its_jobs_and_its_limits() {
    let offload = Offload::builder("/jobs").max_running(1).build().unwrap();
    let (gated, mut calls) = gated();
    let app = Router::new()
        .route("/a", gated.route().layer(offload.layer(Policy::always())))
        .route("/b", gated.route().layer(offload.clone().layer(Policy::always())));
    // The status service of another server answers for both.
    let status = Router::new().nest_service("/jobs", offload.clone().status());
    let (app, status) = (Server::axum(app).await, Server::axum(status).await);
    let client = Client::http1();
    for (path, other) in [("/a", "/b"), ("/b", "/a")] {
        let accepted = client.post(&app, path, "").await;
        let job = accepted.location();
        let call: Call = calls.next().await;
        assert_eq!(client.get(&status, job).await.status, 202);
        assert_eq!(client.post(&app, other, "").await.status, 503);
        call.answer(());
        client.ended(&status, job).await;
    }
}

// ------------------------------------------------------------------ what is never offloaded

#[tokio::test]
async fn some_requests_stay_on_their_connection_whatever_the_policy() {
    for mut desk in desks().await {
        for (method, headers) in [
            ("HEAD", &[][..]),
            ("OPTIONS", &[]),
            ("GET", &[("range", "bytes=0-3")]),
            ("GET", &[("if-range", "\"1\"")]),
            ("GET", &[("if-match", "\"1\"")]),
            ("GET", &[("if-none-match", "\"1\"")]),
            ("GET", &[("if-modified-since", "Tue, 15 Nov 1994 12:45:26 GMT")]),
            ("GET", &[("if-unmodified-since", "Tue, 15 Nov 1994 12:45:26 GMT")]),
            ("GET", &[("accept", "text/html"), ("accept", "x/y, Text/Event-Stream;q=0.1")]),
            ("POST", &[("content-type", "application/grpc")]),
            ("POST", &[("content-type", "application/grpc-web+proto")]),
        ] {
            let with = [headers, &[ASKED_AT_ONCE]].concat();
            desk.stays((method, "/always", &with), async |_| ()).await;
            desk.stays((method, "/after", &with), Desk::outlast).await;
        }
        for (method, headers) in [
            ("GET", &[][..]),
            ("GET", &[("accept", "text/html")]),
            ("POST", &[("range", "bytes=0-3")]),
            ("PUT", &[("if-match", "\"1\"")]),
            ("POST", &[("accept", "text/event-stream")]),
            ("POST", &[("content-type", "application/json")]),
        ] {
            for path in ["/always", "/after"] {
                desk.is_offloaded(method, path, headers).await;
            }
        }
    }
}

#[tokio::test]
async fn an_upgrade_stays_but_h2c_alone_is_none() {
    let (gated, mut calls) = gated();
    let server = Server::axum(by_route(&gated)).await;
    for (upgrade, is_offloaded) in
        [("websocket", false), ("h2c, websocket", false), ("h2c", true), ("H2C", true)]
    {
        let mut connection = server.connect().await;
        let head = format!(
            "POST /always HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n\
             content-length: 0\r\n\r\n"
        );
        connection.write(head).await;
        let answered = async { calls.next().await.answer("own") };
        let answer = soon("an answer", connection.read_response());
        let ((head, body), ()) = future::join(answer, answered).await;
        match is_offloaded {
            true => assert!(head.starts_with("http/1.1 202 "), "{upgrade}: {head}"),
            false => assert_eq!(body, b"own", "{upgrade}: {head}"),
        }
    }
}

#[tokio::test]
async fn a_tunnel_that_the_handler_refuses_is_not_opened() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let router = Router::new().fallback_service(gated.route());
    let around = Shared::new(offload.layer(Policy::always()).layer(router));
    let server = Server::by(async |listener| axum::serve(listener, around).await.unwrap()).await;
    let mut connection = server.connect().await;
    connection.write("CONNECT some.example:443 HTTP/1.1\r\nhost: some.example:443\r\n\r\n").await;
    let call = calls.next().await;
    assert_eq!(call.head.method, "CONNECT");
    call.answer(http::StatusCode::FORBIDDEN);
    let (head, _) = soon("an answer", connection.read_response()).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
}
