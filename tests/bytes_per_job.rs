//! What a job takes of memory in the store: few bytes, so that there can be a million, and to ask
//! for one takes none. All in one test, since the allocator counts for the process.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Response, header::CONTENT_TYPE};
use peak_alloc::PeakAlloc;
use tower_offload::{
    Change, End, JobId, MemoryStore, Outcome, Record, Store,
    store::{Changed, Inserted, Interest, StoreFuture},
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A little more than fit into tables of half the size, as with a million: the slack is the largest.
const JOBS: usize = 250_000;

/// What a running job may take, less its entry in the ledger of places (24 bytes, in a vector that
/// may have twice the room).
const RUNNING: usize = 256 - 2 * 24;

/// A small outcome: 64 bytes of JSON.
const OUTCOME: usize = 200;

/// A job with that outcome, its entry in the queue of expiry, and 56 bytes that count the outcome until
/// its last reader has let go of it.
const FINISHED: usize = 416;

fn poll<T>(future: &mut StoreFuture<T>) -> Option<T> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer.unwrap()),
        Poll::Pending => None,
    }
}

fn now<T>(mut future: StoreFuture<T>) -> T {
    poll(&mut future).expect("the store in memory is done at the first poll")
}

fn outcome() -> Outcome {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Outcome::new(&response.into_parts().0, &[b'x'; 64], None)
}

/// The bytes of memory that `f` leaves taken for each job, those of its result's vector not counted.
fn per_job<T>(mut f: impl FnMut(JobId) -> T, ids: &[JobId]) -> (Vec<T>, usize) {
    let mut results = Vec::with_capacity(ids.len());
    let before = MEMORY.current_usage();
    results.extend(ids.iter().map(|id| f(*id)));
    let taken = MEMORY.current_usage() - before;
    (results, taken / ids.len())
}

#[tokio::test]
async fn a_job_takes_few_bytes_and_to_ask_for_it_takes_none() {
    let ids: Vec<_> = (0..JOBS).map(|_| JobId::random().unwrap()).collect();
    let policy: Arc<str> = "reports".into();
    let store = MemoryStore::new(usize::MAX);

    let insert = |id| {
        let record = Record::running(id, SystemTime::now(), Duration::from_secs(3600));
        now(store.insert(record.with_policy(Arc::clone(&policy)), 1 << 10))
    };
    let (inserted, running) = per_job(insert, &ids);
    assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::New)));
    // As its own task does for each job that runs.
    let wait = |id| {
        let mut change = store.changed(id, 0, Interest::Status);
        assert!(poll(&mut change).is_none());
        change
    };
    let (mut waiting, waits) = per_job(wait, &ids);
    assert!((100..=RUNNING).contains(&(running + waits)), "{running} and {waits} bytes");

    let (outcomes, small) = per_job(|_| outcome(), &ids);
    let small = small + size_of::<Outcome>();
    assert!((64..=OUTCOME).contains(&small), "{small} bytes");

    let mut outcomes = outcomes.into_iter();
    let finish = |id| {
        let end = End::Response(outcomes.next().unwrap());
        matches!(now(store.change(id, Change::Finish(end))), Changed::Applied(_))
    };
    let (finished, more) = per_job(finish, &ids);
    assert!(finished.iter().all(|finished| *finished));
    assert!(waiting.iter_mut().all(|change| poll(change).is_some()), "the end wakes");
    let finished = running + waits + more + small - size_of::<Outcome>();
    assert!((200..=FINISHED).contains(&finished), "{finished} bytes");

    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    assert!(ids.iter().all(|id| now(store.read(*id, None)).is_some()));
    assert_eq!(MEMORY.peak_usage(), before, "a poll allocates");
}
