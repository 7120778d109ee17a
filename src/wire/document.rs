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
    progress: Option<Done>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
    links: Links,
    #[serde(rename = "resourceLocation", skip_serializing_if = "Option::is_none")]
    resource_location: Option<String>,
}

#[derive(Serialize)]
struct Done {
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Serialize)]
struct Links {
    #[serde(rename = "self")]
    job: String,
    status: String,
    result: String,
}

/// What a client may expect of a job that has not ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlook {
    /// When to ask again.
    pub(crate) retry_after: Duration,
    /// How long it is likely to take, if anything is known of that.
    pub(crate) eta: Option<Duration>,
    /// 1 is next.
    pub(crate) queue_position: Option<usize>,
}

/// The status document's bytes. `outlook` counts only until the job has ended.
fn json(urls: &Urls, record: &Record, outlook: Option<&Outlook>) -> Bytes {
    let id = record.id();
    let azure = urls.operation_location() && record.status().is_end();
    let document = Document {
        job_id: id.to_string(),
        status: record.status(),
        created_at: rfc3339(record.created_at()),
        started_at: record.started_at().map(rfc3339),
        finished_at: record.finished_at().map(rfc3339),
        expires_at: rfc3339(record.expires_at()),
        progress: record.progress().map(|progress| Done {
            ratio: progress.ratio(),
            message: progress.message().map(str::to_owned),
        }),
        queue_position: outlook.and_then(|outlook| outlook.queue_position),
        eta_seconds: outlook.and_then(|outlook| outlook.eta).map(whole_seconds),
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
    HeaderValue::from(whole_seconds(time).max(1))
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The document as a response of this status.
fn response(
    status: StatusCode,
    urls: &Urls,
    record: &Record,
    outlook: Option<&Outlook>,
) -> Response<Bytes> {
    let mut response = Response::new(json(urls, record, outlook));
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
    outlook: &Outlook,
    applied: Option<Option<Duration>>,
) -> Response<Bytes> {
    let mut response = in_progress(urls, record, outlook);
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
pub(crate) fn in_progress(urls: &Urls, record: &Record, outlook: &Outlook) -> Response<Bytes> {
    let mut response = response(StatusCode::ACCEPTED, urls, record, Some(outlook));
    insert(&mut response, header::LOCATION, &urls.location(record.id()));
    response.headers_mut().insert(header::RETRY_AFTER, retry_after(outlook.retry_after));
    response
}

/// 200 with the document, and `Retry-After` while the job has not ended.
pub(crate) fn document(urls: &Urls, record: &Record, outlook: &Outlook) -> Response<Bytes> {
    let ended = record.status().is_end();
    let mut response = response(StatusCode::OK, urls, record, (!ended).then_some(outlook));
    if !ended {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after(outlook.retry_after));
    }
    response
}

/// 303 to the result of a job that has ended.
pub(crate) fn see_other(urls: &Urls, record: &Record) -> Response<Bytes> {
    let mut response = response(StatusCode::SEE_OTHER, urls, record, None);
    insert(&mut response, header::LOCATION, &urls.result(record.id()));
    response
}

/// 409: the job has ended and can't be canceled any more; nothing is lost.
pub(crate) fn conflict(urls: &Urls, record: &Record) -> Response<Bytes> {
    response(StatusCode::CONFLICT, urls, record, None)
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

    fn again_in(retry_after: Duration) -> Outlook {
        Outlook { retry_after, eta: None, queue_position: None }
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
        let body = json(&urls(LocationStyle::Job, true), &record, None);
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
    fn what_is_to_be_expected_is_told_until_the_end() {
        let document = |record: &Record| -> serde_json::Value {
            let outlook = Outlook {
                retry_after: Duration::from_secs(1),
                eta: Some(Duration::from_millis(7001)),
                queue_position: Some(3),
            };
            let answer = document(&urls(LocationStyle::Job, false), record, &outlook);
            serde_json::from_slice(answer.body()).unwrap()
        };
        let mut record = running();
        let progress = crate::job::Progress::new(Some(0.5), Some("row \"5\""));
        assert!(record.apply(&Change::Progress(progress), record.created_at()));
        let told = document(&record);
        assert_eq!((&told["queue_position"], &told["eta_seconds"]), (&3.into(), &8.into()));
        let progress = serde_json::json!({"ratio": 0.5, "message": "row \"5\""});
        assert_eq!(told["progress"], progress);
        assert!(record.apply(&Change::Cancel, record.created_at()));
        let told = document(&record);
        assert!(told.get("queue_position").is_none() && told.get("eta_seconds").is_none());
        assert_eq!(told["progress"], progress);
    }

    #[test]
    fn headers_of_a_202() {
        let record = running();
        let job = format!("https://pub.example/x/jobs/{}", record.id());
        let retry = Duration::from_millis(1200);
        let answer = accepted(
            &urls(LocationStyle::Job, false),
            &record,
            &again_in(retry),
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
            let answer = accepted(&urls(style, true), &record, &again_in(Duration::ZERO), None);
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
