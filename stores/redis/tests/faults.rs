//! Connections that hang, Redis that forgets, is full, or has its clock or its slots moved, and values in
//! it that are not as they should be.

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use support::{Cluster, Server, fresh_prefix, proxy::Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_offload::{
    Change, Claim, Digest, End, Failure, JobId, Outcome, Record, Status, Store,
    store::{Inserted, Interest},
};
use tower_offload_redis::RedisStore;

const TTL: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(1);

fn running() -> Record {
    Record::running(JobId::random().unwrap(), SystemTime::now(), TTL)
}
async fn inserted(store: &RedisStore) -> JobId {
    let record = running();
    assert!(matches!(store.insert(record.clone(), 0).await.unwrap(), Inserted::New));
    record.id()
}
fn response(bytes: usize) -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, &vec![b'x'; bytes], None)))
}
async fn status(store: &RedisStore, id: JobId) -> Status {
    store.read(id, None).await.unwrap().unwrap().status()
}

/// A wire with a delay, whose present connections can go silent, and that can be led elsewhere.
struct Wire {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    /// Connections older than this are silent (nothing is passed on, nothing closed).
    silent_below: watch::Sender<u64>,
    epoch: u64,
    closed_below: watch::Sender<u64>,
    current: Arc<std::sync::atomic::AtomicU64>,
}
impl Wire {
    async fn start(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(AtomicU16::new(port));
        let current = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (silent_below, silent) = watch::channel(0);
        let (closed_below, closed) = watch::channel(0);
        let (to, now) = (Arc::clone(&target), Arc::clone(&current));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let epoch = now.load(SeqCst);
                let (silent, mut closed) = (silent.clone(), closed.clone());
                let port = to.load(SeqCst);
                tokio::spawn(async move {
                    client.set_nodelay(true).unwrap();
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    server.set_nodelay(true).unwrap();
                    let ((cr, cw), (sr, sw)) = (client.into_split(), server.into_split());
                    tokio::select! {
                        _ = pump(cr, sw, silent.clone(), epoch, delay) => {}
                        _ = pump(sr, cw, silent, epoch, delay) => {}
                        _ = closed.wait_for(|below| *below > epoch) => {}
                    }
                });
            }
        });
        Self { address, target, silent_below, closed_below, epoch: 0, current }
    }
    fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }
    fn silence(&mut self) {
        self.epoch += 1;
        self.current.store(self.epoch, SeqCst);
        self.silent_below.send_replace(self.epoch);
    }
    fn thaw(&mut self) {
        self.silent_below.send_replace(0);
    }
    fn lead_to(&mut self, port: u16) {
        self.target.store(port, SeqCst);
        self.epoch += 1;
        self.current.store(self.epoch, SeqCst);
        self.closed_below.send_replace(self.epoch);
    }
}
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    to: tokio::net::tcp::OwnedWriteHalf,
    mut silent: watch::Receiver<u64>,
    epoch: u64,
    delay: Duration,
) {
    let mut to = to;
    // A pipe: what comes is passed on `delay` later, whatever came before it.
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let write = async move {
        while let Some((at, bytes)) = rx.recv().await {
            tokio::time::sleep_until(at + delay).await;
            let _ = silent.wait_for(|below| *below <= epoch).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n) = from.read(&mut buffer).await {
            if n == 0 || tx.send((Instant::now(), buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    };
    tokio::join!(write, read);
}

/// A store that waits for a replica that there is not: half a second for each job.
async fn without_replica() -> (Server, RedisStore) {
    let server = Server::start(&[]);
    let builder = RedisStore::builder(server.url()).prefix(fresh_prefix()).wait_replicas(1);
    let store = builder.connect().await.unwrap();
    (server, store)
}

/// How many of the jobs that these tasks have undone are open, once all that was held up has come.
async fn open_at_last(store: &RedisStore, tasks: Vec<JoinHandle<JobId>>) -> usize {
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    sleep(Duration::from_secs(6)).await;
    let mut left = 0;
    for id in ids {
        let record = store.read(id, None).await.unwrap();
        left += usize::from(record.is_some_and(|record| !record.status().is_end()));
    }
    left
}

#[tokio::test]
async fn an_insert_that_waits_for_replicas_is_not_carried_out_after_it_was_taken_back() {
    let (_server, store) = without_replica().await;
    let mut tasks = Vec::new();
    for number in 0..8 {
        if number == 4 {
            // The first four have been sent, and each waits half a second for a replica.
            sleep(Duration::from_millis(100)).await;
        }
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut record = running();
            let key = Digest::from([7; 32]);
            if number == 7 {
                let id = JobId::random_beside(&key).unwrap();
                record =
                    Record::running(id, SystemTime::now(), TTL).with_claim(Claim::new(key, key));
            }
            assert!(store.insert(record.clone(), 0).await.is_err());
            while store.take_back(record.id()).await.is_err() {}
            record.id()
        }));
    }
    assert_eq!(
        open_at_last(&store, tasks).await,
        0,
        "jobs that were taken back are there, running"
    );
}

#[tokio::test]
async fn chunks_that_were_given_up_expire() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url())
        .prefix(fresh_prefix())
        .timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    let id = inserted(&store).await;
    server.pause();
    assert!(store.change(id, response(3 << 20)).await.is_err());
    server.go_on();
    sleep(Duration::from_millis(500)).await;
    for key in server.cli(&["keys", "*:o:*"]).lines() {
        let ttl = server.cli(&["ttl", key]);
        assert_ne!(ttl.trim(), "-1", "{key} is kept for ever");
    }
}

#[tokio::test]
async fn the_chunks_of_an_outcome_that_found_no_room_do_not_take_it_up() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let id = inserted(&store).await;
    let used = server.used_memory();
    let set = |bytes: usize| server.cli(&["config", "set", "maxmemory", &bytes.to_string()]);
    // Room for half of it.
    set(used + (5 << 20));
    assert!(store.change(id, response(8 << 20)).await.is_err());
    // Now there is room for it and half as much again.
    set(used + (12 << 20));
    let mut last = None;
    for _ in 0..5 {
        match store.change(id, response(8 << 20)).await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(200)).await;
    }
    let keys = server.cli(&["keys", "*:o:*"]);
    panic!("{:?}\n{keys}", last.unwrap());
}

#[tokio::test]
async fn one_job_that_is_not_as_it_should_be_keeps_no_other_from_its_end() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(server.url()).prefix(&prefix).lease(LEASE);
    let (dead, alive) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    // All of one partition.
    let key = Digest::from([0; 32]);
    let mut ids = Vec::new();
    for _ in 0..50 {
        let id = JobId::random_beside(&key).unwrap();
        dead.insert(Record::running(id, SystemTime::now(), TTL), 0).await.unwrap();
        ids.push(id);
    }
    let wrong = ids.pop().unwrap();
    server.cli(&["hset", &format!("{{{prefix}:00}}:j:{wrong}"), "t", "wrong"]);
    drop(dead);
    sleep(LEASE * 8).await;
    let mut left = 0;
    for id in &ids {
        left += usize::from(status(&alive, *id).await == Status::Running);
    }
    assert_eq!(alive.read(wrong, None).await.unwrap().unwrap().failure(), Some(Failure::Corrupt));
    let sets = server.cli(&["keys", "*:r:*"]);
    assert_eq!(left, 0, "of {} jobs of a dead node; its sets: {sets:?}", ids.len());
}

/// A store behind a wire that may fall silent, whose calls take no longer than 200 ms.
async fn impatient(wire: &Wire) -> RedisStore {
    let builder = RedisStore::builder(wire.url()).prefix(fresh_prefix());
    builder.timeout(Duration::from_millis(200)).connect().await.unwrap()
}

#[tokio::test]
async fn a_connection_that_is_silent_is_replaced() {
    let server = Server::start(&[]);
    let mut wire = Wire::start(server.port, Duration::ZERO).await;
    let store = impatient(&wire).await;
    let id = inserted(&store).await;
    wire.silence();
    let begun = Instant::now();
    while store.read(id, None).await.is_err() {
        sleep(Duration::from_millis(20)).await;
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "Redis can be reached, by a new connection"
        );
    }
    eprintln!("again after {:?}", begun.elapsed());
}

#[tokio::test]
async fn who_ends_the_jobs_of_a_dead_node_is_not_taken_for_dead() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let wire = Wire::start(server.port, Duration::from_millis(20)).await;
    let builder = |url| RedisStore::builder(url).prefix(prefix.clone()).lease(LEASE);
    let far = builder(wire.url()).connect().await.unwrap();
    let dead = builder(server.url()).connect().await.unwrap();
    let held = inserted(&far).await;
    sleep(LEASE * 2).await;
    for _ in 0..200 {
        inserted(&dead).await;
    }
    drop(dead);
    // As in a rollout: one that starts while another goes.
    sleep(LEASE / 2).await;
    let near = builder(server.url()).connect().await.unwrap();
    sleep(LEASE * 8).await;
    let record = near.read(held, None).await.unwrap().unwrap();
    assert_eq!((record.status(), record.failure()), (Status::Running, None));
}

#[tokio::test]
async fn nothing_is_counted_of_what_was_removed_and_has_expired() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let record =
        Record::running(JobId::random().unwrap(), SystemTime::now(), Duration::from_millis(200))
            .with_policy("reports".into());
    store.insert(record.clone(), 0).await.unwrap();
    store.change(record.id(), response(100)).await.unwrap();
    store.change(record.id(), Change::Remove).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(store.usage().await.unwrap(), []);
}

#[tokio::test]
async fn a_primary_that_is_gone_is_no_matter_of_the_others() {
    let cluster = Cluster::start();
    for node in &cluster.nodes {
        node.cli(&["config", "set", "cluster-require-full-coverage", "no"]);
    }
    let store = RedisStore::cluster(cluster.urls()).prefix(fresh_prefix()).connect().await.unwrap();
    let id = loop {
        // One that the first node has.
        let id = inserted(&store).await;
        if cluster.nodes[0].cli(&["keys", "*:j:*"]).contains(&id.to_string()) {
            break id;
        }
    };
    let mut nodes = cluster.nodes;
    drop(nodes.pop());
    // As after a restart, or on a replica that took over: scripts are not replicated.
    nodes[0].cli(&["script", "flush"]);
    let begun = Instant::now();
    loop {
        match store.change(id, Change::Cancel).await {
            Ok(_) => break,
            Err(error) => {
                use std::error::Error;
                assert!(
                    begun.elapsed() < Duration::from_secs(15),
                    "{error}: {:?}; keys: read {:?}",
                    error.source(),
                    store.read(id, None).await.map(|r| r.unwrap().status())
                );
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_insert_that_was_held_up_is_not_carried_out_after_it_was_taken_back() {
    let server = Server::start(&[]);
    let mut wire = Wire::start(server.port, Duration::ZERO).await;
    let store = impatient(&wire).await;
    inserted(&store).await;
    wire.silence();
    let record = running();
    assert!(store.insert(record.clone(), 0).await.is_err());
    let begun = Instant::now();
    let mut tried = 0;
    while store.take_back(record.id()).await.is_err() {
        tried += 1;
        sleep(Duration::from_millis(20)).await;
        if begun.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    eprintln!("taken back after {:?}, {tried} tries", begun.elapsed());
    // It holds for as long as the node lives, however long the insert is under way.
    let note = server.cli(&["keys", "*:x:*"]);
    assert_eq!(server.cli(&["pttl", note.trim()]).trim(), "-1", "{note}");
    wire.thaw();
    sleep(Duration::from_secs(1)).await;
    while store.take_back(running().id()).await.is_err() {}
    assert!(store.read(record.id(), None).await.unwrap().is_none(), "it is there");
}

#[tokio::test]
async fn an_insert_into_a_cluster_is_not_carried_out_after_it_was_taken_back() {
    let cluster = Cluster::start();
    for node in &cluster.nodes {
        node.cli(&["config", "set", "cluster-node-timeout", "60000"]);
    }
    let store = RedisStore::cluster(cluster.urls())
        .prefix(fresh_prefix())
        .timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    for _ in 0..200 {
        inserted(&store).await;
    }
    let mut left = Vec::new();
    for round in 0..6 {
        for node in &cluster.nodes {
            node.pause();
        }
        let mut records = Vec::new();
        for _ in 0..4 {
            let record = running();
            let store = store.clone();
            records.push(tokio::spawn(async move {
                let told = store.insert(record.clone(), 0).await;
                assert!(told.is_err());
                while store.take_back(record.id()).await.is_err() {
                    sleep(Duration::from_millis(5)).await;
                }
                record.id()
            }));
        }
        sleep(Duration::from_millis(450 + round * 130)).await;
        for node in &cluster.nodes {
            node.go_on();
        }
        let mut ids = Vec::new();
        for task in records {
            ids.push(task.await.unwrap());
        }
        sleep(Duration::from_secs(2)).await;
        for id in ids {
            if store.read(id, None).await.unwrap().is_some() {
                left.push((round, id));
            }
        }
    }
    assert_eq!(left, [], "jobs that were taken back are there, running");
}

async fn failover() -> (bool, Status) {
    let server = Server::start(&[]);
    let mut wire = Wire::start(server.port, Duration::ZERO).await;
    let mut between = Wire::start(server.port, Duration::ZERO).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &between.address.port().to_string()]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    while !server.has_a_replica() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(50)).await;
    }
    let store = RedisStore::builder(wire.url())
        .prefix(fresh_prefix())
        .lease(LEASE)
        .connect()
        .await
        .unwrap();
    let (ends, runs) = (inserted(&store).await, inserted(&store).await);
    sleep(Duration::from_millis(1500)).await;
    between.silence();
    // The replica gets no more.
    for step in 0..3 {
        let p = tower_offload::Progress::new(Some(f64::from(step) / 10.0), None);
        store.change(runs, Change::Progress(p)).await.unwrap();
    }
    store.change(ends, response(10)).await.unwrap();
    let seen = store.read(runs, None).await.unwrap().unwrap().version();
    assert_eq!(seen, 3);
    let waiter = {
        let store = store.clone();
        // The node that runs the job waits to be told that it is canceled.
        tokio::spawn(async move {
            while store.changed(runs, seen, Interest::Status).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        })
    };
    sleep(Duration::from_millis(200)).await;
    replica.cli(&["replicaof", "no", "one"]);
    wire.lead_to(replica.port);
    drop(server);
    let begun = Instant::now();
    while store.read(runs, None).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(20)).await;
    }
    eprintln!(
        "after: runs v{} ends {:?}",
        store.read(runs, None).await.unwrap().unwrap().version(),
        status(&store, ends).await
    );
    store.change(runs, Change::Cancel).await.unwrap();
    let woken = timeout(Duration::from_secs(25), waiter).await.is_ok();
    sleep(LEASE * 4).await;
    let ended = status(&store, ends).await;
    eprintln!("woken {woken}, the ended one is {ended:?}");
    (woken, ended)
}
#[tokio::test]
async fn failover_a_waiter_is_told() {
    assert!(failover().await.0, "nobody tells the node that its job was canceled");
}
#[tokio::test]
async fn failover_an_end_that_was_lost() {
    assert_ne!(failover().await.1, Status::Running, "nobody ever ends it");
}

#[tokio::test]
async fn counts_that_are_wrong_are_an_error() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    for partition in ["00", "01"] {
        let key = format!("{{{prefix}:{partition}}}:n");
        server.cli(&["hset", &key, "jreports", "18446744073709551615"]);
    }
    let told = store.usage().await;
    eprintln!("{told:?}");
}

#[tokio::test]
async fn a_clock_that_was_set_back_hides_no_death() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(server.url()).prefix(&prefix).lease(LEASE);
    let dead = builder.clone().connect().await.unwrap();
    let id = inserted(&dead).await;
    drop(dead);
    // As it is when the clock of Redis goes back by an hour, or a replica whose clock is late takes over.
    let leases = format!("{{{prefix}:nodes}}:l");
    let node = server.cli(&["zrange", &leases, "0", "-1"]);
    server.cli(&["zincrby", &leases, "3600000", node.trim()]);
    let alive = builder.connect().await.unwrap();
    sleep(LEASE * 8).await;
    assert_eq!(status(&alive, id).await, Status::Failed);
}

#[tokio::test]
async fn slots_that_have_moved_wake_waiters() {
    let cluster = Cluster::start();
    let builder = RedisStore::cluster(cluster.urls()).prefix(fresh_prefix());
    let (here, there) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let mut before = Vec::new();
    for _ in 0..100 {
        let id = inserted(&here).await;
        if cluster.nodes[2].cli(&["keys", "*:j:*"]).contains(&id.to_string()) {
            before.push(id);
        }
    }
    let name = |node: &Server| node.cli(&["cluster", "myid"]).trim().to_owned();
    let (from, to) = (name(&cluster.nodes[2]), name(&cluster.nodes[0]));
    let address = format!("127.0.0.1:{}", cluster.nodes[0].port);
    let said = cluster.nodes[0].cli(&[
        "--cluster",
        "reshard",
        &address,
        "--cluster-from",
        &from,
        "--cluster-to",
        &to,
        "--cluster-slots",
        "5461",
        "--cluster-yes",
    ]);
    eprintln!("{}", said.lines().rev().take(2).collect::<String>());
    assert!(cluster.nodes[2].cli(&["keys", "*:j:*"]).trim().is_empty(), "not moved");
    // All have heard of it.
    for id in &before {
        while here.read(*id, None).await.is_err() || there.read(*id, None).await.is_err() {}
    }
    sleep(Duration::from_secs(3)).await;
    let mut slow = Vec::new();
    for id in before.into_iter().take(4) {
        let waiter = there.clone();
        let waiting =
            tokio::spawn(
                async move { while waiter.changed(id, 0, Interest::Status).await.is_err() {} },
            );
        sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        while here.change(id, Change::Cancel).await.is_err() {}
        waiting.await.unwrap();
        if begun.elapsed() > Duration::from_secs(1) {
            slow.push(begun.elapsed());
        }
    }
    // The first may have come before the channels were found again.
    assert!(slow.len() <= 1, "{slow:?}");
}

/// As tower-offload does it (src/offload/durable.rs, `undo`).
#[tokio::test]
async fn a_durable_job_with_a_key_that_was_held_up_is_not_there_after_it_was_taken_back() {
    let (_server, store) = without_replica().await;
    let mut tasks = Vec::new();
    for number in 0..8_u8 {
        if number == 4 {
            sleep(Duration::from_millis(100)).await;
        }
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let key = Digest::from([number; 32]);
            let id = JobId::random_beside(&key).unwrap();
            let record = Record::queued(id, SystemTime::now(), TTL)
                .with_policy("work".into())
                .with_claim(Claim::new(key, key))
                .with_attempts(3);
            assert!(store.enqueue(record, "request".into(), 0).await.is_err());
            while store.take_back(id).await.is_err() {}
            id
        }));
    }
    assert_eq!(open_at_last(&store, tasks).await, 0, "jobs that were taken back wait to be run");
}

/// Longer than a call may take, so that who looks meanwhile sees nothing.
#[tokio::test]
async fn a_change_missed_in_a_long_outage_is_seen_as_soon_as_redis_is_back() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port).await;
    let prefix = fresh_prefix();
    // A lease so long that no renewal replaces the connection.
    let builder = |url: String| RedisStore::builder(url).prefix(&prefix).lease(LEASE * 120);
    let near = builder(server.url()).connect().await.unwrap();
    let far = builder(proxy.url()).timeout(Duration::from_millis(200)).connect().await.unwrap();
    let id = inserted(&near).await;
    let seen = near.read(id, None).await.unwrap().unwrap().version();
    // Resolves at once; the script that looks is loaded then.
    far.changed(id, seen + 1, Interest::Status).await.unwrap();
    let waiter = tokio::spawn(far.changed(id, seen, Interest::Status));
    // The first lets the waiter ask, the second is answered after that.
    far.read(id, None).await.unwrap();
    far.read(id, None).await.unwrap();
    proxy.cut();
    assert!(far.read(id, None).await.is_err());
    near.change(id, Change::Cancel).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(!waiter.is_finished());
    proxy.mend();
    // Sooner than it would look again of itself.
    timeout(Duration::from_secs(4), waiter).await.unwrap().unwrap().unwrap();
    assert_eq!(status(&far, id).await, Status::Canceled);
}

#[tokio::test]
async fn a_password_refused_on_reconnecting_is_told_to_the_calls_that_wait() {
    let server = Server::start(&[]);
    let allow = |password: &str| {
        let user = ["acl", "setuser", "shop", "on", "resetpass", password, "~*", "&*", "+@all"];
        assert_eq!(server.cli(&user).trim(), "OK");
    };
    allow(">old");
    let url = format!("redis://shop:old@127.0.0.1:{}/", server.port);
    let store = RedisStore::builder(url).prefix(fresh_prefix()).connect().await.unwrap();
    let id = inserted(&store).await;
    allow(">new");
    server.cli(&["client", "kill", "user", "shop"]);
    let begun = Instant::now();
    loop {
        let refused = store.read(id, None).await.unwrap_err();
        if format!("{refused:?}").contains("WRONGPASS") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{refused:?}");
    }
    allow(">old");
    while store.read(id, None).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

/// A durable job of the partition `00`.
fn durable() -> Record {
    let id = JobId::random_beside(&Digest::from([0; 32])).unwrap();
    Record::queued(id, SystemTime::now(), TTL).with_policy("work".into()).with_attempts(3)
}

async fn enqueued(store: &RedisStore, jobs: usize) -> Vec<JobId> {
    let mut ids = Vec::new();
    for _ in 0..jobs {
        let record = durable();
        ids.push(record.id());
        while store.enqueue(record.clone(), "request".into(), 0).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    }
    ids
}

/// The next jobs that are taken, which are there by now.
async fn taken(store: &RedisStore, jobs: usize) -> Vec<JobId> {
    let (begun, mut ids) = (Instant::now(), Vec::new());
    while ids.len() < jobs {
        if let Ok(Some((record, _))) = store.take("work".into()).await {
            ids.push(record.id());
        } else {
            sleep(Duration::from_millis(20)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{} of {jobs} are taken", ids.len());
    }
    ids
}

#[tokio::test]
async fn a_clock_that_is_set_delays_no_queued_job_and_changes_no_order() {
    let server = Server::start_with_clock(0, &[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let mut ids = Vec::new();
    // Back twice, forward, and right again.
    for seconds in [0, -3600, -7200, 3600, 0] {
        server.set_clock(seconds);
        ids.extend(enqueued(&store, 20).await);
    }
    assert_eq!(taken(&store, ids.len()).await, ids);
}

#[tokio::test]
async fn jobs_of_one_millisecond_are_taken_in_their_order() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap();
    let records: Vec<_> = (0..300).map(|_| durable()).collect();
    // One behind the other over one connection, and none waits for the answer to another.
    let enqueued: Vec<_> = records
        .iter()
        .map(|record| tokio::spawn(store.enqueue(record.clone(), "request".into(), 0)))
        .collect();
    for enqueued in enqueued {
        enqueued.await.unwrap().unwrap();
    }
    let queue = server.cli(&["keys", "*:q:work"]);
    let scores = server.cli(&["zrange", queue.trim(), "0", "-1", "withscores"]);
    let scores: Vec<_> = scores.lines().skip(1).step_by(2).collect();
    let mut distinct = scores.clone();
    distinct.dedup();
    assert_eq!(distinct.len(), 300, "two have the same time");
    let times: Vec<f64> = scores.iter().map(|score| score.parse().unwrap()).collect();
    let milliseconds: std::collections::BTreeSet<_> =
        times.iter().map(|time| *time as u64).collect();
    assert!(milliseconds.len() < 300, "no two are of one millisecond: nothing was tested");
}

/// A job that waits for its next attempt waits no longer when the clock is set back.
#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_wait_longer() {
    let server = Server::start_with_clock(0, &[]);
    let prefix = fresh_prefix();
    let builder = || RedisStore::builder(server.url()).prefix(&prefix);
    let lost = builder().connect().await.unwrap();
    let id = enqueued(&lost, 1).await[0];
    assert_eq!(taken(&lost, 1).await, [id]);
    let node = server.cli(&["hget", &format!("{{{prefix}:00}}:j:{id}"), "y"]);
    server.cli(&["zadd", &format!("{{{prefix}:00}}:f"), "9999999999999", node.trim()]);
    // It is queued again, to be due in a second.
    lost.change(id, response(1)).await.unwrap();
    assert_eq!(status(&lost, id).await, Status::Queued);
    server.set_clock(-86_400);
    let other = builder().connect().await.unwrap();
    let begun = Instant::now();
    assert_eq!(taken(&other, 1).await, [id]);
    assert!(begun.elapsed() >= Duration::from_millis(500), "it did not wait");
}

#[tokio::test]
async fn a_replica_that_takes_over_and_whose_clock_is_behind_delays_no_queued_job() {
    let server = Server::start(&[]);
    let primary = server.port.to_string();
    let replica = Server::start_with_clock(-3600, &["--replicaof", "127.0.0.1", &primary]);
    let begun = Instant::now();
    while !server.has_a_replica() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no replica");
    }
    let proxy = Proxy::start(server.port).await;
    let builder = RedisStore::builder(proxy.url()).prefix(fresh_prefix()).wait_replicas(1);
    let store = builder.timeout(Duration::from_secs(2)).connect().await.unwrap();
    let mut ids = enqueued(&store, 20).await;
    drop(server);
    replica.cli(&["replicaof", "no", "one"]);
    proxy.lead_to(replica.port);
    // No replica is left to wait for.
    let builder = RedisStore::builder(proxy.url()).prefix(store_prefix(&replica));
    let store = builder.connect().await.unwrap();
    ids.extend(enqueued(&store, 20).await);
    assert_eq!(taken(&store, ids.len()).await, ids);
}

fn store_prefix(server: &Server) -> String {
    let queue = server.cli(&["keys", "*:q:work"]);
    queue.trim().trim_start_matches('{').split(':').next().unwrap().to_owned()
}

/// A look for jobs is one round trip: not one for each partition.
#[tokio::test]
async fn a_job_that_is_due_is_found_soon_where_redis_is_far() {
    let server = Server::start(&[]);
    let wire = Wire::start(server.port, Duration::from_millis(50)).await;
    let prefix = fresh_prefix();
    let near = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let far = RedisStore::builder(wire.url()).prefix(&prefix).connect().await.unwrap();
    enqueued(&near, 1).await;
    let begun = Instant::now();
    far.arrival("work".into()).await.unwrap();
    assert!(far.take("work".into()).await.unwrap().is_some());
    // 64 would be more than six.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// Whoever waits gives up before the answer to a look is there, time and again.
#[tokio::test]
async fn what_a_look_finds_is_not_lost_with_whoever_waited_for_it() {
    let server = Server::start(&[]);
    let wire = Wire::start(server.port, Duration::from_millis(50)).await;
    let prefix = fresh_prefix();
    let near = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let far = RedisStore::builder(wire.url()).prefix(&prefix).connect().await.unwrap();
    enqueued(&near, 1).await;
    let begun = Instant::now();
    while timeout(Duration::from_millis(20), far.arrival("work".into())).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing arrives");
    }
    assert!(far.take("work".into()).await.unwrap().is_some());
}

/// What is done to a record, by its key, so that it cannot be read.
const DAMAGES: [&str; 8] = [
    "redis.call('HSET', KEYS[1], 'g', 'no JSON')",
    "redis.call('HSET', KEYS[1], 'p', 'no \\255 text')",
    "redis.call('HSET', KEYS[1], 'v', 'first')",
    "redis.call('HSET', KEYS[1], 's', 'asleep')",
    "redis.call('HDEL', KEYS[1], 'c')",
    "redis.call('HDEL', KEYS[1], 't', 'o')",
    "redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 'text')",
    "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 'a', 'b')",
];

/// Whichever call comes upon a record that cannot be read ends its job, for good.
#[tokio::test]
async fn whatever_reads_a_damaged_record_ends_its_job() {
    let server = Server::start(&[]);
    type Call = fn(&RedisStore, JobId) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>>;
    let calls: [(&str, Call); 8] = [
        ("read", |store, id| Box::pin(async move { drop(store.read(id, None).await.unwrap()) })),
        ("fetch", |store, id| Box::pin(async move { drop(store.fetch(id, None).await.unwrap()) })),
        ("start", |store, id| {
            Box::pin(async move { drop(store.change(id, Change::Start).await.unwrap()) })
        }),
        ("end", |store, id| {
            Box::pin(async move { drop(store.change(id, response(10)).await.unwrap()) })
        }),
        ("large end", |store, id| {
            Box::pin(async move { drop(store.change(id, response(2 << 20)).await.unwrap()) })
        }),
        ("cancel", |store, id| {
            Box::pin(async move { drop(store.change(id, Change::Cancel).await.unwrap()) })
        }),
        ("wait", |store, id| {
            Box::pin(async move {
                while !store.read(id, None).await.unwrap().unwrap().status().is_end() {
                    store.changed(id, 0, Interest::Status).await.unwrap();
                }
            })
        }),
        ("key", |store, id| {
            Box::pin(async move {
                let key = Digest::from([id.partition(); 32]);
                let record =
                    Record::running(JobId::random_beside(&key).unwrap(), SystemTime::now(), TTL);
                let record = record.with_claim(Claim::new(key, key));
                let Inserted::Claimed(holder) = store.insert(record, 0).await.unwrap() else {
                    panic!("its claim is gone");
                };
                assert_eq!(holder.failure(), Some(Failure::Corrupt));
            })
        }),
    ];
    for (name, call) in calls {
        for damage in DAMAGES {
            let prefix = fresh_prefix();
            let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
            let key = Digest::from([1; 32]);
            let record =
                Record::running(JobId::random_beside(&key).unwrap(), SystemTime::now(), TTL);
            let record = record.with_policy("work".into()).with_owner(key);
            let record = record.with_claim(Claim::new(key, key));
            let id = record.id();
            store.insert(record, 0).await.unwrap();
            let job = format!("{{{prefix}:01}}:j:{id}");
            assert_eq!(server.cli(&["exists", &job]).trim(), "1");
            server.cli(&["eval", damage, "1", &job]);
            call(&store, id).await;
            let after = format!("{name}, after {damage}");
            let record = store.read(id, None).await.unwrap().unwrap();
            let is = (record.status(), record.failure());
            assert_eq!(is, (Status::Failed, Some(Failure::Corrupt)), "{after}");
            assert!(server.cli(&["pttl", &job]).trim().parse::<i64>().unwrap() > 0, "{after}");
            let raw = server.cli(&["exists", &format!("{{{prefix}:01}}:u:{id}")]);
            assert_eq!(raw.trim(), "1", "{after}");
            assert_eq!(store.given_up(10).await.unwrap().jobs.len(), 1, "{after}");
            let usage = store.usage().await.unwrap();
            let sums = usage.iter().map(|policy| (policy.jobs, policy.bytes));
            assert!(
                sums.into_iter().all(|sums| sums == (1, 0) || sums == (0, 0)),
                "{after}: {usage:?}"
            );
            assert_eq!(server.cli(&["keys", &format!("*{prefix}:*:r:*")]).trim(), "", "{after}");
        }
    }
}

#[tokio::test]
async fn an_ended_job_that_cannot_be_read_is_counted_once() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let record = running().with_policy("reports".into());
    let id = record.id();
    store.insert(record, 0).await.unwrap();
    store.change(id, response(100)).await.unwrap();
    assert!(store.usage().await.unwrap()[0].bytes > 0);
    let job = format!("{{{prefix}:{:02}}}:j:{id}", id.partition());
    server.cli(&["hset", &job, "n", "many"]);
    let (record, outcome) = store.fetch(id, None).await.unwrap().unwrap();
    assert_eq!(record.failure(), Some(Failure::Corrupt));
    assert!(outcome.is_none());
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.len(), usage[0].jobs, usage[0].bytes), (1, 1, 0));
    let kept = format!("{{{prefix}:{:02}}}:u:{id}:o", id.partition());
    assert_eq!(server.cli(&["exists", &kept]).trim(), "1", "what it answered is kept beside");
}

#[tokio::test]
async fn an_end_that_is_written_again_is_counted_once() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let id = inserted(&store).await;
    let index = format!("{{{prefix}:{:02}}}:i", id.partition());
    server.cli(&["set", &index, "no index"]);
    for _ in 0..3 {
        store.change(id, response(100)).await.unwrap_err();
    }
    server.cli(&["del", &index]);
    store.change(id, response(100)).await.unwrap();
    let once = store.usage().await.unwrap()[0].bytes;
    let other = inserted(&store).await;
    store.change(other, response(100)).await.unwrap();
    assert_eq!(store.usage().await.unwrap()[0].bytes, 2 * once);
}

#[tokio::test]
async fn names_and_numbers_that_are_damaged_do_not_fail_the_counts() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    store.insert(running().with_policy("reports".into()), 0).await.unwrap();
    let counts = format!("{{{prefix}:00}}:n");
    let damage = "redis.call('HSET', KEYS[1], 'j\\255', 1, 'jother', 'many', '', 1)";
    server.cli(&["eval", damage, "1", &counts]);
    let usage = store.usage().await.unwrap();
    assert!(
        usage.iter().any(|of| of.policy.as_deref() == Some("reports") && of.jobs == 1),
        "{usage:?}"
    );
}

/// What takes look at in one partition is of another type, as after a restore that went wrong.
#[tokio::test]
async fn a_partition_that_refuses_takes_keeps_no_job_of_another_from_its_turn() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url()).connect().await.unwrap();
    let mut ids: Vec<_> = (0..20).map(|_| JobId::random().unwrap()).collect();
    ids.sort_unstable();
    for id in &ids {
        let record = Record::queued(*id, SystemTime::now(), TTL).with_policy("work".into());
        store.enqueue(record.with_attempts(3), "request".into(), 0).await.unwrap();
    }
    let partition = ids[0].partition();
    let damaged = format!("{{{}:{partition:02}}}:f", store_prefix(&server));
    server.cli(&["set", &damaged, "no sorted set"]);
    let (in_it, others): (Vec<_>, Vec<_>) =
        ids.into_iter().partition(|id| id.partition() == partition);
    let mut found = Vec::new();
    while found.len() < others.len() {
        let taking = tokio::time::timeout(Duration::from_secs(10), store.take("work".into()));
        let taken = taking.await.expect("a take ends").unwrap();
        found.extend(taken.map(|(record, _)| record.id()));
    }
    found.sort_unstable();
    assert_eq!(found, others);
    // Nor does it keep anything waiting: there is nothing to take.
    let idle = tokio::time::timeout(Duration::from_secs(10), store.take("work".into()));
    assert!(idle.await.expect("a take ends").unwrap().is_none());
    server.cli(&["del", &damaged]);
    let mut found = taken(&store, in_it.len()).await;
    found.sort_unstable();
    assert_eq!(found, in_it);
}

#[tokio::test]
async fn an_undo_succeeds_where_the_queue_is_damaged() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    let key = |kind: &str| format!("{{{prefix}:00}}:{kind}");
    let digest = Digest::from([0; 32]);
    let record = durable().with_claim(Claim::new(digest, digest));
    // Before it is kept: nothing is left of it, nor of its claim.
    server.cli(&["set", &key("q:work"), "no queue"]);
    assert!(store.enqueue(record.clone(), "request".into(), 0).await.is_err());
    assert!(store.take_back(record.id()).await.unwrap());
    let left = server.cli(&["keys", &format!("*{}*", record.id())]);
    assert_eq!((left.trim(), server.cli(&["keys", &key("c:*")]).trim()), ("", ""));
    // And after that.
    server.cli(&["del", &key("q:work")]);
    let id = enqueued(&store, 1).await[0];
    server.cli(&["set", &key("q:work"), "no queue"]);
    assert!(store.take_back(id).await.unwrap());
    assert_eq!(server.cli(&["keys", &format!("*{id}*")]).trim(), "");
}

#[tokio::test]
async fn an_insert_that_fails_leaves_no_job_where_the_lists_are_damaged() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let store = RedisStore::builder(server.url()).prefix(&prefix).connect().await.unwrap();
    for kind in ["w", "n"] {
        let id = JobId::random_beside(&Digest::from([0; 32])).unwrap();
        let key = format!("{{{prefix}:00}}:{kind}");
        server.cli(&["set", &key, "damaged"]);
        let record = Record::running(id, SystemTime::now(), TTL);
        assert!(store.insert(record, 0).await.is_err(), "{kind}");
        let left = server.cli(&["keys", &format!("*{id}*")]);
        assert_eq!(left.trim(), "", "{kind}");
        assert!(store.take_back(id).await.unwrap(), "{kind}");
        server.cli(&["del", &key]);
    }
}

#[tokio::test]
async fn an_interruption_that_was_held_up_does_not_end_the_next_attempt() {
    let server = Server::start(&[]);
    let mut wire = Wire::start(server.port, Duration::ZERO).await;
    let store = impatient(&wire).await;
    let interrupted = || Change::Finish(End::Failure(Failure::Interrupted));
    let id = enqueued(&store, 2).await[0];
    assert_eq!(taken(&store, 2).await[0], id);
    // Once so that the server has the script.
    store.change(inserted(&store).await, interrupted()).await.unwrap();
    wire.silence();
    assert!(store.change(id, interrupted()).await.is_err());
    let begun = Instant::now();
    while store.change(id, interrupted()).await.is_err() {
        sleep(Duration::from_millis(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "no connection");
    }
    assert_eq!(taken(&store, 1).await, [id]);
    let before = server.calls("evalsha");
    wire.thaw();
    while server.calls("evalsha") == before {
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(200)).await;
    let record = store.read(id, None).await.unwrap().unwrap();
    assert_eq!((record.status(), record.attempt()), (Status::Running, Some(2)));
}
