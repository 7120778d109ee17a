//! Calls to Redis: each within its time, over connections that are replaced when nothing comes of them.

use std::sync::{Arc, atomic::Ordering};

use redis::{ScriptInvocation, Value};
use tower_offload::{Error, ErrorKind};

use crate::{
    connect::{Connection, timed_out},
    error::{cut_off, failed},
    locked::locked,
    store::Inner,
};

/// So many answers with an outcome, or a chunk of one, may be on their way at once. Each has a mebibyte at
/// most, so that no other call waits behind more than four: a renewal of the lease above all. They also stay
/// below the 8 MiB that Redis allows a connection with subscriptions (`client-output-buffer-limit`).
pub(crate) const OUTCOMES: usize = 4;

/// The longest that such a call waits until it may be sent, in timeouts of a call.
const TURN: u32 = 4;

impl Inner {
    /// A number for a call: what undoes another has a greater one.
    pub(crate) fn number(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn connection(&self) -> Connection {
        locked(&self.connection).clone()
    }

    /// Subscribes again where a cluster has moved a channel.
    pub(crate) async fn listen(&self) {
        if self.waiters.was_deaf() {
            if self.connection().subscribe(&self.keys.channels()).await.is_err() {
                self.waiters.set_deaf();
            }
            self.waiters.wake_all();
        }
    }

    /// Takes new connections, if there are any to be had: the library replaces one that was closed, but
    /// not one that is silent (redis, src/errors/redis_error.rs, `retry_method`).
    pub(crate) async fn reopen(&self) {
        let opened = async {
            let connection = self.builder.subscribed(&self.keys, &self.waiters).await?;
            let other = match &self.replicas {
                Some(_) => Some(self.builder.open_for_replicas().await?),
                None => None,
            };
            Ok::<_, Error>((connection, other))
        };
        let Ok((connection, other)) = opened.await else { return };
        *locked(&self.connection) = connection;
        if let (Some(replicas), Some(other)) = (&self.replicas, other) {
            replicas.reopened(other);
        }
        // What was told since is not known: everybody looks.
        self.waiters.set_cut();
        self.waiters.wake_all();
    }

    /// Runs a script, within the time that a call may take.
    pub(crate) async fn run(
        &self,
        script: &ScriptInvocation<'_>,
        what: &'static str,
    ) -> Result<Value, Error> {
        let mut connection = self.connection();
        let answer = tokio::time::timeout(self.timeout, script.invoke_async(&mut connection)).await;
        answer.unwrap_or_else(|_| Err(timed_out())).map_err(failed(what))
    }

    /// The same for one command.
    pub(crate) async fn ask(
        &self,
        command: &redis::Cmd,
        what: &'static str,
    ) -> Result<Value, Error> {
        let mut connection = self.connection();
        let answer = tokio::time::timeout(self.timeout, command.query_async(&mut connection)).await;
        answer.unwrap_or_else(|_| Err(timed_out())).map_err(failed(what))
    }

    /// Makes a call that reads an outcome, when there are few enough on their way. Once sent it counts until
    /// its answer is there, whether or not somebody still waits for that: Redis sends it all the same.
    pub(crate) async fn read_outcome<F>(self: &Arc<Self>, call: F) -> Result<Value, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send + 'static,
    {
        let permit = Arc::clone(&self.outcomes).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(self.timeout * TURN, permit).await else {
            let message = "too many outcomes are being read";
            return Err(Error::new(ErrorKind::StoreUnavailable, message));
        };
        let called = tokio::spawn(async move {
            let _permit = permit;
            call.await
        });
        called.await.map_err(cut_off("the read of an outcome was cut off"))?
    }
}
