//! A handler whose client has left before there was a job of it, finished all the same.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{runtime::Handle, task::coop::unconstrained};
use tracing::{Instrument, Span};

use super::{Lane, Place, Refusal, handler::poll_handler};
use crate::job::{Asked, JobId};

/// A handler that is left alone with its work.
pub(crate) struct Left<F> {
    /// What it has asked for of its job. Dropped before the handler's future, whose drop may wait for
    /// what this tells to stop.
    pub(crate) asked: Asked,
    pub(crate) future: F,
    /// The span in which it runs.
    pub(crate) span: Span,
    pub(crate) run_time: Duration,
}

impl<F> Left<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// Finishes it in a task; its response goes nowhere. Where there is no place for it, it is
    /// dropped.
    ///
    /// While the runtime shuts down the task is dropped before it has begun (tokio, `Runtime`), and
    /// with it the work, as without the layer.
    pub(crate) fn finish(self, lane: &Arc<Lane>, runtime: &Handle) -> Result<(), Refusal> {
        let mut place = lane.take()?;
        place.occupy_unlisted()?;
        let span = self.span.clone();
        runtime.spawn(finish(self, place).instrument(span));
        Ok(())
    }
}

/// `place` comes last, so it is dropped last: it is free when the handler's future is really gone.
async fn finish<F: Future>(left: Left<F>, place: Place) {
    let Left { future, asked, run_time, .. } = left;
    let state = Arc::clone(&place.lane.state);
    let mut future = pin!(future);
    let cut = state.places.cut();
    let mut cut = pin!(unconstrained(cut.cancelled()));
    let mut limit = pin!(unconstrained(tokio::time::sleep(run_time)));
    // Dropped before the handler's future, whose drop may wait for what it tells to stop.
    let mut asked = asked;
    let (identity, id) = (state.identity(), None::<JobId>);
    let finished = poll_fn(|cx| {
        let polled = poll_handler(identity, id, &mut asked, future.as_mut(), cx);
        if let Poll::Ready(end) = polled {
            return Poll::Ready(end.is_ok());
        }
        if cut.as_mut().poll(cx).is_ready() || limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        Poll::Pending
    })
    .await;
    if finished {
        asked.finished();
    }
}
