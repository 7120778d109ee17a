//! Commands on strings.

use super::{Access::*, Command, Done, after, command, expiry, int, is, syntax};
use crate::redis::{
    data::{Value, wrong_type},
    number::{integer, range},
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("get", 2, Reads, get),
    command("set", -3, Grows, set),
    command("setex", 4, Grows, |state, args| set_for(state, args, true, "setex")),
    command("psetex", 4, Grows, |state, args| set_for(state, args, false, "psetex")),
    command("setnx", 3, Grows, setnx),
    command("getdel", 2, Writes, getdel),
    command("mget", -2, Reads, mget),
    command("strlen", 2, Reads, strlen),
    command("getrange", 4, Reads, getrange),
    command("append", 3, Grows, append),
    command("incr", 2, Grows, |state, args| add(state, &args[1], 1)),
    command("decr", 2, Grows, |state, args| add(state, &args[1], -1)),
    command("incrby", 3, Grows, |state, args| add(state, &args[1], int(&args[2])?)),
    command("decrby", 3, Grows, decrby),
];

fn text<'a>(state: &'a State, key: &[u8]) -> Result<Option<&'a Text>, Reply> {
    match state.data.value(key) {
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type()),
        None => Ok(None),
    }
}

fn get(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::or_null(text(state, &args[1])?))
}

#[derive(Default)]
struct Options {
    only_new: bool,
    only_old: bool,
    keeps_ttl: bool,
    gets: bool,
    expires: Option<i64>,
}

fn options(state: &State, args: &[Text]) -> Result<Options, Reply> {
    let (mut options, mut time, mut at) = (Options::default(), None, 3);
    while let Some(word) = args.get(at) {
        let is_first = !options.keeps_ttl && time.is_none();
        if is(word, "nx") && !options.only_old {
            options.only_new = true;
        } else if is(word, "xx") && !options.only_new {
            options.only_old = true;
        } else if is(word, "get") {
            options.gets = true;
        } else if is(word, "keepttl") && time.is_none() {
            options.keeps_ttl = true;
        } else if let (true, Some(unit)) = (is_first, unit(word)) {
            time = Some((after(args, at)?, unit));
            at += 1;
        } else {
            return syntax();
        }
        at += 1;
    }
    // When all options are read.
    if let Some((time, (is_seconds, is_absolute))) = time {
        let expires = expiry(state, time, is_seconds, is_absolute, "set")?;
        if int(time)? <= 0 {
            return Err(Reply::error("ERR invalid expire time in 'set' command"));
        }
        options.expires = Some(expires);
    }
    Ok(options)
}

/// Whether an option's time is in seconds, and absolute.
fn unit(word: &[u8]) -> Option<(bool, bool)> {
    [("ex", true, false), ("px", false, false), ("exat", true, true), ("pxat", false, true)]
        .into_iter()
        .find(|(name, ..)| is(word, name))
        .map(|(_, is_seconds, is_absolute)| (is_seconds, is_absolute))
}

fn set(state: &mut State, args: &[Text]) -> Done {
    let options = options(state, args)?;
    let key = &args[1];
    let old = match options.gets {
        true => Some(Reply::or_null(text(state, key)?)),
        false => None,
    };
    let entry = state.data.entry(key);
    if (options.only_new && entry.is_some()) || (options.only_old && entry.is_none()) {
        return Ok(old.unwrap_or(Reply::Null));
    }
    let kept = entry.and_then(|entry| entry.expires).filter(|_| options.keeps_ttl);
    put(state, key, &args[2], options.expires.or(kept));
    Ok(old.unwrap_or_else(Reply::ok))
}

/// What has expired by now is not kept.
fn put(state: &mut State, key: &Text, value: &Text, expires: Option<i64>) {
    if expires.is_some_and(|at| at < state.data.now()) {
        state.data.remove(key);
    } else {
        state.data.put(key, Value::Text(value.clone()), expires);
    }
}

fn set_for(state: &mut State, args: &[Text], is_seconds: bool, name: &str) -> Done {
    let expires = expiry(state, &args[2], is_seconds, false, name)?;
    if int(&args[2])? <= 0 {
        return Err(Reply::error(format!("ERR invalid expire time in '{name}' command")));
    }
    put(state, &args[1], &args[3], Some(expires));
    Ok(Reply::ok())
}

fn setnx(state: &mut State, args: &[Text]) -> Done {
    let is_new = state.data.entry(&args[1]).is_none();
    if is_new {
        put(state, &args[1], &args[2], None);
    }
    Ok(Reply::Integer(is_new.into()))
}

fn getdel(state: &mut State, args: &[Text]) -> Done {
    let old = Reply::or_null(text(state, &args[1])?);
    state.data.remove(&args[1]);
    Ok(old)
}

fn mget(state: &mut State, args: &[Text]) -> Done {
    let all = args[1..].iter().map(|key| Reply::or_null(text(state, key).ok().flatten()));
    Ok(Reply::Array(all.collect()))
}

fn strlen(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(text(state, &args[1])?.map_or(0, |text| text.len())))
}

fn getrange(state: &mut State, args: &[Text]) -> Done {
    let (start, stop) = (int(&args[2])?, int(&args[3])?);
    let text = text(state, &args[1])?.cloned().unwrap_or_default();
    // A stop before the first byte is the first byte (src/t_string.c, `getrangeCommand`), but for
    // where it is before the start.
    let is_before = stop < 0 && stop.saturating_add(text.len() as i64) < 0;
    let is_empty = start < 0 && stop < 0 && start > stop;
    let stop = if is_before && !is_empty { 0 } else { stop };
    Ok(Reply::bulk(&text[range(start, stop, text.len())]))
}

fn append(state: &mut State, args: &[Text]) -> Done {
    let old = text(state, &args[1])?.cloned().unwrap_or_default();
    let joined = [&old[..], &args[2][..]].concat();
    let expires = state.data.entry(&args[1]).and_then(|entry| entry.expires);
    put(state, &args[1], &joined.as_slice().into(), expires);
    Ok(Reply::len(joined.len()))
}

fn decrby(state: &mut State, args: &[Text]) -> Done {
    let by = int(&args[2])?.checked_neg();
    add(state, &args[1], by.ok_or_else(|| Reply::error("ERR decrement would overflow"))?)
}

fn add(state: &mut State, key: &Text, by: i64) -> Done {
    let old = match text(state, key)? {
        Some(old) => integer(old)
            .ok_or_else(|| Reply::error("ERR value is not an integer or out of range"))?,
        None => 0,
    };
    let overflow = || Reply::error("ERR increment or decrement would overflow");
    let new = old.checked_add(by).ok_or_else(overflow)?;
    let expires = state.data.entry(key).and_then(|entry| entry.expires);
    put(state, key, &new.to_string().as_bytes().into(), expires);
    Ok(Reply::Integer(new))
}
