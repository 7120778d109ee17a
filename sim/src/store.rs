//! A node's store: the Redis store, over the simulated network.

use std::{future::Future, io, pin::Pin, sync::Arc, time::Duration};

use tower_offload_redis::{
    RedisStore,
    simulation::{Connect, Stream},
};

use crate::{log::Log, net::Net, scenario::Scenario};

/// Connects to one server over the simulated network.
#[derive(Debug)]
struct Dialer {
    net: Net,
    node: usize,
    server: usize,
}

impl Connect for Dialer {
    fn connect(&self) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> {
        let (net, node, server) = (self.net.clone(), self.node, self.server);
        Box::pin(async move {
            let stream = net.dial(node, server).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Makes a node's store, as soon as the servers are there.
pub async fn connect(scenario: &Scenario, net: &Net, node: (usize, u32), log: &Log) -> RedisStore {
    loop {
        let dialer = |server| {
            let dialer = Dialer { net: net.clone(), node: node.0, server };
            Arc::new(dialer) as Arc<dyn Connect>
        };
        let connecting = RedisStore::builder("redis://simulated")
            .prefix("sim")
            .timeout(Duration::from_millis(scenario.timeout))
            .lease(Duration::from_millis(scenario.lease))
            .wait_replicas(scenario.wait_replicas)
            .connect_through((0..scenario.servers).map(dialer).collect())
            .connect();
        match connecting.await {
            Ok(store) => return store,
            Err(error) => log.tell(format!("n{} cannot connect: {error}", node.0)),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
