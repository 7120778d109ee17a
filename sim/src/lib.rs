//! A deterministic simulation of tower-offload: its processes, its clients, the network between them,
//! and the Redis that the processes share. One seed decides everything that happens in a run.
#![deny(missing_docs)]

mod app;
mod audit;
mod client;
pub mod facts;
mod faults;
pub mod history;
mod leases;
pub mod linear;
mod links;
pub mod log;
pub mod mutant;
mod net;
mod node;
pub mod oracle;
mod port;
pub mod redis;
pub mod rng;
pub mod scenario;
mod site;
mod store;
mod told;
mod warnings;
pub mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// What is done to the text of each script before a server compiles it.
pub type Filter = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// What became of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The story of its run, a line for each event.
    pub story: Vec<String>,
    /// How many events there were.
    pub events: u64,
    /// What was wrong.
    pub wrong: Vec<String>,
}

/// Runs a seed, and looks whether all that must hold does.
pub fn run(seed: u64, filter: &Option<Filter>) -> Outcome {
    let scenario = scenario::Scenario::of(seed);
    let run = catch_unwind(AssertUnwindSafe(|| {
        let run = world::World::new(seed, filter).run();
        let mut wrong = oracle::check(&scenario, &run.facts);
        wrong.extend(linear::check(&run.history, &oracle::lost(&run.facts)));
        Outcome { seed, story: run.story, events: run.events, wrong }
    }));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let wrong = format!("the run panicked: {}", text.unwrap_or_default());
        Outcome { seed, story: Vec::new(), events: 0, wrong: vec![wrong] }
    })
}

/// Keeps the panics that a run makes on purpose, and those of code under test, out of the log.
pub fn hush() {
    std::panic::set_hook(Box::new(|_| {}));
}
