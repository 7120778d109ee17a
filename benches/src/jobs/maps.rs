//! The store in memory beside bare maps with the same keys, which hold a record, and an outcome where
//! there is one. A map does what the store has it do, and no more: it counts no bytes, wakes nobody,
//! and lets nothing expire.

use std::{
    collections::HashMap,
    hint::black_box,
    time::{Duration, Instant, SystemTime},
};

use dashmap::DashMap;
use tower_offload::{
    Change, JobId, MemoryStore, Outcome, Record, Store,
    store::{Changed, Inserted},
};

use crate::{
    desks::roomy_store,
    measure::{Dice, Times, is_trial},
    runtime,
};

/// Each operation's name, and its times for the store, a `DashMap` and a `HashMap`.
pub fn all(jobs: usize) -> Vec<(&'static str, [Times; 3])> {
    let ids: Vec<_> = (0..jobs).map(|_| JobId::random().unwrap()).collect();
    let [inserts, reads, cancels, removes]: [[Times; 3]; 4] = {
        let store = measured(roomy_store(), &ids);
        let dash_map = measured(DashMap::<JobId, Kept>::new(), &ids);
        let hash_map = measured(HashMap::<JobId, Kept>::new(), &ids);
        let mut all = [store, dash_map, hash_map].map(IntoIterator::into_iter);
        std::array::from_fn(|_| all.each_mut().map(|times| times.next().unwrap_or_default()))
    };
    vec![("insert", inserts), ("read of a record", reads), ("cancel", cancels), ("remove", removes)]
}

/// What is measured. Each is asked as the layer asks the store.
trait Jobs {
    async fn insert(&mut self, record: Record);
    async fn read(&self, id: JobId) -> Option<Record>;
    async fn cancel(&mut self, id: JobId) -> Option<Record>;
    async fn remove(&mut self, id: JobId);
}

/// What a map holds of a job.
struct Kept {
    record: Record,
    /// None of these jobs has one, but there must be room for it.
    _outcome: Option<Outcome>,
}

impl Kept {
    fn new(record: Record) -> Self {
        Self { record, _outcome: None }
    }

    fn cancel(&mut self) -> Option<Record> {
        self.record.apply(&Change::Cancel, SystemTime::now()).then(|| self.record.clone())
    }
}

impl Jobs for MemoryStore {
    async fn insert(&mut self, record: Record) {
        let inserted = Store::insert(self, record, 1024).await.unwrap();
        assert!(matches!(inserted, Inserted::New));
    }

    async fn read(&self, id: JobId) -> Option<Record> {
        Store::read(self, id, None).await.unwrap()
    }

    async fn cancel(&mut self, id: JobId) -> Option<Record> {
        match self.change(id, Change::Cancel).await.unwrap() {
            Changed::Applied(record) => Some(record),
            _ => None,
        }
    }

    async fn remove(&mut self, id: JobId) {
        self.take_back(id).await.unwrap();
    }
}

impl Jobs for DashMap<JobId, Kept> {
    async fn insert(&mut self, record: Record) {
        assert!(DashMap::insert(self, record.id(), Kept::new(record)).is_none());
    }

    async fn read(&self, id: JobId) -> Option<Record> {
        self.get(&id).map(|kept| kept.record.clone())
    }

    async fn cancel(&mut self, id: JobId) -> Option<Record> {
        self.get_mut(&id)?.cancel()
    }

    async fn remove(&mut self, id: JobId) {
        drop(DashMap::remove(self, &id));
    }
}

impl Jobs for HashMap<JobId, Kept> {
    async fn insert(&mut self, record: Record) {
        assert!(HashMap::insert(self, record.id(), Kept::new(record)).is_none());
    }

    async fn read(&self, id: JobId) -> Option<Record> {
        self.get(&id).map(|kept| kept.record.clone())
    }

    async fn cancel(&mut self, id: JobId) -> Option<Record> {
        self.get_mut(&id)?.cancel()
    }

    async fn remove(&mut self, id: JobId) {
        HashMap::remove(self, &id);
    }
}

/// The times of all operations, in the order in which they are named above.
fn measured(mut jobs: impl Jobs, ids: &[JobId]) -> [Times; 4] {
    let (size, batches) = if is_trial() { (10, 2) } else { (400, 25) };
    let mut times: [Times; 4] = Default::default();
    let mut dice = Dice::default();
    runtime().block_on(async {
        for id in ids {
            jobs.insert(record(*id)).await;
        }
        for _ in 0..batches {
            let more: Vec<_> = (0..size).map(|_| JobId::random().unwrap()).collect();
            let records: Vec<_> = more.iter().map(|id| record(*id)).collect();
            let start = Instant::now();
            for record in records {
                jobs.insert(record).await;
            }
            times[0].push(start.elapsed(), size);

            let chosen: Vec<_> = (0..size).map(|_| ids[dice.below(ids.len())]).collect();
            let start = Instant::now();
            for id in chosen {
                assert!(black_box(jobs.read(id).await).is_some());
            }
            times[1].push(start.elapsed(), size);

            // Those just inserted are gone again, in another order.
            let mut left = more;
            dice.shuffle(&mut left, size);
            let start = Instant::now();
            for id in left {
                jobs.remove(id).await;
            }
            times[3].push(start.elapsed(), size);
        }
        let mut ids = ids.to_vec();
        dice.shuffle(&mut ids, size * batches);
        let size = size.min(ids.len() / batches);
        for chosen in ids.chunks(size).take(batches) {
            let start = Instant::now();
            for id in chosen {
                assert!(black_box(jobs.cancel(*id).await).is_some());
            }
            times[2].push(start.elapsed(), size);
        }
    });
    times
}

fn record(id: JobId) -> Record {
    Record::running(id, SystemTime::now(), Duration::from_secs(3600))
}
