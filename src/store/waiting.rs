//! Waiting for a job of the store in memory to change: a future without an allocation of its own.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{Interest, kept::Waiter, memory::Inner};
use crate::job::JobId;

/// Ready when the job has changed, or is not there. It is noted with the job from its first poll on;
/// a change before that is seen by the version.
#[derive(Debug)]
pub(super) struct Waiting {
    store: Arc<Inner>,
    id: JobId,
    seen: u32,
    interest: Interest,
    /// Under which number it is noted with the job.
    number: Option<u64>,
}

impl Waiting {
    pub(super) fn new(store: Arc<Inner>, id: JobId, seen: u32, interest: Interest) -> Self {
        Self { store, id, seen, interest, number: None }
    }

    fn begin(&mut self, waker: &Waker) -> Poll<()> {
        // Wakers are other people's code, which is not run under a lock.
        let waiter = Waiter { waker: waker.clone(), interest: self.interest };
        self.number = self.store.wait(self.id, self.seen, waiter).ok();
        match self.number {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        }
    }
}

impl Future for Waiting {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(number) = self.number.take() else { return self.begin(cx.waker()) };
        let noted = |waiter: &Waiter| waiter.waker.will_wake(cx.waker());
        match self.store.look(self.id, |kept| kept.waiter(number).map(noted)).flatten() {
            Some(true) => {
                self.number = Some(number);
                Poll::Pending
            }
            Some(false) => {
                drop(self.store.leave(self.id, number));
                self.begin(cx.waker())
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            drop(self.store.leave(self.id, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio_test::task::{Spawn, spawn};

    use super::*;
    use crate::{
        job::{Change, Record},
        store::{MemoryStore, Store},
    };

    /// One that waits alone has its place in the job, any other in a list.
    #[tokio::test]
    async fn a_waiter_that_another_task_has_taken_over_wakes_that_one() {
        for others in [0, 1, 2] {
            let store = MemoryStore::new(usize::MAX);
            let id = JobId::random().unwrap();
            let record = Record::queued(id, SystemTime::now(), Duration::from_secs(60));
            store.insert(record, 0).await.unwrap();
            let wait = || store.changed(id, 0, Interest::Status);
            let mut others: Vec<_> = (0..others).map(|_| spawn(wait())).collect();
            others.iter_mut().for_each(|other| assert!(other.poll().is_pending()));
            let mut waits = wait();
            let (mut first, mut last) = (spawn(()), spawn(()));
            let mut poll =
                |task: &mut Spawn<()>| task.enter(|cx, _| Pin::new(&mut waits).poll(cx).is_ready());
            // Twice each: one that has its place already, and one that takes it.
            assert!(!poll(&mut first) && !poll(&mut first));
            assert!(!poll(&mut last) && !poll(&mut last));
            store.change(id, Change::Start).await.unwrap();
            assert!(!first.is_woken() && last.is_woken());
            assert!(poll(&mut last));
            assert!(others.iter_mut().all(|other| other.is_woken() && other.poll().is_ready()));
        }
    }

    #[tokio::test]
    async fn one_that_is_dropped_leaves_nothing() {
        let store = MemoryStore::new(usize::MAX);
        let id = JobId::random().unwrap();
        let record = Record::queued(id, SystemTime::now(), Duration::from_secs(60));
        store.insert(record, 0).await.unwrap();
        let waiting: Vec<_> = [Interest::Status, Interest::Progress, Interest::Status]
            .map(|interest| spawn(store.changed(id, 0, interest)))
            .into_iter()
            .map(|mut waits| {
                assert!(waits.poll().is_pending());
                waits
            })
            .collect();
        let noted = format!("{:?}", store.clone());
        assert_eq!(noted.matches("Waker").count(), 3, "{noted}");
        drop(waiting);
        let noted = format!("{:?}", store.clone());
        assert_eq!(noted.matches("Waker").count(), 0, "{noted}");
    }
}
