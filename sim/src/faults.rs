//! What goes wrong at some moment, and how it is all mended in the end.

use std::time::Duration;

use tower_offload::JobId;

use crate::{
    facts::{Fact, Millis},
    links::Link,
    scenario::{AWAY, Kind},
    world::{Event, World},
};

impl World {
    /// One of the faults happens, and the next is planned.
    pub(crate) fn fault(&mut self) {
        if self.log.is_quiet() {
            return;
        }
        let total: u64 = self.scenario.faults.weights.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.below(total);
        let chosen = self.scenario.faults.weights.iter().find(|(weight, _)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        if let Some((_, kind)) = chosen.copied() {
            self.happens(kind);
        }
        if let Some(every) = self.scenario.faults.every {
            let next = self.rng.between(every / 4, 2 * every);
            self.after(next, Event::Fault);
        }
    }

    /// A time until which something lasts: short, or longer than a lease; over when faults are.
    fn until(&mut self) -> Millis {
        let lease = self.scenario.lease;
        let short = self.rng.between(20, lease);
        let time = if self.rng.permille(400) { short + 2 * lease } else { short };
        (self.now + time).min(self.scenario.quiet_at)
    }

    fn happens(&mut self, kind: Kind) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let server = self.rng.below(self.sites.len() as u64) as usize;
        let until = self.until();
        let time = until - self.now;
        match kind {
            Kind::Kill => self.kill(node),
            Kind::Pause => {
                let clock_runs = self.rng.permille(700);
                let Some(paused) = &mut self.nodes[node] else { return };
                paused.pause(self.now, until, clock_runs);
                let clock = if clock_runs { "goes on" } else { "stands still" };
                self.log.tell(format!("n{node} is paused for {time} ms, its clock {clock}"));
                self.trouble(node);
            }
            Kind::Drain => {
                let deadline = self.rng.pick(&[0, 200, 3000]);
                let Some(drained) = &self.nodes[node] else { return };
                self.log.tell(format!("n{node} shuts down within {deadline} ms"));
                self.log.note(Fact::Drained { node, at: self.now });
                drained.drain(Duration::from_millis(deadline), &self.log);
            }
            Kind::Partition => {
                self.log.tell(format!("n{node} reaches no server for {time} ms"));
                self.apart_until[node] = until;
                self.trouble(node);
                if self.rng.permille(500) {
                    self.cut_all(|link| link.node == node, "its node is apart");
                }
            }
            _ => self.happens_to_server(kind, server, until),
        }
    }

    fn happens_to_server(&mut self, kind: Kind, server: usize, until: Millis) {
        let time = until - self.now;
        if kind != Kind::Memory {
            (0..self.nodes.len()).for_each(|node| self.trouble(node));
        }
        match kind {
            Kind::Cut => self.cut_all(|link| link.server == server, "its server cuts it"),
            Kind::Restart => self.restart(server, until, |world| {
                world.sites[server].server.restart(0);
                String::from("all its data")
            }),
            Kind::RestartLosingSome => {
                let lost = self.rng.between(1, 30) as usize;
                self.restart(server, until, |world| {
                    let lost = world.sites[server].server.restart(lost);
                    format!("{lost} writes lost")
                });
            }
            Kind::RestartEmpty => self.restart(server, until, |world| {
                world.sites[server].server.restore(&crate::redis::Snapshot::default());
                String::from("nothing")
            }),
            Kind::Failover => {
                let lag = self.rng.between(0, 3000);
                let off = self.rng.between(0, 4000) as i64 - 2000;
                self.log.note(Fact::Clock { by: off });
                self.restart(server, until, |world| {
                    let (site, now) = (&mut world.sites[server], world.now);
                    let behind = site.fail_over(now, lag);
                    site.clock += off;
                    format!("what a replica had {behind} ms before, its clock {off} ms off")
                });
            }
            Kind::Hang => {
                self.log.tell(format!("s{server} is silent for {time} ms"));
                self.sites[server].silent_until = until.max(self.sites[server].silent_until);
                let until = self.sites[server].silent_until;
                self.at(until, Event::Heard(server));
            }
            Kind::Clock => {
                let most = self.rng.pick(&[500, 5_000, 3_600_000]);
                let off = self.rng.between(0, 2 * most) as i64 - most as i64;
                self.log.note(Fact::Clock { by: off });
                self.log.tell(format!("the clock of s{server} jumps by {off} ms"));
                self.sites[server].clock += off;
            }
            _ => {
                self.log.tell(format!("s{server} has no memory for {time} ms"));
                self.sites[server].server.set_maxmemory(Some(0));
                self.at(until, Event::Memory(server));
            }
        }
    }

    /// All servers go away for a long time; what they said last does not arrive.
    pub(crate) fn away(&mut self, is_begun: bool) {
        if !is_begun {
            let links: Vec<_> = self.links.keys().copied().collect();
            links.into_iter().for_each(|link| self.hold_for(link, false, 60_000));
            let more = self.rng.between(20, 1500);
            return self.after(more, Event::Away(true));
        }
        self.log.tell(format!("all servers are away for {AWAY} ms"));
        self.cut_all(|_| true, "its server is away");
        for site in &mut self.sites {
            site.down_until = self.now + AWAY;
        }
    }

    fn cut_all(&mut self, which: impl Fn(&Link) -> bool, why: &str) {
        let links = self.links.iter().filter(|(_, link)| which(link));
        let links: Vec<_> = links.map(|(id, _)| *id).collect();
        links.into_iter().for_each(|link| self.cut(link, why));
    }

    /// A server goes, and comes again with what `with` leaves of its data.
    fn restart(&mut self, server: usize, until: Millis, with: impl FnOnce(&mut Self) -> String) {
        let now = self.now;
        self.sites[server].set_now(now);
        let before = self.records(server);
        let links = self.sites[server].disconnect_all();
        let kept = with(self);
        self.sites[server].down_until = until;
        self.log.tell(format!("s{server} restarts with {kept}, down for {} ms", until - now));
        for link in links {
            self.cut(link, "its server restarts");
        }
        let after = self.records(server);
        let lost =
            before.into_iter().zip(after).filter(|((_, before), (_, after))| before != after);
        let jobs: Vec<_> = lost.map(|((job, _), _)| job).collect();
        if !jobs.is_empty() {
            self.log.tell(format!("lost or taken back: {}", jobs.join(", ")));
            self.log.note(Fact::Lost { jobs, at: now });
        }
    }

    /// The record of each job that was ever kept on a server, as it is there.
    fn records(&mut self, server: usize) -> Vec<(String, Vec<u8>)> {
        let count = self.sites.len();
        let jobs = self.history.jobs();
        let here = jobs.into_iter().filter(|job| usize::from(job.partition()) % count == server);
        here.map(|job| (job.to_string(), self.record(server, job))).collect()
    }

    fn record(&mut self, server: usize, job: JobId) -> Vec<u8> {
        let key = format!("{{sim:{:02}}}:j:{job}", job.partition());
        self.sites[server].observe(&["HGETALL", &key])
    }

    /// Everything is mended.
    pub(crate) fn quiet(&mut self) {
        self.log.tell("from now on there are no faults");
        self.log.set_quiet();
        self.log.note(Fact::Quiet { at: self.now });
        for node in 0..self.nodes.len() {
            self.apart_until[node] = 0;
            self.after(1, Event::Start(node));
        }
        for server in 0..self.sites.len() {
            let site = &mut self.sites[server];
            (site.down_until, site.silent_until) = (0, 0);
            self.after(1, Event::Heard(server));
        }
    }
}
