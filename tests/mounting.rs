//! Where the layer and the status service can be put: in nested routers, around a router, in plain
//! hyper, behind a proxy. In each place the status URLs lead to the job, and polls are never jobs.

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, ServiceExt, body::Body, response::Response};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{
    BodyExt, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use support::{
    Client, Server,
    gated::{Calls, Gated, gated},
    soon,
};
use tokio::net::TcpStream;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt as _, limit::ConcurrencyLimitLayer, make::Shared,
    service_fn,
};
use tower_http::timeout::TimeoutLayer;
use tower_offload::{Offload, Policies, Policy, ResponseBody};

// ----------------------------------------------------------------------- what holds everywhere

/// A job made at `target`, by its status URLs: asked, canceled, finished and fetched. `origin` is
/// what the client knows, and `base` where status URLs are to be for it.
async fn walk(origin: &str, target: &str, base: &str, calls: &mut Calls) {
    for client in [Client::http1(), Client::http2()] {
        // Every request asks to become a job; a poll must not.
        let prefer = |prefer: &'static str, method: &'static str, url: &str| {
            let url = if url.starts_with('/') { format!("{origin}{url}") } else { url.to_owned() };
            let request = Request::builder().method(method).uri(url).header("prefer", prefer);
            let client = client.clone();
            async move { soon("an answer", client.send(request, "")).await }
        };
        let ask = |method, url: &str| prefer("respond-async, wait=0", method, url);

        let canceled = ask("POST", target).await;
        let job = canceled.location();
        let id = canceled.json()["job_id"].as_str().unwrap().to_owned();
        assert_eq!(job, format!("{base}/{id}"));
        let call = calls.next().await;
        for (resource, status) in [("", 202), ("/status", 200), ("/result", 202)] {
            let poll = ask("GET", &format!("{job}{resource}")).await;
            assert_eq!(poll.status, status, "{target}: {poll:#?}");
            assert_eq!(poll.json(), canceled.json(), "{target}: the poll became a job");
            assert_eq!(ask("HEAD", &format!("{job}{resource}")).await.status, status);
        }
        let unknown = ask("GET", &format!("{base}/{}", "0".repeat(32))).await;
        assert_eq!((unknown.status.as_u16(), unknown.header("cache-control")), (404, "no-store"));
        assert_eq!(ask("OPTIONS", job).await.status, 204);
        assert_eq!(ask("PUT", job).await.status, 405);
        let deleted = ask("DELETE", job).await;
        assert_eq!((deleted.status.as_u16(), &deleted.json()["status"]), (200, &"canceled".into()));
        call.gone().await;

        let accepted = ask("POST", target).await;
        calls.next().await.answer("own");
        let links = &accepted.json()["links"];
        let status = links["status"].as_str().unwrap();
        assert_eq!(accepted.header("link"), format!("<{status}>; rel=\"status monitor\""));
        let ended = prefer("respond-async, wait=30", "GET", status).await;
        assert_eq!(ended.json()["status"], "succeeded");
        let found = ask("GET", links["self"].as_str().unwrap()).await;
        assert_eq!(
            (found.status.as_u16(), found.header("location")),
            (303, links["result"].as_str().unwrap())
        );
        assert_eq!(ask("GET", found.header("location")).await.text(), "own");
        assert!(calls.is_empty(), "{target}: a poll reached the handler");
    }
}

fn origin(server: &Server) -> String {
    server.url("")
}

// --------------------------------------------------------------------------------- axum routers

#[tokio::test]
async fn nested_by_axum() {
    for path in ["/jobs", "/api/v1/jobs", "/.well-known/a-b_c~d"] {
        let offload = Offload::new(path);
        let (gated, mut calls) = gated();
        let app = Router::new()
            .route("/slow", gated.route().layer(offload.layer(Policy::always())))
            .nest_service(path, offload.status());
        let server = Server::axum(app).await;
        walk(&origin(&server), "/slow", path, &mut calls).await;
    }
}

#[tokio::test]
async fn trap_8_1_nested_routers_see_only_the_end_of_a_path() {
    type Build = fn(&Gated, &Offload) -> Router;
    let places: [(&str, Build); 6] = [
        ("on the route, in the inner router", |gated, offload| {
            let inner = Router::new()
                .route("/slow", gated.route().layer(offload.layer(Policy::always())))
                .nest_service("/jobs", offload.status());
            Router::new().nest("/api", inner)
        }),
        ("on the inner router, the status service in it", |gated, offload| {
            let inner = Router::new()
                .route("/slow", gated.route())
                .nest_service("/jobs", offload.status())
                .layer(offload.layer(Policy::always()));
            Router::new().nest("/api", inner)
        }),
        ("on the outer router", |gated, offload| {
            let inner =
                Router::new().route("/slow", gated.route()).nest_service("/jobs", offload.status());
            Router::new().nest("/api", inner).layer(offload.layer(Policy::always()))
        }),
        ("on both routers and on the route", |gated, offload| {
            let layer = offload.layer(Policy::always());
            let inner = Router::new()
                .route("/slow", gated.route().layer(layer.clone()))
                .nest_service("/jobs", offload.status())
                .layer(layer.clone());
            Router::new().nest("/api", inner).layer(layer)
        }),
        ("on the inner router, the status service in the outer one", |gated, offload| {
            let inner =
                Router::new().route("/slow", gated.route()).layer(offload.layer(Policy::always()));
            Router::new().nest("/api", inner).nest_service("/api/jobs", offload.status())
        }),
        ("on the inner router, the status service as a wildcard route", |gated, offload| {
            let inner = Router::new()
                .route("/slow", gated.route())
                .route_service("/jobs/{*rest}", offload.status())
                .layer(offload.layer(Policy::always()));
            Router::new().nest("/api", inner)
        }),
    ];
    for (place, build) in places {
        println!("the layer {place}");
        let offload = Offload::new("/api/jobs");
        let (gated, mut calls) = gated();
        let server = Server::axum(build(&gated, &offload)).await;
        walk(&origin(&server), "/api/slow", "/api/jobs", &mut calls).await;
    }
}

#[tokio::test]
async fn trap_8_1_three_routers_deep() {
    let offload = Offload::new("/a/b/jobs");
    let layer = offload.layer(Policy::always());
    let (gated, mut calls) = gated();
    let innermost =
        Router::new().route("/slow", gated.route()).nest_service("/jobs", offload.status());
    let middle = Router::new().nest("/b", innermost.layer(layer.clone())).layer(layer.clone());
    let server = Server::axum(Router::new().nest("/a", middle).layer(layer)).await;
    walk(&origin(&server), "/a/b/slow", "/a/b/jobs", &mut calls).await;
}

#[tokio::test]
async fn routes_of_the_app_that_look_like_status_paths_are_offloaded() {
    let offload = Offload::new("/api/jobs");
    let (gated, mut calls) = gated();
    let app = Router::new()
        .route("/jobs/{name}", gated.route())
        .route("/api/jobsx/{name}", gated.route())
        .nest_service("/api/jobs", offload.status())
        .layer(offload.layer(Policy::always()));
    let server = Server::axum(app).await;
    walk(&origin(&server), "/jobs/7", "/api/jobs", &mut calls).await;
    walk(&origin(&server), "/api/jobsx/7", "/api/jobs", &mut calls).await;
}

/// axum notes the whole path, so that no path of the app inside of `nest` is taken for a status path.
#[tokio::test]
async fn routes_inside_of_nest_that_look_like_status_paths_are_offloaded() {
    let id = "0123456789abcdef0123456789abcdef";
    for (status, route, path) in [
        ("/jobs", "/jobs/{id}/run", format!("/api/v1/jobs/{id}/run")),
        ("/jobs", "/jobs/{id}", format!("/api/v1/jobs/{id}")),
        ("/jobs", "/jobs", "/api/v1/jobs".into()),
        ("/api/jobs", "/jobs/{id}", format!("/api/v1/jobs/{id}")),
        ("/api/jobs", "/jobs/{id}/result", format!("/api/v1/jobs/{id}/result")),
    ] {
        let after = Policy::after(Duration::from_millis(50));
        for policy in [Policy::always(), Policy::always().queue(1), after] {
            let offload = Offload::new(status);
            let (gated, mut calls) = gated();
            let layer = offload.layer(policy);
            // Around the route, and around the router that is nested.
            for inner in [
                Router::new().route(route, gated.route().layer(layer.clone())),
                Router::new().route(route, gated.route()).layer(layer),
            ] {
                let app = Router::new().nest("/api/v1", inner);
                for method in ["GET", "POST", "DELETE"] {
                    let request = Request::builder().method(method).uri(&path);
                    let request = request.body(Body::empty()).unwrap();
                    let answer = soon("the 202", app.clone().oneshot(request)).await.unwrap();
                    assert_eq!(answer.status(), 202, "{method} {path} beside {status}");
                    calls.next().await.answer("own");
                }
            }
        }
    }
}

/// A router, its status service inside, for a layer around it.
fn router(gated: &Gated, offload: &Offload) -> Router {
    Router::new().route("/slow", gated.route()).nest_service("/jobs", offload.status())
}

#[tokio::test]
async fn trap_3_3_around_a_router_under_axum_serve() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let policies = || Policies::otherwise(Policy::never()).at("POST /slow", Policy::always());

    let shared = Shared::new(offload.layer(policies()).layer(router(&gated, &offload)));
    let server = Server::by(async |listener| axum::serve(listener, shared).await.unwrap()).await;
    walk(&origin(&server), "/slow", "/jobs", &mut calls).await;

    // With `always` for everything the router has, the status service in it included.
    let service = offload.layer(Policy::always()).layer(router(&gated, &offload));
    let make = ServiceExt::<axum::extract::Request>::into_make_service(service);
    let server = Server::by(async |listener| axum::serve(listener, make).await.unwrap()).await;
    walk(&origin(&server), "/slow", "/jobs", &mut calls).await;

    // The mounted form needs no status service in the router.
    let bare = Router::new().route("/slow", gated.route());
    let mounted = Shared::new(offload.layer(Policy::always()).mounted().layer(bare));
    let server = Server::by(async |listener| axum::serve(listener, mounted).await.unwrap()).await;
    walk(&origin(&server), "/slow", "/jobs", &mut calls).await;
}

// ---------------------------------------------------------------------------------- plain hyper

type Boxed = UnsyncBoxBody<Bytes, hyper::Error>;

/// hyper's own body cannot be rebuilt, so it is boxed before the layer. By a named function: closures
/// have been seen to give a "higher-ranked lifetime error" in a spawned connection.
fn box_incoming(request: Request<Incoming>) -> Request<Boxed> {
    request.map(BodyExt::boxed_unsync)
}

/// The same for the box that is `Sync`.
fn box_incoming_sync(request: Request<Incoming>) -> Request<BoxBody<Bytes, hyper::Error>> {
    request.map(BodyExt::boxed)
}

/// The same for axum's own box.
fn box_incoming_axum(request: Request<Incoming>) -> Request<Body> {
    request.map(Body::new)
}

/// Serves this service by hyper alone, over both protocols.
async fn hyper<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<tower::BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<tower::BoxError>> + Send + 'static,
{
    Server::connections(move |stream: TcpStream| {
        let service = TowerToHyperService::new(service.clone());
        async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that closes its connection is no failure of the test.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// The gated handler with a response body of this type.
async fn run<ReqB, ResB>(gated: Gated, request: Request<ReqB>) -> Result<Response<ResB>, Infallible>
where
    ReqB: http_body::Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
    ResB: ResponseBody,
{
    let (head, body) = gated.run(request.map(Body::new)).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Ok(Response::from_parts(head, ResB::from_bytes(body, None)))
}

#[tokio::test]
async fn mounted_in_plain_hyper() {
    let offload = Offload::new("/api/jobs");
    let layer = offload.layer(Policy::always()).boxed().mounted();
    let (gated, mut calls) = gated();

    let handler = gated.clone();
    let full = ServiceBuilder::new()
        .map_request(box_incoming)
        .layer(layer.clone())
        .service_fn(move |request| run::<_, Full<Bytes>>(handler.clone(), request));
    walk(&origin(&hyper(full).await), "/slow", "/api/jobs", &mut calls).await;

    let handler = gated.clone();
    let boxed = ServiceBuilder::new()
        .map_request(box_incoming_sync)
        .layer(layer.clone())
        .service_fn(move |request| run::<_, BoxBody<Bytes, Infallible>>(handler.clone(), request));
    walk(&origin(&hyper(boxed).await), "/slow", "/api/jobs", &mut calls).await;

    let unsync =
        ServiceBuilder::new().map_request(box_incoming).layer(layer).service_fn(move |request| {
            run::<_, UnsyncBoxBody<Bytes, Infallible>>(gated.clone(), request)
        });
    walk(&origin(&hyper(unsync).await), "/slow", "/api/jobs", &mut calls).await;
}

#[tokio::test]
async fn mounted_by_hand_in_plain_hyper() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let slow = ServiceBuilder::new()
        .layer(offload.layer(Policy::always()).boxed())
        .service_fn(move |request| run::<Boxed, Full<Bytes>>(gated.clone(), request));
    let status = offload.status();
    let both = service_fn(move |request: Request<Incoming>| {
        let (mut slow, mut status) = (slow.clone(), status.clone());
        async move {
            let is_status = request.uri().path().starts_with("/jobs/");
            Ok::<_, Infallible>(if is_status {
                status.call(request).await?.map(BodyExt::boxed)
            } else {
                slow.call(box_incoming(request))
                    .await?
                    .map(|body| body.map_err(|never: Infallible| match never {}).boxed())
            })
        }
    });
    walk(&origin(&hyper(both).await), "/slow", "/jobs", &mut calls).await;
}

#[tokio::test]
async fn mounted_it_answers_polls_while_a_job_holds_the_only_permit() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let service = ServiceBuilder::new()
        .map_request(box_incoming)
        .layer(offload.layer(Policy::always()).boxed().mounted())
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(move |request| run::<_, Full<Bytes>>(gated.clone(), request));
    let server = hyper(service).await;
    for client in [Client::http1(), Client::http2()] {
        let accepted = client.post(&server, "/slow", "first").await;
        let job = accepted.location();
        let first = calls.next().await;

        // It waits for the permit, on a connection of its own.
        let second = tokio::spawn({
            let (client, request) = (client.clone(), server.request("POST", "/slow"));
            async move { client.send(request, "second").await }
        });
        for (resource, status) in [("", 202), ("/status", 200), ("/result", 202)] {
            let url = format!("{job}{resource}");
            let poll = soon("a poll is answered", client.get(&server, &url)).await;
            assert_eq!((poll.status.as_u16(), &poll.json()["status"]), (status, &"running".into()));
        }
        assert!(calls.is_empty() && !second.is_finished());

        let canceled = soon("a DELETE is answered", client.delete(&server, job)).await;
        assert_eq!(
            (canceled.status.as_u16(), &canceled.json()["status"]),
            (200, &"canceled".into())
        );
        first.gone().await;
        let call = calls.next().await;
        assert_eq!(call.body, "second");
        let accepted = soon("the second is accepted", second).await.unwrap();
        call.answer(());
        client.ended(&server, accepted.location()).await;
    }
}

// ------------------------------------------------------------------------------ behind a proxy

/// A proxy that maps `/x/…` to `/…` of the backend, once that is known.
async fn proxy(backend: Arc<OnceLock<SocketAddr>>) -> Server {
    let client: HyperClient<HttpConnector, Incoming> =
        HyperClient::builder(TokioExecutor::new()).build_http();
    hyper(service_fn(move |mut request: Request<Incoming>| {
        let path = request.uri().path_and_query().unwrap().as_str();
        let path = path.strip_prefix("/x").expect("the proxy is asked below its prefix only");
        let url = format!("http://{}{path}", backend.get().unwrap());
        *request.uri_mut() = url.parse::<Uri>().unwrap();
        *request.version_mut() = http::Version::HTTP_11;
        // The backend sees the proxy's idea of its name, as is common.
        request.headers_mut().insert("host", "internal.invalid".parse().unwrap());
        client.request(request)
    }))
    .await
}

#[tokio::test]
async fn trap_8_2_behind_a_proxy_that_strips_a_prefix() {
    for whole_url in [false, true] {
        let backend = Arc::new(OnceLock::new());
        let proxy = proxy(Arc::clone(&backend)).await;
        let base = if whole_url { proxy.url("/x/jobs") } else { "/x/jobs".to_owned() };
        let offload = Offload::builder("/jobs").public_base(&base).build().unwrap();
        let (gated, mut calls) = gated();
        let layered = router(&gated, &offload).layer(offload.layer(Policy::always()));
        let server = Server::axum(layered).await;
        backend.set(server.addr).unwrap();
        walk(&origin(&proxy), "/x/slow", &base, &mut calls).await;
    }
}

#[tokio::test]
async fn trap_8_2_what_the_request_says_of_its_host_is_not_believed() {
    let offload = Offload::new("/jobs");
    let (gated, _calls) = gated();
    let app = router(&gated, &offload).layer(offload.layer(Policy::always()));
    let server = Server::axum(app).await;
    let request = server
        .request("POST", "/slow")
        .header("host", "evil.example")
        .header("forwarded", "host=evil.example;proto=https")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-prefix", "/evil");
    let accepted = Client::http1().send(request, "").await;
    assert!(accepted.location().starts_with("/jobs/"));
    for said in [format!("{:?}", accepted.headers), accepted.text().to_owned()] {
        assert!(!said.contains("evil"), "{said}");
    }
}

// ------------------------------------------------------------------------ absolute-form targets

#[tokio::test]
async fn trap_8_1_absolute_form_targets() {
    let offload = Offload::new("/jobs");
    let (gated, mut calls) = gated();
    let inside = router(&gated, &offload).layer(offload.layer(Policy::always()));
    let around = Shared::new(offload.layer(Policy::always()).layer(router(&gated, &offload)));
    let handler = gated.clone();
    let mounted = ServiceBuilder::new()
        .map_request(box_incoming)
        .layer(offload.layer(Policy::always()).boxed().mounted())
        .service_fn(move |request| run::<_, Full<Bytes>>(handler.clone(), request));
    let servers = [
        Server::axum(inside).await,
        Server::by(async |listener| axum::serve(listener, around).await.unwrap()).await,
        hyper(mounted).await,
    ];
    for server in &servers {
        let mut connection = server.connect().await;
        let mut ask = async |method: &str, path: &str| {
            let head = format!(
                "{method} http://some.example:99{path} HTTP/1.1\r\nhost: some.example:99\r\n\
                 content-length: 0\r\nprefer: respond-async, wait=0\r\n\r\n"
            );
            connection.write(head).await;
            let (head, body) = soon("an answer", connection.read_response()).await;
            let status = head.split(' ').nth(1).unwrap().to_owned();
            (status, serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default(), head)
        };
        let (status, document, head) = ask("POST", "/slow").await;
        assert_eq!(status, "202");
        let job = document["links"]["self"].as_str().unwrap();
        assert!(head.contains(&format!("\r\nlocation: {job}\r\n")), "{head}");
        assert!(job.starts_with("/jobs/"));

        let call = calls.next().await;
        let (status, polled, _) = ask("GET", &format!("{job}/status")).await;
        assert_eq!((&*status, polled), ("200", document.clone()), "the poll became a job");
        call.answer((StatusCode::CREATED, [("location", "made?by=it")]));
        Client::http1().ended(server, job).await;
        // Relative to where the request was sent, whatever its form.
        let (status, _, head) = ask("GET", &format!("{job}/result")).await;
        assert_eq!(status, "201");
        assert!(head.contains("\r\nlocation: /made?by=it\r\n"), "{head}");
        assert_eq!(ask("DELETE", job).await.0, "409");
        assert_eq!(ask("GET", "/jobs/nonsense").await.0, "404");
    }
}

// -------------------------------------------------------------------- it fits into every stack

#[tokio::test]
async fn trap_3_7_it_fits_into_every_stack_and_changes_no_types() {
    let offload = Offload::new("/jobs");
    let layer = offload.layer(Policies::otherwise(Policy::never()).at("/slow", Policy::always()));
    let (gated, mut calls) = gated();
    let status = || Router::new().nest_service("/jobs", offload.status());
    let time_limit =
        || TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(60));

    let in_a_route = status().route("/slow", gated.route().layer(layer.clone()));
    let in_a_router = status().route("/slow", gated.route()).layer(layer.clone());
    let with_a_time_limit =
        status().route("/slow", gated.route().layer((time_limit(), layer.clone())));
    for app in [in_a_route, in_a_router, with_a_time_limit] {
        walk(&origin(&Server::axum(app).await), "/slow", "/jobs", &mut calls).await;
    }

    let around = ServiceBuilder::new()
        .layer(time_limit())
        .layer(layer.clone())
        .service(router(&gated, &offload));
    let around = Shared::new(around);
    let server = Server::by(async |listener| axum::serve(listener, around).await.unwrap()).await;
    walk(&origin(&server), "/slow", "/jobs", &mut calls).await;

    // Inside, it bounds the work; its future holds a timer, which cannot be moved.
    let bounded = ServiceBuilder::new()
        .layer(time_limit())
        .layer(layer.clone().boxed())
        .layer(time_limit())
        .service(router(&gated, &offload));
    let bounded = Shared::new(bounded);
    let server = Server::by(async |listener| axum::serve(listener, bounded).await.unwrap()).await;
    walk(&origin(&server), "/slow", "/jobs", &mut calls).await;

    // And a router in plain hyper, where nothing boxes its request's body but one line.
    let in_hyper = ServiceBuilder::new()
        .layer(time_limit())
        .map_request(box_incoming_axum)
        .layer(layer)
        .service(router(&gated, &offload));
    walk(&origin(&hyper(in_hyper).await), "/slow", "/jobs", &mut calls).await;
}
