//! The commands on data: a table of names, and one function each.
//!
//! To add a command: write `fn name(state: &mut State, arguments: &[Text]) -> Done` in the file of its
//! type, and its row in that file's `COMMANDS`. The arity is Redis' own (`COMMAND INFO`): with the
//! name, and negative where more may follow.

mod generic;
mod hashes;
mod lists;
mod sets;
mod sorted;
mod sorted_range;
mod strings;

use crate::redis::{
    number::{double, integer},
    resp::{Reply, Text},
    state::State,
};

/// A reply, or the reply that is an error.
pub(crate) type Done = Result<Reply, Reply>;

/// A command and what Redis knows of it before it runs.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    arity: i32,
    pub(crate) access: Access,
    pub(crate) run: fn(&mut State, &[Text]) -> Done,
}

/// What a command does with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Reads,
    /// It changes data, and takes no more memory.
    Writes,
    /// It changes data, and is refused without memory.
    Grows,
    /// It changes no data, and is refused in a script that must not write (`PUBLISH`).
    Tells,
}

const fn command(
    name: &'static str,
    arity: i32,
    access: Access,
    run: fn(&mut State, &[Text]) -> Done,
) -> Command {
    Command { name, arity, access, run }
}

impl Command {
    pub(crate) fn takes(&self, arguments: usize) -> bool {
        fits(self.arity, arguments)
    }
}

/// Whether a command with this arity takes so many words, its name among them.
pub(crate) fn fits(arity: i32, words: usize) -> bool {
    let least = arity.unsigned_abs() as usize;
    if arity < 0 { words >= least } else { words == least }
}

/// Finds a command by its name, in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let all = [
        strings::COMMANDS,
        hashes::COMMANDS,
        sets::COMMANDS,
        sorted::COMMANDS,
        sorted_range::COMMANDS,
        lists::COMMANDS,
        generic::COMMANDS,
    ];
    all.into_iter().flatten().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
}

// ------------------------------------------------------------------ what commands have in common

fn is(word: &[u8], option: &str) -> bool {
    word.eq_ignore_ascii_case(option.as_bytes())
}

fn syntax<T>() -> Result<T, Reply> {
    Err(Reply::error("ERR syntax error"))
}

fn int(text: &[u8]) -> Result<i64, Reply> {
    integer(text).ok_or_else(|| Reply::error("ERR value is not an integer or out of range"))
}

/// A count of what is to be removed.
fn count(text: &[u8]) -> Result<usize, Reply> {
    let count = integer(text).and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| Reply::error("ERR value is out of range, must be positive"))
}

fn float(text: &[u8]) -> Result<f64, Reply> {
    double(text).ok_or_else(|| Reply::error("ERR value is not a valid float"))
}

/// The argument after `at`, where an option takes one.
fn after(arguments: &[Text], at: usize) -> Result<&Text, Reply> {
    match arguments.get(at + 1) {
        Some(next) => Ok(next),
        None => syntax(),
    }
}

fn wrong_arguments<T>(name: &str) -> Result<T, Reply> {
    Err(Reply::error(format!("ERR wrong number of arguments for '{name}' command")))
}

/// Whether a text matches a pattern with `*`, `?` and `\\`. Sets of characters are not known here.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        ([b'\\', byte, rest @ ..], [first, left @ ..]) => byte == first && matches(rest, left),
        ([b'?', rest @ ..], [_, left @ ..]) => matches(rest, left),
        ([byte, rest @ ..], [first, left @ ..]) => byte == first && matches(rest, left),
        (_, []) => false,
    }
}

/// Milliseconds since the epoch at which something expires, from a command's argument.
fn expiry(
    state: &State,
    text: &[u8],
    is_seconds: bool,
    is_absolute: bool,
    name: &str,
) -> Result<i64, Reply> {
    let invalid = || Reply::error(format!("ERR invalid expire time in '{name}' command"));
    let mut at = int(text)?;
    if is_seconds {
        at = at.checked_mul(1000).ok_or_else(invalid)?;
    }
    if !is_absolute {
        at = at.checked_add(state.data.now()).ok_or_else(invalid)?;
    }
    Ok(at)
}
