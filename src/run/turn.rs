//! The time between a job's registration and its start: its turn in the queue.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use super::{Admission, Place, State, beside::ended_elsewhere, insist::until_done, places::Ticket};
use crate::{
    job::{Change, JobId, Record},
    store::Changed,
};

/// Waits for a queued job's turn, and begins it. `None` where it has ended before: it leaves the
/// queue when its `admission` is dropped.
pub(super) async fn begin(
    state: &Arc<State>,
    id: JobId,
    version: u32,
    admission: &mut Admission,
) -> Option<Record> {
    if let Admission::Later(ticket) = admission {
        let place = turn(state, id, version, ticket).await?;
        *admission = Admission::Now(place);
    }
    let start = || state.store.change(id, Change::Start);
    match until_done(id, "cannot begin a job", start().await, start).await {
        Changed::Applied(record) => Some(record),
        Changed::Refused(record) if record.status().is_end() => None,
        // Tried before, with an answer that was lost.
        Changed::Refused(record) => Some(record),
        Changed::Unknown => None,
    }
}

async fn turn(state: &State, id: JobId, version: u32, ticket: &mut Ticket) -> Option<Place> {
    let mut ended = pin!(ended_elsewhere(state, id, version));
    let mut turn = pin!(ticket.turn());
    poll_fn(|cx| match ended.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => turn.as_mut().poll(cx).map(Some),
    })
    .await
}
