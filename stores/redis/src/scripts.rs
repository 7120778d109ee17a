//! The scripts, each of which is one call and one step that nobody sees half of.
//!
//! Scripts, not functions: a function must be loaded into every node of a cluster by somebody who may
//! do that, and two versions of this crate would share its name.

use redis::Script;

const COMMON: &str = include_str!("lua/common.lua");

/// What a script may do is told by its first line: without it Redis would run one out of memory, and
/// stop it in its midst (redis.io, "Scripting with Lua", "Eval scripts with metadata").
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) insert: Script,
    /// Applies changes that need no memory to speak of, also where there is none.
    pub(crate) change: Script,
    /// Applies those that bring something.
    pub(crate) bring: Script,
    /// Brings a piece of an outcome.
    pub(crate) chunk: Script,
    pub(crate) take_back: Script,
    pub(crate) fetch: Script,
    pub(crate) claimed: Script,
    pub(crate) look: Script,
    pub(crate) usage: Script,
    pub(crate) renew: Script,
    pub(crate) fence: Script,
    pub(crate) reap: Script,
    pub(crate) enqueue: Script,
    pub(crate) take: Script,
    pub(crate) given_up: Script,
    pub(crate) queued: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        let change = include_str!("lua/change.lua");
        Self {
            insert: script(include_str!("lua/insert.lua")),
            change: script(&format!("#!lua flags=allow-oom\n{change}")),
            bring: script(&format!("#!lua\n{change}")),
            chunk: script(include_str!("lua/chunk.lua")),
            take_back: script(include_str!("lua/take_back.lua")),
            fetch: script(include_str!("lua/fetch.lua")),
            claimed: script(include_str!("lua/claimed.lua")),
            look: script(include_str!("lua/look.lua")),
            usage: script(include_str!("lua/usage.lua")),
            renew: script(include_str!("lua/renew.lua")),
            fence: script(include_str!("lua/fence.lua")),
            reap: script(include_str!("lua/reap.lua")),
            enqueue: script(include_str!("lua/enqueue.lua")),
            take: script(include_str!("lua/take.lua")),
            given_up: script(include_str!("lua/given_up.lua")),
            queued: script(include_str!("lua/queued.lua")),
        }
    }
}

/// What all have in common comes after the first line.
fn script(code: &str) -> Script {
    let (first, rest) = code.split_once('\n').unwrap_or((code, ""));
    Script::new(&format!("{first}\n{COMMON}\n{rest}"))
}
