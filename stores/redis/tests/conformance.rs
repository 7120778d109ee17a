//! The store passes the suite that every store passes, on a server and on a cluster.

mod support;

use support::{Cluster, Server, fresh_prefix};
use tower_offload::store::conformance;
use tower_offload_redis::RedisStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_server() {
    let server = Server::start(&[]);
    conformance::run_shared(async || {
        let builder = RedisStore::builder(server.url()).prefix(fresh_prefix());
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap())
    })
    .await;
}

#[tokio::test]
async fn one_thread_is_enough() {
    let server = Server::start(&[]);
    conformance::run(async || {
        RedisStore::builder(server.url()).prefix(fresh_prefix()).connect().await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_cluster() {
    let cluster = Cluster::start();
    conformance::run_shared(async || {
        let builder = RedisStore::cluster(cluster.urls()).prefix(fresh_prefix());
        (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap())
    })
    .await;
}
