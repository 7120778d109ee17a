//! Commands on lists.

use std::collections::VecDeque;

use super::{Access::*, Command, Done, command, int};
use crate::redis::{
    data::{Value, wrong_type},
    number::range,
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("rpush", -3, Grows, |state, args| push(state, args, VecDeque::push_back)),
    command("lpush", -3, Grows, |state, args| push(state, args, VecDeque::push_front)),
    command("lindex", 3, Reads, lindex),
    command("lrange", 4, Reads, lrange),
    command("llen", 2, Reads, llen),
    command("lpop", -2, Writes, |state, args| pop(state, args, VecDeque::pop_front, "lpop")),
    command("rpop", -2, Writes, |state, args| pop(state, args, VecDeque::pop_back, "rpop")),
    command("ltrim", 4, Writes, ltrim),
];

type List = VecDeque<Text>;

fn list<'a>(state: &'a State, key: &[u8]) -> Result<Option<&'a List>, Reply> {
    match state.data.value(key) {
        Some(Value::List(list)) => Ok(Some(list)),
        Some(_) => Err(wrong_type()),
        None => Ok(None),
    }
}

fn change<R>(
    state: &mut State,
    key: &Text,
    change: impl FnOnce(&mut List) -> R,
) -> Result<R, Reply> {
    fn select(value: &mut Value) -> Option<&mut List> {
        match value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }
    state.data.change(key, Value::List(List::new()), select, change)
}

fn push(state: &mut State, args: &[Text], push: fn(&mut List, Text)) -> Done {
    change(state, &args[1], |list| {
        args[2..].iter().for_each(|item| push(list, item.clone()));
        Reply::len(list.len())
    })
}

fn lindex(state: &mut State, args: &[Text]) -> Done {
    let Some(list) = list(state, &args[1])? else { return Ok(Reply::Null) };
    let index = int(&args[2])?;
    let index = if index < 0 { index.saturating_add(list.len() as i64) } else { index };
    Ok(Reply::or_null(usize::try_from(index).ok().and_then(|index| list.get(index))))
}

fn lrange(state: &mut State, args: &[Text]) -> Done {
    let (start, stop) = (int(&args[2])?, int(&args[3])?);
    let Some(list) = list(state, &args[1])? else { return Ok(Reply::Array(Vec::new())) };
    Ok(Reply::Array(list.range(range(start, stop, list.len())).map(Reply::bulk).collect()))
}

fn llen(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(list(state, &args[1])?.map_or(0, VecDeque::len)))
}

fn pop(state: &mut State, args: &[Text], pop: fn(&mut List) -> Option<Text>, name: &str) -> Done {
    if args.len() > 3 {
        return super::wrong_arguments(name);
    }
    let count = match args.get(2) {
        Some(text) => Some(super::count(text)?),
        None => None,
    };
    if list(state, &args[1])?.is_none() {
        return Ok(if count.is_some() { Reply::NullArray } else { Reply::Null });
    }
    change(state, &args[1], |list| match count {
        Some(count) => {
            let count = count.min(list.len());
            let popped = std::iter::from_fn(|| pop(list)).take(count);
            Reply::Array(popped.map(Reply::bulk).collect())
        }
        None => Reply::or_null(pop(list).as_ref()),
    })
}

fn ltrim(state: &mut State, args: &[Text]) -> Done {
    let (start, stop) = (int(&args[2])?, int(&args[3])?);
    if list(state, &args[1])?.is_some() {
        change(state, &args[1], |list| {
            let kept = list.range(range(start, stop, list.len())).cloned().collect();
            *list = kept;
        })?;
    }
    Ok(Reply::ok())
}
