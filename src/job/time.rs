//! A time of the wall clock in 8 bytes, where the standard library's takes 16: every job has three.

use std::{
    num::NonZeroU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Nanoseconds since 1970, which is all that the clock has. One that is out of range, before 1970 or
/// after 2554, is the nearest in it.
///
/// Counted from 1 on, so that an `Option` of it takes 8 bytes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(NonZeroU64);

impl Time {
    pub(super) fn from_nanos(since_epoch: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(since_epoch))
    }

    pub(super) fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self::from_nanos(nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        // A clock that cannot tell it cannot have told it: the time came from one.
        UNIX_EPOCH.checked_add(Duration::from_nanos(time.as_nanos())).unwrap_or(UNIX_EPOCH)
    }
}

/// Enough for five centuries; more counts as that.
pub(super) fn nanos(duration: Duration) -> u64 {
    let whole = duration.as_secs().checked_mul(1_000_000_000);
    whole.and_then(|whole| whole.checked_add(duration.subsec_nanos().into())).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_back() {
        assert_eq!(size_of::<Option<Time>>(), 8);
        let now = SystemTime::now();
        let last = UNIX_EPOCH + Duration::from_nanos(u64::MAX - 1);
        for (time, kept) in [
            (now, now),
            (UNIX_EPOCH, UNIX_EPOCH),
            (UNIX_EPOCH - Duration::from_nanos(1), UNIX_EPOCH),
            (last, last),
            (last + Duration::from_nanos(1), last),
            (last + Duration::from_secs(1 << 36), last),
        ] {
            assert_eq!(SystemTime::from(Time::from(time)), kept);
        }
        assert_eq!(nanos(Duration::MAX), u64::MAX);
        assert_eq!(nanos(Duration::from_nanos(u64::MAX)), u64::MAX);
    }
}
