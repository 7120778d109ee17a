//! What the compiler says to whoever gets it wrong: its words lead to the way out.
//!
//! rustc words a message differently from version to version. The whole text is compared on the one
//! that it was taken from; on others, what the text must say. After a change on purpose, or of the
//! version: `TRYBUILD=overwrite cargo test --all-features --test ui`.

use std::{env, fs, path::Path, process::Command};

/// The rustc whose words are in `tests/ui/*.stderr`.
const COMPARED_ON: &str = "rustc 1.95.0 ";

/// Set for a run of this test that has to write what the compiler says of this case.
const CASE: &str = "TOWER_OFFLOAD_UI_CASE";

#[test]
fn a_future_that_cannot_move_leads_to_boxed() {
    if let Some(case) = env::var_os(CASE) {
        trybuild::TestCases::new().compile_fail(case);
        return;
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().unwrap().stdout;
    let said = if String::from_utf8(version).unwrap().starts_with(COMPARED_ON) {
        trybuild::TestCases::new().compile_fail("tests/ui/not_unpin.rs");
        // It is compared when the test ends; what it is compared with must be right too.
        fs::read_to_string("tests/ui/not_unpin.stderr").unwrap()
    } else {
        said_of("tests/ui/not_unpin.rs")
    };
    // `serve(..)`, `route_service(..)`, `oneshot(..)`, `ready()` and `call(..)`.
    let errors: Vec<_> = said.split("\nerror").collect();
    assert_eq!(errors.iter().filter(|error| error.contains(".rs:")).count(), 5, "{said}");
    for error in errors.iter().filter(|error| error.contains(".rs:")) {
        assert!(error.contains("boxed()"), "it does not say how to go on:\n{error}");
        assert!(!error.contains("Box::pin"), "not where it can be mended:\n{error}");
    }
}

/// What this compiler says of a case: a copy of it without known words, for which they are written.
fn said_of(case: &str) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ui");
    fs::create_dir_all(&folder).unwrap();
    let copy = folder.join(Path::new(case).file_name().unwrap());
    let said = copy.with_extension("stderr");
    fs::copy(case, &copy).unwrap();
    let _ = fs::remove_file(&said);
    let run = Command::new(env::current_exe().unwrap())
        .env(CASE, &copy)
        .env("TRYBUILD", "overwrite")
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    fs::read_to_string(said).unwrap()
}
