//! Redis servers of a test's own: on free ports of loopback, and stopped with it.
#![allow(dead_code, reason = "each test uses some of it")]

pub mod app;
pub mod clock;
pub mod proxy;

use std::{
    ffi::OsString,
    fmt::Debug,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clock::Clock;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server`.
pub struct Server {
    child: Mutex<Child>,
    pub port: u16,
    dir: PathBuf,
    arguments: Vec<String>,
    /// The authority that `redis-cli` trusts, of a server behind TLS.
    authority: Option<PathBuf>,
    clock: Option<Clock>,
}

impl Server {
    /// One that keeps nothing on disk, with these arguments beside.
    pub fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        let port_text = port.to_string();
        Self::on(port, &[&["--port", &port_text], arguments].concat(), None)
    }

    /// The same behind TLS, with the files `authority`, `certificate` and `key` of this folder.
    pub fn start_tls(files: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let file = |name| files.join(name).to_str().unwrap().to_owned();
        let (authority, certificate, key) = (file("authority"), file("certificate"), file("key"));
        let port_text = port.to_string();
        let mut all = vec!["--port", "0", "--tls-port", &port_text, "--tls-auth-clients", "no"];
        all.extend(["--tls-ca-cert-file", &authority, "--tls-cert-file", &certificate]);
        all.extend(["--tls-key-file", &key]);
        all.extend(arguments);
        Self::on(port, &all, Some(files.join("authority")))
    }

    /// One whose wall clock is so many seconds ahead, and can be set.
    pub fn start_with_clock(seconds: i64, arguments: &[&str]) -> Self {
        let (port, dir) = (free_port(), fresh_dir());
        let clock = Clock::new(&dir);
        clock.set(seconds);
        let port_text = port.to_string();
        let arguments = [&["--port", &port_text], arguments].concat();
        Self::in_dir(dir, port, &arguments, None, Some(clock))
    }

    /// Sets the wall clock so many seconds ahead of what it is.
    pub fn set_clock(&self, seconds: i64) {
        self.clock.as_ref().expect("a server that was started with a clock").set(seconds);
    }

    fn on(port: u16, arguments: &[&str], authority: Option<PathBuf>) -> Self {
        Self::in_dir(fresh_dir(), port, arguments, authority, None)
    }

    fn in_dir(
        dir: PathBuf,
        port: u16,
        arguments: &[&str],
        authority: Option<PathBuf>,
        clock: Option<Clock>,
    ) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let child = Mutex::new(spawn(&dir, &arguments, clock.as_ref()));
        let server = Self { child, port, dir, arguments, authority, clock };
        server.answers();
        server
    }

    /// Kills it, and starts it again with what it has on its disk.
    pub fn restart(&self) {
        self.kill();
        let mut child = self.child.lock().unwrap();
        *child = spawn(&self.dir, &self.arguments, self.clock.as_ref());
        drop(child);
        self.answers();
    }

    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/", self.port)
    }

    /// How often this command has been called so far.
    pub fn calls(&self, command: &str) -> usize {
        let (stats, name) =
            (self.cli(&["info", "commandstats"]), format!("cmdstat_{command}:calls="));
        let line = stats.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// What `redis-cli` says to this.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        if let Some(authority) = &self.authority {
            command.arg("--tls").arg("--cacert").arg(authority);
        }
        let output = command
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli: install Debian's package redis-tools");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn used_memory(&self) -> usize {
        number(&self.cli(&["info", "memory"]), "used_memory:")
    }

    pub fn has_a_replica(&self) -> bool {
        self.cli(&["info", "replication"]).contains("state=online")
    }

    /// Ends it, as a machine that fails.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Stops the process as it is, as a machine that hangs.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    fn answers(&self) {
        let begun = Instant::now();
        while self.cli(&["ping"]).trim() != "PONG" {
            assert!(begun.elapsed() < PATIENCE, "the server on port {} is silent", self.port);
        }
    }
}

/// The number after this name in what `INFO` says.
pub fn number<T: FromStr<Err: Debug>>(info: &str, name: &str) -> T {
    let found = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    found.trim().parse().unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn spawn(dir: &Path, arguments: &[String], clock: Option<&Clock>) -> Child {
    let mut command = Command::new(program());
    if let Some(clock) = clock {
        command.env("LD_PRELOAD", &clock.library).env("CLOCK_FILE", &clock.file);
    }
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(dir)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect(
            "redis-server: install Debian's package of this name, or name another in REDIS_SERVER",
        )
}

/// `redis-server`, or what the environment names instead: a Valkey, say.
fn program() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// A cluster of three primaries, which come first, and their replicas.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub fn start() -> Self {
        Self::with_replicas(0)
    }

    /// With so many replicas of each primary.
    pub fn with_replicas(replicas: usize) -> Self {
        let node = |_| {
            let bus = free_port().to_string();
            let mut arguments = vec!["--cluster-enabled", "yes", "--cluster-port", &bus];
            if replicas > 0 {
                // After so many milliseconds a replica takes over.
                arguments.extend(["--cluster-node-timeout", "2000"]);
                arguments.extend(["--repl-diskless-sync-delay", "0"]);
            }
            Server::start(&arguments)
        };
        Self::of((0..3 + 3 * replicas).map(node))
    }

    /// Of these servers, the first three of which are its primaries.
    pub fn of(nodes: impl IntoIterator<Item = Server>) -> Self {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let addresses: Vec<_> =
            nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        let replicas = (nodes.len() / 3 - 1).to_string();
        create.extend(["--cluster-replicas", &replicas, "--cluster-yes"]);
        let said = nodes[0].cli(&create);
        let cluster = Self { nodes };
        let begun = Instant::now();
        while !cluster
            .nodes
            .iter()
            .all(|node| node.cli(&["cluster", "info"]).contains("cluster_state:ok"))
        {
            assert!(begun.elapsed() < PATIENCE, "no cluster: {said}");
        }
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }
}

/// A prefix that no other test, and no other check of one, has.
pub fn fresh_prefix() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn fresh_dir() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("tower-offload-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
