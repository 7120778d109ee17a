//! What jobs cost: accepting, polling, fetching, canceling and expiry with few and with many jobs in
//! the store; the store beside bare maps; the rivals of `desks`; and how long a poll is held up while
//! a million jobs expire.
//!
//! ```text
//! cargo bench -p tower-offload-benches --bench jobs                        # all, in some six minutes
//! cargo bench -p tower-offload-benches --bench jobs -- rivals                # one table: operations, maps, rivals, pause
//! cargo bench -p tower-offload-benches --profile dev --bench jobs -- --test   # small, to see that it runs
//! ```
//!
//! Everything runs on one thread, jobs are chosen at random, and times are medians over batches. The
//! numbers are also written to `benches/results/jobs.tsv`, which the plots are made of.

use std::io;

use tower_offload_benches::{
    desks::{Apalis, Around, ByHand, OnRoute},
    jobs::{maps, operations, pause, rivals},
    measure::{Results, Table, count, is_trial, time},
};

fn main() -> io::Result<()> {
    let (sizes, plotted, expiring): (_, &[_], _) = match is_trial() {
        true => ([100, 1000], &[100, 1000], 2000),
        false => ([10_000, 1_000_000], &[1000, 10_000, 100_000, 1_000_000], 1_000_000),
    };
    let wanted = |table: &str| {
        let mut names = std::env::args().skip(1).filter(|name| !name.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|name| name == table)
    };
    let mut results = Results::default();
    let all = ["operations", "maps", "rivals", "pause"];
    for table in all.into_iter().filter(|table| wanted(table)) {
        match table {
            "operations" => operations_table(sizes, &mut results),
            "maps" => maps_table(sizes, &mut results),
            "rivals" => rivals_table(plotted, &mut results),
            _ => pause_table(expiring, &mut results),
        }
    }
    match all.iter().all(|table| wanted(table)) {
        true => results.write("jobs.tsv", "table\tcase\tof\tjobs\tnumber\tunit"),
        false => Ok(()),
    }
}

/// Each operation with few and with many jobs in the store.
fn operations_table(sizes: [usize; 2], results: &mut Results) {
    let [few, many] = sizes;
    let mut table = Table::new(&["operation", &count(few), &count(many), "ratio"]);
    let measured = sizes.map(operations::all);
    for ((name, few_jobs), (_, many_jobs)) in measured[0].iter().zip(&measured[1]) {
        let (less, more) = (few_jobs.median(), many_jobs.median());
        results.add(&["operations", name, "ours", &few.to_string()], less, "ns");
        results.add(&["operations", name, "ours", &many.to_string()], more, "ns");
        table.row([name.to_string(), time(less), time(more), format!("{:.2}", more / less)]);
    }
    table.print("One operation, by the number of jobs in the store");
}

/// The store's operations beside those of bare maps.
fn maps_table(sizes: [usize; 2], results: &mut Results) {
    for size in sizes {
        let mut table =
            Table::new(&["operation", "store", "DashMap", "HashMap", "store / DashMap"]);
        for (name, [store, dash_map, hash_map]) in maps::all(size) {
            let times = [&store, &dash_map, &hash_map].map(|times| times.median());
            for (of, ns) in ["store", "DashMap", "HashMap"].iter().zip(times) {
                results.add(&["maps", name, of, &size.to_string()], ns, "ns");
            }
            let ratio = format!("{:.2}", times[0] / times[1]);
            table.row([name.to_string(), time(times[0]), time(times[1]), time(times[2]), ratio]);
        }
        table.print(&format!(
            "The store beside bare maps of the same records, {} jobs",
            count(size)
        ));
    }
}

/// Accepting and polling, beside what else people use.
fn rivals_table(sizes: &[usize], results: &mut Results) {
    let mut tables = rivals::OPERATIONS.map(|_| {
        let mut head = vec!["by".to_owned()];
        head.extend(sizes.iter().map(|size| count(*size)));
        Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let desks = [
        rivals::all::<OnRoute>,
        rivals::all::<Around>,
        rivals::all::<ByHand>,
        rivals::all::<Apalis>,
    ];
    for desk in desks {
        let mut rows = rivals::OPERATIONS.map(|_| vec![]);
        for size in sizes {
            let (name, times) = desk(*size);
            eprintln!("{name}, {} jobs: done", count(*size));
            for (((operation, _), times), row) in
                rivals::OPERATIONS.iter().zip(times).zip(&mut rows)
            {
                if row.is_empty() {
                    row.push(name.to_owned());
                }
                row.push(time(times.median()));
                results.add(&["rivals", operation, name, &size.to_string()], times.median(), "ns");
            }
        }
        for (table, row) in tables.iter_mut().zip(rows) {
            table.row(row);
        }
    }
    for (table, (_, operation)) in tables.iter().zip(rivals::OPERATIONS) {
        table.print(&format!("{operation}, through an axum router, by the number of running jobs"));
    }
}

/// How long polls take while jobs expire.
fn pause_table(jobs: usize, results: &mut Results) {
    let mut table = Table::new(&[
        "polls",
        "number",
        "p50",
        "p99.99",
        "worst",
        "worst awake",
        "preempted",
        "worst of all",
    ]);
    for (name, polls) in pause::all(jobs) {
        let [median, rare, worst] = [0.5, 0.9999, 1.0].map(|share| polls.quantile(share));
        let awake = polls.worst_awake();
        let cases = [("p50", median), ("p99.99", rare), ("worst", worst), ("worst awake", awake)];
        for (case, ns) in cases {
            results.add(&["pause", name, case, &jobs.to_string()], ns, "ns");
        }
        table.row([
            name.to_owned(),
            polls.number().to_string(),
            time(median),
            time(rare),
            time(worst),
            time(awake),
            polls.preempted().to_string(),
            time(polls.worst_of_all()),
        ]);
    }
    table.print(&format!(
        "Polls while {} jobs expire at once; those during which the system gave the thread's core to \
         another are counted apart",
        count(jobs),
    ));
}
