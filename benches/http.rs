//! Requests over loopback, end to end: an axum app bare, with tower-http's timeout around its router,
//! and with this crate's layer around it, under `wrk` (HTTP/1.1) and `h2load` (HTTP/2).
//!
//! ```text
//! sudo apt-get install wrk nghttp2-client     # Debian; elsewhere `wrk`, `nghttp2`
//! cargo bench -p tower-offload-benches --bench http                  # 15 rounds of each, in some five minutes
//! cargo bench -p tower-offload-benches --bench http -- --rounds 31
//! ```
//!
//! Each app is a process of its own, made from this very program. They take turns, round by round,
//! so that what else goes on in the machine hits them alike, and requests per second are compared
//! within a round. The load generator needs the same cores, so the rate of requests says little
//! of a server; what says most is the processor's time that its process took for a request, as Linux
//! counts it to the nanosecond, and of that the least over all rounds.
//!
//! The handler is pending once, as nearly every one is in production.

use std::{
    env, fs,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
};

use axum::{Router, ServiceExt, extract::Request, routing::get};
use tokio::net::TcpListener;
use tower::Layer;
use tower_offload::{Offload, Policy};
use tower_offload_benches::{
    BUDGET,
    measure::{Results, Table, is_trial, time},
    rival,
};

const CONNECTIONS: usize = 64;

/// The apps, in the order of their turns.
const APPS: [&str; 3] = ["bare", "tower-http timeout", "ours"];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().collect();
    let after = |name| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let ended = match after("--serve") {
        Some(app) => serve(app),
        None => {
            let rounds = after("--rounds").and_then(|rounds| rounds.parse().ok());
            let default = if is_trial() { (1, 1) } else { (15, 3) };
            measure(rounds.unwrap_or(default.0), default.1)
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

// ------------------------------------------------------------------------------------- the servers

/// Serves one of the apps, and tells its port.
fn serve(app: &str) -> io::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let pending_once = || async {
            tokio::task::yield_now().await;
            "ok"
        };
        let router = Router::new().route("/", get(pending_once));
        let offload = Offload::new("/jobs").layer(Policy::after(BUDGET));
        match app {
            "bare" => axum::serve(listener, router).await,
            "ours" => axum::serve(listener, made(offload.layer(router))).await,
            _ => axum::serve(listener, made(rival::http_timeout().layer(router))).await,
        }
    })
}

/// What makes a service for each connection, as a layer around a router is served.
fn made<S>(service: S) -> axum::routing::IntoMakeService<S>
where
    S: tower::Service<Request>,
{
    ServiceExt::<Request>::into_make_service(service)
}

/// An app that runs, until this is dropped.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(app: &str) -> io::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args(["--serve", app])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let port = line.trim().parse().map_err(|_| io::Error::other("a server did not start"))?;
        Ok(Self { process, port })
    }

    /// The time on a processor of all its threads so far, in nanoseconds
    /// (Linux, Documentation/scheduler/sched-stats.rst).
    fn processor_time(&self) -> io::Result<u64> {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let times = fs::read_to_string(thread?.path().join("schedstat"))?;
            let time = times.split(' ').next().and_then(|time| time.parse::<u64>().ok());
            sum += time.ok_or_else(|| io::Error::other("this system does not count by threads"))?;
        }
        Ok(sum)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ------------------------------------------------------------------------------------- the load

/// What a load generator says of a round.
struct Round {
    per_second: f64,
    requests: f64,
    /// Nanoseconds.
    p50: f64,
    p99: f64,
    /// Nanoseconds of the server's process for a request.
    processor: f64,
}

#[derive(Clone, Copy)]
enum Load {
    Wrk,
    H2load,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk, HTTP/1.1",
            Self::H2load => "h2load, HTTP/2",
        }
    }

    fn run(self, server: &Server, seconds: u64) -> io::Result<Round> {
        let before = server.processor_time()?;
        let mut round = match self {
            Self::Wrk => wrk(server.port, seconds),
            Self::H2load => h2load(server.port, seconds),
        }?;
        round.processor = (server.processor_time()? - before) as f64 / round.requests;
        Ok(round)
    }
}

fn wrk(port: u16, seconds: u64) -> io::Result<Round> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency"]).arg(format!("-c{CONNECTIONS}")).arg(format!("-d{seconds}s"));
    let said = output(command.arg(format!("http://127.0.0.1:{port}/")))?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        return Err(io::Error::other(format!("wrk was not answered as it should be:\n{said}")));
    }
    let word = |line: &str, at| {
        let found = said.lines().find(|found| found.contains(line));
        found.and_then(|line| line.split_whitespace().nth(at)).ok_or_else(|| unread("wrk", &said))
    };
    let number = |text: &str| text.parse().map_err(|_| unread("wrk", &said));
    let nanoseconds = |text: &str| {
        let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        let factor = match unit {
            "us" => 1e3,
            "ms" => 1e6,
            _ => 1e9,
        };
        number(text.trim_end_matches(unit)).map(|number: f64| number * factor)
    };
    Ok(Round {
        per_second: number(word("Requests/sec:", 1)?)?,
        requests: number(word("requests in", 0)?)?,
        p50: nanoseconds(word("50%", 1)?)?,
        p99: nanoseconds(word("99%", 1)?)?,
        processor: 0.0,
    })
}

fn h2load(port: u16, seconds: u64) -> io::Result<Round> {
    let log = env::temp_dir().join(format!("tower-offload-h2load-{}", std::process::id()));
    let mut command = Command::new("h2load");
    command.args(["-t1", "-m1"]).arg(format!("-c{CONNECTIONS}")).arg(format!("-D{seconds}"));
    command.arg(format!("--log-file={}", log.display()));
    let said = output(command.arg(format!("http://127.0.0.1:{port}/")))?;
    let times = times_of(&log);
    let _ = fs::remove_file(&log);
    let mut times = times?;
    times.sort_unstable();
    let quantile = |share: f64| {
        let at = (share * times.len() as f64) as usize;
        times.get(at).map(|time| *time as f64 * 1e3).ok_or_else(|| unread("h2load", &said))
    };
    Ok(Round {
        per_second: times.len() as f64 / seconds as f64,
        requests: times.len() as f64,
        p50: quantile(0.5)?,
        p99: quantile(0.99)?,
        processor: 0.0,
    })
}

/// The microseconds that each request took: a line for each, with its start, status and time.
fn times_of(log: &PathBuf) -> io::Result<Vec<u64>> {
    let mut times = vec![];
    for line in BufReader::new(fs::File::open(log)?).lines() {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("200") {
            return Err(io::Error::other(format!(
                "h2load was not answered as it should be: {line}"
            )));
        }
        times.extend(words.next().and_then(|time| time.parse::<u64>().ok()));
    }
    Ok(times)
}

fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(io::Error::other(format!("{command:?} failed:\n{said}"))),
    }
}

fn unread(program: &str, said: &str) -> io::Error {
    io::Error::other(format!("{program} says something that is not understood:\n{said}"))
}

fn is_there(program: &str) -> bool {
    let found = |folder: PathBuf| folder.join(program).is_file();
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(found))
}

// ------------------------------------------------------------------------------------- the tables

fn measure(rounds: usize, seconds: u64) -> io::Result<()> {
    let loads = [(Load::Wrk, "wrk", "wrk"), (Load::H2load, "h2load", "nghttp2-client")];
    let mut results = Results::default();
    for (load, program, package) in loads {
        if is_there(program) {
            compare(load, rounds, seconds, &mut results)?;
        } else if is_trial() {
            println!("{program} is not installed (Debian: apt-get install {package}); left out");
        } else {
            return Err(io::Error::other(format!(
                "{program} is not installed; on Debian: apt-get install {package}"
            )));
        }
    }
    results.write("http.tsv", "load\tapp\tof\tnumber\tunit")
}

/// Rounds of all apps, in turn.
fn compare(load: Load, rounds: usize, seconds: u64, results: &mut Results) -> io::Result<()> {
    let servers = [Server::start(APPS[0])?, Server::start(APPS[1])?, Server::start(APPS[2])?];
    for server in &servers {
        load.run(server, 1)?;
    }
    let mut done: [Vec<Round>; 3] = Default::default();
    for round in 0..rounds {
        // Who is first in one round is last in another.
        for turn in 0..servers.len() {
            let app = (round + turn) % servers.len();
            done[app].push(load.run(&servers[app], seconds)?);
        }
    }
    let mut table = Table::new(&[
        "app",
        "requests/s",
        "of bare",
        "middle half",
        "p50",
        "p99",
        "CPU/request",
        "of bare, least",
    ]);
    let least =
        |rounds: &[Round]| rounds.iter().map(|round| round.processor).fold(f64::INFINITY, f64::min);
    for (app, rounds) in APPS.iter().zip(&done) {
        let ratios =
            rounds.iter().zip(&done[0]).map(|(one, bare)| one.per_second / bare.per_second);
        let ratios: Vec<_> = ratios.collect();
        let of = |number: fn(&Round) -> f64| quantile(rounds.iter().map(number).collect(), 0.5);
        let (per_second, p50, p99) = (of(|r| r.per_second), of(|r| r.p50), of(|r| r.p99));
        let quarters = [0.25, 0.5, 0.75].map(|share| quantile(ratios.clone(), share));
        let processor = least(rounds);
        let numbers = [
            ("requests per second", per_second, "1/s"),
            ("p50", p50, "ns"),
            ("p99", p99, "ns"),
            ("least CPU per request", processor, "ns"),
        ];
        for (of, number, unit) in numbers {
            results.add(&[load.name(), app, of], number, unit);
        }
        table.row([
            app.to_string(),
            format!("{per_second:.0}"),
            format!("{:.3}", quarters[1]),
            format!("{:.3} to {:.3}", quarters[0], quarters[2]),
            time(p50),
            time(p99),
            time(processor),
            format!("{:.3}", processor / least(&done[0])),
        ]);
    }
    table.print(&format!(
        "{}, {CONNECTIONS} connections, {rounds} rounds of {seconds} s in turn; medians, and the least \
         CPU time",
        load.name(),
    ));
    Ok(())
}

fn quantile(mut numbers: Vec<f64>, share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let at = (share * numbers.len() as f64) as usize;
    numbers.get(at).or(numbers.last()).copied().unwrap_or(f64::NAN)
}
