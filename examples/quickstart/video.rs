//! A pretended transcode: a handler that awaits for long, says how far it is, and can
//! be seen to stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use tower_offload::Job;

use crate::problem::Problem;

const LONGEST: u64 = 600;

const FRAMES_PER_SECOND: u64 = 25;

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
///
/// The `Job` is the only thing here that knows of jobs, and a handler may do without:
/// this one tells by it how far it is, for the status document.
pub(crate) async fn video(
    job: Job,
    query: Result<Query<Length>, QueryRejection>,
) -> Result<Json<Video>, Problem> {
    let Query(Length { seconds }) = query?;
    let mut work = Work::start(seconds.min(LONGEST));
    job.progress(0.0, format!("transcoding video {}", work.number));
    job.set_total(work.frames);

    // Every await is a place where a canceled job ends: its future is dropped there.
    let mut clock = tokio::time::interval(Duration::from_secs(1) / FRAMES_PER_SECOND as u32);
    clock.tick().await; // the first is at once
    while work.done < work.frames {
        clock.tick().await;
        work.done += 1;
        job.advance(1);
    }

    Ok(Json(Video { number: work.number, seconds: work.frames / FRAMES_PER_SECOND }))
}

/// One video's work. Its drop tells on the console how it ended.
struct Work {
    number: u64,
    frames: u64,
    done: u64,
}

impl Work {
    fn start(seconds: u64) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        // Relaxed: a number that nobody else has is all that is asked of it.
        let number = STARTED.fetch_add(1, Ordering::Relaxed) + 1;
        println!("video {number}: started, {seconds} s");
        Self { number, frames: seconds * FRAMES_PER_SECOND, done: 0 }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Self { number, frames, done } = self;
        if done == frames {
            println!("video {number}: finished");
        } else {
            println!("video {number}: dropped unfinished after {done} of {frames} frames");
        }
    }
}
