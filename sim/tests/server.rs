//! The simulated Redis by itself: what its owner decides (clock, restarts, memory, replicas), its
//! protocol, and that no bytes make it panic.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tower_offload_sim::redis::{ConnId, Server, Snapshot};

/// A request of these words.
fn request(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + millis)
}

struct Client {
    server: Server,
    connection: ConnId,
}

impl Client {
    fn new() -> Self {
        let mut server = Server::new(7);
        server.set_time(at(0));
        let connection = server.connect();
        Self { server, connection }
    }

    fn all(&mut self, words: &[&str]) -> Vec<(ConnId, String)> {
        let sent = self.server.receive(self.connection, &request(words));
        sent.into_iter().map(|(to, bytes)| (to, String::from_utf8(bytes).unwrap())).collect()
    }

    /// What this client is sent.
    fn ask(&mut self, words: &[&str]) -> String {
        let connection = self.connection;
        let own = self.all(words).into_iter().filter(|(to, _)| *to == connection);
        own.map(|(_, text)| text).collect()
    }

    /// Connects again, as a client does after a restart.
    fn reconnect(&mut self) {
        assert!(!self.server.is_open(self.connection));
        self.connection = self.server.connect();
    }
}

const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";

#[test]
fn keys_expire_by_the_clock_that_is_set() {
    let mut client = Client::new();
    client.ask(&["SET", "a", "1", "PX", "1000"]);
    client.server.set_time(at(1000));
    assert_eq!(client.ask(&["PTTL", "a"]), ":0\r\n");
    client.server.set_time(at(400));
    assert_eq!(client.ask(&["PTTL", "a"]), ":600\r\n");
    client.server.set_time(at(1001));
    assert_eq!(client.ask(&["GET", "a"]), "$-1\r\n");
    // What has expired does not come back with an earlier time.
    client.server.set_time(at(0));
    assert_eq!(client.ask(&["EXISTS", "a"]), ":0\r\n");
    assert_eq!(client.ask(&["TIME"]), "*2\r\n$10\r\n1800000000\r\n$1\r\n0\r\n");
}

#[test]
fn restart_loses_the_last_writes_and_no_others() {
    let mut client = Client::new();
    let script =
        "redis.call('SET', 'a', 2) redis.call('SET', 'b', 2) return redis.call('GET', 'a')";
    client.ask(&["SET", "a", "1"]);
    assert_eq!(client.ask(&["EVAL", script, "0"]), "$1\r\n2\r\n");
    client.ask(&["GET", "a"]);
    client.ask(&["DEL", "missing"]);
    client.ask(&["DEL", "a"]);
    assert_eq!(client.server.writes(), 3);

    assert_eq!(client.server.restart(1), 1);
    client.reconnect();
    assert_eq!(client.ask(&["MGET", "a", "b"]), "*2\r\n$1\r\n2\r\n$1\r\n2\r\n");
    // Both writes of a script are lost as one.
    assert_eq!(client.server.restart(1), 1);
    client.reconnect();
    assert_eq!(client.ask(&["MGET", "a", "b"]), "*2\r\n$1\r\n1\r\n$-1\r\n");
    assert_eq!(client.server.restart(5), 1);
    client.reconnect();
    assert_eq!(client.ask(&["DBSIZE"]), ":0\r\n");
}

#[test]
fn restored_snapshot_is_the_data_as_it_was() {
    let mut client = Client::new();
    client.ask(&["RPUSH", "list", "1"]);
    client.ask(&["SET", "short", "1", "PX", "1000"]);
    let snapshot = client.server.snapshot();
    client.ask(&["RPUSH", "list", "2"]);
    client.server.set_time(at(2000));
    client.server.restore(&snapshot);
    client.reconnect();
    assert_eq!(client.ask(&["LRANGE", "list", "0", "-1"]), "*1\r\n$1\r\n1\r\n");
    // It expired while the server was away.
    assert_eq!(client.ask(&["EXISTS", "short"]), ":0\r\n");
    client.server.restore(&Snapshot::default());
    client.reconnect();
    assert_eq!(client.ask(&["DBSIZE"]), ":0\r\n");
}

#[test]
fn scripts_are_forgotten_in_a_restart() {
    let mut client = Client::new();
    let loaded = client.ask(&["SCRIPT", "LOAD", "return {1, 'a', false, 2.9, nil, 3}"]);
    let sha = loaded.lines().nth(1).unwrap().to_owned();
    assert_eq!(client.ask(&["EVALSHA", &sha, "0"]), "*4\r\n:1\r\n$1\r\na\r\n$-1\r\n:2\r\n");
    client.server.restart(0);
    client.reconnect();
    let refused = "-NOSCRIPT No matching script. Please use EVAL.\r\n";
    assert_eq!(client.ask(&["EVALSHA", &sha, "0"]), refused);
}

#[test]
fn filter_changes_a_script_and_not_its_sha() {
    let mut client = Client::new();
    let loaded = client.ask(&["SCRIPT", "LOAD", "return 'a'"]);
    client.server.set_script_filter(|script| script.replace("'a'", "'b'"));
    assert_eq!(client.ask(&["SCRIPT", "LOAD", "return 'a'"]), loaded);
    let sha = loaded.lines().nth(1).unwrap();
    assert_eq!(client.ask(&["EVALSHA", sha, "0"]), "$1\r\nb\r\n");
}

#[test]
fn only_what_needs_memory_is_refused_without_it() {
    let mut client = Client::new();
    client.ask(&["SET", "a", "1"]);
    client.server.set_maxmemory(Some(0));
    assert_eq!(client.ask(&["SET", "a", "2"]), OOM);
    assert_eq!(client.ask(&["EVAL", "#!lua\nreturn 1", "0"]), OOM);
    let allowed = "#!lua flags=allow-oom\nreturn redis.call('SET', 'a', 3)";
    assert_eq!(client.ask(&["EVAL", allowed, "0"]), "+OK\r\n");
    assert_eq!(client.ask(&["EVAL", "#!lua flags=no-writes\nreturn 1", "0"]), ":1\r\n");
    assert_eq!(client.ask(&["DEL", "a"]), ":1\r\n");
    client.server.set_maxmemory(Some(1000));
    assert_eq!(client.ask(&["SET", "a", &"x".repeat(1000)]), "+OK\r\n");
    assert_eq!(client.ask(&["SET", "b", "1"]), OOM);
}

#[test]
fn messages_reach_subscribed_connections() {
    let mut client = Client::new();
    let other = client.server.connect();
    let hello = client.server.receive(other, &request(&["HELLO", "3"]));
    assert!(hello[0].1.starts_with(b"%7\r\n"));
    let sent = client.server.receive(other, &request(&["SUBSCRIBE", "c", "d"]));
    let both =
        ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nd\r\n:2\r\n";
    assert_eq!(sent, [(other, both.as_bytes().to_vec())]);
    let sent = client.all(&["EVAL", "return redis.call('PUBLISH', 'c', 'x')", "0"]);
    let message = ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n".to_owned();
    assert_eq!(sent, [(other, message), (client.connection, ":1\r\n".to_owned())]);
    // A sharded channel of the same name is another one.
    assert_eq!(client.ask(&["SPUBLISH", "c", "x"]), ":0\r\n");
    client.server.disconnect(other);
    assert_eq!(client.ask(&["PUBLISH", "c", "x"]), ":0\r\n");
}

#[test]
fn wait_answers_with_the_replicas_that_were_set() {
    let mut client = Client::new();
    assert_eq!(client.ask(&["WAIT", "1", "500"]), ":0\r\n");
    client.server.set_replicas(2);
    assert_eq!(client.ask(&["WAIT", "1", "500"]), ":2\r\n");
}

#[test]
fn connection_that_breaks_the_protocol_is_closed() {
    let mut client = Client::new();
    let sent = client.server.receive(client.connection, b"*1\r\n$4\r\nPING\r\n*1\r\n!");
    assert_eq!(sent, [(client.connection, b"+PONG\r\n".to_vec())]);
    let sent = client.server.receive(client.connection, b"\r\n*1\r\n$4\r\nPING\r\n");
    let error = b"-ERR Protocol error: expected '$', got '!'\r\n".to_vec();
    assert_eq!(sent, [(client.connection, error)]);
    assert!(!client.server.is_open(client.connection));
    assert_eq!(client.server.receive(client.connection, &request(&["PING"])), []);
}

#[test]
fn same_calls_have_the_same_results() {
    let run = || {
        let mut client = Client::new();
        for number in 0..50 {
            client.ask(&["SADD", "s", &number.to_string()]);
        }
        (0..50).map(|_| client.ask(&["SRANDMEMBER", "s", "5"])).collect::<Vec<_>>()
    };
    let one = run();
    assert_eq!(one, run());
    assert!(one.iter().any(|reply| *reply != one[0]));
}

const NAMES: &[&str] = &[
    "GET",
    "SET",
    "DEL",
    "HSET",
    "HGET",
    "HDEL",
    "HGETALL",
    "HINCRBY",
    "HMGET",
    "SADD",
    "SREM",
    "SMEMBERS",
    "SRANDMEMBER",
    "SPOP",
    "ZADD",
    "ZREM",
    "ZSCORE",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZREMRANGEBYSCORE",
    "ZPOPMIN",
    "RPUSH",
    "LINDEX",
    "LRANGE",
    "LPOP",
    "PEXPIRE",
    "PEXPIREAT",
    "PTTL",
    "RENAME",
    "COPY",
    "TYPE",
    "HELLO",
    "CLIENT",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PUBLISH",
    "EVAL",
    "EVALSHA",
    "SCRIPT",
    "WAIT",
];

const WORDS: &[&str] = &[
    "a",
    "b",
    "c",
    "0",
    "1",
    "-1",
    "2",
    "9223372036854775807",
    "-9223372036854775808",
    "1e308",
    "inf",
    "(1",
    "-inf",
    "",
    "NX",
    "XX",
    "PX",
    "LIMIT",
    "BYSCORE",
    "WITHSCORES",
    "LOAD",
    "3",
    "return KEYS",
    "return redis.call(unpack(ARGV))",
];

proptest! {
    #[test]
    fn no_bytes_make_the_server_panic(parts in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
        let mut client = Client::new();
        for part in parts {
            client.server.receive(client.connection, &part);
        }
    }

    #[test]
    fn no_words_make_the_server_panic(
        commands in prop::collection::vec(
            (0..NAMES.len(), prop::collection::vec(0..WORDS.len(), 0..7)),
            1..60,
        ),
        millis in 0u64..10_000,
        lost in 0usize..10,
    ) {
        let mut client = Client::new();
        for (step, (name, words)) in commands.into_iter().enumerate() {
            let mut all = vec![NAMES[name]];
            all.extend(words.into_iter().map(|word| WORDS[word]));
            client.ask(&all);
            client.server.set_time(at(millis * (step as u64 % 7)));
        }
        client.server.restart(lost);
    }
}
