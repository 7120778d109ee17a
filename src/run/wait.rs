//! Waiting for a job to end.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::State;
use crate::{job::JobId, store::Interest};

impl State {
    /// Returns when the job has ended, when the time is over (`None`: it never is), or when the
    /// process has drained, so that no connection is held up by whoever waits. It is woken by the
    /// change itself. Waiting is never an error: when the store fails, the answer for this moment
    /// tells.
    pub(crate) async fn ended(&self, id: JobId, within: Option<Duration>) {
        let end = async {
            while let Ok(Some(record)) = self.store.read(id, None).await {
                let ended = record.status().is_end();
                let change = self.store.changed(id, record.version(), Interest::Status);
                if ended || change.await.is_err() {
                    return;
                }
            }
        };
        let bounded = async {
            match within {
                Some(time) => drop(tokio::time::timeout(time, end).await),
                None => end.await,
            }
        };
        let (mut bounded, mut drained) = (pin!(bounded), pin!(self.drained.cancelled()));
        poll_fn(|cx| match bounded.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => drained.as_mut().poll(cx),
        })
        .await;
    }
}
