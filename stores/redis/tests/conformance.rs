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

#[cfg(feature = "simulation")]
mod simulated {
    use std::sync::Arc;

    use tokio::net::TcpStream;
    use tower_offload_redis::simulation::{Connect, Connecting, Stream};

    use super::*;

    /// The server on this port of loopback.
    struct Port(u16);

    impl Connect for Port {
        fn connect(&self) -> Connecting {
            let port = self.0;
            Box::pin(async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            })
        }
    }

    async fn on_servers(count: usize) {
        let servers: Vec<_> = (0..count).map(|_| Server::start(&[])).collect();
        conformance::run_shared(async || {
            let connect = |server: &Server| Arc::new(Port(server.port)) as Arc<dyn Connect>;
            let through = servers.iter().map(connect).collect();
            let builder = RedisStore::builder("redis://simulated/").connect_through(through);
            let builder = patient(builder);
            (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap())
        })
        .await;
        // Each has its share.
        for server in &servers {
            assert_ne!(server.cli(&["dbsize"]).trim(), "0");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_processes_share_a_server_over_given_streams() {
        on_servers(1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_processes_share_servers_with_the_partitions_spread() {
        on_servers(3).await;
    }
}
