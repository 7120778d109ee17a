//! Paths as requests have them, and status paths as apps configure them. The input is two lines:
//! a status path that is tried beside the usual ones, and the path of a request. In both, `#`
//! stands for the id of a job, which no fuzzer would guess.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_offload::fuzzing::StatusPath;

const ID: &str = "0123456789abcdef0123456789abcdef";

fuzz_target!(|text: &str| {
    let (own, path) = text.split_once('\n').unwrap_or(("", text));
    let (own, path) = (own.replace('#', ID), path.replace('#', ID));
    let with_id = format!("/{ID}/{ID}");
    for status_path in ["/jobs", "/api/jobs", "/jobs/jobs", "/a/b/c", &with_id, &own] {
        match StatusPath::new(status_path) {
            Ok(urls) => check(&urls, status_path, &path),
            Err(error) => assert!(
                status_path == own && !error.to_string().contains(['\r', '\n', '\0']),
                "{error}"
            ),
        }
    }
});

fn check(urls: &StatusPath, status_path: &str, path: &str) {
    let valid: http::Uri = status_path.parse().expect("a status path is one of a URL");
    assert_eq!((valid.path(), valid.query()), (status_path, None));
    if let Some(below) = urls.below(path) {
        assert_eq!(format!("{status_path}/{below}"), path);
        assert!(urls.is_status_path(path));
    }
    let Some((id, end)) = urls.read(path) else { return };
    // What was accepted names that job, in one spelling only, below an end of the status path.
    let above = path.strip_suffix(end).and_then(|path| path.strip_suffix(&id.to_string()));
    let above = above.and_then(|path| path.strip_suffix('/')).expect("the id is in the path");
    assert!(status_path.ends_with(above), "{above} is no end of {status_path}");
    assert!(above.is_empty() || urls.is_status_path(path));
    // And the URL that a client is told for it is read as the same.
    let url = format!("{status_path}/{id}{end}");
    assert!(urls.urls(id).contains(&url));
    assert_eq!(urls.read(&url), Some((id, end)));
    assert!(urls.is_status_path(&url));
}
