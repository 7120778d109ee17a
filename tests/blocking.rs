//! Handlers that block a thread: what the layer can do for them, and what it cannot.

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, routing::post};
use http::Request;
use support::{Client, soon};
use tokio::{net::TcpListener, runtime};
use tower_offload::{Offload, Policy};

const BUDGET: Duration = Duration::from_millis(50);

/// The thread that blocks goes on when the test drops the other end.
type Blocked = Arc<Mutex<mpsc::Receiver<()>>>;

fn block(blocked: &Blocked) {
    let _ = blocked.lock().unwrap().recv();
}

/// Serves `app` on a runtime of its own, so that the client's is not one that is blocked.
fn serve(runtime: &runtime::Runtime, app: Router) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    runtime.spawn(async move {
        axum::serve(TcpListener::from_std(listener).unwrap(), app).await.unwrap();
    });
    addr
}

fn multi_thread(workers: usize) -> runtime::Runtime {
    runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

async fn post_to(client: &Client, addr: SocketAddr, path: &str, body: &'static str) -> String {
    let request = Request::post(format!("http://{addr}{path}"));
    let answer = soon("the answer", client.send(request, body)).await;
    answer.location().to_owned()
}

async fn result_of(client: &Client, addr: SocketAddr, job: &str) -> String {
    loop {
        let request =
            Request::get(format!("http://{addr}{job}/result")).header("prefer", "wait=30");
        let answer = soon("the result", client.send(request, "")).await;
        if answer.status != 202 {
            return answer.text().to_owned();
        }
    }
}

/// The way that is documented: the thread that blocks is none that polls.
#[tokio::test]
async fn trap_7_1_a_handler_that_blocks_elsewhere_gets_its_202_on_time() {
    for workers in [1, 2] {
        let runtime = multi_thread(workers);
        let offload = Offload::new("/jobs");
        let (release, blocked) = mpsc::channel();
        let blocked: Blocked = Arc::new(Mutex::new(blocked));
        let handler = || async move {
            let work = tokio::task::spawn_blocking(move || block(&blocked));
            work.await.unwrap();
            "worked"
        };
        let app = Router::new()
            .route("/", post(handler).layer(offload.layer(Policy::after(BUDGET))))
            .nest_service("/jobs", offload.status());
        let (client, addr) = (Client::http1(), serve(&runtime, app));
        // It does not end before this answer is there.
        let job = post_to(&client, addr, "/", "").await;
        drop(release);
        assert_eq!(result_of(&client, addr, &job).await, "worked");
        runtime.shutdown_background();
    }
}

/// An `always` route is spawned at once, so its answer does not wait for it: not with an upload
/// either, whose end the handler sees only after the move.
#[tokio::test]
async fn trap_7_1_an_always_handler_that_blocks_its_thread_has_its_202_at_once() {
    for client in [Client::http1(), Client::http2()] {
        for body in ["", "an upload"] {
            let runtime = multi_thread(2);
            let offload = Offload::new("/jobs");
            let (release, blocked) = mpsc::channel();
            let blocked: Blocked = Arc::new(Mutex::new(blocked));
            let handler = |body: String| async move {
                block(&blocked);
                body
            };
            let app = Router::new()
                .route("/", post(handler).layer(offload.layer(Policy::always())))
                .nest_service("/jobs", offload.status());
            let addr = serve(&runtime, app);
            let job = post_to(&client, addr, "/", body).await;
            drop(release);
            assert_eq!(result_of(&client, addr, &job).await, body);
            runtime.shutdown_background();
        }
    }
}

/// What no layer can mend: a handler that blocks the thread on which its own budget is counted. It is
/// as without the layer: its answer comes late, and it is not lost.
#[tokio::test]
async fn trap_7_1_a_handler_that_blocks_its_own_thread_answers_late_and_is_not_lost() {
    let runtime = multi_thread(1);
    let offload = Offload::new("/jobs");
    let handler = || async {
        std::thread::sleep(BUDGET * 4);
        "late"
    };
    let layer = offload.layer(Policy::after(BUDGET));
    let app = Router::new().route("/", post(handler).layer(layer));
    let addr = serve(&runtime, app);
    let request = Request::post(format!("http://{addr}/"));
    let answer = soon("the answer", Client::http1().send(request, "")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "late"));
    runtime.shutdown_background();
}
