//! Commands that read or remove a range of a sorted set.

use super::{
    Access::*,
    Command, Done, after, command, int, is, matches,
    sorted::{remove, sorted},
    syntax,
};
use crate::redis::{
    data::{Score, Sorted},
    number::{double, range},
    resp::{Reply, Text},
    state::State,
};

pub(super) const COMMANDS: &[Command] = &[
    command("zrange", -4, Reads, zrange),
    command("zrevrange", -4, Reads, zrevrange),
    command("zrangebyscore", -4, Reads, |state, args| by_score(state, args, false)),
    command("zrevrangebyscore", -4, Reads, |state, args| by_score(state, args, true)),
    command("zcount", 4, Reads, zcount),
    command("zremrangebyscore", 4, Writes, zremrangebyscore),
    command("zremrangebyrank", 4, Writes, zremrangebyrank),
    command("zscan", -3, Reads, zscan),
];

/// The least and the greatest score, and whether each is left out.
struct Bounds {
    least: (f64, bool),
    greatest: (f64, bool),
}

impl Bounds {
    fn parse(least: &[u8], greatest: &[u8]) -> Result<Self, Reply> {
        let bound = |text: &[u8]| {
            let number = text.strip_prefix(b"(").unwrap_or(text);
            // `strtod` reads nothing as 0 (src/t_zset.c, `zslParseRange`).
            match if number.is_empty() { Some(0.0) } else { double(number) } {
                Some(score) => Ok((score, number.len() < text.len())),
                None => Err(Reply::error("ERR min or max is not a float")),
            }
        };
        Ok(Self { least: bound(least)?, greatest: bound(greatest)? })
    }

    fn has(&self, score: f64) -> bool {
        let ((least, skips_least), (greatest, skips_greatest)) = (self.least, self.greatest);
        (score > least || (score == least && !skips_least))
            && (score < greatest || (score == greatest && !skips_greatest))
    }
}

type Found = Vec<(Text, f64)>;

fn pair((score, member): &(Score, Text)) -> (Text, f64) {
    (member.clone(), score.0)
}

fn in_order(sorted: Option<&Sorted>, is_reversed: bool) -> Found {
    let order = sorted.into_iter().flat_map(|sorted| &sorted.order).map(pair);
    let mut all: Vec<_> = order.collect();
    if is_reversed {
        all.reverse();
    }
    all
}

fn within(all: Found, bounds: &Bounds, limit: Option<(i64, i64)>) -> Found {
    let (offset, count) = limit.unwrap_or((0, -1));
    let Ok(offset) = usize::try_from(offset) else { return Vec::new() };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = all.into_iter().filter(|(_, score)| bounds.has(*score));
    found.skip(offset).take(count).collect()
}

fn reply(found: Found, with_scores: bool) -> Reply {
    match with_scores {
        true => Reply::Scored(found),
        false => Reply::Array(found.into_iter().map(|(member, _)| Reply::Bulk(member)).collect()),
    }
}

#[derive(Default)]
struct Options {
    by_score: bool,
    is_reversed: bool,
    with_scores: bool,
    limit: Option<(i64, i64)>,
}

/// Reads what follows the range. `ZRANGE` alone says how to read it.
fn options(args: &[Text], is_zrange: bool) -> Result<Options, Reply> {
    let (mut options, mut at) = (Options::default(), 4);
    while let Some(word) = args.get(at) {
        if is(word, "withscores") {
            options.with_scores = true;
        } else if is(word, "limit") {
            let (offset, count) = (after(args, at)?, after(args, at + 1)?);
            options.limit = Some((int(offset)?, int(count)?));
            at += 2;
        } else if is_zrange && !options.by_score && is(word, "byscore") {
            options.by_score = true;
        } else if is_zrange && !options.is_reversed && is(word, "rev") {
            options.is_reversed = true;
        } else {
            return syntax();
        }
        at += 1;
    }
    Ok(options)
}

fn by_index(state: &State, args: &[Text], is_reversed: bool, with_scores: bool) -> Done {
    let (start, stop) = (int(&args[2])?, int(&args[3])?);
    let all = in_order(sorted(state, &args[1])?, is_reversed);
    Ok(reply(all[range(start, stop, all.len())].to_vec(), with_scores))
}

fn zrange(state: &mut State, args: &[Text]) -> Done {
    let Options { by_score, is_reversed, with_scores, limit } = options(args, true)?;
    if !by_score {
        if limit.is_some_and(|(_, count)| count != -1) {
            return Err(Reply::error(
                "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ));
        }
        return by_index(state, args, is_reversed, with_scores);
    }
    select(state, args, is_reversed, with_scores, limit)
}

fn zrevrange(state: &mut State, args: &[Text]) -> Done {
    let with_scores = match &args[4..] {
        [] => false,
        [word] if is(word, "withscores") => true,
        _ => return syntax(),
    };
    by_index(state, args, true, with_scores)
}

fn by_score(state: &mut State, args: &[Text], is_reversed: bool) -> Done {
    let Options { with_scores, limit, .. } = options(args, false)?;
    select(state, args, is_reversed, with_scores, limit)
}

fn select(
    state: &State,
    args: &[Text],
    is_reversed: bool,
    with_scores: bool,
    limit: Option<(i64, i64)>,
) -> Done {
    // The greatest comes first in the reversed commands.
    let (least, greatest) = if is_reversed { (&args[3], &args[2]) } else { (&args[2], &args[3]) };
    let bounds = Bounds::parse(least, greatest)?;
    let all = in_order(sorted(state, &args[1])?, is_reversed);
    Ok(reply(within(all, &bounds, limit), with_scores))
}

fn zcount(state: &mut State, args: &[Text]) -> Done {
    let bounds = Bounds::parse(&args[2], &args[3])?;
    Ok(Reply::len(within(in_order(sorted(state, &args[1])?, false), &bounds, None).len()))
}

fn zremrangebyscore(state: &mut State, args: &[Text]) -> Done {
    let bounds = Bounds::parse(&args[2], &args[3])?;
    let found = within(in_order(sorted(state, &args[1])?, false), &bounds, None);
    remove_found(state, &args[1], &found)
}

fn zremrangebyrank(state: &mut State, args: &[Text]) -> Done {
    let (start, stop) = (int(&args[2])?, int(&args[3])?);
    let all = in_order(sorted(state, &args[1])?, false);
    remove_found(state, &args[1], &all[range(start, stop, all.len())])
}

fn remove_found(state: &mut State, key: &Text, found: &[(Text, f64)]) -> Done {
    let members: Vec<_> = found.iter().map(|(member, _)| member.clone()).collect();
    Ok(Reply::len(remove(state, key, &members)?))
}

/// Gives all at once, as Redis does with a small set.
fn zscan(state: &mut State, args: &[Text]) -> Done {
    // As `strtoul` reads it: with a sign, or nothing.
    let is_cursor = std::str::from_utf8(&args[2]).is_ok_and(|text| {
        text.is_empty() || text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok()
    });
    if !is_cursor {
        return Err(Reply::error("ERR invalid cursor"));
    }
    let found = sorted(state, &args[1])?;
    let options = if found.is_some() { &args[3..] } else { &[] };
    let mut all = in_order(found, false);
    for option in options.chunks(2) {
        match option {
            [word, pattern] if is(word, "match") => {
                all.retain(|(member, _)| matches(pattern, member));
            }
            [word, count] if is(word, "count") && int(count)? > 0 => {}
            _ => return syntax(),
        }
    }
    let score = |score| Reply::bulk(crate::redis::number::g17(score));
    let both = all.into_iter().flat_map(|(member, number)| [Reply::Bulk(member), score(number)]);
    Ok(Reply::Array(vec![Reply::bulk("0"), Reply::Array(both.collect())]))
}
