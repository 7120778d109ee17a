//! Waiting for replicas: a call whose answer is told once so many of them have what it wrote.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::{
    ErrorKind as RedisErrorKind, Pipeline, RedisResult, ScriptInvocation,
    ServerErrorKind::NoScript, Value,
};
use tower_offload::{Error, ErrorKind, JobId};

use crate::{
    connect::{Connection, timed_out},
    error::failed,
    locked::locked,
    store::Inner,
};

/// So many calls may be on their way to a single server: `WAIT` holds up its connection, and behind
/// one whose replica is silent the others stand with all that they bring.
const TURNS: usize = 8;

/// The connection that such calls are made on, and how many replicas they wait for.
pub(crate) struct Replicas {
    open: Mutex<Open>,
    count: u32,
}

/// Given in the order in which it was asked for.
type Turn = Arc<tokio::sync::Mutex<()>>;

#[derive(Clone)]
struct Open {
    connection: Connection,
    /// In a cluster one for each partition, so that one primary holds up no other.
    turns: Arc<[Turn]>,
}

impl Open {
    fn new(connection: Connection) -> Self {
        let turns = match connection {
            Connection::Single(_) => TURNS,
            Connection::Cluster(_) => JobId::PARTITIONS.into(),
            #[cfg(feature = "simulation")]
            Connection::Spread(_) => JobId::PARTITIONS.into(),
        };
        let turns = (0..turns).map(|_| Turn::default()).collect();
        Self { connection, turns }
    }
}

impl Replicas {
    pub(crate) fn new(connection: Connection, count: u32) -> Self {
        Self { open: Mutex::new(Open::new(connection)), count }
    }

    /// Goes on with another connection.
    pub(crate) fn reopened(&self, connection: Connection) {
        *locked(&self.open) = Open::new(connection);
    }

    /// The longest that a call can be under way when calls may take so long: with as many before it as
    /// there can be.
    pub(crate) fn longest(timeout: Duration) -> Duration {
        patience(timeout) * JobId::PARTITIONS.into() + timeout
    }
}

/// Of the time that a call may take, half is for the replicas. None at all would be for ever
/// (redis.io, `WAIT`).
fn patience(timeout: Duration) -> Duration {
    (timeout / 2).max(Duration::from_millis(1))
}

impl Inner {
    /// Runs a script; where replicas are waited for, its answer is told once they have what it wrote.
    pub(crate) async fn run_replicated(
        &self,
        script: &ScriptInvocation<'_>,
        partition: u8,
        what: &'static str,
    ) -> Result<Value, Error> {
        let Some(replicas) = &self.replicas else { return self.run(script, what).await };
        // It waits for all that was written on its connection before (redis.io, `WAIT`), so both go at
        // once: over one connection, in a cluster that of the script's keys.
        let mut both = redis::pipe();
        both.invoke_script(script);
        both.cmd("WAIT").arg(replicas.count).arg(patience(self.timeout).as_millis() as u64);
        let call = async {
            match self.send(replicas, partition, both.clone()).await {
                Err(error) if error.kind() == RedisErrorKind::Server(NoScript) => {
                    script.load_async(&mut self.connection()).await?;
                    self.send(replicas, partition, both).await
                }
                answer => answer,
            }
        };
        let answer = tokio::time::timeout(self.timeout, call).await;
        let (answer, reached) =
            answer.unwrap_or_else(|_| Err(timed_out())).map_err(failed(what))?;
        if reached < replicas.count {
            // Whoever gets an error takes back what may be there.
            let message = "too few replicas of Redis have the job";
            return Err(Error::new(ErrorKind::StoreUnavailable, message));
        }
        Ok(answer)
    }

    /// Sends it when it is its turn. Whoever gives up before that has sent nothing; after that its turn
    /// is over when Redis has come to it, and not before.
    async fn send(
        &self,
        replicas: &Replicas,
        partition: u8,
        both: Pipeline,
    ) -> RedisResult<(Value, u32)> {
        let Open { mut connection, turns } = locked(&replicas.open).clone();
        let turn = Arc::clone(&turns[usize::from(partition) % turns.len()]);
        let turn = turn.lock_owned().await;
        let longest = Replicas::longest(self.timeout);
        let sent = tokio::spawn(async move {
            let _turn = turn;
            let answer = tokio::time::timeout(longest, both.query_async(&mut connection)).await;
            answer.unwrap_or_else(|_| Err(timed_out()))
        });
        sent.await.unwrap_or_else(|_| Err(timed_out()))
    }
}
