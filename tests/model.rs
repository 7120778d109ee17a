//! Random interleavings of everything that requests, clients, handlers and time can do, beside a
//! simple model of the contract: after each step every answer, every handler and all numbers are
//! what the model says.
//!
//! The clock is tokio's, paused, and no two things are due at the same time: each step takes 10 ms,
//! and all limits are whole seconds.

#[path = "model/expected.rs"]
mod expected;
#[path = "model/real.rs"]
mod real;

use std::{panic, sync::Once, time::Duration};

use expected::{Answer, Handler, Job, Model, Owner, Route, Sent, State, To, Url};
use proptest::{collection::vec, prelude::*};
use real::{Command, Real};
use serde_json::{Value, json};
use tower_offload::Outcome;

const STEP: u64 = 10;

/// So few that steps never take a second together.
const STEPS: usize = 60;

/// Of handlers, clients and jobs the one is meant that is in this place of those there are.
#[derive(Debug, Clone)]
enum Op {
    Send(Sent),
    Leave(usize),
    Respond(usize, u16),
    Panic(usize),
    Progress(usize, u8),
    Get { job: usize, url: Url, asker: Asker, waits: bool },
    Delete { job: usize, url: Url, asker: Asker },
    Pass(u64),
    Drain,
}

#[derive(Debug, Clone, Copy)]
enum Asker {
    Owner,
    Another,
    Nobody,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let any_of = |range: std::ops::Range<usize>| range;
    // Most can happen to those with keys.
    let routes = [&Route::ALL[..], &[Route::Keyed; 3]].concat();
    let route = prop::sample::select(routes);
    let owner = prop_oneof![6 => Just(Some(0)), 3 => Just(Some(1)), 1 => Just(None)];
    let sent = (route, owner, 0u8..2, 0u8..2, prop::bool::weighted(0.3));
    let sent = sent.prop_map(|(route, owner, key, body, asked)| {
        Op::Send(Sent { route, owner, key, body, asked })
    });
    let url = || prop::sample::select(vec![Url::Job, Url::Status, Url::Result]);
    let deleted = prop::sample::select(vec![Url::Job, Url::Result]);
    let asker = || prop_oneof![8 => Just(Asker::Owner), 1 => Just(Asker::Another), 1 => Just(Asker::Nobody)];
    let get = (any_of(0..8), url(), asker(), any::<bool>())
        .prop_map(|(job, url, asker, waits)| Op::Get { job, url, asker, waits });
    let delete = (any_of(0..8), deleted, asker()).prop_map(|(job, url, asker)| Op::Delete {
        job,
        url,
        asker,
    });
    let status = prop::sample::select(vec![200, 404, 500]);
    let pass = prop_oneof![3 => 1u64..5, 4 => 5u64..12, 2 => 12u64..40, 1 => 40u64..120];
    let op = prop_oneof![
        12 => sent,
        2 => any_of(0..6).prop_map(Op::Leave),
        5 => (any_of(0..6), status).prop_map(|(call, status)| Op::Respond(call, status)),
        2 => any_of(0..6).prop_map(Op::Panic),
        2 => (any_of(0..6), 0u8..100).prop_map(|(call, ratio)| Op::Progress(call, ratio)),
        9 => get,
        4 => delete,
        8 => pass.prop_map(Op::Pass),
        1 => prop::bool::weighted(0.3).prop_map(|drain| if drain { Op::Drain } else { Op::Pass(1) }),
    ];
    vec(op, 1..STEPS)
}

/// The one in this place, counted round.
fn nth(of: &[usize], at: usize) -> Option<usize> {
    (!of.is_empty()).then(|| of[at % of.len()])
}

struct Pair {
    model: Model,
    real: Real,
    drains: bool,
}

impl Pair {
    fn new() -> Self {
        Self { model: Model::default(), real: Real::new(), drains: false }
    }

    async fn pass(&mut self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.model.pass(millis);
        self.agree().await;
    }

    /// Does it on both sides.
    async fn run(&mut self, op: &Op) {
        self.pass(STEP).await;
        let Self { model, real, .. } = self;
        match *op {
            Op::Send(sent) => {
                model.send(sent);
                real.send(sent);
            }
            Op::Leave(at) => {
                let Some(number) = nth(&model.waiting_clients(), at) else { return };
                model.leave(number);
                real.leave(number);
            }
            Op::Respond(at, status) => {
                let Some(number) = nth(&model.running(), at) else { return };
                model.respond(number, status);
                real.command(number, Command::Respond(status));
            }
            Op::Panic(at) => {
                let Some(number) = nth(&model.running(), at) else { return };
                model.panic(number);
                real.command(number, Command::Panic);
            }
            Op::Progress(at, ratio) => {
                let Some(number) = nth(&model.running(), at) else { return };
                model.progress(number, ratio);
                real.command(number, Command::Progress(ratio));
            }
            Op::Get { job, url, asker, waits } => {
                let Some((job, owner)) = self.known(job, asker) else { return };
                self.model.get(job, url, owner, waits);
                self.real.poll("GET", job, url, owner, waits);
            }
            Op::Delete { job, url, asker } => {
                let Some((job, owner)) = self.known(job, asker) else { return };
                self.model.delete(job, url, owner);
                self.real.poll("DELETE", job, url, owner, false);
            }
            Op::Pass(seconds) => self.pass(seconds * 1000).await,
            Op::Drain if self.drains => {}
            Op::Drain => {
                self.drains = true;
                model.drain();
                real.drain();
            }
        }
        self.agree().await;
    }

    /// A job that somebody was told of, and who asks for it.
    fn known(&self, at: usize, asker: Asker) -> Option<(usize, Owner)> {
        let known: Vec<usize> = self.real.ids.keys().copied().collect();
        let job = nth(&known, at)?;
        let owner = self.model.owner(job);
        Some((
            job,
            match asker {
                Asker::Owner => owner,
                Asker::Another => owner.map(|owner| 1 - owner),
                Asker::Nobody => None,
            },
        ))
    }

    async fn agree(&mut self) {
        self.real.settle().await;
        self.answers_agree().await;
        self.handlers_agree();
        self.numbers_agree().await;
        if let Some(drained) = self.real.report().await {
            let report = self.model.report().expect("the model's drain has ended too");
            assert_eq!(report.finished, drained.finished(), "finished");
            assert_eq!(report.interrupted, drained.interrupted(), "interrupted");
        }
    }

    async fn answers_agree(&mut self) {
        let expected = self.model.take_answers();
        let mut answers = self.real.answers().await;
        for (to, expected) in &expected {
            let answer = answers.remove(to);
            let answer = answer.unwrap_or_else(|| panic!("{to:?} has no answer: {expected:?}"));
            self.is_answered(*to, expected, answer.as_ref());
        }
        assert!(answers.is_empty(), "answered too early: {answers:#?}");
    }

    fn is_answered(&mut self, to: To, expected: &Answer, answer: Option<&real::Answer>) {
        let Some(answer) = answer else {
            assert!(matches!(expected, Answer::Panic), "{to:?}: a panic, not {expected:?}");
            return;
        };
        let why = format!("{to:?}: {answer:#?}, not {expected:?}");
        let is = |status: u16| assert_eq!(answer.status, status, "{why}");
        match expected {
            Answer::Panic => panic!("{why}"),
            Answer::Response(number, status) => {
                is(*status);
                assert_eq!(answer.body, format!("done {number}"), "{why}");
                assert!(!answer.headers.contains_key("asyncresult"), "{why}");
            }
            Answer::Replay(number, status) => {
                is(*status);
                assert_eq!(answer.body, format!("done {number}"), "{why}");
                assert_eq!(answer.headers["asyncresult"], status.to_string(), "{why}");
            }
            Answer::Problem(status, problem) => {
                is(*status);
                let told: Value = serde_json::from_slice(&answer.body).expect(&why);
                let name = format!("urn:tower-offload:problem:{problem}");
                assert_eq!(told["type"], name, "{why}");
            }
            Answer::NoContent => {
                is(204);
                assert!(answer.body.is_empty(), "{why}");
            }
            Answer::Document(status, number, job) => {
                is(*status);
                let told: Value = serde_json::from_slice(&answer.body).expect(&why);
                let id = told["job_id"].as_str().expect(&why).to_owned();
                let known = self.real.ids.entry(*number).or_insert(id.clone());
                assert_eq!(*known, id, "{why}");
                document_fits(job, &told, &why);
                let again = answer.headers.contains_key("retry-after");
                assert_eq!(again, !job.state.is_end(), "{why}");
            }
        }
    }

    fn handlers_agree(&self) {
        let calls = self.real.calls.lock().unwrap();
        for (number, handler) in self.model.handlers().into_iter().enumerate() {
            let found = match calls.get(&number) {
                None => Handler::NotBegun,
                Some(call) if !call.is_gone() => Handler::Runs,
                Some(_) if handler == Handler::Done => Handler::Done,
                Some(_) => Handler::Gone,
            };
            assert_eq!(found, handler, "the handler of request {number}");
            // What it has started elsewhere is told to stop where nobody wants its work any more.
            if let Some(job) = calls.get(&number).and_then(|call| call.job.as_ref()) {
                let stopped = job.cancellation().is_cancelled();
                assert_eq!(stopped, handler == Handler::Gone, "the token of request {number}");
            }
        }
    }

    async fn numbers_agree(&self) {
        let stats = self.real.offload.stats().await.unwrap();
        for route in Route::ALL {
            let found = stats.policy(route.name()).expect("it has a layer");
            let numbers = self.model.numbers(route);
            let found_numbers = expected::Numbers {
                running: found.running,
                queued: found.queued,
                stored: found.stored,
                refused: found.refused,
            };
            assert_eq!(found_numbers, numbers, "{route:?}");
            let bytes: usize = self.model.kept(route).map(bytes_of).sum();
            assert_eq!(found.bytes, bytes, "bytes of {route:?}");
        }
    }
}

fn document_fits(job: &Job, told: &Value, why: &str) {
    let (status, response) = match job.state {
        State::Queued => ("queued", None),
        State::Running => ("running", None),
        State::Canceled => ("canceled", None),
        State::Answered(status) if status < 400 => ("succeeded", Some(status)),
        State::Answered(status) => ("failed", Some(status)),
        State::Failed(_) => ("failed", None),
    };
    assert_eq!(told["status"], status, "{why}");
    assert_eq!(told["response_status"], json!(response), "{why}");
    assert_eq!(told["queue_position"], json!(job.position), "{why}");
    let ratio = job.ratio.map(|percent| f64::from(percent) / 100.0);
    assert_eq!(told["progress"]["ratio"], json!(ratio), "{why}");
    let problem = job.state.problem().map(|(_, name)| format!("urn:tower-offload:problem:{name}"));
    assert_eq!(told["error"]["type"], json!(problem), "{why}");
}

/// What a job counts with in the store in memory.
fn bytes_of((number, state, removed): (usize, State, bool)) -> usize {
    let outcome = match state {
        State::Queued | State::Running => real::MAX_OUTCOME,
        State::Answered(status) if !removed => {
            let (head, body) = real::response::<String>(number, status).into_parts();
            Outcome::new(&head, body.as_bytes(), None).as_bytes().len()
        }
        _ => 0,
    };
    outcome + 1024
}

fn silence_ordered_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<String>().is_none_or(|said| said != real::PANIC) {
                others(panic);
            }
        }));
    });
}

fn run(ops: &[Op]) {
    silence_ordered_panics();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut pair = Pair::new();
        for op in ops {
            pair.run(op).await;
        }
        // Whatever is left comes to its end by itself, and is forgotten.
        for _ in 0..30 {
            pair.run(&Op::Pass(10)).await;
        }
        for route in Route::ALL {
            assert_eq!(pair.model.kept(route).count(), 0, "{route:?}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_the_contract_holds(ops in ops()) {
        run(&ops);
    }
}
