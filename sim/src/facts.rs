//! What happened in a run, as facts for the oracle.

/// Virtual milliseconds since the run began.
pub type Millis = u64;

/// The routes of the simulated app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// `Policy::after`, with `finish_on_disconnect`.
    After,
    /// `Policy::always`.
    Always,
    /// `Policy::always` with a concurrency and a queue.
    Queue,
    /// `Policy::after`, idempotent, with a concurrency and a queue.
    Keyed,
    /// `Policy::always`, durable.
    Durable,
    /// `Policy::always`, durable and idempotent.
    DurableKeyed,
}

impl Route {
    /// All routes.
    pub const ALL: [Self; 6] =
        [Self::After, Self::Always, Self::Queue, Self::Keyed, Self::Durable, Self::DurableKeyed];

    /// Returns the route's path.
    pub fn path(self) -> &'static str {
        match self {
            Self::After => "/after",
            Self::Always => "/always",
            Self::Queue => "/queue",
            Self::Keyed => "/keyed",
            Self::Durable => "/durable",
            Self::DurableKeyed => "/durable-keyed",
        }
    }

    /// Returns whether its jobs outlive their process.
    pub fn is_durable(self) -> bool {
        matches!(self, Self::Durable | Self::DurableKeyed)
    }

    /// Returns whether the jobs of this path outlive their process.
    pub fn is_path_durable(path: &str) -> bool {
        Self::ALL.into_iter().any(|route| route.is_durable() && route.path() == path)
    }

    /// Returns whether its requests have a key.
    pub fn is_keyed(self) -> bool {
        matches!(self, Self::Keyed | Self::DurableKeyed)
    }
}

/// A piece of work that a client wants done. Each request without a key is one of its own; requests
/// with the same key are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its number, which is in the request and in the response.
    pub tag: u64,
    /// Where it is sent.
    pub route: Route,
    /// Who sends it.
    pub owner: u8,
    /// How long its handler takes, in milliseconds.
    pub time: u64,
    /// What its handler does after that.
    pub then: &'static str,
    /// Which closure of the app panics on it.
    pub panics: &'static str,
}

/// What a client was told of a job by one answer of the status service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The document of a job that has not ended: its status, and which attempt it is.
    Open {
        /// `queued` or `running`.
        status: String,
        /// Of a durable job: how often it was begun.
        attempt: Option<u64>,
        /// Where it stands in its node's queue.
        position: Option<u64>,
    },
    /// The document of a job that has ended.
    Ended(Ending),
    /// The replayed response: status, and body.
    Outcome(u16, String),
    /// A problem in place of the response: its type's last word.
    Problem(String),
    /// The result was removed, now or before.
    Removed,
    /// No such job.
    Unknown,
    /// The status service could not tell (503), or the request was lost.
    Nothing,
    /// Anything else, which no client expects.
    Odd(String),
}

impl Told {
    /// Whether it says that the job was canceled.
    pub fn is_canceled(&self) -> bool {
        match self {
            Self::Ended(ending) => ending.status == "canceled",
            Self::Problem(kind) => kind == "canceled",
            _ => false,
        }
    }
}

/// How a job ended, as its document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// `succeeded`, `failed` or `canceled`.
    pub status: String,
    /// The last word of the problem's type, if there is one.
    pub problem: Option<String>,
    /// The status of the handler's response, if there is one.
    pub response: Option<u64>,
    /// When, as the document says.
    pub finished_at: String,
    /// How often a durable job was begun.
    pub attempt: Option<u64>,
}

/// What a client asked the status service for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// `GET` of the status document.
    Status,
    /// `GET` of the job.
    Job,
    /// `GET` of the result.
    Result,
    /// `DELETE` of the job.
    Cancel,
    /// `DELETE` of the result.
    Remove,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A client sent a request.
    Sent(Task),
    /// It was answered 202.
    Accepted {
        /// Which task.
        task: Task,
        /// The job's id.
        job: String,
        /// When the answer came.
        at: Millis,
        /// When the request was sent.
        sent: Millis,
        /// Which node answered, and its incarnation.
        node: (usize, u32),
    },
    /// It was answered by the handler's response.
    Answered {
        /// Which task.
        task: Task,
        /// The response's status.
        status: u16,
        /// The response's body.
        body: String,
        /// Whether faults were over when it was sent.
        quiet: bool,
    },
    /// It was refused by a problem of the layer's.
    Refused {
        /// Which task.
        task: Task,
        /// The problem's status.
        status: u16,
        /// The last word of its type.
        kind: String,
        /// When it was sent.
        sent: Millis,
        /// Whether faults were over when it was sent.
        quiet: bool,
    },
    /// A client asked for a job.
    Asked {
        /// The job's id.
        job: String,
        /// Who asked.
        owner: u8,
        /// What for.
        question: Question,
        /// When the request was sent.
        from: Millis,
        /// When the answer came.
        to: Millis,
        /// What it said.
        told: Told,
    },
    /// A handler began.
    Began(Execution),
    /// A handler came to its end; what it answered, if it did.
    Ended {
        /// Which execution.
        run: u64,
        /// The status and body of its response; none if it panicked or failed.
        response: Option<u16>,
        /// When.
        at: Millis,
    },
    /// A handler was dropped before its end.
    Dropped {
        /// Which execution.
        run: u64,
        /// When.
        at: Millis,
    },
    /// Something that can cost a node its lease, or what it has not written.
    Trouble {
        /// Which node.
        node: usize,
        /// When it began.
        at: Millis,
    },
    /// A node was asked to shut down.
    Drained {
        /// Which node.
        node: usize,
        /// When.
        at: Millis,
    },
    /// A server lost writes; these jobs are not as they were before, or are not there.
    Lost {
        /// The jobs' ids.
        jobs: Vec<String>,
        /// When.
        at: Millis,
    },
    /// A server's clock was set.
    Clock {
        /// By so many milliseconds.
        by: i64,
    },
    /// From now on there are no faults.
    Quiet {
        /// When.
        at: Millis,
    },
    /// Something that must not be, seen while the run went on.
    Wrong(String),
}

/// One run of a handler.
#[derive(Debug, Clone)]
pub struct Execution {
    /// Its number.
    pub run: u64,
    /// What it works on.
    pub tag: u64,
    /// Where, and in which incarnation.
    pub node: (usize, u32),
    /// Which attempt its job says that it is; 0 if it is not durable.
    pub attempt: u16,
    /// The job, if the handler asked for it.
    pub job: Option<String>,
    /// When it began.
    pub at: Millis,
}
