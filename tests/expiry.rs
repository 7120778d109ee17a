//! How long things are kept: what runs for as long as it runs, what has ended for its TTL, and then
//! nothing. On a paused clock, but for the last test.

#[path = "support/held.rs"]
mod held;
mod support;

use std::time::Duration;

use bytes::Bytes;
use held::{Desk, Held};
use http::Response;
use http_body_util::Full;
use jiff::Timestamp;
use support::{Answer, soon};
use tokio::time::sleep;
use tower_offload::{JobId, MemoryStore, Offload, Policy};

const TTL: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

/// What one job without an outcome counts for, by the documentation of the store.
const JOB_BYTES: usize = 1024;

fn desk() -> Desk {
    let builder = Offload::builder("/jobs").ttl(TTL).max_run_time(TTL * 1000);
    Desk::new(builder, MemoryStore::new(1 << 30), Policy::always())
}

fn response(bytes: usize) -> Response<Full<Bytes>> {
    Response::new(Full::from(vec![b'x'; bytes]))
}

impl Desk {
    async fn finish(&self, job: Held) -> String {
        let path = job.path.clone();
        job.finish(response(10));
        self.ended(&path).await;
        path
    }

    /// What each of the three resources answers to `GET`.
    async fn statuses(&self, job: &str) -> [u16; 3] {
        let mut statuses = [0; 3];
        for (status, resource) in statuses.iter_mut().zip(["", "/status", "/result"]) {
            *status = self.ask("GET", &format!("{job}{resource}")).await.status.as_u16();
        }
        statuses
    }

    /// That this job is, by every verb and byte, like one that never was.
    async fn is_unknown(&self, job: &str) {
        let never = format!("/jobs/{}", JobId::random().unwrap());
        for resource in ["", "/status", "/result"] {
            for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
                let found = self.ask(method, &format!("{job}{resource}")).await;
                let wanted = self.ask(method, &format!("{never}{resource}")).await;
                let all = |answer: Answer| (answer.status, answer.headers, answer.body);
                assert_eq!(all(found), all(wanted), "{method} {resource}");
            }
        }
        assert_eq!(self.statuses(job).await, [404; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_like_what_never_was() {
    let desk = desk();
    let job = desk.hold().await;
    let job = desk.finish(job).await;
    sleep(TTL - SECOND).await;
    assert_eq!(desk.statuses(&job).await, [303, 200, 200]);
    assert_eq!(desk.ask("GET", &format!("{job}/result")).await.body, "x".repeat(10));
    sleep(SECOND).await;
    desk.is_unknown(&job).await;
}

#[tokio::test(start_paused = true)]
async fn a_running_job_outlives_its_ttl() {
    let desk = desk();
    let job = desk.hold().await;
    for _ in 0..100 {
        sleep(TTL).await;
        assert_eq!(desk.statuses(&job.path).await, [202, 200, 202]);
    }
    let job = desk.finish(job).await;
    sleep(TTL - SECOND).await;
    assert_eq!(desk.statuses(&job).await, [303, 200, 200]);
    sleep(SECOND).await;
    desk.is_unknown(&job).await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_job_says_so_until_it_would_have_expired() {
    let desk = desk();
    let job = desk.hold().await;
    let job = desk.finish(job).await;
    sleep(TTL / 2).await;
    let result = format!("{job}/result");
    assert_eq!(desk.ask("DELETE", &result).await.status, 204);
    for _ in 0..4 {
        assert_eq!(desk.statuses(&job).await, [410; 3]);
        assert_eq!(desk.ask("DELETE", &result).await.status, 204);
        sleep((TTL / 2 - SECOND) / 4).await;
    }
    assert_eq!(desk.statuses(&job).await, [410; 3]);
    sleep(SECOND).await;
    desk.is_unknown(&job).await;
}

#[tokio::test(start_paused = true)]
async fn a_canceled_job_is_kept_for_its_ttl() {
    let desk = desk();
    let job = desk.hold().await;
    sleep(TTL * 3).await;
    assert_eq!(desk.ask("DELETE", &job.path).await.status, 200);
    sleep(TTL - SECOND).await;
    assert_eq!(desk.statuses(&job.path).await, [303, 200, 410]);
    assert_eq!(desk.ask("DELETE", &job.path).await.status, 200);
    sleep(SECOND).await;
    desk.is_unknown(&job.path).await;
}

/// Asking, waiting and a `DELETE` that is refused change nothing of it.
#[tokio::test(start_paused = true)]
async fn a_poll_does_not_prolong_a_job() {
    let desk = desk();
    let job = desk.hold().await;
    let job = desk.finish(job).await;
    for _ in 0..10 {
        assert_eq!(desk.statuses(&job).await, [303, 200, 200]);
        assert_eq!(desk.send("GET", &job, &[("prefer", "wait=5")]).await.status, 303);
        assert_eq!(desk.ask("DELETE", &job).await.status, 409);
        sleep(TTL / 10).await;
    }
    desk.is_unknown(&job).await;
}

#[tokio::test(start_paused = true)]
async fn expires_at_only_moves_later() {
    let desk = desk();
    let time = |answer: &Answer, field: &str| -> Timestamp {
        answer.json()[field].as_str().unwrap().parse().unwrap()
    };
    // The wall clock goes on while tokio's is paused, and times are told to the millisecond.
    let is_after = |answer: &Answer, field: &str| {
        let kept = time(answer, "expires_at").duration_since(time(answer, field));
        let apart = kept.as_millis() - i128::try_from(TTL.as_millis()).unwrap();
        assert!(apart.abs() <= 1, "expires {kept:?} after {field}");
    };
    let (accepted, handler) = desk.start().await;
    let status = format!("{}/status", accepted.location());
    is_after(&accepted, "created_at");
    let running = desk.ask("GET", &status).await;
    assert_eq!(time(&running, "expires_at"), time(&accepted, "expires_at"));
    sleep(TTL * 2).await;
    handler.send(response(1)).unwrap();
    desk.ended(accepted.location()).await;
    let ended = desk.ask("GET", &status).await;
    is_after(&ended, "finished_at");
    assert!(time(&ended, "expires_at") >= time(&accepted, "expires_at"));
    let conflict = desk.ask("DELETE", accepted.location()).await;
    assert_eq!(time(&conflict, "expires_at"), time(&ended, "expires_at"));
}

#[tokio::test(start_paused = true)]
async fn a_route_has_its_own_ttl() {
    let builder = || Offload::builder("/jobs").ttl(TTL);
    let store = MemoryStore::new(1 << 30);
    let short = Desk::new(builder(), store.clone(), Policy::always().ttl(SECOND));
    let long = Desk::new(builder(), store, Policy::always().ttl(TTL * 50));
    let (a, b) = (short.hold().await, long.hold().await);
    let (a, b) = (short.finish(a).await, long.finish(b).await);
    sleep(SECOND).await;
    short.is_unknown(&a).await;
    sleep(TTL * 50 - SECOND * 2).await;
    assert_eq!(long.statuses(&b).await, [303, 200, 200]);
    sleep(SECOND).await;
    long.is_unknown(&b).await;
}

#[tokio::test(start_paused = true)]
async fn memory_is_given_back() {
    const OUTCOME: usize = 1 << 20;
    let builder = Offload::builder("/jobs").ttl(TTL).max_running(200).max_outcome_bytes(OUTCOME);
    let desk = Desk::new(builder, MemoryStore::new(1 << 30), Policy::always());
    let used = || (desk.store.jobs(), desk.store.bytes());
    let mut jobs = Vec::new();
    for _ in 0..200 {
        jobs.push(desk.hold().await);
    }
    // Room is kept for what may come.
    assert_eq!(used(), (200, 200 * (OUTCOME + JOB_BYTES)));
    let canceled = jobs.split_off(100);
    for job in jobs {
        let path = job.path.clone();
        job.finish(response(10_000));
        desk.ended(&path).await;
    }
    for job in &canceled {
        assert_eq!(desk.ask("DELETE", &job.path).await.status, 200);
    }
    let (jobs, bytes) = used();
    assert_eq!(jobs, 200);
    let outcomes = bytes - 200 * JOB_BYTES;
    assert!((100 * 10_000..100 * 10_500).contains(&outcomes), "{outcomes}");
    sleep(TTL + SECOND).await;
    assert_eq!(used(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_takes_jobs_again_when_others_have_expired() {
    const OUTCOME: usize = 1 << 20;
    let builder = Offload::builder("/jobs").ttl(TTL).max_outcome_bytes(OUTCOME);
    let desk = Desk::new(builder, MemoryStore::new(OUTCOME * 2), Policy::always());
    let first = desk.hold().await;
    let path = first.path.clone();
    assert_eq!(desk.start().await.0.status, 503);
    first.finish(response(OUTCOME - 1000));
    desk.ended(&path).await;
    let (refused, _) = desk.start().await;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    sleep(TTL - SECOND).await;
    assert_eq!(desk.start().await.0.status, 503, "what was promised is kept, full or not");
    assert_eq!(desk.statuses(&path).await, [303, 200, 200]);
    sleep(SECOND).await;
    desk.hold().await;
}

/// Every method of the store from eight threads at once, over few jobs that expire at any moment: no
/// deadlock, no waiter left behind, and not a byte too many or too few in the end.
#[test]
fn trap_9_1_no_method_waits_for_another() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(8).enable_all().build().unwrap().block_on(hammer::all());
        done.send(())
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("a deadlock, or a panic above");
}

mod hammer {
    use std::{sync::Arc, time::SystemTime};

    use futures_util::{FutureExt, stream::FuturesUnordered, stream::StreamExt};
    use tower_offload::{
        Change, End, Failure, Outcome, Record, Store,
        store::{Changed, Interest, StoreFuture},
    };

    use super::*;

    const ROUNDS: u32 = 20_000;

    pub async fn all() {
        let store = MemoryStore::new(64 * 1024);
        let ids: Arc<[JobId]> = (0..16).map(|_| JobId::random().unwrap()).collect();
        let tasks: Vec<_> =
            (1..=8).map(|seed| tokio::spawn(one(store.clone(), Arc::clone(&ids), seed))).collect();
        let mut waiters = Vec::new();
        for task in tasks {
            waiters.extend(task.await.unwrap());
        }
        for id in &*ids {
            store.take_back(*id).await.unwrap();
        }
        assert!(waiters.len() > 10);
        for waiter in waiters {
            soon("a waiter is woken when its job has gone", waiter).await.unwrap();
        }
        assert_eq!((store.jobs(), store.bytes()), (0, 0));
    }

    /// Gives back those that still wait.
    async fn one(
        store: MemoryStore,
        ids: Arc<[JobId]>,
        seed: u64,
    ) -> FuturesUnordered<StoreFuture<()>> {
        let mut random = seed;
        let mut waiters = FuturesUnordered::new();
        for round in 0..ROUNDS {
            // As good as any: xorshift.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let id = ids[random as usize % ids.len()];
            let ttl = Duration::from_micros(random >> 32 & 0x7ff);
            let end = |end| Change::Finish(end);
            match random >> 8 & 15 {
                0..=3 => {
                    let record = Record::queued(id, SystemTime::now(), ttl);
                    let _ = store.insert(record, 6000).await;
                }
                4 => drop(store.take_back(id).await.unwrap()),
                5 => drop(store.read(id, None).await.unwrap()),
                6 => drop(store.fetch(id, None).await.unwrap()),
                7 | 8 => apply(&store, id, Change::Start).await,
                9 => apply(&store, id, Change::Cancel).await,
                10 => apply(&store, id, end(End::Failure(Failure::TimedOut))).await,
                11 => {
                    let head = Response::new(()).into_parts().0;
                    let outcome = Outcome::new(&head, &[0; 5000], None);
                    apply(&store, id, end(End::Response(outcome))).await;
                }
                12 => apply(&store, id, Change::Remove).await,
                13 => waiters.push(store.changed(id, (random >> 16 & 1) as u32, Interest::Status)),
                14 => assert!(store.jobs() <= ids.len() && store.bytes() <= 64 * 1024),
                _ => {
                    while let Some(Some(woken)) = waiters.next().now_or_never() {
                        woken.unwrap();
                    }
                }
            }
            if round % 64 == 0 {
                tokio::task::yield_now().await;
            }
            if waiters.len() > 100 {
                waiters.clear();
            }
        }
        waiters
    }

    async fn apply(store: &MemoryStore, id: JobId, change: Change) {
        match store.change(id, change).await.unwrap() {
            Changed::Applied(record) | Changed::Refused(record) => assert_eq!(record.id(), id),
            Changed::Unknown => {}
        }
    }
}
