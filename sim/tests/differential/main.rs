//! The simulated Redis beside a real one: the same calls have the same replies, and leave the same
//! keys.
//!
//! Compared byte for byte: each reply, each published message, and after every hundred calls all
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
            if number % 100 == 99 {
                keys += both.compare_keys();
            }
            if number % 500 == 499 {
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
    assert!(
        (all - missed.len()) * 100 >= all * COVERED,
        "too few lines of the scripts have run: see what calls.rs makes of each"
    );
}

fn load(both: &mut Both, scripts: &Scripts) -> BTreeMap<String, String> {
    let mut shas = BTreeMap::new();
    for (name, text) in &scripts.texts {
        let reply = both.ask(&["SCRIPT", "LOAD", text], Compare::Exactly);
        let reply = String::from_utf8(reply).unwrap();
        let sha = reply.lines().nth(1).unwrap_or_else(|| panic!("{name}.lua: {reply}"));
        shas.insert(name.clone(), sha.to_owned());
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
    let call = calls.next(names, |key| both.hash(key));
    // Which of several ends first is random, and decides what follows.
    if call.script != "reap" || both.count(&call.keys[0]) < 2 {
        let compare = if call.script == "look" { Compare::Roughly } else { Compare::Exactly };
        both.ask(&call.words(&shas[&call.script]), compare);
    }
    if is_out_of_memory {
        both.set_out_of_memory(false);
    }
}

#[test]
fn reaped_jobs_end_in_any_order() {
    let scripts = Scripts::read();
    let mut both = Both::start(true, CHANNEL);
    let shas = load(&mut both, &scripts);
    both.ask(&["RPUSH", CLOCK, "1800000000", "5"], Compare::Exactly);
    let mut calls = Calls::new(1);
    let mut later = 0;
    for number in 0..60 {
        let call = calls.insert_of(&format!("{number:032x}"), "node-one", &[]);
        later += u64::from(call.args.windows(2).any(|pair| pair == ["F", "9"]));
        both.ask(&call.words(&shas["insert"]), Compare::Exactly);
    }
    let mut call = calls.reap();
    while call.args[0] != "node-one" {
        call = calls.reap();
    }
    for _ in 0..2 {
        both.ask(&call.words(&shas["reap"]), Compare::Unordered);
    }
    // Jobs of a later release are left to its processes.
    assert_eq!(both.count(&call.keys[0]), later);
    assert!(both.compare_keys() > 60);
    both.end();
}
