//! Whole runs of the simulation: a seed is the same run every time.

use std::process::Command;

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
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/mutants");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("there are mutants") {
        let path = file.expect("a file of the mutants").path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let text = std::fs::read_to_string(&path).expect("a mutant is text");
            let applies = mutant::applies(&text, &texts);
            assert_eq!(applies, Ok(()), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 30, "{count} mutants");
}
