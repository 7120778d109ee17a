//! A connection to one server that all calls share, and that is replaced when it is lost.
//!
//! ```text
//!                 connected and subscribed
//! connecting ──────────────────────────────▶ open
//!     ▲                                       │
//!     └── a call failed, or the connection ended
//! ```
//!
//! The library's own, `ConnectionManager`, takes no stream, delays its attempts by random numbers of its
//! own, and lets calls go on although it could not subscribe again (redis,
//! src/aio/connection_manager.rs, `new_connection`).

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, PushInfo, PushKind, RedisError, RedisFuture,
    RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection, SendError},
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{backoff::Backoff, caught::log, connect::timed_out, locked::locked, waiters::Waiters};

/// The first delay between two attempts to connect; each further one is twice as long, until a connection
/// has lasted.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay, and the age at which a connection has lasted: when it is lost, it is replaced without
/// a delay. A server that closes each connection at once is not asked more often than this.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// So many calls may wait to be sent. Those beyond would wait in a queue that each has to be polled
/// to get on in (redis, src/aio/multiplexed_connection.rs): one that is not, for a while, as in a
/// `select`, would hold up all others.
const QUEUE: usize = 1 << 16;

/// What is connected to.
pub(crate) enum Server {
    Url(Client),
    #[cfg(feature = "simulation")]
    Stream(Arc<dyn crate::simulation::Connect>, redis::RedisConnectionInfo),
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// To connect, or for a call to wait until that is done.
    pub(crate) connect: Duration,
    /// For an answer.
    pub(crate) response: Duration,
}

/// The shared connection. When the last clone is dropped, it is closed.
#[derive(Clone)]
pub(crate) struct Reconnecting(Arc<Shared>);

struct Shared {
    server: Server,
    limits: Limits,
    waiters: Arc<Waiters>,
    state: Mutex<State>,
    /// A connection is open.
    installed: Notify,
}

struct State {
    open: Option<Open>,
    is_connecting: bool,
    /// How many connections have been begun: each has its number.
    begun: u64,
    /// The last connection that was lost.
    lost: u64,
    /// Why the last attempt failed.
    error: Option<RedisError>,
    /// The delays before the attempts since a connection has lasted.
    backoff: Backoff,
    channels: Vec<String>,
}

impl State {
    fn new() -> Self {
        let (open, is_connecting, begun, lost, error) = (None, false, 0, 0, None);
        let (backoff, channels) = (Backoff::new(FIRST_DELAY, LONGEST_DELAY), Vec::new());
        Self { open, is_connecting, begun, lost, error, backoff, channels }
    }
}

#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    number: u64,
    since: Instant,
    _driver: Option<Arc<Driver>>,
}

/// The task of a connection, which ends with it, as the library has it for those that it makes itself.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reconnecting {
    /// Connects, in one attempt: what is wrong with a password or a certificate is told at once.
    pub(crate) async fn connect(
        server: Server,
        limits: Limits,
        waiters: Arc<Waiters>,
    ) -> RedisResult<Self> {
        let (state, installed) = (Mutex::new(State::new()), Notify::new());
        let shared = Arc::new(Shared { server, limits, waiters, state, installed });
        let open = shared.open().await?;
        shared.install(open);
        Ok(Self(shared))
    }

    /// Subscribes to these channels, on this connection and each that replaces it.
    pub(crate) async fn subscribe(&self, channels: &[String]) -> RedisResult<()> {
        locked(&self.0.state).channels = channels.to_vec();
        let mut open = self.0.opened().await?;
        let subscribed = open.connection.subscribe(channels).await;
        self.0.looked_at(&open, subscribed)
    }

    /// Whether a call would be sent at once.
    #[cfg(feature = "simulation")]
    pub(crate) fn is_open(&self) -> bool {
        locked(&self.0.state).open.is_some()
    }
}

impl ConnectionLike for Reconnecting {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut open = self.0.opened().await?;
            let answer = open.connection.send_packed_command(cmd).await;
            self.0.looked_at(&open, answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut open = self.0.opened().await?;
            let answers = open.connection.send_packed_commands(pipeline, offset, count).await;
            self.0.looked_at(&open, answers)
        })
    }

    fn get_db(&self) -> i64 {
        match &self.0.server {
            Server::Url(client) => client.get_connection_info().redis_settings().db(),
            #[cfg(feature = "simulation")]
            Server::Stream(_, settings) => settings.db(),
        }
    }
}

impl Server {
    async fn connect(
        &self,
        config: AsyncConnectionConfig,
    ) -> RedisResult<(MultiplexedConnection, Option<Arc<Driver>>)> {
        match self {
            Self::Url(client) => {
                let opened = client.get_multiplexed_async_connection_with_config(&config).await;
                opened.map(|connection| (connection, None))
            }
            #[cfg(feature = "simulation")]
            Self::Stream(server, settings) => {
                let stream = server.connect().await?;
                let opened = MultiplexedConnection::new_with_config(settings, stream, config);
                let (connection, driver) = opened.await?;
                Ok((connection, Some(Arc::new(Driver(tokio::spawn(driver))))))
            }
        }
    }
}

impl Shared {
    /// The open connection. Waits for it while there is none, a little less long than a call may take,
    /// so that its caller learns why there is none.
    async fn opened(self: &Arc<Self>) -> RedisResult<Open> {
        if let Some(open) = &locked(&self.state).open {
            return Ok(open.clone());
        }
        // The task that connects may have gone with its runtime. Once only: a runtime that is shutting
        // down drops each further one at once.
        self.reconnect(Duration::ZERO);
        let opened = async {
            loop {
                // Before the look, so that what happens after it is not missed.
                let installed = self.installed.notified();
                if let Some(open) = &locked(&self.state).open {
                    return open.clone();
                }
                installed.await;
            }
        };
        let opened = timeout(self.limits.connect * 9 / 10, opened).await;
        opened.map_err(|_| locked(&self.state).error.clone().unwrap_or_else(timed_out))
    }

    /// Makes a connection, one attempt, and subscribes on it.
    async fn open(self: &Arc<Self>) -> RedisResult<Open> {
        let (number, channels) = {
            let mut state = locked(&self.state);
            state.begun += 1;
            (state.begun, state.channels.clone())
        };
        let shared = Arc::downgrade(self);
        let config = AsyncConnectionConfig::new()
            // All of it is timed below.
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.limits.response))
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |push: PushInfo| {
                if let Some(shared) = shared.upgrade() {
                    shared.pushed(number, &push);
                }
                Ok::<(), SendError>(())
            });
        let opened = async {
            let (mut connection, driver) = self.server.connect(config).await?;
            if !channels.is_empty() {
                connection.subscribe(channels).await?;
            }
            Ok(Open { connection, number, since: Instant::now(), _driver: driver })
        };
        timeout(self.limits.connect, opened).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Lets calls go on over this connection, unless it has been lost already.
    fn install(&self, open: Open) -> bool {
        let mut state = locked(&self.state);
        if state.lost >= open.number {
            return false;
        }
        (state.open, state.error, state.is_connecting) = (Some(open), None, false);
        drop(state);
        self.installed.notify_waiters();
        true
    }

    fn pushed(self: &Arc<Self>, number: u64, push: &PushInfo) {
        match push.kind {
            // Waiters are told once there is a connection again, over which they can look.
            PushKind::Disconnection => self.lose(number),
            _ => self.waiters.push(push),
        }
    }

    /// Looks whether the connection is of use after this answer.
    fn looked_at<T>(self: &Arc<Self>, open: &Open, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
            self.lose(open.number);
        }
        answer
    }

    /// Gives this connection up, if it is the one that is open, and begins to replace it.
    fn lose(self: &Arc<Self>, number: u64) {
        let mut state = locked(&self.state);
        state.lost = state.lost.max(number);
        let Some(open) = state.open.take_if(|open| open.number == number) else { return };
        let delay = if open.since.elapsed() >= LONGEST_DELAY {
            state.backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
            Duration::ZERO
        } else {
            state.backoff.next()
        };
        drop(state);
        // Not under the lock: it ends the connection's task.
        drop(open);
        self.reconnect(delay);
    }

    /// Starts the task that connects, after a delay, if there is none.
    fn reconnect(self: &Arc<Self>, delay: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut state = locked(&self.state);
        if state.is_connecting || state.open.is_some() {
            return;
        }
        state.is_connecting = true;
        // A runtime that is shutting down drops the task here and now, which takes the lock.
        drop(state);
        runtime.spawn(Connecting(Arc::downgrade(self)).run(delay));
    }
}

/// The one attempt to replace a connection. When it is dropped with its runtime, the next call begins
/// another.
struct Connecting(Weak<Shared>);

impl Connecting {
    async fn run(mut self, mut delay: Duration) {
        loop {
            sleep(delay).await;
            let Some(shared) = self.0.upgrade() else { return };
            match shared.open().await {
                Ok(open) => {
                    // Before calls go on: who has heard of the answer to one may ask for this.
                    shared.waiters.set_cut();
                    if shared.install(open) {
                        // Another task may have begun since, of which the drop of this one says nothing.
                        self.0 = Weak::new();
                        // What was told meanwhile is not known: everybody looks.
                        return shared.waiters.wake_all();
                    }
                }
                Err(error) => {
                    let cause = &error as &dyn std::error::Error;
                    log(|| {
                        tracing::debug!(error = cause, "cannot reconnect to Redis, trying again")
                    });
                    locked(&shared.state).error = Some(error);
                }
            }
            delay = locked(&shared.state).backoff.next();
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            locked(&shared.state).is_connecting = false;
        }
    }
}

#[cfg(all(test, feature = "simulation"))]
mod tests {
    use std::{
        collections::BTreeMap,
        io,
        rc::Rc,
        task::{Context, Waker},
        time::{SystemTime, UNIX_EPOCH},
    };

    use redis::{ProtocolVersion, RedisConnectionInfo};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::AbortHandle,
    };
    use tower_offload::simulation::{Entered, Source, enter};

    use super::*;
    use crate::simulation::{self, Connect};

    const LIMITS: Limits =
        Limits { connect: Duration::from_secs(1), response: Duration::from_secs(1) };

    /// How long a connection is of use that the server closes.
    const CLOSES_AFTER: Duration = Duration::from_millis(10);

    /// Delays are what they are at most.
    struct Longest;

    impl Source for Longest {
        fn now(&self) -> SystemTime {
            UNIX_EPOCH
        }

        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(u8::MAX);
        }
    }

    fn longest_delays() -> Entered {
        enter(Rc::new(Longest))
    }

    /// A server that answers every command with `OK`.
    #[derive(Clone)]
    struct Fake(Arc<Mutex<Seen>>);

    struct Seen {
        is_up: bool,
        /// Closes each connection after so many commands.
        answers: usize,
        /// When connections were asked for.
        attempts: Vec<Instant>,
        /// What each of those that were opened was sent, a command a line.
        sent: BTreeMap<usize, Vec<String>>,
        open: Vec<AbortHandle>,
    }

    impl Fake {
        fn new() -> Self {
            let (attempts, sent, open) = (Vec::new(), BTreeMap::new(), Vec::new());
            Self(Arc::new(Mutex::new(Seen {
                is_up: true,
                answers: usize::MAX,
                attempts,
                sent,
                open,
            })))
        }

        async fn connection(&self) -> (Reconnecting, Arc<Waiters>) {
            let settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
            let server = Server::Stream(Arc::new(self.clone()), settings.set_skip_set_lib_name());
            let waiters = Arc::new(Waiters::default());
            let opened = Reconnecting::connect(server, LIMITS, Arc::clone(&waiters)).await;
            (opened.unwrap(), waiters)
        }

        fn set_up(&self, is_up: bool) {
            locked(&self.0).is_up = is_up;
        }

        /// Closes all connections.
        fn cut(&self) {
            locked(&self.0).open.drain(..).for_each(|task| task.abort());
        }

        /// How long after the first attempt the others were made.
        fn attempts(&self) -> Vec<Duration> {
            let attempts = &locked(&self.0).attempts;
            attempts.iter().map(|at| *at - attempts[0]).collect()
        }

        fn sent(&self, connection: usize) -> Vec<String> {
            locked(&self.0).sent.get(&connection).cloned().unwrap_or_default()
        }

        async fn serve(self, mut stream: DuplexStream, connection: usize) {
            let mut text = String::new();
            while let Ok(byte) = stream.read_u8().await {
                text.push(byte.into());
                let Some(words) = whole_command(&text) else { continue };
                text.clear();
                let answer = match &*words[0] {
                    "SUBSCRIBE" => {
                        let push = |channel: &String| {
                            let len = channel.len();
                            format!(">3\r\n$9\r\nsubscribe\r\n${len}\r\n{channel}\r\n:1\r\n")
                        };
                        words[1..].iter().map(push).collect()
                    }
                    _ => "+OK\r\n".to_owned(),
                };
                let is_last = {
                    let mut seen = locked(&self.0);
                    let sent = seen.sent.entry(connection).or_default();
                    sent.push(words.join(" "));
                    sent.len() >= seen.answers
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
                if is_last {
                    return sleep(CLOSES_AFTER).await;
                }
            }
        }
    }

    /// The words of a command, once all of it is there.
    fn whole_command(text: &str) -> Option<Vec<String>> {
        let mut lines = text.strip_suffix("\r\n")?.split("\r\n");
        let count: usize = lines.next()?.strip_prefix('*')?.parse().ok()?;
        let words: Vec<_> = lines.skip(1).step_by(2).map(str::to_owned).collect();
        (words.len() == count).then_some(words)
    }

    impl Connect for Fake {
        fn connect(&self) -> simulation::Connecting {
            let mut seen = locked(&self.0);
            seen.attempts.push(Instant::now());
            if !seen.is_up {
                return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
            }
            let ((here, there), connection) = (duplex(1 << 16), seen.attempts.len());
            let serving = tokio::spawn(self.clone().serve(there, connection));
            seen.open.push(serving.abort_handle());
            Box::pin(async { Ok(Box::new(here) as Box<dyn simulation::Stream>) })
        }
    }

    async fn get(connection: &Reconnecting, key: &str) -> RedisResult<Value> {
        let mut connection = connection.clone();
        connection.req_packed_command(redis::cmd("GET").arg(key)).await
    }

    #[tokio::test(start_paused = true)]
    async fn one_attempt_is_made_at_a_time_and_a_second_apart_at_most() {
        let (_longest, fake) = (longest_delays(), Fake::new());
        let (connection, _) = fake.connection().await;
        let begun = Instant::now();
        fake.set_up(false);
        fake.cut();
        let mut calls = Vec::new();
        for _ in 0..50 {
            let connection = connection.clone();
            calls.push(tokio::spawn(async move {
                for _ in 0..4 {
                    get(&connection, "x").await.unwrap_err();
                }
            }));
        }
        for call in calls {
            call.await.unwrap();
        }
        tokio::time::sleep_until(begun + Duration::from_secs(5)).await;
        // The connection was young, so that even the first is delayed.
        let expected = [0, 100, 300, 700, 1500, 2500, 3500, 4500].map(Duration::from_millis);
        let attempts = fake.attempts();
        assert_eq!(attempts.len(), expected.len(), "{attempts:?}");
        for (attempt, expected) in attempts.into_iter().zip(expected) {
            // Each timer rounds up to a millisecond.
            assert!(attempt.abs_diff(expected) < Duration::from_millis(20), "{attempt:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_closes_each_connection_at_once_is_asked_less_and_less() {
        let (_longest, fake) = (longest_delays(), Fake::new());
        let (connection, _) = fake.connection().await;
        connection.subscribe(&["a".to_owned()]).await.unwrap();
        let begun = Instant::now();
        // Enough for the greeting and the subscription of a new connection, and no more.
        locked(&fake.0).answers = 2;
        fake.cut();
        tokio::time::sleep_until(begun + Duration::from_secs(5)).await;
        let mut expected = Duration::ZERO;
        let attempts = fake.attempts();
        assert_eq!(attempts.len(), 8, "{attempts:?}");
        for (attempt, delay) in attempts.into_iter().zip([0, 100, 200, 400, 800, 1000, 1000, 1000])
        {
            expected += Duration::from_millis(delay);
            assert!(attempt.abs_diff(expected) < Duration::from_millis(20), "{attempt:?}");
            expected = attempt + CLOSES_AFTER;
        }
        // Once a connection has lasted, the next that is lost is replaced at once.
        locked(&fake.0).answers = usize::MAX;
        sleep(LONGEST_DELAY * 3).await;
        assert_eq!(get(&connection, "x").await.unwrap(), Value::Okay);
        let before = fake.attempts().len();
        fake.cut();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(fake.attempts().len(), before + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_is_replaced_at_once_and_subscribed_before_calls_go_on() {
        let (_longest, fake) = (longest_delays(), Fake::new());
        let (connection, waiters) = fake.connection().await;
        connection.subscribe(&["a".to_owned(), "b".to_owned()]).await.unwrap();
        sleep(LONGEST_DELAY).await;
        assert!(!waiters.was_cut());
        fake.cut();
        let begun = Instant::now();
        // The call is made when the connection is known to be lost.
        while fake.attempts().len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(get(&connection, "x").await.unwrap(), Value::Okay);
        assert!(begun.elapsed() < Duration::from_millis(10));
        assert!(waiters.was_cut());
        assert_eq!(fake.sent(2), ["HELLO 3", "SUBSCRIBE a b", "GET x"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_in_an_outage_fails_within_its_time_and_says_why() {
        let (_longest, fake) = (longest_delays(), Fake::new());
        let (connection, _) = fake.connection().await;
        fake.set_up(false);
        fake.cut();
        // The one that is under way.
        get(&connection, "x").await.unwrap_err();
        let begun = Instant::now();
        let error = get(&connection, "x").await.unwrap_err();
        assert!(begun.elapsed() <= LIMITS.connect);
        let cause = io::Error::from(io::ErrorKind::ConnectionRefused).to_string();
        assert!(format!("{error:?}{error}").contains(&cause), "{error:?}");
        fake.set_up(true);
        assert_eq!(get(&connection, "y").await.unwrap(), Value::Okay);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_attempt_that_fails_is_the_only_one() {
        let fake = Fake::new();
        fake.set_up(false);
        let settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        let server = Server::Stream(Arc::new(fake.clone()), settings);
        assert!(Reconnecting::connect(server, LIMITS, Arc::default()).await.is_err());
        sleep(LONGEST_DELAY * 5).await;
        assert_eq!(fake.attempts().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_uses_any_more_is_not_replaced() {
        let fake = Fake::new();
        let (connection, _) = fake.connection().await;
        fake.set_up(false);
        fake.cut();
        sleep(LONGEST_DELAY * 3).await;
        drop(connection);
        let attempts = fake.attempts().len();
        assert!(attempts > 1);
        sleep(LONGEST_DELAY * 10).await;
        assert!(fake.attempts().len() <= attempts + 1);
    }

    /// Makes a call when it is dropped, as the core does for what must reach the store.
    struct CallsInDrop(Reconnecting);

    impl Drop for CallsInDrop {
        fn drop(&mut self) {
            let command = redis::cmd("PING");
            let mut call = self.0.req_packed_command(&command);
            assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
    }

    #[test]
    fn a_call_on_a_runtime_that_shuts_down_does_not_hold_it_up() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap();
        let fake = Fake::new();
        runtime.block_on(async {
            let (connection, _) = fake.connection().await;
            fake.set_up(false);
            fake.cut();
            get(&connection, "x").await.unwrap_err();
            tokio::spawn(async move {
                let _calls = CallsInDrop(connection);
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
        });
        drop(runtime);
    }
}
