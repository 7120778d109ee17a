//! Runs seeds of the simulation.
//!
//! ```text
//! sim [--mutant FILE] [--first-broken] COUNT [FIRST]
//! sim [--mutant FILE] --story SEED
//! ```
//!
//! Prints the story of each seed that is broken, and at the end seeds, events a second, and the number
//! broken. `--first-broken` ends at the first, and prints what is wrong with it but not its story. A seed
//! that takes longer than [`LONGEST`] ends everything: something in it runs without end.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tower_offload_sim::{Filter, Outcome, hush, mutant, run};

/// How often a long run says how far it is.
const TELL: Duration = Duration::from_secs(60);

/// A third of the time went into the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A seed takes a second, and a slow one ten.
const LONGEST: Duration = Duration::from_secs(180);

/// What is asked for.
#[derive(Debug, Default)]
struct Args {
    mutant: Option<String>,
    first_broken: bool,
    story: Option<u64>,
    count: u64,
    first: u64,
}

const USAGE: &str = "usage: sim [--mutant FILE] [--first-broken] COUNT [FIRST]\n   or: sim [--mutant FILE] --story SEED";

fn args() -> Option<Args> {
    let mut args = Args { first: 1, ..Args::default() };
    let mut numbers = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        match &*arg {
            "--mutant" => args.mutant = Some(given.next()?),
            "--first-broken" => args.first_broken = true,
            "--story" => args.story = Some(given.next()?.parse().ok()?),
            number => numbers.push(number.parse().ok()?),
        }
    }
    match *numbers {
        [] if args.story.is_some() => {}
        [count] => args.count = count,
        [count, first] => (args.count, args.first) = (count, first),
        _ => return None,
    }
    Some(args)
}

fn main() -> ExitCode {
    let Some(args) = args() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let filter = match args.mutant.as_deref().map(read).transpose() {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    hush();
    if let Some(seed) = args.story {
        let outcome = run(seed, &filter);
        println!("{}", outcome.story.join("\n"));
        outcome.wrong.iter().for_each(|wrong| eprintln!("WRONG: {wrong}"));
        return code(outcome.wrong.is_empty());
    }
    all(&args, &filter)
}

fn read(path: &str) -> Result<Filter, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    mutant::read(&text).map_err(|error| format!("{path}: {error}"))
}

fn code(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(args: &Args, filter: &Option<Filter>) -> ExitCode {
    let until = args.first + args.count;
    let next = AtomicU64::new(args.first);
    let (seeds, events, broken) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let watch = Watch::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= until {
                return;
            }
            let outcome = watch.over(seed, || run(seed, filter));
            seeds.fetch_add(1, Ordering::Relaxed);
            events.fetch_add(outcome.events, Ordering::Relaxed);
            if !outcome.wrong.is_empty() {
                broken.fetch_add(1, Ordering::Relaxed);
                if args.first_broken {
                    // The others end their seeds; the first number is printed first, as a rule.
                    next.store(until, Ordering::Relaxed);
                }
                print(&outcome, !args.first_broken);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| watch.until(&next, args.first, until));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let (seeds, events, broken) = (seeds.into_inner(), events.into_inner(), broken.into_inner());
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds from {} in {seconds:.1} s, {:.0} events a second, {broken} broken",
        args.first,
        events as f64 / seconds
    );
    code(broken == 0)
}

/// The seeds that run, and since when.
#[derive(Debug, Default)]
struct Watch(Mutex<BTreeMap<u64, Instant>>);

impl Watch {
    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over<T>(&self, seed: u64, run: impl FnOnce() -> T) -> T {
        self.running().insert(seed, Instant::now());
        let outcome = run();
        self.running().remove(&seed);
        outcome
    }

    /// Watches until all seeds have been run. A thread cannot be stopped, so the process ends.
    fn until(&self, next: &AtomicU64, first: u64, until: u64) {
        let mut told = Instant::now();
        while next.load(Ordering::Relaxed) < until || !self.running().is_empty() {
            std::thread::sleep(Duration::from_millis(100));
            if told.elapsed() > TELL {
                told = Instant::now();
                eprintln!("{} seeds have begun", next.load(Ordering::Relaxed) - first);
            }
            let running = self.running();
            if let Some((seed, _)) = running.iter().find(|(_, since)| since.elapsed() > LONGEST) {
                println!("WRONG in seed {seed}: it has not ended after {LONGEST:?}");
                std::process::exit(1);
            }
        }
    }
}

fn print(outcome: &Outcome, with_story: bool) {
    let mut text = String::new();
    if with_story {
        text = format!("seed {}:\n{}\n", outcome.seed, outcome.story.join("\n"));
    }
    for wrong in &outcome.wrong {
        text += &format!("WRONG in seed {}: {wrong}\n", outcome.seed);
    }
    print!("{text}");
}
