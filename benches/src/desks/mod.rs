//! Four ways of taking a slow handler off its connection, all as tower services with the same routes
//! and the same handlers: this crate's layer on a route and around the router, what is written by
//! hand today, and apalis with its storage in memory.
//!
//! `POST` to one of the paths below is answered 202 with the job's URL in `Location`. The
//! rivals do what their users write, no more and no less; each file says what that leaves out.

mod apalis;
mod by_hand;
mod ours;

use std::{convert::Infallible, future::Future};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

pub use self::{
    apalis::Apalis,
    by_hand::ByHand,
    ours::{Around, OnRoute, roomy, roomy_store},
};

/// A job that ends soon, and is soon forgotten where there is a way to say so.
pub const BRIEF: &str = "/brief";
/// A job that ends soon, and is kept.
pub const KEPT: &str = "/kept";
/// A job that runs for ever.
pub const ENDLESS: &str = "/endless";

/// What a handler is sent, and what it answers.
pub const DATA: Bytes = Bytes::from_static(&[b'x'; 64]);

/// One of the ways.
pub trait Desk {
    /// What the tables call it.
    const NAME: &'static str;
    /// The app: routes for jobs, and for their status.
    type App: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone;

    /// A new one, made on the runtime on which it is used.
    fn new() -> Self;
    fn app(&self) -> Self::App;
    /// The URL of the status document of the job with this `Location`.
    fn status_of(location: &str) -> String;
    /// How many jobs are kept.
    fn jobs(&self) -> usize;
    /// Drops the brief jobs with these `Location`s, so that `left` jobs are kept.
    fn forget(&self, locations: &[String], left: usize) -> impl Future<Output = ()>;
}

/// The handler of jobs that end soon: it is pending once.
async fn brief(_: Bytes) -> Bytes {
    tokio::task::yield_now().await;
    DATA
}

/// The handler of jobs that run for ever.
async fn endless(_: Bytes) -> Bytes {
    std::future::pending().await
}
