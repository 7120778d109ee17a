//! What `instructions` counted, per call and beside `benches/instructions.tsv`: the table of what is
//! accepted. `scripts/bench` runs it: gungraun's JSON comes in at standard input.
//!
//! ```text
//! table check TOOLS    # prints, and fails when ours has become dearer
//! table accept TOOLS   # prints, and writes the table anew
//! ```
//!
//! `TOOLS` names what else a count depends on: the compiler, the C library, valgrind. Counts are held
//! against a table that was made with the same ones only; allocations always, since no tool
//! changes them.

use std::{collections::HashMap, fmt::Write as _, fs, io::stdin, process::ExitCode};

use serde_json::Value;
use tower_offload_benches::cases;

type Error = Box<dyn std::error::Error>;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.tsv");

/// How much dearer ours may become, in parts of what it adds to the bare service.
const RISE: f64 = 0.03;
/// And at least so many instructions: as many as the smallest case may rise in all.
const LEAST_RISE: f64 = 15.0;
/// Allocations are counted over many calls, so that what is made once shows in the fraction.
const ALLOCATION: f64 = 0.25;

/// What was counted of a case, in all its calls.
struct Count {
    instructions: f64,
    allocations: f64,
}

/// What one call of a case costs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost {
    instructions: f64,
    /// More than those of the bare service.
    added: f64,
    allocations: f64,
}

/// By group and name.
type Cases<T> = HashMap<(String, String), T>;

/// One case, as it was counted and as the table has it.
struct Row {
    group: &'static str,
    name: &'static str,
    cost: Cost,
    accepted: Option<Cost>,
}

fn main() -> Result<ExitCode, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, tools] = arguments.as_slice() else {
        return Err("usage: table check|accept TOOLS".into());
    };
    let table = fs::read_to_string(TABLE).unwrap_or_default();
    let rows = rows(&counted()?, &accepted(&table)?)?;
    print!("{}", report(&rows));
    if mode == "accept" {
        fs::write(TABLE, tsv(&rows, tools))?;
        println!("\nwritten to {TABLE}");
        return Ok(ExitCode::SUCCESS);
    }
    let same_tools = tools_of(&table) == Some(tools.as_str());
    if !same_tools {
        let theirs = tools_of(&table).unwrap_or("nothing");
        println!("\nOTHER TOOLS: the table was made with\n    {theirs}\nand this is\n    {tools}");
        println!("so instructions are not held against it, only allocations.");
    }
    let faults: Vec<String> = rows.iter().filter_map(|row| row.fault(same_tools)).collect();
    for fault in &faults {
        println!("\nDEARER: {fault}");
    }
    if faults.is_empty() {
        println!("\nnothing of ours has become dearer");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nIf it is worth that, accept it: scripts/bench --accept");
    Ok(ExitCode::FAILURE)
}

impl Row {
    fn is_ours(&self) -> bool {
        let rival = self.name.ends_with("timeout") || self.name == "task_per_request";
        !rival && self.name != "bare"
    }

    /// Why this is not accepted.
    fn fault(&self, same_tools: bool) -> Option<String> {
        let case = format!("{}::{}", self.group, self.name);
        if !self.is_ours() {
            return None;
        }
        let Some(accepted) = self.accepted else {
            return Some(format!("{case} is not in the table"));
        };
        // A timer of 1 ms fires on the machine's clock, which is not the same twice.
        let most = accepted.added + self.may_rise(accepted);
        if same_tools && self.group != "timer" && self.cost.added > most {
            return Some(format!(
                "{case} adds {:.0} instructions, where {:.0} are accepted and {most:.0} would pass",
                self.cost.added, accepted.added
            ));
        }
        (self.cost.allocations > accepted.allocations + ALLOCATION).then(|| {
            let (now, then) = (self.cost.allocations, accepted.allocations);
            format!("{case} makes {now:.1} allocations, where {then:.1} are accepted")
        })
    }

    fn may_rise(&self, accepted: Cost) -> f64 {
        // Inside of a router most of what is added is axum's own, and the compiler may lay that out
        // anew when anything in the program changes.
        let whole = self.name.starts_with("inside_");
        let held = if whole { accepted.instructions } else { accepted.added };
        (held * RISE).max(LEAST_RISE)
    }
}

/// Every case with its cost, in the order of the cases.
fn rows(counted: &Cases<Count>, accepted: &Cases<Cost>) -> Result<Vec<Row>, Error> {
    let key = |group: &str, name: &str| (group.to_owned(), name.to_owned());
    let mut rows = Vec::new();
    for case in cases::all(cases::LONG) {
        let (group, name) = (case.group, case.name);
        let Some(count) = counted.get(&key(group, name)) else { continue };
        let bare = counted.get(&key(group, "bare")).ok_or("a group without its bare service")?;
        let calls = case.counted() as f64;
        let cost = Cost {
            instructions: count.instructions / calls,
            added: (count.instructions - bare.instructions) / calls,
            allocations: count.allocations / calls,
        };
        let accepted = accepted.get(&key(group, name)).copied();
        rows.push(Row { group, name, cost, accepted });
    }
    if rows.len() != counted.len() {
        return Err("a case was counted that cases.rs does not have".into());
    }
    Ok(rows)
}

/// Reads gungraun's JSON, a line for each case.
fn counted() -> Result<Cases<Count>, Error> {
    let mut counts = HashMap::new();
    for line in stdin().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let text = |field: &str| case[field].as_str().map(str::to_owned).ok_or("no name");
        let metric = |name: &str| {
            let profiles = case["profiles"].as_array().into_iter().flatten();
            let value = |profile: &Value| {
                profile["data"]["total"]["metrics"][name]["values"]["new"].as_f64()
            };
            profiles.filter_map(value).next().ok_or(format!("no {name}"))
        };
        let count = Count { instructions: metric("Ir")?, allocations: metric("TotalBlocks")? };
        counts.insert((text("function_name")?, text("id")?), count);
    }
    if counts.is_empty() {
        return Err("nothing was counted".into());
    }
    Ok(counts)
}

/// What each case costs by the table.
fn accepted(table: &str) -> Result<Cases<Cost>, Error> {
    let lines = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    let row = |line: &str| {
        let [group, name, instructions, added, allocations] =
            line.split('\t').collect::<Vec<_>>()[..]
        else {
            return Err(format!("not a row of the table: {line}").into());
        };
        let cost = Cost {
            instructions: instructions.parse()?,
            added: added.parse()?,
            allocations: allocations.parse()?,
        };
        Ok(((group.to_owned(), name.to_owned()), cost))
    };
    lines.map(row).collect()
}

fn tools_of(table: &str) -> Option<&str> {
    table.lines().find_map(|line| line.strip_prefix("# tools: "))
}

fn tsv(rows: &[Row], tools: &str) -> String {
    let mut table = String::from(
        "# What one call costs: README.md beside this says how it is counted.\n\
         # Written by scripts/bench --accept, held by scripts/bench --check.\n",
    );
    _ = writeln!(table, "# tools: {tools}");
    table.push_str("group\tcase\tinstructions\tadded\tallocations\n");
    for Row { group, name, cost, .. } in rows {
        let Cost { instructions, added, allocations } = cost;
        _ = writeln!(table, "{group}\t{name}\t{instructions:.0}\t{added:.0}\t{allocations:.1}");
    }
    table
}

fn report(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<48} {:>12} {:>9} {:>11} {:>9} {:>8}\n",
        "case", "instructions", "added", "allocations", "accepted", "change"
    );
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = row.group;
            text.push('\n');
        }
        let case = format!("{}::{}", row.group, row.name);
        let Cost { instructions, added, allocations } = row.cost;
        _ = write!(text, "{case:<48} {instructions:>12.0} {added:>+9.0} {allocations:>11.1}");
        if let Some(accepted) = row.accepted {
            let change = added - accepted.added;
            _ = write!(text, " {:>+9.0} {change:>+8.0}", accepted.added);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, added: f64, allocations: f64, accepted: Option<Cost>) -> Row {
        Row { group: "ready", name, cost: cost(added, allocations), accepted }
    }

    fn cost(added: f64, allocations: f64) -> Cost {
        Cost { instructions: 500.0 + added, added, allocations }
    }

    fn passes(name: &'static str, added: f64, accepted: f64) -> bool {
        row(name, added, 0.0, Some(cost(accepted, 0.0))).fault(true).is_none()
    }

    #[test]
    fn ours_may_rise_by_three_percent_and_by_what_does_not_matter() {
        assert!(passes("after", 1_030.0, 1_000.0));
        assert!(!passes("after", 1_031.0, 1_000.0));
        assert!(passes("after", 55.0, 40.0));
        assert!(!passes("after", 56.0, 40.0));
        assert!(row("after", 40.0, 0.0, None).fault(true).is_some());
    }

    #[test]
    fn inside_a_router_the_whole_may_rise_by_three_percent() {
        assert!(passes("inside_after", 1_045.0, 1_000.0));
        assert!(!passes("inside_after", 1_046.0, 1_000.0));
    }

    #[test]
    fn with_other_tools_only_allocations_are_held() {
        let accepted = Some(cost(40.0, 0.0));
        assert_eq!(row("after", 2_000.0, 0.0, accepted).fault(false), None);
        assert!(row("after", 40.0, 1.0, accepted).fault(false).is_some());
        assert_eq!(row("tower_timeout", 2_000.0, 9.0, accepted).fault(true), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let written = tsv(&[row("after", 40.0, 1.0, None)], "some rustc");
        assert_eq!(tools_of(&written), Some("some rustc"));
        let key = ("ready".to_owned(), "after".to_owned());
        assert_eq!(accepted(&written).unwrap()[&key], cost(40.0, 1.0));
    }
}
