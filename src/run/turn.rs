//! The time between a job's registration and its start: its turn in the queue.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use super::{
    Admission, Place, State,
    beside::{Watched, watch},
    end::{end_as_corrupt, give_up},
    insist::until_done,
    places::Ticket,
};
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
        match turn(state, id, version, ticket).await {
            Ok(place) => *admission = Admission::Now(place),
            Err(Watched::Ended) => return None,
            Err(Watched::Corrupt) => {
                end_as_corrupt(state, id).await;
                return None;
            }
        }
    }
    let start = || state.store.change(id, Change::Start);
    match until_done(id, "cannot begin a job", start().await, start).await {
        Ok(Changed::Applied(record)) => Some(record),
        Ok(Changed::Refused(record)) if record.status().is_end() => None,
        // Tried before, with an answer that was lost.
        Ok(Changed::Refused(record)) => Some(record),
        Ok(Changed::Unknown) => None,
        Err(error) => {
            give_up(state, id, &error).await;
            None
        }
    }
}

async fn turn(
    state: &State,
    id: JobId,
    version: u32,
    ticket: &mut Ticket,
) -> Result<Place, Watched> {
    let mut watched = pin!(watch(state, id, version));
    let mut turn = pin!(ticket.turn());
    poll_fn(|cx| match watched.as_mut().poll(cx) {
        Poll::Ready(over) => Poll::Ready(Err(over)),
        Poll::Pending => turn.as_mut().poll(cx).map(Ok),
    })
    .await
}
