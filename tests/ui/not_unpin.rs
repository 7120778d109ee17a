//! A plain `async fn` inside of a layer that was not `.boxed()`.

use std::convert::Infallible;

use axum::{Router, body::Body};
use http::{Request, Response};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_offload::{Offload, Policy};

async fn hello(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::from("hello")))
}

fn serve<S: Service<Request<Body>>>(_: S) {}

fn main() {
    let offload = Offload::new("/jobs");
    let service = ServiceBuilder::new().layer(offload.layer(Policy::always())).service_fn(hello);
    serve(service.clone());
    let _ = Router::<()>::new().route_service("/", service.clone());
    let _ = service.clone().oneshot(Request::new(Body::empty()));
    let _ = service.clone().ready();
    let _ = service.clone().call(Request::new(Body::empty()));
}
