//! The scheduler: one virtual time for clients, nodes, servers and the network between them.
//!
//! ```text
//! clients ──requests──▶ nodes ──bytes──▶ servers
//!    ▲  each a runtime  │  ▲                │
//!    └─────answers──────┘  └─────bytes──────┘
//! ```
//!
//! Time goes from event to event. Before each event the clients and then each node run until its time, one
//! after another; what they send meanwhile arrives a millisecond later at the earliest, so that no part
//! depends on another within a step.

use std::{collections::BTreeMap, time::Duration};

use http::Request;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    client,
    facts::{Fact, Millis},
    history::{History, Op},
    leases::Leases,
    links::{Fate, Link},
    log::Log,
    net::{LinkId, Net},
    node::Node,
    port::{self, CallId, Port, Reply},
    rng::Rng,
    scenario::Scenario,
    site::Site,
    warnings::Warnings,
};

/// The longest step.
const STEP: Millis = 20;

/// No run lasts longer than this after its faults are over.
pub const BOUND: Millis = 60_000;

/// What a run was.
#[derive(Debug)]
pub struct Run {
    /// Its story, a line for each event.
    pub story: Vec<String>,
    /// What happened.
    pub facts: Vec<Fact>,
    /// All calls of stores.
    pub history: Vec<Op>,
    /// How many events the scheduler has handled.
    pub events: u64,
}

/// Something that happens at its time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A node's wish for a link arrives.
    Dial(LinkId),
    /// Bytes arrive at a server.
    ToServer(LinkId, Vec<u8>, Fate),
    /// Bytes arrive at a node.
    ToNode(LinkId, Vec<u8>),
    /// A server learns that a link is closed.
    ServerCloses(LinkId),
    /// A node learns that a link is closed.
    NodeCloses(LinkId),
    /// A request arrives at a node.
    Request(usize, CallId, Box<Request<String>>),
    /// An answer arrives at a client.
    Answer(CallId, Option<Reply>),
    /// A node learns that a client has gone.
    Gone(CallId),
    /// A node begins.
    Start(usize),
    /// A fault happens.
    Fault,
    /// A server has memory again.
    Memory(usize),
    /// A server that was silent is not, unless it is for longer.
    Heard(usize),
    /// All servers go away: first what they send, then they themselves.
    Away(bool),
    /// Faults are over.
    Quiet,
}

/// All of a run.
#[derive(Debug)]
pub struct World {
    pub(crate) now: Millis,
    pub(crate) rng: Rng,
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) log: Log,
    pub(crate) history: History,
    pub(crate) net: Net,
    port: Port,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) begun: Vec<u32>,
    /// Until when a node reaches no server.
    pub(crate) apart_until: Vec<Millis>,
    pub(crate) sites: Vec<Site>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) leases: Leases,
    calls: BTreeMap<CallId, usize>,
    queue: BTreeMap<(Millis, u64), Event>,
    events: u64,
    clients: Runtime,
    began: Instant,
}

impl World {
    /// Prepares the run of a seed. `filter` is applied to the text of each script.
    pub fn new(seed: u64, filter: &Option<crate::Filter>) -> Self {
        let scenario = Scenario::of(seed);
        let rng = Rng::new(seed);
        let clients = Builder::new_current_thread().enable_time().start_paused(true).build();
        #[expect(clippy::expect_used, reason = "nothing to go on with")]
        let clients = clients.expect("a runtime without I/O needs nothing");
        let log = Log::default();
        let site = |index: usize| {
            let mut site = Site::new(rng.fork(100 + index as u64).bits(), &scenario);
            if let Some(filter) = filter.clone() {
                site.server.set_script_filter(move |text| filter(text));
            }
            site
        };
        Self {
            now: 0,
            seed,
            sites: (0..scenario.servers).map(site).collect(),
            nodes: (0..scenario.nodes).map(|_| None).collect(),
            begun: vec![0; scenario.nodes],
            apart_until: vec![0; scenario.nodes],
            history: History::new(&log),
            log,
            rng: rng.fork(2),
            scenario,
            net: Net::default(),
            port: Port::default(),
            links: BTreeMap::new(),
            leases: Leases::default(),
            calls: BTreeMap::new(),
            queue: BTreeMap::new(),
            events: 0,
            began: clients.block_on(async { Instant::now() }),
            clients,
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> Run {
        let warnings = Warnings(self.log.clone());
        tracing::subscriber::with_default(warnings, || self.run_to_its_end())
    }

    fn run_to_its_end(mut self) -> Run {
        self.log.tell(format!("{:?}", self.scenario));
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.after(self.scenario.quiet_at, Event::Quiet);
        if let Some(at) = self.scenario.away_at {
            self.after(at, Event::Away(false));
        }
        if let Some(every) = self.scenario.faults.every {
            let first = self.rng.between(500, 2 * every);
            self.after(first, Event::Fault);
        }
        let clients = client::all(&self.scenario, &self.rng.fork(3), &self.port, &self.log);
        let clients = self.clients.spawn(clients);
        while !clients.is_finished() && self.now < self.scenario.quiet_at + 2 * BOUND {
            self.step();
        }
        if !clients.is_finished() {
            self.log.note(Fact::Wrong("the clients did not come to their end".to_owned()));
        }
        self.finish(clients)
    }

    fn finish(mut self, clients: JoinHandle<()>) -> Run {
        if clients.is_finished()
            && let Err(error) = self.clients.block_on(clients)
        {
            self.log.note(Fact::Wrong(format!("a client failed: {error}")));
        }
        self.nodes.clear();
        let (story, facts) = self.log.take();
        Run { story, facts, history: self.history.take(), events: self.events }
    }

    fn step(&mut self) {
        let is_away = self.sites.first().is_some_and(|site| site.down_until > self.now + STEP);
        let longest = self.now + if is_away { 5 * STEP } else { STEP };
        let until = self.queue.first_key_value().map_or(longest, |(key, _)| key.0.min(longest));
        self.log.set_step(self.now, until);
        let target = self.began + Duration::from_millis(until);
        self.clients.block_on(async {
            if target > Instant::now() {
                tokio::time::sleep_until(target).await;
            }
        });
        self.take_requests();
        for index in 0..self.nodes.len() {
            self.step_node(index, until);
        }
        self.now = until;
        self.log.set_step(until, until);
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) {
            let event = entry.remove();
            self.events += 1;
            self.handle(event);
        }
    }

    fn step_node(&mut self, index: usize, until: Millis) {
        let Some(node) = &mut self.nodes[index] else { return };
        self.log.set_place(Some(index));
        node.step(until);
        self.log.set_place(None);
        for (call, answer) in node.answers() {
            self.calls.remove(&call);
            let latency = self.rng.between(1, 3);
            self.at(until + latency, Event::Answer(call, answer));
        }
        self.take_bytes(until);
        self.look_at_leases();
        for doomed in self.log.doomed() {
            self.kill(doomed);
        }
    }

    pub(crate) fn at(&mut self, time: Millis, event: Event) {
        self.events += 1;
        self.queue.insert((time, self.events), event);
    }

    pub(crate) fn after(&mut self, time: Millis, event: Event) {
        self.at(self.now + time, event);
    }

    fn take_requests(&mut self) {
        for sent in self.port.sent() {
            let latency = self.rng.between(1, 3);
            match sent {
                port::Sent::Request(call, node, request) => {
                    self.after(latency, Event::Request(node, call, request));
                }
                port::Sent::Gone(call) => self.after(latency + 3, Event::Gone(call)),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Dial(link) => self.dialed(link),
            Event::ToServer(link, bytes, fate) => self.arrived(link, bytes, fate),
            Event::ToNode(link, bytes) => {
                if self.links.get(&link).is_some_and(|state| !state.is_cut) {
                    self.net.deliver(link, &bytes);
                }
            }
            Event::ServerCloses(link) => {
                if let Some(state) = self.links.remove(&link) {
                    self.sites[state.server].disconnect(link);
                }
            }
            Event::NodeCloses(link) => self.net.close(link),
            Event::Request(node, call, request) => {
                let node_of = self.nodes[node].as_mut();
                match node_of.and_then(|node| node.call(call, *request)) {
                    Some(()) => drop(self.calls.insert(call, node)),
                    None => self.after(1, Event::Answer(call, None)),
                }
            }
            Event::Answer(call, answer) => self.port.answer(call, answer),
            Event::Gone(call) => {
                let node = self.calls.remove(&call);
                if let Some(node) = node.and_then(|node| self.nodes[node].as_mut()) {
                    node.hang_up(call);
                }
            }
            Event::Start(node) => self.start(node),
            Event::Fault => self.fault(),
            Event::Memory(server) => {
                self.sites[server].server.set_maxmemory(None);
                self.log.tell(format!("s{server} has memory again"));
            }
            Event::Away(is_begun) => self.away(is_begun),
            Event::Heard(server) => self.heard(server),
            Event::Quiet => self.quiet(),
        }
    }

    /// Begins a node where there is none.
    pub(crate) fn start(&mut self, index: usize) {
        if self.nodes[index].is_some() {
            return;
        }
        self.begun[index] += 1;
        let name = (index, self.begun[index]);
        self.log.tell(format!("n{index} begins, as number {}", name.1));
        let rng = Rng::new(self.seed).fork(1000 + 100 * index as u64 + u64::from(name.1));
        let node = Node::start(name, &self.scenario, &self.net, &self.log, &self.history, rng);
        self.nodes[index] = Some(node);
    }

    /// Ends a node where it stands.
    pub(crate) fn kill(&mut self, index: usize) {
        let Some(mut node) = self.nodes[index].take() else { return };
        self.log.tell(format!("n{index} is gone"));
        self.trouble(index);
        if self.sites.is_empty() {
            // What is in memory is gone with its process.
            let jobs = self.history.jobs().into_iter().map(|job| job.to_string()).collect();
            self.log.note(Fact::Lost { jobs, at: self.now });
        }
        for call in node.kill() {
            self.calls.remove(&call);
            self.after(1, Event::Answer(call, None));
        }
        let away = self.rng.between(100, 4000);
        self.after(away, Event::Start(index));
    }
}
