//! What the fuzz targets under `fuzz/` see of the inside. Compiled with `--cfg fuzzing` only, which
//! `cargo fuzz` sets, and no part of the API.

#![allow(missing_docs)]

use std::time::Duration;

use http::HeaderMap;

use crate::{
    error::Error,
    job::{JobId, Outcome, Record},
    wire::{self, LocationStyle, Outlook, Preferences, Resource, Urls},
};

/// Whether `respond-async` was preferred, and the `wait`.
pub fn prefer(headers: &HeaderMap) -> (bool, Option<Duration>) {
    let found = Preferences::of(headers);
    (found.respond_async, found.wait)
}

/// The key, or what is told of one that is none.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let key = wire::idempotency_key(headers).map_err(|bad| bad.detail())?;
    Ok(key.map(std::borrow::Cow::into_owned))
}

/// What a status document says of this job.
pub fn document(record: &Record) -> Vec<u8> {
    let outlook = Outlook { retry_after: Duration::ZERO, eta: None, queue_position: Some(1) };
    // A path that is a valid one.
    let Ok(StatusPath(urls)) = StatusPath::new("/jobs") else { return Vec::new() };
    wire::accepted(&urls, record, &outlook, None).into_body().into()
}

/// Replays this outcome in both ways; gives the bodies' lengths.
pub fn replay(outcome: &Outcome) -> [usize; 2] {
    [wire::replayed, wire::answered]
        .map(|replay| replay(outcome.status(), outcome.headers(), outcome.body()).body().len())
}

pub struct StatusPath(Urls);

impl StatusPath {
    pub fn new(path: &str) -> Result<Self, Error> {
        Urls::new(path, None, LocationStyle::Job, false).map(Self)
    }

    /// The job that a request's path names, and what comes behind its id.
    pub fn read(&self, path: &str) -> Option<(JobId, &'static str)> {
        let (id, resource) = self.0.resource(path)?;
        let end = match resource {
            Resource::Job => "",
            Resource::Status => "/status",
            Resource::Result => "/result",
        };
        Some((id, end))
    }

    /// The three URLs of a job.
    pub fn urls(&self, id: JobId) -> [String; 3] {
        ["", "/status", "/result"].map(|end| format!("{}/{id}{end}", self.0.base()))
    }

    pub fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        self.0.below(path)
    }

    pub fn is_status_path(&self, path: &str) -> bool {
        self.0.is_status_path(path)
    }
}
