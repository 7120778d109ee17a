//! A Redis that is away, through the whole of an app: what is attached is untouched, what was accepted is
//! kept, and nothing false is told.

mod support;

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::post};
use http::{Response, StatusCode, header};
use support::{Server, app, fresh_prefix, proxy::Proxy};
use tokio::{sync::Notify, time::sleep};
use tower_offload::{Offload, Policy};
use tower_offload_redis::RedisStore;

const BUDGET: Duration = Duration::from_millis(50);

/// An app whose Redis can be cut off.
struct App {
    router: Router,
    proxy: Proxy,
    /// Lets the handler of `/gated` come to its end.
    open: Arc<Notify>,
    _server: Server,
}

impl App {
    async fn start() -> Self {
        let server = Server::start(&[]);
        let proxy = Proxy::start(server.port).await;
        let store = RedisStore::builder(proxy.url())
            .prefix(fresh_prefix())
            .timeout(Duration::from_millis(200))
            .connect()
            .await
            .unwrap();
        let offload = Offload::builder("/jobs").store(store).build().unwrap();
        let open = Arc::new(Notify::new());
        let gate = Arc::clone(&open);
        let slow = post(|| async {
            sleep(BUDGET * 4).await;
            "slow"
        });
        let gated = post(move || async move {
            gate.notified().await;
            vec![b'x'; 100_000]
        });
        let router = Router::new()
            .route("/fast", post(|| async { "fast" }).layer(offload.layer(Policy::after(BUDGET))))
            .route("/slow", slow.layer(offload.layer(Policy::after(BUDGET))))
            .route("/gated", gated.layer(offload.layer(Policy::always())))
            .nest_service("/jobs", offload.status());
        Self { router, proxy, open, _server: server }
    }

    async fn send(&self, method: &str, path: &str) -> Response<String> {
        app::send(&self.router, method, path).await
    }

    /// A job of `/gated`.
    async fn accepted(&self) -> String {
        let answer = self.send("POST", "/gated").await;
        assert_eq!(answer.status(), 202, "{}", answer.body());
        answer.headers()[header::LOCATION].to_str().unwrap().to_owned()
    }
}

fn is_unavailable(answer: &Response<String>) {
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body());
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    assert!(
        answer.body().contains("urn:tower-offload:problem:store-unavailable"),
        "{}",
        answer.body()
    );
}

#[tokio::test]
async fn what_is_attached_is_untouched_and_stays_attached() {
    let app = App::start().await;
    assert_eq!(app.send("POST", "/slow").await.status(), 202);
    app.proxy.cut();
    for _ in 0..3 {
        let fast = app.send("POST", "/fast").await;
        assert_eq!((fast.status().as_u16(), &**fast.body()), (200, "fast"));
        let slow = app.send("POST", "/slow").await;
        assert_eq!((slow.status().as_u16(), &**slow.body()), (200, "slow"));
    }
}

#[tokio::test]
async fn no_promise_is_made_and_nothing_false_is_told() {
    let app = App::start().await;
    let job = app.accepted().await;
    app.proxy.cut();
    is_unavailable(&app.send("POST", "/gated").await);
    let never = "/jobs/0123456789abcdef0123456789abcdef";
    for path in [&*job, &format!("{job}/status"), &format!("{job}/result"), never] {
        is_unavailable(&app.send("GET", path).await);
    }
    is_unavailable(&app.send("DELETE", &job).await);
    app.proxy.mend();
    let document = app::poll(&app.router, &job).await;
    assert_eq!(document["status"], "running");
    assert_eq!(app.send("GET", never).await.status(), 404);
}

#[tokio::test]
async fn an_outcome_waits_until_redis_is_back() {
    let app = App::start().await;
    let job = app.accepted().await;
    app.proxy.cut();
    app.open.notify_one();
    // So long that it has been tried more than once.
    sleep(Duration::from_secs(2)).await;
    app.proxy.mend();
    app::ended(&app.router, &job).await;
    let result = app.send("GET", &format!("{job}/result")).await;
    assert_eq!((result.status().as_u16(), result.body().len()), (200, 100_000));
}

#[tokio::test]
async fn a_full_redis_promises_nothing_and_loses_no_outcome() {
    let app = App::start().await;
    let job = app.accepted().await;
    app._server.cli(&["config", "set", "maxmemory", "1"]);
    let refused = app.send("POST", "/gated").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    app.open.notify_one();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(app::poll(&app.router, &job).await["status"], "running");
    app._server.cli(&["config", "set", "maxmemory", "0"]);
    app::ended(&app.router, &job).await;
    let result = app.send("GET", &format!("{job}/result")).await;
    assert_eq!((result.status().as_u16(), result.body().len()), (200, 100_000));
}
