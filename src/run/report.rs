//! The progress of a job, from its handler to the store.

use std::sync::Arc;

use super::State;
use crate::job::{Change, JobId, Said};

/// Writes what the handler says, at most once in the interval of the limits. What is said meanwhile
/// is written together.
pub(super) async fn report(state: Arc<State>, id: JobId, said: Said) {
    loop {
        said.news().await;
        if let Some(progress) = said.take() {
            // No promise hangs on it: the next one may be luckier.
            if let Err(error) = state.store.change(id, Change::Progress(progress)).await {
                tracing::debug!(job = %id, error = &error as &dyn std::error::Error, "cannot store a job's progress");
            }
        }
        tokio::time::sleep(state.limits.progress_interval).await;
    }
}
