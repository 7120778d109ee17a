//! What must not allocate: layering, which axum does for each connection and may do for each request,
//! and a request that ends within its budget. One test, since the allocator counts for the process.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use peak_alloc::PeakAlloc;
use tower::{Layer, Service};
use tower_offload::{Offload, Policies, Policy};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

type Body = UnsyncBoxBody<Bytes, Infallible>;

const BUDGET: Duration = Duration::from_secs(60);

/// Runs `f`, and gives what it took at its peak beyond what was taken before.
fn taken<T>(f: impl FnOnce() -> T) -> (T, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let value = f();
    (value, MEMORY.peak_usage() - before)
}

/// Answers at its first poll, or at its second.
#[derive(Clone, Copy)]
struct Quick {
    waits: bool,
}

impl Service<Request<Body>> for Quick {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Self;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self {
        *self
    }
}

impl Future for Quick {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::take(&mut self.waits) {
            true => Poll::Pending,
            false => Poll::Ready(Ok(Response::new(Full::default()))),
        }
    }
}

fn request() -> Request<Body> {
    // Static as hyper's are shared: the first clone of bytes that are neither allocates, in `bytes`.
    let uri = Uri::from_static("/reports/7");
    Request::post(uri).body(Full::default().boxed_unsync()).unwrap()
}

#[tokio::test]
async fn trap_3_2_layering_allocates_nothing_and_neither_does_a_quick_request() {
    assert!(taken(|| Box::new(1)).1 > 0, "the allocator counts");
    let offload = Offload::new("/jobs");
    let policies = || Policies::otherwise(Policy::never()).at("/{*all}", Policy::after(BUDGET));
    for layer in [offload.layer(Policy::after(BUDGET)), offload.layer(policies())] {
        let (boxed, mounted) = (layer.clone().boxed(), layer.clone().mounted());
        let quick = Quick { waits: false };
        let (services, bytes) = taken(|| {
            let clones = (layer.clone(), boxed.clone(), mounted.clone());
            (clones.0.layer(quick), clones.1.layer(quick), clones.2.layer(quick))
        });
        assert_eq!(bytes, 0);
        let (clones, bytes) = taken(|| services.clone());
        drop((services, clones));
        assert_eq!(bytes, 0);

        // Another request waits already, as at any time in a server: the deadlines are looked at.
        let mut waits = layer.layer(Quick { waits: true });
        let mut other = waits.call(request());
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut other).poll(cx))).await;
        assert!(polled.is_pending());
        for waits in [false, true] {
            let mut service = layer.layer(Quick { waits });
            for warm_up in [true, false] {
                let request = request();
                let (polls, bytes) = taken(|| {
                    let mut cx = Context::from_waker(Waker::noop());
                    let mut answer = service.call(request);
                    let first = Pin::new(&mut answer).poll(&mut cx).is_ready();
                    (first, first || Pin::new(&mut answer).poll(&mut cx).is_ready())
                });
                assert_eq!(polls, (!waits, true));
                assert!(warm_up || bytes == 0, "{bytes} bytes, waits: {waits}");
            }
        }
    }
}
