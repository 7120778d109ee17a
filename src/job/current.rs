//! The job that runs on this thread just now: what a handler sees of its own job, and how a layer
//! knows that an outer one watches already.
//!
//! A thread-local frame is set around each poll. A request whose handler never asks for its job
//! pays for the setting of the frame alone: no allocation, no extension in the request.

use std::{
    cell::Cell,
    sync::{Arc, OnceLock},
};

use tokio_util::sync::CancellationToken;

use super::JobId;
use crate::error::Error;

thread_local! {
    static CURRENT: Cell<Option<Frame>> = const { Cell::new(None) };
}

struct Frame {
    /// Which `Offload` watches: the address of its state, which lives as long as the frame.
    desk: usize,
    id: Option<JobId>,
    state: Option<Arc<JobState>>,
}

/// What a job and its handler share, made when the handler first asks for it.
#[derive(Debug, Default)]
struct JobState {
    id: OnceLock<JobId>,
    canceled: CancellationToken,
}

/// What the handler has asked for of its job: nothing, as a rule. Dropped, it tells the handler's
/// helpers that nobody wants the work any more.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    state: Option<Arc<JobState>>,
}

impl Asked {
    /// The id that the handler knows its job by, or may yet come to know; a new one where it has not
    /// asked.
    ///
    /// # Errors
    /// If the operating system has no random numbers to give.
    pub(crate) fn id(&self) -> Result<JobId, Error> {
        let Some(state) = &self.state else {
            return JobId::random();
        };
        if let Some(id) = state.id.get() {
            return Ok(*id);
        }
        let id = JobId::random()?;
        // A helper of the handler may have been faster.
        Ok(*state.id.get_or_init(|| id))
    }

    /// The handler has ended by itself: there is nothing to cancel.
    pub(crate) fn finished(&mut self) {
        self.state = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.canceled.cancel();
        }
    }
}

/// Runs `f`, a poll or a call of the inner service, as the job of this desk. `id` is the job's, from
/// where it is registered on.
pub(crate) fn within<R>(
    desk: usize,
    id: Option<JobId>,
    asked: &mut Asked,
    f: impl FnOnce() -> R,
) -> R {
    let outer = CURRENT.replace(Some(Frame { desk, id, state: asked.state.take() }));
    // Also when `f` panics: the next request on this thread must not see this one's job.
    let _restore = Restore { outer, asked };
    f()
}

struct Restore<'a> {
    outer: Option<Frame>,
    asked: &'a mut Asked,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let frame = CURRENT.replace(self.outer.take());
        self.asked.state = frame.and_then(|frame| frame.state);
    }
}

/// Whether a layer of this desk watches what runs on this thread.
pub(crate) fn watched_by(desk: usize) -> bool {
    let frame = CURRENT.take();
    let watched = frame.as_ref().is_some_and(|frame| frame.desk == desk);
    CURRENT.set(frame);
    watched
}

/// The job that a handler runs as, or will run as if it outruns its budget.
///
/// Ask for it with [`Job::current`] inside the handler or, with feature `axum`, as an extractor.
/// It is the same before and after the request is taken off its connection.
///
/// ```
/// use tower_offload::Job;
///
/// async fn import() -> String {
///     match Job::current() {
///         Some(job) => format!("importing as job {}", job.id()),
///         None => "importing without a job".to_owned(),
///     }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Job {
    state: Arc<JobState>,
}

impl Job {
    /// The job of the handler that is being polled on this thread; `None` outside of one, in a
    /// task that the handler has spawned, and where the request is not watched (its policy is
    /// `never`, say). Clone the `Job` into tasks and threads that need it.
    pub fn current() -> Option<Self> {
        // Not there any more where a destructor of this thread's end asks.
        let mut frame = CURRENT.try_with(Cell::take).ok()??;
        let id = frame.id;
        let state = frame.state.get_or_insert_with(|| {
            let state = JobState::default();
            if let Some(id) = id {
                // The cell was made a line above, so it is empty.
                let _ = state.id.set(id);
            }
            Arc::new(state)
        });
        let job = Self { state: Arc::clone(state) };
        CURRENT.set(Some(frame));
        Some(job)
    }

    /// The id under which the job is known, or will be if it is taken off its connection.
    ///
    /// # Panics
    /// If the operating system has no random numbers to give.
    pub fn id(&self) -> JobId {
        *self.state.id.get_or_init(|| {
            #[expect(clippy::expect_used, reason = "documented; as std's HashMap::new")]
            JobId::random().expect("random numbers from the operating system")
        })
    }

    /// A token that is canceled when nobody wants the work any more: the job was canceled, ran out
    /// of time or was cut off by shutdown, or the client left before the request became a job.
    ///
    /// The handler's own future is dropped right after that; the token is for what it started
    /// elsewhere, such as a loop in `spawn_blocking`, which can only stop by looking.
    pub fn cancellation(&self) -> CancellationToken {
        self.state.canceled.clone()
    }
}

#[cfg(feature = "axum")]
mod extract {
    use axum_core::{
        extract::{FromRequestParts, OptionalFromRequestParts},
        response::{IntoResponse, Response},
    };
    use http::{StatusCode, request::Parts};

    use super::Job;

    /// Rejects with 500 where the request is not watched by a layer; extract `Option<Job>` in a
    /// handler that serves such requests too.
    impl<S: Sync> FromRequestParts<S> for Job {
        type Rejection = Response;

        async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Response> {
            Job::current().ok_or_else(|| {
                let message =
                    "this handler extracts a Job, but no tower-offload layer watches its request";
                tracing::error!("{message}");
                (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
            })
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Job {
        type Rejection = std::convert::Infallible;

        async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
            Ok(Job::current())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_nest_and_are_restored_by_a_panic() {
        assert!(Job::current().is_none());
        let (mut outer, mut inner) = (Asked::default(), Asked::default());
        within(1, None, &mut outer, || {
            let job = Job::current().unwrap();
            within(2, None, &mut inner, || {
                assert!(watched_by(2) && !watched_by(1));
                assert_ne!(Job::current().unwrap().id(), job.id());
            });
            let panic = std::panic::catch_unwind(|| {
                within(3, None, &mut Asked::default(), || panic!("handler"))
            });
            assert!(panic.is_err());
            assert!(watched_by(1));
            assert_eq!(Job::current().unwrap().id(), job.id());
        });
        assert!(!watched_by(1));
        assert!(outer.state.is_some() && inner.state.is_some());
    }

    #[test]
    fn costs_nothing_unless_asked_for() {
        let mut asked = Asked::default();
        within(1, None, &mut asked, || ());
        assert!(asked.state.is_none());
    }

    #[test]
    fn keeps_its_id_through_the_detach() {
        let mut asked = Asked::default();
        let job = within(1, None, &mut asked, || Job::current().unwrap());
        // The handler has asked for its job, and looks at the id later only.
        let registered = asked.id().unwrap();
        assert_eq!(job.id(), registered);
        let after = within(1, Some(registered), &mut asked, || Job::current().unwrap().id());
        assert_eq!(after, registered);
        let late =
            within(1, Some(registered), &mut Asked::default(), || Job::current().unwrap().id());
        assert_eq!(late, registered);
    }

    #[test]
    fn is_canceled_unless_the_handler_has_finished() {
        for finished in [false, true] {
            let mut asked = Asked::default();
            let token = within(1, None, &mut asked, || Job::current().unwrap().cancellation());
            if finished {
                asked.finished();
            }
            assert!(!token.is_cancelled());
            drop(asked);
            assert_eq!(token.is_cancelled(), !finished);
        }
    }
}
