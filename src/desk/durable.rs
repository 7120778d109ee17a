//! Durable routes at the desk: which can work, and who serves them.

use std::{collections::BTreeSet, sync::Arc};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::Offload;
use crate::{
    body::RequestBody,
    error::{BoxError, Error},
    offload::serve_durable,
    policy::Policies,
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
    pub fn serve_durable<S, ReqB, ResB>(&self, service: S)
    where
        S: Service<Request<ReqB>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + 'static,
        S::Future: Send + 'static,
        ReqB: RequestBody,
        ResB: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        for (name, route) in self.state.durables.all() {
            let (state, service) = (Arc::clone(&self.state), service.clone());
            tokio::spawn(serve_durable(state, name, route, service));
        }
    }
}
