//! What one call costs in time: the cases of `instructions`, all in one run. See README.md beside
//! this.

use std::time::{Duration, Instant};

use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use tower_offload_benches::{
    cases::{self, Case},
    runtime,
};

/// Requests are built in batches of this many, outside of what is measured.
const BATCH: u64 = 64;

/// Jobs go as fast as others come.
const TTL: Duration = Duration::from_millis(20);

fn overhead(criterion: &mut Criterion) {
    let mut cases = cases::all(TTL).into_iter().peekable();
    while let Some(first) = cases.next() {
        let name = first.group;
        let mut group = criterion.benchmark_group(name);
        measure(&mut group, first);
        while let Some(case) = cases.next_if(|case| case.group == name) {
            measure(&mut group, case);
        }
    }
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, case: Case) {
    let runtime = runtime();
    let name = case.name;
    let mut held = Some(case);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iters| {
            // A task owns what it uses, so the case goes there and back.
            let case = held.take().unwrap();
            let (case, time) = runtime.block_on(runtime.spawn(timed(case, iters))).unwrap();
            held = Some(case);
            time
        });
    });
}

async fn timed(case: Case, calls: u64) -> (Case, Duration) {
    let mut time = Duration::ZERO;
    for done in (0..calls).step_by(BATCH as usize) {
        let batch = case.requests(BATCH.min(calls - done) as usize);
        let batch = case.calls(batch);
        let start = Instant::now();
        batch.await;
        time += start.elapsed();
    }
    (case, time)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    targets = overhead
}
criterion_main!(benches);
