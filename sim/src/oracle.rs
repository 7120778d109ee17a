//! What must hold of every run, whatever went wrong in it. It knows the documented contract, and nothing of
//! how it is kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    facts::{Ending, Execution, Fact, Millis, Question, Task, Told},
    scenario::Scenario,
};

/// So long, beside two leases, a trouble may have its effects.
const AFTERMATH: Millis = 10_000;

/// How late an end may be told: another handler may block the node.
const LATE: Millis = 3000;

/// So often a durable job may be begun.
const MAX_ATTEMPTS: usize = 3;

/// A run's facts, by what they are about.
struct Facts<'a> {
    scenario: &'a Scenario,
    tasks: BTreeMap<u64, &'a Task>,
    /// The task of each job that was promised, and when it was.
    jobs: BTreeMap<&'a str, (&'a Task, Millis)>,
    runs: BTreeMap<u64, &'a Execution>,
    /// The end of each run: its response, and when.
    ends: BTreeMap<u64, (Option<u16>, Millis)>,
    dropped: BTreeMap<u64, Millis>,
    lost: BTreeMap<&'a str, Millis>,
    /// The jobs that were said to be canceled, and when first.
    canceled: BTreeMap<&'a str, Millis>,
    troubles: Vec<(usize, Millis)>,
    drains: Vec<Millis>,
    /// By how much servers' clocks were set forward, in all.
    forward: Millis,
    wrong: Vec<String>,
}

/// Returns what is wrong with a run.
pub fn check(scenario: &Scenario, facts: &[Fact]) -> Vec<String> {
    let mut all = Facts {
        scenario,
        tasks: BTreeMap::new(),
        jobs: BTreeMap::new(),
        runs: BTreeMap::new(),
        ends: BTreeMap::new(),
        dropped: BTreeMap::new(),
        lost: BTreeMap::new(),
        canceled: BTreeMap::new(),
        troubles: Vec::new(),
        drains: Vec::new(),
        forward: 0,
        wrong: Vec::new(),
    };
    facts.iter().for_each(|fact| all.sort(fact));
    all.work_is_done_once();
    for fact in facts {
        match fact {
            Fact::Answered { task, status, body, .. } => all.is_of_a_run(task, *status, body),
            Fact::Refused { task, kind, status, sent, .. } => {
                all.may_be_refused(task, *status, kind);
                if kind == "canceled" {
                    all.key_is_of_work(task, *sent);
                }
            }
            Fact::Asked { job, owner, told, to, question, .. } => {
                all.answer_is_true(job, *owner, *question, told, *to);
            }
            _ => {}
        }
    }
    all.nothing_is_taken_back(facts);
    all.ends_are_told(facts);
    all.wrong
}

/// Returns the jobs that a server lost, or took back to an earlier state.
pub fn lost(facts: &[Fact]) -> BTreeSet<String> {
    let lost = facts.iter().filter_map(|fact| match fact {
        Fact::Lost { jobs, .. } => Some(jobs.clone()),
        _ => None,
    });
    lost.flatten().collect()
}

impl<'a> Facts<'a> {
    fn sort(&mut self, fact: &'a Fact) {
        match fact {
            Fact::Sent(task) => drop(self.tasks.insert(task.tag, task)),
            Fact::Accepted { task, job, at, .. } => {
                self.jobs.entry(job).or_insert((task, *at));
            }
            Fact::Began(run) => drop(self.runs.insert(run.run, run)),
            Fact::Ended { run, response, at } => drop(self.ends.insert(*run, (*response, *at))),
            Fact::Dropped { run, at } => drop(self.dropped.insert(*run, *at)),
            Fact::Trouble { node, at } => self.troubles.push((*node, *at)),
            Fact::Drained { at, .. } => self.drains.push(*at),
            Fact::Clock { by } => self.forward += by.max(&0).unsigned_abs(),
            Fact::Lost { jobs, at } => {
                for job in jobs {
                    // The first time counts.
                    self.lost.entry(job).or_insert(*at);
                }
            }
            Fact::Asked { job, to, told, .. } if told.is_canceled() => {
                self.canceled.entry(job).or_insert(*to);
            }
            Fact::Wrong(wrong) => self.wrong.push(wrong.clone()),
            _ => {}
        }
    }

    fn wrong(&mut self, wrong: impl Into<String>) {
        self.wrong.push(wrong.into());
    }

    /// Whether a server lost something of a job of this task.
    fn has_lost(&self, tag: u64) -> bool {
        // A job that nobody was promised is of some task, too; which one, nobody knows.
        let is_of = |job: &str| self.jobs.get(job).is_none_or(|(task, _)| task.tag == tag);
        self.lost.keys().any(|job| is_of(job))
    }

    /// Whether what ended then may be gone by now.
    fn may_have_expired(&self, from: Millis, now: Millis) -> bool {
        now + self.forward + self.scenario.clocks_apart() >= from + self.scenario.ttl
    }

    fn work_is_done_once(&mut self) {
        let mut by_task: BTreeMap<u64, Vec<&Execution>> = BTreeMap::new();
        for run in self.runs.values() {
            by_task.entry(run.tag).or_default().push(run);
        }
        for (tag, runs) in by_task {
            let Some(task) = self.tasks.get(&tag).copied() else {
                self.wrong(format!("nobody sent task {tag}, and it was run"));
                continue;
            };
            if task.route.is_durable() {
                self.attempts_are_few(tag, &runs);
                continue;
            }
            if let [first, .., last] = &*runs {
                let over = self.ends.get(&first.run).map_or(first.at, |(_, at)| *at);
                let is_excused = self.has_lost(tag)
                    || task.route.is_keyed() && self.may_have_expired(over, last.at);
                if !is_excused {
                    self.wrong(format!("task {tag} was done {} times", runs.len()));
                }
            }
        }
    }

    fn attempts_are_few(&mut self, tag: u64, runs: &[&Execution]) {
        if self.has_lost(tag) {
            return;
        }
        let attempts: BTreeSet<_> = runs.iter().map(|run| (run.attempt, &run.job)).collect();
        let jobs: BTreeSet<_> = runs.iter().map(|run| &run.job).collect();
        if attempts.len() < runs.len() {
            self.wrong(format!("an attempt at task {tag} was begun twice"));
        }
        if runs.len() > MAX_ATTEMPTS * jobs.len() {
            self.wrong(format!("task {tag} was begun {} times", runs.len()));
        }
        if let [first, .., last] = runs
            && jobs.len() > 1
            && !self.may_have_expired(first.at, last.at)
        {
            self.wrong(format!("task {tag} was run as {} jobs", jobs.len()));
        }
        for pair in runs.windows(2) {
            let [one, next] = pair else { continue };
            let over = self.ends.get(&one.run).map(|(_, at)| *at);
            let over = over.or(self.dropped.get(&one.run).copied());
            if over.is_some_and(|over| over <= next.at) {
                continue;
            }
            let since = one.at.saturating_sub(2 * self.scenario.lease + AFTERMATH);
            let may_be_lost = self
                .troubles
                .iter()
                .any(|(node, at)| *node == one.node.0 && (since..=next.at).contains(at));
            if !may_be_lost && !self.drains.iter().any(|at| (since..=next.at).contains(at)) {
                self.wrong(format!(
                    "task {tag} was begun at n{} while n{} was well and at it",
                    next.node.0, one.node.0
                ));
            }
        }
    }

    /// A response that a client got is one that a handler gave to this very task.
    fn is_of_a_run(&mut self, task: &Task, status: u16, body: &str) {
        let run = body.strip_prefix(&format!("task={} run=", task.tag));
        let run = run.and_then(|run| run.parse::<u64>().ok());
        let given = run.and_then(|run| self.ends.get(&run)).and_then(|(response, _)| *response);
        let is_broken = matches!(task.then, "large" | "broken");
        if given != Some(status) && !is_broken {
            self.wrong(format!("task {} is answered {status} {body:.60}, by nobody", task.tag));
        }
    }

    fn may_be_refused(&mut self, task: &Task, status: u16, kind: &str) {
        let fits = match kind {
            "limit-reached" | "shutting-down" | "store-unavailable" => status == 503,
            "removed" | "canceled" => task.route.is_keyed(),
            _ => task.route.is_keyed() && self.may_end(task, kind, Millis::MAX),
        };
        if !fits && task.panics.is_empty() {
            self.wrong(format!("task {} is refused by {status} {kind}", task.tag));
        }
    }

    /// A job that was canceled before it began has let go of its key by the time that this is told.
    fn key_is_of_work(&mut self, task: &Task, sent: Millis) {
        let is_its = |job: &&str| self.jobs.get(job).is_some_and(|(of, _)| of.tag == task.tag);
        let told = self.canceled.iter().any(|(job, at)| is_its(job) && *at < sent);
        let has_begun = self.runs.values().any(|run| run.tag == task.tag);
        if told && !has_begun && !self.has_lost(task.tag) {
            let wrong = "a job that was canceled before it began still has its key";
            self.wrong(format!("task {}: {wrong}", task.tag));
        }
    }

    /// Whether a task may come to this end without a response.
    fn may_end(&self, task: &Task, kind: &str, at: Millis) -> bool {
        let is_troubled = self.troubles.iter().any(|(_, trouble)| *trouble <= at);
        match kind {
            "panicked" => task.then == "panic" || !task.panics.is_empty(),
            "service-error" => matches!(task.then, "error" | "broken"),
            "outcome-too-large" => task.then == "large",
            "timed-out" => matches!(task.then, "hang" | "die") || task.time >= 2500 || is_troubled,
            "node-lost" => is_troubled,
            "interrupted" => {
                // The node that kept a job could not tell that it had, and another was given it.
                let is_given = task.route.is_keyed() && !task.route.is_durable() && is_troubled;
                is_given || self.drains.iter().any(|drain| *drain <= at)
            }
            _ => false,
        }
    }

    fn answer_is_true(
        &mut self,
        job: &str,
        owner: u8,
        question: Question,
        told: &Told,
        to: Millis,
    ) {
        let Some((task, at)) = self.jobs.get(job).copied() else {
            return self.wrong(format!("nobody was promised job {job}"));
        };
        if owner != task.owner {
            if !matches!(told, Told::Unknown | Told::Nothing) {
                self.wrong(format!("job {job} is shown to another owner: {told:?}"));
            }
            return;
        }
        let lost = self.lost.get(job).copied();
        match told {
            Told::Odd(odd) => self.wrong(format!("job {job} is answered oddly: {odd}")),
            Told::Unknown if lost.is_none() && !self.may_have_expired(at, to) => {
                self.wrong(format!("job {job} was promised and is not known at {to} ms"));
            }
            Told::Outcome(status, body) => self.is_of_a_run(task, *status, body),
            Told::Problem(kind) if kind != "canceled" && !self.may_end(task, kind, to) => {
                self.wrong(format!("job {job} has ended by {kind}, for no reason"));
            }
            Told::Ended(Ending { status, problem, response, .. }) => {
                let is_true = match (&**status, problem.as_deref(), response) {
                    ("succeeded", None, Some(200..400)) | ("failed", None, Some(400..)) => true,
                    ("failed", Some(kind), None) => self.may_end(task, kind, to),
                    ("canceled", Some("canceled"), None) => true,
                    _ => false,
                };
                if !is_true {
                    self.wrong(format!("job {job}, {question:?}: an end for no reason: {told:?}"));
                }
            }
            _ => {}
        }
    }

    /// Whoever waits for a job when its handler ends is told soon, where nothing is in the way.
    fn ends_are_told(&mut self, facts: &[Fact]) {
        let quiet = facts.iter().find_map(|fact| match fact {
            Fact::Quiet { at } => Some(at + 3 * self.scenario.lease),
            _ => None,
        });
        for fact in facts {
            let Fact::Asked { job, from, to, told: Told::Ended(_), .. } = fact else { continue };
            let Some((task, _)) = self.jobs.get(&**job) else { continue };
            let runs = self.runs.values().filter(|run| run.tag == task.tag);
            let last = runs.filter_map(|run| self.ends.get(&run.run)).map(|(_, at)| *at).max();
            let is_late = last.is_some_and(|last| *from <= last && last + LATE < *to);
            if is_late && quiet.is_some_and(|quiet| quiet < *from) {
                self.wrong
                    .push(format!("whoever waited for {job} was told late of its end, at {to} ms"));
            }
        }
    }

    /// Of two answers of which one came before the other was asked for, the later tells of nothing
    /// earlier; an end, once told, stays.
    fn nothing_is_taken_back(&mut self, facts: &[Fact]) {
        let mut by_job: BTreeMap<&str, Vec<(Millis, Millis, Question, &Told)>> = BTreeMap::new();
        for fact in facts {
            let Fact::Asked { job, owner, question, from, to, told } = fact else { continue };
            if self.jobs.get(&**job).is_some_and(|(task, _)| task.owner == *owner) {
                by_job.entry(job).or_default().push((*from, *to, *question, told));
            }
        }
        for (job, answers) in by_job {
            let lost = self.lost.get(job).copied();
            let was_canceled = |by: Millis| {
                answers.iter().any(|(from, _, question, _)| {
                    matches!(question, Question::Cancel | Question::Remove) && *from <= by
                })
            };
            let mut wrong = Vec::new();
            for (_, to, _, told) in &answers {
                let is_asked_for = told.is_canceled() || matches!(told, Told::Removed);
                if is_asked_for && !was_canceled(*to) {
                    wrong.push(format!("job {job} is {told:?}, and nobody asked for that"));
                }
            }
            for (index, (_, before, _, one)) in answers.iter().enumerate() {
                for (from, to, _, other) in &answers[index..] {
                    let is_excused = lost.is_some_and(|lost| lost <= *to);
                    if before < from && !is_excused && !may_follow(one, other) {
                        wrong.push(format!("job {job} was {one:?}, and then {other:?}"));
                    }
                }
            }
            self.wrong.extend(wrong);
        }
    }
}

/// The place of an answer among those that a job can have, one after another.
fn rank(told: &Told) -> Option<u64> {
    Some(match told {
        Told::Open { status, attempt, .. } if status == "running" => 2 * attempt.unwrap_or(1) - 1,
        Told::Open { attempt, .. } => 2 * attempt.unwrap_or(0),
        Told::Ended(_) | Told::Outcome(..) | Told::Problem(_) => 1000,
        Told::Removed => 1001,
        Told::Unknown => 1002,
        Told::Nothing | Told::Odd(_) => return None,
    })
}

fn may_follow(one: &Told, other: &Told) -> bool {
    let (Some(before), Some(after)) = (rank(one), rank(other)) else { return true };
    if before != after {
        return before < after;
    }
    match (one, other) {
        (Told::Ended(one), Told::Ended(other)) => one == other,
        (Told::Ended(one), Told::Outcome(status, _))
        | (Told::Outcome(status, _), Told::Ended(one)) => one.response == Some(u64::from(*status)),
        (Told::Ended(one), Told::Problem(kind)) | (Told::Problem(kind), Told::Ended(one)) => {
            one.problem.as_ref() == Some(kind)
        }
        (Told::Outcome(..) | Told::Problem(_), _) => one == other,
        _ => true,
    }
}
