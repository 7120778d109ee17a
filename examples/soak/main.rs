//! The promise under load: each 202 is followed to its end, and compared with what its handler did.
//!
//! ```text
//! cargo run --release --example soak      # SECONDS=60 CLIENTS=200
//! ```
//!
//! Server and clients are one process, with real sockets between them. Clients send a mix of requests
//! (`mix.rs`), each with a token of its own; the handlers note what they did (`server.rs`), the
//! clients what they were told (`client.rs`). At the end both are compared (`ledger.rs`): each 202 must
//! have reached an end that fits what its handler did, none lost, none told twice, each result byte
//! by byte what the handler made. When all jobs have expired, memory must be back where it was after
//! a first short run. What is wrong is printed, and the exit code is 1.

mod client;
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
use tower_offload::{MemoryStore, Offload};

use ledger::Ledger;
use server::Deeds;

/// How long jobs are kept. Clients come back within it.
const TTL: Duration = Duration::from_secs(5);

const WARM_UP: Duration = Duration::from_secs(5);

/// How many percent of its start memory may end above it.
const TOLERANCE: usize = 10;

/// Panics that nobody has ordered.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seconds = Duration::from_secs(option("SECONDS", 60)?);
    let clients = option("CLIENTS", 200)?;
    silence_ordered_panics();

    let store = MemoryStore::new(1 << 30);
    let offload = Offload::builder("/jobs")
        .store(store.clone())
        .ttl(TTL)
        .max_outcome_bytes(256 << 10)
        // Now and then there is no room.
        .max_running((clients as usize / 2).max(1))
        .build()?;
    let deeds = Arc::new(Deeds::default());
    let soak = Soak {
        address: server::serve(&offload, Arc::clone(&deeds)).await?,
        deeds,
        store,
        clients,
        tokens: Arc::new(AtomicU64::new(0)),
    };

    println!("{clients} clients warm up for {WARM_UP:?}");
    let mut wrong = soak.run(WARM_UP).await.into_wrong();
    let before = memory::settled().await;
    memory::peak();
    println!("{clients} clients run for {seconds:?}\n");
    let ledger = soak.run(seconds).await;
    print!("{ledger}");
    wrong.extend(ledger.into_wrong());
    let peak = memory::peak();
    let after = memory::settled().await;
    for (when, bytes) in [("before", before), ("at its most", peak), ("after", after)] {
        println!("{:<44}{:>9}", format!("KiB of memory {when}"), bytes / 1024);
    }
    if after > before + before * TOLERANCE / 100 {
        wrong.push(format!("memory has not come back: {before} bytes before, {after} after"));
    }

    match PANICS.load(Ordering::Relaxed) {
        0 => {}
        panics => wrong.push(format!("{panics} panics that were not ordered")),
    }
    println!("\n{} wrong", wrong.len());
    wrong.iter().take(50).for_each(|wrong| println!("  {wrong}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Soak {
    address: std::net::SocketAddr,
    deeds: Arc<Deeds>,
    store: MemoryStore,
    clients: u64,
    tokens: Arc<AtomicU64>,
}

impl Soak {
    /// Lets the clients live for so long, and all jobs expire; gives the books.
    async fn run(&self, time: Duration) -> Ledger {
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for number in 0..self.clients {
            let (address, tokens) = (self.address, Arc::clone(&self.tokens));
            tasks.spawn(async move { client::live(address, number, &tokens, until).await });
        }
        let lives = tasks.join_all().await;
        let expired = self.all_expired().await;
        let mut ledger = Ledger::of(lives, self.deeds.take());
        ledger.wrong.extend(expired.err());
        let twice = std::mem::take(&mut *self.deeds.twice.lock().unwrap());
        if !twice.is_empty() {
            ledger.wrong.push(format!("run twice: the tokens {twice:?}"));
        }
        ledger
    }

    /// The last jobs, those that nobody knows among them, run for some seconds at most.
    async fn all_expired(&self) -> Result<(), String> {
        let deadline = Instant::now() + TTL + Duration::from_secs(10);
        while self.store.jobs() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
        }
        match (self.store.jobs(), self.store.bytes()) {
            (0, 0) => Ok(()),
            (jobs, bytes) => Err(format!("{jobs} jobs and {bytes} bytes are kept for ever")),
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
