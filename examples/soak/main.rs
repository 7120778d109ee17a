//! The promise under load: each 202 is followed to its end, and compared with what its handler did.
//!
//! ```text
//! cargo run --release --example soak      # SECONDS=60 CLIENTS=200
//! ```
//!
//! Server and clients are one process, with real sockets between them. Clients send a mix of requests
//! (`mix.rs`), each with a token of its own, and do what clients do: they leave, stall, cancel, send
//! again. The handlers note what they did (`server.rs`), the clients what they were told
//! (`client.rs`), the store how each job ended (`counted.rs`). All three must agree (`ledger.rs`):
//! each job has come to one end that fits what its handler did, none is lost, none told twice, each
//! result is byte by byte what the handler made, and of requests with one key exactly one has run.
//! When all jobs have expired, memory must be back where it was after a first short run. In the end
//! the clients go on while the desk is drained, and the same must hold. What is wrong is printed,
//! and the exit code is 1.

mod client;
mod counted;
mod ledger;
mod memory;
mod mix;
mod server;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};
use tower_offload::{Drained, Offload, Owner};

use counted::Counted;
use ledger::{Books, Ledger};
use server::Deeds;

/// How long jobs are kept. Clients come back within it.
const TTL: Duration = Duration::from_secs(5);

const WARM_UP: Duration = Duration::from_secs(5);

/// How long the clients go on at the end, when the drain begins, and how long it waits.
const LAST: Duration = Duration::from_secs(3);
const DRAIN_AFTER: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_millis(300);

/// How many percent of its start memory may end above it.
const TOLERANCE: usize = 10;

/// Panics that nobody has ordered.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seconds = Duration::from_secs(option("SECONDS", 60)?);
    let clients = option("CLIENTS", 200)?;
    silence_ordered_panics();

    let store = Counted::new(1 << 30);
    let offload = Offload::builder("/jobs")
        .store(store.clone())
        .ttl(TTL)
        .max_outcome_bytes(256 << 10)
        // Now and then there is no room.
        .max_running((clients as usize / 2).max(1))
        .owner(|request| request.headers.get("authorization").cloned().map(Owner::from))
        .build()?;
    let deeds = Arc::new(Deeds::default());
    let address = server::serve(&offload, Arc::clone(&deeds), clients as usize).await?;
    let soak = Soak { address, deeds, offload, store, clients, tokens: Arc::default() };

    println!("{clients} clients warm up for {WARM_UP:?}");
    let mut wrong = soak.run(WARM_UP).await.into_wrong();
    let before = memory::settled().await;
    memory::peak();
    println!("{clients} clients run for {seconds:?}\n");
    let books = soak.run(seconds).await;
    print!("{books}");
    wrong.extend(books.into_wrong());
    let peak = memory::peak();
    let after = memory::settled().await;
    for (when, bytes) in [("before", before), ("at its most", peak), ("after", after)] {
        println!("{:<52}{:>9}", format!("KiB of memory {when}"), bytes / 1024);
    }
    if after > before + before * TOLERANCE / 100 {
        wrong.push(format!("memory has not come back: {before} bytes before, {after} after"));
    }

    println!(
        "\n{clients} clients run for {LAST:?}; a drain of {DRAIN:?} begins after {DRAIN_AFTER:?}\n"
    );
    let (books, drained) = soak.drain().await;
    print!("{books}");
    println!("{:<52}{:>9}", "the drain says: finished", drained.finished());
    println!("{:<52}{:>9}", "  interrupted", drained.interrupted());
    wrong.extend(report_fits(&books, &drained).err());
    wrong.extend(books.into_wrong());

    match PANICS.load(Ordering::Relaxed) {
        0 => {}
        panics => wrong.push(format!("{panics} panics that were not ordered")),
    }
    println!("\n{} wrong", wrong.len());
    wrong.iter().take(50).for_each(|wrong| println!("  {wrong}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Handlers that were left by their client are interrupted too, without a job in the store.
fn report_fits(books: &Books, drained: &Drained) -> Result<(), String> {
    let (booked, told) = (books.interrupted(), drained.interrupted());
    match (booked..=booked + books.not_finished()).contains(&told) {
        true => Ok(()),
        false => Err(format!("the drain says {told} interrupted, the books {booked}")),
    }
}

struct Soak {
    address: std::net::SocketAddr,
    deeds: Arc<Deeds>,
    offload: Offload,
    store: Counted,
    clients: u64,
    tokens: Arc<AtomicU64>,
}

impl Soak {
    /// Lets the clients live for so long, and all jobs expire; gives the books.
    async fn run(&self, time: Duration) -> Books {
        let refused = self.refused_to_finish().await;
        let mut books = self.live(time, false).await;
        let refused = self.refused_to_finish().await - refused;
        if books.not_finished() as u64 > refused {
            let dropped = books.not_finished();
            books
                .wrong
                .push(format!("{dropped} handlers not finished, {refused} for want of room"));
        }
        books
    }

    /// Drains the desk in the midst of it.
    async fn drain(&self) -> (Books, Drained) {
        let drain = async {
            sleep(DRAIN_AFTER).await;
            self.offload.drain(DRAIN).await
        };
        tokio::join!(self.live(LAST, true), drain)
    }

    async fn live(&self, time: Duration, drains: bool) -> Books {
        let until = Instant::now() + time;
        let ledger = Arc::new(Ledger::new(Arc::clone(&self.deeds), drains));
        let mut tasks = JoinSet::new();
        for number in 0..self.clients {
            let (address, tokens) = (self.address, Arc::clone(&self.tokens));
            let ledger = Arc::clone(&ledger);
            tasks
                .spawn(async move { client::live(address, number, &tokens, &ledger, until).await });
        }
        tasks.join_all().await;
        let left = self.nothing_left().await;
        let ledger = Arc::into_inner(ledger).expect("the clients are gone");
        let mut books = ledger.close(self.store.take());
        books.wrong.extend(left.err());
        books
    }

    /// Requests to `/finished` that left, and had no place to be finished at.
    async fn refused_to_finish(&self) -> u64 {
        let stats = self.offload.stats().await.expect("the store in memory answers");
        stats.policy("finished").expect("a layer has this name").refused
    }

    /// The last jobs, those that nobody knows among them, run for some seconds at most, and are kept
    /// for some more. Then nothing is left of them, in the store and in what is told of it.
    async fn nothing_left(&self) -> Result<(), String> {
        let deadline = Instant::now() + TTL + Duration::from_secs(10);
        loop {
            let mut now = self.offload.stats().await.map_err(|error| error.to_string())?.total();
            now.refused = 0;
            let kept = (self.store.store.jobs(), self.store.store.bytes());
            if now == Default::default() && kept == (0, 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{kept:?} jobs and bytes are kept for ever: {now:?}"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn option(name: &str, default: u64) -> Result<u64, String> {
    let Ok(value) = std::env::var(name) else { return Ok(default) };
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name}={value}: not a number above zero")),
    }
}

fn silence_ordered_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<String>().is_none_or(|said| said != server::PANIC) {
            PANICS.fetch_add(1, Ordering::Relaxed);
            others(panic);
        }
    }));
}
