//! Who waits in this process for a job to change, and the messages that wake them.
//!
//! A waiter is entered before the job is looked at, so that a change is either seen or told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tower_offload::{JobId, store::Interest};

use crate::{arrivals::Arrivals, locked::locked};

/// Those who wait, by job.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// Ordered, so that all are woken in an order that does not differ from run to run.
    jobs: Mutex<BTreeMap<JobId, Vec<Arc<Waiter>>>>,
    /// Durable jobs that have come.
    pub(crate) arrivals: Arrivals,
    /// A channel has gone to another node of the cluster, and nothing is heard of it any more.
    is_deaf: AtomicBool,
    /// A connection was lost, and with it perhaps what was written.
    is_cut: AtomicBool,
}

#[derive(Debug)]
struct Waiter {
    seen: u32,
    interest: Interest,
    woken: Notify,
    /// It was woken by news, and need not look.
    told: AtomicBool,
}

/// A place among them, left when this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    all: Arc<Waiters>,
    id: JobId,
    waiter: Arc<Waiter>,
}

/// What a job's versions are: the last one, and that of its last change of status.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Versions {
    pub(crate) version: u32,
    pub(crate) status_version: u32,
}

impl Versions {
    /// Whether there is something new for who has seen a version.
    pub(crate) fn are_news(self, seen: u32, interest: Interest) -> bool {
        match interest {
            // A version that is less than what was seen: Redis has lost some (a failover).
            Interest::Status => self.status_version > seen || self.version < seen,
            Interest::Progress => self.version != seen,
        }
    }
}

impl Waiters {
    pub(crate) fn enter(self: &Arc<Self>, id: JobId, seen: u32, interest: Interest) -> Waiting {
        let (woken, told) = (Notify::new(), AtomicBool::new(false));
        let waiter = Arc::new(Waiter { seen, interest, woken, told });
        locked(&self.jobs).entry(id).or_default().push(Arc::clone(&waiter));
        Waiting { all: Arc::clone(self), id, waiter }
    }

    /// A message of the server, or of the library that its connection was lost.
    pub(crate) fn push(&self, push: &PushInfo) {
        match push.kind {
            // What was told since is not known: everybody looks.
            PushKind::Disconnection => {
                self.set_cut();
                self.wake_all();
            }
            PushKind::Message | PushKind::SMessage => {
                let Some(Value::BulkString(message)) = push.data.last() else { return };
                let Ok(message) = std::str::from_utf8(message) else { return };
                if let Some(arrival) = message.strip_prefix('+') {
                    self.arrivals.told(arrival);
                } else if let Some((id, versions)) = parse(message) {
                    self.tell(id, versions);
                }
            }
            PushKind::SUnsubscribe => self.is_deaf.store(true, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Whether a channel was lost since this was asked.
    pub(crate) fn was_deaf(&self) -> bool {
        self.is_deaf.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.is_cut.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn set_cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_deaf(&self) {
        self.is_deaf.store(true, Ordering::Relaxed);
    }

    /// A job has come to these versions, or is gone.
    fn tell(&self, id: JobId, versions: Option<Versions>) {
        let is_for = |waiter: &&Arc<Waiter>| {
            versions.is_none_or(|versions| versions.are_news(waiter.seen, waiter.interest))
        };
        let woken: Vec<_> = match locked(&self.jobs).get(&id) {
            Some(all) => all.iter().filter(is_for).cloned().collect(),
            None => return,
        };
        // Not under the lock: it is other people's code.
        for waiter in woken {
            waiter.told.store(true, Ordering::Relaxed);
            waiter.woken.notify_one();
        }
    }

    pub(crate) fn wake_all(&self) {
        self.arrivals.may_have_missed();
        let all: Vec<_> = locked(&self.jobs).values().flatten().cloned().collect();
        all.iter().for_each(|waiter| waiter.woken.notify_one());
    }
}

impl Waiting {
    /// Resolves when it was woken: with `true` by news, with `false` to look.
    pub(crate) async fn woken(&self) -> bool {
        self.waiter.woken.notified().await;
        // `Notify` orders this after what was stored before it was notified.
        self.waiter.told.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut jobs = locked(&self.all.jobs);
        if let Some(all) = jobs.get_mut(&self.id) {
            all.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
            if all.is_empty() {
                jobs.remove(&self.id);
            }
        }
    }
}

/// `ID VERSION STATUS_VERSION`, or `ID` of a job that is gone.
fn parse(message: &str) -> Option<(JobId, Option<Versions>)> {
    let mut words = message.split(' ');
    let id = words.next()?.parse().ok()?;
    let Some(version) = words.next() else { return Some((id, None)) };
    let versions =
        Versions { version: version.parse().ok()?, status_version: words.next()?.parse().ok()? };
    Some((id, Some(versions)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: PushKind, text: &str) -> PushInfo {
        let data = [b"channel", text.as_bytes()].map(|part| Value::BulkString(part.to_vec()));
        PushInfo { kind, data: data.to_vec() }
    }

    #[tokio::test]
    async fn each_is_woken_by_what_is_news_to_it() {
        let waiters = Arc::new(Waiters::default());
        let (id, other) = (JobId::random().unwrap(), JobId::random().unwrap());
        let all = waiters.enter(id, 1, Interest::Progress);
        let status = waiters.enter(id, 1, Interest::Status);
        let elsewhere = waiters.enter(other, 1, Interest::Progress);
        waiters.push(&message(PushKind::Message, &format!("{id} 2 1")));
        assert!(all.woken().await);
        waiters.push(&message(PushKind::SMessage, &format!("{id} 3 3")));
        assert!(status.woken().await);
        waiters.push(&message(PushKind::Message, "no message of ours"));
        waiters.push(&message(PushKind::Message, &format!("{id} 4")));
        // Only now is there something for this one, which is to look.
        waiters.push(&PushInfo { kind: PushKind::Disconnection, data: Vec::new() });
        assert!(!elsewhere.woken().await);
        waiters.push(&message(PushKind::Message, &other.to_string()));
        assert!(elsewhere.woken().await);
        drop((all, status, elsewhere));
        assert!(locked(&waiters.jobs).is_empty());
    }
}
