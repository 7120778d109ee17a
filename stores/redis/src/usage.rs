//! What is kept, by the names of policies: counted in each partition as jobs come and go.

use std::collections::BTreeMap;

use tower_offload::{Error, JobId, store::Usage};

use crate::{fields::read, store::Inner};

/// Names and numbers, as Redis has them.
type Counts = Vec<(Vec<u8>, Vec<u8>)>;

impl Inner {
    pub(crate) async fn usage(&self) -> Result<Vec<Usage>, Error> {
        let mut sums = BTreeMap::<String, (usize, usize)>::new();
        for partition in 0..JobId::PARTITIONS {
            for (name, number) in self.counts(partition).await? {
                // A name or a number that is damaged keeps nobody from reading the others.
                let name = String::from_utf8_lossy(&name).into_owned();
                let number =
                    std::str::from_utf8(&number).ok().and_then(|number| number.parse().ok());
                let number: usize = number.unwrap_or(0);
                // `j` and `b` stand for jobs and bytes, before the policy's name.
                let (kind, policy) = name.split_at_checked(1).unwrap_or_default();
                let (jobs, bytes) = sums.entry(policy.to_owned()).or_default();
                match kind {
                    "j" => *jobs = jobs.saturating_add(number),
                    _ => *bytes = bytes.saturating_add(number),
                }
            }
        }
        let told = |(policy, (jobs, bytes)): (String, _)| {
            let policy = (!policy.is_empty()).then(|| policy.into());
            Usage { policy, jobs, bytes }
        };
        Ok(sums.into_iter().map(told).collect())
    }

    /// Those of one partition, once all that has expired there is counted no more.
    async fn counts(&self, partition: u8) -> Result<Counts, Error> {
        loop {
            let mut call = self.scripts.usage.prepare_invoke();
            call.key(self.keys.index(partition)).key(self.keys.counts(partition));
            let answer = self.run(&call, "cannot count jobs").await?;
            let (swept, counts): (usize, Counts) = read(answer)?;
            if swept == 0 {
                return Ok(counts);
            }
        }
    }
}
