//! Delays between the tries of what fails: longer each time, up to a bound, and random.

use std::time::Duration;

use tower_offload::JobId;

/// The delays of one call, or of one connection.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// The first delay is at most `first`, each further one at most twice the one before and `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next delay.
    pub(crate) fn next(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        part_of(delay)
    }
}

/// A random part of a delay, so that the processes that a server has lost do not all come back at once.
/// A generator that fails delays in full.
pub(crate) fn part_of(delay: Duration) -> Duration {
    let random = JobId::random()
        .map_or(u64::MAX, |id| u64::from_str_radix(&id.to_string()[16..], 16).unwrap_or(u64::MAX));
    delay.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_bound() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        for most in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            assert!(backoff.next <= most && backoff.next() <= most);
        }
        assert_eq!(backoff.next, longest);
    }
}
