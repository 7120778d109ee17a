//! Durable jobs that were given up, and jobs whose records could not be read: the list of them, and how
//! their requests are sent again.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use tower_offload::{Error, ErrorKind, JobId, Record};

use crate::{RedisStore, fields::read, store::Inner};

/// The jobs in the answer of [`RedisStore::given_up`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GivenUp {
    /// Their records, by partition, and in each by when they expire.
    pub jobs: Vec<Record>,
    /// How many jobs beside these have records of a later release, which this one cannot read.
    pub later: usize,
}

/// So many are read at once: Redis does nothing else meanwhile.
const PAGE: usize = 1000;

impl Inner {
    async fn given_up(&self, most: usize) -> Result<GivenUp, Error> {
        let mut all = GivenUp::default();
        for partition in 0..JobId::PARTITIONS {
            self.given_up_in(partition, most, &mut all).await?;
        }
        Ok(all)
    }

    /// Adds those of a partition, page by page until there are so many in all: those of a later release
    /// take no place of others.
    async fn given_up_in(
        &self,
        partition: u8,
        most: usize,
        all: &mut GivenUp,
    ) -> Result<(), Error> {
        let mut from = 0;
        loop {
            let page = most.saturating_sub(all.jobs.len()).min(PAGE);
            if page == 0 {
                return Ok(());
            }
            let mut call = self.scripts.given_up.prepare_invoke();
            call.key(self.keys.given_up(partition));
            call.arg(self.keys.jobs(partition)).arg(page).arg(from);
            let answer = self.run(&call, "cannot read the jobs that were given up").await?;
            let pairs = read::<Vec<Value>>(answer)?;
            for pair in pairs.chunks_exact(2) {
                let id = read::<String>(pair[0].clone())?.parse()?;
                match self.record_of(id, &pair[1]).await {
                    Err(error) if error.kind() == ErrorKind::NewerFormat => all.later += 1,
                    record => all.jobs.extend(record?),
                }
            }
            let listed = pairs.len() / 2;
            if listed < page {
                return Ok(());
            }
            from += listed;
        }
    }

    async fn send_again(&self, id: JobId) -> Result<Option<JobId>, Error> {
        let Some(record) = self.read(id).await? else { return Ok(None) };
        // Its policy could not be read: nobody would take it.
        let Some(policy) = record.policy().filter(|_| record.status().is_end()) else {
            return Ok(None);
        };
        let next = next_of(id)?;
        let mut command = redis::cmd("GET");
        command.arg(self.keys.request(id));
        let Value::BulkString(request) = self.ask(&command, "cannot read a request").await? else {
            // It was sent again before, or is not kept any more.
            return Ok(self.read(next).await?.map(|_| next));
        };
        let now = tower_offload::store::now();
        let mut again = Record::queued(next, now, record.ttl()).with_policy(Arc::clone(policy));
        again = again.with_attempts(record.max_attempts().unwrap_or(1));
        if let Some(owner) = record.owner() {
            again = again.with_owner(*owner);
        }
        if let Err(error) = self.enqueue(&again, &Bytes::from(request)).await {
            // An earlier call has sent it, or this one, whose answer was lost.
            if self.read(next).await?.is_none() {
                return Err(error);
            }
        }
        // Only now: should this fail, it is in the list once more, and not lost.
        let mut command = redis::cmd("ZREM");
        command.arg(self.keys.given_up(id.partition())).arg(id.to_string());
        self.ask(&command, "cannot take a job from the list").await?;
        let mut command = redis::cmd("DEL");
        command.arg(self.keys.request(id));
        self.ask(&command, "cannot drop a request").await?;
        Ok(Some(next))
    }
}

/// The id under which a job is sent again: the same each time, so that twice is once. The new job expires
/// after the old one, since it ends later and is kept as long. Its partition is the old one's, and the other
/// bits are moved on by an odd number, so that no id comes again, however often it is sent.
fn next_of(id: JobId) -> Result<JobId, Error> {
    const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    const REST: u128 = u128::MAX / JobId::PARTITIONS as u128;
    let number = u128::from_str_radix(&id.to_string(), 16)
        .map_err(|error| Error::new(ErrorKind::Corrupt, "no id").with_source(error))?;
    format!("{:032x}", number & !REST | number.wrapping_add(STEP) & REST).parse()
}

impl RedisStore {
    /// The [durable](tower_offload::Policy::durable) jobs that were given up, at most so many: each of
    /// their attempts has lost its process. They are kept, with their requests, until they expire. So are
    /// jobs of all kinds whose records could not be read (`Failure::Corrupt`). Those with a record of a later
    /// release are passed over, and [counted](GivenUp::later) as far as the list was read.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn given_up(&self, most: usize) -> Result<GivenUp, Error> {
        self.inner.given_up(most).await
    }

    /// Sends the request of a durable job that was [given up](Self::given_up) once more, as a new job
    /// of the same policy and owner, with all its attempts; the old one stays as it ended. Returns the id of
    /// the new job, the same each time that this is called: it is sent once. `None` if there is no such job,
    /// or its request is not kept any more.
    ///
    /// # Errors
    /// If Redis does not answer. It may have been sent then, and may be called again.
    pub async fn send_again(&self, id: JobId) -> Result<Option<JobId>, Error> {
        self.inner.send_again(id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_has_one_next_id_of_its_partition() {
        let mut ids = vec![JobId::random().unwrap(), "f".repeat(32).parse().unwrap()];
        for _ in 0..100 {
            let next = next_of(*ids.last().unwrap()).unwrap();
            assert_eq!(next.partition(), 63);
            assert!(!ids.contains(&next));
            ids.push(next);
        }
        assert_eq!(next_of(ids[1]).unwrap(), ids[2]);
        assert_eq!(next_of(ids[0]).unwrap().partition(), ids[0].partition());
    }
}
