//! How often Redis is asked: what a call sends, as Redis itself sees it.

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use support::{Server, fresh_prefix, proxy::Proxy};
use tower_offload::{
    Change, Claim, Digest, End, JobId, Outcome, Progress, Record, Store, store::Interest,
};
use tower_offload_redis::RedisStore;

const HOUR: Duration = Duration::from_secs(3600);

/// What a server is asked, from now on.
struct Monitor {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Monitor {
    fn start(server: &Server) -> Self {
        let mut child = Command::new("redis-cli")
            .args(["-p", &server.port.to_string(), "monitor"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "OK");
        Self { child, lines }
    }

    /// The commands since the last time, without those of scripts.
    fn commands(&mut self, server: &Server) -> Vec<String> {
        self.all(server).into_iter().filter(|command| !command.starts_with("lua")).collect()
    }

    /// The commands since the last time, those of scripts too.
    fn all(&mut self, server: &Server) -> Vec<String> {
        server.cli(&["echo", "so far"]);
        let mut commands = Vec::new();
        for line in &mut self.lines {
            let line = line.unwrap();
            if line.contains("\"echo\" \"so far\"") {
                break;
            }
            let command = line.split('"').nth(1).unwrap_or_default().to_ascii_lowercase();
            commands.push(if line.contains(" lua]") { format!("lua {command}") } else { command });
        }
        commands
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn response(bytes: usize) -> Change {
    let head = http::Response::new(()).into_parts().0;
    Change::Finish(End::Response(Outcome::new(&head, &vec![b'x'; bytes], None)))
}

#[tokio::test]
async fn each_call_is_one_command() {
    let server = Server::start(&[]);
    let store = RedisStore::builder(server.url())
        .prefix(fresh_prefix())
        // No renewal comes between.
        .lease(Duration::from_secs(3600))
        .connect()
        .await
        .unwrap();
    let key = Digest::from([7; 32]);
    let new = || {
        Record::queued(
            JobId::random_beside(&key).unwrap(),
            SystemTime::now(),
            Duration::from_secs(60),
        )
    };
    let (record, again) =
        (new().with_claim(Claim::new(key, key)), new().with_claim(Claim::new(key, key)));
    let id = record.id();
    // The scripts are there once they have been asked for: in the first call of each to a server.
    let warm = new();
    store.insert(warm.clone(), 0).await.unwrap();
    store.change(warm.id(), Change::Start).await.unwrap();
    store.change(warm.id(), response(0)).await.unwrap();
    store.fetch(warm.id(), None).await.unwrap();
    store.claimed(key).await.unwrap();
    store.changed(warm.id(), 0, Interest::Status).await.unwrap();
    store.take_back(warm.id()).await.unwrap();
    store.queued(None).await.unwrap();

    let mut monitor = Monitor::start(&server);
    let mut sent = |what: &str, wanted: &[&str]| {
        assert_eq!(monitor.commands(&server), wanted, "{what}");
    };
    store.insert(record, 0).await.unwrap();
    sent("accept, with a key", &["evalsha"]);
    store.insert(again, 0).await.unwrap();
    sent("the same key again", &["evalsha"]);
    store.claimed(key).await.unwrap();
    sent("a claim", &["evalsha"]);
    store.queued(None).await.unwrap();
    sent("how many durable jobs wait, in all partitions", &["evalsha"]);
    store.read(id, None).await.unwrap();
    sent("a poll", &["hgetall"]);
    store.read(id, Some(key)).await.unwrap();
    sent("a poll by an owner", &["evalsha"]);
    store.change(id, Change::Start).await.unwrap();
    sent("start", &["evalsha"]);
    store.change(id, Change::Progress(Progress::new(Some(0.5), Some("half")))).await.unwrap();
    sent("progress", &["evalsha"]);
    store.changed(id, 0, Interest::Status).await.unwrap();
    sent("a look before waiting", &["evalsha"]);
    store.change(id, response(1000)).await.unwrap();
    sent("an end", &["evalsha"]);
    store.fetch(id, None).await.unwrap();
    sent("a fetch", &["evalsha"]);
    store.change(id, Change::Cancel).await.unwrap();
    sent("a cancel that is refused", &["evalsha"]);
    store.change(id, Change::Remove).await.unwrap();
    sent("a removal", &["evalsha"]);
    store.take_back(id).await.unwrap();
    sent("taken back", &["evalsha"]);
}

/// Looking for a job that is due is one command for all partitions, once a second; a job of which there was
/// word is taken by one.
#[tokio::test]
async fn looking_for_jobs_is_one_command_a_second() {
    let server = Server::start(&[]);
    let prefix = fresh_prefix();
    let builder = || RedisStore::builder(server.url()).prefix(&prefix);
    let builder = || builder().lease(Duration::from_secs(3600));
    let (store, other) = (builder().connect().await.unwrap(), builder().connect().await.unwrap());
    let queued = || {
        let id = JobId::random().unwrap();
        let record = Record::queued(id, SystemTime::now(), Duration::from_secs(60));
        record.with_policy("work".into()).with_attempts(1)
    };
    // The scripts are there once they have been asked for.
    store.enqueue(queued(), "request".into(), 0).await.unwrap();
    store.arrival("work".into()).await.unwrap();
    assert!(store.take("work".into()).await.unwrap().is_some());
    assert!(store.take("work".into()).await.unwrap().is_none());
    let mut monitor = Monitor::start(&server);
    let begun = tokio::time::Instant::now();
    let idle = tokio::time::timeout(Duration::from_millis(3500), store.arrival("work".into()));
    assert!(idle.await.is_err(), "there is nothing");
    let looks = monitor.commands(&server);
    assert!(looks.iter().all(|command| command == "evalsha"), "{looks:?}");
    let most = begun.elapsed().as_secs() + 1;
    assert!((1..=most).contains(&(looks.len() as u64)), "{looks:?}");
    // A message says that there is one: it is not looked for.
    let arrival = tokio::spawn(store.arrival("work".into()));
    other.enqueue(queued(), "request".into(), 0).await.unwrap();
    arrival.await.unwrap().unwrap();
    monitor.commands(&server);
    assert!(store.take("work".into()).await.unwrap().is_some());
    assert_eq!(monitor.commands(&server), ["evalsha"]);
}

/// Neither the commands nor the bytes tell a stranger that there is a job.
#[tokio::test]
async fn a_job_of_another_owner_costs_what_an_unknown_one_does() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port).await;
    let builder = RedisStore::builder(proxy.url()).prefix(fresh_prefix());
    let store = builder.lease(HOUR).connect().await.unwrap();
    let (owner, stranger) = (Digest::from([1; 32]), Some(Digest::from([2; 32])));
    let new = || Record::queued(JobId::random().unwrap(), SystemTime::now(), HOUR);
    let mut jobs = Vec::new();
    for outcome in [None, Some(0), Some(100_000), Some(3 << 20)] {
        let record = new().with_owner(owner);
        store.insert(record.clone(), 0).await.unwrap();
        if let Some(bytes) = outcome {
            store.change(record.id(), response(bytes)).await.unwrap();
        }
        jobs.push(record.id());
    }
    // The script is there once it has been asked for.
    assert!(store.fetch(jobs[2], Some(owner)).await.unwrap().unwrap().1.is_some());
    let mut monitor = Monitor::start(&server);
    let mut cost = async |id: JobId| {
        let before = proxy.replied();
        assert!(store.read(id, stranger).await.unwrap().is_none());
        assert!(store.fetch(id, stranger).await.unwrap().is_none());
        (monitor.all(&server), proxy.replied() - before)
    };
    let unknown = cost(new().id()).await;
    assert_eq!(unknown.0, ["evalsha", "lua hget", "evalsha", "lua hget"]);
    for id in &jobs {
        assert_eq!(cost(*id).await, unknown);
    }
    // The owner is told, and no outcome is sent where only the record is wanted.
    let before = proxy.replied();
    for id in jobs {
        assert!(store.read(id, Some(owner)).await.unwrap().is_some());
    }
    assert!(proxy.replied() - before < 4000);
}
