//! An example, run as a reader runs it: its own program, on a free port.

#[path = "program.rs"]
mod program;

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use program::program;

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
