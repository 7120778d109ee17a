//! The clients: they submit, retry, poll, wait, cancel, remove and leave as real ones do, and note what
//! they are told.

use std::time::Duration;

use http::Request;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    app::THEN,
    facts::{Fact, Millis, Question, Route, Task, Told},
    log::Log,
    port::{Port, Reply},
    rng::Rng,
    scenario::Scenario,
    told,
    world::BOUND,
};

/// Keys and owners are few, so that some meet.
const OWNERS: u64 = 3;

/// What a client knows of the world.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) port: Port,
    pub(crate) log: Log,
    pub(crate) rng: Rng,
    pub(crate) nodes: usize,
    /// After this nobody waits any longer.
    until: Millis,
}

/// What a request asks the handler for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) task: Task,
    pub(crate) blocks: bool,
    pub(crate) asks: bool,
}

/// Runs all clients, until their jobs have ended and everything was looked at once more.
pub(crate) fn all(
    scenario: &Scenario,
    rng: &Rng,
    port: &Port,
    log: &Log,
) -> impl Future<Output = ()> + Send + use<> {
    let (port, log) = (port.clone(), log.clone());
    let (nodes, until) = (scenario.nodes, scenario.quiet_at + BOUND);
    let client = move |number: u64, rng: &Rng| Client {
        port: port.clone(),
        log: log.clone(),
        rng: rng.fork(number),
        nodes,
        until,
    };
    let (rng, scenario) = (rng.clone(), scenario.clone());
    async move {
        let mut clients = JoinSet::new();
        for number in 0..scenario.clients as u64 {
            let client = client(number, &rng);
            clients.spawn(client.works(number, scenario.clone()));
        }
        join(clients).await;
        let mut last = client(99, &rng);
        last.until_quiet(&scenario).await;
        last.audit(&scenario).await;
    }
}

/// Waits for all; a panic of one is one of its own.
pub(crate) async fn join(mut tasks: JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        if let Err(error) = done {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl Client {
    pub(crate) async fn pause(&mut self, least: Millis, most: Millis) {
        sleep(Duration::from_millis(self.rng.between(least, most))).await;
    }

    fn node(&mut self) -> usize {
        self.rng.below(self.nodes as u64) as usize
    }

    pub(crate) fn is_late(&self) -> bool {
        self.log.now() >= self.until
    }

    async fn until_quiet(&self, scenario: &Scenario) {
        // Nodes that begin then are ready a little later.
        let ready = scenario.quiet_at + 3 * scenario.lease + 3000;
        let rest = ready.saturating_sub(self.log.now());
        sleep(Duration::from_millis(rest)).await;
    }

    /// One client's day.
    async fn works(mut self, number: u64, scenario: Scenario) {
        let mut flows = JoinSet::new();
        let every = (scenario.quiet_at.min(20_000) / scenario.tasks).max(1);
        let routes: &[Route] = if scenario.servers > 0 { &Route::ALL } else { &Route::ALL[..4] };
        for count in 0..scenario.tasks {
            self.pause(0, 2 * every).await;
            let wish = self.wish(number * 100 + count + 1, routes);
            let mut flow = self.clone();
            flow.rng = self.rng.fork(count + 7);
            flows.spawn(async move { flow.flow(wish).await });
        }
        join(flows).await;
    }

    fn wish(&mut self, tag: u64, routes: &[Route]) -> Wish {
        let panics = match self.rng.below(1000) {
            0..15 => "restore",
            15..30 => "owner",
            _ => "",
        };
        let then = self.rng.pick(&THEN);
        let task = Task {
            tag,
            route: self.rng.pick(routes),
            owner: self.rng.below(OWNERS) as u8,
            time: self.rng.pick(&[0, 1, 20, 60, 300, 1000, 2500]),
            then: if panics.is_empty() { then } else { "ok" },
            panics,
        };
        Wish { task, blocks: self.rng.permille(40), asks: self.rng.permille(400) }
    }

    pub(crate) fn request(&self, wish: &Wish) -> Request<String> {
        let Task { tag, route, owner, time, then, panics } = wish.task;
        let mut request = Request::post(route.path())
            .header("x-owner", owner.to_string())
            .header("x-tag", tag)
            .header("x-time", time)
            .header("x-then", then);
        if route.is_keyed() {
            request = request.header("idempotency-key", format!("\"key-{tag}\""));
        }
        for (name, value) in [
            ("x-panic", panics),
            ("x-block", if wish.blocks { "yes" } else { "" }),
            ("x-job", if wish.asks { "yes" } else { "" }),
        ] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        request.body(format!("body of {tag}")).unwrap_or_default()
    }

    /// Sends a piece of work, again and again where it has a key, and follows its job to its end.
    async fn flow(mut self, wish: Wish) {
        self.log.note(Fact::Sent(wish.task.clone()));
        let task = &wish.task;
        // With a key it is safe to send it again, and to leave.
        let mut patience = match self.rng.below(10) {
            0 => self.rng.between(1, 40),
            1 => self.rng.between(40, 1000),
            _ => 12_000,
        };
        let mut tries = 0;
        loop {
            let (node, sent) = (self.node(), self.log.now());
            let quiet = self.log.is_quiet();
            self.log.tell(format!("task {} to n{node}{}", task.tag, task.route.path()));
            let answer = self.port.send(node, self.request(&wish));
            let answer = timeout(Duration::from_millis(patience), answer).await;
            let line = match &answer {
                Ok(Some(reply)) => match told::of_submission(reply) {
                    told::Submitted::Problem(kind) => format!("answered {} {kind}", reply.status),
                    _ => format!("answered {}", reply.status),
                },
                Ok(None) => "its connection is lost".to_owned(),
                Err(_) => "its client leaves".to_owned(),
            };
            self.log.tell(format!("task {}: {line}", task.tag));
            if let Ok(Some(reply)) = answer {
                match self.noted(task, reply, sent, quiet) {
                    told::Submitted::Job(job) => {
                        if self.rng.permille(850) {
                            self.follow(job, task.owner).await;
                        }
                        let has_time = self.log.now() + 30_000 < self.until;
                        if task.route.is_keyed() && has_time && self.rng.permille(300) {
                            self.again(&wish).await;
                        }
                        return;
                    }
                    // Where there was no room, or no store.
                    told::Submitted::Problem(kind) if !told::is_end(&kind) => {}
                    _ => return,
                }
            }
            // Where the owner cannot be told there is no answer.
            if !task.route.is_keyed() || task.panics == "owner" {
                return;
            }
            if self.is_late() {
                let wrong = format!("task {} has a key, and no answer", task.tag);
                return self.log.note(Fact::Wrong(wrong));
            }
            patience = 12_000;
            tries += 1;
            self.pause(20, 1500 * tries.min(10)).await;
        }
    }

    /// Notes what a request was answered.
    fn noted(&self, task: &Task, reply: Reply, sent: Millis, quiet: bool) -> told::Submitted {
        self.check_leaks(&reply);
        let (task, status, node) = (task.clone(), reply.status, reply.node);
        let submitted = told::of_submission(&reply);
        self.log.note(match &submitted {
            told::Submitted::Job(job) => {
                let (job, at) = (job.clone(), self.log.now());
                self.log.tell(format!("task {} is job {job}", task.tag));
                Fact::Accepted { task, job, at, sent, node }
            }
            told::Submitted::Response => Fact::Answered { task, status, body: reply.body, quiet },
            told::Submitted::Problem(kind) => {
                Fact::Refused { task, status, kind: kind.clone(), sent, quiet }
            }
        });
        submitted
    }

    /// Sends a piece of work once more that has a key, whatever became of its job.
    async fn again(&mut self, wish: &Wish) {
        let (node, sent, quiet) = (self.node(), self.log.now(), self.log.is_quiet());
        self.log.tell(format!("task {} to n{node}, once more", wish.task.tag));
        let answer = self.port.send(node, self.request(wish));
        if let Ok(Some(reply)) = timeout(Duration::from_secs(12), answer).await {
            self.noted(&wish.task, reply, sent, quiet);
        }
    }

    async fn follow(&mut self, job: String, owner: u8) {
        let mut after_end = self.rng.between(1, 4);
        let cancels = self.rng.permille(120);
        let removes = self.rng.permille(150);
        let (mut unknown, mut patience) = (0, 1500);
        while !self.is_late() && after_end > 0 && unknown < 4 {
            let question = match self.rng.below(10) {
                0..5 => Question::Status,
                5..8 => Question::Job,
                _ => Question::Result,
            };
            let wait = self.rng.pick(&[0, 0, 2, 5]);
            if self.rng.permille(40) {
                self.ask(&job, (owner + 1) % OWNERS as u8, Question::Status, 0).await;
            }
            let told = self.ask(&job, owner, question, wait).await;
            match told {
                Told::Unknown => unknown += 1,
                Told::Open { .. } if cancels && self.rng.permille(300) => {
                    self.ask(&job, owner, Question::Cancel, 0).await;
                }
                // Less often, the longer nobody can tell.
                Told::Nothing => patience = (patience * 3 / 2).min(20_000),
                Told::Open { .. } | Told::Odd(_) => patience = 1500,
                _ => {
                    after_end -= 1;
                    if removes && after_end == 1 {
                        self.ask(&job, owner, Question::Remove, 0).await;
                    }
                }
            }
            self.pause(1, patience).await;
        }
    }

    /// Asks for a job, or for something to be done to it.
    pub(crate) async fn ask(
        &mut self,
        job: &str,
        owner: u8,
        question: Question,
        wait: u64,
    ) -> Told {
        let (node, from) = (self.node(), self.log.now());
        self.ask_at(node, job, owner, question, wait, from).await
    }

    pub(crate) async fn ask_at(
        &mut self,
        node: usize,
        job: &str,
        owner: u8,
        question: Question,
        wait: u64,
        from: Millis,
    ) -> Told {
        let (method, end) = match question {
            Question::Status => ("GET", "/status"),
            Question::Job => ("GET", ""),
            Question::Result => ("GET", "/result"),
            Question::Cancel => ("DELETE", ""),
            Question::Remove => ("DELETE", "/result"),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/jobs/{job}{end}"))
            .header("x-owner", owner.to_string());
        if wait > 0 {
            request = request.header("prefer", format!("wait={wait}"));
        }
        let request = request.body(String::new()).unwrap_or_default();
        let answer = timeout(Duration::from_secs(15), self.port.send(node, request)).await;
        let told = match answer {
            Ok(Some(reply)) => {
                self.check_leaks(&reply);
                told::of_question(question, &reply)
            }
            _ => Told::Nothing,
        };
        self.log.tell(format!("{question:?} of {job} at n{node}: {told:?}"));
        let to = self.log.now();
        let (job, told_too) = (job.to_owned(), told.clone());
        self.log.note(Fact::Asked { job, owner, question, from, to, told: told_too });
        told
    }

    fn check_leaks(&self, reply: &Reply) {
        if let Some(leak) = told::leak(reply) {
            self.log.note(Fact::Wrong(format!("{leak:?} is shown to a client: {}", reply.body)));
        }
    }
}
