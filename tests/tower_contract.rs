//! tower's contract, and what axum, hyper and tower-http build on: the readied service is the one
//! that is called, permits are given back, no type is changed, and what a request carries reaches a
//! handler that has moved.

#[path = "support/desk.rs"]
mod desk;

use std::{
    convert::Infallible,
    future::{Future, Ready, pending, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, RequestPartsExt, Router,
    body::Body,
    extract::{Path, State},
    routing::post,
};
use bytes::Bytes;
use desk::{ended, get, job};
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tokio::{sync::Notify, time::sleep};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, util::BoxCloneService,
};
use tower_http::timeout::TimeoutLayer;
use tower_offload::{
    Offload, OffloadLayer, OffloadService, Policies, Policy, RequestBody, ResponseBody,
};
use tower_test::mock;

const BUDGET: Duration = Duration::from_millis(50);

fn request(path: &str) -> Request<Body> {
    Request::post(path).body(Body::empty()).unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The body of a job's replayed response, when it has ended.
async fn replayed(offload: &Offload, job: &str) -> String {
    ended(offload, job).await;
    let answer = get(offload, &format!("{job}/result")).await;
    String::from_utf8(answer.body().to_vec()).unwrap()
}

/// A service that panics if it is called without having been readied. Its clones are not ready.
#[derive(Default)]
struct Strict {
    is_ready: bool,
    takes: Duration,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { is_ready: false, takes: self.takes }
    }
}

impl Service<Request<Body>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without having been readied");
        let takes = self.takes;
        Box::pin(async move {
            sleep(takes).await;
            Ok(Response::new(Body::from("strict")))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn trap_3_1_the_readied_service_is_the_one_called() {
    async fn call_thrice<S>(mut service: S, status: u16)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        for _ in 0..3 {
            let response = service.ready().await.unwrap().call(request("/")).await.unwrap();
            assert_eq!(response.status(), status);
        }
    }
    let offload = Offload::new("/jobs");
    for (takes, policy, status) in [
        (Duration::ZERO, Policy::never(), 200),
        (Duration::ZERO, Policy::after(BUDGET), 200),
        (BUDGET * 2, Policy::after(BUDGET), 202),
        (BUDGET * 2, Policy::always(), 202),
    ] {
        let strict = Strict { is_ready: false, takes };
        let layer = offload.layer(policy);
        call_thrice(layer.layer(strict.clone()), status).await;
        call_thrice(layer.clone().boxed().layer(strict.clone()), status).await;
        call_thrice(layer.clone().mounted().layer(strict.clone()), status).await;
        let limited = ServiceBuilder::new().layer(layer).concurrency_limit(8).service(strict);
        call_thrice(limited, status).await;
    }
    let drained = offload.drain(Duration::from_secs(1)).await;
    assert_eq!(drained.interrupted(), 0);
}

#[tokio::test(start_paused = true)]
async fn trap_3_1_readiness_is_the_inner_services_own() {
    let offload = Offload::new("/jobs");
    let layer = offload.layer(Policy::after(BUDGET));
    let (mut service, mut handle) = mock::spawn_layer::<Request<Body>, Response<Body>, _>(layer);
    handle.allow(1);
    let mut clone = service.clone();
    assert_ready_ok!(service.poll_ready());
    let first = service.call(request("/"));
    // A clone has to be readied itself, and waits for its turn.
    assert_pending!(clone.poll_ready());
    handle.allow(1);
    assert!(clone.is_woken());
    assert_ready_ok!(clone.poll_ready());
    let second = clone.call(request("/"));
    drop((first, second));
}

/// axum layers a router that was not given its state anew for each request.
#[tokio::test(start_paused = true)]
async fn trap_3_2_layered_for_each_request_it_is_one_desk() {
    let offload = Offload::builder("/jobs").max_running(2).build().unwrap();
    let handler = |State(()): State<()>| pending::<()>();
    let app: Router<()> = Router::new()
        .route("/slow", post(handler))
        .layer(offload.layer(Policies::otherwise(Policy::never()).at("/slow", Policy::always())))
        .nest_service("/jobs", offload.status());
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(job(&app.clone().oneshot(request("/slow")).await.unwrap()));
    }
    let refused = app.clone().oneshot(request("/slow")).await.unwrap();
    assert_eq!(refused.status(), 503, "the limit is the desk's");
    for job in jobs {
        let delete = Request::delete(job).body(Body::empty()).unwrap();
        assert_eq!(app.clone().oneshot(delete).await.unwrap().status(), 200);
    }
}

#[test]
fn bounds_sit_on_impls() {
    fn layered<S>(layer: &OffloadLayer, inner: S) -> OffloadService<S> {
        layer.layer(inner)
    }
    struct NoService;
    let _ = layered(&Offload::new("/jobs").layer(Policy::always()), NoService);
}

/// A tower-http timeout outside wants a body that is `Default`: the types are the service's own.
#[tokio::test(start_paused = true)]
async fn trap_3_4_a_timeout_layer_sits_outside() {
    let offload = Offload::new("/jobs");
    let timeout = |time| TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, time);
    let slow = || async {
        sleep(BUDGET * 2).await;
        "slow"
    };
    let layers = |time| {
        ServiceBuilder::new().layer(timeout(time)).layer(offload.layer(Policy::after(BUDGET)))
    };
    let app = Router::<()>::new()
        .route("/long", post(slow).layer(layers(BUDGET * 4)))
        .route("/short", post(slow).layer(layers(BUDGET / 2)));
    let accepted = app.clone().oneshot(request("/long")).await.unwrap();
    assert_eq!(replayed(&offload, &job(&accepted)).await, "slow");
    // Dropped by the timeout before its budget: there is no job, and no 202.
    assert_eq!(app.oneshot(request("/short")).await.unwrap().status(), 408);

    async fn plain(_: Request<Boxed>) -> Result<Response<Full<Bytes>>, Infallible> {
        sleep(BUDGET * 2).await;
        Ok(Response::new(Full::from("plain")))
    }
    let layer = offload.layer(Policy::after(BUDGET)).boxed();
    let service = ServiceBuilder::new().layer(timeout(BUDGET * 4)).layer(layer).service_fn(plain);
    let request = Request::post("/").body(Boxed::default()).unwrap();
    let accepted = service.oneshot(request).await.unwrap();
    assert_eq!(replayed(&offload, &job(&accepted)).await, "plain");
}

type Boxed = UnsyncBoxBody<Bytes, Infallible>;

/// A request body that knows whether the layer has wrapped it.
struct Marked {
    is_wrapped: bool,
    inner: Boxed,
}

impl http_body::Body for Marked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl RequestBody for Marked {
    fn from_watched<W>(watched: W) -> Self
    where
        W: http_body::Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static,
    {
        Self { is_wrapped: true, inner: watched.boxed_unsync() }
    }
}

/// A plain function of hyper's and axum's kind, that names its body type.
fn wrapped(request: Request<Marked>) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    ready(Ok(Response::new(Full::from(request.body().is_wrapped.to_string()))))
}

#[tokio::test(start_paused = true)]
async fn trap_3_5_plain_functions_fit_and_a_body_that_is_over_is_not_wrapped() {
    let offload = Offload::new("/jobs");
    let body =
        |data: &'static str| Marked { is_wrapped: false, inner: Full::from(data).boxed_unsync() };
    for (policy, data, expected) in [
        (Policy::never(), "data", "false"),
        (Policy::on_request(BUDGET), "data", "false"),
        (Policy::after(BUDGET), "", "false"),
        (Policy::after(BUDGET), "data", "true"),
    ] {
        let service = offload.layer(policy).layer(tower::service_fn(wrapped));
        let response = service.oneshot(Request::post("/").body(body(data)).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected);
    }
    let always = offload.layer(Policy::always()).layer(tower::service_fn(wrapped));
    let accepted = always.oneshot(Request::post("/").body(body("")).unwrap()).await.unwrap();
    assert_eq!(replayed(&offload, &job(&accepted)).await, "false");
}

#[tokio::test(start_paused = true)]
async fn trap_3_6_what_axum_gives_needs_no_box_and_async_blocks_do() {
    fn is_unpin<F: Future + Unpin + Send>(_: &F) {}
    let offload = Offload::new("/jobs");
    let policy = || Policy::after(BUDGET);
    let slow = || sleep(BUDGET * 2);
    // Around a router, around a route, and around a boxed service: as they are.
    let router = Router::<()>::new().route("/", post(slow));
    is_unpin(&router.clone().call(request("/")));
    let around = offload.layer(policy()).layer(router);
    let route = Router::<()>::new().route("/", post(slow).layer(offload.layer(policy())));
    let block = tower::service_fn(|_: Request<Body>| async {
        sleep(BUDGET * 2).await;
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    let boxed_before = offload.layer(policy()).layer(BoxCloneService::new(block));
    // An async block cannot be moved once it was polled: the layer boxes it.
    let boxed_layer = offload.layer(policy()).boxed().layer(block);
    for answer in [
        around.oneshot(request("/")).await,
        route.oneshot(request("/")).await,
        boxed_before.oneshot(request("/")).await,
        boxed_layer.oneshot(request("/")).await,
    ] {
        let document = ended(&offload, &job(&answer.unwrap())).await;
        assert_eq!(document["status"], "succeeded");
    }
}

/// A response body of one's own: the trait is enough.
#[derive(Default)]
struct Own(Full<Bytes>);

impl http_body::Body for Own {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

impl ResponseBody for Own {
    fn from_bytes(data: Bytes, _: Option<http::HeaderMap>) -> Self {
        Self(Full::new(data))
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_body_of_ones_own_fits() {
    let offload = Offload::new("/jobs");
    let service = offload.layer(Policy::always()).layer(tower::service_fn(|_: Request<Marked>| {
        ready(Ok::<_, Infallible>(Response::new(Own(Full::from("own")))))
    }));
    let body = Marked { is_wrapped: false, inner: Boxed::default() };
    let accepted = service.oneshot(Request::post("/").body(body).unwrap()).await.unwrap();
    assert_eq!(replayed(&offload, &job(&accepted)).await, "own");
}

/// A service that waits to be let go, one permit for each call.
#[derive(Clone, Default)]
struct Gate {
    calls: Arc<AtomicUsize>,
    open: Arc<Notify>,
}

impl Gate {
    fn service(&self) -> BoxCloneService<Request<Body>, Response<Body>, Infallible> {
        let gate = self.clone();
        BoxCloneService::new(tower::service_fn(move |_: Request<Body>| {
            let gate = gate.clone();
            async move {
                gate.calls.fetch_add(1, SeqCst);
                gate.open.notified().await;
                Ok(Response::new(Body::from("through")))
            }
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn trap_3_8_a_detached_job_holds_its_inner_permit_until_it_ends() {
    for policy in [Policy::after(BUDGET), Policy::always()] {
        let (offload, gate) = (Offload::new("/jobs"), Gate::default());
        let inner = ConcurrencyLimitLayer::new(1).layer(gate.service());
        let mut service = mock::Spawn::new(offload.layer(policy).layer(inner));
        assert_ready_ok!(service.poll_ready::<Request<Body>>());
        let job = job(&service.call(request("/")).await.unwrap());
        // The limit bounds the work, not the connections: no second call while the first runs.
        assert_pending!(service.poll_ready::<Request<Body>>());
        sleep(BUDGET * 10).await;
        assert!(!service.is_woken());
        assert_eq!(gate.calls.load(SeqCst), 1);
        // Whoever polls is no part of it.
        assert_eq!(get(&offload, &job).await.status(), 202);
        gate.open.notify_one();
        assert_eq!(replayed(&offload, &job).await, "through");
        while !service.is_woken() {
            tokio::task::yield_now().await;
        }
        assert_ready_ok!(service.poll_ready::<Request<Body>>());
        // And so it goes on with the next, which ends within its budget.
        gate.open.notify_one();
        assert!(service.call(request("/")).await.unwrap().status().is_success());
    }
}

#[tokio::test(start_paused = true)]
async fn trap_3_8_a_canceled_job_gives_its_inner_permit_back() {
    let (offload, gate) = (Offload::new("/jobs"), Gate::default());
    let inner = ConcurrencyLimitLayer::new(1).layer(gate.service());
    let mut service = offload.layer(Policy::after(BUDGET)).layer(inner);
    for _ in 0..3 {
        let answer = service.ready().await.unwrap().call(request("/")).await.unwrap();
        let delete = Request::delete(job(&answer)).body(()).unwrap();
        assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    }
    assert_eq!(gate.calls.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn trap_3_8_an_outer_permit_is_given_back_with_the_202() {
    let (offload, gate) = (Offload::new("/jobs"), Gate::default());
    let layer = offload.layer(Policy::after(BUDGET));
    let service = ConcurrencyLimitLayer::new(1).layer(layer.layer(gate.service()));
    let mut service = mock::Spawn::new(service);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        assert_ready_ok!(service.poll_ready::<Request<Body>>());
        jobs.push(job(&service.call(request("/")).await.unwrap()));
    }
    for job in jobs {
        gate.open.notify_one();
        gate.open.notify_waiters();
        assert_eq!(replayed(&offload, &job).await, "through");
    }
}

#[tokio::test(start_paused = true)]
async fn trap_3_8_the_mounted_form_answers_polls_while_the_last_permit_is_held() {
    let (offload, gate) = (Offload::new("/jobs"), Gate::default());
    let inner = ConcurrencyLimitLayer::new(1).layer(gate.service());
    let service = offload.layer(Policy::after(BUDGET)).mounted().layer(inner);
    let call = |request| service.clone().oneshot(request);
    let job = job(&call(request("/")).await.unwrap());
    // This one waits for the permit, in its future.
    let mut waits = tokio_test::task::spawn(call(request("/")));
    assert_pending!(waits.poll());
    let poll = Request::get(&job).body(Body::empty()).unwrap();
    assert_eq!(call(poll).await.unwrap().status(), 202);
    let delete = Request::delete(&job).body(Body::empty()).unwrap();
    assert_eq!(call(delete).await.unwrap().status(), 200);
    while !waits.is_woken() {
        tokio::task::yield_now().await;
    }
    assert_pending!(waits.poll());
    assert_eq!(gate.calls.load(SeqCst), 2, "the permit of the canceled job");
    gate.open.notify_one();
    assert_eq!(text(assert_ready!(waits.poll()).unwrap()).await, "through");
}

/// What the request carries for its handler, read before the move.
async fn read_before(
    State(state): State<&'static str>,
    Extension(user): Extension<&'static str>,
    Path(id): Path<String>,
) -> String {
    sleep(BUDGET * 2).await;
    format!("{state} {user} {id}")
}

/// The same, read after it.
async fn read_after(State(state): State<&'static str>, request: Request<Body>) -> String {
    sleep(BUDGET * 2).await;
    let (mut parts, _) = request.into_parts();
    let Extension(user) = parts.extract::<Extension<&'static str>>().await.unwrap();
    let Path(id) = parts.extract::<Path<String>>().await.unwrap();
    format!("{state} {user} {id}")
}

#[tokio::test(start_paused = true)]
async fn trap_3_9_what_a_request_carries_reaches_a_handler_that_has_moved() {
    let offload = Offload::new("/jobs");
    for policy in [Policy::after(BUDGET), Policy::always()] {
        let inside = Router::new()
            .route("/before/{id}", post(read_before).layer(offload.layer(policy.clone())))
            .route("/after/{id}", post(read_after).layer(offload.layer(policy.clone())))
            .with_state("state");
        let nested = Router::new().nest("/api", inside.clone());
        let bare = Router::new()
            .route("/before/{id}", post(read_before))
            .route("/after/{id}", post(read_after))
            .with_state("state");
        let policies = Policies::otherwise(Policy::never())
            .at("/before/{id}", policy.clone())
            .at("POST /after/{*id}", policy);
        let around = Router::new().fallback_service(offload.layer(policies).layer(bare));
        for (app, prefix) in [(inside, ""), (nested, "/api"), (around, "")] {
            for path in ["/before/7", "/after/7"] {
                let mut request = request(&format!("{prefix}{path}"));
                request.extensions_mut().insert("user");
                let accepted = app.clone().oneshot(request).await.unwrap();
                assert_eq!(replayed(&offload, &job(&accepted)).await, "state user 7");
            }
        }
    }
}
