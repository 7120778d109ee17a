//! The store's scripts as its crate puts them together, and which of their lines have run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What the scripts are given by `TIME` is under this key instead, so that both servers have it.
pub const CLOCK: &str = "the clock of the test";

/// The scripts by name, in the form in which they are sent.
pub struct Scripts {
    pub texts: BTreeMap<String, String>,
    common: Vec<String>,
    files: BTreeMap<String, Vec<String>>,
}

impl Scripts {
    pub fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../stores/redis/src/lua");
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(path).unwrap());
        }
        let clock = format!("redis.call('LRANGE', '{CLOCK}', 0, 1)");
        let common = files.remove("common").unwrap();
        assert_eq!(common.matches("redis.call('TIME')").count(), 1);
        let common = common.replace("redis.call('TIME')", &clock);
        let mut texts = BTreeMap::new();
        for (name, code) in &files {
            assert!(!code.contains("'TIME'"), "{name}: only common.lua asks for the time");
            let mut add = |name: &str, first: &str, rest: &str| {
                texts.insert(name.to_owned(), format!("{first}\n{common}\n{rest}"));
            };
            match code.split_once('\n') {
                Some((first, rest)) if first.starts_with("#!") => add(name, first, rest),
                // It is sent with either first line (scripts.rs).
                _ => {
                    add(name, "#!lua flags=allow-oom", code);
                    add("bring", "#!lua", code);
                }
            }
        }
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let files = files.iter().map(|(name, text)| (name.clone(), lines(text))).collect();
        Self { texts, common: lines(&common), files }
    }

    /// Returns the lines that should run and have not, and how many should: of the lines that ran, by
    /// the name of the script.
    pub fn missed(&self, ran: &BTreeMap<String, BTreeSet<usize>>) -> (Vec<String>, usize) {
        let mut hit = BTreeSet::new();
        for (script, lines) in ran {
            let file = if script == "bring" { "change" } else { script };
            // The first line of a file stands before what is common, if it has one of its own.
            let shift = usize::from(self.files[file][0].starts_with("#!"));
            for line in lines {
                // The first line is 1, and after it and what is common there is an empty one.
                let rest = self.common.len() + 2;
                hit.insert(match *line > rest {
                    true => (file.to_owned(), line - rest + shift),
                    false => ("common".to_owned(), line - 1),
                });
            }
        }
        let common = [("common".to_owned(), &self.common)];
        let files = self.files.iter().map(|(name, text)| (name.clone(), text)).chain(common);
        let (mut missed, mut all) = (Vec::new(), 0);
        for (name, text) in files {
            for (line, code) in (1..).zip(text).filter(|(_, code)| runs(code)) {
                all += 1;
                if !hit.contains(&(name.clone(), line)) {
                    missed.push(format!("{name}.lua:{line}: {}", code.trim()));
                }
            }
        }
        (missed, all)
    }
}

/// Whether Lua tells a line as run: those that only open, close or name something are none.
fn runs(code: &str) -> bool {
    let code = code.trim();
    let is_frame =
        matches!(code, "" | "end" | "else" | "end)" | "}" | "})" | "while true do" | "repeat");
    let is_part = code.starts_with("--") || code.starts_with("#!") || code.contains("function ");
    !is_frame && !is_part && !code.ends_with([',', '='])
}
