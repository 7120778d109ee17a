//! A cluster whose primaries have replicas: what is promised is in them, and they take over.

mod support;

use std::time::{Duration, SystemTime};

use support::{Cluster, Server, fresh_prefix};
use tokio::time::{Instant, sleep, timeout};
use tower_offload::{
    Change, End, Error, JobId, Outcome, Record, Status, Store,
    store::{Changed, Interest},
};
use tower_offload_redis::{Builder, RedisStore};

const TTL: Duration = Duration::from_secs(3600);

/// How long a cluster, or a replica, may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn running() -> Record {
    Record::running(JobId::random().unwrap(), SystemTime::now(), TTL)
}

fn response() -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, b"done", None)))
}

async fn status(store: &RedisStore, id: JobId) -> Status {
    store.read(id, None).await.unwrap().expect("the job is there").status()
}

/// What comes of it once the store answers.
async fn at_last<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whose 202 waits for a replica, which on a busy machine may take its time.
fn waiting(builder: Builder) -> Builder {
    builder.prefix(fresh_prefix()).wait_replicas(1).timeout(Duration::from_secs(4))
}

/// Jobs of each of the 64 partitions, some of them.
async fn jobs(store: &RedisStore, each: usize) -> Vec<JobId> {
    let mut jobs = Vec::new();
    while jobs.len() < each * usize::from(JobId::PARTITIONS) {
        let record = running();
        let of_it = |id: &&JobId| id.partition() == record.id().partition();
        if jobs.iter().filter(of_it).count() < each {
            // One that is refused may be there all the same, but nobody was promised it.
            if store.insert(record.clone(), 0).await.is_ok() {
                jobs.push(record.id());
            }
        }
    }
    jobs
}

fn replicas_are_online(primaries: &[Server]) {
    let begun = std::time::Instant::now();
    while !primaries.iter().all(Server::has_a_replica) {
        assert!(begun.elapsed() < PATIENCE, "no replicas");
    }
}

#[tokio::test]
async fn a_primary_that_is_killed_loses_no_job_and_nobody_takes_a_node_for_dead() {
    let cluster = Cluster::with_replicas(1);
    replicas_are_online(&cluster.nodes[..3]);
    let builder = waiting(RedisStore::cluster(cluster.urls()));
    let (here, there) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let jobs = jobs(&here, 1).await;
    cluster.nodes[0].kill();
    for (number, id) in jobs.iter().enumerate() {
        let found = at_last(async || there.read(*id, None).await).await;
        assert_eq!(found.expect("it was promised").status(), Status::Running);
        if number % 2 == 0 {
            let changed = at_last(async || here.change(*id, response()).await).await;
            // The answer to the first attempt may have been lost.
            assert!(!matches!(changed, Changed::Unknown), "{changed:?}");
            assert_eq!(status(&there, *id).await, Status::Succeeded);
        }
    }
    // Whoever waits is told of a change in a partition of the replica that took over, and not only
    // once it looks again of itself, which it does after ten seconds.
    for id in jobs.iter().skip(1).step_by(2) {
        let seen = there.read(*id, None).await.unwrap().unwrap().version();
        let woken = tokio::spawn(there.changed(*id, seen, Interest::Status));
        assert!(matches!(here.change(*id, Change::Cancel).await.unwrap(), Changed::Applied(_)));
        timeout(PATIENCE, woken).await.expect("it is told").unwrap().unwrap();
        assert_eq!(status(&there, *id).await, Status::Canceled);
    }
    // The shard that has lost its primary has no replica any more, and says so.
    let lost = jobs.iter().find(|id| cluster_has(&cluster.nodes[3..], **id)).copied();
    let partition = lost.expect("a replica took over").partition();
    let record = loop {
        let record = running();
        if record.id().partition() == partition {
            break record;
        }
    };
    assert!(there.insert(record, 0).await.is_err());
}

/// Whether one of these is the primary of a job.
fn cluster_has(nodes: &[Server], id: JobId) -> bool {
    let primary = nodes.iter().find(|node| node.cli(&["role"]).starts_with("master"));
    primary.is_some_and(|node| node.cli(&["keys", "*:j:*"]).contains(&id.to_string()))
}

#[tokio::test]
async fn a_job_waits_for_the_replica_of_its_own_primary() {
    let cluster = Cluster::with_replicas(1);
    replicas_are_online(&cluster.nodes[..3]);
    let builder = RedisStore::cluster(cluster.urls()).prefix(fresh_prefix()).wait_replicas(1);
    // Long enough for a replica, and short enough for one that is paused not to be taken for failed.
    let store = builder.timeout(Duration::from_secs(1)).connect().await.unwrap();
    jobs(&store, 1).await;
    let paused = &cluster.nodes[4];
    paused.pause();
    let (mut kept, mut refused) = (0, 0);
    while (kept == 0 || refused == 0) && kept + refused < 200 {
        let record = running();
        match store.insert(record.clone(), 0).await {
            Ok(_) => kept += 1,
            Err(_) => {
                refused += 1;
                at_last(async || store.take_back(record.id()).await).await;
                assert!(store.read(record.id(), None).await.unwrap().is_none());
            }
        }
    }
    paused.go_on();
    assert!(kept > 0 && refused > 0, "{kept} kept, {refused} refused");
}

#[tokio::test]
async fn behind_a_replica_that_is_silent_little_is_held() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    replicas_are_online(std::slice::from_ref(&server));
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix()).wait_replicas(1);
    let store = builder.connect().await.unwrap();
    let durable = || {
        let id = JobId::random().unwrap();
        Record::queued(id, SystemTime::now(), TTL).with_policy("work".into()).with_attempts(1)
    };
    at_last(async || store.enqueue(durable(), "request".into(), 0).await).await;
    replica.pause();
    let request = bytes::Bytes::from(vec![b'x'; 256 << 10]);
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (store, request) = (store.clone(), request.clone());
            tokio::spawn(async move { store.enqueue(durable(), request, 0).await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
    let used = server.used_memory();
    assert!(used < 16 << 20, "{used} bytes, of 50 MiB that were sent");
    // And when the replica is back, the next job is accepted.
    replica.go_on();
    at_last(async || store.enqueue(durable(), request.clone(), 0).await).await;
}

#[tokio::test]
async fn scripts_that_a_server_has_forgotten_are_sent_again_where_replicas_are_waited_for() {
    let server = Server::start(&[]);
    let _replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    replicas_are_online(std::slice::from_ref(&server));
    let store = waiting(RedisStore::builder(server.url())).connect().await.unwrap();
    server.cli(&["script", "flush"]);
    let record = running();
    store.insert(record.clone(), 0).await.unwrap();
    assert_eq!(status(&store, record.id()).await, Status::Running);
}
