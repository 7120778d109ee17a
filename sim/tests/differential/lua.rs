//! What Lua and Redis make of each other's values and errors.

use crate::both::{Both, Compare};

/// Scripts that end well or not. `KEYS` are `text`, `hash`, `list`, `zset` and `none`, `ARGV` are `a`
/// and `2`.
const SCRIPTS: &[&str] = &[
    "return nil",
    "return true",
    "return false",
    "return 3.99",
    "return -3.99",
    "return 1e30",
    "return 0/0",
    "return 'text'",
    "return {1, 'a', {2, {}}, true, false, 3}",
    "return {1, nil, 3}",
    "return {false, 1}",
    "return {ok = 'FINE'}",
    "return {err = 'MY error'}",
    "return {err = 'one'}",
    "return {double = 3.5}",
    "return {double = 2}",
    "return redis.error_reply('MY error')",
    "return redis.error_reply('-MY error')",
    "return redis.error_reply('one')",
    "return redis.status_reply('FINE')",
    "return redis.sha1hex('text')",
    "return {#KEYS, #ARGV, KEYS[1], ARGV[2]}",
    "return tostring(1e15) .. tostring(1e14) .. tostring(1/3)",
    "return 1700000000000 .. ''",
    "return string.format('%.0f %06d', 1.5e18, '12')",
    "return {tonumber('0x10'), tonumber('  5  '), tonumber('5x'), tonumber('1e3')}",
    "return {string.match('ab 12', '^(%S+) (%d+)$')}",
    "return type(redis.call('GET', KEYS[5]))",
    "return redis.call('GET', KEYS[1])",
    "return redis.call('TYPE', KEYS[1])",
    "return redis.call('TYPE', KEYS[2]).ok",
    "return redis.call('HGETALL', KEYS[2])",
    "return #redis.call('HGETALL', KEYS[2])",
    "return redis.call('HMGET', KEYS[2], 'a', 'none')",
    "return redis.call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES')",
    "return redis.call('ZSCORE', KEYS[4], 'a')",
    "return type(redis.call('ZSCORE', KEYS[4], 'a'))",
    "return redis.call('ZSCORE', KEYS[4], 'none') == false",
    "return redis.call('LRANGE', KEYS[3], 0, -1)",
    "return redis.call('SET', KEYS[5], 10/3) and redis.call('GET', KEYS[5])",
    "return redis.call('SET', KEYS[5], 2^53) and redis.call('GET', KEYS[5])",
    "return redis.call('SET', KEYS[5], 1e17) and redis.call('GET', KEYS[5])",
    "return redis.call('SET', KEYS[5], -0) and redis.call('GET', KEYS[5])",
    "return redis.call('SET', KEYS[5], 1e-7) and redis.call('GET', KEYS[5])",
    "return redis.call('ZADD', KEYS[5], 0.1, 'x') and redis.call('ZSCORE', KEYS[5], 'x')",
    "return redis.call('HINCRBY', KEYS[5], 'x', -ARGV[2])",
    "return redis.call('SET', KEYS[5], 'a\\0b') and redis.call('GET', KEYS[5])",
    "return redis.pcall('GET', KEYS[2])",
    "return redis.pcall('GET', KEYS[2]).err",
    "return {pcall(redis.call, 'GET', KEYS[2])}",
    "return {pcall(function() error({err = 'MY error'}) end)}",
    "return {pcall(function() error('text') end)}",
    "return {pcall(function() return 1, 2 end)}",
    "return select(2, pcall(function() local t return t.x end))",
    "return {pcall(function() return none end)}",
    "return redis.call('GET', KEYS[2])",
    "local x = redis.call('GET', KEYS[2])\nreturn x",
    "\n\nredis.call('GET', KEYS[2])",
    "return redis.call('NONE')",
    "return redis.call('GET')",
    "return redis.call('GET', 'a', 'b')",
    "return redis.call()",
    "return redis.call({})",
    "return redis.call('GET', nil)",
    "return redis.call('GET', true)",
    "return redis.call('WAIT', 1, 1)",
    "return redis.call('SUBSCRIBE', 'x')",
    "return redis.call('EVAL', 'return 1', 0)",
    "return redis.pcall('NONE')",
    "error('text')",
    "error('text', 0)",
    "error({err = 'MY error'})",
    "local t\nreturn t.x",
    "return 1 + {}",
    "return none",
    "none = 1",
    "KEYS = 1",
    "string.x = 1",
    "redis.call = 1",
    "return math.max(1, 2)",
    "return table.concat({'a', 'b'}, ' ')",
    "return {unpack({1, 2, 3}, 2)}",
    "return print",
    "return os",
    "return _G.KEYS[1]",
    "return #",
    "#!lua\nreturn 1",
    "#!lua flags=no-writes\nreturn redis.call('SET', KEYS[5], 1)",
    "#!lua flags=no-writes\nreturn redis.call('PUBLISH', 'x', 'y')",
    "#!lua flags=no-writes\nreturn redis.call('GET', KEYS[1])",
    "#!lua flags=none\nreturn 1",
    "#!js\nreturn 1",
    "#!lua\n\nlocal t\nreturn t.x",
    "#!lua",
    "return redis.call('PEXPIRE', KEYS[1], '1.5')",
    "return redis.call('PEXPIREAT', KEYS[1], 1e20)",
    "return redis.call('PEXPIREAT', KEYS[1], 4e12)",
    "return redis.call('SRANDMEMBER', KEYS[5], 100)",
    "return redis.call('PING')",
    "return redis.call('publish', 'x', 'y')",
];

#[test]
fn lua_values_and_errors_are_those_of_a_real_server() {
    for is_resp3 in [false, true] {
        let mut both = Both::start(is_resp3, "x");
        for (number, script) in SCRIPTS.iter().enumerate() {
            both.clear();
            both.ask(&["SET", "text", "value"], Compare::Exactly);
            both.ask(&["HSET", "hash", "a", "1", "b", "2"], Compare::Exactly);
            both.ask(&["RPUSH", "list", "1", "2"], Compare::Exactly);
            both.ask(&["ZADD", "zset", "1.5", "a", "2", "b"], Compare::Exactly);
            let arguments = ["5", "text", "hash", "list", "zset", "none", "a", "2"];
            // Out of memory what is first to grow is refused, unless the script says that it may.
            for is_out_of_memory in [false, true] {
                both.set_out_of_memory(is_out_of_memory);
                for command in ["EVAL", "EVAL_RO"] {
                    let words = [&[command, script][..], &arguments].concat();
                    both.ask(&words, Compare::Exactly);
                }
            }
            both.set_out_of_memory(false);
            assert!(both.compare_keys() >= 4, "{number}: {script}");
        }
        both.end();
    }
}
