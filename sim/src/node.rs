//! A node: a process of the app, with a runtime of its own whose clock stands still until it is stepped.
//!
//! Dropping its runtime kills it at whatever await it stands, not stepping it pauses it, and steps of
//! another length than the others' are the drift of its clock.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum_core::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tokio::{
    runtime::{Builder, Runtime},
    task::AbortHandle,
    time::Instant,
};
use tower::ServiceExt;
use tower_offload::{
    MemoryStore, Offload,
    simulation::{Source, enter},
};

use crate::{
    app::{self, App, SECRET},
    facts::Millis,
    history::{History, Recorded},
    log::Log,
    net::Net,
    port::{CallId, Reply},
    rng::Rng,
    scenario::Scenario,
    store,
};

/// The wall-clock time at which a run begins.
pub fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Shared<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node. It lives from its start until it is killed.
#[derive(Debug)]
pub struct Node {
    /// Its number, and how often a node of this number was begun before.
    pub name: (usize, u32),
    runtime: Option<Runtime>,
    source: Rc<Clock>,
    ready: Shared<Option<Ready>>,
    answers: Shared<Vec<(CallId, Option<Reply>)>>,
    calls: BTreeMap<CallId, AbortHandle>,
    began: Millis,
    drift: i64,
    /// The scheduler's time that its clock has not seen.
    missed: Millis,
    paused: Option<Paused>,
}

#[derive(Debug)]
struct Paused {
    since: Millis,
    until: Millis,
    clock_runs: bool,
}

struct Ready {
    app: App,
    offload: Offload,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").finish_non_exhaustive()
    }
}

/// The wall clock of a node, which follows its runtime's, and its random numbers.
#[derive(Debug)]
struct Clock {
    rng: RefCell<Rng>,
    began: Cell<Option<Instant>>,
    wall: SystemTime,
}

impl Source for Clock {
    fn now(&self) -> SystemTime {
        self.wall + self.began.get().map_or(Duration::ZERO, |began| began.elapsed())
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.rng.borrow_mut().fill(bytes);
    }
}

/// What answers while a dead node's futures are dropped: nothing of it is seen by anybody.
struct Dead;

impl Source for Dead {
    fn now(&self) -> SystemTime {
        epoch()
    }

    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

impl Node {
    /// Begins a node.
    pub fn start(
        name: (usize, u32),
        scenario: &Scenario,
        net: &Net,
        log: &Log,
        history: &History,
        mut rng: Rng,
    ) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        #[expect(clippy::expect_used, reason = "nothing to go on with")]
        let runtime = runtime.expect("a runtime without I/O needs nothing");
        let most = scenario.faults.drift;
        let drift = rng.between(0, 2 * most) as i64 - most as i64;
        let off = Duration::from_millis(if most > 0 { rng.below(6000) } else { 3000 });
        let began = log.now();
        let wall = epoch() + Duration::from_millis(began) + off - Duration::from_secs(3);
        let source = Clock { rng: RefCell::new(rng), began: Cell::new(None), wall };
        let node = Self {
            name,
            runtime: Some(runtime),
            source: Rc::new(source),
            ready: Shared::default(),
            answers: Shared::default(),
            calls: BTreeMap::new(),
            began,
            drift,
            missed: 0,
            paused: None,
        };
        node.begin(scenario, net, log, history);
        node
    }

    fn begin(&self, scenario: &Scenario, net: &Net, log: &Log, history: &History) {
        let ready = Arc::clone(&self.ready);
        let (scenario, net, name) = (scenario.clone(), net.clone(), self.name);
        let (log, history) = (log.clone(), history.clone());
        self.within(|runtime| {
            self.source.began.set(Some(runtime.block_on(async { Instant::now() })));
            runtime.spawn(async move {
                let (app, offload) = if scenario.servers == 0 {
                    let store = Recorded::new(MemoryStore::new(64 << 20), name, history);
                    app::build(store, &scenario, name, &log)
                } else {
                    let store = store::connect(&scenario, &net, name, &log).await;
                    app::build(Recorded::new(store, name, history), &scenario, name, &log)
                };
                log.tell(format!("n{} is ready", name.0));
                *lock(&ready) = Some(Ready { app, offload });
            });
        });
    }

    /// Runs `f` with this node's runtime, clock and random numbers.
    fn within<R>(&self, f: impl FnOnce(&Runtime) -> R) -> Option<R> {
        let runtime = self.runtime.as_ref()?;
        let _entered = enter(Rc::clone(&self.source) as Rc<dyn Source>);
        let _runtime = runtime.enter();
        Some(f(runtime))
    }

    /// Its own clock's time, when the scheduler's is this.
    fn local(&self, at: Millis) -> Duration {
        let passed = Duration::from_millis(at.saturating_sub(self.began + self.missed));
        let more = passed.as_nanos() as i64 / 1_000_000 * self.drift;
        Duration::from_nanos((passed.as_nanos() as i64 + more).max(0) as u64)
    }

    /// Lets it run until this time.
    pub fn step(&mut self, until: Millis) {
        if self.paused.as_ref().is_some_and(|paused| paused.until > until) {
            return;
        }
        self.resume(until);
        let target = self.source.began.get().map(|began| began + self.local(until));
        self.within(|runtime| {
            runtime.block_on(async {
                if let Some(target) = target.filter(|target| *target > Instant::now()) {
                    tokio::time::sleep_until(target).await;
                }
            });
        });
        self.calls.retain(|_, call| !call.is_finished());
    }

    /// Stops it for a while. Its clock goes on meanwhile, as that of a stopped process does, or stands
    /// still, as that of a stopped machine does.
    pub fn pause(&mut self, now: Millis, until: Millis, clock_runs: bool) {
        self.paused.get_or_insert(Paused { since: now, until, clock_runs });
    }

    fn resume(&mut self, now: Millis) {
        let Some(paused) = self.paused.take() else { return };
        let gone = now - paused.since;
        if !paused.clock_runs {
            self.missed += gone;
            return;
        }
        // All at once: nothing of it ran meanwhile.
        let jump = self.source.began.get().map(|began| began + self.local(now));
        self.within(|runtime| {
            runtime.block_on(async {
                let jump = jump.map(|jump| jump.saturating_duration_since(Instant::now()));
                tokio::time::advance(jump.unwrap_or_default()).await;
            });
        });
    }

    /// Gives it a request. `None` where nobody listens yet.
    pub fn call(&mut self, id: CallId, request: Request<String>) -> Option<()> {
        let guard = lock(&self.ready);
        let (app, offload) =
            guard.as_ref().map(|ready| (ready.app.clone(), ready.offload.clone()))?;
        drop(guard);
        let (answers, name) = (Arc::clone(&self.answers), self.name);
        let call = self.within(|runtime| {
            let mut answering = Answering { id, answers, reply: None };
            runtime.spawn(async move {
                let reply = match request.uri().path() {
                    "/stats" => stats(&offload, name).await,
                    _ => answer(app, request.map(app::whole), name).await,
                };
                answering.with(reply);
            })
        })?;
        self.calls.insert(id, call.abort_handle());
        Some(())
    }

    /// A client has gone: its request's future is dropped, as a server does.
    pub fn hang_up(&mut self, id: CallId) {
        if let Some(call) = self.calls.remove(&id) {
            call.abort();
        }
    }

    /// Takes the answers that it has given.
    pub fn answers(&mut self) -> Vec<(CallId, Option<Reply>)> {
        std::mem::take(&mut lock(&self.answers))
    }

    /// Begins an orderly shutdown.
    pub fn drain(&self, deadline: Duration, log: &Log) {
        let Some(offload) = lock(&self.ready).as_ref().map(|ready| ready.offload.clone()) else {
            return;
        };
        let (log, node) = (log.clone(), self.name.0);
        self.within(|runtime| {
            runtime.spawn(async move {
                let drained = offload.drain(deadline).await;
                log.tell(format!("n{node} is drained: {drained:?}"));
                log.kill(node);
            })
        });
    }

    /// Ends it where it stands. Returns the requests that it has not answered.
    pub fn kill(&mut self) -> Vec<CallId> {
        let _entered = enter(Rc::new(Dead));
        let ready = lock(&self.ready).take();
        if let Some(runtime) = self.runtime.take() {
            let entered = runtime.enter();
            drop(ready);
            drop(entered);
            drop(runtime);
        }
        let calls = std::mem::take(&mut self.calls);
        calls.into_keys().collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A request that is being answered. A panic closes its connection, as a server's does.
struct Answering {
    id: CallId,
    answers: Shared<Vec<(CallId, Option<Reply>)>>,
    reply: Option<Reply>,
}

impl Answering {
    fn with(&mut self, reply: Option<Reply>) {
        self.reply = reply;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        lock(&self.answers).push((self.id, self.reply.take()));
    }
}

async fn answer(app: App, request: Request<Body>, node: (usize, u32)) -> Option<Reply> {
    // An error of the service closes the connection.
    let (head, body) = app.oneshot(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some(Reply {
        node,
        status: head.status.as_u16(),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// The node's numbers, which must come to nothing in the end.
async fn stats(offload: &Offload, node: (usize, u32)) -> Option<Reply> {
    let (status, body) = match offload.stats().await {
        Ok(stats) => {
            let total = stats.total();
            let numbers = [total.running, total.queued, total.stored, total.bytes];
            (200, numbers.map(|number| number.to_string()).join(" "))
        }
        Err(error) => (503, format!("{error} {SECRET}")),
    };
    Some(Reply { node, status, body })
}
