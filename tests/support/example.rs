//! An example, run as a reader runs it: its own program, on a free port.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::SystemTime,
};

/// The program, running; killed when this is dropped.
pub struct Example {
    process: Child,
    output: BufReader<ChildStdout>,
    pub url: String,
}

impl Example {
    pub fn start(name: &str) -> Self {
        let mut process = Command::new(program(name))
            .env("ADDR", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut this = Self { process, output, url: String::new() };
        let line = this.line();
        this.url = line.strip_prefix("listening on ").expect(&line).to_owned();
        this
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "its output has ended");
        line.trim_end().to_owned()
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let kill = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The example's program. Cargo and nextest build it with the tests, unless they are told to build
/// one test file only: then it is built here.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = profile.join(format!("examples/{name}{}", std::env::consts::EXE_SUFFIX));
    if !is_fresh(&program) {
        let profile_name = profile.file_name().and_then(|name| name.to_str()).expect("a profile");
        let profile_name = if profile_name == "debug" { "dev" } else { profile_name };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", name, "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .args(["--profile", profile_name, "--target-dir"])
            .arg(profile.parent().expect("target"))
            .status()
            .unwrap();
        assert!(built.success(), "cannot build the example");
    }
    program
}

/// Whether a program is there, and newer than each source that cargo has noted beside it.
fn is_fresh(program: &Path) -> bool {
    let changed = |path: &Path| -> std::io::Result<SystemTime> { path.metadata()?.modified() };
    let (Ok(built), Ok(noted)) =
        (changed(program), std::fs::read_to_string(program.with_extension("d")))
    else {
        return false;
    };
    let (_, sources) = noted.split_once(": ").unwrap_or_default();
    sources.split_whitespace().all(|source| changed(Path::new(source)).is_ok_and(|at| at <= built))
}
