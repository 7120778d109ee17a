//! Where an example's program is, for the tests that run it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// The example's program. Cargo and nextest build it with the tests, unless they are told to build
/// one test file only: then it is built here.
pub fn program(name: &str) -> PathBuf {
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
