//! What an answer tells its client, by the documented contract.

use serde_json::Value;

use crate::{
    app::SECRET,
    facts::{Ending, Question, Told},
    port::Reply,
};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// It is this job.
    Job(String),
    /// The handler's own response.
    Response,
    /// A problem of the layer's: the last word of its type.
    Problem(String),
}

/// What the answer to a request says.
pub fn of_submission(reply: &Reply) -> Submitted {
    let document: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    match (reply.status, document["job_id"].as_str(), problem(&document)) {
        (202, Some(job), _) => Submitted::Job(job.to_owned()),
        (_, _, Some(problem)) => Submitted::Problem(problem),
        _ => Submitted::Response,
    }
}

/// Whether a problem is the end of the work that was asked for, and not a refusal to begin it.
pub fn is_end(kind: &str) -> bool {
    [
        "panicked",
        "service-error",
        "timed-out",
        "outcome-too-large",
        "interrupted",
        "node-lost",
        "canceled",
        "removed",
    ]
    .contains(&kind)
}

fn problem(document: &Value) -> Option<String> {
    Some(document["type"].as_str()?.rsplit(':').next()?.to_owned())
}

/// What an answer of the status service says.
pub fn of_question(question: Question, reply: &Reply) -> Told {
    let document: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    let odd = || Told::Odd(format!("{} {}", reply.status, reply.body));
    let state = || match (document["job_id"].is_string(), document["status"].as_str()) {
        (true, Some("queued" | "running")) => open(&document),
        (true, Some(_)) => Told::Ended(ending(&document)),
        _ => odd(),
    };
    match (question, reply.status, problem(&document).as_deref()) {
        (_, 404, Some("unknown-job")) => Told::Unknown,
        (_, 503, Some("store-unavailable")) => Told::Nothing,
        (_, 410, Some("removed")) => Told::Removed,
        (Question::Remove, 204, _) => Told::Removed,
        (Question::Status, 200, _) | (Question::Job | Question::Result, 202, _) => state(),
        (Question::Cancel | Question::Remove, 200 | 409, _) => state(),
        (Question::Job, 303, _) => match state() {
            Told::Ended(ending) => Told::Ended(ending),
            _ => odd(),
        },
        (Question::Result, _, Some(problem)) => Told::Problem(problem.to_owned()),
        (Question::Result, status, None) => Told::Outcome(status, reply.body.clone()),
        _ => odd(),
    }
}

fn open(document: &Value) -> Told {
    Told::Open {
        status: document["status"].as_str().unwrap_or_default().to_owned(),
        attempt: document["attempt"].as_u64(),
        position: document["queue_position"].as_u64(),
    }
}

fn ending(document: &Value) -> Ending {
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    Ending {
        status: text("status"),
        problem: problem(&document["error"]),
        response: document["response_status"].as_u64(),
        finished_at: text("finished_at"),
        attempt: document["attempt"].as_u64(),
    }
}

/// Text of the inside that an answer shows, if it does.
pub fn leak(reply: &Reply) -> Option<&'static str> {
    let inside = [
        SECRET,
        "panicked at",
        ".rs:",
        "redis",
        "Redis",
        "EVAL",
        "WRONGTYPE",
        "OOM",
        "ERR ",
        "Lua",
        "{sim",
    ];
    inside.into_iter().find(|text| reply.body.contains(text))
}
