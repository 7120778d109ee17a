//! Single commands, with good and bad arguments.

use crate::{
    both::{Both, Compare},
    calls::Random,
};

/// Those whose replies are not random. `DBSIZE` counts what has expired too, until a real server sees
/// that it has. `UNLINK` and the like have no rows of their own.
const COMMANDS: &[(&str, usize)] = &[
    ("GET", 1),
    ("SET", 3),
    ("SET", 2),
    ("SET", 4),
    ("SET", 5),
    ("SETEX", 3),
    ("PSETEX", 3),
    ("SETNX", 2),
    ("GETDEL", 1),
    ("MGET", 3),
    ("STRLEN", 1),
    ("GETRANGE", 3),
    ("APPEND", 2),
    ("INCR", 1),
    ("DECRBY", 2),
    ("INCRBY", 2),
    ("DEL", 2),
    ("UNLINK", 1),
    ("EXISTS", 2),
    ("TYPE", 1),
    ("RENAME", 2),
    ("RENAMENX", 2),
    ("COPY", 2),
    ("COPY", 3),
    ("PERSIST", 1),
    ("TTL", 1),
    ("PTTL", 1),
    ("EXPIRETIME", 1),
    ("PEXPIRETIME", 1),
    ("EXPIRE", 2),
    ("EXPIRE", 3),
    ("PEXPIRE", 3),
    ("EXPIREAT", 2),
    ("PEXPIREAT", 3),
    ("HSET", 3),
    ("HSET", 5),
    ("HMSET", 3),
    ("HSETNX", 3),
    ("HGET", 2),
    ("HMGET", 3),
    ("HGETALL", 1),
    ("HKEYS", 1),
    ("HVALS", 1),
    ("HLEN", 1),
    ("HEXISTS", 2),
    ("HSTRLEN", 2),
    ("HDEL", 2),
    ("HINCRBY", 3),
    ("SADD", 3),
    ("SREM", 2),
    ("SMEMBERS", 1),
    ("SCARD", 1),
    ("SISMEMBER", 2),
    ("SMISMEMBER", 3),
    ("SMOVE", 3),
    ("ZADD", 3),
    ("ZADD", 4),
    ("ZADD", 5),
    ("ZADD", 6),
    ("ZINCRBY", 3),
    ("ZREM", 2),
    ("ZSCORE", 2),
    ("ZMSCORE", 3),
    ("ZCARD", 1),
    ("ZRANK", 2),
    ("ZREVRANK", 2),
    ("ZPOPMIN", 1),
    ("ZPOPMAX", 2),
    ("ZRANGE", 3),
    ("ZRANGE", 4),
    ("ZRANGE", 5),
    ("ZRANGE", 7),
    ("ZREVRANGE", 3),
    ("ZREVRANGE", 4),
    ("ZRANGEBYSCORE", 3),
    ("ZRANGEBYSCORE", 6),
    ("ZREVRANGEBYSCORE", 3),
    ("ZCOUNT", 3),
    ("ZREMRANGEBYSCORE", 3),
    ("ZREMRANGEBYRANK", 3),
    ("ZSCAN", 2),
    ("ZSCAN", 4),
    ("ZSCAN", 6),
    ("RPUSH", 2),
    ("RPUSH", 3),
    ("LPUSH", 2),
    ("LINDEX", 2),
    ("LRANGE", 3),
    ("LLEN", 1),
    ("LPOP", 1),
    ("RPOP", 2),
    ("LTRIM", 3),
    ("PING", 0),
    ("PING", 1),
    ("ECHO", 1),
    ("PUBLISH", 2),
    ("SPUBLISH", 2),
    ("SELECT", 1),
    ("WAIT", 2),
    ("NONE", 2),
    ("CLIENT", 1),
    ("SCRIPT", 1),
    ("SCRIPT", 2),
];

/// What a command's arguments are picked from, its keys aside.
const WORDS: &[&str] = &[
    "a",
    "b",
    "c",
    "0",
    "1",
    "2",
    "-1",
    "-2",
    "10",
    "1.5",
    "-0",
    "01",
    "+1",
    "1e3",
    "inf",
    "-inf",
    "(1",
    "(-inf",
    "nan",
    "",
    "x y",
    "9223372036854775807",
    "-9223372036854775808",
    "NX",
    "XX",
    "GT",
    "LT",
    "CH",
    "INCR",
    "LIMIT",
    "BYSCORE",
    "REV",
    "WITHSCORES",
    "GET",
    "KEEPTTL",
    "EX",
    "PX",
    "PXAT",
    "EXAT",
    "REPLACE",
    "MATCH",
    "COUNT",
    "*",
    "a*",
    "?",
    "EXISTS",
    "4000000000000",
    "1000000000",
    "100000",
];

const KEYS: &[&str] = &["one", "two", "three", "four"];

#[test]
fn commands_reply_as_in_a_real_server() {
    for seed in crate::seeds() {
        let mut both = Both::start(seed % 2 == 1, "a");
        let mut random = Random(seed);
        for number in 0..4000 {
            let (name, count) = COMMANDS[random.below(COMMANDS.len())];
            // One word too few or too many now and then.
            let count = if random.once_in(30) { random.below(6) } else { count };
            let mut words = vec![name];
            for at in 0..count {
                let from = if at == 0 || random.once_in(8) { KEYS } else { WORDS };
                words.push(random.pick(from));
            }
            // What expires soon could do so between the two servers.
            if matches!(name, "SET" | "SETEX" | "PSETEX" | "EXPIRE" | "PEXPIRE") {
                words
                    .iter_mut()
                    .filter(|word| matches!(**word, "1" | "2" | "10"))
                    .for_each(|word| *word = "1000000");
            }
            // A replica that is not there would be waited for.
            if name == "WAIT" && count == 2 {
                words = vec!["WAIT", "0", random.pick(&["0", "-1", "x"])];
            }
            let compare = match name {
                "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME" => Compare::Roughly,
                "SMEMBERS" => Compare::Unordered,
                _ => Compare::Exactly,
            };
            if random.once_in(200) {
                both.set_out_of_memory(true);
            }
            both.ask(&words, compare);
            both.set_out_of_memory(false);
            if number % 500 == 499 {
                both.compare_keys();
                both.clear();
            }
        }
        both.end();
    }
}
