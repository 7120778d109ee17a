//! A job as the store keeps it, and the one table of its transitions.
//!
//! ```text
//! queued ──Start──▶ running ──Finish──▶ succeeded | failed ──Remove──▶ (removed)
//!    │ ▲             │ │  │ ▲                                              ▲
//!    │ └──Finish*────┼─┘  └─┘ Progress                                     │
//!    └────Cancel─────┴────────────────▶ canceled ──────────Remove──────────┘
//! ```
//!
//! \* of a durable job whose process was lost or shut down, while it has attempts left.
//!
//! Every store applies changes through [`Record::apply`] while it holds the job alone, so that of
//! several changes that race exactly one is seen.

#[path = "stored.rs"]
mod stored;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Claim, Digest, JobId, Outcome, Progress,
    time::{Time, nanos},
};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted, and nothing of the handler has run yet.
    Queued,
    /// The handler runs.
    Running,
    /// The handler answered with a status below 400.
    Succeeded,
    /// The handler answered with a status of 400 or above, or there is no response at all.
    Failed,
    /// Canceled by a `DELETE`.
    Canceled,
}

impl Failure {
    /// Whether it was the process that failed, and not the work.
    fn is_of_the_process(self) -> bool {
        matches!(self, Self::Interrupted | Self::NodeLost)
    }
}

impl Status {
    /// Whether this is an end: nothing but the removal of its outcome comes after it.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// Why a job ended without a response of its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Failure {
    /// The handler panicked.
    Panicked,
    /// The service gave an error, or the response's body did.
    ServiceError,
    /// The job reached its run-time limit.
    TimedOut,
    /// The response was larger than an outcome may be.
    TooLarge,
    /// The process shut down before the job was finished.
    Interrupted,
    /// The process that ran the job died, or was cut off from the store for too long.
    NodeLost,
    /// What the store keeps of the job cannot be read.
    Corrupt,
}

/// How a job ends when it is not canceled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum End {
    /// With the handler's response.
    Response(Outcome),
    /// Without one.
    Failure(Failure),
}

/// A change of a job's state, applied by the store as one compare-and-set.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Change {
    /// A queued job begins to run.
    Start,
    /// The handler of a job that runs says how far it is.
    Progress(Progress),
    /// The job ends by itself.
    Finish(End),
    /// The job is canceled.
    Cancel,
    /// The outcome of an ended job is removed; its record stays until it expires.
    Remove,
}

/// A job as the store keeps it, without the bytes of its outcome.
///
/// Small, and of a plain job nothing is allocated by a clone: a store keeps many, and gives one out
/// for each poll.
#[derive(Debug, Clone)]
pub struct Record {
    id: JobId,
    created_at: Time,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    /// In nanoseconds.
    ttl: u64,
    policy: Option<Arc<str>>,
    /// `None` where there is nothing of it.
    more: Option<Arc<More>>,
    version: u32,
    /// The version of the last change that was more than progress.
    status_version: u32,
    response_status: Option<StatusCode>,
    status: Status,
    failure: Option<Failure>,
    removed: bool,
    /// Kept here for the store in memory, since it takes no room here.
    disclosed: bool,
}

/// What most jobs do not have.
#[derive(Debug, Clone, Default)]
struct More {
    owner: Option<Digest>,
    claim: Option<Arc<Claim>>,
    progress: Option<Arc<Progress>>,
    /// How often the job was begun, and may be; 0 of 0 where it is not durable.
    attempts: [u16; 2],
}

const _: () = assert!(size_of::<Record>() <= 88 && size_of::<More>() <= 56);

impl Record {
    /// What a longer TTL counts as: a century, so that every time made of one can be told, on any
    /// machine and in any store.
    pub(crate) const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

    /// A job that waits for its turn. Times are kept to the nanosecond, from 1970 until 2554; one
    /// before or after is taken for the nearest.
    pub fn queued(id: JobId, created_at: SystemTime, ttl: Duration) -> Self {
        Self {
            id,
            status: Status::Queued,
            failure: None,
            response_status: None,
            removed: false,
            disclosed: false,
            version: 0,
            status_version: 0,
            created_at: created_at.into(),
            started_at: None,
            finished_at: None,
            ttl: nanos(ttl.min(Self::MAX_TTL)),
            policy: None,
            more: None,
        }
    }

    /// A job that runs from the start.
    pub fn running(id: JobId, created_at: SystemTime, ttl: Duration) -> Self {
        let queued = Self::queued(id, created_at, ttl);
        Self { status: Status::Running, started_at: Some(queued.created_at), ..queued }
    }

    /// The name of the policy that made it a job.
    #[must_use]
    pub fn with_policy(mut self, name: Arc<str>) -> Self {
        self.policy = Some(name);
        self
    }

    /// Whose it is.
    #[must_use]
    pub fn with_owner(mut self, owner: Digest) -> Self {
        self.more().owner = Some(owner);
        self
    }

    /// Which key it was sent under. The id of such a job is of the [key's
    /// partition](JobId::random_beside), or a store that is spread over several machines cannot keep it.
    #[must_use]
    pub fn with_claim(mut self, claim: Claim) -> Self {
        self.more().claim = Some(Arc::new(claim));
        self
    }

    /// How far it was before it became a job.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.more().progress = Some(Arc::new(progress));
        self
    }

    /// The job is durable: its request is kept with it, and it may be begun so many times, should the
    /// processes that run it be lost.
    #[must_use]
    pub fn with_attempts(mut self, max: u16) -> Self {
        self.more().attempts = [0, max];
        self
    }

    fn more(&mut self) -> &mut More {
        Arc::make_mut(self.more.get_or_insert_default())
    }

    /// Applies `change`, made at the time `at`, if the job's status allows it, and tells whether it
    /// did. A change that is not allowed leaves the record as it was.
    pub fn apply(&mut self, change: &Change, at: SystemTime) -> bool {
        // The wall clock can be set back; what was promised must not move earlier with it.
        let at = self.started_at.unwrap_or(self.created_at).max(at.into());
        let before = self.status;
        match (change, before) {
            (Change::Start, Status::Queued) => {
                self.status = Status::Running;
                self.started_at = Some(at);
                if let Some(attempt) = self.attempt() {
                    self.more().attempts[0] = attempt.saturating_add(1);
                }
            }
            (Change::Finish(End::Failure(failure)), Status::Running)
                if failure.is_of_the_process() && self.attempt() < self.max_attempts() =>
            {
                self.status = Status::Queued;
                self.started_at = None;
            }
            (Change::Progress(progress), Status::Running) => {
                self.more().progress = Some(Arc::new(progress.clone()));
            }
            (Change::Finish(end), Status::Queued | Status::Running) => self.finish(end, at),
            (Change::Cancel, Status::Queued | Status::Running) => {
                self.status = Status::Canceled;
                self.finished_at = Some(at);
            }
            (Change::Remove, ended) if ended.is_end() && !self.removed => self.removed = true,
            _ => return false,
        }
        // Years of progress do not get so far; a record of bytes from elsewhere may.
        self.version = self.version.saturating_add(1);
        if !matches!(change, Change::Progress(_)) {
            self.status_version = self.version;
        }
        // Nothing of the handler has run: under the same key the request may be sent again.
        if before == Status::Queued && self.status.is_end() && self.attempt().unwrap_or(0) == 0 {
            self.let_go();
        }
        true
    }

    fn let_go(&mut self) {
        match self.more.as_deref() {
            None | Some(More { claim: None, .. }) => {}
            Some(More { owner: None, progress: None, attempts: [_, 0], .. }) => self.more = None,
            Some(_) => self.more().claim = None,
        }
    }

    fn finish(&mut self, end: &End, at: Time) {
        self.finished_at = Some(at);
        self.status = Status::Failed;
        match end {
            End::Failure(failure) => self.failure = Some(*failure),
            End::Response(outcome) => {
                let status = outcome.status();
                self.response_status = Some(status);
                if status.as_u16() < 400 {
                    self.status = Status::Succeeded;
                }
            }
        }
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Where the job stands.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Why there is no response, for a failed job that has none.
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// The status of the handler's response, once there is one.
    pub fn response_status(&self) -> Option<StatusCode> {
        self.response_status
    }

    /// Whether the outcome was removed.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Notes that another request was given this job by its claim.
    pub(crate) fn disclose(&mut self) {
        self.disclosed = true;
    }

    pub(crate) fn is_disclosed(&self) -> bool {
        self.disclosed
    }

    /// Counts the changes: two records of one job with the same version are the same.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The [version](Self::version) that the last change made which was more than
    /// [progress](Change::Progress).
    pub fn status_version(&self) -> u32 {
        self.status_version
    }

    /// The name of the policy that made it a job.
    pub fn policy(&self) -> Option<&Arc<str>> {
        self.policy.as_ref()
    }

    /// Whose it is, where owners are told apart.
    pub fn owner(&self) -> Option<&Digest> {
        self.more.as_ref()?.owner.as_ref()
    }

    /// Its claim on an `Idempotency-Key`, if it has one. A job that ends before it has begun to run
    /// lets go of it.
    pub fn claim(&self) -> Option<&Claim> {
        self.more.as_ref()?.claim.as_deref()
    }

    /// How far it is, or was when it ended, if its handler has said so.
    pub fn progress(&self) -> Option<&Progress> {
        self.more.as_ref()?.progress.as_deref()
    }

    /// How often a durable job was begun; `None` for others.
    pub fn attempt(&self) -> Option<u16> {
        self.more.as_ref().filter(|more| more.attempts[1] > 0).map(|more| more.attempts[0])
    }

    /// How often a durable job may be begun; `None` for others.
    pub fn max_attempts(&self) -> Option<u16> {
        self.more.as_ref().map(|more| more.attempts[1]).filter(|max| *max > 0)
    }

    /// When the job was accepted.
    pub fn created_at(&self) -> SystemTime {
        self.created_at.into()
    }

    /// When the handler began to run as a job.
    pub fn started_at(&self) -> Option<SystemTime> {
        self.started_at.map(SystemTime::from)
    }

    /// When the job ended.
    pub fn finished_at(&self) -> Option<SystemTime> {
        self.finished_at.map(SystemTime::from)
    }

    /// How long the job is kept after its end: 100 years at most.
    pub fn ttl(&self) -> Duration {
        Duration::from_nanos(self.ttl)
    }

    /// The time before which the job is not dropped: its acceptance plus its TTL, and once it has
    /// ended, its end plus its TTL. It only moves later.
    pub fn expires_at(&self) -> SystemTime {
        let from = SystemTime::from(self.promised_from());
        from.checked_add(self.ttl()).unwrap_or(from)
    }

    /// The time from this one on until it expires.
    pub(crate) fn expires_in(&self, at: SystemTime) -> Duration {
        let at = Time::from(at).as_nanos();
        let expires = self.promised_from().as_nanos().saturating_add(self.ttl);
        Duration::from_nanos(expires.saturating_sub(at))
    }

    fn promised_from(&self) -> Time {
        self.finished_at.unwrap_or(self.created_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16) -> Change {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        Change::Finish(End::Response(Outcome::new(&parts, b"", None)))
    }

    fn in_status(status: Status) -> Record {
        let id = JobId::random().unwrap();
        let mut record = Record::queued(id, SystemTime::now(), Duration::from_secs(60));
        let steps: &[Change] = match status {
            Status::Queued => &[],
            Status::Running => &[Change::Start],
            Status::Succeeded => &[Change::Start, response(200)],
            Status::Failed => &[Change::Start, response(500)],
            Status::Canceled => &[Change::Cancel],
        };
        for step in steps {
            assert!(record.apply(step, SystemTime::now()));
        }
        assert_eq!(record.status(), status);
        record
    }

    #[test]
    fn a_durable_job_is_begun_again_while_it_has_attempts_left() {
        let now = SystemTime::now();
        let claim = Claim::new([1; 32].into(), [2; 32].into());
        let job = || Record::queued(JobId::random().unwrap(), now, Duration::from_secs(1));
        let lost = |failure| Change::Finish(End::Failure(failure));
        let mut record = job().with_attempts(2).with_claim(claim.clone());
        assert_eq!((record.attempt(), record.max_attempts()), (Some(0), Some(2)));
        assert!(record.apply(&Change::Start, now));
        assert!(record.apply(&lost(Failure::NodeLost), now));
        assert_eq!((record.status(), record.attempt()), (Status::Queued, Some(1)));
        assert_eq!(
            (record.started_at(), record.finished_at(), record.failure()),
            (None, None, None)
        );
        assert_eq!((record.version(), record.status_version()), (2, 2));
        assert!(record.apply(&Change::Start, now));
        assert!(record.apply(&lost(Failure::Interrupted), now));
        assert_eq!((record.status(), record.attempt()), (Status::Failed, Some(2)));
        assert_eq!(record.failure(), Some(Failure::Interrupted));
        // Its work was begun, so its key is not free.
        assert_eq!(record.claim(), Some(&claim));
        // What the work itself came to is an end, and so is all that another job comes to.
        for (mut record, failure) in [
            (job().with_attempts(9), Failure::Panicked),
            (job().with_attempts(9), Failure::TimedOut),
            (job(), Failure::NodeLost),
        ] {
            assert!(record.apply(&Change::Start, now));
            assert!(record.apply(&lost(failure), now));
            assert_eq!(record.status(), Status::Failed);
        }
        // Canceled while it waits to be begun again.
        let mut record = job().with_attempts(2).with_claim(claim.clone());
        for change in [Change::Start, lost(Failure::NodeLost), Change::Cancel] {
            assert!(record.apply(&change, now));
        }
        assert_eq!(record.claim(), Some(&claim));
    }

    #[test]
    fn the_table_of_transitions() {
        use Status::*;
        let failure = || Change::Finish(End::Failure(Failure::Panicked));
        // change, then what each status becomes by it (None: refused)
        let progress = || Change::Progress(Progress::new(Some(0.5), None));
        let rows: [(Change, [Option<Status>; 5]); 7] = [
            (Change::Start, [Some(Running), None, None, None, None]),
            (progress(), [None, Some(Running), None, None, None]),
            (response(201), [Some(Succeeded), Some(Succeeded), None, None, None]),
            (response(404), [Some(Failed), Some(Failed), None, None, None]),
            (failure(), [Some(Failed), Some(Failed), None, None, None]),
            (Change::Cancel, [Some(Canceled), Some(Canceled), None, None, None]),
            (Change::Remove, [None, None, Some(Succeeded), Some(Failed), Some(Canceled)]),
        ];
        for (change, row) in rows {
            for (from, to) in [Queued, Running, Succeeded, Failed, Canceled].into_iter().zip(row) {
                let mut record = in_status(from);
                let version = record.version();
                assert_eq!(
                    record.apply(&change, SystemTime::now()),
                    to.is_some(),
                    "{from:?} {change:?}"
                );
                assert_eq!(record.status(), to.unwrap_or(from), "{from:?} {change:?}");
                assert_eq!(record.version(), version + u32::from(to.is_some()));
            }
        }
    }

    #[test]
    fn progress_is_kept_and_counts_as_a_version_of_its_own() {
        let mut record = in_status(Status::Running);
        let status_version = record.status_version();
        let progress = Progress::new(Some(0.5), Some("half"));
        assert!(record.apply(&Change::Progress(progress.clone()), SystemTime::now()));
        assert_eq!(record.status_version(), status_version);
        assert!(record.version() > status_version);
        assert!(record.apply(&response(200), SystemTime::now()));
        assert_eq!(record.status_version(), record.version());
        assert_eq!(record.progress(), Some(&progress));
    }

    #[test]
    fn a_claim_is_let_go_of_only_by_an_end_before_the_start() {
        let claim = Claim::new([1; 32].into(), [2; 32].into());
        for (starts, held) in [(false, false), (true, true)] {
            let id = JobId::random().unwrap();
            let mut record = Record::queued(id, SystemTime::now(), Duration::from_secs(60))
                .with_claim(claim.clone());
            if starts {
                assert!(record.apply(&Change::Start, SystemTime::now()));
            }
            assert_eq!(record.claim(), Some(&claim));
            assert!(record.apply(&Change::Cancel, SystemTime::now()));
            assert_eq!(record.claim().is_some(), held);
        }
    }

    #[test]
    fn removed_once_only() {
        let mut record = in_status(Status::Succeeded);
        assert!(record.apply(&Change::Remove, SystemTime::now()));
        assert!(!record.apply(&Change::Remove, SystemTime::now()));
        assert!(record.is_removed());
    }

    #[test]
    fn expiry_only_moves_later_even_when_the_clock_is_set_back() {
        let mut record = in_status(Status::Running);
        let promised = record.expires_at();
        assert!(record.apply(&response(200), SystemTime::UNIX_EPOCH));
        assert!(record.expires_at() >= promised);
    }

    #[test]
    fn a_ttl_without_end_is_a_century() {
        let now = SystemTime::now();
        for ttl in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX))] {
            let record = Record::queued(JobId::random().unwrap(), now, ttl);
            assert_eq!(record.expires_at(), now + Record::MAX_TTL);
        }
    }
}
