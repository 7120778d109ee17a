//! Commands on sorted sets, but for those that read a range.

use super::{Access::*, Command, Done, command, count, float, is, syntax};
use crate::redis::{
    data::{Sorted, Value, wrong_type},
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("zadd", -4, Grows, |state, args| zadd(state, args, false)),
    // The same with `INCR` (src/t_zset.c, `zincrbyCommand`), other options included.
    command("zincrby", 4, Grows, |state, args| zadd(state, args, true)),
    command("zrem", -3, Writes, zrem),
    command("zscore", 3, Reads, zscore),
    command("zmscore", -3, Reads, zmscore),
    command("zcard", 2, Reads, zcard),
    command("zrank", 3, Reads, |state, args| rank(state, args, false)),
    command("zrevrank", 3, Reads, |state, args| rank(state, args, true)),
    command("zpopmin", -2, Writes, |state, args| pop(state, args, false)),
    command("zpopmax", -2, Writes, |state, args| pop(state, args, true)),
];

pub(super) fn sorted<'a>(state: &'a State, key: &[u8]) -> Result<Option<&'a Sorted>, Reply> {
    match state.data.value(key) {
        Some(Value::Sorted(sorted)) => Ok(Some(sorted)),
        Some(_) => Err(wrong_type()),
        None => Ok(None),
    }
}

pub(super) fn change<R>(
    state: &mut State,
    key: &Text,
    change: impl FnOnce(&mut Sorted) -> R,
) -> Result<R, Reply> {
    fn select(value: &mut Value) -> Option<&mut Sorted> {
        match value {
            Value::Sorted(sorted) => Some(sorted),
            _ => None,
        }
    }
    state.data.change(key, Value::Sorted(Sorted::default()), select, change)
}

/// Removes members; returns how many were there.
pub(super) fn remove(state: &mut State, key: &Text, members: &[Text]) -> Result<usize, Reply> {
    if sorted(state, key)?.is_none() {
        return Ok(0);
    }
    change(state, key, |sorted| members.iter().filter(|member| sorted.remove(member)).count())
}

#[derive(Default)]
struct Options {
    only_new: bool,
    only_old: bool,
    only_greater: bool,
    only_less: bool,
    tells_changed: bool,
    increments: bool,
}

/// Reads the options of `ZADD`; returns where the scores begin too.
fn options(args: &[Text], increments: bool) -> Result<(Options, usize), Reply> {
    let (mut options, mut at) = (Options { increments, ..Options::default() }, 2);
    while let Some(word) = args.get(at) {
        let option = [
            ("nx", &mut options.only_new),
            ("xx", &mut options.only_old),
            ("gt", &mut options.only_greater),
            ("lt", &mut options.only_less),
            ("ch", &mut options.tells_changed),
            ("incr", &mut options.increments),
        ]
        .into_iter()
        .find(|(name, _)| is(word, name));
        let Some((_, option)) = option else { break };
        *option = true;
        at += 1;
    }
    let pairs = args.len().saturating_sub(at);
    if pairs == 0 || pairs % 2 == 1 {
        return syntax();
    }
    let Options { only_new, only_old, only_greater, only_less, .. } = options;
    let message = if only_new && only_old {
        "ERR XX and NX options at the same time are not compatible"
    } else if (only_greater && (only_new || only_less)) || (only_less && only_new) {
        "ERR GT, LT, and/or NX options at the same time are not compatible"
    } else if options.increments && pairs > 2 {
        "ERR INCR option supports a single increment-element pair"
    } else {
        return Ok((options, at));
    };
    Err(Reply::error(message))
}

fn zadd(state: &mut State, args: &[Text], increments: bool) -> Done {
    let (options, at) = options(args, increments)?;
    let pairs = args[at..].chunks_exact(2);
    let pairs = pairs.map(|pair| Ok((float(&pair[0])?, &pair[1])));
    let pairs = pairs.collect::<Result<Vec<_>, Reply>>()?;
    let is_there = sorted(state, &args[1])?.is_some();
    if options.only_old && !is_there {
        return Ok(if options.increments { Reply::Null } else { Reply::Integer(0) });
    }
    change(state, &args[1], |sorted| add(sorted, &options, &pairs))?
}

fn add(sorted: &mut Sorted, options: &Options, pairs: &[(f64, &Text)]) -> Done {
    let (mut added, mut changed, mut last) = (0, 0, None);
    for (score, member) in pairs {
        let old = sorted.scores.get(*member).copied();
        let score = match old {
            Some(old) if options.increments => old + score,
            _ => *score,
        };
        if score.is_nan() {
            return Err(Reply::error("ERR resulting score is not a number (NaN)"));
        }
        let is_wanted = match old {
            None => !options.only_old,
            Some(old) => {
                !options.only_new
                    && (!options.only_greater || score > old)
                    && (!options.only_less || score < old)
            }
        };
        if !is_wanted {
            continue;
        }
        last = Some(score);
        match old {
            None => added += 1,
            Some(old) if old != score => changed += 1,
            Some(_) => continue,
        }
        sorted.set(member, score);
    }
    Ok(match (options.increments, options.tells_changed) {
        (true, _) => last.map_or(Reply::Null, Reply::Double),
        (false, true) => Reply::Integer(added + changed),
        (false, false) => Reply::Integer(added),
    })
}

fn zrem(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(remove(state, &args[1], &args[2..])?))
}

fn score(state: &State, key: &[u8], member: &Text) -> Done {
    let found = sorted(state, key)?.and_then(|sorted| sorted.scores.get(member));
    Ok(found.map_or(Reply::Null, |score| Reply::Double(*score)))
}

fn zscore(state: &mut State, args: &[Text]) -> Done {
    score(state, &args[1], &args[2])
}

fn zmscore(state: &mut State, args: &[Text]) -> Done {
    let all = args[2..].iter().map(|member| score(state, &args[1], member));
    Ok(Reply::Array(all.collect::<Result<_, _>>()?))
}

fn zcard(state: &mut State, args: &[Text]) -> Done {
    Ok(Reply::len(sorted(state, &args[1])?.map_or(0, |sorted| sorted.scores.len())))
}

fn rank(state: &mut State, args: &[Text], is_reversed: bool) -> Done {
    let Some(sorted) = sorted(state, &args[1])? else { return Ok(Reply::Null) };
    let is_this = |(_, member): &(_, Text)| *member == args[2];
    let found = match is_reversed {
        true => sorted.order.iter().rev().position(is_this),
        false => sorted.order.iter().position(is_this),
    };
    Ok(found.map_or(Reply::Null, Reply::len))
}

fn pop(state: &mut State, args: &[Text], is_reversed: bool) -> Done {
    if args.len() > 3 {
        return syntax();
    }
    let count = match args.get(2) {
        Some(text) => count(text)?,
        None => 1,
    };
    let Some(found) = sorted(state, &args[1])? else { return Ok(Reply::Array(Vec::new())) };
    let pair = |(score, member): &(crate::redis::data::Score, Text)| (member.clone(), score.0);
    let found: Vec<_> = match is_reversed {
        true => found.order.iter().rev().take(count).map(pair).collect(),
        false => found.order.iter().take(count).map(pair).collect(),
    };
    let members: Vec<_> = found.iter().map(|(member, _)| member.clone()).collect();
    remove(state, &args[1], &members)?;
    Ok(match args.get(2) {
        Some(_) => Reply::Scored(found),
        // One is not a pair of its own, in RESP3 either.
        None => {
            let both = |(member, score): &(Text, f64)| [Reply::bulk(member), Reply::Double(*score)];
            Reply::Array(found.iter().flat_map(both).collect())
        }
    })
}
