//! `Idempotency-Key`: the input is a line of the header for each of its lines.

#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tower_offload::fuzzing::idempotency_key;

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append("idempotency-key", line);
        }
    }
    let lines = headers.get_all("idempotency-key").iter().count();
    match idempotency_key(&headers) {
        Ok(None) => assert_eq!(lines, 0),
        Err(detail) => assert!(lines > 0 && detail.contains("Send ")),
        Ok(Some(key)) => {
            assert_eq!(lines, 1, "several keys");
            assert!((1..=255).contains(&key.len()), "{} bytes", key.len());
            assert!(key.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{key:?}");
            let escaped = key.replace('\\', "\\\\").replace('"', "\\\"");
            let mut again = HeaderMap::new();
            let line = HeaderValue::try_from(format!("\"{escaped}\"")).unwrap();
            again.append("idempotency-key", line);
            assert_eq!(idempotency_key(&again), Ok(Some(key)), "what was read says the same again");
        }
    }
});
