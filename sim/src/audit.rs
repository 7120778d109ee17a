//! The end of a run: every job that was promised has ended, every node is at rest and has room.

use std::{collections::BTreeSet, time::Duration};

use http::Request;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    app::CONCURRENCY,
    client::{Client, Wish, join},
    facts::{Fact, Question, Route, Task, Told},
    scenario::Scenario,
    told,
    world::BOUND,
};

impl Client {
    /// Looks at every job that was promised until it has ended, then at each node's numbers, and tries
    /// whether each has room for new work.
    pub(crate) async fn audit(&mut self, scenario: &Scenario) {
        self.log.tell("the audit begins");
        let jobs: BTreeSet<_> = self.log.accepted().into_iter().collect();
        let mut all = JoinSet::new();
        for (number, (job, owner)) in jobs.into_iter().enumerate() {
            let mut one = self.clone();
            one.rng = self.rng.fork(number as u64);
            all.spawn(async move { one.audit_job(&job, owner).await });
        }
        join(all).await;
        let mut all = JoinSet::new();
        for node in 0..scenario.nodes {
            let (mut one, scenario) = (self.clone(), scenario.clone());
            all.spawn(async move {
                one.idle(node).await;
                one.probe(node).await;
                one.audit_node(node, &scenario).await;
            });
        }
        join(all).await;
    }

    async fn audit_job(&mut self, job: &str, owner: u8) {
        loop {
            let told = self.ask(job, owner, Question::Status, 5).await;
            match told {
                Told::Open { .. } | Told::Nothing if !self.is_late() => self.pause(200, 1000).await,
                Told::Open { .. } => {
                    let last = format!("job {job} has not ended: {told:?}");
                    return self.log.note(Fact::Wrong(last));
                }
                _ => break,
            }
        }
        for node in 0..self.nodes {
            let now = self.log.now();
            self.ask_at(node, job, owner, Question::Result, 0, now).await;
        }
    }

    /// As many jobs as may run at once on the route with a queue find room at once.
    async fn probe(&mut self, node: usize) {
        let mut all = JoinSet::new();
        for number in 0..CONCURRENCY as u64 {
            let tag = 900_000 + node as u64 * 10 + number;
            let (route, owner) = (Route::Queue, 0);
            let task = Task { tag, route, owner, time: 300, then: "ok", panics: "" };
            let wish = Wish { task: task.clone(), blocks: false, asks: false };
            let mut client = self.clone();
            all.spawn(async move {
                let sent = client.log.now();
                client.log.note(Fact::Sent(task.clone()));
                let mut reply = client.port.send(node, client.request(&wish)).await;
                // The node has just been lost by a handler, and begins again.
                while reply.is_none() && client.log.now() < sent + 8000 {
                    sleep(Duration::from_millis(200)).await;
                    reply = client.port.send(node, client.request(&wish)).await;
                }
                let Some(told::Submitted::Job(job)) = reply.as_ref().map(told::of_submission)
                else {
                    let wrong = format!("n{node} has no room for a probe: {reply:?}");
                    return client.log.note(Fact::Wrong(wrong));
                };
                let at = client.log.now();
                client.log.note(Fact::Accepted {
                    task,
                    job: job.clone(),
                    at,
                    sent,
                    node: (node, 0),
                });
                sleep(Duration::from_millis(100)).await;
                let from = client.log.now();
                let told = client.ask_at(node, &job, 0, Question::Status, 0, from).await;
                if matches!(&told, Told::Open { status, .. } if status == "queued") {
                    let wrong =
                        format!("a probe at n{node} is queued, and nothing else runs: {told:?}");
                    client.log.note(Fact::Wrong(wrong));
                }
                client.audit_job(&job, 0).await;
            });
        }
        join(all).await;
    }

    async fn audit_node(&mut self, node: usize, scenario: &Scenario) {
        // What is kept expires by the clocks of nodes and servers.
        let kept_for = scenario.ttl + self.log.set_back() + scenario.clocks_apart();
        let rest = 15_000;
        // The run may not last until it is gone.
        let is_kept = self.log.now() + kept_for + rest >= scenario.quiet_at + 2 * BOUND - 5_000;
        let until = self.log.now() + rest + if is_kept { 0 } else { kept_for };
        loop {
            let numbers = self.numbers(node).await;
            let keeps = !is_kept && numbers.get(2..).is_none_or(|kept| kept != ["0", "0"]);
            if runs_nothing(&numbers) && !keeps {
                return;
            }
            if self.log.now() > until {
                let numbers = numbers.join(" ");
                let wrong = format!(
                    "n{node} does not come to rest: {numbers} (running, queued, stored, bytes)"
                );
                return self.log.note(Fact::Wrong(wrong));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until nothing runs or waits on a node: a job that nobody was promised may, for as long as
    /// its handler may run. If something does for longer, the audit of the node says so.
    async fn idle(&mut self, node: usize) {
        let until = self.log.now() + 10_000;
        while self.log.now() < until {
            if runs_nothing(&self.numbers(node).await) {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// How many jobs a node runs, has in queues and keeps, and their bytes; nothing if it does not answer.
    async fn numbers(&mut self, node: usize) -> Vec<String> {
        let request = Request::get("/stats").body(String::new()).unwrap_or_default();
        let reply = self.port.send(node, request).await;
        let body = reply.map_or(String::new(), |reply| reply.body);
        body.split(' ').map(str::to_owned).collect()
    }
}

/// Whether the numbers of a node say that nothing runs or waits there.
fn runs_nothing(numbers: &[String]) -> bool {
    numbers.len() == 4 && numbers[..2] == ["0", "0"]
}
