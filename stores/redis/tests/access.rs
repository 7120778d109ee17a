//! A user who may do no more than the README asks for.

mod support;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use support::{Cluster, Server};
use tower_offload::{
    Change, End, JobId, Outcome, Record, Store,
    store::{Changed, Inserted, Interest},
};
use tower_offload_redis::{Builder, RedisStore};

const TTL: Duration = Duration::from_secs(3600);

/// As in the README.
const RULES: &str = "on >secret ~{shop:* &{shop:* +@all -@dangerous +info";

fn allow(server: &Server) {
    let mut rules = vec!["acl", "setuser", "shop"];
    rules.extend(RULES.split(' '));
    assert_eq!(server.cli(&rules).trim(), "OK");
}

fn url(server: &Server) -> String {
    format!("redis://shop:secret@127.0.0.1:{}/", server.port)
}

fn response(bytes: usize) -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, &vec![b'x'; bytes], None)))
}

/// One call of each kind.
async fn every_call_is_allowed(builder: Builder) {
    let builder = builder.prefix("shop").lease(Duration::from_secs(1));
    let (here, there) =
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let new = || JobId::random().unwrap();
    for bytes in [64, 3 << 20] {
        let record = Record::running(new(), SystemTime::now(), TTL);
        here.insert(record.clone(), 0).await.unwrap();
        let seen = there.changed(record.id(), record.version(), Interest::Status);
        let seen = tokio::spawn(seen);
        here.change(record.id(), response(bytes)).await.unwrap();
        seen.await.unwrap().unwrap();
        let (_, outcome) = there.fetch(record.id(), None).await.unwrap().unwrap();
        assert_eq!(outcome.unwrap().whole().await.unwrap().body().len(), bytes);
        let removed = there.change(record.id(), Change::Remove).await.unwrap();
        assert!(matches!(removed, Changed::Applied(_)));
        there.take_back(record.id()).await.unwrap();
    }
    let policy: Arc<str> = "charges".into();
    let record = Record::queued(new(), SystemTime::now(), TTL);
    let record = record.with_policy(policy.clone()).with_attempts(1);
    let kept = here.enqueue(record.clone(), "request".into(), 0).await.unwrap();
    assert!(matches!(kept, Inserted::New));
    let (taken, request) = there.take(policy).await.unwrap().unwrap();
    assert_eq!((taken.id(), &request[..]), (record.id(), &b"request"[..]));
    assert_eq!(here.usage().await.unwrap().len(), 1);
    // Its node goes, and another one fences it and ends its job.
    drop(there);
    let ended = here.changed(record.id(), taken.version(), Interest::Status);
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
    assert_eq!(here.given_up(10).await.unwrap().jobs.len(), 1);
    assert!(here.send_again(record.id()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_asks_for_no_more_than_the_readme_says() {
    let server = Server::start(&[]);
    allow(&server);
    every_call_is_allowed(RedisStore::builder(url(&server))).await;
}

#[tokio::test]
async fn a_cluster_asks_for_no_more_than_the_readme_says() {
    let cluster = Cluster::start();
    cluster.nodes.iter().for_each(allow);
    every_call_is_allowed(RedisStore::cluster(cluster.nodes.iter().map(url))).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let server = Server::start(&[]);
    allow(&server);
    let url = format!("redis://shop:wrong@127.0.0.1:{}/", server.port);
    let refused = RedisStore::connect(url).await.unwrap_err();
    assert!(format!("{refused:?}").contains("WRONGPASS"), "{refused:?}");
}

#[tokio::test]
async fn keys_of_another_prefix_are_refused() {
    let server = Server::start(&[]);
    allow(&server);
    let refused = RedisStore::builder(url(&server)).prefix("other").connect().await.unwrap_err();
    assert!(format!("{refused:?}").contains("permissions"), "{refused:?}");
}
