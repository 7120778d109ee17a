//! Whole runs of the simulation: a seed is the same run every time.

use std::{path::PathBuf, process::Command};

use tower_offload_sim::{hush, mutant, run};

/// The first line of a story is its scenario, and so differs between seeds.
#[test]
fn a_seed_replays_exactly_in_the_same_process_and_in_another() {
    hush();
    for seed in [8, 11] {
        let story = run(seed, &None).story;
        assert!(story.len() > 20, "seed {seed} tells nothing");
        assert_eq!(story, run(seed, &None).story, "seed {seed} in the same process");
        let program = env!("CARGO_BIN_EXE_sim");
        let other = Command::new(program).args(["--story", &seed.to_string()]).output();
        let other = other.expect("the simulation's program starts").stdout;
        let other = String::from_utf8(other).expect("a story is text");
        assert_eq!(story.join("\n"), other.trim_end(), "seed {seed} in another process");
        assert_ne!(story, run(seed + 1, &None).story);
    }
}

#[test]
fn every_mutant_changes_a_shipped_script() {
    let texts = tower_offload_redis::simulation::texts();
    let texts: Vec<_> = texts.iter().map(|(_, text)| &**text).collect();
    let mutants = mutants("txt");
    for path in &mutants {
        let text = std::fs::read_to_string(path).expect("a mutant is text");
        let applies = mutant::applies(&text, &texts);
        assert_eq!(applies, Ok(()), "{}", path.display());
    }
    assert!(mutants.len() >= 30, "{} mutants", mutants.len());
}

#[test]
fn every_patch_applies_to_the_shipped_code() {
    let mutants = mutants("patch");
    for path in &mutants {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut git = Command::new("git");
        let checked = git.current_dir(root).args(["apply", "--check"]).arg(path).output();
        let checked = checked.expect("git starts");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{}: {said}", path.display());
    }
    assert!(mutants.len() >= 8, "{} patches", mutants.len());
}

fn mutants(extension: &str) -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/mutants");
    let files = std::fs::read_dir(folder).expect("there are mutants");
    let paths = files.map(|file| file.expect("a file of the mutants").path());
    paths.filter(|path| path.extension().is_some_and(|of| of == extension)).collect()
}
