//! A pretended transcode: a handler that awaits for long, and can be seen to stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

const LONGEST: u64 = 600;

#[derive(Deserialize)]
pub(crate) struct Length {
    #[serde(default = "five")]
    seconds: u64,
}

fn five() -> u64 {
    5
}

/// What the handler answers.
#[derive(Serialize)]
pub(crate) struct Video {
    number: u64,
    seconds: u64,
}

/// `POST /videos?seconds=N`: takes N seconds, 600 at most.
pub(crate) async fn video(
    query: Result<Query<Length>, QueryRejection>,
) -> Result<Json<Video>, Problem> {
    let Query(Length { seconds }) = query?;
    let mut work = Work::start(seconds.min(LONGEST));

    // Every await is a place where a canceled job ends: its future is dropped there.
    while work.done < work.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        work.done += 1;
    }

    Ok(Json(Video { number: work.number, seconds: work.seconds }))
}

/// One video's work. Its drop tells on the console how it ended.
struct Work {
    number: u64,
    seconds: u64,
    done: u64,
}

impl Work {
    fn start(seconds: u64) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        // Relaxed: a number that nobody else has is all that is asked of it.
        let number = STARTED.fetch_add(1, Ordering::Relaxed) + 1;
        println!("video {number}: started, {seconds} s");
        Self { number, seconds, done: 0 }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Self { number, seconds, done } = self;
        if done == seconds {
            println!("video {number}: finished");
        } else {
            println!("video {number}: dropped unfinished after {done} of {seconds} s");
        }
    }
}
