//! Errors as `application/problem+json` (RFC 9457), from whatever went wrong.

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinError;

use crate::report::NotCsv;

/// An error response. Without a `type` a problem means what its status means, so
/// the title is the status's own phrase.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    line: Option<usize>,
}

impl Problem {
    fn new(status: StatusCode, detail: String) -> Self {
        Self { status, detail, line: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(line) = self.line {
            body["line"] = line.into();
        }
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, content_type, body.to_string()).into_response()
    }
}

impl From<NotCsv> for Problem {
    fn from(error: NotCsv) -> Self {
        Self {
            line: Some(error.line),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<JoinError> for Problem {
    fn from(_: JoinError) -> Self {
        let detail = "the computation broke off".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }
}
