//! For this project's simulation: a "cluster" of single servers, over which the partitions are spread.
//!
//! The library's own client of a cluster takes no streams and makes random choices. Here a partition's
//! number says which server has it, and what belongs to no partition is on the first.

use std::{fmt, sync::Arc};

use redis::{
    Arg, Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisFuture, RedisResult,
    Value, aio::ConnectionLike,
};

use crate::{
    reconnect::{Limits, Reconnecting, Server},
    simulation::Connect,
    waiters::Waiters,
};

/// What a [`Builder`](crate::Builder) is given.
#[derive(Clone, Default)]
pub(crate) struct Servers(pub(crate) Vec<Arc<dyn Connect>>);

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.0.len()).finish()
    }
}

/// One connection to each server.
#[derive(Clone)]
pub(crate) struct Spread(Arc<[Reconnecting]>);

impl Spread {
    pub(crate) async fn connect(
        servers: &Servers,
        settings: &RedisConnectionInfo,
        limits: Limits,
        waiters: &Arc<Waiters>,
    ) -> RedisResult<Self> {
        let mut opened = Vec::new();
        for server in &servers.0 {
            let server = Server::Stream(Arc::clone(server), settings.clone());
            opened.push(Reconnecting::connect(server, limits, Arc::clone(waiters)).await?);
        }
        Ok(Self(opened.into()))
    }

    pub(crate) async fn subscribe(&self, channels: &[String]) -> RedisResult<()> {
        // Where one fails, the others go on.
        let mut subscribed = Ok(());
        for (index, server) in self.0.iter().enumerate() {
            let here = |channel: &&String| {
                tag(channel.as_bytes()).is_some_and(|tag| self.index_of(tag) == index)
            };
            let here: Vec<_> = channels.iter().filter(here).cloned().collect();
            if !here.is_empty() {
                subscribed = server.subscribe(&here).await.and(subscribed);
            }
        }
        subscribed
    }

    fn index_of(&self, tag: &[u8]) -> usize {
        let partition = tag.rsplit(|byte| *byte == b':').next();
        let partition = partition.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        partition.unwrap_or(0_usize) % self.0.len()
    }

    /// The server that has all keys of this command; `None` for one without keys.
    fn server_of(&self, cmd: &Cmd) -> RedisResult<Option<Reconnecting>> {
        let mut tags = keys_of(cmd).into_iter().filter_map(tag);
        let Some(first) = tags.next() else { return Ok(None) };
        match tags.all(|tag| tag == first) {
            true => Ok(Some(self.0[self.index_of(first)].clone())),
            // As a cluster does, but for slots that two partitions share.
            false => Err(refused("CROSSSLOT: a call has keys of several partitions")),
        }
    }

    /// Asks all servers that can be reached, and answers with an array of their answers. Like a cluster's
    /// client for `SCRIPT LOAD`, it succeeds where one of them does.
    async fn ask_all(&self, cmd: &Cmd) -> RedisResult<Value> {
        let ask = |server: &Reconnecting| {
            let (mut server, cmd) = (server.clone(), cmd.clone());
            tokio::spawn(async move { server.req_packed_command(&cmd).await })
        };
        let asked: Vec<_> = self.0.iter().filter(|server| server.is_open()).map(ask).collect();
        let (mut answers, mut failed) = (Vec::new(), refused("no server can be reached"));
        for answer in asked {
            match answer.await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = refused("the runtime is shutting down"),
            }
        }
        match answers.len() {
            0 => Err(failed),
            1 => Ok(answers.remove(0)),
            _ if answers.iter().all(|answer| *answer == answers[0]) => Ok(answers.remove(0)),
            _ => Ok(Value::Array(answers)),
        }
    }
}

impl ConnectionLike for Spread {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match self.server_of(cmd)? {
                Some(mut server) => server.req_packed_command(cmd).await,
                None => self.ask_all(cmd).await,
            }
        })
    }

    /// All commands of a pipeline go to the server of those that have keys.
    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut tags = pipeline.cmd_iter().flat_map(keys_of).filter_map(tag);
            let index = tags.next().map_or(0, |tag| self.index_of(tag));
            if tags.any(|tag| self.index_of(tag) != index) {
                return Err(refused("a pipeline has keys of several servers"));
            }
            self.0[index].clone().req_packed_commands(pipeline, offset, count).await
        })
    }

    fn get_db(&self) -> i64 {
        self.0[0].get_db()
    }
}

fn refused(why: &'static str) -> RedisError {
    (ErrorKind::Client, why).into()
}

/// The keys of a command: of a script those that it is given, else all arguments that look like one of
/// ours up to the first that does not.
fn keys_of(cmd: &Cmd) -> Vec<&[u8]> {
    let mut args = cmd.args_iter().filter_map(|arg| match arg {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    });
    let name = args.next().unwrap_or_default();
    if name.eq_ignore_ascii_case(b"EVALSHA") || name.eq_ignore_ascii_case(b"EVAL") {
        let count = args.nth(1).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok());
        return args.take(count.unwrap_or(0)).collect();
    }
    args.take_while(|arg| arg.starts_with(b"{")).collect()
}

/// What is in the braces that a key begins with.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let end = key.iter().position(|byte| *byte == b'}')?;
    key[..end].strip_prefix(b"{")
}
