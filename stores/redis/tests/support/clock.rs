//! A server's wall clock, which a test sets: see `clock.c`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The clock of a server in whose process the library has been put.
pub struct Clock {
    pub library: PathBuf,
    pub file: PathBuf,
}

impl Clock {
    /// One that is right, with its files in this folder.
    pub fn new(dir: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock.c");
        let (library, file) = (dir.join("clock.so"), dir.join("clock"));
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        assert!(compile.status().expect("cc: install a C compiler").success());
        let clock = Self { library, file };
        clock.set(0);
        clock
    }

    /// So many seconds later than it is.
    pub fn set(&self, seconds: i64) {
        // In place: the server has it mapped.
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(false).open(&self.file).unwrap();
        file.write_all(&(seconds * 1_000_000).to_ne_bytes()).unwrap();
    }
}
