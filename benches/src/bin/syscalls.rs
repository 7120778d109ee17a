//! The system calls of one request that is pending once, counted by strace: ours is to make none that
//! the bare service does not.
//!
//! ```text
//! syscalls                           # counts each case, and fails when ours makes more than bare
//! syscalls GROUP CASE COUNT          # only makes the calls: what strace looks at
//! ```
//!
//! A case is counted with N and with 2N requests, so that what a process does once cancels.

use std::{collections::BTreeMap, io, process::Command, process::ExitCode};

use tokio::runtime::Builder;
use tower_offload_benches::cases;

type Error = Box<dyn std::error::Error>;

/// Requests of the shorter run.
const COUNT: i64 = 10_000;
/// What ours may make more than the bare service, in all these requests: the scan of deadlines
/// wakes once a budget.
const CHANCE: i64 = COUNT / 100;

const GROUP: &str = "pending";
const OURS: [&str; 3] = ["never", "after", "after_boxed"];
const OTHERS: [&str; 3] = ["tower_timeout", "tower_http_timeout", "task_per_request"];

fn main() -> Result<ExitCode, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [group, name, count] => {
            make(group, name, count.parse()?);
            Ok(ExitCode::SUCCESS)
        }
        _ => count(),
    }
}

fn make(group: &str, name: &str, count: usize) {
    let case = cases::find(group, name);
    let calls: Vec<_> = (0..count).map(|_| case.calls(case.requests(1))).collect();
    // Each request comes by an event of its own, as from a socket: before it the runtime has looked
    // at its driver, and had nothing to wait for.
    let runtime = Builder::new_current_thread().enable_all().event_interval(1).build().unwrap();
    let each = async move {
        for call in calls {
            call.await;
            tokio::task::yield_now().await;
        }
    };
    runtime.block_on(async { tokio::spawn(each).await }).unwrap();
}

fn count() -> Result<ExitCode, Error> {
    let bare = of_requests("bare")?;
    println!("system calls of {COUNT} requests that are pending once\n");
    println!("{:<20} {:>8} {:>8}  which", "case", "in all", "added");
    tell("bare", &bare, &bare);
    let mut dearer = Vec::new();
    for name in OTHERS.into_iter().chain(OURS) {
        let calls = of_requests(name)?;
        tell(name, &calls, &bare);
        if OURS.contains(&name) && total(&calls) - total(&bare) > CHANCE {
            dearer.push(name);
        }
    }
    if dearer.is_empty() {
        println!("\nours makes none that the bare service does not");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nDEARER: {} makes system calls of its own", dearer.join(", "));
    Ok(ExitCode::FAILURE)
}

/// By name, how many system calls are made for [`COUNT`] requests.
fn of_requests(name: &str) -> io::Result<BTreeMap<String, i64>> {
    let mut calls = traced(name, 2 * COUNT)?;
    for (call, count) in traced(name, COUNT)? {
        *calls.entry(call).or_default() -= count;
    }
    Ok(calls)
}

fn traced(name: &str, count: i64) -> io::Result<BTreeMap<String, i64>> {
    let mut strace = Command::new("strace");
    strace.args(["--follow-forks", "--summary-only", "--summary-columns=calls,name", "--"]);
    strace.arg(std::env::current_exe()?).args([GROUP, name, &count.to_string()]);
    let output = strace.output()?;
    let summary = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(io::Error::other(format!("strace: {summary}")));
    }
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let count = fields.next()?.parse().ok()?;
        let name = fields.next()?;
        (name != "total").then(|| (name.to_owned(), count))
    };
    let calls: BTreeMap<_, _> = summary.lines().filter_map(row).collect();
    if calls.is_empty() {
        return Err(io::Error::other(format!("strace counted nothing: {summary}")));
    }
    Ok(calls)
}

fn total(calls: &BTreeMap<String, i64>) -> i64 {
    calls.values().sum()
}

fn tell(name: &str, calls: &BTreeMap<String, i64>, bare: &BTreeMap<String, i64>) {
    let mut most: Vec<_> = calls.iter().filter(|(_, count)| **count > 0).collect();
    most.sort_by_key(|(_, count)| -**count);
    let which: Vec<_> =
        most.iter().take(3).map(|(call, count)| format!("{call} {count}")).collect();
    let added = total(calls) - total(bare);
    println!("{name:<20} {:>8} {added:>+8}  {}", total(calls), which.join(", "));
}
