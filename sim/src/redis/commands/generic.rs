//! Commands on keys of any type, and those that need no key.

use super::{Access::*, Command, Done, command, expiry, is, matches, syntax};
use crate::redis::{
    resp::{Reply, Text},
    state::{Kind, State},
};

pub(super) const COMMANDS: &[Command] = &[
    command("del", -2, Writes, del),
    command("unlink", -2, Writes, del),
    command("exists", -2, Reads, exists),
    command("type", 2, Reads, type_of),
    command("rename", 3, Writes, rename),
    command("renamenx", 3, Writes, renamenx),
    command("copy", -3, Grows, copy),
    command("ttl", 2, Reads, |state, args| ttl(state, args, true)),
    command("pttl", 2, Reads, |state, args| ttl(state, args, false)),
    command("expiretime", 2, Reads, |state, args| expire_time(state, args, 1000)),
    command("pexpiretime", 2, Reads, |state, args| expire_time(state, args, 1)),
    command("persist", 2, Writes, persist),
    command("expire", -3, Writes, |state, args| expire(state, args, true, false, "expire")),
    command("pexpire", -3, Writes, |state, args| expire(state, args, false, false, "pexpire")),
    command("expireat", -3, Writes, |state, args| expire(state, args, true, true, "expireat")),
    command("pexpireat", -3, Writes, |state, args| expire(state, args, false, true, "pexpireat")),
    command("keys", 2, Reads, keys),
    command("dbsize", 1, Reads, |state, _| Ok(Reply::len(state.data.keys().len()))),
    command("flushall", -1, Writes, flush),
    command("flushdb", -1, Writes, flush),
    command("time", 1, Reads, time),
    command("ping", -1, Reads, ping),
    command("echo", 2, Reads, |_, args| Ok(Reply::bulk(&args[1]))),
    command("publish", 3, Tells, |state, args| publish(state, args, Kind::Plain)),
    command("spublish", 3, Tells, |state, args| publish(state, args, Kind::Sharded)),
];

fn del(state: &mut State, args: &[Text]) -> Done {
    let removed = args[1..].iter().filter(|key| state.data.remove(key).is_some());
    Ok(Reply::len(removed.count()))
}

fn exists(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(args[1..].iter().filter(|key| state.data.entry(key).is_some()).count()))
}

fn type_of(state: &mut State, args: &[Text]) -> Done {
    let kind = state.data.value(&args[1]).map_or("none", |value| value.kind());
    Ok(Reply::Status(kind.to_owned()))
}

fn no_such_key<T>() -> Result<T, Reply> {
    Err(Reply::error("ERR no such key"))
}

fn rename(state: &mut State, args: &[Text]) -> Done {
    let Some(entry) = state.data.entry(&args[1]).cloned() else { return no_such_key() };
    if args[1] != args[2] {
        state.data.put_entry(&args[2], entry);
        state.data.remove(&args[1]);
    }
    Ok(Reply::ok())
}

fn renamenx(state: &mut State, args: &[Text]) -> Done {
    if state.data.entry(&args[1]).is_none() {
        return no_such_key();
    }
    if state.data.entry(&args[2]).is_some() {
        return Ok(Reply::Integer(0));
    }
    rename(state, args).map(|_| Reply::Integer(1))
}

fn copy(state: &mut State, args: &[Text]) -> Done {
    let replaces = match &args[3..] {
        [] => false,
        [word] if is(word, "replace") => true,
        _ => return syntax(),
    };
    if args[1] == args[2] {
        return Err(Reply::error("ERR source and destination objects are the same"));
    }
    let Some(entry) = state.data.entry(&args[1]).cloned() else { return Ok(Reply::Integer(0)) };
    if state.data.entry(&args[2]).is_some() && !replaces {
        return Ok(Reply::Integer(0));
    }
    state.data.put_entry(&args[2], entry);
    Ok(Reply::Integer(1))
}

fn ttl(state: &mut State, args: &[Text], is_seconds: bool) -> Done {
    Ok(Reply::Integer(match state.data.entry(&args[1]).map(|entry| entry.expires) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => {
            let left = at.saturating_sub(state.data.now()).max(0);
            if is_seconds { left.saturating_add(500) / 1000 } else { left }
        }
    }))
}

fn expire_time(state: &mut State, args: &[Text], unit: i64) -> Done {
    Ok(Reply::Integer(match state.data.entry(&args[1]).map(|entry| entry.expires) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => at / unit,
    }))
}

fn persist(state: &mut State, args: &[Text]) -> Done {
    let expires = state.data.entry(&args[1]).is_some_and(|entry| entry.expires.is_some());
    if expires {
        state.data.expire(&args[1], None);
    }
    Ok(Reply::Integer(expires.into()))
}

fn expire(
    state: &mut State,
    args: &[Text],
    is_seconds: bool,
    is_absolute: bool,
    name: &str,
) -> Done {
    let (mut only_without, mut only_with, mut only_later, mut only_sooner) =
        (false, false, false, false);
    for word in &args[3..] {
        let options = [
            ("nx", &mut only_without),
            ("xx", &mut only_with),
            ("gt", &mut only_later),
            ("lt", &mut only_sooner),
        ];
        match options.into_iter().find(|(option, _)| is(word, option)) {
            Some((_, option)) => *option = true,
            None => {
                let word = String::from_utf8_lossy(word);
                return Err(Reply::error(format!("ERR Unsupported option {word}")));
            }
        }
    }
    if only_without && (only_with || only_later || only_sooner) {
        let message = "ERR NX and XX, GT or LT options at the same time are not compatible";
        return Err(Reply::error(message));
    }
    if only_later && only_sooner {
        let message = "ERR GT and LT options at the same time are not compatible";
        return Err(Reply::error(message));
    }
    let at = expiry(state, &args[2], is_seconds, is_absolute, name)?;
    let Some(old) = state.data.entry(&args[1]).map(|entry| entry.expires) else {
        return Ok(Reply::Integer(0));
    };
    // A key that does not expire does so later than any.
    if (only_without && old.is_some())
        || (only_with && old.is_none())
        || (only_later && old.is_none_or(|old| at <= old))
        || (only_sooner && old.is_some_and(|old| at >= old))
    {
        return Ok(Reply::Integer(0));
    }
    if at <= state.data.now() {
        state.data.remove(&args[1]);
    } else {
        state.data.expire(&args[1], Some(at));
    }
    Ok(Reply::Integer(1))
}

fn keys(state: &mut State, args: &[Text]) -> Done {
    let all = state.data.keys().keys().filter(|key| matches(&args[1], key));
    Ok(Reply::Array(all.map(Reply::bulk).collect()))
}

fn flush(state: &mut State, _: &[Text]) -> Done {
    state.data.clear();
    Ok(Reply::ok())
}

fn time(state: &mut State, _: &[Text]) -> Done {
    let (seconds, micros) =
        (state.micros.div_euclid(1_000_000), state.micros.rem_euclid(1_000_000));
    Ok(Reply::Array([seconds, micros].map(|part| Reply::bulk(part.to_string())).to_vec()))
}

fn ping(_: &mut State, args: &[Text]) -> Done {
    match args {
        [_] => Ok(Reply::Status("PONG".to_owned())),
        [_, message] => Ok(Reply::bulk(message)),
        _ => super::wrong_arguments("ping"),
    }
}

fn publish(state: &mut State, args: &[Text], kind: Kind) -> Done {
    Ok(Reply::len(state.publish(kind, &args[1], &args[2])))
}
