//! How the benches without a harness measure and tell: times by batches, choices that are the same in
//! each run, tables on the terminal, and the same numbers as lines of a file.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

/// Whether this is only to see that the bench runs: `--test`, as `cargo test --benches` passes.
pub fn is_trial() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Times of one operation in nanoseconds, each the mean over a batch. The median is the figure: a
/// batch that was interrupted by other programs does not move it.
#[derive(Debug, Default)]
pub struct Times(Vec<f64>);

impl Times {
    /// Adds a batch.
    pub fn push(&mut self, time: Duration, operations: usize) {
        self.0.push(time.as_secs_f64() * 1e9 / operations as f64);
    }

    pub fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Numbers that look random, and are the same in each run (Marsaglia's xorshift).
#[derive(Debug)]
pub struct Dice(u64);

impl Default for Dice {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Dice {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// Moves so many random ones of these to the front.
    pub fn shuffle<T>(&mut self, all: &mut [T], front: usize) {
        for at in 0..front.min(all.len()) {
            let other = at + self.below(all.len() - at);
            all.swap(at, other);
        }
    }
}

/// A table on the terminal, the first column to the left.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn print(&self, title: &str) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        println!("\n{title}");
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column {
                    0 => write!(line, "  {cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            println!("{}", line.trim_end());
        }
    }
}

/// Nanoseconds for people.
pub fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        below if below < 1e4 => format!("{below:.0} ns"),
        below if below < 1e6 => format!("{:.1} µs", below / 1e3),
        below => format!("{:.2} ms", below / 1e6),
    }
}

/// A count for people.
pub fn count(number: usize) -> String {
    match number {
        whole if whole >= 1_000_000 && whole % 1_000_000 == 0 => format!("{} M", whole / 1_000_000),
        whole if whole >= 1000 && whole % 1000 == 0 => format!("{} k", whole / 1000),
        other => other.to_string(),
    }
}

/// What is written to `benches/results/NAME.tsv`: one number a line, with what it is before it.
#[derive(Debug, Default)]
pub struct Results(String);

impl Results {
    pub fn add(&mut self, case: &[&str], number: f64, unit: &str) {
        let _ = writeln!(self.0, "{}\t{number:.1}\t{unit}", case.join("\t"));
    }

    /// Replaces the file, unless this is a trial.
    pub fn write(&self, name: &str, head: &str) -> std::io::Result<()> {
        let folder = folder("results");
        if is_trial() {
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), format!("{head}\n{}", self.0))
    }
}

/// A folder of this package.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}
