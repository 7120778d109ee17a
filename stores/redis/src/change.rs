//! Changes of a job: one script, and before it the pieces of an outcome that is too large for one.

use std::time::Duration;

use bytes::Bytes;
use redis::{ScriptInvocation, Value};
use tower_offload::{
    Change, End, Error, ErrorKind, Failure, JobId, Record, Status, store::Changed,
};

use crate::{
    error::corrupt,
    fields::{self, read},
    store::Inner,
};

/// What is sent at once of an outcome, and read at once: Redis does nothing else meanwhile.
const CHUNK: usize = 1 << 20;

/// Chunks whose sender has gone are dropped after so long, counted from the last one that was sent. A
/// sender that is slower finds them gone: then nothing is changed (change.lua), and the next attempt sends
/// its own, under another name.
const CHUNKS_TTL: Duration = Duration::from_secs(3600);

impl Inner {
    pub(crate) async fn change(&self, id: JobId, change: Change) -> Result<Changed, Error> {
        let (brings, large) = match &change {
            Change::Progress(_) => (true, None),
            Change::Finish(End::Response(outcome)) if outcome.as_bytes().len() > CHUNK => {
                (false, Some(outcome.as_bytes().clone()))
            }
            Change::Finish(End::Response(_)) => (true, None),
            _ => (false, None),
        };
        // Chunks are there already: what takes them needs no memory.
        let script = if brings { &self.scripts.bring } else { &self.scripts.change };
        let mut call = script.prepare_invoke();
        self.keys_of(id, &mut call);
        call.key(self.keys.fences(id.partition()));
        let chunks = match large {
            Some(bytes) => {
                let key = self.keys.chunks(id, JobId::random()?);
                call.key(&key);
                Some((key, bytes))
            }
            None => None,
        };
        call.arg(id.to_string()).arg(self.connection().publish());
        call.arg(self.keys.channel(id.partition())).arg(&*self.node.id());
        brought(&change, &mut call)?;
        if let Change::Finish(End::Failure(Failure::Interrupted | Failure::NodeLost)) = &change {
            // Held up on its way, it is not to end the next attempt, which may be this node's as well.
            call.arg(self.local.attempt(id));
        }
        let local = self.local.get(id);
        let answer = match &chunks {
            Some((key, bytes)) => match self.send_chunks(key, bytes).await {
                Ok(()) => self.run_of(id, &call, "cannot change a job").await,
                Err(error) => Err(error),
            },
            None => self.run_of(id, &call, "cannot change a job").await,
        };
        if let (Err(_), Some((key, _))) = (&answer, &chunks) {
            // The next attempt sends its own, and needs the room. If this fails they expire.
            let mut command = redis::cmd("UNLINK");
            command.arg(key);
            let _ = self.ask(&command, "cannot drop chunks").await;
        }
        let answer = answer?;
        match read::<Vec<Value>>(answer)?.as_slice() {
            [applied, hash] => {
                let record = self.record_of(id, hash).await?;
                let record = record.ok_or_else(|| corrupt("an empty record"))?;
                self.local.seen(id, Some(&record));
                if record.status() == Status::Queued && record.attempt().is_some() {
                    self.local.drop_same(id, local);
                }
                match read::<bool>(applied.clone())? {
                    true => {
                        if matches!(change, Change::Cancel) {
                            self.canceled.note(id);
                        }
                        Ok(Changed::Applied(record))
                    }
                    false => {
                        // The answer to the first try may have been lost.
                        if matches!(change, Change::Cancel) && record.status() == Status::Canceled {
                            self.canceled.note(id);
                        }
                        Ok(Changed::Refused(record))
                    }
                }
            }
            _ => {
                self.local.seen(id, None);
                Ok(Changed::Unknown)
            }
        }
    }

    /// Sends an outcome in pieces, to where the change takes it from.
    async fn send_chunks(&self, key: &str, bytes: &Bytes) -> Result<(), Error> {
        for chunk in bytes.chunks(CHUNK) {
            let mut call = self.scripts.chunk.prepare_invoke();
            call.key(key).arg(chunk).arg(CHUNKS_TTL.as_millis() as u64);
            self.run(&call, "cannot store an outcome").await?;
        }
        Ok(())
    }
}

/// What a change brings, as the script is given it.
fn brought(change: &Change, call: &mut ScriptInvocation<'_>) -> Result<(), Error> {
    match change {
        Change::Start => call.arg("start"),
        Change::Progress(progress) => {
            let now = tower_offload::store::now();
            let record = Record::running(JobId::random()?, now, Duration::ZERO);
            let record = record.with_progress(progress.clone());
            call.arg("progress").arg(fields::member(&record, "progress")?)
        }
        Change::Finish(End::Response(outcome)) => {
            let (status, bytes) = (outcome.status().as_u16(), outcome.as_bytes());
            let ended = if status < 400 { "succeeded" } else { "failed" };
            call.arg("response").arg(ended).arg(status).arg(bytes.len());
            if bytes.len() <= CHUNK {
                call.arg(&bytes[..]);
            }
            call
        }
        Change::Finish(End::Failure(failure)) => {
            let failure = serde_json::to_value(failure).unwrap_or_default();
            call.arg("failure")
                .arg(failure.as_str().ok_or_else(|| corrupt("a failure without a name"))?)
        }
        Change::Cancel => call.arg("cancel"),
        Change::Remove => call.arg("remove"),
        _ => {
            let message = "a change that this version of the store does not know";
            return Err(Error::new(ErrorKind::StoreUnavailable, message));
        }
    };
    Ok(())
}
