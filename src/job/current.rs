//! The job that runs on this thread just now: what a handler sees of its own job, and how a layer
//! knows that an outer one watches already.
//!
//! A thread-local says which desk it is around each poll. A request whose handler never asks for
//! its job pays for that alone: no allocation, no extension in the request.

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{JobId, Progress, progress::Tracker};
use crate::error::Error;

thread_local! {
    /// Who watches what runs on this thread: 0 for nobody, else the desk's identity. That is an
    /// address, so its lowest bit is free: with it, the last of the frames is this desk's.
    static DESK: Cell<usize> = const { Cell::new(0) };
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

const HAS_FRAME: usize = 1;

/// What is known of the job that runs, where there is something to know.
#[derive(Default)]
struct Frame {
    id: Option<JobId>,
    state: Option<Arc<JobState>>,
}

impl Frame {
    fn job(&mut self) -> Job {
        let state = self.state.get_or_insert_with(|| {
            let state = JobState::default();
            if let Some(id) = self.id {
                // The cell was made a line above, so it is empty.
                let _ = state.id.set(id);
            }
            Arc::new(state)
        });
        Job { state: Arc::clone(state) }
    }
}

/// What a job and its handler share, made when the handler first asks for it.
#[derive(Debug, Default)]
struct JobState {
    id: OnceLock<JobId>,
    /// Of a durable job: which attempt this is.
    attempt: u16,
    canceled: CancellationToken,
    tracker: Mutex<Tracker>,
    /// The tracker has something new, from when it had nothing on.
    news: Notify,
}

impl JobState {
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        // Nothing that can panic runs under the lock.
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes progress. Whoever writes it is told once, however often it changes until then.
    fn track(&self, note: impl FnOnce(&mut Tracker)) {
        let mut tracker = self.tracker();
        let had_news = tracker.has_news();
        note(&mut tracker);
        let first = tracker.has_news() && !had_news;
        drop(tracker);
        if first {
            self.news.notify_one();
        }
    }
}

/// What a handler says of its progress, for whoever writes it to the store.
#[derive(Debug, Clone)]
pub(crate) struct Said(Arc<JobState>);

impl Said {
    /// Resolves when there is something new.
    pub(crate) async fn news(&self) {
        self.0.news.notified().await;
    }

    /// What was said, if there is anything new.
    pub(crate) fn take(&self) -> Option<Progress> {
        self.0.tracker().take()
    }

    /// What was taken last is new still: it was not written.
    pub(crate) fn put_back(&self) {
        self.0.tracker().put_back();
    }
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

    /// What the handler of a durable job may ask for: this id, and which attempt it is.
    pub(crate) fn of_attempt(id: JobId, attempt: u16) -> Self {
        let state = JobState { id: OnceLock::from(id), attempt, ..JobState::default() };
        Self { state: Some(Arc::new(state)) }
    }

    /// What the handler says of its progress, if it has asked for its job.
    pub(crate) fn said(&self) -> Option<Said> {
        self.state.clone().map(Said)
    }

    /// Whether the handler has asked for its job.
    #[inline]
    pub(crate) fn is_something(&self) -> bool {
        self.state.is_some()
    }

    /// The handler has ended by itself: there is nothing to cancel.
    #[inline]
    pub(crate) fn finished(&mut self) {
        self.state = None;
    }
}

impl Drop for Asked {
    #[inline]
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.canceled.cancel();
        }
    }
}

/// Runs `f`, a poll of the inner service's future, as the job of this desk: see [`Current`].
#[inline]
pub(crate) fn within<R>(
    desk: usize,
    id: Option<JobId>,
    asked: &mut Asked,
    f: impl FnOnce() -> R,
) -> R {
    let _current = Current::enter(desk, id, asked);
    f()
}

/// Until this is dropped, what runs on this thread is the job of this desk; within another job of the
/// same desk it is that one's. Dropped also by a panic: the next request on this thread must not see
/// this one's job.
pub(crate) struct Current<'a> {
    asked: &'a mut Asked,
    desk: usize,
    outer: usize,
}

impl<'a> Current<'a> {
    /// `id` is the job's, from where it is registered on.
    #[inline]
    pub(crate) fn enter(desk: usize, id: Option<JobId>, asked: &'a mut Asked) -> Self {
        let outer = DESK.get();
        if outer & !HAS_FRAME != desk {
            DESK.set(desk);
            if id.is_some() || asked.state.is_some() {
                open(Frame { id, state: asked.state.take() });
            }
        }
        Self { asked, desk, outer }
    }
}

impl Drop for Current<'_> {
    #[inline]
    fn drop(&mut self) {
        let entered = self.outer & !HAS_FRAME != self.desk;
        if entered && DESK.replace(self.outer) & HAS_FRAME != 0 {
            self.asked.state = close().state;
        }
    }
}

/// Opens a frame for the desk that is the current one.
#[cold]
fn open(frame: Frame) {
    FRAMES.with_borrow_mut(|frames| frames.push(frame));
    DESK.set(DESK.get() | HAS_FRAME);
}

#[cold]
fn close() -> Frame {
    FRAMES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Whether a layer of this desk watches what runs on this thread.
pub(crate) fn watched_by(desk: usize) -> bool {
    DESK.get() & !HAS_FRAME == desk
}

/// The job that a handler runs as, or will run as if it outruns its budget.
///
/// Ask for it with [`Job::current`] inside the handler or, with feature `axum`, as an extractor.
/// It is the same before and after the request is taken off its connection. What a handler says of
/// its progress stands at the status URL; where the request is no job, it goes nowhere.
///
/// ```
/// use tower_offload::Job;
///
/// async fn import(rows: Vec<String>) -> &'static str {
///     let job = Job::current();
///     if let Some(job) = &job {
///         job.set_total(rows.len() as u64);
///     }
///     for row in rows {
///         // … what there is to do with the row
///         # drop(row);
///         if let Some(job) = &job {
///             job.advance(1);
///         }
///     }
///     "imported"
/// }
/// ```
///
/// In code that blocks, under `tokio::task::spawn_blocking`, nothing is dropped when the job is
/// canceled: ask for it.
///
/// ```
/// use tower_offload::Job;
///
/// fn transcode(frames: u64, job: &Job) -> bool {
///     let canceled = job.cancellation();
///     for frame in 0..frames {
///         if canceled.is_cancelled() {
///             return false;
///         }
///         // … the frame
///         job.progress((frame + 1) as f64 / frames as f64, "transcoding");
///     }
///     true
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
        let desk = DESK.get();
        if desk == 0 {
            return None;
        }
        if desk & HAS_FRAME == 0 {
            open(Frame::default());
        }
        FRAMES.with_borrow_mut(|frames| frames.last_mut().map(Frame::job))
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

    /// Which attempt at the work this is: 1, or more where it is a job of a
    /// [durable](crate::Policy::durable) route whose process was lost before.
    pub fn attempt(&self) -> u16 {
        self.state.attempt.max(1)
    }

    /// Says how much of the work is done, from 0 to 1, and what is being done: an empty `message`
    /// for nothing. It takes the place of what was said before. A number outside of that range is
    /// taken for the nearest in it, and of a long message [`Progress::MAX_MESSAGE`] bytes are kept.
    ///
    /// Calls are cheap, from any thread: what is said in quick succession is written to the store
    /// together, at most once in the `progress_interval` of the builder (100 ms), and the last is
    /// always written.
    pub fn progress(&self, ratio: f64, message: impl AsRef<str>) {
        let message = message.as_ref();
        self.state.track(|tracker| tracker.say(ratio, message));
    }

    /// Says how many pieces the work has, for [`advance`](Self::advance) to count.
    pub fn set_total(&self, pieces: u64) {
        self.state.track(|tracker| tracker.set_total(pieces));
    }

    /// Says that so many more pieces are done. The ratio is what is done of the total, the message
    /// stays what it was. Cheap enough for each row of an import.
    pub fn advance(&self, pieces: u64) {
        self.state.track(|tracker| tracker.advance(pieces));
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
    use std::{convert::Infallible, sync::Arc};

    use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;

    use super::Job;

    /// Never rejects: where no layer watches the request it is a job of its own, which nobody can
    /// cancel, and whose progress nobody reads. Extract `Option<Job>` to tell.
    impl<S: Sync> FromRequestParts<S> for Job {
        type Rejection = Infallible;

        async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
            Ok(Job::current().unwrap_or_else(|| Job { state: Arc::default() }))
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Job {
        type Rejection = Infallible;

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
        within(2, None, &mut outer, || {
            let job = Job::current().unwrap();
            within(4, None, &mut inner, || {
                assert!(watched_by(4) && !watched_by(2));
                assert_ne!(Job::current().unwrap().id(), job.id());
            });
            let panic = std::panic::catch_unwind(|| {
                within(6, None, &mut Asked::default(), || panic!("handler"))
            });
            assert!(panic.is_err());
            assert!(watched_by(2));
            assert_eq!(Job::current().unwrap().id(), job.id());
        });
        assert!(!watched_by(2));
        assert!(outer.state.is_some() && inner.state.is_some());
    }

    #[test]
    fn costs_nothing_unless_asked_for() {
        let mut asked = Asked::default();
        within(2, None, &mut asked, || ());
        assert!(asked.state.is_none());
    }

    #[test]
    fn keeps_its_id_through_the_detach() {
        let mut asked = Asked::default();
        let job = within(2, None, &mut asked, || Job::current().unwrap());
        // The handler has asked for its job, and looks at the id later only.
        let registered = asked.id().unwrap();
        assert_eq!(job.id(), registered);
        let after = within(2, Some(registered), &mut asked, || Job::current().unwrap().id());
        assert_eq!(after, registered);
        let late =
            within(2, Some(registered), &mut Asked::default(), || Job::current().unwrap().id());
        assert_eq!(late, registered);
    }

    #[test]
    fn is_canceled_unless_the_handler_has_finished() {
        for finished in [false, true] {
            let mut asked = Asked::default();
            let token = within(2, None, &mut asked, || Job::current().unwrap().cancellation());
            if finished {
                asked.finished();
            }
            assert!(!token.is_cancelled());
            drop(asked);
            assert_eq!(token.is_cancelled(), !finished);
        }
    }
}
