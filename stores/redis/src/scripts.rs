//! The scripts, each of which is one call and one step that nobody sees half of.
//!
//! Scripts, not functions: a function must be loaded into every node of a cluster by somebody who may
//! do that, and two versions of this crate would share its name.

use std::sync::LazyLock;

use redis::Script;

const COMMON: &str = include_str!("lua/common.lua");

/// What a script may do is told by its first line: without it Redis would run one out of memory, and
/// stop it in its midst (redis.io, "Scripting with Lua", "Eval scripts with metadata").
macro_rules! scripts {
    ($($(#[$meta:meta])* $name:ident: $code:expr,)*) => {
        #[derive(Debug)]
        pub(crate) struct Scripts {
            $($(#[$meta])* pub(crate) $name: Script,)*
        }

        impl Scripts {
            /// They are put together once.
            pub(crate) fn all() -> &'static Self {
                static ALL: LazyLock<Scripts> =
                    LazyLock::new(|| Scripts { $($name: Script::new(&whole($code)),)* });
                &ALL
            }
        }

        /// Returns each script's name and its text as it is sent.
        #[cfg(feature = "simulation")]
        pub fn texts() -> Vec<(&'static str, String)> {
            vec![$((stringify!($name), whole($code)),)*]
        }
    };
}

scripts! {
    insert: include_str!("lua/insert.lua"),
    /// Applies changes that need no memory to speak of, also where there is none.
    change: concat!("#!lua flags=allow-oom\n", include_str!("lua/change.lua")),
    /// Applies those that bring something.
    bring: concat!("#!lua\n", include_str!("lua/change.lua")),
    /// Brings a piece of an outcome.
    chunk: include_str!("lua/chunk.lua"),
    take_back: include_str!("lua/take_back.lua"),
    fetch: include_str!("lua/fetch.lua"),
    claimed: include_str!("lua/claimed.lua"),
    look: include_str!("lua/look.lua"),
    usage: include_str!("lua/usage.lua"),
    renew: include_str!("lua/renew.lua"),
    give: include_str!("lua/give.lua"),
    fence: include_str!("lua/fence.lua"),
    reap: include_str!("lua/reap.lua"),
    enqueue: include_str!("lua/enqueue.lua"),
    take: include_str!("lua/take.lua"),
    given_up: include_str!("lua/given_up.lua"),
    queued: include_str!("lua/queued.lua"),
    hand_back: include_str!("lua/hand_back.lua"),
    corrupt: include_str!("lua/corrupt.lua"),
    due: include_str!("lua/due.lua"),
}

/// The whole text of a script. After its first line comes what it uses of what scripts have in common: Redis
/// makes each function of the text anew whenever the script runs.
fn whole(code: &str) -> String {
    let (first, rest) = code.split_once('\n').unwrap_or((code, ""));
    let mut used = vec![rest];
    // The last first: in Lua, a local function is there for what comes after it.
    for part in COMMON.rsplit("\n\n") {
        if names(part).any(|name| used.iter().any(|text| mentions(text, name))) {
            used.push(part);
        }
    }
    used.reverse();
    format!("{first}\n{}", used.join("\n\n"))
}

/// The names that a part of the text defines.
fn names(part: &str) -> impl Iterator<Item = &str> {
    let locals = part.lines().filter_map(|line| line.strip_prefix("local "));
    let names = locals.map(|local| local.strip_prefix("function ").unwrap_or(local));
    names.filter_map(|name| name.split(|c| !is_of_name(c)).next())
}

/// Whether a text mentions a name, beside in its comments.
fn mentions(text: &str, name: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    lines.any(|line| line.split(|c| !is_of_name(c)).any(|word| word == name))
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tower_offload::{JobId, Record};

    use super::*;
    use crate::fields;

    #[test]
    fn a_script_has_what_it_uses_and_what_that_uses() {
        let text = whole("#!lua\nreturn backoff(1)\n-- finish\n");
        let defined: Vec<_> = text.split("\n\n").flat_map(names).collect();
        assert_eq!(defined, ["backoff"]);
        let text = whole("#!lua\nreturn is_later('1')\n");
        let defined: Vec<_> = text.split("\n\n").flat_map(names).collect();
        assert_eq!(defined, ["FORMAT", "LATER", "is_later"]);
    }

    #[test]
    fn scripts_read_the_format_that_records_are_written_in() {
        let record =
            Record::queued(JobId::random().unwrap(), SystemTime::UNIX_EPOCH, Duration::ZERO);
        let format = fields::member(&record, "format").unwrap();
        assert!(COMMON.contains(&format!("\nlocal FORMAT = {format}\n")), "{format}");
    }
}
