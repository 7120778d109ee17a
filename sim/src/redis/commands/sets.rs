//! Commands on sets.

use std::collections::BTreeSet;

use super::{Access::*, Command, Done, command, int};
use crate::redis::{
    data::{Value, wrong_type},
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("sadd", -3, Grows, sadd),
    command("srem", -3, Writes, srem),
    command("smembers", 2, Reads, smembers),
    command("scard", 2, Reads, scard),
    command("sismember", 3, Reads, sismember),
    command("smismember", -3, Reads, smismember),
    command("srandmember", -2, Reads, srandmember),
    command("spop", -2, Writes, spop),
    command("smove", 4, Writes, smove),
];

type Set = BTreeSet<Text>;

/// So many members, not each once, are the most that `SRANDMEMBER` gives here.
const MOST_REPEATED: i64 = 1000;

fn set<'a>(state: &'a State, key: &[u8]) -> Result<Option<&'a Set>, Reply> {
    match state.data.value(key) {
        Some(Value::Set(set)) => Ok(Some(set)),
        Some(_) => Err(wrong_type()),
        None => Ok(None),
    }
}

fn change<R>(
    state: &mut State,
    key: &Text,
    change: impl FnOnce(&mut Set) -> R,
) -> Result<R, Reply> {
    fn select(value: &mut Value) -> Option<&mut Set> {
        match value {
            Value::Set(set) => Some(set),
            _ => None,
        }
    }
    state.data.change(key, Value::Set(Set::new()), select, change)
}

fn sadd(state: &mut State, args: &[Text]) -> Done {
    change(state, &args[1], |set| {
        Reply::len(args[2..].iter().filter(|member| set.insert((*member).clone())).count())
    })
}

fn srem(state: &mut State, args: &[Text]) -> Done {
    if set(state, &args[1])?.is_none() {
        return Ok(Reply::Integer(0));
    }
    change(state, &args[1], |set| {
        Reply::len(args[2..].iter().filter(|member| set.remove(*member)).count())
    })
}

fn smembers(state: &mut State, args: &[Text]) -> Done {
    let all = set(state, &args[1])?.into_iter().flatten();
    Ok(Reply::Set(all.map(Reply::bulk).collect()))
}

fn scard(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(set(state, &args[1])?.map_or(0, BTreeSet::len)))
}

fn has(state: &State, key: &[u8], member: &Text) -> Result<bool, Reply> {
    Ok(set(state, key)?.is_some_and(|set| set.contains(member)))
}

fn sismember(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::Integer(has(state, &args[1], &args[2])?.into()))
}

fn smismember(state: &mut State, args: &[Text]) -> Done {
    let each = |member| Ok(Reply::Integer(has(state, &args[1], member)?.into()));
    Ok(Reply::Array(args[2..].iter().map(each).collect::<Result<_, Reply>>()?))
}

/// Some of a set, each once, in a random order.
fn some(state: &mut State, key: &[u8], count: usize) -> Result<Vec<Text>, Reply> {
    let mut all: Vec<_> = set(state, key)?.into_iter().flatten().cloned().collect();
    // The first steps of a Fisher-Yates shuffle.
    for at in 0..count.min(all.len()) {
        let other = at + state.random.below(all.len() - at);
        all.swap(at, other);
    }
    all.truncate(count);
    Ok(all)
}

fn srandmember(state: &mut State, args: &[Text]) -> Done {
    if args.len() > 3 {
        return super::syntax();
    }
    let Some(count) = args.get(2) else {
        return Ok(Reply::or_null(some(state, &args[1], 1)?.first()));
    };
    let count = int(count)?;
    let found = match usize::try_from(count) {
        Ok(count) => some(state, &args[1], count)?,
        Err(_) if count < -MOST_REPEATED => {
            return Err(Reply::error("ERR value is out of range"));
        }
        Err(_) => {
            let mut found = Vec::new();
            for _ in count..0 {
                found.extend(some(state, &args[1], 1)?);
            }
            found
        }
    };
    Ok(Reply::Array(found.iter().map(Reply::bulk).collect()))
}

fn spop(state: &mut State, args: &[Text]) -> Done {
    if args.len() > 3 {
        return super::syntax();
    }
    let count = match args.get(2) {
        Some(text) => super::count(text)?,
        None => 1,
    };
    let found = some(state, &args[1], count)?;
    if !found.is_empty() {
        change(state, &args[1], |set| set.retain(|member| !found.contains(member)))?;
    }
    Ok(match args.get(2) {
        Some(_) => Reply::Set(found.iter().map(Reply::bulk).collect()),
        None => Reply::or_null(found.first()),
    })
}

fn smove(state: &mut State, args: &[Text]) -> Done {
    if set(state, &args[1])?.is_none() {
        return Ok(Reply::Integer(0));
    }
    set(state, &args[2])?;
    if args[1] == args[2] || !has(state, &args[1], &args[3])? {
        return Ok(Reply::Integer(has(state, &args[1], &args[3])?.into()));
    }
    change(state, &args[1], |set| set.remove(&args[3]))?;
    change(state, &args[2], |set| set.insert(args[3].clone()))?;
    Ok(Reply::Integer(1))
}
