//! Nodes and their leases: what becomes of the jobs of a node that died or was cut off, and that an
//! outage of Redis is no node's death.

mod support;

use std::time::{Duration, SystemTime};

use support::{Cluster, Server, fresh_prefix, proxy::Proxy};
use tokio::time::{Instant, sleep, timeout};
use tower_offload::{
    Change, End, Failure, JobId, Outcome, Record, Status, Store,
    store::{Changed, Inserted, Interest},
};
use tower_offload_redis::{Builder, RedisStore};

const TTL: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(1);

async fn inserted(store: &RedisStore, make: fn(JobId, SystemTime, Duration) -> Record) -> JobId {
    let record = make(JobId::random().unwrap(), SystemTime::now(), TTL);
    assert!(matches!(store.insert(record.clone(), 0).await.unwrap(), Inserted::New));
    record.id()
}

async fn record(store: &RedisStore, id: JobId) -> Record {
    store.read(id, None).await.unwrap().expect("the job is there")
}

fn response() -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, b"done", None)))
}

/// Waits for the end of a job as whoever is asked for it does.
async fn end(store: &RedisStore, id: JobId) -> Record {
    loop {
        let record = record(store, id).await;
        if record.status().is_end() {
            return record;
        }
        store.changed(id, record.version(), Interest::Status).await.unwrap();
    }
}

/// The jobs of a node that is gone fail, those of others and those that had ended do not.
async fn the_jobs_of_a_dead_node_fail(builder: Builder) {
    let builder = builder.prefix(fresh_prefix()).lease(LEASE);
    let (dead, alive) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let mut lost = Vec::new();
    for number in 0..300 {
        lost.push(
            inserted(&dead, if number % 2 == 0 { Record::queued } else { Record::running }).await,
        );
    }
    let ended = inserted(&dead, Record::running).await;
    dead.change(ended, response()).await.unwrap();
    let others = inserted(&alive, Record::running).await;
    // As a process that is killed: nothing is said to anybody.
    drop(dead);
    let begun = Instant::now();
    for id in lost {
        let record = timeout(LEASE * 10, end(&alive, id)).await.expect("nobody ends it");
        assert_eq!((record.status(), record.failure()), (Status::Failed, Some(Failure::NodeLost)));
    }
    assert!(begun.elapsed() >= LEASE / 2, "its lease was not over");
    assert_eq!(record(&alive, ended).await.status(), Status::Succeeded);
    assert_eq!(record(&alive, others).await.status(), Status::Running);
    assert!(matches!(alive.change(others, response()).await.unwrap(), Changed::Applied(_)));
}

/// The list of fenced nodes is on another server, in a cluster, and is lost with that one alone.
#[tokio::test]
async fn a_node_that_only_partitions_have_fenced_goes_on_under_another_name() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let fence = || {
        let name = server.cli(&["zrevrange", &format!("{{{prefix}:nodes}}:l"), "0", "0"]);
        for partition in 0..JobId::PARTITIONS {
            let fences = format!("{{{prefix}:{partition:02}}}:f");
            server.cli(&["zadd", &fences, "9999999999999", name.trim()]);
        }
    };
    inserted(&store, Record::running).await;
    fence();
    inserted(&store, Record::running).await;
    fence();
    let id = JobId::random().unwrap();
    let record = Record::queued(id, SystemTime::now(), TTL);
    let record = record.with_policy("charges".into()).with_attempts(3);
    store.enqueue(record, "a request".into(), 0).await.unwrap();
    fence();
    let taken = timeout(LEASE * 10, store.take("charges".into())).await.expect("taken");
    assert_eq!(taken.unwrap().expect("it is due").0.id(), id);
}

/// Its lease is on another server than its jobs, in a cluster, and is lost with that one alone.
#[tokio::test]
async fn the_jobs_of_a_dead_node_fail_although_its_lease_is_lost() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(server.url()).prefix(&prefix).lease(LEASE);
    let dead = builder.clone().connect().await.unwrap();
    let id = inserted(&dead, Record::running).await;
    drop(dead);
    server.cli(&["del", &format!("{{{prefix}:nodes}}:l")]);
    let alive = builder.connect().await.unwrap();
    let record = timeout(LEASE * 10, end(&alive, id)).await.expect("nobody ends it");
    assert_eq!(record.failure(), Some(Failure::NodeLost));
    let left = server.cli(&["keys", "*:w"]);
    assert_eq!(left.trim(), "", "a node without jobs is listed yet");
}

#[tokio::test]
async fn the_jobs_of_a_dead_node_fail_on_a_server() {
    let server = Server::start(&[]);
    the_jobs_of_a_dead_node_fail(RedisStore::builder(server.url())).await;
    let left = server.cli(&["keys", "*:r:*"]);
    assert_eq!(left.trim(), "", "who is gone has jobs yet");
}

#[tokio::test]
async fn the_jobs_of_a_dead_node_fail_on_a_cluster() {
    let cluster = Cluster::start();
    the_jobs_of_a_dead_node_fail(RedisStore::cluster(cluster.urls())).await;
}

#[tokio::test]
async fn by_default_clients_know_within_15_seconds() {
    let server = Server::start(&[]);
    let (dead, alive) = (
        RedisStore::connect(server.url()).await.unwrap(),
        RedisStore::connect(server.url()).await.unwrap(),
    );
    // It has been there for long enough to know that Redis is well.
    sleep(Duration::from_secs(10)).await;
    let id = inserted(&dead, Record::running).await;
    drop(dead);
    let record = timeout(Duration::from_secs(15), end(&alive, id)).await.expect("too late");
    assert_eq!(record.failure(), Some(Failure::NodeLost));
}

#[tokio::test]
async fn a_node_that_was_cut_off_ends_nothing_any_more_and_goes_on_under_another_name() {
    let server = Server::start(&[]);
    let (prefix, proxy) = (fresh_prefix(), Proxy::start(server.port).await);
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(LEASE);
    let late = builder(proxy.url()).connect().await.unwrap();
    let alive = builder(server.url()).connect().await.unwrap();
    let (id, other) =
        (inserted(&late, Record::running).await, inserted(&late, Record::running).await);
    proxy.cut();
    assert!(late.change(other, response()).await.is_err());
    let lost = timeout(LEASE * 10, end(&alive, id)).await.expect("nobody ends it");
    assert_eq!(lost.failure(), Some(Failure::NodeLost));
    proxy.mend();
    let told = loop {
        match late.change(id, response()).await {
            Ok(told) => break told,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(
        matches!(told, Changed::Refused(record) if record.failure() == Some(Failure::NodeLost))
    );
    // Decided once: no outcome came after it.
    assert!(alive.fetch(id, None).await.unwrap().unwrap().1.is_none());
    let next = inserted(&late, Record::running).await;
    sleep(LEASE * 4).await;
    assert_eq!(record(&alive, next).await.status(), Status::Running, "it has a lease again");
    assert!(matches!(late.change(next, response()).await.unwrap(), Changed::Applied(_)));
}

/// What was lost is ended by whoever touches it, while those who end them are on their way.
#[tokio::test]
async fn a_fence_holds_before_the_jobs_are_ended() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let id = inserted(&store, Record::running).await;
    let key = server.cli(&["keys", "*:j:*"]);
    let node = server.cli(&["hget", key.trim(), "y"]);
    let fences = format!("{{{prefix}:{:02}}}:f", id.partition());
    server.cli(&["zadd", &fences, "9999999999999", node.trim()]);
    let told = store.change(id, response()).await.unwrap();
    assert!(
        matches!(told, Changed::Refused(record) if record.failure() == Some(Failure::NodeLost))
    );
    // And nothing begins under a name that is fenced.
    server.cli(&["zadd", &format!("{{{prefix}:nodes}}:f"), "9999999999999", node.trim()]);
    for _ in 0..200 {
        inserted(&store, Record::running).await;
    }
    for key in server.cli(&["keys", "*:r:*"]).lines().filter(|key| !key.is_empty()) {
        let is_of_the_partition = key.contains(&format!(":{:02}}}", id.partition()));
        assert!(!is_of_the_partition || !key.ends_with(node.trim()), "{key}");
    }
}

async fn nobody_is_lost_while_redis_is_away(lease: Duration, away: Duration) {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix()).lease(lease);
    let nodes = [
        builder.clone().connect().await.unwrap(),
        builder.clone().connect().await.unwrap(),
        builder.connect().await.unwrap(),
    ];
    let mut jobs = Vec::new();
    for node in &nodes {
        for _ in 0..20 {
            jobs.push((node, inserted(node, Record::running).await));
        }
    }
    sleep(lease * 2).await;
    server.pause();
    sleep(away).await;
    server.go_on();
    sleep(lease * 3).await;
    for (node, id) in jobs {
        assert_eq!(record(&nodes[0], id).await.status(), Status::Running);
        assert!(matches!(node.change(id, response()).await.unwrap(), Changed::Applied(_)));
    }
}

#[tokio::test]
async fn redis_away_for_a_few_leases_is_no_nodes_death() {
    nobody_is_lost_while_redis_is_away(LEASE, LEASE * 5).await;
}

#[tokio::test]
async fn redis_away_for_60_seconds_is_no_nodes_death() {
    nobody_is_lost_while_redis_is_away(Duration::from_secs(10), Duration::from_secs(60)).await;
}

/// A failover by hand: the replica is made the primary, and takes over its address.
#[tokio::test]
async fn a_replica_that_takes_over_has_what_was_promised_and_nobody_is_lost() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    let begun = Instant::now();
    while !server.has_a_replica() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no replica");
    }
    let proxy = Proxy::start(server.port).await;
    let builder = RedisStore::builder(proxy.url()).prefix(fresh_prefix()).lease(LEASE);
    let builder = builder.wait_replicas(1).timeout(Duration::from_secs(2));
    let nodes = [builder.clone().connect().await.unwrap(), builder.connect().await.unwrap()];
    let mut jobs = Vec::new();
    for node in &nodes {
        for _ in 0..50 {
            jobs.push((node, inserted(node, Record::running).await));
        }
    }
    sleep(LEASE * 2).await;
    drop(server);
    // Longer than a lease nobody can renew his.
    sleep(LEASE * 2).await;
    replica.cli(&["replicaof", "no", "one"]);
    proxy.lead_to(replica.port);
    sleep(LEASE * 3).await;
    for (node, id) in jobs {
        assert_eq!(record(&nodes[0], id).await.status(), Status::Running);
        assert!(matches!(node.change(id, response()).await.unwrap(), Changed::Applied(_)));
    }
}

#[tokio::test]
async fn a_lease_of_a_moment_is_refused() {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).lease(Duration::from_millis(999));
    let refused = builder.connect().await.unwrap_err();
    assert_eq!(refused.kind(), tower_offload::ErrorKind::Config);
}

/// A subscriber that panics at the store's own events.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let is_own = event.metadata().target().starts_with("tower_offload");
        assert!(!is_own, "told to");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn the_lease_is_renewed_though_the_subscriber_panics() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(server.url()).prefix(&prefix).lease(LEASE);
    let store = builder.clone().connect().await.unwrap();
    let id = inserted(&store, Record::running).await;
    let logs = tracing::subscriber::set_default(Panics);
    let leases = format!("{{{prefix}:nodes}}:l");
    server.cli(&["set", &leases, "x"]);
    sleep(LEASE).await;
    server.cli(&["del", &leases]);
    drop(logs);
    let renewed = async {
        while server.cli(&["zcard", &leases]).trim() != "1" {
            sleep(LEASE / 10).await;
        }
    };
    timeout(LEASE * 10, renewed).await.expect("nobody renews the lease");
    let other = builder.connect().await.unwrap();
    sleep(LEASE * 4).await;
    assert_eq!(record(&other, id).await.status(), Status::Running);
}

#[tokio::test]
async fn canceling_again_costs_the_same_after_each_lost_connection() {
    const JOBS: usize = 50;
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).lease(LEASE);
    let store = store.connect().await.unwrap();
    for _ in 0..JOBS {
        let id = inserted(&store, Record::running).await;
        // A client may ask for it more than once.
        for _ in 0..3 {
            store.change(id, Change::Cancel).await.unwrap();
        }
    }
    for cut in 1..=4 {
        let before = server.calls("evalsha");
        server.cli(&["client", "kill", "type", "normal"]);
        server.cli(&["client", "kill", "type", "pubsub"]);
        let compared = async {
            while server.calls("evalsha") - before < JOBS {
                sleep(LEASE / 10).await;
            }
        };
        timeout(LEASE * 10, compared).await.expect("nothing is canceled again");
        // More would come now. Beside these there are some renewals.
        sleep(LEASE).await;
        let made = server.calls("evalsha") - before;
        assert!(made < JOBS * 3 / 2, "{made} calls after cut {cut}");
    }
}

/// A comparison that finds what it cannot read is made as often as any other.
#[tokio::test]
async fn what_is_damaged_is_not_compared_at_each_renewal() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).lease(LEASE);
    let store = store.connect().await.unwrap();
    let id = inserted(&store, Record::running).await;
    store.change(id, Change::Cancel).await.unwrap();
    let lists = || server.calls("smembers");
    let all = 2 * usize::from(JobId::PARTITIONS);
    // Each partition's nodes, and this node's jobs there.
    let compared = async |before| {
        while lists() - before < all {
            sleep(LEASE / 10).await;
        }
    };
    timeout(LEASE * 10, compared(0)).await.expect("nothing is compared");
    let key = |partition: &str, kind: &str| format!("{{{prefix}:{partition}}}:{kind}");
    let node = server.cli(&["zrange", &format!("{{{prefix}:nodes}}:l"), "0", "0"]);
    server.cli(&["set", &key("03", "w"), "no list"]);
    server.cli(&["set", &key("04", &format!("r:{}", node.trim())), "no list"]);
    let no_text = "return redis.call('SADD', KEYS[1], '\\255', 'lost')";
    server.cli(&["eval", no_text, "1", &key("05", "w")]);
    let before = lists();
    server.cli(&["client", "kill", "type", "normal"]);
    server.cli(&["client", "kill", "type", "pubsub"]);
    timeout(LEASE * 10, compared(before)).await.expect("nothing is compared again");
    // The name beside the one that is no text was given a lease, and nobody renews it.
    let buried = async {
        while server.cli(&["sismember", &key("05", "w"), "lost"]).trim() != "0" {
            sleep(LEASE / 10).await;
        }
    };
    timeout(LEASE * 10, buried).await.expect("the other name has no lease");
    let after = lists();
    sleep(LEASE * 3).await;
    assert_eq!(lists(), after, "compared once more");
}
