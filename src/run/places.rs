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
    /// Canceled when a drain begins, for those who look for new work.
    draining: CancellationToken,
    /// Canceled at a drain's deadline, for work that has no job in the store.
    cut_off: CancellationToken,
}

/// A route's share of the places. Gone when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) state: Arc<State>,
    pub(super) account: Arc<Account>,
    pub(super) index: usize,
    /// Canceled when the lane is gone.
    pub(super) gone: CancellationToken,
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
        Arc::new(Self { state: Arc::clone(state), account, index, gone: CancellationToken::new() })
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
        let stand = Stand { lane: self.index, ticket: number };
        let (lane, purpose) = (Arc::clone(self), Purpose::Nothing);
        Ok(Admission::Later(Ticket { lane, stand, purpose, turn }))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // What waits or runs holds the lane, so nothing is left in it.
        let queue = self.state.places.ledger().lanes.try_remove(self.index);
        drop(queue);
        self.gone.cancel();
    }
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self {
            ledger: Mutex::default(),
            max,
            idle: Notify::new(),
            draining: CancellationToken::new(),
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
        let stand = *ledger.stands.get(&id)?;
        let abreast = ledger.lanes[stand.lane].concurrency;
        Some(Position { position: ledger.at(stand)? + 1, abreast })
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
        let ends = ledger.ends;
        drop(ledger);
        self.draining.cancel();
        ends
    }

    /// Resolves when no place is taken any more, and nobody waits for one, but for what was
    /// [set aside](Admission::set_aside).
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

    /// Canceled when a drain begins.
    pub(super) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Canceled at a drain's deadline.
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
    pub(crate) fn state(&self) -> &Arc<State> {
        &self.lane.state
    }

    fn new(lane: &Arc<Lane>) -> Self {
        Self { lane: Arc::clone(lane), purpose: Purpose::Nothing }
    }

    /// The place is a promised job's from now on.
    fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        self.promise(|ledger| Purpose::Job(ledger.promise(id, None)))
    }

    /// The place is from now on that of a handler whose client has left.
    pub(super) fn occupy_unlisted(&mut self) -> Result<(), Refusal> {
        self.promise(|ledger| {
            ledger.unlisted += 1;
            Purpose::Unlisted
        })
    }

    fn promise(&mut self, note: impl FnOnce(&mut Ledger) -> Purpose) -> Result<(), Refusal> {
        let mut ledger = self.lane.state.places.ledger();
        if ledger.over {
            return Err(Refusal::Draining);
        }
        ledger.end(self.purpose);
        self.purpose = note(&mut ledger);
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
    stand: Stand,
    purpose: Purpose,
    turn: oneshot::Receiver<Place>,
}

impl Ticket {
    fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        let mut ledger = self.lane.state.places.ledger();
        if ledger.over {
            return Err(Refusal::Draining);
        }
        ledger.end(self.purpose);
        self.purpose = Purpose::Job(ledger.promise(id, Some(self.stand)));
        Ok(())
    }

    /// Waits for its turn: the place, which is that of the ticket's job from then on.
    pub(super) async fn turn(&mut self) -> Place {
        // The other half is dropped with the lane only, which the ticket holds.
        let Ok(mut place) = (&mut self.turn).await else { std::future::pending().await };
        place.purpose = std::mem::replace(&mut self.purpose, Purpose::Nothing);
        place
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let places = &self.lane.state.places;
        let mut ledger = places.ledger();
        let left = ledger.leave(self.stand);
        ledger.end(self.purpose);
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
    /// Waits for the place.
    pub(super) async fn turn(self) -> Place {
        match self {
            Self::Now(place) => place,
            Self::Later(mut ticket) => ticket.turn().await,
        }
    }

    pub(super) fn lane(&self) -> &Arc<Lane> {
        match self {
            Self::Now(place) => &place.lane,
            Self::Later(ticket) => &ticket.lane,
        }
    }

    /// Nothing depends on it any more: it is held so that there are not more of its kind than places,
    /// and a drain does not wait for it.
    pub(super) fn set_aside(&mut self) {
        let (lane, purpose) = match self {
            Self::Now(place) => (&place.lane, &mut place.purpose),
            Self::Later(ticket) => (&ticket.lane, &mut ticket.purpose),
        };
        let mut ledger = lane.state.places.ledger();
        ledger.end(std::mem::replace(purpose, Purpose::Aside));
        ledger.aside += 1;
        lane.state.places.hand_on(ledger);
    }

    /// It is a promised job's from now on.
    pub(super) fn occupy(&mut self, id: JobId) -> Result<(), Refusal> {
        match self {
            Self::Now(place) => place.occupy(id),
            Self::Later(ticket) => ticket.occupy(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, task::Poll};

    use proptest::prelude::*;
    use tokio_test::task::spawn;

    use super::*;
    use crate::{run::Limits, store::MemoryStore, wire::Urls};

    fn state(max_running: usize) -> Arc<State> {
        let limits = Limits { max_running, ..Limits::default() };
        let urls = Urls::new("/jobs", None, Default::default(), false).unwrap();
        Arc::new(State::new(Arc::new(MemoryStore::new(1 << 20)), limits, urls, None))
    }

    fn lane(state: &Arc<State>, concurrency: Option<usize>, max_waiting: usize) -> Arc<Lane> {
        let account = state.accounts.open(&Arc::from("test"));
        Lane::new(state, account, concurrency, max_waiting)
    }

    /// What somebody may do who comes, stands in a queue, or has a place. The last number picks one
    /// of those that there are.
    #[derive(Debug, Clone)]
    enum Op {
        Enter(usize),
        Take(usize),
        Look(usize),
        Occupy(usize),
        SetAside(usize),
        /// A ticket that may have come to its turn is looked at.
        Turn(usize),
        /// A place is given back, or a ticket given up, whether its turn has come or not.
        Drop(usize),
        Close,
        CutOff,
    }

    /// How many of a lane's may run, and how many wait.
    type Shape = (Option<usize>, usize);

    /// How many may run in all, the lanes, and what is done.
    fn ops() -> impl Strategy<Value = (usize, Vec<Shape>, Vec<Op>)> {
        let at = || 0..1000_usize;
        let op = prop_oneof![
            600 => at().prop_map(Op::Enter),
            100 => at().prop_map(Op::Take),
            50 => at().prop_map(Op::Look),
            150 => at().prop_map(Op::Occupy),
            50 => at().prop_map(Op::SetAside),
            200 => at().prop_map(Op::Turn),
            500 => at().prop_map(Op::Drop),
            1 => Just(Op::Close),
            1 => Just(Op::CutOff),
        ];
        let lane = (prop::option::of(1..4_usize), 0..4_usize);
        (1..6_usize, prop::collection::vec(lane, 1..5), prop::collection::vec(op, 1..150))
    }

    /// Somebody, as the model has them.
    #[derive(Debug, Clone, PartialEq)]
    struct Someone {
        number: usize,
        lane: usize,
        job: Option<JobId>,
        aside: bool,
    }

    /// The rules, written out: in one list whoever has a place, in another those who wait, in order
    /// of arrival.
    #[derive(Debug)]
    struct Model {
        max: usize,
        lanes: Vec<(usize, usize)>,
        placed: Vec<Someone>,
        waiting: VecDeque<Someone>,
        closed: bool,
        cut_off: bool,
        finished: usize,
        undecided: usize,
    }

    impl Model {
        fn placed(&self, lane: usize) -> usize {
            self.placed.iter().filter(|one| one.lane == lane).count()
        }

        fn waiting(&self, lane: usize) -> Vec<&Someone> {
            self.waiting.iter().filter(|one| one.lane == lane).collect()
        }

        /// `None` where there is a place.
        fn refusal(&self, lane: usize) -> Option<&'static str> {
            if self.closed {
                Some("draining")
            } else if self.placed.len() == self.max {
                Some("max_running")
            } else {
                (self.placed(lane) == self.lanes[lane].0).then_some("concurrency")
            }
        }

        fn refusal_in(&self, lane: usize) -> Option<&'static str> {
            let limit = self.refusal(lane)?;
            match self.lanes[lane].1 {
                _ if limit == "draining" => Some(limit),
                0 => Some(limit),
                max if self.waiting(lane).len() == max => Some("queue"),
                _ => None,
            }
        }

        /// One after another of those that wait has a place, the first of those with room.
        fn settle(&mut self) {
            let has_room = |model: &Self, one: &Someone| {
                !model.cut_off
                    && model.placed.len() < model.max
                    && model.placed(one.lane) < model.lanes[one.lane].0
            };
            while let Some(at) = self.waiting.iter().position(|one| has_room(self, one)) {
                self.placed.extend(self.waiting.remove(at));
            }
        }

        fn leave(&mut self, number: usize) {
            let gone = self.find(number).clone();
            self.placed.retain(|one| one.number != number);
            self.waiting.retain(|one| one.number != number);
            // What was cut off has no end of its own any more.
            self.finished += usize::from(gone.job.is_some());
            self.settle();
        }

        fn find(&mut self, number: usize) -> &mut Someone {
            let all = self.placed.iter_mut().chain(&mut self.waiting);
            all.into_iter().find(|one| one.number == number).unwrap()
        }
    }

    fn named(refusal: &Refusal) -> &'static str {
        match refusal {
            Refusal::Full(limit) => limit,
            Refusal::Draining => "draining",
            other => panic!("{other:?}"),
        }
    }

    /// The real ones beside the model.
    struct Pair {
        model: Model,
        state: Arc<State>,
        lanes: Vec<Arc<Lane>>,
        admissions: Vec<(usize, Admission)>,
        next: usize,
    }

    impl Pair {
        fn new(max: usize, lanes: Vec<Shape>) -> Self {
            let state = state(max);
            let real = lanes.iter().map(|(places, waiting)| lane(&state, *places, *waiting));
            let model = Model {
                max,
                lanes: lanes.iter().map(|(n, m)| (n.unwrap_or(max).min(max), *m)).collect(),
                placed: Vec::new(),
                waiting: VecDeque::new(),
                closed: false,
                cut_off: false,
                finished: 0,
                undecided: 0,
            };
            Self { lanes: real.collect(), model, state, admissions: Vec::new(), next: 0 }
        }

        fn places(&self) -> &Places {
            &self.state.places
        }

        fn come(&mut self, lane: usize, entered: Result<Admission, Refusal>, waits: bool) {
            let refused = match waits {
                true => self.model.refusal_in(lane),
                false => self.model.refusal(lane),
            };
            let admission = match entered {
                Err(refusal) => return assert_eq!(refused, Some(named(&refusal))),
                Ok(admission) => admission,
            };
            assert_eq!(refused, None);
            let (number, now) = (self.next, self.model.refusal(lane).is_none());
            self.next += 1;
            assert_eq!(matches!(admission, Admission::Now(_)), now);
            let one = Someone { number, lane, job: None, aside: false };
            match now {
                true => self.model.placed.push(one),
                false => self.model.waiting.push_back(one),
            }
            self.admissions.push((number, admission));
        }

        fn run(&mut self, op: &Op) {
            match *op {
                Op::Enter(lane) => {
                    let lane = lane % self.lanes.len();
                    self.come(lane, self.lanes[lane].enter(), true);
                }
                Op::Take(lane) => {
                    let lane = lane % self.lanes.len();
                    self.come(lane, self.lanes[lane].take().map(Admission::Now), false);
                }
                Op::Look(lane) => {
                    let lane = lane % self.lanes.len();
                    let found = |look: Result<(), Refusal>| look.err().as_ref().map(named);
                    assert_eq!(found(self.lanes[lane].look()), self.model.refusal(lane));
                    assert_eq!(found(self.lanes[lane].look_in()), self.model.refusal_in(lane));
                }
                Op::Close => {
                    self.places().close();
                    self.model.closed = true;
                }
                Op::CutOff => self.cut_off(),
                Op::Occupy(at) | Op::SetAside(at) | Op::Turn(at) | Op::Drop(at)
                    if !self.admissions.is_empty() =>
                {
                    let at = at % self.admissions.len();
                    match op {
                        Op::Occupy(_) => self.occupy(at),
                        Op::SetAside(_) => self.set_aside(at),
                        Op::Turn(_) => self.turn(at),
                        _ => {
                            let (number, admission) = self.admissions.swap_remove(at);
                            drop(admission);
                            self.model.leave(number);
                        }
                    }
                }
                _ => {}
            }
        }

        fn occupy(&mut self, at: usize) {
            let (number, admission) = &mut self.admissions[at];
            let one = self.model.find(*number);
            if one.job.is_some() {
                return;
            }
            let id = JobId::random().unwrap();
            let occupied = admission.occupy(id);
            assert_eq!(occupied.is_err(), self.model.cut_off);
            let one = self.model.find(*number);
            one.aside &= occupied.is_err();
            one.job = occupied.ok().map(|()| id);
        }

        fn set_aside(&mut self, at: usize) {
            let (number, admission) = &mut self.admissions[at];
            admission.set_aside();
            let one = self.model.find(*number);
            one.aside = true;
            let had_job = one.job.take().is_some();
            self.model.finished += usize::from(had_job);
        }

        /// A ticket has its place as soon as the model says so, and not before.
        fn turn(&mut self, at: usize) {
            let (number, admission) = &mut self.admissions[at];
            let has_place = self.model.placed.iter().any(|one| one.number == *number);
            let place = match admission {
                Admission::Now(_) => return assert!(has_place),
                Admission::Later(ticket) => match spawn(ticket.turn()).poll() {
                    Poll::Ready(place) => place,
                    Poll::Pending => return assert!(!has_place, "its turn has come"),
                },
            };
            assert!(has_place, "it is not its turn");
            *admission = Admission::Now(place);
        }

        fn cut_off(&mut self) {
            self.places().close();
            let mut cut = self.places().cut_off();
            self.model.cut_off = true;
            self.model.closed = true;
            let all = self.model.placed.iter_mut().chain(&mut self.model.waiting);
            let mut jobs: Vec<_> = all.filter_map(|one| one.job.take()).collect();
            self.model.undecided += jobs.len();
            cut.sort_unstable_by_key(JobId::to_string);
            jobs.sort_unstable_by_key(JobId::to_string);
            assert_eq!(cut, jobs);
        }

        /// That the ledger says what the model does, and that nobody waits for whom there is room.
        fn agree(&self) {
            let model = &self.model;
            let ledger = self.places().ledger();
            assert_eq!((ledger.taken, ledger.waiting), (model.placed.len(), model.waiting.len()));
            let mut all = model.placed.iter().chain(&model.waiting);
            let idle = all.all(|one| one.aside) && model.undecided == 0;
            assert_eq!(ledger.is_idle(), idle);
            let ends = ledger.ends;
            assert_eq!((ends.finished, ends.undecided), (model.finished, model.undecided));
            for (at, lane) in self.lanes.iter().enumerate() {
                let queue = &ledger.lanes[lane.index];
                assert_eq!(
                    (queue.taken, queue.waiting.len()),
                    (model.placed(at), model.waiting(at).len())
                );
                let is_full = queue.taken == queue.concurrency || ledger.taken == model.max;
                assert!(queue.waiting.is_empty() || is_full || model.cut_off);
                assert!(queue.waiting.iter().is_sorted_by_key(|waiting| waiting.ticket));
            }
            drop(ledger);
            for one in &model.placed {
                assert_eq!(one.job.and_then(|id| self.places().position(id)), None);
            }
            for (at, lane) in self.lanes.iter().enumerate() {
                for (before, one) in model.waiting(at).into_iter().enumerate() {
                    let Some(id) = one.job else { continue };
                    let abreast = self.places().abreast(lane);
                    let stands = Position { position: before + 1, abreast };
                    assert_eq!(self.places().position(id), Some(stands));
                }
            }
        }
    }

    /// What waits is given no place after a drain's deadline, so whoever leaves last may have none.
    #[test]
    fn the_last_one_to_leave_says_so_with_a_place_or_without() {
        let state = state(1);
        let lane = lane(&state, None, 1);
        let (Ok(place), Ok(ticket)) = (lane.enter(), lane.enter()) else { panic!("no room") };
        assert!(matches!((&place, &ticket), (Admission::Now(_), Admission::Later(_))));
        let mut idle = spawn(state.places.idle());
        state.places.close();
        state.places.cut_off();
        for last in [place, ticket] {
            assert!(idle.poll().is_pending());
            drop(last);
        }
        assert!(idle.is_woken() && idle.poll().is_ready());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_ledger_does_what_the_model_does((max, lanes, ops) in ops()) {
            let mut pair = Pair::new(max, lanes);
            for op in ops {
                pair.run(&op);
                pair.agree();
            }
            // When all have gone, nothing is left of them, nor of the lanes.
            let Pair { state, lanes, admissions, model, .. } = pair;
            drop((admissions, lanes));
            let ledger = state.places.ledger();
            prop_assert_eq!((ledger.taken, ledger.waiting, ledger.lanes.len()), (0, 0, 0));
            prop_assert!(ledger.jobs.is_empty() && ledger.stands.is_empty());
            prop_assert_eq!((ledger.ends.undecided, ledger.aside), (model.undecided, 0));
        }
    }
}
