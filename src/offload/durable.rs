//! Jobs that outlive their process: the request is kept before the 202, and a worker (`worker.rs`)
//! takes it, in this process or another.
//!
//! ```text
//!  request ──▶ body in whole ──▶ sealed, in the store ──▶ 202
//!                                     │  ▲
//!             a place, and it is due  ▼  │ its process is lost, or shuts down
//!                       restored, through the whole service, its outcome in the store
//! ```

use std::sync::Arc;

use http::request::Parts;
use tokio::runtime::Handle;

use super::{
    deferred::{Deferred, runtime},
    layer::Route,
    whole::{Counted, Whole},
};
use crate::{
    error::{Error, ErrorKind},
    job::{Claim, JobId, Record, request_to_bytes},
    run::{Refusal, Reserved, State, kept, undo},
};

/// In a request that is run from the store, by the desk with this identity: its layer lets it through,
/// also in another task than the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAgain(pub(super) usize);

impl Deferred {
    /// Keeps a job with its request. One that nobody is told of is undone: when it may not be there, and
    /// when its client leaves in the midst of it.
    pub(super) async fn enqueue(
        &self,
        mut head: Parts,
        (mut counted, whole): (Counted, Whole),
        claim: Option<Claim>,
        attempts: u16,
    ) -> Result<Record, Refusal> {
        self.look_in()?;
        let state = Arc::clone(&self.route.state);
        let reserved = self.reserve().await?;
        let record = self.new_record(Record::queued, claim).map_err(Refusal::Store)?;
        let record = record.with_attempts(attempts);
        state.seal(&mut head.headers);
        let request = request_to_bytes(&head, whole.data()).ok_or_else(|| {
            Refusal::Store(Error::new(ErrorKind::StoreUnavailable, "a request beyond all bounds"))
        })?;
        // What is kept is all that is held from here on.
        drop((whole, head));
        counted.set(request.len());
        let pending = Pending { state: Arc::clone(&state), id: record.id(), reserved };
        let untold = Untold { runtime: runtime()?, pending: Some(pending) };
        let is_keyed = record.claim().is_some();
        let enqueued = async move {
            // Counted as buffered until the store has the request, also where the client leaves.
            let _taken_in = counted;
            let outcome_bytes = state.limits.max_outcome_bytes;
            let enqueued = kept(state.store.enqueue(record.clone(), request, outcome_bytes).await);
            match enqueued {
                Ok(()) => untold.disarm(true),
                Err(Refusal::Store(_)) => drop(untold),
                Err(_) => untold.disarm(false),
            }
            enqueued.map(|()| record)
        };
        self.carried_on(is_keyed, enqueued).await
    }

    /// Room among the durable jobs that wait: those of the route, and all.
    async fn reserve(&self) -> Result<[Reserved; 2], Refusal> {
        let Route { state, backlog, .. } = &*self.route;
        let own = backlog.reserve(&*state.store).await?;
        Ok([own, state.backlog.reserve(&*state.store).await?])
    }
}

/// A durable job that may be in the store, and whose own request was not told of it: dropped, it is
/// taken back.
struct Untold {
    runtime: Handle,
    /// `None` once there is nothing to take back.
    pending: Option<Pending>,
}

/// What is held until the store has taken the job back. The job counts as one that waits until then, so
/// that there are not more of these than jobs may wait, however long the store is away and however often
/// clients try again.
struct Pending {
    state: Arc<State>,
    id: JobId,
    reserved: [Reserved; 2],
}

impl Pending {
    fn end(self, is_enqueued: bool) {
        if is_enqueued {
            self.reserved.into_iter().for_each(Reserved::enqueued);
        }
    }
}

impl Untold {
    /// There is nothing to take back: the job is in the store and was told of, or is not there.
    fn disarm(mut self, is_enqueued: bool) {
        if let Some(pending) = self.pending.take() {
            pending.end(is_enqueued);
        }
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        self.runtime.spawn(async move {
            let is_gone = undo(Arc::clone(&pending.state), pending.id).await;
            pending.end(!is_gone);
        });
    }
}
