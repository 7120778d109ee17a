//! Calls to Redis: each within its time, over connections that are replaced when nothing comes of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};

use redis::{ErrorKind as RedisErrorKind, ScriptInvocation, ServerErrorKind::NoScript, Value};
use tower_offload::{Error, ErrorKind};

use crate::{
    connect::{Connection, timed_out},
    error::failed,
    store::Inner,
};

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // Nothing that can panic runs under the lock.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

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
            let other = match &self.replicated {
                Some(_) => Some(self.builder.open(&Arc::default()).await?),
                None => None,
            };
            Ok::<_, Error>((connection, other))
        };
        let Ok((connection, other)) = opened.await else { return };
        *locked(&self.connection) = connection;
        if let (Some((replicated, _)), Some(other)) = (&self.replicated, other) {
            *locked(replicated) = other;
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

    /// The same for one that is to be in the replicas before anybody is told.
    pub(crate) async fn run_replicated(
        &self,
        script: &ScriptInvocation<'_>,
        what: &'static str,
    ) -> Result<Value, Error> {
        let Some((connection, replicas)) = &self.replicated else {
            return self.run(script, what).await;
        };
        let mut connection = locked(connection).clone();
        // It waits for all that was written on its connection before (redis.io, `WAIT`), so both go at
        // once: over one connection, in a cluster that of the script's keys. Half of the time is left
        // for its answer.
        let mut both = redis::pipe();
        both.invoke_script(script);
        both.cmd("WAIT").arg(replicas).arg((self.timeout / 2).as_millis() as u64);
        let call = async {
            match both.query_async::<(Value, u32)>(&mut connection).await {
                Err(error) if error.kind() == RedisErrorKind::Server(NoScript) => {
                    script.load_async(&mut connection).await?;
                    both.query_async(&mut connection).await
                }
                answer => answer,
            }
        };
        let answer = tokio::time::timeout(self.timeout, call).await;
        let (answer, reached) =
            answer.unwrap_or_else(|_| Err(timed_out())).map_err(failed(what))?;
        if reached < *replicas {
            // Whoever gets an error takes back what may be there.
            let message = "too few replicas of Redis have the job";
            return Err(Error::new(ErrorKind::StoreUnavailable, message));
        }
        Ok(answer)
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
}
