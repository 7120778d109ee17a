//! A record as the fields of a hash: the members of its JSON form (`Record::to_bytes`), under names
//! of one letter, each value as the JSON that it is.
//!
//! So a script changes one field without reading the others, `HGETALL` shows a person what a job is,
//! and a member that this version does not know goes through it unharmed, under its whole name.

use std::collections::BTreeMap;

use redis::{FromRedisValue, Value, from_redis_value};
use serde_json::value::RawValue;
use tower_offload::{Error, JobId, Record};

use crate::error::corrupt;

/// The members of a record and their letters.
const NAMES: [(&str, &str); 14] = [
    ("status", "s"),
    ("version", "v"),
    ("status_version", "w"),
    ("created_at", "c"),
    ("started_at", "b"),
    ("finished_at", "e"),
    ("ttl", "t"),
    ("policy", "p"),
    ("owner", "o"),
    ("claim", "k"),
    ("progress", "g"),
    ("failure", "f"),
    ("response_status", "h"),
    ("removed", "x"),
];

/// What is the store's own: the bytes of the outcome, and the node.
const OWN: [&str; 2] = ["n", "y"];

/// The fields and values of a record; its id is in its key.
pub(crate) fn of(record: &Record) -> Result<Vec<String>, Error> {
    let bytes = record.to_bytes();
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(&bytes)
        .map_err(|error| corrupt("a record is not a JSON object").with_source(error))?;
    let short = |name: &str| NAMES.iter().find(|(long, _)| *long == name).map(|(_, short)| *short);
    let members = members.iter().filter(|(name, _)| **name != "id");
    Ok(members
        .flat_map(|(name, value)| [short(name).unwrap_or(name).to_owned(), value.get().to_owned()])
        .collect())
}

/// The JSON of one member of a record, as a script is given it.
pub(crate) fn member(record: &Record, name: &str) -> Result<String, Error> {
    let bytes = record.to_bytes();
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(&bytes)
        .map_err(|error| corrupt("a record is not a JSON object").with_source(error))?;
    Ok(members.get(name).map_or_else(String::new, |value| value.get().to_owned()))
}

/// Reads a record from the answer to `HGETALL`; `None` where there was none.
pub(crate) fn record(id: JobId, hash: &Value) -> Result<Option<Record>, Error> {
    let fields = pairs(hash)?;
    if fields.is_empty() {
        return Ok(None);
    }
    let mut json = format!("{{\"id\":\"{id}\"");
    for (name, value) in &fields {
        if OWN.contains(&&**name) {
            continue;
        }
        let long = NAMES.iter().find(|(_, short)| short == name).map_or(&**name, |(long, _)| long);
        json.push_str(&format!(",\"{long}\":{value}"));
    }
    json.push('}');
    Record::from_bytes(json.as_bytes()).map(Some)
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
