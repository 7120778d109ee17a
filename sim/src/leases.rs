//! Whether a durable job is ever run by two nodes of which both have their lease, as the servers see it.

use std::collections::BTreeMap;

use crate::{
    facts::{Execution, Fact},
    world::World,
};

/// The runs of durable jobs that are under way.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// By job: its runs, and as whom their nodes have taken it.
    runs: BTreeMap<String, Vec<(Execution, Option<String>)>>,
}

impl World {
    /// Looks at the handlers that have begun in a step.
    pub(crate) fn look_at_leases(&mut self) {
        for run in self.log.begun() {
            let Some(job) = run.job.clone().filter(|_| run.attempt > 0) else { continue };
            let identity = self.identity(&job, run.attempt);
            let others = self.leases.runs.remove(&job).unwrap_or_default();
            let mut live = Vec::new();
            for (other, other_identity) in others {
                let is_alive =
                    self.nodes[other.node.0].as_ref().is_some_and(|node| node.name == other.node);
                if !is_alive || self.log.is_over(other.run) {
                    continue;
                }
                if other.node != run.node
                    && !self.may_be_lost(&job, &other, other_identity.as_deref())
                {
                    let (one, two) = (other.node.0, run.node.0);
                    let wrong =
                        format!("job {job} is run by n{one} and n{two}, and both have their lease");
                    self.log.note(Fact::Wrong(wrong));
                }
                live.push((other, other_identity));
            }
            live.push((run, identity));
            self.leases.runs.insert(job, live);
        }
    }

    /// As whom its node has taken this attempt; none where the record is of another attempt by now.
    fn identity(&mut self, job: &str, attempt: u16) -> Option<String> {
        let (site, base) = self.place(job)?;
        let key = format!("{base}j:{job}");
        let record = self.sites[site].observe(&["HMGET", &key, "a", "y"]);
        let record = String::from_utf8(record).ok()?;
        let mut lines = record.lines().skip(1).filter(|line| !line.starts_with('$'));
        (lines.next()? == attempt.to_string()).then(|| lines.next().map(str::to_owned))?
    }

    /// Whether a node may have lost a job that its handler still works on: it was fenced, it has given its
    /// jobs back itself, or the server has lost what it knew.
    fn may_be_lost(&mut self, job: &str, run: &Execution, identity: Option<&str>) -> bool {
        let (Some(identity), Some((site, base))) = (identity, self.place(job)) else { return true };
        let score = self.sites[site].observe(&["ZSCORE", &format!("{base}f"), identity]);
        let is_fenced = !matches!(&*score, b"$-1\r\n" | b"_\r\n");
        is_fenced || self.log.excuses(job, run.node.0, run.at)
    }

    /// The server that has a job, and what its keys begin with.
    fn place(&self, job: &str) -> Option<(usize, String)> {
        let partition = u8::from_str_radix(job.get(..2)?, 16).ok()? >> 2;
        let site = usize::from(partition).checked_rem(self.sites.len())?;
        Some((site, format!("{{sim:{partition:02}}}:")))
    }
}
