//! How many durable jobs wait.

use std::sync::Arc;

use tokio::task::JoinSet;
use tower_offload::{Error, JobId};

use crate::{connect::Connection, error::cut_off, fields::read, store::Inner};

impl Inner {
    /// Those of a policy, or of all: in one call on a single server. In a cluster a call goes to
    /// each partition, all at once.
    pub(crate) async fn queued(self: Arc<Self>, policy: Option<Arc<str>>) -> Result<usize, Error> {
        let all: Vec<u8> = (0..JobId::PARTITIONS).collect();
        if let Connection::Single(_) = self.connection() {
            return self.queued_in(&all, policy.as_deref()).await;
        }
        let mut calls = JoinSet::new();
        for partition in all {
            let (inner, policy) = (Arc::clone(&self), policy.clone());
            calls.spawn(async move { inner.queued_in(&[partition], policy.as_deref()).await });
        }
        let mut waiting = 0;
        while let Some(counted) = calls.join_next().await {
            waiting += counted.map_err(cut_off("cut off"))??;
        }
        Ok(waiting)
    }

    async fn queued_in(&self, partitions: &[u8], policy: Option<&str>) -> Result<usize, Error> {
        let mut call = self.scripts.queued.prepare_invoke();
        for partition in partitions {
            call.key(self.keys.counts(*partition));
        }
        call.arg(policy.unwrap_or_default());
        read(self.run(&call, "cannot count the jobs that wait").await?)
    }
}
