//! The 202 answer and the status document.
//!
//! Written by hand into one buffer, of which the body and the headers that name URLs are slices. Its
//! unit tests hold it to be what serde writes, byte for byte.

use std::{ops::Range, sync::LazyLock, time::Duration};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    problem,
    text::{push_number, rfc3339},
    urls::{LocationStyle, Urls},
};
use crate::job::{Progress, Record};

/// Everything under the status path is this: a cached copy would get round owner and removal.
pub(crate) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");

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

/// The status document, behind the value of `Link` where that is told.
struct Document {
    text: Bytes,
    /// Where the JSON begins.
    json: usize,
    /// Where the job's URLs stand in it.
    job: Range<usize>,
    status: Range<usize>,
    result: Range<usize>,
}

impl Document {
    /// `outlook` counts only until the job has ended.
    fn new(urls: &Urls, record: &Record, outlook: Option<&Outlook>) -> Self {
        Writer::new(urls, record).document(record, outlook)
    }

    /// The same with the `Link` of a 202 before it.
    fn with_link(urls: &Urls, record: &Record, outlook: &Outlook) -> Self {
        let mut writer = Writer::new(urls, record);
        writer.push("<");
        writer.url("/status");
        writer.push(">; rel=\"status monitor\"");
        writer.document(record, Some(outlook))
    }

    /// The last to be taken: without what was before the JSON.
    fn into_body(mut self) -> Bytes {
        self.text.advance(self.json);
        self.text
    }

    fn link(&self) -> HeaderValue {
        self.value(&(0..self.json))
    }

    /// The URL that `Location` names.
    fn location(&self, style: LocationStyle) -> HeaderValue {
        self.value(match style {
            LocationStyle::Job => &self.job,
            LocationStyle::Result => &self.result,
            LocationStyle::Status => &self.status,
        })
    }

    fn value(&self, range: &Range<usize>) -> HeaderValue {
        // All that comes here is made of checked paths, ids and digits.
        HeaderValue::from_maybe_shared(self.text.slice(range.clone())).unwrap_or(EMPTY)
    }
}

const EMPTY: HeaderValue = HeaderValue::from_static("");

/// Writes the texts of one job.
struct Writer<'a> {
    urls: &'a Urls,
    id: [u8; 32],
    text: Vec<u8>,
    /// Where the job's URL stands, once it was written.
    url: Option<Range<usize>>,
}

impl<'a> Writer<'a> {
    fn new(urls: &'a Urls, record: &Record) -> Self {
        /// Enough for all of a 202 but its URLs; a message or a problem may make it grow.
        const TEXT: usize = 320;
        let urls_len = 4 * (urls.base().len() + "/00000000000000000000000000000000/status".len());
        let id = record.id().digits();
        Self { urls, id, text: Vec::with_capacity(TEXT + urls_len), url: None }
    }

    fn push(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    fn time(&mut self, name: &str, time: &[u8; 24]) {
        self.push(name);
        self.text.extend_from_slice(time);
    }

    fn number(&mut self, name: &str, number: u64) {
        self.push(name);
        push_number(&mut self.text, number);
    }

    /// What has to be escaped, or is no whole number.
    fn json(&mut self, name: &str, value: &impl serde::Serialize) {
        self.push(name);
        // Serializing plain strings and numbers into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.text, value);
    }

    /// The job's URL with this at its end.
    fn url(&mut self, end: &str) -> Range<usize> {
        let start = self.text.len();
        match self.url.clone() {
            Some(url) => self.text.extend_from_within(url),
            None => {
                self.push(self.urls.base());
                self.push("/");
                self.text.extend_from_slice(&self.id);
                self.url = Some(start..self.text.len());
            }
        }
        self.push(end);
        start..self.text.len()
    }

    fn document(mut self, record: &Record, outlook: Option<&Outlook>) -> Document {
        let json = self.text.len();
        self.push("{\"job_id\":\"");
        let id = self.id;
        self.text.extend_from_slice(&id);
        self.json("\",\"status\":", &record.status());
        self.times(record);
        if let Some(attempt) = record.attempt() {
            self.number(",\"attempt\":", attempt.into());
        }
        if let Some(progress) = record.progress() {
            self.progress(progress);
        }
        if let Some(position) = outlook.and_then(|outlook| outlook.queue_position) {
            self.number(",\"queue_position\":", position as u64);
        }
        if let Some(eta) = outlook.and_then(|outlook| outlook.eta) {
            self.number(",\"eta_seconds\":", whole_seconds(eta));
        }
        if let Some(status) = record.response_status() {
            self.number(",\"response_status\":", status.as_u16().into());
        }
        if let Some(problem) = problem::of_record(record) {
            self.json(",\"error\":", &problem);
        }
        self.push(",\"links\":{\"self\":\"");
        let job = self.url("");
        self.push("\",\"status\":\"");
        let status = self.url("/status");
        self.push("\",\"result\":\"");
        let result = self.url("/result");
        self.push("\"}");
        if self.urls.operation_location() && record.status().is_end() {
            self.push(",\"resourceLocation\":\"");
            self.url("/result");
            self.push("\"");
        }
        self.push("}");
        Document { text: Bytes::from(self.text), json, job, status, result }
    }

    fn times(&mut self, record: &Record) {
        let created_at = rfc3339(record.created_at());
        self.time(",\"created_at\":\"", &created_at);
        if let Some(started_at) = record.started_at() {
            let same = started_at == record.created_at();
            let started_at = if same { created_at } else { rfc3339(started_at) };
            self.time("\",\"started_at\":\"", &started_at);
        }
        if let Some(finished_at) = record.finished_at() {
            self.time("\",\"finished_at\":\"", &rfc3339(finished_at));
        }
        self.time("\",\"expires_at\":\"", &rfc3339(record.expires_at()));
        self.push("\"");
    }

    fn progress(&mut self, progress: &Progress) {
        self.push(",\"progress\":{");
        if let Some(ratio) = progress.ratio() {
            self.json("\"ratio\":", &ratio);
        }
        if let Some(message) = progress.message() {
            let name = if progress.ratio().is_some() { ",\"message\":" } else { "\"message\":" };
            self.json(name, &message);
        }
        self.push("}");
    }
}

/// `Retry-After` in whole seconds, rounded up and at least 1 (RFC 9110, section 10.2.3): a client
/// that is told 0 asks in a tight loop.
pub(crate) fn retry_after(time: Duration) -> HeaderValue {
    match whole_seconds(time) {
        0 | 1 => HeaderValue::from_static("1"),
        seconds => HeaderValue::from(seconds),
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The document as a response of this status.
fn response(status: StatusCode, document: Document, headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(document.into_body());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The headers of every document, with room for so many.
fn headers(count: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(count);
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers
}

/// The headers of a 202, with what differs left empty: to copy such a map and write into it costs
/// about half of what it costs to fill one.
static ACCEPTED: LazyLock<HeaderMap> = LazyLock::new(|| {
    let mut headers = headers(6);
    headers.insert(header::VARY, HeaderValue::from_static("Prefer"));
    for name in [header::LINK, header::LOCATION, header::RETRY_AFTER] {
        headers.insert(name, EMPTY);
    }
    headers
});

/// The 202 that takes a request off its connection. `applied` is the preference that was honoured:
/// `respond-async`, and the seconds of `wait` beside it.
pub(crate) fn accepted(
    urls: &Urls,
    record: &Record,
    outlook: &Outlook,
    applied: Option<Option<Duration>>,
) -> Response<Bytes> {
    let document = Document::with_link(urls, record, outlook);
    let mut headers = ACCEPTED.clone();
    for (name, value) in headers.iter_mut().filter(|(_, value)| value.is_empty()) {
        if *name == header::LINK {
            *value = document.link();
        } else if *name == header::LOCATION {
            *value = document.location(urls.style());
        } else {
            *value = retry_after(outlook.retry_after);
        }
    }
    if let Some(wait) = applied {
        headers.insert(PREFERENCE_APPLIED, applied_value(wait));
    }
    if urls.operation_location() {
        headers.insert(OPERATION_LOCATION, document.location(LocationStyle::Status));
    }
    response(StatusCode::ACCEPTED, document, headers)
}

fn applied_value(wait: Option<Duration>) -> HeaderValue {
    const ASYNC: HeaderValue = HeaderValue::from_static("respond-async");
    let Some(wait) = wait else { return ASYNC };
    // Made of digits and letters.
    HeaderValue::try_from(format!("respond-async, wait={}", wait.as_secs())).unwrap_or(ASYNC)
}

/// 202: the job has not ended, ask again there and then.
pub(crate) fn in_progress(urls: &Urls, record: &Record, outlook: &Outlook) -> Response<Bytes> {
    let document = Document::new(urls, record, Some(outlook));
    let mut headers = headers(4);
    headers.insert(header::LOCATION, document.location(urls.style()));
    headers.insert(header::RETRY_AFTER, retry_after(outlook.retry_after));
    response(StatusCode::ACCEPTED, document, headers)
}

/// 200 with the document, and `Retry-After` while the job has not ended.
pub(crate) fn document(urls: &Urls, record: &Record, outlook: &Outlook) -> Response<Bytes> {
    let ended = record.status().is_end();
    let mut headers = headers(3);
    if !ended {
        headers.insert(header::RETRY_AFTER, retry_after(outlook.retry_after));
    }
    let document = Document::new(urls, record, (!ended).then_some(outlook));
    response(StatusCode::OK, document, headers)
}

/// 303 to the result of a job that has ended.
pub(crate) fn see_other(urls: &Urls, record: &Record) -> Response<Bytes> {
    let document = Document::new(urls, record, None);
    let mut headers = headers(3);
    headers.insert(header::LOCATION, document.location(LocationStyle::Result));
    response(StatusCode::SEE_OTHER, document, headers)
}

/// 409: the job has ended and can't be canceled any more; nothing is lost.
pub(crate) fn conflict(urls: &Urls, record: &Record) -> Response<Bytes> {
    response(StatusCode::CONFLICT, Document::new(urls, record, None), headers(2))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::{option, prelude::*};
    use serde::Serialize;

    use super::*;
    use crate::{
        job::{Change, End, Failure, JobId, Outcome, Status},
        wire::problem::Problem,
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
        let body = Document::new(&urls(LocationStyle::Job, true), &record, None).into_body();
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

    /// The document as serde writes it.
    #[derive(Serialize)]
    struct Oracle {
        job_id: String,
        status: Status,
        created_at: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        started_at: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        finished_at: Option<String>,
        expires_at: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        attempt: Option<u16>,
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

    fn oracle(urls: &Urls, record: &Record, outlook: Option<&Outlook>) -> String {
        let url = |end: &str| format!("{}/{}{end}", urls.base(), record.id());
        let time = |time| format!("{:.3}", jiff::Timestamp::try_from(time).unwrap());
        let azure = urls.operation_location() && record.status().is_end();
        serde_json::to_string(&Oracle {
            job_id: record.id().to_string(),
            status: record.status(),
            created_at: time(record.created_at()),
            started_at: record.started_at().map(time),
            finished_at: record.finished_at().map(time),
            expires_at: time(record.expires_at()),
            attempt: record.attempt(),
            progress: record.progress().map(|progress| Done {
                ratio: progress.ratio(),
                message: progress.message().map(str::to_owned),
            }),
            queue_position: outlook.and_then(|outlook| outlook.queue_position),
            eta_seconds: outlook.and_then(|outlook| outlook.eta).map(whole_seconds),
            response_status: record.response_status().map(|status| status.as_u16()),
            error: problem::of_record(record),
            links: Links { job: url(""), status: url("/status"), result: url("/result") },
            resource_location: azure.then(|| url("/result")),
        })
        .unwrap()
    }

    fn end() -> impl Strategy<Value = Option<Change>> {
        let response = (200u16..600).prop_map(|status| {
            let mut head = Response::new(()).into_parts().0;
            head.status = StatusCode::from_u16(status).unwrap();
            End::Response(Outcome::new(&head, b"", None))
        });
        let failure = prop_oneof![
            Just(Failure::Panicked),
            Just(Failure::ServiceError),
            Just(Failure::TimedOut),
            Just(Failure::TooLarge),
            Just(Failure::Interrupted),
            Just(Failure::NodeLost),
            Just(Failure::Corrupt),
        ]
        .prop_map(End::Failure);
        option::of(prop_oneof![
            response.prop_map(Change::Finish),
            failure.prop_map(Change::Finish),
            Just(Change::Cancel),
        ])
    }

    fn record() -> impl Strategy<Value = Record> {
        let times = (0u64..200_000_000_000_000, 0u64..10_000_000, 0u64..10_000_000, 0u64..1 << 32);
        let progress = option::of((option::of(-0.1..1.1), option::of(any::<String>())));
        let id = "[0-9a-f]{32}";
        let job = (any::<bool>(), 0u16..3);
        (id, times, job, progress, end()).prop_map(
            |(id, times, (runs, attempts), progress, end)| {
                let (created, waited, ran, ttl) = times;
                let created = SystemTime::UNIX_EPOCH + Duration::from_millis(created);
                let started = created + Duration::from_micros(waited);
                let (id, ttl) = (id.parse().unwrap(), Duration::from_secs(ttl));
                let mut record = match runs {
                    true => Record::running(id, created, ttl),
                    false => Record::queued(id, created, ttl),
                };
                if attempts > 0 {
                    record = record.with_attempts(attempts);
                }
                record.apply(&Change::Start, started);
                if let Some((ratio, message)) = progress {
                    record.apply(
                        &Change::Progress(Progress::new(ratio, message.as_deref())),
                        started,
                    );
                }
                if let Some(end) = end {
                    record.apply(&end, started + Duration::from_micros(ran));
                }
                record
            },
        )
    }

    fn outlook() -> impl Strategy<Value = Outlook> {
        let time = || (0u64..1 << 40).prop_map(Duration::from_millis);
        (time(), option::of(time()), option::of(any::<usize>())).prop_map(
            |(retry_after, eta, queue_position)| Outlook { retry_after, eta, queue_position },
        )
    }

    proptest! {
        /// Written by hand, it is what serde writes.
        #[test]
        fn documents_are_those_of_serde(
            record in record(),
            outlook in outlook(),
            azure: bool,
            base in prop_oneof![Just("/jobs"), Just("https://pub.example/a%20b/~jobs")],
        ) {
            let urls = Urls::new("/jobs", Some(base), LocationStyle::Job, azure).unwrap();
            let expected = oracle(&urls, &record, Some(&outlook));
            let answers = [
                accepted(&urls, &record, &outlook, None),
                in_progress(&urls, &record, &outlook),
            ];
            for answer in answers {
                prop_assert_eq!(std::str::from_utf8(answer.body()).unwrap(), &expected);
            }
            let (plain, ended) = (oracle(&urls, &record, None), record.status().is_end());
            let told = document(&urls, &record, &outlook).into_body();
            prop_assert_eq!(&told, if ended { &plain } else { &expected });
            prop_assert_eq!(see_other(&urls, &record).into_body(), &plain);
            prop_assert_eq!(conflict(&urls, &record).into_body(), &plain);
        }
    }
}
