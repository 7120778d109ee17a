//! A record as the fields of a hash: the members of its JSON form (`Record::to_bytes`), under names
//! of one letter. What is a text in JSON is that text, the claim is two fields, and all else is JSON.
//!
//! So a script changes one field without reading the others, and `HGETALL` shows a person what a job
//! is. No value is longer than 64 bytes, but for a long progress: with one that is, Redis takes three
//! times the memory for the hash (redis.conf, `hash-max-listpack-value`).

use redis::{FromRedisValue, Value, from_redis_value};
use serde_json::{Map, Value as Json};
use tower_offload::{Digest, Error, JobId, Record};

use crate::error::corrupt;

/// The members of a record and their letters. What a newer version has beside is under its whole
/// name, and left as it is. `n`, `y`, `d` and `u` are the store's own: the bytes of the outcome, the node,
/// whether another request was given the job by its claim, and the call that has taken the job.
const NAMES: [(&str, &str); 16] = [
    (FORMAT.0, FORMAT.1),
    ("status", "s"),
    ("version", "v"),
    ("status_version", "w"),
    ("created_at", "c"),
    ("started_at", "b"),
    ("finished_at", "e"),
    ("ttl", "t"),
    ("policy", "p"),
    ("owner", "o"),
    ("progress", "g"),
    ("failure", "f"),
    ("response_status", "h"),
    ("removed", "x"),
    ("attempt", "a"),
    ("max_attempts", "m"),
];

/// The format of a record; records without one are of format 0.
const FORMAT: (&str, &str) = ("format", "F");

/// Those of the claim.
const CLAIM: [(&str, &str); 2] = [("key", "k"), ("fingerprint", "q")];

/// The members that are texts.
const TEXTS: [&str; 4] = ["status", "policy", "owner", "failure"];

/// The members that the scripts take for whole numbers (src/lua/common.lua, `load`): what they refuse must
/// not be read here, or nobody would end the job.
const NUMBERS: [&str; 6] =
    ["version", "started_at", "created_at", "ttl", "attempt", "max_attempts"];

/// The fields and values of a record; its id is in its key.
pub(crate) fn of(record: &Record) -> Result<Vec<String>, Error> {
    let mut fields = Vec::new();
    for (name, value) in members(record)? {
        match &*name {
            "id" => {}
            "claim" => {
                for (name, short) in CLAIM {
                    fields.extend([short.to_owned(), text(&value[name])]);
                }
            }
            _ => {
                let short = NAMES.iter().find(|(long, _)| *long == name);
                let name = short.map_or(name, |(_, short)| (*short).to_owned());
                fields.extend([name, text(&value)]);
            }
        }
    }
    Ok(fields)
}

/// One member of a record, as its field has it.
pub(crate) fn member(record: &Record, name: &str) -> Result<String, Error> {
    Ok(members(record)?.get(name).map_or_else(String::new, text))
}

/// A digest, as its field has it.
pub(crate) fn digest(digest: &Digest) -> String {
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn members(record: &Record) -> Result<Map<String, Json>, Error> {
    serde_json::from_slice(&record.to_bytes())
        .map_err(|error| corrupt("a record is not a JSON object").with_source(error))
}

fn text(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Reads a record from the answer to `HGETALL`; `None` where there was none.
pub(crate) fn record(id: JobId, hash: &Value) -> Result<Option<Record>, Error> {
    let fields = pairs(hash)?;
    if fields.is_empty() {
        return Ok(None);
    }
    let mut members = Map::from_iter([("id".to_owned(), Json::String(id.to_string()))]);
    let mut claim = Map::new();
    for (name, value) in fields {
        if let Some((name, _)) = CLAIM.iter().find(|(_, short)| *short == name) {
            claim.insert((*name).to_owned(), Json::String(value));
        } else if let Some((name, _)) = NAMES.iter().find(|(_, short)| *short == name) {
            let value = match TEXTS.contains(name) || NUMBERS.contains(name) && !is_number(&value) {
                true => Json::String(value),
                // Whether what is no JSON is corrupt, or of a later format, the record's format says.
                false => serde_json::from_str(&value).unwrap_or(Json::String(value)),
            };
            members.insert((*name).to_owned(), value);
        } else if name == "n" && !is_number(&value) {
            // The scripts count with it.
            return Err(corrupt("the bytes of an outcome are no number"));
        }
    }
    if !claim.is_empty() {
        members.insert("claim".to_owned(), Json::Object(claim));
    }
    Record::from_bytes(Json::Object(members).to_string().as_bytes()).map(Some)
}

/// Whether the scripts take this for a whole number.
fn is_number(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// A hash comes as a map by RESP3, and as a list from a script.
fn pairs(hash: &Value) -> Result<Vec<(String, String)>, Error> {
    match hash {
        Value::Nil => Ok(Vec::new()),
        _ => read(hash.clone()),
    }
}

/// Reads what Redis has answered.
pub(crate) fn read<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    from_redis_value(value)
        .map_err(|error| corrupt("Redis answered something else").with_source(error))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tower_offload::{Change, Claim, End, ErrorKind, Failure, Progress};

    use super::*;

    fn back(record: &Record) -> Record {
        let values = of(record).unwrap().into_iter();
        let hash = Value::Array(values.map(|text| Value::BulkString(text.into_bytes())).collect());
        super::record(record.id(), &hash).unwrap().unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let (key, print) = (Digest::from([0xab; 32]), Digest::from([0x12; 32]));
        let id = JobId::random_beside(&key).unwrap();
        let mut record = Record::queued(id, SystemTime::now(), Duration::MAX);
        assert_eq!(format!("{:?}", back(&record)), format!("{record:?}"));
        record = record
            .with_policy("a \"policy\": 7".into())
            .with_owner(print)
            .with_claim(Claim::new(key, print))
            .with_progress(Progress::new(Some(1.0 / 3.0), Some("{\"half\": é}")));
        let failed = Change::Finish(End::Failure(Failure::NodeLost));
        for change in [Change::Start, failed, Change::Remove] {
            assert!(record.apply(&change, SystemTime::now()));
            assert_eq!(format!("{:?}", back(&record)), format!("{record:?}"));
            assert_eq!(
                (back(&record).owner(), back(&record).claim()),
                (record.owner(), record.claim())
            );
        }
    }

    #[test]
    fn a_hash_of_a_later_format_is_newer_and_not_corrupt() {
        let queued = Record::queued(JobId::random().unwrap(), SystemTime::now(), Duration::MAX);
        let read = |changed: &[(&str, &str)]| {
            let mut values = of(&queued).unwrap();
            for (name, value) in changed {
                let at = values.chunks(2).position(|pair| pair[0] == *name).unwrap();
                values[2 * at + 1] = (*value).to_owned();
            }
            let values = values.into_iter().map(|text| Value::BulkString(text.into_bytes()));
            super::record(queued.id(), &Value::Array(values.collect()))
                .map_err(|error| error.kind())
        };
        assert!(read(&[]).is_ok() && read(&[("F", "0")]).is_ok());
        assert_eq!(read(&[("F", "99")]).unwrap_err(), ErrorKind::NewerFormat);
        assert_eq!(read(&[("F", "99"), ("c", "now")]).unwrap_err(), ErrorKind::NewerFormat);
        // What the scripts refuse is not read either.
        for value in ["now", "null", " 5", "+5", "5.0", ""] {
            assert_eq!(read(&[("c", value)]).unwrap_err(), ErrorKind::Corrupt, "{value}");
        }
        assert_eq!(read(&[("F", "last")]).unwrap_err(), ErrorKind::Corrupt);
    }

    #[test]
    fn an_owner_is_asked_for_as_its_field_has_it() {
        let owner = Digest::from([0xa0; 32]);
        let record = Record::queued(JobId::random().unwrap(), SystemTime::now(), Duration::MAX);
        assert_eq!(member(&record.with_owner(owner), "owner").unwrap(), digest(&owner));
    }

    #[test]
    fn values_are_short_enough_for_a_small_hash() {
        let key = Digest::from([0xff; 32]);
        let record = Record::queued(JobId::random().unwrap(), SystemTime::now(), Duration::MAX)
            .with_owner(key)
            .with_claim(Claim::new(key, key));
        assert!(of(&record).unwrap().iter().all(|value| value.len() <= 64));
    }
}
