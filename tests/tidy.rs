//! The rules of this repository that no compiler knows, each held as a test: which room may know
//! which, how long a file may be, that each opens with a caption, that no word is left in that has
//! no place here, and that every trap that was found has its regression test.
//!
//! A room is a top-level module: `src/R.rs`, or everything under `src/R/`. Only std is used, and
//! sources are read as text: comments, literals and unit tests are taken out first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The arrows: what each room may know, itself aside. `lib.rs` is no room and may know all.
const ROOMS: &[(&str, &str)] = &[
    ("caught", ""),
    ("error", ""),
    ("system", ""),
    ("body", "error"),
    ("deadlines", "caught"),
    ("job", "error system"),
    ("wire", "error job body"),
    ("store", "caught error system job body"),
    ("policy", "error job wire"),
    ("run", "caught error system body deadlines job wire store policy"),
    ("offload", "caught error system body deadlines job wire store run policy"),
    ("status", "caught error system body job wire store run policy"),
    ("follow", "error wire"),
    ("desk", "error system body deadlines job wire store run policy offload status follow"),
    ("fuzzing", "error job wire"),
];

/// The most lines that a file under `src/` may have, its unit tests not counted.
const LINES: usize = 400;

/// What runs differently each time, or asks the operating system: the tokens, the files under `src/` that
/// may have them with the reason, and what others use.
const NONDETERMINISM: &[(&[&str], &[&str], &str)] = &[
    (
        &["SystemTime", "::", "now"],
        &["src/system/mod.rs"],
        "only src/system asks for the time: use `system::now`, or in stores `tower_offload::store::now`",
    ),
    (
        &["getrandom"],
        &["src/system/mod.rs"],
        "only src/system asks for random bytes: use `system::fill`, or in stores `JobId::random`",
    ),
    (
        &["std", "::", "time", "::", "Instant"],
        &[],
        "tests can't pause the standard library's clock: use `tokio::time::Instant`",
    ),
    (
        &["HashMap"],
        // By a hash that is the same each time, and never iterated.
        &["src/run/ledger.rs"],
        "iteration order may decide what happens and differs each time: use a `BTreeMap`",
    ),
    (&["HashSet"], &[], "as of `HashMap`: use a `BTreeSet`"),
    (
        &["DashMap"],
        // Never iterated, but to shrink.
        &["src/store/memory.rs"],
        "as of `HashMap`: use a `BTreeMap`",
    ),
    (
        &["select", "!"],
        &[],
        "tokio's `select!` begins with a random branch: poll in a stated order",
    ),
    (
        &["watch", "::", "channel"],
        &[],
        "wakes its receivers in a random order (tokio, src/sync/watch.rs): use a `Notify`",
    ),
    (&["thread", "::", "spawn"], &[], "a paused clock does not wait for threads: use a task"),
    (
        &["spawn_blocking"],
        // Shrinks tables, which decides nothing and wakes no task.
        &["src/store/expiry.rs"],
        "a paused clock stands still meanwhile, and other threads ask the operating system's clock",
    ),
];

/// Section and number of every trap that wants a test named `trap_N_M…`.
const TRAPS: &[(u8, &[u8])] = &[
    (1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    (2, &[1, 2, 3, 4, 5]),
    (3, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    (4, &[1, 2, 3, 4, 5]),
    (5, &[1, 2, 3]),
    (6, &[1, 2]),
    (7, &[1]),
    (8, &[1, 2]),
    (9, &[1, 2, 3]),
];

/// Words with no place in the repository; put together here so that this file has none of them.
fn forbidden() -> Vec<String> {
    [["crates", ".io"], ["issue", " #"], ["/wo", "rk/"], ["session", " of"]]
        .iter()
        .map(|halves| halves.concat())
        .collect()
}

// ------------------------------------------------------------------------------------ the rules

#[test]
fn rooms_know_only_what_their_arrows_allow() {
    let exports = exports_of(&read("src/lib.rs"));
    let mut wrong = Vec::new();
    let mut found = Graph::new();
    for (path, source) in sources("src") {
        if path == "src/lib.rs" || is_unit_tests(&path) {
            continue;
        }
        let room = room_of(&path);
        for (line, name) in names_in(&path, &source) {
            if let Some(reason) = objection(room, name.as_str(), &exports) {
                wrong.push(format!("{path}:{line}: {reason}"));
            }
            if name != room {
                found.entry(room.to_owned()).or_default().insert(name);
            }
        }
        if arrows(room).is_none() {
            wrong.push(format!("{path}: `{room}` is no room of the table in tests/tidy.rs"));
        }
    }
    if let Some(circle) = circle_in(&found) {
        wrong.push(format!("rooms know each other in a circle: {}", circle.join(" -> ")));
    }
    none(&wrong);
}

#[test]
fn the_table_of_rooms_keeps_its_own_rules() {
    let known = |known: &str| known.split_whitespace().map(str::to_owned).collect();
    let table: Graph = ROOMS.iter().map(|(room, all)| ((*room).to_owned(), known(all))).collect();
    assert_eq!(circle_in(&table), None);
    let apart = ["offload", "status", "follow"];
    for room in apart {
        assert!(apart.iter().all(|other| !table[room].contains(*other)), "{room}");
    }
}

/// The app's subscriber may panic, and so may the text of an error: neither may end a task, nor panic in a
/// drop.
#[test]
fn events_are_logged_by_caught_log() {
    let events =
        ["error", "warn", "info", "debug", "trace"].map(|level| format!("tracing::{level}!"));
    let mut wrong = Vec::new();
    for (path, source) in ["src", "stores/redis/src"].into_iter().flat_map(sources) {
        if is_unit_tests(&path) {
            continue;
        }
        let lines: Vec<_> = source.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let is_event = events.iter().any(|event| line.contains(event.as_str()));
            let before = &lines[at.saturating_sub(4)..=at];
            if is_event && !before.iter().any(|line| line.contains("log(")) {
                wrong.push(format!("{path}:{}: an event outside of `caught::log`", at + 1));
            }
        }
    }
    none(&wrong);
}

#[test]
fn nothing_but_the_listed_files_is_nondeterministic() {
    let mut wrong = Vec::new();
    for (path, source) in ["src", "stores/redis/src"].into_iter().flat_map(sources) {
        if !is_unit_tests(&path) {
            let found = nondeterminism_in(&path, &source);
            wrong.extend(found.into_iter().map(|(line, why)| format!("{path}:{line}: {why}")));
        }
    }
    none(&wrong);
}

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    for (path, source) in ["src", "sim/src", "stores/redis/src"].into_iter().flat_map(sources) {
        let lines = source.lines().count() - without_unit_tests(&code_only(&source)).1;
        if lines > LINES && !is_unit_tests(&path) {
            wrong.push(format!("{path}: {lines} lines without its unit tests, {LINES} at most"));
        }
    }
    none(&wrong);
}

#[test]
fn every_source_opens_with_a_caption() {
    let all =
        ["src", "tests", "examples", "benches", "sim", "stores"].into_iter().flat_map(sources);
    let wrong: Vec<_> = all
        .filter(|(_, source)| !opens_with_a_caption(source))
        .map(|(path, _)| {
            format!("{path}: its first line is to say what it is, after `//!` or `//`")
        })
        .collect();
    none(&wrong);
}

#[test]
fn no_file_holds_a_forbidden_word() {
    let folders = [
        "src", "tests", "examples", "benches", "scripts", "sim", "stores", "fuzz", ".ci",
        ".config", ".github",
    ];
    let mut files: Vec<_> = folders.into_iter().flat_map(files_under).collect();
    files.extend(
        entries(".").into_iter().filter(|name| name.ends_with(".md") || name.ends_with(".toml")),
    );
    let mut wrong = Vec::new();
    for path in files {
        // Not text, not ours to judge.
        let Ok(text) = fs::read_to_string(full(&path)) else {
            continue;
        };
        for (line, word) in forbidden_in(&text) {
            wrong.push(format!("{path}:{line}: holds {word:?}"));
        }
    }
    none(&wrong);
}

#[test]
fn every_trap_has_its_regression_test() {
    let functions: Vec<_> = ["src", "tests"]
        .into_iter()
        .flat_map(sources)
        .flat_map(|(_, source)| functions_in(&source))
        .collect();
    let mut wrong = Vec::new();
    for (section, numbers) in TRAPS {
        for number in *numbers {
            let wanted = format!("trap_{section}_{number}");
            if !functions.iter().any(|name| names_trap(name, &wanted)) {
                wrong.push(format!("trap {section}.{number}: no function named `{wanted}…`"));
            }
        }
    }
    none(&wrong);
}

// ------------------------------------------------------------------------------- what they ask

type Graph = BTreeMap<String, BTreeSet<String>>;

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn arrows(room: &str) -> Option<&'static str> {
    let (_, known) = ROOMS.iter().find(|(name, _)| *name == room)?;
    Some(known)
}

/// Why code in `room` may not say `crate::name`; `None` if it may.
fn objection(room: &str, name: &str, exports: &BTreeMap<String, String>) -> Option<String> {
    if name == room
        || arrows(room).is_some_and(|known| known.split_whitespace().any(|known| known == name))
    {
        return None;
    }
    Some(match (arrows(name), exports.get(name)) {
        (Some(_), _) => format!("`{room}` may not know `{name}`"),
        (None, Some(home)) => format!(
            "`{room}` names `crate::{name}`, a re-export of lib.rs: say the room, `crate::{home}::{name}`"
        ),
        (None, None) => format!("`{room}` names `crate::{name}`, which is no room: say the room"),
    })
}

fn circle_in(graph: &Graph) -> Option<Vec<String>> {
    fn walk<'a>(graph: &'a Graph, room: &'a str, path: &mut Vec<&'a str>) -> bool {
        let again = path.contains(&room);
        path.push(room);
        let known = graph.get(room).into_iter().flatten();
        if again || known.into_iter().any(|next| walk(graph, next, path)) {
            return true;
        }
        path.pop();
        false
    }
    graph.keys().find_map(|room| {
        let mut path = Vec::new();
        walk(graph, room, &mut path).then(|| path.iter().map(|name| (*name).to_owned()).collect())
    })
}

/// The lines, outside of unit tests, of what [`NONDETERMINISM`] does not allow in this file.
fn nondeterminism_in(path: &str, source: &str) -> Vec<(usize, &'static str)> {
    let (code, _) = without_unit_tests(&code_only(source));
    let all = tokens(&code);
    let mut found = Vec::new();
    for (wanted, allowed, why) in NONDETERMINISM {
        if !allowed.contains(&path) {
            let here = all.windows(wanted.len());
            let here = here.filter(|next| next.iter().map(|(_, token)| token).eq(wanted.iter()));
            found.extend(here.map(|next| (next[0].0, *why)));
        }
    }
    found
}

fn opens_with_a_caption(source: &str) -> bool {
    let first = source.lines().next().unwrap_or_default();
    let said = first.strip_prefix("//!").or_else(|| first.strip_prefix("//"));
    said.is_some_and(|said| !said.starts_with('/') && said.contains(char::is_alphanumeric))
}

fn forbidden_in(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        let words = forbidden().into_iter().filter(|word| line.contains(word));
        found.extend(words.map(|word| (index + 1, word)));
    }
    found
}

/// Whether a function's name holds `wanted`, with no further digit after it.
fn names_trap(name: &str, wanted: &str) -> bool {
    name.split_once(wanted)
        .is_some_and(|(_, rest)| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

// ---------------------------------------------------------------------------- reading the source

/// The source with comments and literals blanked out; every line keeps its number.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let word = chars[at..].iter().take_while(|next| is_word(**next)).count();
        code.extend(&chars[at..at + word]);
        let raw = ["r", "br", "cr"]
            .iter()
            .any(|prefix| word > 0 && chars[at..at + word].iter().copied().eq(prefix.chars()));
        at += word;
        let skipped = blank_at(&chars[at..], raw);
        let blanks = chars[at..at + skipped].iter();
        code.extend(blanks.map(|next| if *next == '\n' { '\n' } else { ' ' }));
        at += skipped;
        if word + skipped == 0 {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

fn is_word(next: char) -> bool {
    next.is_alphanumeric() || next == '_'
}

/// How long the comment or literal is that `rest` begins with; 0 if it begins with none.
fn blank_at(rest: &[char], raw: bool) -> usize {
    let hashes = rest.iter().take_while(|next| **next == '#').count();
    match rest {
        _ if raw && rest.get(hashes) == Some(&'"') => {
            let end: Vec<char> = format!("\"{}", "#".repeat(hashes)).chars().collect();
            let body = &rest[hashes + 1..];
            let closed = body.windows(end.len()).position(|next| next == end);
            closed.map_or(rest.len(), |length| hashes + 1 + length + end.len())
        }
        ['/', '/', ..] => {
            let end = rest.iter().position(|next| *next == '\n');
            end.unwrap_or(rest.len())
        }
        ['/', '*', ..] => {
            let (mut depth, mut at) = (0, 0);
            while at < rest.len() {
                match rest[at..] {
                    ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
                    ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
                    _ => at += 1,
                }
                if depth == 0 {
                    break;
                }
            }
            at
        }
        ['"', ..] | ['\'', '\\', ..] => {
            let mut at = 1;
            while at < rest.len() && rest[at] != rest[0] {
                at += if rest[at] == '\\' { 2 } else { 1 };
            }
            rest.len().min(at + 1)
        }
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

/// Code with each `#[cfg(test)] mod … { … }` blanked out, and how many lines those have.
fn without_unit_tests(code: &str) -> (String, usize) {
    let (mut kept, mut removed) = (String::with_capacity(code.len()), 0);
    let lines: Vec<&str> = code.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let length = unit_tests_at(&lines[at..]);
        if length == 0 {
            kept.push_str(lines[at]);
        }
        kept.push_str(&"\n".repeat(length.max(1)));
        removed += length;
        at += length.max(1);
    }
    (kept, removed)
}

/// How many lines the module of unit tests has that starts at the first line; 0 if none does.
fn unit_tests_at(lines: &[&str]) -> usize {
    let first = lines[0].trim();
    if first != "#[cfg(test)]" && !first.starts_with("#[cfg(all(test,") {
        return 0;
    }
    let attributes = lines.iter().take_while(|line| line.trim().starts_with("#[")).count();
    let module = lines.get(attributes).map_or("", |line| line.trim());
    if !module.starts_with("mod ") || !module.contains('{') {
        return 0;
    }
    let mut depth = 0;
    for (index, line) in lines.iter().enumerate().skip(attributes) {
        depth += line.matches('{').count();
        depth = depth.saturating_sub(line.matches('}').count());
        if depth == 0 {
            return index + 1;
        }
    }
    lines.len()
}

/// Words, `::` and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if is_word(first) => rest.find(|next| !is_word(next)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            let (token, after) = rest.split_at(length);
            found.push((index + 1, token));
            rest = after.trim_start();
        }
    }
    found
}

/// What a file names at the root of the crate, outside its unit tests: each first name after
/// `crate::`, or after as many `super::` as lead there.
fn names_in(path: &str, source: &str) -> Vec<(usize, String)> {
    let (code, _) = without_unit_tests(&code_only(source));
    let all = tokens(&code);
    let token = |at: usize| all.get(at).map_or("", |(_, token)| *token);
    let mut found = Vec::new();
    let (mut depth, mut modules) = (0_usize, Vec::new());
    let mut at = 0;
    while at < all.len() {
        let start = at;
        let mut at_root = false;
        match token(at) {
            "{" => {
                depth += 1;
                if at >= 2 && token(at - 2) == "mod" {
                    modules.push(depth);
                }
            }
            "}" => {
                modules.retain(|module| *module != depth);
                depth = depth.saturating_sub(1);
            }
            "crate" if token(at + 1) == "as" => at_root = true,
            "crate" if token(at + 1) == "::" => (at_root, at) = (true, at + 2),
            "super" => {
                let mut steps = 0;
                while token(at) == "super" && token(at + 1) == "::" {
                    (steps, at) = (steps + 1, at + 2);
                }
                at_root = steps == modules_deep(path) + modules.len();
            }
            _ => {}
        }
        if at_root {
            let names = first_names(&all[at..]);
            found.extend(names.into_iter().map(|name| (all[start].0, name)));
        }
        // A group is walked through again, for the braces.
        at = at.max(start + 1);
    }
    found
}

/// The first name of a path, or of each path in the group that stands there.
fn first_names(tokens: &[(usize, &str)]) -> Vec<String> {
    let (mut found, mut depth, mut wanted) = (Vec::new(), 0_usize, true);
    for (_, token) in tokens {
        match *token {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            "," if depth == 1 => wanted = true,
            name if wanted => {
                found.push(name.to_owned());
                wanted = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// What lib.rs re-exports from each room, by the name of the thing.
fn exports_of(lib: &str) -> BTreeMap<String, String> {
    let code = code_only(lib);
    let mut exports = BTreeMap::new();
    for statement in tokens(&code).split(|(_, token)| *token == ";") {
        let words = statement.iter().map(|(_, token)| *token);
        let mut words = words.skip_while(|token| *token != "use").skip(1);
        let Some(room) = words.find(|token| !["crate", "self", "::"].contains(token)) else {
            continue;
        };
        for name in words.filter(|token| token.starts_with(is_word)) {
            exports.insert(name.to_owned(), room.to_owned());
        }
    }
    exports
}

fn functions_in(source: &str) -> Vec<String> {
    let code = code_only(source);
    let all = tokens(&code);
    let pairs = all.windows(2).filter(|pair| pair[0].1 == "fn");
    pairs.map(|pair| pair[1].1.to_owned()).collect()
}

/// `offload` for `src/offload.rs` and for everything under `src/offload/`.
fn room_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let first = inside.split('/').next().unwrap_or(inside);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// How many `super::` lead from a file's own module to the crate's root.
fn modules_deep(path: &str) -> usize {
    path.matches('/').count() - usize::from(path.ends_with("/mod.rs"))
}

/// A file of unit tests, which the module above it declares: `src/run/tests.rs`.
fn is_unit_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

// ----------------------------------------------------------------------------- reading the folder

fn full(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(full(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names in a folder, in order; none where there is no such folder, as in the package.
fn entries(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(full(folder)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn files_under(folder: &str) -> Vec<String> {
    let built = |name: &String| name == "target" || name == "Cargo.lock";
    let mut files = Vec::new();
    for name in entries(folder).into_iter().filter(|name| !built(name)) {
        let path = format!("{folder}/{name}");
        if full(&path).is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let files = files_under(folder).into_iter().filter(|path| path.ends_with(".rs"));
    files.map(|path| (path.clone(), read(&path))).collect()
}

// --------------------------------------------------------------- that the rules can be broken

/// What `names_in` finds, less the lines.
fn names(path: &str, source: &str) -> Vec<String> {
    names_in(path, source).into_iter().map(|(_, name)| name).collect()
}

#[test]
fn a_forbidden_import_is_caught() {
    let exports =
        exports_of("mod policy;\npub use policy::{Policies, Policy};\npub use desk::Offload;");
    let source = "use crate::status::Links;\nfn f() { crate::Policy::never(); }";
    let found = names_in("src/offload/mod.rs", source);
    assert_eq!(found, [(1, "status".to_owned()), (2, "Policy".to_owned())]);
    let told: Vec<_> =
        found.iter().filter_map(|(_, name)| objection("offload", name, &exports)).collect();
    assert_eq!(told[0], "`offload` may not know `status`");
    assert!(told[1].contains("`crate::policy::Policy`"), "{}", told[1]);
    assert!(objection("policy", "run", &exports).is_some());
    assert!(objection("run", "policy", &exports).is_none());
    assert!(objection("run", "run", &exports).is_none());
    assert!(objection("run", "Unheard", &exports).is_some());
    assert!(objection("unheard", "error", &exports).is_some());
    assert!(objection("error", "*", &exports).is_some());
}

#[test]
fn nondeterminism_is_found_outside_of_the_allowed_files() {
    let source = "use std::time::SystemTime;\nfn f() { SystemTime::now(); getrandom::fill(x); }\n\
                  fn g() { tokio::select! {} }\n\
                  #[cfg(test)]\nmod tests {\n    fn f() { SystemTime::now(); }\n}\n\
                  struct A(HashMap<u8, u8>);";
    let lines = |path| -> Vec<usize> {
        nondeterminism_in(path, source).into_iter().map(|(line, _)| line).collect()
    };
    assert_eq!(lines("src/job/id.rs"), [2, 2, 8, 3]);
    assert_eq!(lines("src/system/mod.rs"), [8, 3]);
    assert_eq!(lines("src/run/ledger.rs"), [2, 2, 3]);
}

#[test]
fn groups_and_visibilities_are_read() {
    let source = "pub(crate) use crate::{\n    job::{Job, JobId},\n    wire as w, error,\n};\n\
                  pub(in crate::store) struct A(pub(crate) u8);";
    assert_eq!(names("src/x.rs", source), ["job", "wire", "error", "store"]);
    assert_eq!(names("src/x.rs", "use crate::*; use crate as all;"), ["*", "crate"]);
    assert_eq!(names("src/x.rs", "use crate::{self, run::{self}};"), ["self", "run"]);
    assert_eq!(names("src/x.rs", "macro_rules! m { () => { $crate::run::f() } }"), ["run"]);
}

#[test]
fn super_is_followed_to_the_root() {
    assert_eq!(names("src/wire.rs", "use super::store::Store;"), ["store"]);
    assert_eq!(names("src/run/mod.rs", "use super::{store, status};"), ["store", "status"]);
    assert_eq!(names("src/run/queue.rs", "use super::Desk;"), [""; 0]);
    assert_eq!(names("src/run/queue.rs", "use self::super::super::desk;"), ["desk"]);
    let inline =
        "mod imp { use super::Job; fn f() { if x {} super::super::run::g() } } use super::desk;";
    assert_eq!(names("src/job.rs", inline), ["run", "desk"]);
    assert_eq!(names("src/job.rs", "pub(super) fn f() {}"), [""; 0]);
}

#[test]
fn comments_literals_and_unit_tests_are_not_code() {
    let source = "//! crate::run\n/// [`x`](crate::run)\n/* /* */ crate::run */\n\
                  const A: &str = \"crate::run \\\" crate::run\";\n\
                  const B: &str = r#\"crate::run \" crate::run\"#;\n\
                  const C: &[u8] = br\"crate::run \\\";\n\
                  const D: [char; 2] = ['\"', '\\''];\n\
                  fn f<'a>(r#type: &'a str) -> &'a str { crate::wire::f(r#type) }\n\
                  #[cfg(test)]\nmod tests {\n    use crate::run;\n    const E: &str = \"}\";\n}\n\
                  use crate::error;";
    let found = names_in("src/x.rs", source);
    assert_eq!(found, [(8, "wire".to_owned()), (14, "error".to_owned())]);
    assert_eq!(without_unit_tests(&code_only(source)).1, 5);
    assert_eq!(source.lines().count(), code_only(source).lines().count());
    // Only a module is a module of unit tests: what stands after a helper is read on.
    assert_eq!(names("src/x.rs", "#[cfg(test)]\nfn f() {}\nuse crate::run;"), ["run"]);
    assert_eq!(names("src/x.rs", "#[cfg(test)]\nmod tests;\nuse crate::run;"), ["run"]);
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    let circle = circle_in(&graph(&[("desk", "run"), ("run", "store"), ("store", "run")]));
    assert_eq!(circle.expect("a circle"), ["desk", "run", "store", "run"]);
    assert_eq!(circle_in(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
}

#[test]
fn captions_words_and_trap_names_are_told_apart() {
    assert!(opens_with_a_caption("//! A part.\nuse x;") && opens_with_a_caption("// A test."));
    for bare in ["", "use x;", "//", "//! ", "/// On an item.", "\n//! Late.", "#![allow(x)]"] {
        assert!(!opens_with_a_caption(bare), "{bare:?}");
    }
    for word in forbidden() {
        assert_eq!(forbidden_in(&format!("a\nb {}", word.to_uppercase())), [(2, word)]);
    }
    assert!(
        names_trap("trap_1_1_the_next_request", "trap_1_1") && names_trap("x_trap_1_1", "trap_1_1")
    );
    assert!(!names_trap("trap_1_12", "trap_1_1"));
    assert_eq!(functions_in("fn trap_1_1() {} // fn trap_1_2()\n\"fn trap_1_3()\""), ["trap_1_1"]);
    assert_eq!(room_of("src/offload/layer.rs"), "offload");
    assert_eq!(room_of("src/wire.rs"), "wire");
}
