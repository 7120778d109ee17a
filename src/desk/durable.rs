//! Durable routes at the desk: which can work, and who serves them.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tokio::task::JoinHandle;
use tower_service::Service;

use super::Offload;
use crate::{
    body::RequestBody,
    error::{BoxError, Error},
    offload::serve_durable,
    policy::Policies,
    run::StopReason,
};

impl Offload {
    pub(super) fn check_durable(&self, policies: &Policies) -> Result<(), Error> {
        let keeps_requests = self.state.store.keeps_requests();
        let mut names = BTreeSet::new();
        for policy in policies.all() {
            policy.check_durable(policies.is_table(), keeps_requests)?;
            let (Some(_), Some(name)) = (policy.attempts(), policy.label()) else { continue };
            if self.state.durables.has(name) || !names.insert(name) {
                return Err(Error::config("two durable policies have the same name"));
            }
        }
        Ok(())
    }

    /// Runs the jobs of all [durable](crate::Policy::durable) routes whose layers were made by now, in
    /// tasks of the runtime that this is called on: each is taken from the store when there is a
    /// place for it, and its request run through `service`, the whole app, with this desk's layer
    /// around it or without. It ends when this desk is [drained](Self::drain); what has not ended at
    /// the drain's deadline goes back to the store, for another process.
    ///
    /// Each route has a worker of its own. What this returns resolves when all of them have stopped,
    /// and tells why; it may be dropped, and they go on. A panic of
    /// [`restore`](crate::OffloadBuilder::restore) or of the handler ends its own job, as failed. A panic
    /// of the store fails that one call: it is logged, and the worker asks again after a pause, as after
    /// any error of the store. If a clone of `service` panics, that is logged as an error, and the worker
    /// is started again. Both pauses begin with 100 ms and double each time, up to 10 s. [`stats`](Self::stats)
    /// counts the workers that run, and how often one was started again.
    ///
    /// ```no_run
    /// # async fn run(store: impl tower_offload::Store) -> std::io::Result<()> {
    /// use axum::{Router, body::Body, routing::post};
    /// use tower_offload::{Job, Offload, Policies, Policy};
    ///
    /// async fn charge(job: Job) -> String {
    ///     format!("attempt {}", job.attempt())
    /// }
    ///
    /// let offload = Offload::builder("/jobs").store(store).build().unwrap();
    /// let policies = Policies::otherwise(Policy::never())
    ///     .at("POST /charges", Policy::always().durable().name("charges"));
    /// let app = Router::new()
    ///     .route("/charges", post(charge))
    ///     .layer(offload.layer(policies))
    ///     .nest_service("/jobs", offload.status());
    /// offload.serve_durable::<_, Body, _>(app.clone());
    /// # axum::serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?, app).await
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve_durable<S, ReqB, ResB>(&self, service: S) -> DurableWorkers
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let routes = self.state.durables.all().into_iter();
        let running = routes.map(|(policy, route)| {
            let (state, service) = (Arc::clone(&self.state), service.clone());
            let task = tokio::spawn(serve_durable(state, Arc::clone(&policy), route, service));
            (policy, task)
        });
        DurableWorkers { running: running.collect(), stopped: Vec::new() }
    }
}

/// The workers of durable routes. Made by [`Offload::serve_durable`]; they go on when this is dropped.
///
/// Awaited, it resolves when all of them have stopped: at once where there is no durable route.
pub struct DurableWorkers {
    running: Vec<(Arc<str>, JoinHandle<StopReason>)>,
    stopped: Vec<StoppedWorker>,
}

/// A worker that has stopped.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoppedWorker {
    /// The name of the policy whose jobs it took.
    pub policy: Arc<str>,
    /// Why it takes no more.
    pub reason: StopReason,
}

impl Future for DurableWorkers {
    type Output = Vec<StoppedWorker>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { running, stopped } = self.get_mut();
        running.retain_mut(|(policy, task)| match Pin::new(task).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(reason) => {
                // Its panics are caught, so only the end of its runtime ends its task early.
                let reason = reason.unwrap_or(StopReason::RuntimeShutDown);
                stopped.push(StoppedWorker { policy: Arc::clone(policy), reason });
                false
            }
        });
        match running.is_empty() {
            true => Poll::Ready(std::mem::take(stopped)),
            false => Poll::Pending,
        }
    }
}

impl fmt::Debug for DurableWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running: Vec<_> = self.running.iter().map(|(policy, _)| policy).collect();
        f.debug_struct("DurableWorkers")
            .field("running", &running)
            .field("stopped", &self.stopped)
            .finish()
    }
}
