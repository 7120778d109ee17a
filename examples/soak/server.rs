//! The app: handlers that do as they are told, and note in a table what they really did.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Query, State},
    http::StatusCode,
    routing::post,
    serve::ListenerExt,
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_offload::{Offload, Policy};

use crate::mix::{BUDGET, Ending, RUN_TIME};

/// What the panics say that are ordered.
pub const PANIC: &str = "as ordered";

/// What a handler did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It has begun.
    Began,
    /// It came to its end, with this response.
    Finished(Made),
    Panicked,
    /// Its future was dropped.
    Dropped,
}

/// A response, as far as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    pub status: u16,
    pub hash: u64,
}

impl Made {
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Self { status: status.as_u16(), hash: hasher.finish() }
    }
}

impl Deed {
    pub fn is_end(self) -> bool {
        self != Self::Began
    }
}

/// The table of what was done, by token.
#[derive(Default)]
pub struct Deeds {
    by_token: Mutex<HashMap<u64, Deed>>,
    /// Handlers that began, or ended, when they had done so already.
    twice: Mutex<Vec<u64>>,
}

impl Deeds {
    /// What was done for this token, if that is over. It is in the table no more then.
    pub fn take_ended(&self, token: u64) -> Option<Deed> {
        let mut by_token = self.by_token.lock().unwrap();
        by_token.get(&token).is_some_and(|deed| deed.is_end()).then(|| by_token.remove(&token))?
    }

    /// Gives the table away and begins anew.
    pub fn take(&self) -> HashMap<u64, Deed> {
        std::mem::take(&mut self.by_token.lock().unwrap())
    }

    pub fn take_twice(&self) -> Vec<u64> {
        std::mem::take(&mut self.twice.lock().unwrap())
    }

    fn note(&self, token: u64, deed: Deed) {
        let before = self.by_token.lock().unwrap().insert(token, deed);
        let fits = match deed {
            Deed::Began => before.is_none(),
            _ => before == Some(Deed::Began),
        };
        if !fits {
            self.twice.lock().unwrap().push(token);
        }
    }
}

/// What the handler is told by the request's query.
#[derive(Deserialize)]
struct ToDo {
    token: u64,
    ms: u64,
    ending: Ending,
    size: usize,
}

/// Serves on a free port for as long as the process lives.
pub async fn serve(
    offload: &Offload,
    deeds: Arc<Deeds>,
    clients: usize,
) -> std::io::Result<SocketAddr> {
    let after = Policy::after(BUDGET);
    let few = (clients / 20).max(1);
    let with = |policy: Policy, name: &str| post(work).layer(offload.layer(policy.name(name)));
    let app = Router::new()
        .route("/after", with(after.clone(), "after"))
        .route("/limited", with(after.clone().timeout(RUN_TIME), "limited"))
        .route("/always", with(Policy::always(), "always"))
        .route("/finished", with(after.clone().finish_on_disconnect(), "finished"))
        .route("/queued", with(Policy::always().concurrency(few).queue(few), "queued"))
        .route("/keyed", with(after.idempotent().concurrency(few).queue(few), "keyed"))
        .with_state(deeds)
        .nest_service("/jobs", offload.status());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|connection| {
        // It may have been closed by now.
        let _ = connection.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// The handler of every route.
async fn work(
    State(deeds): State<Arc<Deeds>>,
    Query(to_do): Query<ToDo>,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    deeds.note(to_do.token, Deed::Began);
    let mut doing = Doing { deeds, token: to_do.token, made: None };
    tokio::time::sleep(Duration::from_millis(to_do.ms)).await;
    let status = match to_do.ending {
        Ending::Ok => StatusCode::OK,
        Ending::Error => StatusCode::INTERNAL_SERVER_ERROR,
        Ending::Panic => panic!("{PANIC}"),
    };
    let mut answer = format!("token {}, sent: ", to_do.token).into_bytes();
    answer.extend_from_slice(&body);
    answer.resize(answer.len() + to_do.size, b'.');
    doing.made = Some(Made::of(status, &answer));
    (status, answer)
}

/// Notes how the handler ends.
struct Doing {
    deeds: Arc<Deeds>,
    token: u64,
    made: Option<Made>,
}

impl Drop for Doing {
    fn drop(&mut self) {
        let deed = match self.made {
            Some(made) => Deed::Finished(made),
            None if std::thread::panicking() => Deed::Panicked,
            None => Deed::Dropped,
        };
        self.deeds.note(self.token, deed);
    }
}
