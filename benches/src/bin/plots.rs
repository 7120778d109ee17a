//! Draws `plots/overhead.svg` and `plots/jobs.svg` from what the benches have written:
//! `instructions.tsv` and `results/jobs.tsv`.
//!
//! ```text
//! cargo run -p tower-offload-benches --bin plots
//! ```

use std::fs;

use tower_offload_benches::{
    measure::folder,
    plot::{Line, Result, lines},
};

fn main() -> Result {
    fs::create_dir_all(folder("plots"))?;
    jobs()
}

/// What accepting and polling take, by the number of jobs that run.
fn jobs() -> Result {
    let file = fs::read_to_string(folder("results").join("jobs.tsv"))?;
    let rows: Vec<Vec<_>> = file.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let charts = [("Accepting: ", "Accept a job and run it"), ("Polling", "Poll a running job")];
    let chart = |operation: &str| {
        let mut all: Vec<Line> = vec![];
        for row in &rows {
            let &["rivals", of, who, jobs, time, _] = row.as_slice() else { continue };
            if !of.starts_with(operation) || of.ends_with("the 202") {
                continue;
            }
            let (Ok(jobs), Ok(time)) = (jobs.parse(), time.parse::<f64>()) else { continue };
            let point = (jobs, time / 1e3);
            match all.iter_mut().find(|line| line.name == who) {
                Some(line) => line.points.push(point),
                None => all.push(Line { name: who.to_owned(), points: vec![point] }),
            }
        }
        all
    };
    let charts = charts.map(|(operation, title)| (title, chart(operation)));
    lines(&folder("plots").join("jobs.svg"), &charts)
}
