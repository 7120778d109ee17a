//! Draws the plots from what the benches have written: `plots/overhead.svg` from `instructions.tsv`,
//! and `plots/jobs.svg` from `results/jobs.tsv`.
//!
//! ```text
//! cargo run -p tower-offload-benches --bin plots
//! ```

use std::fs;

use tower_offload_benches::{
    measure::folder,
    plot::{Bars, Line, Result, bars, lines},
};

/// The groups of cases that are drawn, with what the names of their cases begin with.
const GROUPS: [(&str, &str, &str); 7] = [
    ("ready", "", "ready at first poll"),
    ("ready_ten_headers", "", "ready, ten headers"),
    ("pending", "", "pending once"),
    ("pending_ten_headers", "", "pending, ten headers"),
    ("pending_4k", "", "pending, future of 4 KiB"),
    ("router_get", "around_", "axum router, GET"),
    ("router_post", "around_", "axum router, POST 1 KiB"),
];

const CASES: [(&str, &str); 4] = [
    ("after", "ours"),
    ("after_boxed", "ours, .boxed()"),
    ("tower_http_timeout", "tower-http's timeout"),
    ("tower_timeout", "tower's timeout"),
];

fn main() -> Result {
    fs::create_dir_all(folder("plots"))?;
    overhead()?;
    jobs()
}

/// What each layer adds to a request, by case.
fn overhead() -> Result {
    let file = fs::read_to_string(folder("instructions.tsv"))?;
    let added = |group: &str, name: &str| {
        let row = file.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let mut row = row.filter(|row| row.len() == 5 && row[0] == group && row[1] == name);
        row.next().and_then(|row| row[3].parse().ok())
    };
    let series = CASES.map(|(case, name)| {
        let number = |(group, prefix, _): (&str, &str, _)| added(group, &format!("{prefix}{case}"));
        Bars { name, numbers: GROUPS.map(number).to_vec() }
    });
    let title = "What a layer adds to a request that ends within its budget";
    let axis = "instructions more than the bare service";
    let names = GROUPS.map(|(_, _, name)| name);
    bars(&folder("plots").join("overhead.svg"), title, axis, &names, &series)
}

/// What accepting and polling take, by the number of jobs that run.
fn jobs() -> Result {
    let file = fs::read_to_string(folder("results").join("jobs.tsv"))?;
    let chart = |operation: &str| {
        let mut all: Vec<Line> = vec![];
        for row in file.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
            let &["rivals", of, who, jobs, time, _] = row.as_slice() else { continue };
            let (Ok(jobs), Ok(time)) = (jobs.parse(), time.parse::<f64>()) else { continue };
            if of != operation {
                continue;
            }
            let point = (jobs, time / 1e3);
            match all.iter_mut().find(|line| line.name == who) {
                Some(line) => line.points.push(point),
                None => all.push(Line { name: who.to_owned(), points: vec![point] }),
            }
        }
        all
    };
    let charts = [
        ("µs to accept a job, and run it to its end", chart("accept and run")),
        ("µs to poll a running job", chart("poll")),
    ];
    lines(&folder("plots").join("jobs.svg"), &charts)
}
