//! The model: what the contract says becomes of requests, jobs, queues, keys and polls. It knows no
//! futures, no store and no HTTP, only a clock in milliseconds and what happens when.

use std::collections::BTreeMap;

pub const BUDGET: u64 = 10_000;
pub const LIMIT: u64 = 60_000;
pub const TTL: u64 = 97_000;
pub const WAIT: u64 = 20_000;
pub const DEADLINE: u64 = 30_000;
pub const MAX_RUNNING: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    After,
    Finished,
    Always,
    Queued,
    Keyed,
}

impl Route {
    pub const ALL: [Self; 5] =
        [Self::After, Self::Finished, Self::Always, Self::Queued, Self::Keyed];

    pub fn name(self) -> &'static str {
        ["after", "finished", "always", "queued", "keyed"][self as usize]
    }

    /// How many of its jobs run at once, and how many wait.
    pub fn places(self) -> (usize, usize) {
        match self {
            Self::Queued => (1, 2),
            Self::Keyed => (1, 2),
            _ => (MAX_RUNNING, 0),
        }
    }
}

pub type Owner = Option<u8>;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub route: Route,
    pub owner: Owner,
    /// Of a `Keyed` one.
    pub key: u8,
    pub body: u8,
    /// With `Prefer: respond-async`.
    pub asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    NotBegun,
    Runs,
    /// It has answered.
    Done,
    /// It has panicked, or was dropped.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// For this long at most.
    Waits(Option<u64>),
    Done,
}

struct Request {
    sent: Sent,
    client: Client,
    handler: Handler,
    /// When its budget runs out, while it is watched.
    budget: Option<u64>,
    /// Until when it runs without its client.
    left: Option<u64>,
    refused: bool,
    job: Option<usize>,
    ratio: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Queued,
    Running,
    /// With the handler's response.
    Answered(u16),
    /// By the last word of this problem's type.
    Failed(&'static str),
    Canceled,
}

impl State {
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    pub fn problem(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Failed(problem @ "timed-out") => (504, problem),
            Self::Failed(problem @ "interrupted") => (503, problem),
            Self::Failed(problem) => (500, problem),
            Self::Canceled => (410, "canceled"),
            _ => return None,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Job {
    pub request: usize,
    pub owner: Owner,
    pub state: State,
    pub ratio: Option<u8>,
    /// 1 is next.
    pub position: Option<usize>,
    route: Route,
    since: u64,
    removed: bool,
    expired: bool,
    claim: Option<(Owner, u8, u8)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Url {
    Job,
    Status,
    Result,
}

/// Who is given an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    Sender(usize),
    Poller(usize),
}

/// An answer; a job in it is as it stood then.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The response of this request's handler.
    Response(usize, u16),
    Panic,
    /// This status, with the document of the job.
    Document(u16, usize, Job),
    /// The response of this job's handler, told by the status service.
    Replay(usize, u16),
    Problem(u16, &'static str),
    NoContent,
}

/// What a drain has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    pub finished: usize,
    pub interrupted: usize,
}

struct Drain {
    deadline: u64,
    report: Report,
    over: bool,
    ended: bool,
}

struct Poll {
    job: usize,
    url: Url,
    until: u64,
    done: bool,
}

/// As `PolicyStats` has them, less the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    pub running: usize,
    pub queued: usize,
    pub stored: usize,
    pub refused: u64,
}

#[derive(Default)]
pub struct Model {
    now: u64,
    requests: Vec<Request>,
    jobs: Vec<Job>,
    /// Who waits for a place, in order of arrival.
    queue: Vec<usize>,
    polls: Vec<Poll>,
    refused: BTreeMap<Route, u64>,
    drain: Option<Drain>,
    /// What was answered since it was asked last.
    answers: BTreeMap<To, Answer>,
}

// ------------------------------------------------------------------------------- what is looked at

impl Model {
    pub fn take_answers(&mut self) -> BTreeMap<To, Answer> {
        std::mem::take(&mut self.answers)
    }

    pub fn handlers(&self) -> Vec<Handler> {
        self.requests.iter().map(|request| request.handler).collect()
    }

    pub fn running(&self) -> Vec<usize> {
        let runs = |number: &usize| self.requests[*number].handler == Handler::Runs;
        (0..self.requests.len()).filter(runs).collect()
    }

    pub fn waiting_clients(&self) -> Vec<usize> {
        let waits = |number: &usize| matches!(self.requests[*number].client, Client::Waits(_));
        (0..self.requests.len()).filter(waits).collect()
    }

    pub fn owner(&self, job: usize) -> Owner {
        self.jobs[job].owner
    }

    pub fn report(&self) -> Option<Report> {
        self.drain.as_ref().filter(|drain| drain.ended).map(|drain| drain.report)
    }

    pub fn numbers(&self, route: Route) -> Numbers {
        let count =
            |state| self.jobs.iter().filter(|job| job.route == route && job.state == state).count();
        let left = |request: &&Request| request.sent.route == route && request.left.is_some();
        Numbers {
            running: count(State::Running) + self.requests.iter().filter(left).count(),
            queued: count(State::Queued),
            stored: self.kept(route).count(),
            refused: self.refused.get(&route).copied().unwrap_or_default(),
        }
    }

    /// The jobs that the store keeps, and which response it keeps of each.
    pub fn kept(&self, route: Route) -> impl Iterator<Item = (usize, State, bool)> {
        let kept = move |job: &&Job| job.route == route && !job.expired;
        self.jobs.iter().filter(kept).map(|job| (job.request, job.state, job.removed))
    }

    /// The job as it stands.
    fn job(&self, job: usize) -> Job {
        let lane = |other: &&usize| self.jobs[**other].route == self.jobs[job].route;
        let position = self.queue.iter().filter(lane).position(|other| *other == job);
        Job { position: position.map(|at| at + 1), ..self.jobs[job].clone() }
    }
}

// ----------------------------------------------------------------------------------- what happens

impl Model {
    /// Time goes by: whatever is due happens, in its order.
    pub fn pass(&mut self, time: u64) {
        let until = self.now + time;
        while let Some((at, due)) = self.next().filter(|(at, _)| *at <= until) {
            self.now = at;
            self.happens(due);
        }
        self.now = until;
    }

    fn next(&self) -> Option<(u64, Due)> {
        let requests = self.requests.iter().enumerate().flat_map(|(number, request)| {
            let patience = match request.client {
                Client::Waits(until) => until.map(|at| (at, Due::Patience(number))),
                Client::Done => None,
            };
            let budget = request.budget.map(|at| (at, Due::Budget(number)));
            let left = request.left.map(|at| (at, Due::Left(number)));
            [patience, budget, left]
        });
        let jobs = self.jobs.iter().enumerate().map(|(number, job)| match job.state {
            State::Queued => None,
            State::Running => Some((job.since + LIMIT, Due::Limit(number))),
            _ => (!job.expired).then_some((job.since + TTL, Due::Expiry(number))),
        });
        let polls = self.polls.iter().enumerate();
        let polls = polls.map(|(at, poll)| (!poll.done).then_some((poll.until, Due::Poll(at))));
        let drain = self.drain.as_ref().filter(|drain| !drain.ended);
        let drain = drain.map(|drain| (drain.deadline, Due::Deadline));
        requests.chain(jobs).chain(polls).chain([drain]).flatten().min_by_key(|(at, _)| *at)
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Patience(number) => {
                let job = self.requests[number].job.expect("it waits for one");
                self.answer(To::Sender(number), Answer::Document(202, job, self.job(job)));
            }
            Due::Budget(number) => self.detach(number),
            Due::Left(number) => self.left_ends(number, Handler::Gone),
            Due::Limit(job) => self.end(job, State::Failed("timed-out"), Handler::Gone),
            Due::Expiry(job) => self.jobs[job].expired = true,
            Due::Poll(at) => self.answer_poll(at),
            Due::Deadline => self.cut_off(),
        }
    }

    fn answer(&mut self, to: To, answer: Answer) {
        match to {
            To::Sender(number) => self.requests[number].client = Client::Done,
            To::Poller(at) => self.polls[at].done = true,
        }
        assert!(self.answers.insert(to, answer).is_none(), "answered twice: {to:?}");
    }

    // ------------------------------------------------------------------------------- requests

    pub fn send(&mut self, sent: Sent) {
        let number = self.requests.len();
        self.requests.push(Request {
            sent,
            client: Client::Waits(None),
            handler: Handler::NotBegun,
            budget: None,
            left: None,
            refused: false,
            job: None,
            ratio: None,
        });
        let attached = matches!(sent.route, Route::After | Route::Finished);
        match (attached, sent.owner) {
            (true, _) => self.attach(number),
            (false, None) => self.answer(To::Sender(number), Answer::Problem(401, "no-owner")),
            (false, Some(_)) => self.defer(number),
        }
    }

    fn attach(&mut self, number: usize) {
        let request = &mut self.requests[number];
        request.handler = Handler::Runs;
        if request.sent.owner.is_some() {
            request.budget = Some(self.now + BUDGET);
            if request.sent.asked {
                self.detach(number);
            }
        }
    }

    fn detach(&mut self, number: usize) {
        self.requests[number].budget = None;
        let route = self.requests[number].sent.route;
        if self.room(route) {
            let job = self.accept(number, State::Running);
            self.answer(To::Sender(number), Answer::Document(202, job, self.job(job)));
        } else {
            self.requests[number].refused = true;
            self.refuse(route);
        }
    }

    /// A request that is a job from the start, or nothing.
    fn defer(&mut self, number: usize) {
        let Sent { route, asked, .. } = self.requests[number].sent;
        let (_, waiting) = route.places();
        let lane = self.queue.iter().filter(|job| self.jobs[**job].route == route).count();
        let job = if let Some(holder) = self.holder(number) {
            if self.jobs[holder].claim != self.claim(number) {
                let reused = Answer::Problem(422, "idempotency-key-reused");
                return self.answer(To::Sender(number), reused);
            }
            holder
        } else if self.drain.is_some() {
            self.refuse(route);
            return self.answer(To::Sender(number), Answer::Problem(503, "shutting-down"));
        } else if self.room(route) {
            self.accept(number, State::Running)
        } else if lane < waiting {
            self.accept(number, State::Queued)
        } else {
            self.refuse(route);
            return self.answer(To::Sender(number), Answer::Problem(503, "limit-reached"));
        };
        self.requests[number].job = Some(job);
        if self.jobs[job].state.is_end() {
            let told = self.told(job);
            self.answer(To::Sender(number), told);
        } else if route == Route::Keyed && !asked {
            self.requests[number].client = Client::Waits(Some(self.now + BUDGET));
        } else {
            self.answer(To::Sender(number), Answer::Document(202, job, self.job(job)));
        }
    }

    fn claim(&self, number: usize) -> Option<(Owner, u8, u8)> {
        let Sent { route, owner, key, body, .. } = self.requests[number].sent;
        (route == Route::Keyed).then_some((owner, key, body))
    }

    /// The job that has this request's key.
    fn holder(&self, number: usize) -> Option<usize> {
        let (owner, key, _) = self.claim(number)?;
        let holds = |job: &Job| {
            !job.expired && job.claim.is_some_and(|claim| (claim.0, claim.1) == (owner, key))
        };
        self.jobs.iter().position(holds)
    }

    fn accept(&mut self, number: usize, state: State) -> usize {
        let job = self.jobs.len();
        let claim = self.claim(number);
        let request = &mut self.requests[number];
        request.job = Some(job);
        if state == State::Running {
            request.handler = Handler::Runs;
        } else {
            self.queue.push(job);
        }
        self.jobs.push(Job {
            request: number,
            owner: request.sent.owner,
            state,
            ratio: request.ratio,
            position: None,
            route: request.sent.route,
            since: self.now,
            removed: false,
            expired: false,
            claim,
        });
        job
    }

    fn refuse(&mut self, route: Route) {
        *self.refused.entry(route).or_default() += 1;
    }

    /// What the sender of a request with a key is told, whose job has ended.
    fn told(&self, job: usize) -> Answer {
        match self.jobs[job].state {
            _ if self.jobs[job].removed => Answer::Problem(410, "removed"),
            State::Answered(status) => Answer::Response(self.jobs[job].request, status),
            state => {
                let (status, problem) = state.problem().expect("it has ended");
                Answer::Problem(status, problem)
            }
        }
    }

    /// The client leaves.
    pub fn leave(&mut self, number: usize) {
        let request = &mut self.requests[number];
        request.client = Client::Done;
        if request.job.is_some() {
            return;
        }
        let watched = request.sent.owner.is_some();
        request.budget = None;
        let (route, refused) = (request.sent.route, request.refused);
        if route == Route::Finished && watched {
            if self.room(route) {
                self.requests[number].left = Some(self.now + LIMIT);
                return;
            }
            if !refused {
                self.refuse(route);
            }
        }
        self.requests[number].handler = Handler::Gone;
    }

    // ------------------------------------------------------------------------------- handlers

    pub fn respond(&mut self, number: usize, status: u16) {
        match self.runs_as(number) {
            Runs::Attached => {
                self.attached_ends(number, Handler::Done, Answer::Response(number, status));
            }
            Runs::Left => self.left_ends(number, Handler::Done),
            Runs::Job(job) => self.end(job, State::Answered(status), Handler::Done),
        }
    }

    pub fn panic(&mut self, number: usize) {
        match self.runs_as(number) {
            Runs::Attached => self.attached_ends(number, Handler::Gone, Answer::Panic),
            Runs::Left => self.left_ends(number, Handler::Gone),
            Runs::Job(job) => self.end(job, State::Failed("panicked"), Handler::Gone),
        }
    }

    pub fn progress(&mut self, number: usize, ratio: u8) {
        self.requests[number].ratio = Some(ratio);
        if let Some(job) = self.requests[number].job {
            self.jobs[job].ratio = Some(ratio);
        }
    }

    fn runs_as(&self, number: usize) -> Runs {
        match (self.requests[number].job, self.requests[number].left) {
            (Some(job), _) => Runs::Job(job),
            (None, Some(_)) => Runs::Left,
            (None, None) => Runs::Attached,
        }
    }

    fn attached_ends(&mut self, number: usize, handler: Handler, answer: Answer) {
        self.requests[number].budget = None;
        self.requests[number].handler = handler;
        self.answer(To::Sender(number), answer);
    }

    /// A handler without a client ends.
    fn left_ends(&mut self, number: usize, handler: Handler) {
        self.requests[number].left = None;
        self.requests[number].handler = handler;
        self.count(false);
        self.hand_on();
    }

    // ----------------------------------------------------------------------------------- jobs

    /// Whether there is room for one more job of this route.
    fn room(&self, route: Route) -> bool {
        self.drain.is_none() && self.has_place(route)
    }

    fn has_place(&self, route: Route) -> bool {
        let taken = |route| self.numbers(route).running;
        taken(route) < route.places().0
            && Route::ALL.into_iter().map(taken).sum::<usize>() < MAX_RUNNING
    }

    /// Gives free places to those that wait.
    fn hand_on(&mut self) {
        let over = self.drain.as_ref().is_some_and(|drain| drain.over);
        let open = |job: &usize| self.has_place(self.jobs[*job].route);
        if let Some(at) = self.queue.iter().position(open).filter(|_| !over) {
            let job = self.queue.remove(at);
            self.jobs[job].state = State::Running;
            self.jobs[job].since = self.now;
            let request = self.jobs[job].request;
            self.requests[request].handler = Handler::Runs;
            return self.hand_on();
        }
        let idle = Route::ALL.into_iter().all(|route| {
            let Numbers { running, queued, .. } = self.numbers(route);
            running + queued == 0
        });
        if let Some(drain) = &mut self.drain {
            drain.ended |= idle;
        }
    }

    fn count(&mut self, interrupted: bool) {
        if let Some(drain) = self.drain.as_mut().filter(|drain| !drain.ended) {
            drain.report.interrupted += usize::from(interrupted);
            drain.report.finished += usize::from(!interrupted);
        }
    }

    fn end(&mut self, job: usize, state: State, handler: Handler) {
        let was_queued = self.jobs[job].state == State::Queued;
        self.jobs[job].state = state;
        self.jobs[job].since = self.now;
        if was_queued {
            self.jobs[job].claim = None;
            self.queue.retain(|other| *other != job);
        } else {
            let request = self.jobs[job].request;
            self.requests[request].handler = handler;
        }
        self.count(state == State::Failed("interrupted"));
        for number in 0..self.requests.len() {
            let Request { job: theirs, client, .. } = self.requests[number];
            if theirs == Some(job) && client != Client::Done {
                let told = self.told(job);
                self.answer(To::Sender(number), told);
            }
        }
        for at in 0..self.polls.len() {
            if self.polls[at].job == job && !self.polls[at].done {
                self.answer_poll(at);
            }
        }
        self.hand_on();
    }

    pub fn drain(&mut self) {
        self.drain = Some(Drain {
            deadline: self.now + DEADLINE,
            report: Report::default(),
            over: false,
            ended: false,
        });
        self.hand_on();
    }

    fn cut_off(&mut self) {
        self.drain.as_mut().expect("it has a deadline").over = true;
        for number in 0..self.requests.len() {
            if self.requests[number].left.take().is_some() {
                self.requests[number].handler = Handler::Gone;
                self.count(true);
            }
        }
        for job in 0..self.jobs.len() {
            if !self.jobs[job].state.is_end() {
                self.end(job, State::Failed("interrupted"), Handler::Gone);
            }
        }
        self.hand_on();
    }

    // ---------------------------------------------------------------------------------- polls

    /// The number of a poll that is being made.
    fn poll(&mut self, job: usize, url: Url) -> usize {
        self.polls.push(Poll { job, url, until: u64::MAX, done: false });
        self.polls.len() - 1
    }

    fn is_hidden(&self, job: usize, owner: Owner) -> bool {
        self.jobs[job].expired || owner.is_none() || owner != self.jobs[job].owner
    }

    pub fn get(&mut self, job: usize, url: Url, owner: Owner, waits: bool) {
        let at = self.poll(job, url);
        if self.is_hidden(job, owner) {
            self.answer(To::Poller(at), Answer::Problem(404, "unknown-job"));
        } else if waits && !self.jobs[job].state.is_end() {
            self.polls[at].until = self.now + WAIT;
        } else {
            self.answer_poll(at);
        }
    }

    fn answer_poll(&mut self, at: usize) {
        let Poll { job: number, url, .. } = self.polls[at];
        let job = self.job(number);
        let answer = match (url, job.state) {
            _ if job.removed => Answer::Problem(410, "removed"),
            (Url::Status, _) => Answer::Document(200, number, job),
            (Url::Job, state) if state.is_end() => Answer::Document(303, number, job),
            (Url::Result, State::Answered(status)) => Answer::Replay(job.request, status),
            (Url::Result, state) if state.is_end() => {
                let (status, problem) = state.problem().expect("it has no response");
                Answer::Problem(status, problem)
            }
            _ => Answer::Document(202, number, job),
        };
        self.answer(To::Poller(at), answer);
    }

    pub fn delete(&mut self, job: usize, url: Url, owner: Owner) {
        let to = To::Poller(self.poll(job, url));
        // Before the cancellation itself, or it would be answered as those that wait for the job.
        let To::Poller(at) = to else { unreachable!() };
        self.polls[at].done = true;
        let removes = url == Url::Result;
        let answer = if self.is_hidden(job, owner) {
            Answer::Problem(404, "unknown-job")
        } else if !self.jobs[job].state.is_end() {
            self.end(job, State::Canceled, Handler::Gone);
            Answer::Document(200, job, self.job(job))
        } else if removes {
            self.jobs[job].removed = true;
            Answer::NoContent
        } else if self.jobs[job].state == State::Canceled {
            Answer::Document(200, job, self.job(job))
        } else {
            Answer::Document(409, job, self.job(job))
        };
        self.answer(to, answer);
    }
}

/// What is due at a time.
enum Due {
    Patience(usize),
    Budget(usize),
    Left(usize),
    Limit(usize),
    Expiry(usize),
    Poll(usize),
    Deadline,
}

/// What a handler that runs is.
enum Runs {
    Attached,
    /// Without a client.
    Left,
    Job(usize),
}
