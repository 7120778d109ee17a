//! Commands on hashes.

use super::{Access::*, Command, Done, command, int, wrong_arguments};
use crate::redis::{
    data::{Hash, Value, wrong_type},
    number::integer,
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("hset", -4, Grows, |state, args| hset(state, args, "hset")),
    command("hmset", -4, Grows, |state, args| hset(state, args, "hmset").map(|_| Reply::ok())),
    command("hsetnx", 4, Grows, hsetnx),
    command("hget", 3, Reads, hget),
    command("hmget", -3, Reads, hmget),
    command("hgetall", 2, Reads, hgetall),
    command("hkeys", 2, Reads, |state, args| each(state, args, |(field, _)| field)),
    command("hvals", 2, Reads, |state, args| each(state, args, |(_, value)| value)),
    command("hlen", 2, Reads, hlen),
    command("hexists", 3, Reads, hexists),
    command("hstrlen", 3, Reads, hstrlen),
    command("hdel", -3, Writes, hdel),
    command("hincrby", 4, Grows, hincrby),
];

fn hash<'a>(state: &'a State, key: &[u8]) -> Result<Option<&'a Hash>, Reply> {
    match state.data.value(key) {
        Some(Value::Hash(hash)) => Ok(Some(hash)),
        Some(_) => Err(wrong_type()),
        None => Ok(None),
    }
}

fn change<R>(
    state: &mut State,
    key: &Text,
    change: impl FnOnce(&mut Hash) -> R,
) -> Result<R, Reply> {
    fn select(value: &mut Value) -> Option<&mut Hash> {
        match value {
            Value::Hash(hash) => Some(hash),
            _ => None,
        }
    }
    state.data.change(key, Value::Hash(Hash::default()), select, change)
}

fn hset(state: &mut State, args: &[Text], name: &str) -> Done {
    if args.len() % 2 == 1 {
        return wrong_arguments(name);
    }
    change(state, &args[1], |hash| {
        let new = args[2..].chunks_exact(2).filter(|pair| hash.set(&pair[0], &pair[1]));
        Reply::len(new.count())
    })
}

fn hsetnx(state: &mut State, args: &[Text]) -> Done {
    let is_new = hash(state, &args[1])?.is_none_or(|hash| hash.get(&args[2]).is_none());
    if is_new {
        change(state, &args[1], |hash| hash.set(&args[2], &args[3]))?;
    }
    Ok(Reply::Integer(is_new.into()))
}

fn hget(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::or_null(hash(state, &args[1])?.and_then(|hash| hash.get(&args[2]))))
}

fn hmget(state: &mut State, args: &[Text]) -> Done {
    let hash = hash(state, &args[1])?;
    let value = |field: &Text| Reply::or_null(hash.and_then(|hash| hash.get(field)));
    Ok(Reply::Array(args[2..].iter().map(value).collect()))
}

fn hgetall(state: &mut State, args: &[Text]) -> Done {
    let all = hash(state, &args[1])?.map_or(&[][..], |hash| &hash.0);
    let both = all.iter().flat_map(|(field, value)| [field, value]);
    Ok(Reply::Map(both.map(Reply::bulk).collect()))
}

fn each(state: &mut State, args: &[Text], select: fn(&(Text, Text)) -> &Text) -> Done {
    let all = hash(state, &args[1])?.map_or(&[][..], |hash| &hash.0);
    Ok(Reply::Array(all.iter().map(select).map(Reply::bulk).collect()))
}

fn hlen(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(hash(state, &args[1])?.map_or(0, |hash| hash.0.len())))
}

fn hexists(state: &mut State, args: &[Text]) -> Done {
    let found = hash(state, &args[1])?.and_then(|hash| hash.get(&args[2]));
    Ok(Reply::Integer(found.is_some().into()))
}

fn hstrlen(state: &mut State, args: &[Text]) -> Done {
    let found = hash(state, &args[1])?.and_then(|hash| hash.get(&args[2]));
    Ok(Reply::len(found.map_or(0, |value| value.len())))
}

fn hdel(state: &mut State, args: &[Text]) -> Done {
    if hash(state, &args[1])?.is_none() {
        return Ok(Reply::Integer(0));
    }
    change(state, &args[1], |hash| {
        Reply::len(args[2..].iter().filter(|field| hash.remove(field)).count())
    })
}

fn hincrby(state: &mut State, args: &[Text]) -> Done {
    let by = int(&args[3])?;
    let old = match hash(state, &args[1])?.and_then(|hash| hash.get(&args[2])) {
        Some(old) => {
            integer(old).ok_or_else(|| Reply::error("ERR hash value is not an integer"))?
        }
        None => 0,
    };
    let overflow = || Reply::error("ERR increment or decrement would overflow");
    let new = old.checked_add(by).ok_or_else(overflow)?;
    change(state, &args[1], |hash| hash.set(&args[2], &new.to_string().as_bytes().into()))?;
    Ok(Reply::Integer(new))
}
