//! How many durable jobs wait in the store: a count that is a second old at most, and what this
//! process has enqueued since.
//!
//! At the limit the store is asked again before a job is refused. So one process is exact, but for
//! jobs that are being enqueued at the same moment, which may be counted twice; several together go
//! over the limit by what the others accept within a second.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Refusal;
use crate::{
    error::{Error, ErrorKind},
    store::Store,
};

/// How long a count is good for.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// The shortest time between two counts, at the limit: refusing costs the store ten calls a second.
const AGAIN: Duration = Duration::from_millis(100);

/// The durable jobs of one policy that wait, or those of all.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// `None` for all.
    policy: Option<Arc<str>>,
    max: usize,
    estimate: Mutex<Estimate>,
    /// Held while the store is asked, so that it is asked by one request at a time. Those that have
    /// waited for it share the answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Estimate {
    /// What the store said, and when it was asked.
    stored: usize,
    asked: Option<Instant>,
    /// Enqueued by this process since it began, and when the store was asked.
    enqueued: u64,
    enqueued_then: u64,
    /// How often the store has answered, and whether its last answer was an error.
    answers: u64,
    has_failed: bool,
    /// Being enqueued now.
    under_way: usize,
}

impl Estimate {
    fn waiting(&self) -> usize {
        let since = usize::try_from(self.enqueued - self.enqueued_then).unwrap_or(usize::MAX);
        self.stored.saturating_add(since).saturating_add(self.under_way)
    }
}

/// What the estimate says of one job more.
enum Look {
    Room(Reserved),
    Full,
    /// It is too old to say.
    Unknown,
}

impl Backlog {
    pub(crate) fn new(policy: Option<Arc<str>>, max: usize) -> Arc<Self> {
        let (estimate, asking) = Default::default();
        Arc::new(Self { policy, max, estimate, asking })
    }

    fn estimate(&self) -> MutexGuard<'_, Estimate> {
        // Nothing that can panic runs under the lock.
        self.estimate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves room for one job more, where there is some.
    pub(crate) async fn reserve(self: &Arc<Self>, store: &dyn Store) -> Result<Reserved, Refusal> {
        if let Some(reserved) = self.settled()? {
            return Ok(reserved);
        }
        let answers = self.estimate().answers;
        let _one_at_a_time = self.asking.lock().await;
        let (asked, enqueued) = {
            let mut estimate = self.estimate();
            if estimate.answers != answers {
                return self.shared(&mut estimate);
            }
            (Instant::now(), estimate.enqueued)
        };
        let counted = store.queued(self.policy.clone()).await;
        let mut estimate = self.estimate();
        estimate.answers += 1;
        estimate.has_failed = counted.is_err();
        (estimate.stored, estimate.asked) = (counted.map_err(Refusal::Store)?, Some(asked));
        estimate.enqueued_then = enqueued;
        self.room(&mut estimate).ok_or(Refusal::Full("max_queued"))
    }

    /// What the store has answered while this request waited. So a store that is away or slow is waited
    /// for once, and not once for each request in turn.
    fn shared(self: &Arc<Self>, estimate: &mut Estimate) -> Result<Reserved, Refusal> {
        if estimate.has_failed {
            let message = "the store does not count the durable jobs that wait";
            return Err(Refusal::Store(Error::new(ErrorKind::StoreUnavailable, message)));
        }
        self.room(estimate).ok_or(Refusal::Full("max_queued"))
    }

    fn settled(self: &Arc<Self>) -> Result<Option<Reserved>, Refusal> {
        match self.look() {
            Look::Room(reserved) => Ok(Some(reserved)),
            Look::Full => Err(Refusal::Full("max_queued")),
            Look::Unknown => Ok(None),
        }
    }

    fn look(self: &Arc<Self>) -> Look {
        let mut estimate = self.estimate();
        let age = estimate.asked.map(|asked| asked.elapsed());
        if age.is_none_or(|age| age > GOOD_FOR) {
            return Look::Unknown;
        }
        match self.room(&mut estimate) {
            Some(reserved) => Look::Room(reserved),
            None if age.is_some_and(|age| age >= AGAIN) => Look::Unknown,
            None => Look::Full,
        }
    }

    fn room(self: &Arc<Self>, estimate: &mut Estimate) -> Option<Reserved> {
        if estimate.waiting() >= self.max {
            return None;
        }
        estimate.under_way += 1;
        Some(Reserved { backlog: Arc::clone(self), is_enqueued: false })
    }
}

/// Room for one job, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    backlog: Arc<Backlog>,
    is_enqueued: bool,
}

impl Reserved {
    /// The job is in the store, or may be.
    pub(crate) fn enqueued(mut self) {
        self.is_enqueued = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut estimate = self.backlog.estimate();
        estimate.under_way -= 1;
        estimate.enqueued += u64::from(self.is_enqueued);
    }
}
