//! A record as bytes, for a store outside of this process: JSON that a person can read.
//!
//! ```json
//! {"format":1,"id":"0123456789abcdef0123456789abcdef","status":"running","version":2,
//!  "status_version":1,"created_at":1767225600000000000,"started_at":1767225600250000000,"ttl":3600000000000,
//!  "policy":"reports","owner":"9f86…","claim":{"key":"2c26…","fingerprint":"fcde…"},
//!  "progress":{"ratio":0.5,"message":"half"}}
//! ```
//!
//! Times are whole nanoseconds since the Unix epoch, which is all that the clock has: two records
//! that were the same are the same when they are read back. (A reader whose numbers are doubles
//! rounds them to a quarter of a microsecond.) What is not known is ignored and what may be absent
//! may be absent, so that nodes of two versions can share a store. What contradicts itself is
//! refused: the rest of the crate takes a record by its word.
//!
//! `format` is the lowest [`FORMAT`] whose readers understand the record. It grows when a record, its
//! outcome or its request holds something that an earlier release would misread rather than ignore.
//! A reader leaves a record of a later format as it is.

use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Claim, Digest, Failure, More, Progress, Record, Status, Time, nanos};
use crate::error::{Error, ErrorKind};

/// The latest format of a record that this release reads, and the one that it writes. Format 0 is
/// that of records without one, from before formats were counted.
pub(super) const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    format: u32,
    id: String,
    status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    version: u32,
    status_version: u32,
    created_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<u64>,
    ttl: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<StoredClaim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<StoredProgress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct StoredClaim {
    key: String,
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct StoredProgress {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Record {
    /// The record as bytes, for a store to keep: a JSON object.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serializing plain strings and numbers into memory cannot fail.
        serde_json::to_vec(&Stored::from(self)).unwrap_or_default()
    }

    /// Reads a record back from [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if these are not the bytes of a record, or of one that contradicts
    /// itself; [`ErrorKind::NewerFormat`] if a later release wrote them in a format that this one does
    /// not know.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let stored: Stored =
            serde_json::from_slice(bytes).map_err(|error| match is_newer(bytes) {
                true => newer(),
                false => {
                    Error::new(ErrorKind::Corrupt, "not the bytes of a record").with_source(error)
                }
            })?;
        if stored.format > FORMAT {
            return Err(newer());
        }
        let record = stored.into_record()?;
        if record.is_sound() { Ok(record) } else { Err(corrupt("a record contradicts itself")) }
    }

    /// Whether this could have come about by [`apply`](Self::apply).
    fn is_sound(&self) -> bool {
        let failed = self.failure.is_some();
        let answered = self.response_status.map(|status| status.as_u16() < 400);
        let ended_so = match self.status {
            Status::Queued | Status::Running | Status::Canceled => !failed && answered.is_none(),
            Status::Succeeded => !failed && answered == Some(true),
            Status::Failed => answered == if failed { None } else { Some(false) },
        };
        let started_so = match self.status {
            Status::Queued => self.started_at.is_none(),
            Status::Running => self.started_at.is_some(),
            // An end may come before the start.
            Status::Succeeded | Status::Failed | Status::Canceled => true,
        };
        let began = self.started_at.unwrap_or(self.created_at);
        ended_so
            && started_so
            && self.status.is_end() == self.finished_at.is_some()
            && self.created_at <= began
            && self.finished_at.is_none_or(|finished| began <= finished)
            && (self.status.is_end() || !self.removed)
            && self.status_version <= self.version
    }
}

impl From<&Record> for Stored {
    fn from(record: &Record) -> Self {
        Self {
            format: FORMAT,
            id: record.id.to_string(),
            status: record.status,
            failure: record.failure,
            response_status: record.response_status.map(|status| status.as_u16()),
            removed: record.removed,
            version: record.version,
            status_version: record.status_version,
            created_at: record.created_at.as_nanos(),
            started_at: record.started_at.map(Time::as_nanos),
            finished_at: record.finished_at.map(Time::as_nanos),
            ttl: record.ttl,
            policy: record.policy.as_deref().map(str::to_owned),
            owner: record.owner().map(hex),
            claim: record.claim().map(|claim| StoredClaim {
                key: hex(claim.key()),
                fingerprint: hex(claim.fingerprint()),
            }),
            progress: record.progress().map(|progress| StoredProgress {
                ratio: progress.ratio(),
                message: progress.message().map(str::to_owned),
            }),
            attempt: record.attempt(),
            max_attempts: record.max_attempts(),
        }
    }
}

impl Stored {
    fn into_record(self) -> Result<Record, Error> {
        let attempts = self.max_attempts.map_or([0, 0], |max| [self.attempt.unwrap_or(0), max]);
        let has_more = self.owner.is_some()
            || self.claim.is_some()
            || self.progress.is_some()
            || attempts[1] > 0;
        let more = More {
            owner: self.owner.as_deref().map(digest).transpose()?,
            claim: self.claim.map(StoredClaim::into_claim).transpose()?,
            progress: self.progress.map(StoredProgress::into_progress),
            attempts,
        };
        Ok(Record {
            id: self.id.parse()?,
            status: self.status,
            failure: self.failure,
            response_status: self.response_status.map(response_status).transpose()?,
            removed: self.removed,
            disclosed: false,
            version: self.version,
            status_version: self.status_version,
            created_at: Time::from_nanos(self.created_at),
            started_at: self.started_at.map(Time::from_nanos),
            finished_at: self.finished_at.map(Time::from_nanos),
            ttl: self.ttl.min(nanos(Record::MAX_TTL)),
            policy: self.policy.map(Arc::from),
            more: has_more.then_some(more).map(Arc::new),
        })
    }
}

impl StoredClaim {
    fn into_claim(self) -> Result<Arc<Claim>, Error> {
        Ok(Arc::new(Claim::new(digest(&self.key)?, digest(&self.fingerprint)?)))
    }
}

impl StoredProgress {
    /// By way of `Progress::new`, which holds the bounds.
    fn into_progress(self) -> Arc<Progress> {
        Arc::new(Progress::new(self.ratio, self.message.as_deref()))
    }
}

/// Whether a record that cannot be read says that it is of a later format.
fn is_newer(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    serde_json::from_slice::<Format>(bytes).is_ok_and(|stored| stored.format > FORMAT)
}

fn newer() -> Error {
    Error::new(ErrorKind::NewerFormat, "a newer release wrote this record")
}

fn corrupt(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn response_status(number: u16) -> Result<StatusCode, Error> {
    StatusCode::from_u16(number).map_err(|_| corrupt("not the status of a response"))
}

fn hex(digest: &Digest) -> String {
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the one form that [`hex`] writes: 64 lower-case digits.
fn digest(text: &str) -> Result<Digest, Error> {
    unhex(text.as_bytes()).map(Digest::from).ok_or_else(|| corrupt("not a hash of a record"))
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 64).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use proptest::{collection::vec, option, prelude::*};
    use serde_json::{Value, json};

    use super::{
        super::{Change, End, JobId, Outcome},
        *,
    };

    fn same(one: &Record, other: &Record) {
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        // `Debug` shows a part of each hash only.
        assert_eq!((one.owner(), one.claim()), (other.owner(), other.claim()));
    }

    fn read(value: &Value) -> Result<Record, Error> {
        Record::from_bytes(value.to_string().as_bytes())
    }

    fn response(status: u16) -> Change {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        Change::Finish(End::Response(Outcome::new(&parts, b"", None)))
    }

    fn queued() -> Value {
        json!({
            "id": "0123456789abcdef0123456789abcdef",
            "status": "queued",
            "version": 0,
            "status_version": 0,
            "created_at": 1_000,
            "ttl": 60_000_000_000_u64,
        })
    }

    /// A record with these fields put in, or taken out where they are null.
    fn with(fields: &[(&str, Value)]) -> Value {
        let mut record = queued();
        for (name, value) in fields {
            record[*name] = value.clone();
        }
        record.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        record
    }

    fn full() -> Record {
        let created = UNIX_EPOCH + Duration::new(1_767_225_600, 123_456_789);
        let id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let mut record = Record::queued(id, created, Duration::from_secs(3600))
            .with_policy("reports".into())
            .with_owner([0xab; 32].into())
            .with_claim(Claim::new([1; 32].into(), [2; 32].into()))
            .with_progress(Progress::new(Some(0.5), Some("half \"done\" é")));
        for change in [Change::Start, response(503), Change::Remove] {
            assert!(record.apply(&change, created + Duration::from_secs(1)));
        }
        record
    }

    #[test]
    fn people_can_read_it() {
        assert_eq!(
            serde_json::from_slice::<Value>(&full().to_bytes()).unwrap(),
            json!({
                "format": FORMAT,
                "id": "0123456789abcdef0123456789abcdef",
                "status": "failed",
                "response_status": 503,
                "removed": true,
                "version": 3,
                "status_version": 3,
                "created_at": 1_767_225_600_123_456_789_u64,
                "started_at": 1_767_225_601_123_456_789_u64,
                "finished_at": 1_767_225_601_123_456_789_u64,
                "ttl": 3_600_000_000_000_u64,
                "policy": "reports",
                "owner": "ab".repeat(32),
                "claim": {"key": "01".repeat(32), "fingerprint": "02".repeat(32)},
                "progress": {"ratio": 0.5, "message": "half \"done\" é"},
            })
        );
        same(&Record::from_bytes(&full().to_bytes()).unwrap(), &full());
    }

    #[test]
    fn another_version_of_a_node_may_know_more_or_less() {
        let record = read(&with(&[("priority", json!({"a": [1]}))])).unwrap();
        assert_eq!(record.status(), Status::Queued);
        assert_eq!(record.created_at(), UNIX_EPOCH + Duration::from_micros(1));
        assert_eq!(record.ttl(), Duration::from_secs(60));
        assert!(record.owner().is_none() && record.claim().is_none() && !record.is_removed());
        for name in ["id", "status", "version", "status_version", "created_at", "ttl"] {
            assert!(read(&with(&[(name, Value::Null)])).is_err(), "{name}");
        }
    }

    #[test]
    fn a_record_of_a_later_format_is_newer_and_not_corrupt() {
        let later = FORMAT + 1;
        for fields in [
            vec![("format", json!(later))],
            vec![("format", json!(later)), ("status", json!("paused"))],
            vec![("format", json!(u32::MAX)), ("created_at", json!("yesterday"))],
            vec![("format", json!(later)), ("started_at", json!(1_000))],
        ] {
            let error = read(&with(&fields)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NewerFormat, "{fields:?}");
        }
        for fields in [
            vec![("format", json!(FORMAT)), ("status", json!("paused"))],
            vec![("format", json!(-1))],
            vec![("format", json!("2"))],
        ] {
            let error = read(&with(&fields)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{fields:?}");
        }
        assert!(read(&with(&[("format", json!(0))])).is_ok());
        assert!(read(&with(&[("format", json!(FORMAT))])).is_ok());
    }

    #[test]
    fn the_last_version_can_be_changed() {
        let mut record = read(&with(&[("version", json!(u32::MAX))])).unwrap();
        for change in [Change::Start, response(200), Change::Remove] {
            assert!(record.apply(&change, UNIX_EPOCH));
        }
        same(&Record::from_bytes(&record.to_bytes()).unwrap(), &record);
    }

    #[test]
    fn bounds_hold_for_what_is_read() {
        let long = "é".repeat(500);
        let record = read(&with(&[
            ("ttl", json!(u64::MAX)),
            ("progress", json!({"ratio": 7.5, "message": long})),
        ]))
        .unwrap();
        assert_eq!(record.ttl(), Record::MAX_TTL);
        let progress = record.progress().unwrap();
        assert_eq!(progress.ratio(), Some(1.0));
        assert_eq!(progress.message().unwrap().len(), Progress::MAX_MESSAGE);
        assert!(read(&with(&[("created_at", json!(u64::MAX))])).is_ok());
    }

    #[test]
    fn a_time_out_of_range_is_the_nearest_in_it() {
        let far = UNIX_EPOCH + Duration::from_secs(1 << 36);
        for (time, kept) in [
            (UNIX_EPOCH - Duration::from_secs(1), UNIX_EPOCH),
            (far, UNIX_EPOCH + Duration::from_nanos(u64::MAX - 1)),
        ] {
            let record = Record::running(JobId::random().unwrap(), time, Duration::MAX);
            let record = Record::from_bytes(&record.to_bytes()).unwrap();
            assert_eq!((record.created_at(), record.started_at()), (kept, Some(kept)));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let running = [("status", json!("running")), ("started_at", json!(1_000))];
        let canceled = [("status", json!("canceled")), ("finished_at", json!(1_000))];
        let succeeded = [
            ("status", json!("succeeded")),
            ("finished_at", json!(1_000)),
            ("response_status", json!(200)),
        ];
        let failed = [
            ("status", json!("failed")),
            ("finished_at", json!(1_000)),
            ("failure", json!("timed_out")),
        ];
        let bases: [&[(&str, Value)]; 5] = [&[], &running, &canceled, &succeeded, &failed];
        for base in bases {
            assert!(read(&with(base)).is_ok(), "{base:?}");
        }
        let null = Value::Null;
        let rows: [(usize, &str, Value); 24] = [
            (0, "started_at", json!(1_000)),
            (0, "finished_at", json!(1_000)),
            (0, "removed", json!(true)),
            (0, "status_version", json!(1)),
            (0, "response_status", json!(200)),
            (0, "owner", json!("ab")),
            (0, "owner", json!("AB".repeat(32))),
            (0, "owner", json!("é".repeat(32))),
            (0, "claim", json!({"key": "01".repeat(32)})),
            (0, "claim", json!({"key": "01".repeat(32), "fingerprint": "02".repeat(33)})),
            (0, "id", json!("0123")),
            (0, "version", json!(-1)),
            (1, "started_at", null.clone()),
            (1, "started_at", json!(999)),
            (1, "failure", json!("panicked")),
            (2, "finished_at", null.clone()),
            (2, "finished_at", json!(999)),
            (2, "started_at", json!(1_001)),
            (2, "failure", json!("panicked")),
            (3, "response_status", null.clone()),
            (3, "response_status", json!(404)),
            (3, "response_status", json!(99)),
            (4, "response_status", json!(500)),
            (4, "failure", null),
        ];
        for (base, name, value) in rows {
            let fields = [bases[base], &[(name, value)]].concat();
            let error = read(&with(&fields)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{fields:?}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in ["", "null", "[]", "{}", "7", "\"queued\"", "{\"id\":", "\u{feff}{}"] {
            let error = Record::from_bytes(bytes.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{bytes}");
        }
        let twice = [full().to_bytes(), full().to_bytes()].concat();
        assert!(Record::from_bytes(&twice).is_err());
    }

    fn changes() -> impl Strategy<Value = Change> {
        let failures = vec![
            Failure::Panicked,
            Failure::ServiceError,
            Failure::TimedOut,
            Failure::TooLarge,
            Failure::Interrupted,
            Failure::NodeLost,
            Failure::Corrupt,
        ];
        prop_oneof![
            Just(Change::Start),
            progress().prop_map(Change::Progress),
            (200u16..600).prop_map(response),
            proptest::sample::select(failures)
                .prop_map(|failure| Change::Finish(End::Failure(failure))),
            Just(Change::Cancel),
            Just(Change::Remove),
        ]
    }

    /// With few digits: JSON's reader may take more than 15 for a neighbour of what was written.
    fn progress() -> impl Strategy<Value = Progress> {
        (option::of(0u16..=10_000), option::of(any::<String>())).prop_map(|(ratio, message)| {
            Progress::new(ratio.map(|ratio| f64::from(ratio) / 10_000.0), message.as_deref())
        })
    }

    fn times() -> impl Strategy<Value = SystemTime> {
        any::<u64>().prop_map(|nanos| UNIX_EPOCH + Duration::from_nanos(nanos))
    }

    prop_compose! {
        fn records()(
            created in times(),
            ttl in any::<u64>().prop_map(Duration::from_nanos),
            runs in any::<bool>(),
            policy in option::of(any::<String>()),
            owner in option::of(any::<[u8; 32]>()),
            claim in option::of(any::<([u8; 32], [u8; 32])>()),
            progress in option::of(progress()),
            attempts in option::of(1..=u16::MAX),
            changes in vec((changes(), times()), 0..6),
        ) -> Record {
            let make = if runs { Record::running } else { Record::queued };
            let mut record = make(JobId::random().unwrap(), created, ttl);
            if let Some(policy) = policy {
                record = record.with_policy(policy.into());
            }
            if let Some(owner) = owner {
                record = record.with_owner(owner.into());
            }
            if let Some((key, print)) = claim {
                record = record.with_claim(Claim::new(key.into(), print.into()));
            }
            if let Some(progress) = progress {
                record = record.with_progress(progress);
            }
            if let Some(attempts) = attempts {
                record = record.with_attempts(attempts);
            }
            for (change, at) in changes {
                record.apply(&change, at);
            }
            record
        }
    }

    proptest! {
        #[test]
        fn every_record_is_read_back_as_it_was(record in records()) {
            same(&Record::from_bytes(&record.to_bytes()).unwrap(), &record);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..300)) {
            let _ = Record::from_bytes(&bytes);
        }

        #[test]
        fn every_damaged_record_is_refused_or_read(
            record in records(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = record.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Record::from_bytes(&bytes).map(|record| record.expires_at());
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Record::from_bytes(&bytes).is_err());
        }
    }
}
