//! What must not allocate: layering, which axum does for each connection and may do for each request,
//! a request that ends within its budget, and what a handler says of its progress once it has its
//! job. One test at a time, since the allocator counts for the process.

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
use tokio::sync::Mutex;
use tower::{Layer, Service};
use tower_offload::{Job, Offload, Policies, Policy};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

type Body = UnsyncBoxBody<Bytes, Infallible>;

const BUDGET: Duration = Duration::from_secs(60);

/// Held by each test here, so that it measures nothing of another.
static ALONE: Mutex<()> = Mutex::const_new(());

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
    let _alone = ALONE.lock().await;
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

/// Answers in its second poll, having looked for its job in the first if it is to, and counted.
#[derive(Clone, Copy)]
struct Counts {
    looks: bool,
    polled: bool,
    took: usize,
}

impl Service<Request<Body>> for Counts {
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

impl Future for Counts {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.looks {
            let job = Job::current().unwrap();
            job.set_total(100_000);
            job.progress(0.0, "counting");
            self.took += taken(|| {
                for _ in 0..50_000 {
                    job.advance(1);
                    job.progress(0.5, "counting");
                }
            })
            .1;
        }
        match std::mem::replace(&mut self.polled, true) {
            false => Poll::Pending,
            true => Poll::Ready(Ok(Response::new(Bytes::from(self.took.to_string()).into()))),
        }
    }
}

#[tokio::test]
async fn progress_allocates_once_where_it_is_used_and_nothing_elsewhere() {
    let _alone = ALONE.lock().await;
    let offload = Offload::new("/jobs");
    for looks in [false, true] {
        let counts = Counts { looks, polled: false, took: 0 };
        let mut service = offload.layer(Policy::after(BUDGET)).layer(counts);
        let mut other = service.call(request());
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut other).poll(cx))).await;
        assert!(polled.is_pending());
        for warm_up in [true, false] {
            let request = request();
            let (mut answer, bytes) = taken(|| {
                let mut cx = Context::from_waker(Waker::noop());
                let mut answer = service.call(request);
                assert!(Pin::new(&mut answer).poll(&mut cx).is_pending());
                answer
            });
            assert!(warm_up || (bytes > 0) == looks, "{bytes} bytes, looks: {looks}");
            let told = poll_fn(|cx| Pin::new(&mut answer).poll(cx)).await.unwrap();
            assert_eq!(told.into_body().collect().await.unwrap().to_bytes(), "0", "each call");
        }
    }
}
