//! A tower [`Layer`](tower_layer::Layer) that takes the slow requests of any axum or hyper app off
//! the connection.
//!
//! A handler that answers within its time budget is passed through untouched. One that outruns it
//! goes on, *the same future*, in a task of its own; the client gets `202 Accepted` with a status
//! URL at once. A companion service at that URL tells how far the job is, replays the handler's own
//! response when it is there, and cancels. No handler changes.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, routing::post};
//! use tower_offload::{Offload, Policy};
//!
//! # async fn report() {}
//! # async fn transcode() {}
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let offload = Offload::new("/jobs"); // jobs and outcomes in memory, sane limits
//!
//!     let app = Router::new()
//!         .route("/reports", post(report).layer(offload.layer(Policy::after(Duration::from_millis(250)))))
//!         .route("/videos", post(transcode).layer(offload.layer(Policy::always())))
//!         .nest_service("/jobs", offload.status());
//!
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(listener, app)
//!         // finish what was promised while status URLs are still answered, then close
//!         .with_graceful_shutdown(async move {
//!             tokio::signal::ctrl_c().await.ok();
//!             offload.drain(Duration::from_secs(30)).linger(Duration::from_secs(5)).await;
//!         })
//!         .await
//! }
//! ```
//!
//! # A 202 is a promise
//!
//! What has been accepted is run; its outcome is kept until the time that the answer named
//! (`expires_at`); and whatever goes wrong on the way (a panic, the run-time limit, a response that
//! is too large, shutdown) is told at the status URL, as a problem (RFC 9457). Where the promise
//! cannot be kept it is not given: the request stays attached to its connection ([`Policy::after`])
//! or is answered 503 ([`Policy::always`]).
//!
//! The default [`MemoryStore`] keeps the promise **while the process lives**. A process that is
//! killed takes its jobs with it; [`Offload::drain`] is for one that is asked to stop.
//!
//! # For work that matters
//!
//! * [`Policy::concurrency`] and [`Policy::queue`] say how many of a route's jobs run, and how many
//!   more wait for their turn; the status document tells a job's place and how long it may take.
//! * [`OffloadBuilder::owner`] makes a job its owner's alone. Without it the id is the key: whoever
//!   knows its 128 random bits, from the operating system, may read and cancel the job.
//! * [`Policy::idempotent`] does a request with an `Idempotency-Key` once, however often it is sent;
//!   [`Policy::finish_on_disconnect`] finishes the work of a client that has left.
//! * A handler says how far it is by [`Job::progress`] or [`Job::advance`], and asks for nothing else.
//! * [`Offload::drain`] ends what it cannot finish truthfully, and [`Offload::stats`] counts.
//!
//! # Where to put the layer
//!
//! From outside to inside: tracing, authentication and rate limits, compression, **this layer**,
//! concurrency limits, a timeout that bounds the work, `CatchPanic`, the handler. Inside of
//! authentication, because waiting for a slow upload makes hyper ask the client for its body; a
//! timeout *outside* of this layer answers 408 and drops the request, or leaves a job that nobody
//! was told of.
//!
//! * One [`Offload`], many layers: [`Offload::layer`] around each route with a policy of its own.
//! * Around a whole router it costs far less, since axum boxes nothing again: one layer with a
//!   table of [`Policies`].
//! * Without a router, [`OffloadLayer::mounted`] answers below the status path itself.
//!
//! A relative `Location` or `Content-Location` of a response is resolved against the path that the
//! layer sees, as browsers resolve it, and becomes a path of the same origin whatever path the client
//! sent. A reference that has a scheme, names a host (`//host/`) or begins with a slash is replayed as
//! the handler wrote it. Inside of axum's `nest` the path lacks its prefix: there, put the layer around
//! the router, or answer with a path that begins with a slash.
//!
//! axum's own futures can be moved, and boxed ones. For a service whose future cannot (an `async`
//! block; anything with a timer in it, such as tower-http's `TimeoutLayer`, inside of this layer in
//! a plain tower stack) call [`OffloadLayer::boxed`].
//!
//! # What is never offloaded
//!
//! `CONNECT`, upgrades (with `Connection: upgrade`; RFC 9110, section 7.8), gRPC, `HEAD` and
//! `OPTIONS`; a `GET` with `Range` or a condition, or that accepts `text/event-stream`; a request for
//! the status service; what an outer layer of the same [`Offload`] watches already, with no other one's
//! layer between the two; and a request whose body is not over on the wire. hyper ties that body to its
//! connection, and a handler that went on reading after the 202 could be fed the bytes of the next
//! request. When the budget runs out first, the layer drains the body into a bounded buffer; over the
//! bound the request stays attached until its handler has read it.
//!
//! A request for the status service is one at the status path or below it. **It passes by all that a
//! policy promises.** A layer inside nested routers sees a path without its prefix, but axum notes the
//! whole path, and that counts (feature `original-uri`). Where the whole path is not known (without the
//! feature, around the outermost router, or with a router other than axum's), a path counts too that only
//! ends like that of a job: it begins with the last segments of the status path, and names a job. With
//! the status path `/api/jobs` that is `/jobs/` and 32 hexadecimal digits, with a method that the status
//! service answers: `GET`, `HEAD`, `DELETE` or `OPTIONS`. Give your own handlers no such path there.
//!
//! No header that a client chooses switches off what a policy promises. A request that can't be a job
//! for its method or headers is treated so:
//!
//! | the policy promises | the request |
//! |---|---|
//! | nothing of attached requests: [`Policy::after`], [`Policy::on_request`] | stays attached |
//! | a bound: [`Policy::always`], with [`concurrency`](Policy::concurrency) or [`queue`](Policy::queue), or by `max_running` alone | holds a permit while it is attached; without one it is answered 503. It does not wait in the queue |
//! | a key: [`idempotent`](Policy::idempotent), and it has a key | 400, problem `cannot-be-a-job` |
//! | [`idempotency_required`](Policy::idempotency_required), and it has no key | 400, but for safe methods, which are as in the rows above |
//! | durability: [`durable`](Policy::durable) | 400, problem `cannot-be-a-job`; but `OPTIONS` stays attached, without a permit |
//!
//! The permit is released when the response's head is there. It is not held beyond the route's
//! run-time limit (the answer is 504 then), nor past a request body that stalls (408). A stream or a
//! tunnel that comes after the head holds none, since a client that reads slowly would block the route:
//! bound it in the handler.
//!
//! On a route that promises a bound a CORS preflight holds a permit too, so put the CORS layer outside of
//! this one. Requests that come in through an outer layer of the same [`Offload`] which watches them have
//! what *that* one's policy promises.
//!
//! One thing a client decides by its body: an [`always`](Policy::always) route without a
//! [`queue`](Policy::queue) begins a handler while the request's body arrives, if a permit is free at
//! that moment, and takes the permit when the body is over, since a client that stalls would hold it. If
//! none is free then, the handler is dropped and the answer is 503. So `concurrency` does not bound what
//! a handler does before its body is over, and a client that holds its body back can have that done more
//! often. With a queue, or on a durable route, no handler begins before its body is there and its permit
//! is taken.
//!
//! # Handlers that block their thread
//!
//! A handler that computes for a second without awaiting can't be answered for meanwhile: nobody
//! polls the clock on its thread, and no middleware can change that. Move such work into
//! [`tokio::task::spawn_blocking`], as tokio asks for anyway. [`Policy::always`] is the exception where
//! the request's body is over when the handler is called, or the route has a [`queue`](Policy::queue):
//! such a request is answered before its handler is begun.
//!
//! # Features
//!
//! | feature | default | what it gives |
//! |---|---|---|
//! | `axum` | yes | [`ResponseBody`] and [`RequestBody`] for `axum::body::Body`, [`Job`] as an extractor; needs `axum-core` only |
//! | `original-uri` | yes | the layer knows the whole path of a request inside of axum's `nest` from `axum::extract::OriginalUri`, and takes no path of the app for a status path; needs `axum`, without its default features |
//! | `conformance` | no | `store::conformance`, the suite that every [`Store`] passes |

#![deny(missing_docs)]
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod body;
mod caught;
mod deadlines;
mod desk;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod job;
mod offload;
mod policy;
mod run;
mod status;
pub mod store;
mod system;
mod wire;

pub use body::{RequestBody, ResponseBody, StatusBody};
pub use desk::{
    DurableWorkers, MountedFuture, MountedLayer, MountedService, Offload, OffloadBuilder,
    StoppedWorker,
};
pub use error::{BoxError, Error, ErrorKind};
pub use job::{
    Change, Claim, Digest, End, Failure, Job, JobId, Outcome, Owner, Progress, Record, Status,
};
pub use offload::{
    Answers, Boxed, BoxedOffloadLayer, Movable, OffloadLayer, OffloadService, ResponseFuture,
};
pub use policy::{Policies, Policy};
pub use run::{Drain, Drained, PolicyStats, Stats, StopReason};
pub use status::{StatusFuture, StatusService};
#[doc(inline)]
pub use store::{MemoryStore, Store};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use system::simulation;
pub use wire::LocationStyle;

/// The README's code is compiled too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
