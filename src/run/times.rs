//! How long the jobs of a policy took lately, and so how long one that runs may still take.
//!
//! A histogram of fixed buckets on a logarithmic scale, in which old samples fade: each new one
//! weighs 1, and all before it lose a few per cent. What is left of a job is the *conditional
//! median*: of the weight beyond what has elapsed, half lies beyond the time that is told.
//!
//! Why not a mean or a moving average: neither can say what is left, since what is left depends on
//! what has elapsed. Where most jobs take a second and some take a minute, one that has run for ten
//! seconds has fifty left. A median does not follow one absurd sample either; fading lets it follow
//! a route that has changed; and a policy costs the same few hundred bytes however many jobs it
//! has had. The price is the width of a bucket: a factor of √2, within which it interpolates.
//!
//! What a handful of old samples says of the far end is not worth much. So the last half a sample's
//! weight counts as one heavy tail instead: a job that has run into it has as long again left as
//! half of what it took so far.
//!
//! Kept is the weight from each bucket on, not that in each: then a lookup is a binary search and
//! two lines of arithmetic, since each 202 tells an estimate.
//!
//! Pure: no clock, no lock.

use std::{f64::consts::SQRT_2, time::Duration};

/// 64: from 1 ms to 34 days, in 256 bytes.
const BUCKETS: usize = 64;

/// Where the first bucket ends, in seconds. Nobody waits for less.
const FIRST: f64 = 0.001;

/// What a sample's weight is multiplied by as each later one comes: half of it is left after 23.
const FADES: f64 = 0.97;

/// A weight below it is forgotten: that of a sample 227 jobs ago. Numbers that small would
/// otherwise stay for good, and computing with them is slow.
const FORGOTTEN: f32 = 0.001;

/// How much weight at the far end counts as a tail, in samples: one that stands there alone counts
/// for the next 23 jobs.
const TAIL: f64 = 0.5;

/// What a job in the tail takes by the median, as a multiple of what it took so far.
const STRETCH: f64 = 1.5;

/// The times that jobs took, the latest weighing most.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    /// The weight in each bucket and all above it, so that none is larger than the one before.
    above: [f32; BUCKETS],
    /// The weight of all samples, and their weighted sum in seconds: the mean's error is not to be
    /// that of a bucket.
    weight: f64,
    sum: f64,
}

impl Default for Times {
    fn default() -> Self {
        Self { above: [0.0; BUCKETS], weight: 0.0, sum: 0.0 }
    }
}

impl Times {
    /// A job took so long.
    pub(crate) fn record(&mut self, took: Duration) {
        // What is beyond the scale counts as its end, so that no sample spoils the mean for long.
        let took = took.as_secs_f64().min(start(BUCKETS));
        for above in &mut self.above {
            let faded = *above * FADES as f32;
            *above = if faded < FORGOTTEN { 0.0 } else { faded };
        }
        for above in &mut self.above[..=bucket(took)] {
            *above += 1.0;
        }
        self.weight = self.weight * FADES + 1.0;
        self.sum = self.sum * FADES + took;
    }

    /// What jobs took on average, which is what the throughput of a queue follows from; `None` as
    /// long as nothing is known.
    pub(crate) fn mean(&self) -> Option<Duration> {
        (self.weight > 0.0).then(|| duration(self.sum / self.weight))
    }

    /// How much longer a job takes that has run for `elapsed`, by the median of those that took
    /// longer than that; `None` as long as nothing is known.
    pub(crate) fn remaining(&self, elapsed: Duration) -> Option<Duration> {
        let elapsed = elapsed.as_secs_f64();
        (self.weight > 0.0).then(|| duration(self.end(elapsed) - elapsed))
    }

    /// When a job ends by the median, counted from its start, that has not ended at `elapsed`. It
    /// only moves later as time goes by.
    fn end(&self, elapsed: f64) -> f64 {
        let tail = self.exceeded_by(TAIL);
        if elapsed >= tail {
            return elapsed * STRETCH;
        }
        let half = self.beyond(elapsed) / 2.0;
        if half >= TAIL {
            self.exceeded_by(half)
        } else {
            // Pareto's law, under which the weight beyond halves with each stretch.
            tail * (TAIL / half).powf(STRETCH.log2())
        }
    }

    /// How much weight lies beyond `time`.
    fn beyond(&self, time: f64) -> f64 {
        let at = bucket(time);
        let share = ((start(at + 1) - time) / width(at)).clamp(0.0, 1.0);
        let after = self.above(at + 1);
        after + share * (self.above(at) - after)
    }

    /// The time beyond which so much weight lies: the inverse of [`beyond`](Self::beyond).
    fn exceeded_by(&self, weight: f64) -> f64 {
        let reached = self.above.partition_point(|above| f64::from(*above) >= weight);
        let Some(at) = reached.checked_sub(1) else { return 0.0 };
        let after = self.above(at + 1);
        start(at + 1) - width(at) * (weight - after) / (self.above(at) - after)
    }

    /// The weight in this bucket and all above it.
    fn above(&self, bucket: usize) -> f64 {
        self.above.get(bucket).copied().map_or(0.0, f64::from)
    }
}

/// Which bucket a time in seconds belongs to: the last one has no end.
fn bucket(time: f64) -> usize {
    let firsts = time / FIRST;
    if firsts < 1.0 {
        return 0;
    }
    // The logarithm to base 2, rounded down to halves: the exponent, and how the rest compares
    // to √2 (IEEE 754-2019, section 3.4).
    let bits = firsts.to_bits();
    let exponent = (bits >> 52) as usize - 1023;
    let rest = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    (2 * exponent + usize::from(rest >= SQRT_2) + 1).min(BUCKETS - 1)
}

/// Where a bucket starts, in seconds, and the one before it ends.
fn start(bucket: usize) -> f64 {
    static STARTS: [f64; BUCKETS + 1] = {
        let mut starts = [0.0; BUCKETS + 1];
        let (mut at, mut power) = (1, FIRST);
        while at < BUCKETS {
            (starts[at], starts[at + 1]) = (power, power * SQRT_2);
            (at, power) = (at + 2, power * 2.0);
        }
        starts
    };
    STARTS[bucket]
}

fn width(bucket: usize) -> f64 {
    start(bucket + 1) - start(bucket)
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn of(samples: impl IntoIterator<Item = f64>) -> Times {
        let mut times = Times::default();
        samples.into_iter().for_each(|took| times.record(Duration::from_secs_f64(took)));
        times
    }

    fn remaining(times: &Times, elapsed: f64) -> f64 {
        times.remaining(Duration::from_secs_f64(elapsed)).unwrap().as_secs_f64()
    }

    fn mean(times: &Times) -> f64 {
        times.mean().unwrap().as_secs_f64()
    }

    #[track_caller]
    fn about(found: f64, expected: f64) {
        let ratio = found / expected;
        assert!((0.8..1.25).contains(&ratio), "{found}, not about {expected}");
    }

    #[test]
    fn nothing_is_known_of_no_job() {
        let times = Times::default();
        assert_eq!((times.mean(), times.remaining(MINUTE)), (None, None));
    }

    #[test]
    fn stays_small() {
        assert!(size_of::<Times>() <= 512);
    }

    #[test]
    fn every_bucket_holds_its_own_start_and_middle() {
        for at in 0..BUCKETS {
            assert_eq!(bucket(start(at) + width(at) / 2.0), at);
            assert!(bucket(start(at)).abs_diff(at) <= 1, "{at}");
        }
        assert!(start(BUCKETS) > 30.0 * 86_400.0);
    }

    #[test]
    fn a_median_does_not_follow_one_absurd_sample() {
        let mut times = of([2.0; 40]);
        times.record(Duration::from_secs(86_400));
        about(remaining(&times, 0.0), 2.0);
        about(1.0 + remaining(&times, 1.0), 2.0);
    }

    #[test]
    fn of_a_fast_and_a_slow_kind_the_slow_is_left_once_the_fast_has_passed() {
        let times = of((0..200).map(|at| if at % 4 == 0 { 60.0 } else { 0.5 }));
        about(remaining(&times, 0.0), 0.5);
        for elapsed in [1.0, 2.0, 10.0, 30.0] {
            about(remaining(&times, elapsed), 60.0 - elapsed);
        }
    }

    #[test]
    fn a_route_that_changes_is_followed() {
        for (before, after) in [(1.0, 30.0), (30.0, 1.0)] {
            let times = of([before; 500].into_iter().chain([after; 40]));
            about(remaining(&times, 0.0), after);
            let times = of([before; 500].into_iter().chain([after; 250]));
            about(mean(&times), after);
        }
    }

    #[test]
    fn what_has_outrun_them_all_takes_half_as_long_again() {
        let times = of([1.0; 20]);
        assert_eq!(remaining(&times, 10.0), 5.0);
        // An outlier counts for some jobs, and then no longer.
        let after = |count| of([600.0].into_iter().chain(std::iter::repeat_n(1.0, count)));
        assert!(remaining(&after(5), 10.0) > 300.0);
        assert_eq!(remaining(&after(30), 10.0), 5.0);
    }

    #[test]
    fn extremes() {
        for took in [Duration::ZERO, Duration::from_nanos(1), MINUTE, Duration::MAX] {
            let mut times = Times::default();
            times.record(took);
            for elapsed in [Duration::ZERO, Duration::from_nanos(1), MINUTE, Duration::MAX] {
                assert!(times.remaining(elapsed).unwrap() <= Duration::MAX.max(elapsed));
            }
            assert!(times.mean().unwrap() <= took);
        }
        let mut times = of([1.0; 10]);
        times.record(Duration::MAX);
        (0..1000).for_each(|_| times.record(Duration::from_secs(1)));
        about(mean(&times), 1.0);
    }

    proptest! {
        #[test]
        fn a_constant_time_is_known_within_a_bucket(took in 0.001f64..1e6, count in 1usize..300) {
            let times = of(std::iter::repeat_n(took, count));
            prop_assert!((mean(&times) / took - 1.0).abs() < 1e-6);
            for part in [0.0, 0.3, 0.6] {
                let end = remaining(&times, took * part) + took * part;
                prop_assert!(end / took < 1.415 && took / end < 1.415, "{}: {}", took, end);
            }
        }

        #[test]
        fn an_end_only_moves_later(
            samples in vec(-4.0f64..8.0, 1..300),
            mut elapsed in vec(-4.0f64..8.0, 2..20),
        ) {
            let times = of(samples.iter().map(|exponent| 10f64.powf(*exponent)));
            elapsed.sort_by(f64::total_cmp);
            let ends: Vec<_> = elapsed.iter().map(|exponent| {
                let elapsed = 10f64.powf(*exponent);
                let end = times.end(elapsed);
                assert!(end >= elapsed * (1.0 - 1e-9), "{end} {elapsed}");
                end
            }).collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0] <= pair[1] * (1.0 + 1e-9)), "{:?}", ends);
        }

        #[test]
        fn half_of_the_weight_lies_beyond_the_median(samples in vec(0.0f64..1000.0, 1..300)) {
            let times = of(samples);
            let whole = times.above(0);
            let median = times.exceeded_by(whole / 2.0);
            prop_assert!((times.beyond(median) / whole - 0.5).abs() < 1e-6);
        }

        #[test]
        fn never_a_panic(samples in vec(any::<(u64, u32)>(), 0..40), elapsed in any::<(u64, u32)>()) {
            let duration = |(secs, nanos)| Duration::new(secs, nanos % 1_000_000_000);
            let mut times = Times::default();
            samples.into_iter().for_each(|took| times.record(duration(took)));
            let _ = (times.mean(), times.remaining(duration(elapsed)));
        }
    }
}
