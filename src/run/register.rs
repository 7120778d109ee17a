//! Registration: a job is in the store before anybody is told of it, and is taken back if nobody
//! was.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::{runtime::Handle, task::JoinHandle};

use super::{Backoff, State, slots::Slot};
use crate::{
    error::{Error, ErrorKind},
    job::{JobId, Record},
};

/// What a job is registered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobSpec {
    /// The id that the handler was told already, if it has asked.
    pub(crate) id: Option<JobId>,
    pub(crate) ttl: Duration,
}

/// Why there is no job.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The limit of this name was reached.
    Full(&'static str),
    /// The process is shutting down.
    Draining,
    /// The store failed, or no id could be had.
    Store(Error),
}

/// A job that is in the store, and of which nobody was told yet. Dropped, it is taken back.
#[derive(Debug)]
pub(crate) struct Registered {
    record: Record,
    runtime: Handle,
    /// `None` once the job was promised.
    slot: Option<Slot>,
}

impl Registered {
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The job is promised: from now on it is run, whatever becomes of the request.
    pub(super) fn promise(mut self) -> Option<(Slot, Handle)> {
        let mut slot = self.slot.take()?;
        slot.occupy(self.record.id());
        Some((slot, self.runtime.clone()))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let id = self.record.id();
        // The store in memory is done at the first poll, and no task is needed.
        let mut first = slot.state.store.take_back(id);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(Ok(())) = Pin::new(&mut first).poll(&mut cx) {
            return;
        }
        // Repeated until it holds. The request may be dropped on a plain thread, hence the handle.
        self.runtime.spawn(async move {
            let mut backoff = Backoff::new();
            while let Err(error) = slot.state.store.take_back(id).await {
                tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "cannot take back a job, trying again");
                backoff.wait().await;
            }
        });
    }
}

/// A registration under way. It is carried to its end even if this is dropped, and then taken back.
#[derive(Debug)]
pub(crate) enum Registering {
    Done(Option<Result<Registered, Refusal>>),
    UnderWay(JoinHandle<Result<Registered, Refusal>>),
}

impl Registering {
    /// Registers a job that takes this place.
    pub(crate) fn start(slot: Slot, spec: JobSpec, cx: &mut Context<'_>) -> Self {
        let Ok(runtime) = Handle::try_current() else {
            let error = Error::new(ErrorKind::StoreUnavailable, "not on a tokio runtime");
            return Self::Done(Some(Err(Refusal::Store(error))));
        };
        let id = match spec.id.map_or_else(JobId::random, Ok) {
            Ok(id) => id,
            Err(error) => return Self::Done(Some(Err(Refusal::Store(error)))),
        };
        let record = Record::running(id, SystemTime::now(), spec.ttl);
        let mut work = Box::pin(insert(slot, record, runtime.clone()));
        // The store in memory is done at the first poll; others go on in a task of their own,
        // which dropping its handle does not stop (tokio, `JoinHandle`).
        match work.as_mut().poll(cx) {
            Poll::Ready(result) => Self::Done(Some(result)),
            Poll::Pending => Self::UnderWay(runtime.spawn(work)),
        }
    }
}

async fn insert(slot: Slot, record: Record, runtime: Handle) -> Result<Registered, Refusal> {
    let state: Arc<State> = Arc::clone(&slot.state);
    // From here on whatever ends this future early takes the job back: an insert of unknown fate
    // counts as made.
    let mut registered = Registered { record: record.clone(), runtime, slot: Some(slot) };
    match state.store.insert(record, state.limits.max_outcome_bytes).await {
        Ok(()) => Ok(registered),
        Err(error) if error.kind() == ErrorKind::StoreFull => {
            registered.slot = None;
            Err(Refusal::Full("max_stored_bytes"))
        }
        Err(error) => Err(Refusal::Store(error)),
    }
}

impl Future for Registering {
    type Output = Result<Registered, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            #[expect(clippy::expect_used, reason = "as every future")]
            Self::Done(result) => Poll::Ready(result.take().expect("polled after it was ready")),
            Self::UnderWay(task) => Pin::new(task).poll(cx).map(|joined| {
                // The task is only ever lost with its runtime.
                joined.unwrap_or_else(|lost| {
                    let error = Error::new(ErrorKind::StoreUnavailable, "registration was cut off");
                    Err(Refusal::Store(error.with_source(lost)))
                })
            }),
        }
    }
}
