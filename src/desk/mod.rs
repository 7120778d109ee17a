//! The one handle: `Offload` and its builder, and (in `mounted.rs`) the form of the layer that
//! answers polls itself. It composes the rooms below; nothing knows it but the crate's front page.

mod durable;
mod mounted;

use std::{sync::Arc, time::Duration};

pub use durable::{DurableWorkers, StoppedWorker};
use http::{HeaderMap, request::Parts};
pub use mounted::{MountedFuture, MountedLayer, MountedService};

use crate::{
    error::Error,
    job::Owner,
    offload::OffloadLayer,
    policy::Policies,
    run::{self, Drain, Limits, MAX_STORED_BYTES, OwnerOf, Restore, Seal, State, Stats},
    status::StatusService,
    store::{Guarded, MemoryStore, Store},
    wire::{LocationStyle, Urls},
};

/// The desk where jobs are kept: the store, the limits, and what runs. Cheap to clone; all clones
/// are one desk.
///
/// Make one for an app, and layers from it: one for each route, or one with a table of
/// [`Policies`] around the router. Mount [`status`](Self::status) at the path given to
/// [`new`](Self::new).
///
/// It needs a tokio runtime with time enabled; a request polled outside of one stays attached, or
/// is answered 503 by an `always` route. One desk is meant for one runtime: in a process with
/// several, whose budgets are then watched by one of them, a thread blocked there delays the 202s of
/// the others.
#[derive(Debug, Clone)]
pub struct Offload {
    state: Arc<State>,
}

impl Offload {
    /// A desk with jobs and outcomes in memory, and the default limits. `path` is where the status
    /// service is mounted, as the outermost router sees it: `/jobs`.
    ///
    /// # Panics
    /// If `path` has no leading slash, has a trailing one, holds a pattern, or is no path.
    /// [`builder`](Self::builder) returns an error instead.
    pub fn new(path: &str) -> Self {
        Self::builder(path).build().unwrap_or_else(|error| panic!("tower-offload: {error}"))
    }

    /// A desk with settings of its own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_offload::Offload;
    ///
    /// let offload = Offload::builder("/jobs")
    ///     .public_base("https://api.example/v1/jobs")
    ///     .ttl(Duration::from_secs(24 * 3600))
    ///     .max_running(32)
    ///     .build()?;
    /// # let _ = offload;
    /// # Ok::<(), tower_offload::Error>(())
    /// ```
    pub fn builder(path: impl Into<String>) -> OffloadBuilder {
        OffloadBuilder {
            path: path.into(),
            public_base: None,
            location: LocationStyle::default(),
            operation_location: false,
            store: None,
            max_stored_bytes: None,
            owner_of: None,
            seal: None,
            restore: None,
            limits: Limits::default(),
        }
    }

    /// A layer with this policy for all its requests, or with a table of [`Policies`].
    ///
    /// Each call makes queues and limits of its own; clones of the layer, and the services that it
    /// is put around, share them.
    ///
    /// # Panics
    /// If a policy cannot work: one that is [idempotent](crate::Policy::idempotent) without an owner
    /// function, or a [queue](crate::Policy::queue) that nothing can wait in.
    /// [`try_layer`](Self::try_layer) returns an error instead.
    pub fn layer(&self, policies: impl Into<Policies>) -> OffloadLayer {
        self.try_layer(policies).unwrap_or_else(|error| panic!("tower-offload: {error}"))
    }

    /// As [`layer`](Self::layer), for policies that are not written in the code.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if a policy cannot work.
    pub fn try_layer(&self, policies: impl Into<Policies>) -> Result<OffloadLayer, Error> {
        let policies = policies.into();
        let has_owners = self.state.owner_of.is_some();
        policies.all().try_for_each(|policy| policy.check(has_owners))?;
        self.check_durable(&policies)?;
        Ok(OffloadLayer::new(Arc::clone(&self.state), policies))
    }

    /// The service that answers below the status path, for axum's `nest_service`, say.
    pub fn status(&self) -> StatusService {
        StatusService::new(Arc::clone(&self.state))
    }

    /// Shutdown: takes no new jobs from now on (`after` routes stay attached, others answer 503), and
    /// waits until all jobs have ended, those in queues too, at most for `deadline`. What runs or
    /// waits then ends as failed with the problem `interrupted`, and is dropped; a store that does
    /// not answer gets one more second to take that down. With [`linger`](Drain::linger) it stays a
    /// little longer, so that outcomes are fetched. At its end all polls that wait are answered.
    ///
    /// Await it *inside* the server's graceful shutdown, so that status URLs are answered meanwhile;
    /// when the server has stopped, nobody can fetch what was finished:
    ///
    /// ```no_run
    /// # async fn serve(listener: tokio::net::TcpListener, app: axum::Router, offload: tower_offload::Offload) {
    /// use std::time::Duration;
    ///
    /// axum::serve(listener, app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         offload.drain(Duration::from_secs(30)).linger(Duration::from_secs(5)).await;
    ///     })
    ///     .await
    ///     .ok();
    /// # }
    /// ```
    ///
    /// There is no way back: a desk that was drained takes no more jobs. If it is dropped before its
    /// deadline, nothing is interrupted.
    pub fn drain(&self, deadline: Duration) -> Drain {
        Drain::new(Arc::clone(&self.state), deadline)
    }

    /// What runs and waits, what is kept and what was refused, by the names of policies.
    ///
    /// # Errors
    /// If the store does not answer. The one in memory always does, at once.
    pub async fn stats(&self) -> Result<Stats, Error> {
        run::stats(&self.state).await
    }
}

/// Settings of an [`Offload`]. Made by [`Offload::builder`].
#[derive(Clone)]
#[must_use]
pub struct OffloadBuilder {
    path: String,
    public_base: Option<String>,
    location: LocationStyle,
    operation_location: bool,
    store: Option<Arc<dyn Store>>,
    max_stored_bytes: Option<usize>,
    owner_of: Option<Arc<OwnerOf>>,
    seal: Option<Arc<Seal>>,
    restore: Option<Arc<Restore>>,
    limits: Limits,
}

impl OffloadBuilder {
    /// The base of the status URLs that clients are told, in place of the status path: a path
    /// (`/x/jobs`) or a URL (`https://api.example/x/jobs`). For an app behind a proxy that strips a
    /// prefix. `Host`, `Forwarded` and `X-Forwarded-*` are never looked at: whoever sends the
    /// request writes them. Default: the status path, so that URLs stay on the same origin.
    ///
    /// A `Location` or `Content-Location` of a handler that is relative, or begins with a slash, is
    /// replayed as a path as this app sees it, and so read on the origin of the base and without the
    /// prefix. If the base is on another origin than the requests, or a proxy strips a prefix of their
    /// paths, handlers should answer with whole URLs.
    pub fn public_base(mut self, base: impl Into<String>) -> Self {
        self.public_base = Some(base.into());
        self
    }

    /// Which URL of the job `Location` names. Default: [`LocationStyle::Job`].
    pub fn location(mut self, style: LocationStyle) -> Self {
        self.location = style;
        self
    }

    /// Whether a 202 has `Operation-Location` too, and the finished document `resourceLocation`, as
    /// the pollers of Azure's SDKs want. Default: no.
    pub fn operation_location(mut self, on: bool) -> Self {
        self.operation_location = on;
        self
    }

    /// Keeps jobs in this store. Default: a [`MemoryStore`] of
    /// [`max_stored_bytes`](Self::max_stored_bytes).
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(Guarded(store)));
        self
    }

    /// How many bytes the store in memory may hold, outcomes and 1,024 bytes for each job together. A
    /// job that runs counts with the largest outcome. At the limit no new job is accepted. Default:
    /// 1 GiB. A store given by [`store`](Self::store) has its own limit; to set both is an error.
    pub fn max_stored_bytes(mut self, bytes: usize) -> Self {
        self.max_stored_bytes = Some(bytes);
        self
    }

    /// How many jobs may run at once. Default: 128, which with 4 MiB for each outcome take half of
    /// the 1 GiB of `max_stored_bytes`; the other half is for outcomes that are kept.
    pub fn max_running(mut self, jobs: usize) -> Self {
        self.limits.max_running = jobs;
        self
    }

    /// How many polls with `Prefer: wait` may wait at once; past that they are answered at once.
    /// Default: 16,384. Each is a connection or a stream, and takes about 1 KiB.
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.limits.max_waiters = waiters;
        self
    }

    /// The most that `wait=N` in a `Prefer` header counts for. Default: 30 seconds, well under the
    /// 60 after which common proxies give up on an answer.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.limits.max_wait = wait;
        self
    }

    /// How many bytes of one request's body are buffered when its budget runs out before the body
    /// has arrived. What is larger stays attached until its handler has read it. Default: 2 MiB, as
    /// axum's own limit for a body that is taken in whole.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_body_bytes = bytes;
        self
    }

    /// How many bytes of all requests are buffered at once: of bodies, and where a request waits as a
    /// job of its head too, by an estimate (method, URI, the names and values of its headers, and some
    /// hundred bytes for each of these that they take in memory). Default: 128 MiB, 64 bodies of the
    /// largest.
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_buffered_bytes = bytes;
        self
    }

    /// How long a client may send nothing of a body that is waited for. Then the request is given up
    /// with a 408 problem, and on HTTP/1.1 its connection is closed. It counts wherever a client that
    /// stalls would hold what others wait for: where a body is taken in whole (durable routes, those
    /// with a queue, and requests with a key), on `always` routes, and for [attached requests that
    /// hold a permit](crate#what-is-never-offloaded). A request of an `after` or `on_request` route is
    /// attached while its body arrives, and is left alone. Default: 60 seconds, longer than a phone
    /// is without a network in a tunnel, and what common servers wait too.
    pub fn body_idle_timeout(mut self, time: Duration) -> Self {
        self.limits.body_idle_timeout = time;
        self
    }

    /// How long a body that is taken in whole may take to arrive, in all; then as
    /// [`body_idle_timeout`](Self::body_idle_timeout). Default: 5 minutes, in which `max_body_bytes`
    /// arrive at 7 KB a second.
    pub fn body_timeout(mut self, time: Duration) -> Self {
        self.limits.body_timeout = time;
        self
    }

    /// How many [durable](crate::Policy::durable) jobs may wait in the store, of all routes and
    /// processes together; [`Policy::max_queued`](crate::Policy::max_queued) says less for a route,
    /// and how exact this is. Default: 100,000; with 10 KiB for each request they are 1 GiB of the
    /// store, as much as `max_stored_bytes` gives the one in memory.
    pub fn max_queued(mut self, jobs: usize) -> Self {
        self.limits.max_queued = jobs;
        self
    }

    /// How large an outcome may be, head and trailers included; a job with a larger response fails.
    /// Default: 4 MiB, above nearly every answer of an API.
    pub fn max_outcome_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_outcome_bytes = bytes;
        self
    }

    /// How long a job may run, counted from its 202; [`Policy::timeout`](crate::Policy::timeout) may
    /// say less for a route. Default: 1 hour; what has run for longer is more likely stuck than slow.
    pub fn max_run_time(mut self, time: Duration) -> Self {
        self.limits.max_run_time = time;
        self
    }

    /// The shortest time between two writes of a job's progress to the store. Default: 100 ms, which
    /// is faster than a person sees, and little work for any store.
    pub fn progress_interval(mut self, time: Duration) -> Self {
        self.limits.progress_interval = time;
        self
    }

    /// Tells owners apart: `owner` names whoever sends a request, by a bearer token or the name of a
    /// tenant. A job is then its owner's alone: to others, whatever they ask of it, its id is
    /// unknown. Default: no owners, and whoever knows the id of a job may read and cancel it.
    ///
    /// It is asked once for each request that is watched, before the call, and for each request to
    /// the status service; so it should only look at the head and clone what it finds there, or what
    /// a layer outside of this one has put into the extensions. A request for which it gives `None` is
    /// never taken off its connection; where it cannot stay there (an `always` route, or one with an
    /// `Idempotency-Key`) it is answered 401, and 404 by the status service.
    ///
    /// ```
    /// use http::{header, request::Parts};
    /// use tower_offload::{Offload, Owner};
    ///
    /// fn bearer(request: &Parts) -> Option<Owner> {
    ///     request.headers.get(header::AUTHORIZATION).cloned().map(Owner::from)
    /// }
    ///
    /// let offload = Offload::builder("/jobs").owner(bearer).build()?;
    /// # let _ = offload;
    /// # Ok::<(), tower_offload::Error>(())
    /// ```
    pub fn owner(
        mut self,
        owner: impl Fn(&Parts) -> Option<Owner> + Send + Sync + 'static,
    ) -> Self {
        self.owner_of = Some(Arc::new(owner));
        self
    }

    /// Decides which headers of a [durable](crate::Policy::durable) route's request are kept in the
    /// store, and how: take them out, or put what you have encrypted in their place. Default: all but
    /// `Authorization`, `Proxy-Authorization` and `Cookie`, which are nobody's affair but the
    /// handler's.
    pub fn seal(mut self, seal: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        self.seal = Some(Arc::new(seal));
        self
    }

    /// Puts back what a durable request has lost, before it is run: headers that were sealed, and
    /// extensions that a layer outside had put there, such as who sends it. Default: nothing is.
    pub fn restore(mut self, restore: impl Fn(&mut Parts) + Send + Sync + 'static) -> Self {
        self.restore = Some(Arc::new(restore));
        self
    }

    /// How long a job is kept after its end; [`Policy::ttl`](crate::Policy::ttl) says so for a route.
    /// Default: 1 hour, longer than a client takes to come back from a broken network.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.limits.ttl = ttl;
        self
    }

    /// The desk.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the status path or the public base cannot
    /// work, if a limit is zero, if there would not be room for a single job, or if both a store and
    /// `max_stored_bytes` are given.
    pub fn build(self) -> Result<Offload, Error> {
        let urls = Urls::new(
            &self.path,
            self.public_base.as_deref(),
            self.location,
            self.operation_location,
        )?;
        self.limits.check()?;
        let store = match (self.store, self.max_stored_bytes) {
            (Some(_), Some(_)) => {
                return Err(Error::config(
                    "max_stored_bytes is for the store in memory; another store was given",
                ));
            }
            (Some(store), None) => store,
            (None, bytes) => {
                let bytes = bytes.unwrap_or(MAX_STORED_BYTES);
                let store = MemoryStore::new(bytes);
                if !store.fits(self.limits.max_outcome_bytes) {
                    return Err(Error::config(
                        "max_stored_bytes has no room for a job of max_outcome_bytes",
                    ));
                }
                Arc::new(store)
            }
        };
        let state = State::new(store, self.limits, urls, self.owner_of);
        Ok(Offload { state: Arc::new(state.with_hooks(self.seal, self.restore)) })
    }
}
