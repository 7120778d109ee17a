//! The ledger of places: who has one, who waits, and who is next. Bookkeeping and no more: it wakes
//! nobody and drops nothing that others have a say in, so it can be kept under a lock.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use slab::Slab;
use tokio::sync::oneshot;

use super::{Account, Lane, Place, Refusal};
use crate::job::{IdHash, JobId};

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Places that are taken: by jobs, and by requests that are about to become jobs.
    pub(super) taken: usize,
    /// How many wait for a place.
    pub(super) waiting: usize,
    /// How many of both nothing depends on.
    pub(super) aside: usize,
    pub(super) lanes: Slab<Queue>,
    pub(super) next_ticket: u64,
    /// The jobs that were promised to somebody.
    pub(super) jobs: Slab<JobId>,
    /// Where those of them stand that wait.
    pub(super) stands: HashMap<JobId, Stand, IdHash>,
    /// Work that goes on after its client has left, without a job.
    pub(super) unlisted: usize,
    /// What became of both.
    pub(super) ends: Ends,
    /// No more places are given to whoever comes.
    pub(super) draining: bool,
    /// No more jobs are promised or begun either: a drain has reached its deadline.
    pub(super) over: bool,
}

/// A lane as the ledger keeps it.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) account: Arc<Account>,
    pub(super) concurrency: usize,
    pub(super) max_waiting: usize,
    pub(super) taken: usize,
    /// In order of their tickets.
    pub(super) waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) lane: Arc<Lane>,
    pub(super) turn: oneshot::Sender<Place>,
    /// The job that waits, once it was promised.
    pub(super) job: Option<JobId>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Stand {
    pub(super) lane: usize,
    pub(super) ticket: u64,
}

impl Queue {
    pub(super) fn new(account: Arc<Account>, concurrency: usize, max_waiting: usize) -> Self {
        Self { account, concurrency, max_waiting, taken: 0, waiting: VecDeque::new() }
    }
}

impl Ledger {
    pub(super) fn room(&self, lane: usize, max: usize) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.lanes[lane].taken == self.lanes[lane].concurrency && self.taken < max {
            return Err(Refusal::Full("concurrency"));
        }
        if self.taken == max {
            return Err(Refusal::Full("max_running"));
        }
        Ok(())
    }

    /// Whether one more may wait, `limit` being why it has to.
    pub(super) fn room_to_wait(&self, lane: usize, limit: &'static str) -> Result<(), Refusal> {
        let Queue { waiting, max_waiting, .. } = &self.lanes[lane];
        match max_waiting {
            0 => Err(Refusal::Full(limit)),
            max if waiting.len() >= *max => Err(Refusal::Full("queue")),
            _ => Ok(()),
        }
    }

    pub(super) fn take(&mut self, lane: usize) {
        self.taken += 1;
        self.lanes[lane].taken += 1;
    }

    pub(super) fn wait(&mut self, lane: &Arc<Lane>, turn: oneshot::Sender<Place>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting += 1;
        let waiting = Waiting { ticket, lane: Arc::clone(lane), turn, job: None };
        self.lanes[lane.index].waiting.push_back(waiting);
        ticket
    }

    /// Promises a job. Whoever waits under a ticket has the job stand where they do.
    pub(super) fn promise(&mut self, id: JobId, ticket: Option<Stand>) -> usize {
        if let Some(stand) = ticket {
            if let Some(at) = self.at(stand) {
                let before = self.lanes[stand.lane].waiting[at].job.replace(id);
                before.map(|before| self.stands.remove(&before));
                self.stands.insert(id, stand);
            }
        }
        self.jobs.insert(id)
    }

    /// How many are in front of whoever waits there.
    pub(super) fn at(&self, stand: Stand) -> Option<usize> {
        let waiting = &self.lanes[stand.lane].waiting;
        waiting.binary_search_by_key(&stand.ticket, |waiting| waiting.ticket).ok()
    }

    /// Takes whoever waits there out of the queue.
    pub(super) fn leave(&mut self, stand: Stand) -> Option<Waiting> {
        let at = self.at(stand)?;
        let waiting = &mut self.lanes[stand.lane].waiting;
        let left = waiting.remove(at)?;
        if waiting.is_empty() && waiting.capacity() > 1024 {
            waiting.shrink_to_fit();
        }
        self.waiting -= 1;
        if let Some(id) = left.job {
            self.stands.remove(&id);
        }
        if self.stands.is_empty() && self.stands.capacity() > 1024 {
            self.stands.shrink_to_fit();
        }
        Some(left)
    }

    /// Takes a place for the one that has waited longest of those whose lane has room.
    pub(super) fn grant(&mut self, max: usize) -> Option<Waiting> {
        if self.waiting == 0 || self.over || self.taken == max {
            return None;
        }
        let open = self.lanes.iter().filter(|(_, lane)| lane.taken < lane.concurrency);
        let first = |(index, lane): (usize, &Queue)| Some((lane.waiting.front()?.ticket, index));
        let (ticket, lane) = open.filter_map(first).min()?;
        let next = self.leave(Stand { lane, ticket })?;
        self.take(lane);
        Some(next)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.taken + self.waiting == self.aside && self.ends.undecided == 0
    }

    /// What a place was taken for is over. Of what was cut off before, the end is told already, or
    /// the store has to say which it was.
    pub(super) fn end(&mut self, purpose: Purpose) {
        let open = match purpose {
            Purpose::Nothing => false,
            Purpose::Aside => {
                self.aside -= 1;
                false
            }
            Purpose::Unlisted => {
                let left = self.unlisted.checked_sub(1);
                self.unlisted = left.unwrap_or(0);
                left.is_some()
            }
            // Of jobs that were cut off nothing is left, and no others have taken their keys since.
            Purpose::Job(key) => self.jobs.try_remove(key).is_some(),
        };
        self.ends.finished += usize::from(open);
        if self.jobs.is_empty() && self.jobs.capacity() > 1024 {
            self.jobs.shrink_to_fit();
        }
    }

    /// Promises and begins no more, and takes out what has not ended: the jobs, for the store to
    /// say what becomes of each.
    pub(super) fn cut_off(&mut self) -> Vec<JobId> {
        self.over = true;
        self.ends.interrupted += std::mem::take(&mut self.unlisted);
        let jobs: Vec<_> = std::mem::take(&mut self.jobs).into_iter().map(|(_, id)| id).collect();
        self.stands.clear();
        self.ends.undecided += jobs.len();
        jobs
    }

    /// Whether a job that was cut off has ended by that, or before; `None` where nobody knows.
    pub(super) fn decide(&mut self, interrupted: Option<bool>) {
        self.ends.undecided -= 1;
        match interrupted {
            Some(true) => self.ends.interrupted += 1,
            Some(false) => self.ends.finished += 1,
            None => {}
        }
    }
}

/// What became of all that was ever promised.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ends {
    pub(super) finished: usize,
    pub(super) interrupted: usize,
    /// Jobs that were cut off, and of which the store has not said yet whether they had ended.
    pub(super) undecided: usize,
}

/// What a place is taken for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Nothing yet that was promised.
    Nothing,
    /// Nothing that anybody waits for: a registration is being undone, say.
    Aside,
    /// The handler of a client that has left.
    Unlisted,
    /// The job that has this key in the ledger.
    Job(usize),
}
