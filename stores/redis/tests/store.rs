//! What the store in Redis does beside what every store does: large outcomes, a Redis that is full or
//! forgets, apps that share one, and what is left behind.

mod support;

use std::time::{Duration, SystemTime};

use support::{Server, fresh_prefix};
use tower_offload::{
    Change, Claim, Digest, End, ErrorKind, Failure, JobId, Outcome, Record, Status, Store,
    store::{Changed, Inserted, Interest},
};
use tower_offload_redis::RedisStore;

const TTL: Duration = Duration::from_secs(3600);

async fn store(server: &Server) -> RedisStore {
    RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap()
}

fn running(ttl: Duration) -> Record {
    Record::running(JobId::random().unwrap(), SystemTime::now(), ttl)
}

async fn inserted(store: &RedisStore, ttl: Duration) -> JobId {
    let record = running(ttl).with_policy("reports".into());
    assert!(matches!(store.insert(record.clone(), 0).await.unwrap(), Inserted::New));
    record.id()
}

fn outcome(body: &[u8]) -> Outcome {
    Outcome::new(&http::Response::new(()).into_parts().0, body, None)
}

fn response(body: &[u8]) -> Change {
    Change::Finish(End::Response(outcome(body)))
}

/// Bytes of which no two pieces are alike.
fn long(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

async fn kept(store: &RedisStore, id: JobId) -> Option<Outcome> {
    let (_, outcome) = store.fetch(id, None).await.unwrap().expect("the job is there");
    Some(outcome?.whole().await.unwrap())
}

#[tokio::test]
async fn a_large_outcome_is_kept_in_chunks() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    // The largest in one piece, the smallest in two, and many.
    for bytes in [(1 << 20) - 64, 1 << 20, (1 << 20) + 4, 9 << 20] {
        let id = inserted(&store, TTL).await;
        let body = long(bytes);
        let changed = store.change(id, response(&body)).await.unwrap();
        assert!(matches!(changed, Changed::Applied(_)));
        assert!(kept(&store, id).await.unwrap().body() == body, "{bytes}");
        store.change(id, Change::Remove).await.unwrap();
        assert!(kept(&store, id).await.is_none());
    }
    assert!(!server.cli(&["keys", "*"]).contains(":o:"), "an outcome, or its chunks, are left");
}

#[tokio::test]
async fn chunks_that_come_too_late_are_dropped() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let id = inserted(&store, TTL).await;
    store.change(id, Change::Cancel).await.unwrap();
    let changed = store.change(id, response(&long(3 << 20))).await.unwrap();
    assert!(matches!(changed, Changed::Refused(record) if record.status() == Status::Canceled));
    assert_eq!(server.cli(&["keys", "*:o:*"]).trim(), "");
    assert!(kept(&store, id).await.is_none());
}

#[tokio::test]
async fn nothing_is_left_of_what_has_expired() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let ttl = Duration::from_millis(50);
    for number in 0..1000_u32 {
        let key = Digest::from([number as u8; 32]);
        let id = JobId::random_beside(&key).unwrap();
        let record =
            Record::running(id, SystemTime::now(), ttl).with_policy("a \"policy\": ü".into());
        let record = match number < 256 {
            true => record.with_claim(Claim::new(key, key)),
            false => record,
        };
        store.insert(record, 0).await.unwrap();
        let end = match number % 3 {
            0 => response(b"body"),
            1 => Change::Cancel,
            _ => Change::Finish(End::Failure(Failure::TimedOut)),
        };
        store.change(id, end).await.unwrap();
    }
    tokio::time::sleep(ttl * 4).await;
    assert_eq!(store.usage().await.unwrap(), []);
    // Redis drops by itself what nobody asks for, some at a time.
    let begun = tokio::time::Instant::now();
    // All but the lease of this process, and its name in each partition.
    let left = || {
        let keys = server.cli(&["keys", "*"]);
        keys.lines().filter(|key| !key.ends_with(":w")).count()
    };
    while left() != 1 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", server.cli(&["keys", "*"]));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn apps_with_prefixes_of_their_own_share_a_server() {
    let server = Server::start(&[]);
    let (one, other) = (store(&server).await, store(&server).await);
    let id = inserted(&one, TTL).await;
    assert!(other.read(id, None).await.unwrap().is_none());
    assert_eq!(other.usage().await.unwrap(), []);
    assert_eq!(one.usage().await.unwrap()[0].jobs, 1);
    for wrong in ["", "a{b", "a}b"] {
        let refused = RedisStore::builder(server.url()).prefix(wrong).connect().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_claim_of_another_partition_is_refused() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let (mut record, key) = (running(TTL), Digest::from([1; 32]));
    while record.id().partition() == key.partition() {
        record = running(TTL);
    }
    let refused = store.insert(record.clone().with_claim(Claim::new(key, key)), 0).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    assert!(store.claimed(key).await.unwrap().is_none());
    assert!(store.read(record.id(), None).await.unwrap().is_none());
}

#[tokio::test]
async fn a_server_that_drops_what_it_likes_is_refused_unless_that_is_wanted() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = RedisStore::connect(server.url()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("noeviction"), "{refused}");
    RedisStore::builder(server.url()).allow_eviction().connect().await.unwrap();
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_told_within_the_timeout() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begun = tokio::time::Instant::now();
    let refused = RedisStore::connect(format!("redis://127.0.0.1:{port}/")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let wrong = RedisStore::connect("http://127.0.0.1/").await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_full_redis_takes_no_job_and_lets_those_it_has_end() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let (first, second, third) =
        (inserted(&store, TTL).await, inserted(&store, TTL).await, inserted(&store, TTL).await);
    server.cli(&["config", "set", "maxmemory", "1"]);
    let refused = store.insert(running(TTL), 0).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreFull);
    // Not carried out at all: what could not be written now can be later.
    assert!(store.change(first, response(b"late")).await.is_err());
    assert_eq!(store.read(first, None).await.unwrap().unwrap().status(), Status::Running);
    let canceled = store.change(second, Change::Cancel).await.unwrap();
    assert!(matches!(canceled, Changed::Applied(_)));
    store.take_back(third).await.unwrap();
    assert!(store.read(third, None).await.unwrap().is_none());
    server.cli(&["config", "set", "maxmemory", "0"]);
    store.change(first, response(b"late")).await.unwrap();
    assert_eq!(kept(&store, first).await.unwrap().body(), "late");
}

#[tokio::test]
async fn scripts_that_were_forgotten_are_sent_again() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let id = inserted(&store, TTL).await;
    server.cli(&["script", "flush"]);
    store.change(id, response(b"body")).await.unwrap();
    server.cli(&["script", "flush"]);
    assert_eq!(kept(&store, id).await.unwrap().body(), "body");
}

#[tokio::test]
async fn what_a_newer_version_has_written_beside_is_left_as_it_is() {
    let server = Server::start(&[]);
    let store = store(&server).await;
    let id = inserted(&store, TTL).await;
    let key = server.cli(&["keys", "*:j:*"]);
    server.cli(&["hset", key.trim(), "priority", "{\"a\":[1]}"]);
    store.change(id, response(b"body")).await.unwrap();
    assert_eq!(store.read(id, None).await.unwrap().unwrap().status(), Status::Succeeded);
    assert_eq!(server.cli(&["hget", key.trim(), "priority"]).trim(), "{\"a\":[1]}");
}

#[tokio::test]
async fn whoever_waits_is_woken_though_the_connection_was_lost_meanwhile() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(server.url()).prefix(prefix);
    let (here, there) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    for round in 0..5 {
        let id = inserted(&here, TTL).await;
        let waiter = there.clone();
        let waiting = tokio::spawn(async move {
            // As callers do: the connection may be lost with the first look.
            while waiter.changed(id, 0, Interest::Status).await.is_err() {}
        });
        tokio::task::yield_now().await;
        server.cli(&["client", "kill", "type", "pubsub"]);
        if round % 2 == 0 {
            // Connected again, it hears of changes again.
            while there.read(id, None).await.is_err() {}
        }
        while here.change(id, Change::Cancel).await.is_err() {}
        let woken = tokio::time::timeout(Duration::from_secs(5), waiting).await;
        woken.expect("well before anybody looks by himself").unwrap();
    }
}

#[tokio::test]
async fn a_job_that_no_replica_has_is_not_accepted() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    let begun = tokio::time::Instant::now();
    while !server.has_a_replica() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no replica");
    }
    let prefix = fresh_prefix();
    // Half of it is for the replica, on a machine that may be busy.
    let builder = RedisStore::builder(server.url()).prefix(&prefix).timeout(Duration::from_secs(5));
    let store = builder.clone().wait_replicas(1).connect().await.unwrap();
    let id = inserted(&store, TTL).await;
    // It is there already.
    let key = format!("{{{prefix}:{:02}}}:j:{id}", id.partition());
    assert_eq!(replica.cli(&["hget", &key, "s"]).trim(), "running");
    drop(replica);
    let record = running(TTL);
    let refused = store.insert(record.clone(), 0).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    store.take_back(record.id()).await.unwrap();
    // All else goes on without.
    store.change(id, response(b"body")).await.unwrap();
    assert_eq!(kept(&store, id).await.unwrap().body(), "body");
}
