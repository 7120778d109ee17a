//! The scripts, each of which is one call and one step that nobody sees half of.
//!
//! Scripts, not functions: a function must be loaded into every node of a cluster by somebody who may
//! do that, and two versions of this crate would share its name.

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
            pub(crate) fn new() -> Self {
                Self { $($name: Script::new(&whole($code)),)* }
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

/// The whole text of a script: what all have in common comes after the first line.
fn whole(code: &str) -> String {
    let (first, rest) = code.split_once('\n').unwrap_or((code, ""));
    format!("{first}\n{COMMON}\n{rest}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tower_offload::{JobId, Record};

    use super::*;
    use crate::fields;

    #[test]
    fn scripts_read_the_format_that_records_are_written_in() {
        let record =
            Record::queued(JobId::random().unwrap(), SystemTime::UNIX_EPOCH, Duration::ZERO);
        let format = fields::member(&record, "format").unwrap();
        assert!(COMMON.contains(&format!("\nlocal FORMAT = {format}\n")), "{format}");
    }
}
