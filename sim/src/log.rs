//! The story of a run, a line for each event, and its facts, as they come.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::facts::{Execution, Fact, Millis};

/// The story and the facts of a run. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The step under way: from when it lasts, and until when.
    step: (Millis, Millis),
    /// The node that is stepped.
    place: Option<usize>,
    quiet: bool,
    story: Vec<(Millis, String)>,
    facts: Vec<Fact>,
    runs: u64,
    doomed: Vec<usize>,
    /// The tasks that have taken a node with them.
    fatal: BTreeSet<u64>,
    /// So many facts were looked at by `begun`.
    looked_at: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a step: what is noted from now on happens between these times.
    pub fn set_step(&self, from: Millis, until: Millis) {
        self.lock().step = (from, until);
    }

    /// Returns the step under way.
    pub fn step(&self) -> (Millis, Millis) {
        self.lock().step
    }

    /// Returns the time: that at which the step under way ends.
    pub fn now(&self) -> Millis {
        self.lock().step.1
    }

    /// Notes that faults are over.
    pub fn set_quiet(&self) {
        self.lock().quiet = true;
    }

    /// Returns whether faults are over.
    pub fn is_quiet(&self) -> bool {
        self.lock().quiet
    }

    /// Returns a new number for an execution.
    pub fn next_run(&self) -> u64 {
        let mut inner = self.lock();
        inner.runs += 1;
        inner.runs
    }

    /// Asks for a node's death, once its step is over.
    pub fn kill(&self, node: usize) {
        self.lock().doomed.push(node);
    }

    /// Returns whether a task takes its node with it: the first time that it is asked for.
    pub fn dies_first(&self, tag: u64) -> bool {
        self.lock().fatal.insert(tag)
    }

    /// Takes the nodes whose death was asked for.
    pub fn doomed(&self) -> Vec<usize> {
        std::mem::take(&mut self.lock().doomed)
    }

    /// Says which node's step is under way.
    pub fn set_place(&self, node: Option<usize>) {
        self.lock().place = node;
    }

    /// Adds what a node has logged to the story.
    pub fn logged(&self, line: &str) {
        let place = self.lock().place;
        let node = place.map_or(String::new(), |node| format!("n{node} "));
        self.tell(format!("    {node}{line}"));
    }

    /// Adds a line to the story.
    pub fn tell(&self, line: impl Into<String>) {
        let mut inner = self.lock();
        let now = inner.step.1;
        inner.story.push((now, line.into()));
    }

    /// Adds a fact.
    pub fn note(&self, fact: Fact) {
        self.lock().facts.push(fact);
    }

    /// Returns the runs that have begun since this was asked last.
    pub fn begun(&self) -> Vec<Execution> {
        let mut inner = self.lock();
        let until = inner.facts.len();
        let from = std::mem::replace(&mut inner.looked_at, until);
        let begun = inner.facts[from..].iter().filter_map(|fact| match fact {
            Fact::Began(run) => Some(run.clone()),
            _ => None,
        });
        begun.collect()
    }

    /// Returns whether a run has come to its end.
    pub fn is_over(&self, number: u64) -> bool {
        self.lock().facts.iter().rev().any(|fact| match fact {
            Fact::Ended { run, .. } | Fact::Dropped { run, .. } => *run == number,
            _ => false,
        })
    }

    /// Returns whether a node may run a job no more: it was asked to shut down after it began to, or the
    /// job was lost.
    pub fn excuses(&self, job: &str, by: usize, since: Millis) -> bool {
        self.lock().facts.iter().rev().any(|fact| match fact {
            Fact::Drained { node, .. } => *node == by,
            Fact::Lost { jobs, at } => *at >= since && jobs.iter().any(|lost| lost == job),
            _ => false,
        })
    }

    /// Returns by how much servers' clocks were set back, in all.
    pub fn set_back(&self) -> Millis {
        let inner = self.lock();
        let by = inner.facts.iter().filter_map(|fact| match fact {
            Fact::Clock { by } => Some(by.min(&0).unsigned_abs()),
            _ => None,
        });
        by.sum()
    }

    /// Returns the jobs that were promised, with their owners.
    pub fn accepted(&self) -> Vec<(String, u8)> {
        let inner = self.lock();
        let accepted = inner.facts.iter().filter_map(|fact| match fact {
            Fact::Accepted { task, job, .. } => Some((job.clone(), task.owner)),
            _ => None,
        });
        accepted.collect()
    }

    /// Returns the story, a line for each event, and the facts.
    pub fn take(&self) -> (Vec<String>, Vec<Fact>) {
        let mut inner = self.lock();
        let story = std::mem::take(&mut inner.story);
        let line = |(at, line): (Millis, String)| format!("{:>9.3} {line}", at as f64 / 1000.0);
        (story.into_iter().map(line).collect(), std::mem::take(&mut inner.facts))
    }
}
