//! Finding Redis: a server or a cluster, its connection, and whether it will do.

use std::{sync::Arc, time::Duration};

use redis::{
    Cmd, ErrorKind as RedisErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisFuture,
    RedisResult, Value,
    aio::{ConnectionLike, SendError},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
};
use tower_offload::{Error, ErrorKind};

use crate::{
    RedisStore,
    error::failed,
    keys::Keys,
    reconnect::{Limits, Reconnecting, Server},
    replicas::Replicas,
    waiters::Waiters,
};
#[cfg(feature = "simulation")]
use crate::{
    simulation::Connect,
    spread::{Servers, Spread},
};

/// How to reach Redis, and what to keep in it. [`RedisStore::builder`] and
/// [`RedisStore::cluster`] make one.
#[derive(Debug, Clone)]
pub struct Builder {
    urls: Vec<String>,
    is_cluster: bool,
    prefix: String,
    pub(crate) timeout: Duration,
    pub(crate) lease: Duration,
    replicas: u32,
    allow_eviction: bool,
    #[cfg(feature = "simulation")]
    servers: Servers,
}

/// With a shorter one, a process would be taken for dead for a moment's pause.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// The oldest that will do: with scripts that say what they do, and sharded channels.
const MAJOR: u32 = 7;

impl Builder {
    pub(crate) fn new(urls: Vec<String>, is_cluster: bool) -> Self {
        Self {
            urls,
            is_cluster,
            prefix: "tower-offload".to_owned(),
            timeout: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            replicas: 0,
            allow_eviction: false,
            #[cfg(feature = "simulation")]
            servers: Servers::default(),
        }
    }

    /// What all keys begin with: apps that share a Redis need one each. Default: `tower-offload`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The longest that Redis may take for one call, a lost connection included. Default: one
    /// second, some thousand times what it takes; a client that waits for its 202 is not to wait
    /// longer. A call that reads an outcome waits up to four times as long before that, while as many as
    /// may be on their way are.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a process may be silent before it is taken for dead, and its jobs fail with the
    /// problem `node-lost`: a quarter more, at most, passes until another process sees it. The same
    /// in all processes; a second at least. Default: ten seconds, so that no pause of a process or of
    /// its network that is usual looks like its death, and its clients know within 15 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Holds each 202 back until so many replicas of Redis have the job (its command `WAIT`); where
    /// they have not within the timeout, the job is taken back and the answer is 503. Default: none,
    /// so that a failover loses what had not reached the replica which takes over: a second of
    /// accepted jobs, say, where it was a second behind.
    ///
    /// Jobs are then accepted over a connection of their own, in a cluster one to each primary, and one
    /// after another, since `WAIT` holds up the connection that it is sent on: as many a second as there
    /// are round trips to a replica. What finds no turn within the timeout is refused unsent.
    #[must_use]
    pub fn wait_replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// Takes a Redis too whose `maxmemory-policy` is not `noeviction`. When its memory is full, it
    /// drops jobs that were promised and have not ended. Default: such a Redis is refused.
    #[must_use]
    pub fn allow_eviction(mut self) -> Self {
        self.allow_eviction = true;
        self
    }

    /// For this project's simulation: connects through these, and spreads the partitions over them where
    /// they are several. Of the URL, only the user, the password and the database are of use then.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    #[must_use]
    pub fn connect_through(mut self, servers: Vec<Arc<dyn Connect>>) -> Self {
        self.servers = Servers(servers);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](tower_offload::ErrorKind::Config) for a URL or a prefix that cannot be,
    /// or a Redis that will not do, and
    /// [`ErrorKind::StoreUnavailable`](tower_offload::ErrorKind::StoreUnavailable) if it does not
    /// answer, or refuses the user or the password.
    ///
    /// # Panics
    /// With a URL that begins with `rediss`, if rustls does not know by which cryptography: see
    /// [TLS](crate#tls).
    pub async fn connect(self) -> Result<RedisStore, Error> {
        // Braces would end the part of a key that a cluster looks at.
        if self.prefix.is_empty() || self.prefix.contains(['{', '}']) {
            return Err(config("a prefix is not empty, and has no braces"));
        }
        if self.lease < SHORTEST_LEASE {
            return Err(config("a lease lasts a second at least"));
        }
        let (keys, waiters) = (Keys::new(&self.prefix), Arc::new(Waiters::default()));
        let connection = self.subscribed(&keys, &waiters).await?;
        let replicas = match self.replicas {
            0 => None,
            count => Some(Replicas::new(self.open_for_replicas().await?, count)),
        };
        RedisStore::new(connection, replicas, keys, waiters, self).await
    }

    /// A connection to a Redis that will do, on which the changes of jobs are told.
    pub(crate) async fn subscribed(
        &self,
        keys: &Keys,
        waiters: &Arc<Waiters>,
    ) -> Result<Connection, Error> {
        let mut connection = self.open(waiters, self.timeout).await?;
        self.check(&mut connection).await?;
        connection
            .subscribe(&keys.channels())
            .await
            .map_err(failed("cannot subscribe to the changes of jobs"))?;
        Ok(connection)
    }

    /// One on which nobody is told anything, and whose calls stand behind others that wait.
    pub(crate) async fn open_for_replicas(&self) -> Result<Connection, Error> {
        self.open(&Arc::default(), Replicas::longest(self.timeout)).await
    }

    async fn open(&self, waiters: &Arc<Waiters>, timeout: Duration) -> Result<Connection, Error> {
        let limits = Limits { connect: self.timeout, response: timeout };
        let wrong = |error| config("not the URL of a Redis").with_source(error);
        let unreachable = failed("cannot connect to Redis");
        if self.is_cluster {
            return self.open_cluster(waiters, limits).await;
        }
        let url = self.urls.first().map_or("", String::as_str);
        let info = url.into_connection_info().map_err(wrong)?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        #[cfg(feature = "simulation")]
        if !self.servers.0.is_empty() {
            let opened = Spread::connect(&self.servers, &settings, limits, waiters).await;
            return opened.map(Connection::Spread).map_err(unreachable);
        }
        let client = redis::Client::open(info.set_redis_settings(settings)).map_err(wrong)?;
        let opened = Reconnecting::connect(Server::Url(client), limits, Arc::clone(waiters)).await;
        opened.map(Connection::Single).map_err(unreachable)
    }

    async fn open_cluster(
        &self,
        waiters: &Arc<Waiters>,
        limits: Limits,
    ) -> Result<Connection, Error> {
        let waiters = Arc::clone(waiters);
        let push = move |push| {
            waiters.push(&push);
            Ok::<(), SendError>(())
        };
        let client = ClusterClientBuilder::new(self.urls.iter().map(String::as_str))
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(limits.connect)
            .response_timeout(limits.response)
            .push_sender(push)
            .build()
            .map_err(|error| config("not the URL of a Redis").with_source(error))?;
        let connection = client.get_async_connection().await;
        connection.map(Connection::Cluster).map_err(failed("cannot connect to Redis"))
    }

    async fn check(&self, connection: &mut Connection) -> Result<(), Error> {
        let info: Value = redis::cmd("INFO")
            .arg("everything")
            .query_async(connection)
            .await
            .map_err(failed("cannot ask Redis what it is"))?;
        let mut nodes = Vec::new();
        texts(&info, &mut nodes);
        nodes.iter().filter(|text| text.contains(':')).try_for_each(|info| self.check_node(info))
    }

    fn check_node(&self, info: &str) -> Result<(), Error> {
        // Valkey tells the version of Redis that it is like by the same name.
        let Some(version) = line(info, "redis_version") else { return Ok(()) };
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < MAJOR) {
            let message = format!("Redis {version} is too old: it has to be {MAJOR}.0 or newer");
            return Err(config(message));
        }
        match line(info, "maxmemory_policy") {
            Some(policy) if policy != "noeviction" && !self.allow_eviction => Err(config(format!(
                "the maxmemory-policy of Redis is {policy}, by which it drops jobs that were \
                 promised: set it to noeviction, or take that by Builder::allow_eviction"
            ))),
            _ => Ok(()),
        }
    }
}

fn config(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// The value of a line of `INFO`.
fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// All texts in an answer: of a cluster it has one for each node.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => found.extend(String::from_utf8(bytes.clone())),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| texts(value, found)),
        _ => {}
    }
}

/// A connection that is shared, and made again when it is lost.
#[derive(Clone)]
pub(crate) enum Connection {
    Single(Reconnecting),
    Cluster(ClusterConnection),
    #[cfg(feature = "simulation")]
    Spread(Spread),
}

impl Connection {
    /// The command that publishes to those who have subscribed by [`subscribe`](Self::subscribe).
    pub(crate) fn publish(&self) -> &'static str {
        match self {
            Self::Single(_) => "PUBLISH",
            #[cfg(feature = "simulation")]
            Self::Spread(_) => "PUBLISH",
            // Only to the nodes of the partition's shard.
            Self::Cluster(_) => "SPUBLISH",
        }
    }

    pub(crate) async fn subscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        match self {
            Self::Single(server) => server.subscribe(channels).await,
            #[cfg(feature = "simulation")]
            Self::Spread(servers) => servers.subscribe(channels).await,
            Self::Cluster(cluster) => {
                // One at a time, since each is of another slot; where one fails, the others go on.
                let mut subscribed = Ok(());
                for channel in channels {
                    subscribed = cluster.ssubscribe(channel).await.and(subscribed);
                }
                subscribed
            }
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(server) => server.req_packed_command(cmd),
            #[cfg(feature = "simulation")]
            Self::Spread(servers) => servers.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(server) => server.req_packed_commands(pipeline, offset, count),
            #[cfg(feature = "simulation")]
            Self::Spread(servers) => servers.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(server) => server.get_db(),
            #[cfg(feature = "simulation")]
            Self::Spread(servers) => servers.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// The error of a call that took too long, as the library makes it.
pub(crate) fn timed_out() -> redis::RedisError {
    (RedisErrorKind::Io, "Redis does not answer").into()
}
