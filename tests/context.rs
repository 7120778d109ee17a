//! What surrounds a handler and must survive the move: task-locals, extensions, spans, the order of
//! layers, and the handler's own `Job`.

#[path = "support/desk.rs"]
mod desk;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, pending, poll_fn},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse, routing::post};
use desk::{Held, Insert, ended, get, job};
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tokio::{task::yield_now, time::sleep};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, util::BoxCloneService};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer, trace::TraceLayer};
use tower_offload::{Job, JobId, Offload, Policy};
use tracing::{
    Instrument, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{layer::SubscriberExt, registry::LookupSpan};

const BUDGET: Duration = Duration::from_millis(50);

fn request(path: &str) -> Request<Body> {
    Request::post(path).body(Body::empty()).unwrap()
}

type Boxed = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

/// A handler as a service.
fn service<F, Fut, R>(handler: F) -> Boxed
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoResponse,
{
    BoxCloneService::new(tower::service_fn(move |request| {
        let answer = handler(request);
        async move { Ok(answer.await.into_response()) }
    }))
}

async fn replayed(offload: &Offload, job: &str) -> String {
    ended(offload, job).await;
    let answer = get(offload, &format!("{job}/result")).await;
    String::from_utf8(answer.body().to_vec()).unwrap()
}

// ------------------------------------------------------------------------- what is around a handler

tokio::task_local! {
    static LOCAL: &'static str;
}

#[tokio::test(start_paused = true)]
async fn trap_5_1_a_task_local_inside_survives_the_move_and_so_do_extensions() {
    let offload = Offload::new("/jobs");
    for policy in [Policy::after(BUDGET), Policy::always()] {
        let layer = offload.layer(policy);
        let inside = layer.clone().layer(service(|request| {
            LOCAL.scope("inside", async move {
                sleep(BUDGET * 2).await;
                format!("{} {}", LOCAL.get(), request.extensions().get::<&str>().unwrap())
            })
        }));
        let mut carries = request("/");
        carries.extensions_mut().insert("extension");
        let accepted = inside.oneshot(carries).await.unwrap();
        assert_eq!(replayed(&offload, &job(&accepted)).await, "inside extension");

        // One outside belongs to the request's task, and ends with it.
        let bare = layer.layer(service(|_| async {
            sleep(BUDGET * 2).await;
            LOCAL.try_with(|local| *local).unwrap_or("gone")
        }));
        let accepted = LOCAL.scope("outside", bare.oneshot(request("/"))).await.unwrap();
        assert_eq!(replayed(&offload, &job(&accepted)).await, "gone");
    }
}

/// Notes for each event of a handler here the spans that it is in, outermost first.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<HashMap<String, Vec<&'static str>>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Spans {
    fn on_event(
        &self,
        event: &tracing::Event<'_>,
        context: tracing_subscriber::layer::Context<'_, S>,
    ) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let spans = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let spans = spans.map(|span| span.metadata().name()).collect();
        self.0.lock().unwrap().insert(message.0, spans);
    }
}

impl Spans {
    fn of(&self, message: &str) -> Vec<&'static str> {
        self.0.lock().unwrap().remove(message).unwrap_or_else(|| panic!("no event {message:?}"))
    }
}

#[tokio::test(start_paused = true)]
async fn trap_5_2_the_span_of_the_request_is_the_jobs_too() {
    let spans = Spans::default();
    let _default =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let offload = Offload::new("/jobs");
    let handler = service(|_| {
        async {
            tracing::info!("before");
            sleep(BUDGET * 2).await;
            tracing::info!("after");
        }
        .instrument(tracing::info_span!("handler"))
    });
    let trace = TraceLayer::new_for_http()
        .make_span_with(|_: &Request<Body>| tracing::info_span!("request"));
    for policy in [Policy::after(BUDGET), Policy::always()] {
        let layered = offload.layer(policy).layer(handler.clone());
        let traced = trace.clone().layer(layered.clone()).oneshot(request("/")).await.unwrap();
        let document = ended(&offload, &job(&traced)).await;
        assert_eq!(document["status"], "succeeded");
        assert_eq!(spans.of("before"), ["request", "handler"]);
        assert_eq!(spans.of("after"), ["request", "handler"]);
        assert_eq!(spans.of("ended"), ["request"], "so are the crate's own events");

        let outer = tracing::info_span!("outer");
        let answer = layered.oneshot(request("/")).instrument(outer).await.unwrap();
        ended(&offload, &job(&answer)).await;
        assert_eq!(spans.of("before"), ["outer", "handler"]);
        assert_eq!(spans.of("after"), ["outer", "handler"]);
    }
}

/// The span is the one that the request is polled in, as without the layer: of one that was entered
/// around the call alone, a handler's future sees nothing either way.
#[tokio::test(start_paused = true)]
async fn trap_5_2_the_span_is_the_one_that_would_be_current_without_the_layer() {
    let spans = Spans::default();
    let _default =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let offload = Offload::new("/jobs");
    let handler = service(|_| async {
        sleep(BUDGET * 2).await;
        tracing::info!("after");
    });
    let call = tracing::info_span!("call");
    for (poll, expected) in [(Some("poll"), vec!["poll"]), (None, vec![])] {
        let span = poll.map_or(tracing::Span::none(), |_| tracing::info_span!("poll"));
        let answer = call.in_scope(|| handler.clone().call(request("/")));
        answer.instrument(span.clone()).await.unwrap();
        assert_eq!(spans.of("after"), expected, "without the layer");

        let mut layered = offload.layer(Policy::after(BUDGET)).layer(handler.clone());
        let answer = call.in_scope(|| layered.call(request("/")));
        ended(&offload, &job(&answer.instrument(span).await.unwrap())).await;
        assert_eq!(spans.of("after"), expected, "with it");
    }
}

/// The documented order, from outside: trace, authentication, offload, concurrency limit, timeout,
/// catch-panic, handler.
#[tokio::test(start_paused = true)]
async fn trap_5_3_the_documented_order_composes_and_works() {
    async fn authenticate(
        request: axum::extract::Request,
        next: axum::middleware::Next,
    ) -> Response<Body> {
        match request.headers().contains_key(AUTHORIZATION) {
            true => next.run(request).await,
            false => StatusCode::UNAUTHORIZED.into_response(),
        }
    }
    async fn handler(body: String) -> String {
        match body.as_str() {
            "quick" => {}
            "slow" => sleep(BUDGET * 2).await,
            "panics" => {
                sleep(BUDGET * 2).await;
                panic!("told to");
            }
            _ => sleep(BUDGET * 1000).await,
        }
        body
    }
    let offload = Offload::new("/jobs");
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, BUDGET * 10);
    // In one stack the timeout's timer makes the future one that cannot be moved, and what
    // `CatchPanicLayer` makes of the body is a type that nobody else can make.
    let one_stack = Router::<()>::new().route("/", post(handler)).layer(
        ServiceBuilder::new()
            .layer(TraceLayer::new_for_http())
            .layer(axum::middleware::from_fn(authenticate))
            .layer(offload.layer(Policy::after(BUDGET)).boxed())
            .concurrency_limit(8)
            .layer(timeout)
            .map_response(IntoResponse::into_response)
            .layer(CatchPanicLayer::new()),
    );
    // axum boxes each layer that is given to it on its own.
    let one_by_one = Router::<()>::new()
        .route("/", post(handler))
        .layer(CatchPanicLayer::new())
        .layer(timeout)
        .layer(tower::limit::ConcurrencyLimitLayer::new(8))
        .layer(offload.layer(Policy::after(BUDGET)))
        .layer(axum::middleware::from_fn(authenticate))
        .layer(TraceLayer::new_for_http());
    for app in [one_stack, one_by_one] {
        let send = |body: &'static str| {
            let request = Request::post("/").header(AUTHORIZATION, "me").body(Body::from(body));
            app.clone().oneshot(request.unwrap())
        };
        assert_eq!(app.clone().oneshot(request("/")).await.unwrap().status(), 401);
        assert_eq!(send("quick").await.unwrap().status(), 200);
        for (body, status, response_status) in
            [("slow", "succeeded", 200), ("panics", "failed", 500), ("stuck", "failed", 504)]
        {
            let job = job(&send(body).await.unwrap());
            let document = ended(&offload, &job).await;
            assert_eq!(
                (&document["status"], &document["response_status"]),
                (&status.into(), &response_status.into()),
                "{body}"
            );
        }
    }
}

// ----------------------------------------------------------------------------- the handler's own job

/// The id in a job's path.
fn id_of(job: &str) -> String {
    job.rsplit('/').next().unwrap().to_owned()
}

fn current() -> JobId {
    Job::current().expect("the request is watched").id()
}

#[tokio::test(start_paused = true)]
async fn the_id_is_the_one_in_the_location_whenever_it_is_asked_for() {
    let before = service(|_| {
        let id = current();
        async move {
            sleep(BUDGET * 2).await;
            id.to_string()
        }
    });
    let both = service(|_| async {
        let before = current();
        sleep(BUDGET * 2).await;
        assert_eq!(before, current());
        before.to_string()
    });
    let after = service(|_| async {
        sleep(BUDGET * 2).await;
        current().to_string()
    });
    // As the extractor does: the job is taken at once, and its id read much later.
    let late = service(|_| async {
        let job = Job::current().unwrap();
        sleep(BUDGET * 2).await;
        let inside = Job::current().unwrap();
        assert_eq!(job.id(), inside.id());
        tokio::spawn(async move { job.id().to_string() }).await.unwrap()
    });
    let slow = Insert::Takes(BUDGET / 2);
    for insert in [Insert::Works, slow] {
        let offload = Offload::builder("/jobs").store(Held::new(insert)).build().unwrap();
        for policy in [Policy::after(BUDGET), Policy::always(), Policy::on_request(BUDGET)] {
            for handler in [&before, &both, &after, &late] {
                let service = offload.layer(policy.clone()).layer(handler.clone());
                let head = Request::post("/").header("prefer", "respond-async, wait=0");
                let accepted = service.oneshot(head.body(Body::empty()).unwrap()).await.unwrap();
                let job = job(&accepted);
                assert_eq!(replayed(&offload, &job).await, id_of(&job), "{policy:?}");
            }
        }
    }
}

/// A slow store registers the job while the handler first asks for it.
#[tokio::test(start_paused = true)]
async fn the_id_asked_for_during_registration_is_the_one_in_the_location() {
    let store = Held::new(Insert::Takes(BUDGET));
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    let service = offload.layer(Policy::after(BUDGET)).layer(service(|_| async {
        sleep(BUDGET * 3 / 2).await;
        let id = current();
        sleep(BUDGET * 2).await;
        id.to_string()
    }));
    let job = job(&service.oneshot(request("/")).await.unwrap());
    assert_eq!(replayed(&offload, &job).await, id_of(&job));
}

#[tokio::test(start_paused = true)]
async fn each_request_is_a_job_of_its_own() {
    let offload = Offload::new("/jobs");
    let service = offload.layer(Policy::after(BUDGET)).layer(service(|_| async {
        let id = current();
        for _ in 0..10 {
            yield_now().await;
            assert_eq!(current(), id);
        }
        id.to_string()
    }));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        calls.spawn(service.clone().oneshot(request("/")));
    }
    let mut ids: Vec<_> = Vec::new();
    for answer in calls.join_all().await {
        ids.push(axum::body::to_bytes(answer.unwrap().into_body(), 100).await.unwrap());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_job_where_nothing_is_watched() {
    assert!(Job::current().is_none());
    let offload = Offload::new("/jobs");
    let tells = || {
        service(|_| async {
            let own = Job::current().is_some();
            let spawned = tokio::spawn(async { Job::current().is_some() }).await.unwrap();
            format!("{own} {spawned}")
        })
    };
    let unwatched = [
        (Policy::never(), request("/")),
        (Policy::on_request(BUDGET), request("/")),
        (Policy::after(BUDGET), Request::head("/").body(Body::empty()).unwrap()),
        (Policy::after(BUDGET), request("/jobs/1")),
    ];
    let watched = [(Policy::after(BUDGET), request("/"))];
    let cases = unwatched.map(|case| (case, "false false")).into_iter();
    for ((policy, request), expected) in cases.chain(watched.map(|case| (case, "true false"))) {
        let answer = offload.layer(policy).layer(tells()).oneshot(request).await.unwrap();
        assert_eq!(axum::body::to_bytes(answer.into_body(), 100).await.unwrap(), expected);
    }
    assert!(Job::current().is_none());
}

#[tokio::test(start_paused = true)]
async fn of_two_desks_the_inner_one_is_seen_until_it_does_not_watch() {
    let (outer, inner) = (Offload::new("/outer"), Offload::new("/inner"));
    let handler = || {
        service(|_| async {
            sleep(BUDGET * 3).await;
            current().to_string()
        })
    };
    for (policy, location) in [(Policy::never(), "/outer/"), (Policy::after(BUDGET), "/inner/")] {
        let stack = inner.layer(policy).layer(handler());
        let accepted = outer.layer(Policy::after(BUDGET * 2)).layer(stack);
        let job = job(&accepted.oneshot(request("/")).await.unwrap());
        assert!(job.starts_with(location), "{job}");
        let desk = if location == "/outer/" { &outer } else { &inner };
        assert_eq!(replayed(desk, &job).await, id_of(&job));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_watched_by_an_outer_layer_of_the_same_desk_is_one_job() {
    let offload = Offload::new("/jobs");
    let handler = service(|_| async {
        sleep(BUDGET * 2).await;
        current().to_string()
    });
    let stack = offload.layer(Policy::after(BUDGET / 4)).layer(handler);
    let stack = offload.layer(Policy::after(BUDGET)).layer(stack);
    let start = tokio::time::Instant::now();
    let job = job(&stack.oneshot(request("/")).await.unwrap());
    assert_eq!(start.elapsed(), BUDGET, "the outer one decides");
    assert_eq!(replayed(&offload, &job).await, id_of(&job));
}

#[tokio::test(start_paused = true)]
async fn the_job_is_an_extractor() {
    let offload = Offload::new("/jobs");
    let required = |job: Job| async move {
        // Where the request is no job, it goes nowhere.
        job.set_total(2);
        job.advance(1);
        sleep(BUDGET * 2).await;
        assert!(!job.cancellation().is_cancelled());
        job.id().to_string()
    };
    let optional = |job: Option<Job>| async move {
        job.map_or_else(|| "none".to_owned(), |job| job.id().to_string())
    };
    let layer = offload.layer(Policy::after(BUDGET));
    let app = Router::<()>::new()
        .route("/required", post(required).layer(layer.clone()))
        .route("/optional", post(optional).layer(layer))
        .route("/never", post(required).layer(offload.layer(Policy::never())))
        .route("/never/optional", post(optional).layer(offload.layer(Policy::never())))
        .route("/missing", post(required))
        .route("/none", post(optional));
    let send = async |path: &str| app.clone().oneshot(request(path)).await.unwrap();
    let accepted = job(&send("/required").await);
    assert_eq!(ended(&offload, &accepted).await["progress"]["ratio"], 0.5);
    assert_eq!(replayed(&offload, &accepted).await, id_of(&accepted));
    for (path, text) in [
        ("/optional", None),
        ("/never", None),
        ("/never/optional", Some("none")),
        ("/missing", None),
        ("/none", Some("none")),
    ] {
        let answer = send(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
        match text {
            Some(text) => assert_eq!(body, text),
            None => assert_eq!(body.len(), accepted.len() - "/jobs/".len()),
        }
    }
}

// -------------------------------------------------------------------------------------- cancellation

/// What a handler and its helpers saw of the cancellation.
#[derive(Clone, Default)]
struct Witness {
    token: Arc<Mutex<Option<tokio_util::sync::CancellationToken>>>,
    /// Whether the token was canceled when the handler's future was dropped.
    at_drop: Arc<Mutex<Option<bool>>>,
}

impl Witness {
    /// The handler: takes so long, and then ends so.
    fn handler(
        &self,
        takes: Duration,
        end: fn() -> Result<(), &'static str>,
    ) -> BoxCloneService<Request<Body>, Response<Body>, tower::BoxError> {
        let witness = self.clone();
        BoxCloneService::new(tower::service_fn(move |_| {
            let witness = witness.clone();
            async move {
                *witness.token.lock().unwrap() = Some(Job::current().unwrap().cancellation());
                let _last = NoteAtDrop(witness);
                sleep(takes).await;
                end().map(|()| Response::new(Body::empty())).map_err(Into::into)
            }
        }))
    }

    fn is_canceled(&self) -> bool {
        self.token.lock().unwrap().as_ref().unwrap().is_cancelled()
    }

    /// Resolves when the handler's future was dropped: was the token canceled by then?
    async fn canceled_at_drop(&self) -> bool {
        loop {
            if let Some(canceled) = *self.at_drop.lock().unwrap() {
                return canceled;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

struct NoteAtDrop(Witness);

impl Drop for NoteAtDrop {
    fn drop(&mut self) {
        *self.0.at_drop.lock().unwrap() = Some(self.0.is_canceled());
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_canceled_when_the_job_is() {
    let (offload, witness) = (Offload::new("/jobs"), Witness::default());
    let service =
        offload.layer(Policy::after(BUDGET)).layer(witness.handler(BUDGET * 9, || Ok(())));
    let job = job(&service.oneshot(request("/")).await.unwrap());
    assert!(!witness.is_canceled());
    let delete = Request::delete(job).body(()).unwrap();
    assert_eq!(offload.status().oneshot(delete).await.unwrap().status(), 200);
    // Told before the drop of the handler's future, which may wait for who is told.
    assert!(witness.canceled_at_drop().await);
}

#[tokio::test(start_paused = true)]
async fn the_token_is_canceled_when_time_is_over() {
    let (offload, witness) = (Offload::new("/jobs"), Witness::default());
    let policy = Policy::after(BUDGET).timeout(BUDGET * 2);
    let service = offload.layer(policy).layer(witness.handler(BUDGET * 9, || Ok(())));
    let job = job(&service.oneshot(request("/")).await.unwrap());
    assert!(witness.canceled_at_drop().await);
    let document = ended(&offload, &job).await;
    assert_eq!(
        (&document["status"], &document["error"]["status"]),
        (&"failed".into(), &504.into())
    );
}

#[tokio::test(start_paused = true)]
async fn the_token_is_canceled_when_a_drain_cuts_the_job_off() {
    let (offload, witness) = (Offload::new("/jobs"), Witness::default());
    let service =
        offload.layer(Policy::after(BUDGET)).layer(witness.handler(BUDGET * 9, || Ok(())));
    job(&service.oneshot(request("/")).await.unwrap());
    assert_eq!(offload.drain(BUDGET).await.interrupted(), 1);
    assert!(witness.canceled_at_drop().await);
}

#[tokio::test(start_paused = true)]
async fn the_token_is_canceled_when_the_client_leaves_before_the_202() {
    let store = Held::new(Insert::Waits);
    let offload = Offload::builder("/jobs").store(store).build().unwrap();
    // While it is attached, and while its job is registered.
    for leaves_after in [BUDGET / 2, BUDGET * 2] {
        let witness = Witness::default();
        let handler = witness.handler(BUDGET * 9, || Ok(()));
        let service = offload.layer(Policy::after(BUDGET)).layer(handler);
        let left = tokio::time::timeout(leaves_after, service.oneshot(request("/"))).await;
        assert!(left.is_err());
        assert!(witness.canceled_at_drop().await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_canceled_when_the_handler_panics() {
    let offload = Offload::new("/jobs");
    for takes in [Duration::ZERO, BUDGET * 2] {
        let witness = Witness::default();
        let handler = witness.handler(takes, || panic!("told to"));
        let service = offload.layer(Policy::after(BUDGET)).layer(handler);
        let answer = tokio::spawn(service.oneshot(request("/"))).await;
        assert_eq!(answer.is_err(), takes.is_zero(), "attached, it panics through");
        while !witness.is_canceled() {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_not_canceled_when_the_handler_just_ends() {
    let offload = Offload::new("/jobs");
    for takes in [Duration::ZERO, BUDGET / 2, BUDGET * 2] {
        for end in [|| Ok(()), || Err("an error of its own")] {
            let witness = Witness::default();
            let mut service =
                offload.layer(Policy::after(BUDGET)).layer(witness.handler(takes, end));
            if let Ok(answer) = service.call(request("/")).await {
                if answer.status() == 202 {
                    ended(&offload, &job(&answer)).await;
                }
            }
            assert!(!witness.canceled_at_drop().await);
            sleep(BUDGET * 10).await;
            assert!(!witness.is_canceled());
        }
    }
}

/// A runtime waits for its blocking threads when it is dropped, so they must be told.
#[test]
fn a_helper_on_a_blocking_thread_is_told_when_the_runtime_goes() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime().unwrap();
    let offload = Offload::new("/jobs");
    let accepted = runtime.block_on(async {
        let handler = service(|_| async {
            let token = Job::current().unwrap().cancellation();
            let helper = tokio::task::spawn_blocking(move || {
                while !token.is_cancelled() {
                    std::thread::yield_now();
                }
            });
            helper.await.unwrap();
        });
        job(&offload
            .layer(Policy::after(BUDGET))
            .layer(handler)
            .oneshot(request("/"))
            .await
            .unwrap())
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let document = other.block_on(ended(&offload, &accepted));
    assert_eq!(document["error"]["status"], 503);
}

/// A handler's drop that asks for its job again finds none, and no other's.
#[tokio::test(start_paused = true)]
async fn a_drop_may_ask_for_the_current_job() {
    struct Asks(Arc<Mutex<Option<bool>>>);
    impl Drop for Asks {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(Job::current().is_some());
        }
    }
    let (offload, seen) = (Offload::new("/jobs"), Arc::default());
    let asks = Arc::clone(&seen);
    let mut service = offload.layer(Policy::after(BUDGET)).layer(service(move |_| {
        let asks = Asks(Arc::clone(&asks));
        async move {
            let _asks = asks;
            poll_fn(|_| {
                assert!(Job::current().is_some());
                Poll::<()>::Pending
            })
            .await;
            pending::<()>().await;
        }
    }));
    let mut call = task::spawn(service.call(request("/")));
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(*seen.lock().unwrap(), Some(false));
}
