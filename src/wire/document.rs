//! The 202 answer and the status document.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::{
    problem::{self, Problem},
    urls::Urls,
};
use crate::job::{Record, Status};

/// Everything under the status path is this: a cached copy would get round owner and removal.
pub(crate) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");

#[derive(Serialize)]
struct Document {
    job_id: String,
    status: Status,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    expires_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
    links: Links,
    #[serde(rename = "resourceLocation", skip_serializing_if = "Option::is_none")]
    resource_location: Option<String>,
}

#[derive(Serialize)]
struct Links {
    #[serde(rename = "self")]
    job: String,
    status: String,
    result: String,
}

/// The status document's bytes.
fn json(urls: &Urls, record: &Record) -> Bytes {
    let id = record.id();
    let azure = urls.operation_location() && record.status().is_end();
    let document = Document {
        job_id: id.to_string(),
        status: record.status(),
        created_at: rfc3339(record.created_at()),
        started_at: record.started_at().map(rfc3339),
        finished_at: record.finished_at().map(rfc3339),
        expires_at: rfc3339(record.expires_at()),
        response_status: record.response_status().map(|status| status.as_u16()),
        error: problem::of_record(record),
        links: Links { job: urls.job(id), status: urls.status(id), result: urls.result(id) },
        resource_location: azure.then(|| urls.result(id)),
    };
    // Serializing plain strings and numbers into memory cannot fail.
    Bytes::from(serde_json::to_vec(&document).unwrap_or_default())
}

/// A time as RFC 3339 has it, in UTC with milliseconds. One beyond the year 9999, which that format
/// cannot hold, is the last one that it can.
fn rfc3339(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

/// `Retry-After` in whole seconds, rounded up and at least 1 (RFC 9110, section 10.2.3): a client
/// that is told 0 asks in a tight loop.
pub(crate) fn retry_after(time: Duration) -> HeaderValue {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    HeaderValue::from(seconds.max(1))
}

/// The document as a response of this status.
fn response(status: StatusCode, urls: &Urls, record: &Record) -> Response<Bytes> {
    let mut response = Response::new(json(urls, record));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    response
}

fn insert(response: &mut Response<Bytes>, name: HeaderName, value: &str) {
    // All that comes here is made of checked paths, ids and digits.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The 202 that takes a request off its connection. `applied` is the preference that was honoured:
/// `respond-async`, and the seconds of `wait` beside it.
pub(crate) fn accepted(
    urls: &Urls,
    record: &Record,
    retry: Duration,
    applied: Option<Option<Duration>>,
) -> Response<Bytes> {
    let mut response = in_progress(urls, record, retry);
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Prefer"));
    let link = format!("<{}>; rel=\"status monitor\"", urls.status(record.id()));
    insert(&mut response, header::LINK, &link);
    match applied {
        None => {}
        Some(None) => insert(&mut response, PREFERENCE_APPLIED, "respond-async"),
        Some(Some(wait)) => {
            let value = format!("respond-async, wait={}", wait.as_secs());
            insert(&mut response, PREFERENCE_APPLIED, &value);
        }
    }
    if urls.operation_location() {
        insert(&mut response, OPERATION_LOCATION, &urls.status(record.id()));
    }
    response
}

/// 202: the job has not ended, ask again there and then.
pub(crate) fn in_progress(urls: &Urls, record: &Record, retry: Duration) -> Response<Bytes> {
    let mut response = response(StatusCode::ACCEPTED, urls, record);
    insert(&mut response, header::LOCATION, &urls.location(record.id()));
    response.headers_mut().insert(header::RETRY_AFTER, retry_after(retry));
    response
}

/// 200 with the document, and `Retry-After` while the job has not ended.
pub(crate) fn document(urls: &Urls, record: &Record, retry: Duration) -> Response<Bytes> {
    let mut response = response(StatusCode::OK, urls, record);
    if !record.status().is_end() {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after(retry));
    }
    response
}

/// 303 to the result of a job that has ended.
pub(crate) fn see_other(urls: &Urls, record: &Record) -> Response<Bytes> {
    let mut response = response(StatusCode::SEE_OTHER, urls, record);
    insert(&mut response, header::LOCATION, &urls.result(record.id()));
    response
}

/// 409: the job has ended and can't be canceled any more; nothing is lost.
pub(crate) fn conflict(urls: &Urls, record: &Record) -> Response<Bytes> {
    response(StatusCode::CONFLICT, urls, record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Change, End, Failure, JobId},
        wire::LocationStyle,
    };

    fn urls(style: LocationStyle, azure: bool) -> Urls {
        Urls::new("/jobs", Some("https://pub.example/x/jobs"), style, azure).unwrap()
    }

    fn running() -> Record {
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        Record::running(
            "0".repeat(32).parse::<JobId>().unwrap(),
            created,
            Duration::from_secs(3600),
        )
    }

    #[test]
    fn a_document_in_full() {
        let mut record = running();
        let at = record.created_at() + Duration::from_secs(5);
        assert!(record.apply(&Change::Finish(End::Failure(Failure::TimedOut)), at));
        let body = json(&urls(LocationStyle::Job, true), &record);
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let id = record.id();
        assert_eq!(
            document,
            serde_json::json!({
                "job_id": id.to_string(),
                "status": "failed",
                "created_at": "2023-11-14T22:13:20.123Z",
                "started_at": "2023-11-14T22:13:20.123Z",
                "finished_at": "2023-11-14T22:13:25.123Z",
                "expires_at": "2023-11-14T23:13:25.123Z",
                "error": {
                    "type": "urn:tower-offload:problem:timed-out",
                    "title": "The work took too long",
                    "status": 504,
                    "detail": "The job reached its run-time limit and was stopped.",
                },
                "links": {
                    "self": format!("https://pub.example/x/jobs/{id}"),
                    "status": format!("https://pub.example/x/jobs/{id}/status"),
                    "result": format!("https://pub.example/x/jobs/{id}/result"),
                },
                "resourceLocation": format!("https://pub.example/x/jobs/{id}/result"),
            })
        );
    }

    #[test]
    fn headers_of_a_202() {
        let record = running();
        let job = format!("https://pub.example/x/jobs/{}", record.id());
        let retry = Duration::from_millis(1200);
        let answer = accepted(
            &urls(LocationStyle::Job, false),
            &record,
            retry,
            Some(Some(Duration::from_secs(3))),
        );
        let header =
            |name| answer.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap());
        assert_eq!(answer.status(), 202);
        assert_eq!(header("location"), Some(&*job));
        assert_eq!(header("retry-after"), Some("2"));
        assert_eq!(header("link"), Some(&*format!("<{job}/status>; rel=\"status monitor\"")));
        assert_eq!(header("cache-control"), Some("no-store"));
        assert_eq!(header("vary"), Some("Prefer"));
        assert_eq!(header("preference-applied"), Some("respond-async, wait=3"));
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("operation-location"), None);
    }

    #[test]
    fn location_styles() {
        let record = running();
        for (style, end) in [
            (LocationStyle::Job, ""),
            (LocationStyle::Result, "/result"),
            (LocationStyle::Status, "/status"),
        ] {
            let answer = accepted(&urls(style, true), &record, Duration::ZERO, None);
            let job = format!("https://pub.example/x/jobs/{}", record.id());
            assert_eq!(answer.headers()["location"], format!("{job}{end}"));
            assert_eq!(answer.headers()["operation-location"], format!("{job}/status"));
            assert_eq!(answer.headers()["retry-after"], "1");
        }
    }

    #[test]
    fn times_that_the_format_cannot_hold_are_clamped() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert!(rfc3339(far).starts_with("9999-12-"), "{}", rfc3339(far));
    }
}
