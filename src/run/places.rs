//! Who may run and who is next: the places that jobs take, in all and for each route, and the
//! queues of those that wait for one.
//!
//! A *lane* is one route's share: so many of its jobs run, so many wait, in order of arrival. All
//! lanes share the places of `max_running`. One lock guards the lot, and one rule holds whenever it
//! is free: **nobody waits for whom there is room.** Whoever makes room hands it on, to the one that
//! has waited longest of those whose lane has room; so whoever comes finds a place that is really
//! free, or stands behind those that came before.
//!
//! Under the lock nobody is woken and nothing is dropped that others have a say in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Account, Refusal, State,
    ledger::{Ends, Ledger, Purpose, Queue, Stand, Waiting},
};
use crate::job::JobId;

/// The places, and those that wait for one.
#[derive(Debug)]
pub(crate) struct Places {
    ledger: Mutex<Ledger>,
    max: usize,
    /// Told when nothing runs and waits any more, and when nothing is undecided any more.
    idle: Notify,
    /// Canceled at a drain's deadline, for work that has no job in the store.
    cut_off: CancellationToken,
}

/// A route's share of the places. Gone when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) state: Arc<State>,
    pub(super) account: Arc<Account>,
    pub(super) index: usize,
}

/// How long a route's queue is in front of one of its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// 1 is next.
    pub(crate) position: usize,
    /// How many of the route's jobs can run at once.
    pub(crate) abreast: usize,
}

/// How many places a policy's lanes have taken, and how many wait.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub(super) running: usize,
    pub(super) queued: usize,
}

impl Lane {
    /// A lane of `concurrency` places, all of them where it is `None`, and a queue of `max_waiting`.
    pub(crate) fn new(
        state: &Arc<State>,
        account: Arc<Account>,
        concurrency: Option<usize>,
        max_waiting: usize,
    ) -> Arc<Self> {
        let concurrency = concurrency.unwrap_or(state.places.max).min(state.places.max);
        let queue = Queue::new(Arc::clone(&account), concurrency, max_waiting);
        let index = state.places.ledger().lanes.insert(queue);
        Arc::new(Self { state: Arc::clone(state), account, index })
    }

    /// The policy's name.
    pub(crate) fn name(&self) -> &Arc<str> {
        self.account.name()
    }

    /// Counts a request that could have been a job, and found no room.
    pub(crate) fn refuse(&self) {
        self.account.refuse();
    }

    /// Takes a place for work that begins now.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Place, Refusal> {
        let mut ledger = self.state.places.ledger();
        ledger.room(self.index, self.state.places.max)?;
        ledger.take(self.index);
        Ok(Place::new(self))
    }

    /// Whether there is a place just now.
    pub(crate) fn look(&self) -> Result<(), Refusal> {
        self.state.places.ledger().room(self.index, self.state.places.max)
    }

    /// Whether there is a place just now, or room in the queue.
    pub(crate) fn look_in(&self) -> Result<(), Refusal> {
        let ledger = self.state.places.ledger();
        match ledger.room(self.index, self.state.places.max) {
            Err(Refusal::Full(limit)) => ledger.room_to_wait(self.index, limit),
            other => other,
        }
    }

    /// Takes a place, or a ticket for one where the queue has room.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Admission, Refusal> {
        let mut ledger = self.state.places.ledger();
        match ledger.room(self.index, self.state.places.max) {
            Ok(()) => {
                ledger.take(self.index);
                return Ok(Admission::Now(Place::new(self)));
            }
            Err(Refusal::Full(limit)) => ledger.room_to_wait(self.index, limit)?,
            Err(refusal) => return Err(refusal),
        }
        let (sender, turn) = oneshot::channel();
        let number = ledger.wait(self, sender);
        Ok(Admission::Later(Ticket { lane: Arc::clone(self), number, job: None, turn }))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // What waits or runs holds the lane, so nothing is left in it.
        let queue = self.state.places.ledger().lanes.try_remove(self.index);
        drop(queue);
    }
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self {
            ledger: Mutex::default(),
            max,
            idle: Notify::new(),
            cut_off: CancellationToken::new(),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing that can panic runs under the lock.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back, then hands on what room there is.
    fn hand_on(&self, mut ledger: MutexGuard<'_, Ledger>) {
        let granted: Vec<Waiting> = std::iter::from_fn(|| ledger.grant(self.max)).collect();
        let idle = ledger.is_idle();
        drop(ledger);
        for Waiting { lane, turn, .. } in granted {
            // One that has left just now gives the place back by dropping it.
            drop(turn.send(Place::new(&lane)));
        }
        if idle {
            self.idle.notify_waiters();
        }
    }

    /// Where a job stands in its queue; `None` for one that does not wait, or waits elsewhere.
    pub(crate) fn position(&self, id: JobId) -> Option<Position> {
        let ledger = self.ledger();
        let stand = (*ledger.jobs.get(&id)?)?;
        let queue = &ledger.lanes[stand.lane];
        let at =
            queue.waiting.binary_search_by_key(&stand.ticket, |waiting| waiting.ticket).ok()?;
        Some(Position { position: at + 1, abreast: queue.concurrency })
    }

    /// How many jobs of this lane can run at once.
    pub(super) fn abreast(&self, lane: &Lane) -> usize {
        self.ledger().lanes[lane.index].concurrency
    }

    /// What runs and waits, by policy.
    pub(super) fn loads(&self) -> Vec<(Arc<Account>, Load)> {
        let ledger = self.ledger();
        let load = |lane: &Queue| Load { running: lane.taken, queued: lane.waiting.len() };
        ledger.lanes.iter().map(|(_, lane)| (Arc::clone(&lane.account), load(lane))).collect()
    }

    /// Gives no more places to whoever comes. Tells what has become of things until now.
    pub(super) fn close(&self) -> Ends {
        let mut ledger = self.ledger();
        ledger.draining = true;
        ledger.ends
    }

    /// Resolves when no place is taken any more, and nobody waits for one.
    pub(super) async fn idle(&self) {
        self.until(Ledger::is_idle).await;
    }

    /// Resolves when the store has said of each job that was cut off what became of it.
    pub(super) async fn decided(&self) {
        self.until(|ledger| ledger.ends.undecided == 0).await;
    }

    async fn until(&self, condition: impl Fn(&Ledger) -> bool) {
        loop {
            let changed = self.idle.notified();
            if condition(&self.ledger()) {
                return;
            }
            changed.await;
        }
    }

    /// What has become of all that was ever promised.
    pub(super) fn ends(&self) -> Ends {
        self.ledger().ends
    }

    /// At a drain's deadline: what has no job in the store is dropped; the jobs that have not ended
    /// are told, each to be [decided](Self::decide) on. Whoever has a place or waits for one, but
    /// has promised nothing yet, cannot any more: nobody would be there to interrupt such a job.
    pub(super) fn cut_off(&self) -> Vec<JobId> {
        let jobs = self.ledger().cut_off();
        self.cut_off.cancel();
        jobs
    }

    /// Whether a job that was cut off has ended by that, or before; `None` where nobody knows.
    pub(super) fn decide(&self, interrupted: Option<bool>) {
        let mut ledger = self.ledger();
        ledger.decide(interrupted);
        let decided = ledger.ends.undecided == 0;
        drop(ledger);
        if decided {
            self.idle.notify_waiters();
        }
    }

    /// Resolves at a drain's deadline.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut_off.clone()
    }
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) lane: Arc<Lane>,
    purpose: Purpose,
}

impl Place {
    fn new(lane: &Arc<Lane>) -> Self {
        Self { lane: Arc::clone(lane), purpose: Purpose::Nothing }
    }

    /// The place is a promised job's from now on.
    fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        self.promise(Purpose::Job(id), |ledger| {
            ledger.jobs.insert(id, None);
        })
    }

    /// The place is from now on that of a handler whose client has left.
    pub(super) fn occupy_unlisted(&mut self) -> Result<(), Refusal> {
        self.promise(Purpose::Unlisted, |ledger| ledger.unlisted += 1)
    }

    fn promise(&mut self, purpose: Purpose, note: impl FnOnce(&mut Ledger)) -> Result<(), Refusal> {
        let mut ledger = self.lane.state.places.ledger();
        if ledger.over {
            return Err(Refusal::Draining);
        }
        note(&mut ledger);
        self.purpose = purpose;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.lane.state.places;
        let mut ledger = places.ledger();
        ledger.taken -= 1;
        ledger.lanes[self.lane.index].taken -= 1;
        ledger.end(self.purpose);
        places.hand_on(ledger);
    }
}

/// A place in the queue; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    lane: Arc<Lane>,
    number: u64,
    job: Option<JobId>,
    turn: oneshot::Receiver<Place>,
}

impl Ticket {
    fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        let mut ledger = self.lane.state.places.ledger();
        if ledger.over {
            return Err(Refusal::Draining);
        }
        ledger.jobs.insert(id, Some(Stand { lane: self.lane.index, ticket: self.number }));
        self.job = Some(id);
        Ok(())
    }

    /// Waits for its turn: the place, which is that of the ticket's job from then on.
    pub(super) async fn turn(&mut self) -> Place {
        // The other half is dropped with the lane only, which the ticket holds.
        let Ok(mut place) = (&mut self.turn).await else { std::future::pending().await };
        if let Some(id) = self.job.take() {
            place.purpose = Purpose::Job(id);
        }
        place
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let places = &self.lane.state.places;
        let mut ledger = places.ledger();
        let left = ledger.leave(self.lane.index, self.number);
        ledger.end(self.job.map_or(Purpose::Nothing, Purpose::Job));
        places.hand_on(ledger);
        drop(left);
    }
}

/// What somebody who comes to a lane is given.
#[derive(Debug)]
pub(crate) enum Admission {
    /// A place.
    Now(Place),
    /// A ticket for one.
    Later(Ticket),
}

impl Admission {
    pub(super) fn lane(&self) -> &Arc<Lane> {
        match self {
            Self::Now(place) => &place.lane,
            Self::Later(ticket) => &ticket.lane,
        }
    }

    /// It is a promised job's from now on.
    pub(super) fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        match self {
            Self::Now(place) => place.occupy(id),
            Self::Later(ticket) => ticket.occupy(id),
        }
    }
}
