//! The simulated Redis beside a real one: the same calls have the same replies, and leave the same
//! keys.
//!
//! Compared byte for byte: each reply, each published message, and after every few hundred calls all
//! keys with their types and values. Compared roughly: how long a key lives (`PTTL`, `PEXPIRETIME`),
//! since each server reads its own clock. Compared without order: what comes from sets.
//!
//! The scripts are the store's own but for one thing: where they ask for `TIME`, they read a list that
//! the test writes before each call, so that both servers reckon with the same time, which may also
//! be set back.

mod both;
mod calls;
mod lines;
mod lua;
mod plain;
mod real;

use std::{collections::BTreeMap, time::Instant};

use both::{Both, Compare};
use calls::{CHANNEL, Calls};
use lines::{CLOCK, Scripts};

/// So many runs of each kind, each with another seed; more with the variable `DIFFERENTIAL_RUNS`.
const RUNS: u64 = 6;
const CALLS: usize = 1500;

/// Of the lines of the scripts, so many hundredths run in this test at least.
const COVERED: usize = 95;

fn seeds() -> std::ops::Range<u64> {
    let runs = std::env::var("DIFFERENTIAL_RUNS").ok();
    0..runs.map_or(RUNS, |runs| runs.parse().expect("DIFFERENTIAL_RUNS is a number"))
}

#[test]
fn scripts_do_what_they_do_in_a_real_server() {
    let scripts = Scripts::read();
    let names: Vec<_> = scripts.texts.keys().cloned().collect();
    let mut ran = BTreeMap::new();
    let (mut calls_made, mut keys, begun) = (0, 0, Instant::now());
    for seed in seeds() {
        let mut both = Both::start(seed % 2 == 1, CHANNEL);
        both.sim.count_lines();
        let shas = load(&mut both, &scripts);
        let mut calls = Calls::new(seed);
        for number in 0..CALLS {
            step(&mut both, &mut calls, &names, &shas);
            calls_made += 1;
            if number % 300 == 299 {
                keys += both.compare_keys();
                // What was damaged would be of no use for long.
                both.clear();
            }
        }
        for (name, sha) in &shas {
            let lines = both.sim.lines().remove(sha).unwrap_or_default();
            ran.entry(name.clone()).or_insert_with(std::collections::BTreeSet::new).extend(lines);
        }
        both.end();
    }
    let (missed, all) = scripts.missed(&ran);
    println!(
        "{calls_made} calls and {keys} keys compared in {:?}; {} of {all} lines ran, and not:\n{}",
        begun.elapsed(),
        all - missed.len(),
        missed.join("\n")
    );
    assert!((all - missed.len()) * 100 >= all * COVERED, "too few lines of the scripts have run");
}

fn load(both: &mut Both, scripts: &Scripts) -> BTreeMap<String, String> {
    let mut shas = BTreeMap::new();
    for (name, text) in &scripts.texts {
        let reply = both.ask(&["SCRIPT", "LOAD", text], Compare::Exactly);
        let sha = String::from_utf8(reply).unwrap().lines().nth(1).unwrap().to_owned();
        shas.insert(name.clone(), sha);
    }
    shas
}

/// A call of a script, and what comes before it now and then.
fn step(both: &mut Both, calls: &mut Calls, names: &[String], shas: &BTreeMap<String, String>) {
    if calls.random.once_in(25) {
        both.ask(&calls.damage(), Compare::Exactly);
    }
    let [seconds, micros] = calls.time();
    both.ask(&["DEL", CLOCK], Compare::Exactly);
    both.ask(&["RPUSH", CLOCK, &seconds, &micros], Compare::Exactly);
    let is_out_of_memory = calls.random.once_in(40);
    if is_out_of_memory {
        both.set_out_of_memory(true);
    }
    let call = calls.next(names);
    let keys = call.keys.len().to_string();
    let mut words = vec!["EVALSHA".to_owned(), shas[&call.script].clone(), keys];
    words.extend(call.keys);
    words.extend(call.args);
    let compare = match call.script.as_str() {
        "look" => Compare::Roughly,
        "reap" => Compare::Unordered,
        _ => Compare::Exactly,
    };
    both.ask(&words, compare);
    if is_out_of_memory {
        both.set_out_of_memory(false);
    }
}
