//! `Prefer` (RFC 7240) over any header lines: the input is a line of the header for each of its
//! lines.

#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tower_offload::fuzzing::prefer;

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append("prefer", line);
        }
    }
    let (respond_async, wait) = prefer(&headers);

    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    assert!(!respond_async || text.contains("respond-async"), "nobody said respond-async");
    if let Some(wait) = wait {
        assert!(text.contains("wait"), "nobody said wait");
        assert_eq!(wait.subsec_nanos(), 0, "whole seconds");
        // What was read says the same again.
        let mut again = HeaderMap::new();
        again.append("prefer", HeaderValue::try_from(format!("wait={}", wait.as_secs())).unwrap());
        assert_eq!(prefer(&again), (false, Some(wait)));
    }

    // However broken the lines before are, one that is whole counts: a line ends what it begins.
    headers.append("prefer", HeaderValue::from_static("x=\"y\"; z, respond-async"));
    assert_eq!(prefer(&headers), (true, wait));
    // A `wait` in front is the first of several, whatever comes after it.
    let mut first = HeaderMap::new();
    first.append("prefer", HeaderValue::from_static("wait=7"));
    headers.get_all("prefer").iter().for_each(|line| {
        first.append("prefer", line.clone());
    });
    assert_eq!(prefer(&first).1.map(|wait| wait.as_secs()), Some(7));
});
