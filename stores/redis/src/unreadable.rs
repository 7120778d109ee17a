//! Jobs whose records cannot be read: such a job has failed, for good. Its record is kept as it is beside
//! the dead letters, so that whoever finds out why can read it, and a failed one stands in its place, so
//! that nobody comes upon it again.
//!
//! A record that a newer release has written is none of these: whether it is one is decided in
//! [`fields::record`], by what it says of its own format.

use std::{collections::BTreeMap, sync::Once};

use redis::{ScriptInvocation, Value};
use tower_offload::{Error, ErrorKind, JobId, Record};

use crate::{
    caught::log,
    error,
    fields::{self, read},
    store::Inner,
};

/// How long the job is kept where its own time cannot be read, in nanoseconds: a day, in which somebody
/// looks at what is logged.
const TTL: &str = "86400000000000";

/// So often a record is read that is changed each time before it is ended.
const TRIES: u32 = 16;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

impl Inner {
    /// The record in this answer to `HGETALL`, which is nil where a script found no hash. A job whose record
    /// cannot be read is ended, and that is the record.
    pub(crate) async fn record_of(&self, id: JobId, hash: &Value) -> Result<Option<Record>, Error> {
        match fields::record(id, hash) {
            Ok(record) if !matches!(hash, Value::Nil) => Ok(record),
            Err(error) if error.kind() != ErrorKind::Corrupt => Err(noted(error)),
            _ => {
                self.end_unreadable(id, &self.node.id()).await?;
                fields::record(id, &self.hash_of(id).await?.unwrap_or(Value::Nil))
            }
        }
    }

    /// Runs a script of a job, and once more where that failed since the job's record cannot be read, and
    /// the job has been ended.
    pub(crate) async fn run_of(
        &self,
        id: JobId,
        script: &ScriptInvocation<'_>,
        what: &'static str,
    ) -> Result<Value, Error> {
        let answer = self.run(script, what).await;
        match &answer {
            Err(error) if error::is_of_a_value(error) => {
                match self.end_unreadable(id, &self.node.id()).await? {
                    true => self.run(script, what).await,
                    false => answer,
                }
            }
            _ => answer,
        }
    }

    /// Ends the job, if its record cannot be read, and tells whether it did. It is dropped from what is
    /// listed for this node.
    ///
    /// # Errors
    /// `NewerFormat` where the record is of a later release: it is left as it is.
    pub(crate) async fn end_unreadable(&self, id: JobId, node: &str) -> Result<bool, Error> {
        for _ in 0..TRIES {
            let hash = self.hash_of(id).await?;
            let why = match &hash {
                Some(hash) => match fields::record(id, hash) {
                    Err(error) if error.kind() == ErrorKind::Corrupt => error,
                    Err(error) => return Err(noted(error)),
                    Ok(_) => return Ok(false),
                },
                None => error::corrupt("the record is no hash"),
            };
            let raw = hash.map(read::<Pairs>).transpose()?;
            if self.end_as_read(id, node, raw).await? {
                let why = &why as &dyn std::error::Error;
                log(
                    || tracing::warn!(job = %id, error = why, "a record cannot be read: its job has failed"),
                );
                self.local.remove(id);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The job's hash; `None` where something else is in its place.
    async fn hash_of(&self, id: JobId) -> Result<Option<Value>, Error> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.keys.job(id));
        match self.ask(&command, "cannot read a job").await {
            Err(error) if error::is_of_a_value(&error) => Ok(None),
            hash => hash.map(Some),
        }
    }

    async fn end_as_read(&self, id: JobId, node: &str, raw: Option<Pairs>) -> Result<bool, Error> {
        let mut call = self.scripts.corrupt.prepare_invoke();
        self.keys_of(id, &mut call);
        call.arg(id.to_string()).arg(self.connection().publish());
        call.arg(self.keys.channel(id.partition())).arg(node);
        match &raw {
            Some(pairs) => call.arg(pairs.len() * 2),
            None => call.arg(-1),
        };
        let raw = raw.unwrap_or_default();
        for (name, value) in &raw {
            call.arg(&name[..]).arg(&value[..]);
        }
        for (name, value) in failed(id, &raw) {
            call.arg(name).arg(value);
        }
        read(self.run(&call, "cannot end a job that cannot be read").await?)
    }
}

/// The error of a record of a later release is logged.
fn noted(error: Error) -> Error {
    if error.kind() == ErrorKind::NewerFormat {
        note_later();
    }
    error
}

/// Logs, once in this process, that it has come upon a job of a later release.
pub(crate) fn note_later() {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        log(|| tracing::warn!(
            "a newer release of tower-offload-redis uses this Redis: its jobs are left to its processes \
             where this one cannot read them"
        ));
    });
}

/// The fields of a failed job, with what can be read of these. When it was created is left to Redis where
/// that cannot be, and when it ended always is.
fn failed(id: JobId, raw: &[(Vec<u8>, Vec<u8>)]) -> BTreeMap<String, String> {
    let raw: BTreeMap<&str, &str> = raw
        .iter()
        .filter_map(|(name, value)| {
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
        .collect();
    let before = raw.get("v").and_then(|version| version.parse::<u32>().ok());
    let version = before.map_or(1, |before| before.saturating_add(1)).to_string();
    let mut fields = BTreeMap::new();
    for (name, value) in
        [("s", "failed"), ("f", "corrupt"), ("v", &version), ("w", &version), ("t", TTL)]
    {
        fields.insert(name.to_owned(), value.to_owned());
    }
    // Its outcome is gone, and so are its node and its call.
    let kept: [&[&str]; 8] =
        [&["c"], &["t"], &["b"], &["p"], &["o"], &["k", "q"], &["g"], &["a", "m"]];
    for names in kept {
        let mut with = fields.clone();
        for name in names {
            if let Some(value) = raw.get(name) {
                with.insert((*name).to_owned(), (*value).to_owned());
            }
        }
        if can_be_read(id, &with) {
            fields = with;
        }
    }
    if !fields.contains_key("c") {
        fields.remove("b");
    }
    fields
}

/// As they will be once Redis has added the times.
fn can_be_read(id: JobId, fields: &BTreeMap<String, String>) -> bool {
    let last = u64::MAX.to_string();
    let mut all = fields.clone();
    let created = all.entry("c".to_owned()).or_insert_with(|| "0".to_owned());
    // What is counted from a time has to be a number that Redis reads as well.
    let is_a_number = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_a_number(created) || !all.get("t").is_some_and(is_a_number) {
        return false;
    }
    all.insert("e".to_owned(), last);
    let texts = all.into_iter().flat_map(|(name, value)| [name, value]);
    let hash = texts.map(|text| Value::BulkString(text.into_bytes())).collect();
    matches!(fields::record(id, &Value::Array(hash)), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(raw: &[(&str, &[u8])]) -> BTreeMap<String, String> {
        let raw: Vec<_> =
            raw.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
        failed(JobId::random().unwrap(), &raw)
    }

    #[test]
    fn what_can_be_read_is_kept() {
        let digest = "ab".repeat(32);
        let kept = of(&[
            ("s", b"running"),
            ("v", b"7"),
            ("c", b"1700000000000000000"),
            ("t", b"60000000000"),
            ("p", b"no \xff text"),
            ("o", digest.as_bytes()),
            ("k", digest.as_bytes()),
            ("q", digest.as_bytes()),
            ("g", b"no JSON"),
            ("a", b"1"),
            ("m", b"3"),
        ]);
        let names: Vec<_> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "c", "f", "k", "m", "o", "q", "s", "t", "v", "w"]);
        assert_eq!((&*kept["v"], &*kept["t"], &*kept["s"]), ("8", "60000000000", "failed"));
    }

    #[test]
    fn of_what_is_no_record_only_the_failure_is_left() {
        let none = of(&[]);
        let names: Vec<_> = none.keys().map(String::as_str).collect();
        assert_eq!(names, ["f", "s", "t", "v", "w"]);
        let wrong: [(&str, &[u8]); 5] =
            [("c", b"-1"), ("t", b"soon"), ("k", b"ab"), ("v", b"\xff"), ("b", b"5")];
        assert_eq!(of(&wrong), none);
    }
}
