//! The progress of a job, from its handler to the store.

use std::{sync::Arc, time::Duration};

use super::{Backoff, State};
use crate::{
    caught::log,
    job::{Change, JobId, Said},
};

/// How long a store may take to write what a handler has said last, before its job ends without
/// that. A write takes milliseconds; an end that clients wait for must not hang on a courtesy.
const LAST: Duration = Duration::from_secs(1);

/// Writes what the handler says, at most once in the interval of the limits. What is said meanwhile
/// is written together. It ends only where the store cannot read what it has kept of the job.
pub(super) async fn report(state: Arc<State>, id: JobId, said: Said) {
    let mut backoff = Backoff::new();
    loop {
        let written = write(&state, id, &said).await;
        if written == Written::Nothing {
            said.news().await;
            continue;
        }
        tokio::time::sleep(state.limits.progress_interval).await;
        match written {
            Written::Failed => backoff.wait().await,
            Written::Never => return,
            _ => backoff = Backoff::new(),
        }
    }
}

/// Writes what was said last and is not written yet, if the store takes it in time.
pub(super) async fn report_last(state: &State, id: JobId, said: &Said) {
    let tries = async {
        let mut backoff = Backoff::new();
        while write(state, id, said).await == Written::Failed {
            backoff.wait().await;
        }
    };
    let _ = tokio::time::timeout(LAST, tries).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Nothing,
    Failed,
    /// Nor will it be.
    Never,
    Done,
}

async fn write(state: &State, id: JobId, said: &Said) -> Written {
    let Some(progress) = said.take() else { return Written::Nothing };
    // Until the store has it, it is still to be written, also when this future is dropped.
    let unwritten = Unwritten(said);
    match state.store.change(id, Change::Progress(progress)).await {
        Ok(_) => {
            std::mem::forget(unwritten);
            Written::Done
        }
        Err(error) => {
            log(
                || tracing::debug!(job = %id, error = &error as &dyn std::error::Error, "cannot store a job's progress"),
            );
            if error.is_final() { Written::Never } else { Written::Failed }
        }
    }
}

struct Unwritten<'a>(&'a Said);

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        self.0.put_back();
    }
}
