//! The response future, poll by poll: each stage of the diagram at the top of
//! `src/offload/future.rs`, with a mock inside, a store that the test holds, and a clock that stands.

#[path = "support/desk.rs"]
mod desk;

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use axum::body::Body;
use desk::{Held, Insert, ended, get, job};
use http::{Request, Response, request::Builder};
use http_body_util::BodyExt;
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, util::BoxCloneService};
use tower_offload::{BoxError, Offload, OffloadService, Policy, ResponseFuture};
use tower_test::mock;

const BUDGET: Duration = Duration::from_millis(250);

type Mock = mock::Mock<Request<Body>, Response<Body>>;
type Handle = mock::Handle<Request<Body>, Response<Body>>;
type Call = task::Spawn<<OffloadService<Mock> as Service<Request<Body>>>::Future>;

/// A layered mock, and the desk.
struct Bench {
    service: mock::Spawn<OffloadService<Mock>>,
    handle: Handle,
    offload: Offload,
    store: Held,
}

impl Bench {
    fn new(policy: Policy, insert: Insert) -> Self {
        let store = Held::new(insert);
        let offload = Offload::builder("/jobs").store(store.clone()).max_running(1);
        let offload = offload.build().unwrap();
        let (service, handle) = mock::spawn_layer(offload.layer(policy));
        Self { service, handle, offload, store }
    }

    /// A call of the service, and its request as it has come to the mock.
    async fn call(&mut self) -> (Call, mock::SendResponse<Response<Body>>) {
        self.call_with(Request::post("/")).await
    }

    async fn call_with(&mut self, head: Builder) -> (Call, mock::SendResponse<Response<Body>>) {
        assert_ready_ok!(self.service.poll_ready());
        let call = task::spawn(self.service.call(head.body(Body::empty()).unwrap()));
        let (_, answer) = self.handle.next_request().await.unwrap();
        (call, answer)
    }

    /// That no job is stored, and the one place for a job is free, or soon will be.
    async fn leaves_all_as_at_the_start(self) {
        self.store.emptied().await;
        self.store.inserts(Insert::Works);
        let layer = self.offload.layer(Policy::always());
        let (mut service, mut handle) = mock::spawn_layer::<_, Response<Body>, _>(layer);
        let job = loop {
            assert_ready_ok!(service.poll_ready());
            let request = Request::post("/").body(Body::empty()).unwrap();
            let answer = assert_ready_ok!(task::spawn(service.call(request)).poll());
            if answer.status() == 202 {
                break job(&answer);
            }
            assert!(handle.next_request().await.is_some());
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let (_, answer) = handle.next_request().await.unwrap();
        answer.send_response(text("at the end"));
        assert_eq!(ended(&self.offload, &job).await["status"], "succeeded");
    }
}

fn text(text: &'static str) -> Response<Body> {
    Response::builder().header("x-own", "1").body(Body::from(text)).unwrap()
}

async fn read(response: Response<Body>) -> String {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-own"], "1");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The replayed response of a job, when it has ended.
async fn replayed(offload: &Offload, job: &str) -> String {
    ended(offload, job).await;
    let answer = get(offload, &format!("{job}/result")).await;
    assert_eq!(answer.headers()["x-own"], "1");
    String::from_utf8(answer.body().to_vec()).unwrap()
}

/// Waits for the call to be woken; the clock stands meanwhile.
async fn woken<F: Future>(call: &task::Spawn<F>) {
    while !call.is_woken() {
        yield_now().await;
    }
}

/// Lets every other task go as far as it can; the clock stands meanwhile.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ready_at_the_first_poll_passes_through() {
    for policy in [Policy::after(BUDGET), Policy::on_request(BUDGET)] {
        let mut bench = Bench::new(policy, Insert::Fails);
        for head in [Request::post("/"), Request::post("/").header("prefer", "respond-async")] {
            let (mut call, answer) = bench.call_with(head).await;
            answer.send_response(text("at once"));
            assert_eq!(read(assert_ready_ok!(call.poll())).await, "at once");
        }
        bench.leaves_all_as_at_the_start().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ready_within_the_budget_passes_through() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Fails);
    let (mut call, answer) = bench.call().await;
    assert_pending!(call.poll());
    advance(BUDGET - Duration::from_millis(1)).await;
    settle().await;
    assert!(!call.is_woken());
    answer.send_response(text("soon"));
    assert!(call.is_woken());
    assert_eq!(read(assert_ready_ok!(call.poll())).await, "soon");
    bench.leaves_all_as_at_the_start().await;
}

#[tokio::test(start_paused = true)]
async fn over_the_budget_the_same_future_goes_on_as_a_job() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    let (mut call, answer) = bench.call().await;
    let start = Instant::now();
    assert_pending!(call.poll());
    advance(BUDGET).await;
    woken(&call).await;
    assert_eq!(start.elapsed(), BUDGET);
    let accepted = assert_ready_ok!(call.poll());
    let job = job(&accepted);
    drop(call);
    assert!(bench.handle.poll_request().is_pending(), "the handler is called once");
    answer.send_response(text("late"));
    assert_eq!(replayed(&bench.offload, &job).await, "late");
}

#[tokio::test(start_paused = true)]
async fn the_handler_wins_where_both_are_ready() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    let (mut call, answer) = bench.call().await;
    assert_pending!(call.poll());
    advance(BUDGET * 4).await;
    woken(&call).await;
    answer.send_response(text("just in time"));
    assert_eq!(read(assert_ready_ok!(call.poll())).await, "just in time");
    bench.leaves_all_as_at_the_start().await;
}

#[tokio::test(start_paused = true)]
async fn the_task_that_polled_last_is_woken() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    let (mut call, _answer) = bench.call().await;
    assert_pending!(call.poll());
    let mut moved = task::spawn(call.into_inner());
    assert_pending!(moved.poll());
    advance(BUDGET).await;
    woken(&moved).await;
    job(&assert_ready_ok!(moved.poll()));
}

#[tokio::test(start_paused = true)]
async fn respond_async_is_polled_once() {
    for policy in [Policy::after(BUDGET), Policy::on_request(BUDGET)] {
        let mut bench = Bench::new(policy, Insert::Works);
        // `on_request` has its budget where `wait` is missing; a `wait` of none is none.
        let prefer = "respond-async, wait=0";
        let (mut call, answer) = bench.call_with(Request::post("/").header("prefer", prefer)).await;
        let accepted = assert_ready_ok!(call.poll());
        assert_eq!(accepted.headers()["preference-applied"], prefer);
        answer.send_response(text("later"));
        assert_eq!(replayed(&bench.offload, &job(&accepted)).await, "later");
    }
}

#[tokio::test(start_paused = true)]
async fn respond_async_waits_as_long_as_it_says() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    let head = Request::post("/").header("prefer", "respond-async, wait=2");
    let (mut call, _answer) = bench.call_with(head).await;
    assert_pending!(call.poll());
    advance(Duration::from_millis(1999)).await;
    settle().await;
    assert!(!call.is_woken());
    advance(Duration::from_millis(1)).await;
    woken(&call).await;
    let accepted = assert_ready_ok!(call.poll());
    assert_eq!(accepted.headers()["preference-applied"], "respond-async, wait=2");
}

#[tokio::test(start_paused = true)]
async fn refused_it_stays_attached() {
    for insert in [Insert::Fails, Insert::IsLost, Insert::IsFull] {
        let mut bench = Bench::new(Policy::after(BUDGET), insert);
        let (mut call, answer) = bench.call().await;
        assert_pending!(call.poll());
        advance(BUDGET).await;
        woken(&call).await;
        assert_pending!(call.poll());
        settle().await;
        assert_pending!(call.poll());
        advance(BUDGET * 100).await;
        settle().await;
        assert!(!call.is_woken(), "nothing is tried again");
        answer.send_response(text("attached"));
        assert_eq!(read(assert_ready_ok!(call.poll())).await, "attached");
        bench.leaves_all_as_at_the_start().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_place_it_stays_attached() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    let (mut first, held) = bench.call().await;
    assert_pending!(first.poll());
    advance(BUDGET).await;
    woken(&first).await;
    let accepted = job(&assert_ready_ok!(first.poll()));
    let (mut second, answer) = bench.call().await;
    assert_pending!(second.poll());
    advance(BUDGET).await;
    woken(&second).await;
    assert_pending!(second.poll());
    answer.send_response(text("attached"));
    assert_eq!(read(assert_ready_ok!(second.poll())).await, "attached");
    held.send_response(text("late"));
    assert_eq!(replayed(&bench.offload, &accepted).await, "late");
}

#[tokio::test(start_paused = true)]
async fn an_always_route_that_is_refused_answers_503() {
    for insert in [Insert::Fails, Insert::IsLost, Insert::IsFull] {
        let mut bench = Bench::new(Policy::always(), insert);
        let (mut call, _answer) = bench.call().await;
        let refused = loop {
            match call.poll() {
                Poll::Ready(answer) => break answer.unwrap(),
                Poll::Pending => woken(&call).await,
            }
        };
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        bench.leaves_all_as_at_the_start().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_always_route_without_a_place_answers_503() {
    let mut bench = Bench::new(Policy::always(), Insert::Works);
    let (mut first, _held) = bench.call().await;
    job(&assert_ready_ok!(first.poll()));
    let (mut second, _answer) = bench.call().await;
    let refused = assert_ready_ok!(second.poll());
    assert_eq!((refused.status().as_u16(), bench.store.jobs.jobs()), (503, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_passes_through_while_attached() {
    // Before the budget, while the job is registered, and after that was refused.
    for (insert, budgets) in [(Insert::Works, 0), (Insert::Waits, 1), (Insert::Fails, 2)] {
        let mut bench = Bench::new(Policy::after(BUDGET), insert);
        let (mut call, answer) = bench.call().await;
        assert_pending!(call.poll());
        for _ in 0..budgets {
            advance(BUDGET).await;
            settle().await;
            assert_pending!(call.poll());
        }
        answer.send_error("as it is");
        let error: BoxError = assert_ready_err!(call.poll());
        assert_eq!(error.to_string(), "as it is");
        bench.store.let_insert();
        bench.leaves_all_as_at_the_start().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_poll_ready_passes_through() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Works);
    bench.handle.send_error("not now");
    let error: BoxError = assert_ready_err!(bench.service.poll_ready());
    assert_eq!(error.to_string(), "not now");
    bench.handle.allow(0);
    assert_pending!(bench.service.poll_ready());
    bench.handle.allow(1);
    assert!(bench.service.is_woken());
    assert_ready_ok!(bench.service.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_while_its_job_is_registered_wins() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Waits);
    let (mut call, answer) = bench.call().await;
    assert_pending!(call.poll());
    advance(BUDGET).await;
    woken(&call).await;
    assert_pending!(call.poll());
    answer.send_response(text("first"));
    assert!(call.is_woken(), "it is still polled in place");
    assert_eq!(read(assert_ready_ok!(call.poll())).await, "first");
    bench.store.let_insert();
    settle().await;
    assert_eq!(bench.store.take_backs(), 1);
    bench.leaves_all_as_at_the_start().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_when_its_job_is_there_wins() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Waits);
    let (mut call, answer) = bench.call().await;
    assert_pending!(call.poll());
    advance(BUDGET).await;
    woken(&call).await;
    assert_pending!(call.poll());
    settle().await;
    bench.store.let_insert();
    woken(&call).await;
    assert_eq!(bench.store.jobs.jobs(), 1);
    answer.send_response(text("first"));
    assert_eq!(read(assert_ready_ok!(call.poll())).await, "first");
    bench.leaves_all_as_at_the_start().await;
}

#[tokio::test(start_paused = true)]
async fn it_moves_only_when_the_store_has_the_job() {
    let mut bench = Bench::new(Policy::after(BUDGET), Insert::Waits);
    let (mut call, answer) = bench.call().await;
    assert_pending!(call.poll());
    advance(BUDGET * 100).await;
    woken(&call).await;
    assert_pending!(call.poll());
    settle().await;
    assert!(!call.is_woken());
    assert_pending!(call.poll());
    bench.store.let_insert();
    woken(&call).await;
    let job = job(&assert_ready_ok!(call.poll()));
    answer.send_response(text("late"));
    assert_eq!(replayed(&bench.offload, &job).await, "late");
}

/// A handler that counts its polls, and tells of its drop; it is ready when the test says so.
#[derive(Clone, Default)]
struct Seen {
    polls: Arc<AtomicUsize>,
    dropped: Arc<AtomicBool>,
}

struct SetAtDrop(Arc<AtomicBool>);

impl Drop for SetAtDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl Seen {
    fn service(&self) -> BoxCloneService<Request<Body>, Response<Body>, BoxError> {
        let seen = self.clone();
        BoxCloneService::new(tower::service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            let dropped = SetAtDrop(Arc::clone(&seen.dropped));
            async move {
                // What this handler does with its body is to hold it.
                let _held = (dropped, request);
                poll_fn(|_| {
                    seen.polls.fetch_add(1, SeqCst);
                    Poll::<()>::Pending
                })
                .await;
                pending().await
            }
        }))
    }

    fn polls(&self) -> usize {
        self.polls.load(SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn an_always_route_without_a_body_is_not_polled_in_place() {
    let (seen, store) = (Seen::default(), Held::new(Insert::Waits));
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let mut service = offload.layer(Policy::always()).layer(seen.service());
    let request = Request::post("/").body(Body::empty()).unwrap();
    let mut call = task::spawn(service.call(request));
    assert_pending!(call.poll());
    settle().await;
    assert_pending!(call.poll());
    store.let_insert();
    woken(&call).await;
    assert_eq!(seen.polls(), 0);
    job(&assert_ready_ok!(call.poll()));
    assert_eq!(seen.polls(), 0);
    settle().await;
    assert_eq!(seen.polls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_always_route_with_a_body_is_begun_at_once_and_moved_at_the_bodys_end() {
    let (seen, store) = (Seen::default(), Held::new(Insert::Works));
    let offload = Offload::builder("/jobs").store(store.clone()).build().unwrap();
    let mut service = offload.layer(Policy::always()).layer(seen.service());
    let (mut wire, body) = http_body_util::channel::Channel::<_, std::io::Error>::new(1);
    let mut call = task::spawn(service.call(Request::post("/").body(Body::new(body)).unwrap()));
    assert_pending!(call.poll());
    assert_eq!((seen.polls(), store.jobs.jobs()), (1, 0));
    wire.send_data("all of it".into()).await.unwrap();
    assert_pending!(call.poll());
    assert_eq!(store.jobs.jobs(), 0);
    drop(wire);
    woken(&call).await;
    job(&assert_ready_ok!(call.poll()));
}

/// Where a response future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Started,
    Armed,
    Uploading,
    Registering,
    Attached,
    Detached,
}

type SeenCall =
    ResponseFuture<Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>>;

async fn to(at: At, mut call: task::Spawn<SeenCall>, store: &Held) -> task::Spawn<SeenCall> {
    if at == At::Started {
        return call;
    }
    assert_pending!(call.poll());
    if at == At::Armed {
        return call;
    }
    advance(BUDGET).await;
    woken(&call).await;
    if at == At::Detached {
        assert_pending!(call.poll());
        settle().await;
        store.let_insert();
        woken(&call).await;
        job(&assert_ready!(call.poll()).unwrap());
        return call;
    }
    assert_pending!(call.poll());
    if at == At::Attached {
        settle().await;
        store.let_insert();
        woken(&call).await;
        assert_pending!(call.poll());
    }
    call
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_stage_it_leaves_nothing_behind() {
    use At::*;
    for at in [Started, Armed, Uploading, Registering, Attached, Detached] {
        let insert = if at == Attached { Insert::WaitsAndFails } else { Insert::Waits };
        let (seen, store) = (Seen::default(), Held::new(insert));
        let offload = Offload::builder("/jobs").store(store.clone()).max_running(1);
        let offload = offload.build().unwrap();
        let mut service = offload.layer(Policy::after(BUDGET)).layer(seen.service());
        let (_wire, open) = http_body_util::channel::Channel::<_, std::io::Error>::new(1);
        let body = if at == Uploading { Body::new(open) } else { Body::empty() };
        let call = task::spawn(service.call(Request::post("/").body(body).unwrap()));
        let call = to(at, call, &store).await;
        drop(call);
        store.let_insert();
        settle().await;
        let left = usize::from(at == Detached);
        assert_eq!(seen.dropped.load(SeqCst), at != Detached, "{at:?}");
        store.emptied_to(left).await;
        // What still has a place for a job would keep this from its end.
        let drained = offload.drain(Duration::from_secs(1)).await;
        assert_eq!(drained.interrupted(), left, "{at:?}");
        settle().await;
        assert!(seen.dropped.load(SeqCst), "{at:?}");
    }
}
