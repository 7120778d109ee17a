//! The handler of a job: polled as the job of its desk, its panics caught, its response collected.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, uri::PathAndQuery};
use http_body::Body;
use pin_project_lite::pin_project;

use super::collect::Collect;
use crate::{
    caught::{caught, log},
    error::BoxError,
    job::{Asked, End, Failure, JobId, within},
};

pin_project! {
    /// A handler's future and, once it has answered, its response's body: what comes of the job if
    /// nothing else ends it. Written out, since an `async fn` would hold the future several times
    /// over, and it may be large.
    pub(super) struct Handler<F, B> {
        id: JobId,
        target: PathAndQuery,
        max: usize,
        #[pin]
        stage: Stage<F, B>,
    }
}

pin_project! {
    #[project = StageOf]
    enum Stage<F, B> {
        Runs { #[pin] future: F },
        Answers { #[pin] collect: Collect<B> },
        Over,
    }
}

impl<F, B> Handler<F, B> {
    /// `target` is what relative references of the response are resolved against, `max` the bytes
    /// of the largest outcome.
    pub(super) fn new(id: JobId, future: F, target: PathAndQuery, max: usize) -> Self {
        Self { id, target, max, stage: Stage::Runs { future } }
    }

    /// Drops what is left of it.
    pub(super) fn end(self: Pin<&mut Self>) {
        self.project().stage.set(Stage::Over);
    }
}

impl<F, B, E> Future for Handler<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
{
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let mut this = self.project();
        loop {
            let answer = match this.stage.as_mut().project() {
                StageOf::Runs { future } => ready!(future.poll(cx)),
                StageOf::Answers { collect } => return collect.poll(cx),
                StageOf::Over => panic!("polled after it was ready"),
            };
            // What is left of the handler is dropped before its response is read.
            this.stage.set(Stage::Over);
            match answer {
                Ok(response) => match Collect::new(*this.id, response, this.target, *this.max) {
                    Ok(collect) => this.stage.set(Stage::Answers { collect }),
                    Err(failure) => return Poll::Ready(End::Failure(failure)),
                },
                Err(error) => {
                    let error: BoxError = error.into();
                    log(
                        || tracing::error!(job = %this.id, error = &*error as &dyn std::error::Error, "the service failed"),
                    );
                    return Poll::Ready(End::Failure(Failure::ServiceError));
                }
            }
        }
    }
}

/// Polls a handler as the job of this desk, and catches its panic.
pub(super) fn poll_handler<F: Future>(
    identity: usize,
    id: Option<JobId>,
    asked: &mut Asked,
    handler: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Failure>> {
    caught(|| within(identity, id, asked, || handler.poll(cx))).map_or_else(
        |panicked| {
            let job = id.map(tracing::field::display);
            log(|| tracing::error!(job, panic = panicked.message(), "the handler panicked"));
            Poll::Ready(Err(Failure::Panicked))
        },
        |polled| polled.map(Ok),
    )
}
