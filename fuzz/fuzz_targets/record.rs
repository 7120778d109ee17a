//! A job's record, as a store outside of the process gives it back. The input is the record's
//! bytes; behind a byte 255, which no text has, come changes that are made to it.

#![no_main]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_offload::{Change, End, Failure, Outcome, Progress, Record, fuzzing::document};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 255);
    let (bytes, changes) = (parts.next().unwrap_or(b""), parts.next().unwrap_or(b""));
    let Ok(mut record) = Record::from_bytes(bytes) else { return };
    check(&record);
    for step in changes.chunks_exact(2) {
        let before = record.clone();
        let at = UNIX_EPOCH + Duration::from_secs(u64::from(step[1]) << 26);
        if record.apply(&change(step[0]), at) {
            allowed(&before, &record);
        } else {
            same(&before, &record);
        }
        check(&record);
    }
});

fn change(number: u8) -> Change {
    match number % 8 {
        0 => Change::Start,
        1 => Change::Cancel,
        2 => Change::Remove,
        3 => {
            Change::Progress(Progress::new(Some(f64::from(number) / 200.0), Some("some \"rows\"")))
        }
        4 => Change::Progress(Progress::new(Some(f64::NAN), None)),
        5 => Change::Finish(End::Failure(Failure::Panicked)),
        _ => {
            let mut head = Response::new(()).into_parts().0;
            head.status = StatusCode::from_u16(100 + u16::from(number) * 3).unwrap();
            Change::Finish(End::Response(Outcome::new(&head, b"", None)))
        }
    }
}

/// What holds for every record, and for what is told of it.
fn check(record: &Record) {
    let bytes = record.to_bytes();
    let again = Record::from_bytes(&bytes).expect("what is written is read");
    same(record, &again);
    let created = record.created_at();
    let times = [record.started_at(), record.finished_at(), Some(record.expires_at())];
    assert!(times.into_iter().flatten().all(|time| time >= created));
    let ended = record.status().is_end();
    assert_eq!(ended, record.finished_at().is_some());
    assert!(ended || !record.is_removed());
    assert!(record.status_version() <= record.version());
    let told = String::from_utf8(document(record)).expect("a document is text");
    assert!(told.contains(&record.id().to_string()));
    assert!(!told.contains(|c: char| c.is_ascii_control()), "{told:?}");
    // Far off, but a time that can be counted with.
    let _ = record.expires_at().duration_since(SystemTime::now());
}

fn allowed(before: &Record, after: &Record) {
    assert_eq!(before.id(), after.id());
    assert!(after.version() >= before.version());
    assert!(after.expires_at() >= before.expires_at(), "a promise has moved earlier");
    if before.status().is_end() {
        assert_eq!(before.status(), after.status());
        assert!(!before.is_removed() && after.is_removed());
    }
}

fn same(one: &Record, other: &Record) {
    assert_eq!(one.to_bytes(), other.to_bytes());
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    assert_eq!((one.owner(), one.claim()), (other.owner(), other.claim()));
}
