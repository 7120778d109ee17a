//! A client: it sends one request after the other over real sockets, follows its jobs, cancels them or
//! leaves, and notes what it was told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Bytes, http::HeaderMap};
use http_body_util::{BodyExt, Channel, Full, combinators::BoxBody};
use hyper::{Request, StatusCode};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    ledger::Ledger,
    mix::{Kind, Order, Random},
    server::Made,
};

/// No request or job takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a request with a key is sent again that found no room.
const TRIES: usize = 10;

/// What a client was told of one of its requests.
#[derive(Debug)]
pub enum Told {
    /// The handler's own response.
    Direct(Made),
    /// Instead of a response, the problem of the job that a request with a key is.
    Problem(String),
    /// 503: there was no room for a job.
    Refused,
    /// 503: no jobs are taken any more.
    Draining,
    /// The connection broke off.
    Broken,
    /// Nothing: the client had left.
    Left,
    /// 202, and how the job ended.
    Job(Job),
}

/// A job's end as it was told.
#[derive(Debug)]
pub struct Job {
    pub id: String,
    pub status: String,
    pub response_status: Option<u64>,
    /// The last word of its problem's type.
    pub problem: Option<String>,
    /// What its result's URL answered.
    pub result: Made,
    /// What `DELETE` answered, if it was sent.
    pub canceled: Option<StatusCode>,
}

/// Lives until the given time, and as long as its last job takes.
pub async fn live(
    address: SocketAddr,
    number: u64,
    tokens: &AtomicU64,
    ledger: &Ledger,
    until: Instant,
) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // Every other one speaks HTTP/2.
    let http2 = number % 2 == 1;
    let http = HyperClient::builder(TokioExecutor::new()).http2_only(http2).build(connector);
    let client = Arc::new(Client { http, address, owner: format!("client {}", number / 4) });
    let mut random = Random::new(number + 1);
    while Instant::now() < until {
        let order = Order::draw(tokens.fetch_add(1, Ordering::Relaxed), &mut random);
        let start = Instant::now();
        let told = timeout(PATIENCE, client.request(&order)).await;
        match told.unwrap_or_else(|_| Err(format!("no end within {PATIENCE:?}"))) {
            Ok(told) => ledger.told(order, told, start.elapsed()),
            Err(surprise) => ledger.surprised(&order, surprise),
        }
        sleep(Duration::from_millis(random.between(0..20))).await;
    }
}

type Body = BoxBody<Bytes, Infallible>;
type Surprise = String;

#[derive(Clone)]
struct Client {
    http: HyperClient<HttpConnector, Body>,
    address: SocketAddr,
    /// Some clients are one owner.
    owner: String,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    async fn request(self: &Arc<Self>, order: &Order) -> Result<Told, Surprise> {
        if order.kind.has_key() {
            return self.with_key(order).await;
        }
        let sent = self.send(self.post(order));
        let leaves = matches!(
            order.kind,
            Kind::LeavesAttached
                | Kind::LeavesAtTheBudget
                | Kind::FinishedAnyway
                | Kind::StallsUpload
        );
        let answer = match leaves {
            // The future is dropped when the time is over, and with it the connection or stream.
            true => match timeout(order.after, sent).await {
                Ok(answer) => answer,
                Err(_) => return Ok(Told::Left),
            },
            false => sent.await,
        };
        match answer {
            Ok(answer) => self.told(order, &answer).await,
            Err(_) => Ok(Told::Broken),
        }
    }

    async fn told(&self, order: &Order, answer: &Answer) -> Result<Told, Surprise> {
        if answer.status == StatusCode::ACCEPTED {
            return Ok(Told::Job(self.job(order, answer).await?));
        }
        if answer.body.starts_with(format!("token {},", order.token).as_bytes()) {
            return Ok(Told::Direct(Made::of(answer.status, &answer.body)));
        }
        let problem = answer.json().ok().as_ref().and_then(problem);
        Ok(match (answer.status.as_u16(), problem.as_deref()) {
            (503, Some("limit-reached")) => Told::Refused,
            (503, Some("shutting-down")) => Told::Draining,
            (500, Some("panicked")) if order.kind.has_key() => Told::Problem("panicked".into()),
            (503, Some("interrupted")) if order.kind.has_key() => {
                Told::Problem("interrupted".into())
            }
            (status, problem) => return Err(format!("{status} with the problem {problem:?}")),
        })
    }

    /// Sends a request with a key as its kind says, and once more when it is answered. Whatever is
    /// told, it must be told of one and the same job.
    async fn with_key(self: &Arc<Self>, order: &Order) -> Result<Told, Surprise> {
        let mut answers = Vec::new();
        match order.kind {
            Kind::KeyedAtOnce => {
                let sent = (0..3).map(|_| {
                    let (this, order) = (Arc::clone(self), order.clone());
                    tokio::spawn(async move { this.send(this.post(&order)).await })
                });
                for sent in sent.collect::<Vec<_>>() {
                    answers.push(sent.await.map_err(|error| error.to_string())??);
                }
            }
            Kind::KeyedAgain => {
                for _ in 0..1 + order.token % 3 {
                    if let Ok(answer) = timeout(order.after, self.send(self.post(order))).await {
                        answers.push(answer?);
                    }
                }
            }
            _ => {}
        }
        for _ in 0..TRIES {
            let answer = self.send(self.post(order)).await?;
            let full = answer.status == StatusCode::SERVICE_UNAVAILABLE;
            answers.push(answer);
            if !full {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let mut told = Told::Refused;
        for answer in &answers {
            let now = self.told(order, answer).await?;
            told = agree(told, now)?;
        }
        if let Told::Job(job) = &told {
            let again = self.send(self.post(order)).await?;
            let made = Made::of(again.status, &again.body);
            // What `DELETE` or a replay says of it may differ in headers, not in this.
            if job.response_status.is_some() && made != job.result {
                return Err(format!("sent again, it was answered {made:?}, not {:?}", job.result));
            }
        }
        Ok(told)
    }

    async fn job(&self, order: &Order, accepted: &Answer) -> Result<Job, Surprise> {
        let url = accepted.header("location")?;
        let status = format!("{url}/status");
        let mut canceled = None;
        if order.token % 8 == 0 {
            self.is_hidden_from_others(&status).await?;
        }
        match order.kind {
            Kind::Canceled | Kind::CanceledAtTheEnd | Kind::CanceledInQueue => {
                sleep(order.after).await;
                canceled = Some(self.cancel(url).await?);
            }
            Kind::LeavesWaiting => {
                if let Ok(answer) = timeout(order.after, self.get(&status, 10)).await {
                    answer?.expect(StatusCode::OK)?;
                }
            }
            _ => {}
        }
        let (document, result) = self.follow(url, order.token).await?;
        let again = self.get(&status, 0).await?.json()?;
        if again != document {
            return Err(format!("told twice, first {document}, then {again}"));
        }
        let response_status = document["response_status"].as_u64();
        if result.headers.get("asyncresult").is_some() != response_status.is_some() {
            return Err(format!("{document} with the result's {:?}", result.headers));
        }
        Ok(Job {
            id: document["job_id"].as_str().unwrap_or_default().to_owned(),
            status: document["status"].as_str().unwrap_or_default().to_owned(),
            response_status,
            problem: problem(&document["error"]),
            result: Made::of(result.status, &result.body),
            canceled,
        })
    }

    async fn is_hidden_from_others(&self, url: &str) -> Result<(), Surprise> {
        let stranger = Self { owner: format!("not {}", self.owner), ..self.clone() };
        stranger.get(url, 0).await?.expect(StatusCode::NOT_FOUND)?;
        stranger.delete(url.trim_end_matches("/status")).await?.expect(StatusCode::NOT_FOUND)?;
        Ok(())
    }

    /// Waits for the end, in one of three ways; gives the document and the result.
    async fn follow(&self, url: &str, way: u64) -> Result<(Value, Answer), Surprise> {
        let (status, result) = (format!("{url}/status"), format!("{url}/result"));
        match way % 3 {
            0 => {
                let mut position = u64::MAX;
                loop {
                    let answer = self.get(url, 0).await?;
                    if answer.status == StatusCode::SEE_OTHER {
                        let result = self.get(answer.header("location")?, 0).await?;
                        return Ok((answer.json()?, result));
                    }
                    let document = answer.expect(StatusCode::ACCEPTED)?.json()?;
                    let now = document["queue_position"].as_u64().unwrap_or(0);
                    if now > position {
                        return Err(format!("from position {position} in the queue to {now}"));
                    }
                    position = now;
                    sleep(Duration::from_millis(50)).await;
                }
            }
            1 => loop {
                let answer = self.get(&status, 5).await?;
                let document = answer.expect(StatusCode::OK)?.json()?;
                if !matches!(document["status"].as_str(), Some("queued" | "running")) {
                    return Ok((document, self.get(&result, 0).await?));
                }
            },
            _ => loop {
                let answer = self.get(&result, 5).await?;
                if answer.status != StatusCode::ACCEPTED {
                    let document = self.get(&status, 0).await?;
                    return Ok((document.expect(StatusCode::OK)?.json()?, answer));
                }
            },
        }
    }

    /// Cancels, and once more: the second answer must be the first.
    async fn cancel(&self, url: &str) -> Result<StatusCode, Surprise> {
        let mut answers = [StatusCode::OK; 2];
        for answer in &mut answers {
            *answer = self.delete(url).await?.status;
        }
        match answers {
            [first, second] if first == second => Ok(first),
            _ => Err(format!("DELETE twice was answered {answers:?}")),
        }
    }

    async fn delete(&self, url: &str) -> Result<Answer, Surprise> {
        let request = Request::delete(format!("http://{}{url}", self.address));
        let request = request.header("authorization", &self.owner).body(Body::default());
        self.send(request.map_err(|error| error.to_string())?).await
    }

    async fn get(&self, url: &str, wait: u64) -> Result<Answer, Surprise> {
        let mut request = Request::get(format!("http://{}{url}", self.address))
            .header("authorization", &self.owner);
        if wait > 0 {
            request = request.header("prefer", format!("wait={wait}"));
        }
        self.send(request.body(Body::default()).map_err(|error| error.to_string())?).await
    }

    async fn send(&self, request: Request<Body>) -> Result<Answer, Surprise> {
        let response =
            self.http.request(request).await.map_err(|error| format!("no answer: {error:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| format!("half an answer: {error:?}"))?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    fn post(&self, order: &Order) -> Request<Body> {
        let Order { token, ending, size, .. } = order;
        let query =
            format!("token={token}&ms={}&ending={ending:?}&size={size}", order.takes.as_millis());
        let mut request = Request::post(format!("http://{}{}?{query}", self.address, order.path));
        if order.kind != Kind::NoOwner {
            request = request.header("authorization", &self.owner);
        }
        if order.path == "/keyed" {
            request = request.header("idempotency-key", format!("\"the key of {token}\""));
        }
        if order.kind == Kind::Asked {
            request = request.header("prefer", "respond-async");
        }
        let body = match order.kind {
            Kind::SlowUpload => in_pieces(order.after),
            // It leaves long before the second piece.
            Kind::StallsUpload => in_pieces(order.after.mul_f32(0.7)),
            // Every third has none.
            _ if order.token % 3 == 0 => Body::default(),
            _ => Full::from(format!("the body of {}", order.token)).boxed(),
        };
        request.body(body).expect("a request")
    }
}

impl Answer {
    fn expect(&self, status: StatusCode) -> Result<&Self, Surprise> {
        match self.status == status {
            true => Ok(self),
            false => Err(format!("{}: {}", self.status, String::from_utf8_lossy(&self.body))),
        }
    }

    fn header(&self, name: &str) -> Result<&str, Surprise> {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| format!("{} without {name}", self.status))
    }

    fn json(&self) -> Result<Value, Surprise> {
        serde_json::from_slice(&self.body).map_err(|_| format!("{} without JSON", self.status))
    }
}

fn problem(document: &Value) -> Option<String> {
    document["type"].as_str()?.rsplit(':').next().map(str::to_owned)
}

/// What was told of a request with a key, before and now.
fn agree(before: Told, now: Told) -> Result<Told, Surprise> {
    let agrees = match (&before, &now) {
        (Told::Refused | Told::Draining, _) | (_, Told::Refused | Told::Draining) => true,
        (Told::Direct(before), Told::Direct(now)) => before == now,
        (Told::Job(before), Told::Job(now)) => before.id == now.id,
        (Told::Job(job), Told::Direct(made)) | (Told::Direct(made), Told::Job(job)) => {
            job.result == *made
        }
        (Told::Job(job), Told::Problem(problem)) | (Told::Problem(problem), Told::Job(job)) => {
            job.problem.as_ref() == Some(problem)
        }
        (Told::Problem(before), Told::Problem(now)) => before == now,
        _ => false,
    };
    match (agrees, before, now) {
        (false, before, now) => Err(format!("told {before:?}, then {now:?}")),
        (true, job @ Told::Job(_), _) | (true, _, job @ Told::Job(_)) => Ok(job),
        (true, Told::Refused | Told::Draining, now) => Ok(now),
        (true, before, _) => Ok(before),
    }
}

/// A body of four pieces, with such a pause before each.
fn in_pieces(pause: Duration) -> Body {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for piece in ["one ", "two ", "three ", "four"] {
            sleep(pause).await;
            if sender.send_data(Bytes::from(piece)).await.is_err() {
                return;
            }
        }
    });
    body.boxed()
}
