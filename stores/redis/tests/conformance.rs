//! The store passes the suite that every store passes, on a server and on a cluster.

mod support;

use std::time::Duration;

use support::{Cluster, Server, fresh_prefix};
use tower_offload::store::conformance;
use tower_offload_redis::{Builder, RedisStore};

/// A machine that is busy answers a thousand waiters late.
fn patient(builder: Builder) -> Builder {
    builder.prefix(fresh_prefix()).timeout(Duration::from_secs(8))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_server() {
    let server = Server::start(&[]);
    conformance::run_shared(async || {
        let builder = patient(RedisStore::builder(server.url()));
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap())
    })
    .await;
}

#[tokio::test]
async fn one_thread_is_enough() {
    let server = Server::start(&[]);
    conformance::run(async || patient(RedisStore::builder(server.url())).connect().await.unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_cluster() {
    let cluster = Cluster::start();
    conformance::run_shared(async || {
        let builder = patient(RedisStore::cluster(cluster.urls()));
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap())
    })
    .await;
}
