//! A client: it sends one request after the other over real sockets, follows its jobs, cancels them or
//! leaves, and notes what it was told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
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
    mix::{Kind, Order, Random},
    server::Made,
};

/// No request or job takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client was told of one of its requests.
#[derive(Debug)]
pub enum Told {
    /// The handler's own response.
    Direct(Made),
    /// 503: there was no room for a job.
    Refused,
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

/// All of one client.
#[derive(Default)]
pub struct Life {
    pub told: Vec<(Order, Told, Duration)>,
    /// Answers that the contract does not have.
    pub surprises: Vec<String>,
}

/// Lives until the given time, and as long as its last job takes.
pub async fn live(address: SocketAddr, number: u64, tokens: &AtomicU64, until: Instant) -> Life {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // Every other one speaks HTTP/2.
    let http2 = number % 2 == 1;
    let http = HyperClient::builder(TokioExecutor::new()).http2_only(http2).build(connector);
    let client = Client { http, address };
    let mut random = Random::new(number + 1);
    let mut life = Life::default();
    while Instant::now() < until {
        let order = Order::draw(tokens.fetch_add(1, Ordering::Relaxed), &mut random);
        let start = Instant::now();
        let told = timeout(PATIENCE, client.request(&order)).await;
        match told.unwrap_or_else(|_| Err(format!("no end within {PATIENCE:?}"))) {
            Ok(told) => life.told.push((order, told, start.elapsed())),
            Err(surprise) => life.surprises.push(format!("{order:?}: {surprise}")),
        }
        sleep(Duration::from_millis(random.between(0..20))).await;
    }
    life
}

type Body = BoxBody<Bytes, Infallible>;
type Surprise = String;

struct Client {
    http: HyperClient<HttpConnector, Body>,
    address: SocketAddr,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    async fn request(&self, order: &Order) -> Result<Told, Surprise> {
        let sent = self.send(post(order, self.address));
        let answer = match order.kind {
            Kind::LeavesAttached | Kind::LeavesAtTheBudget => {
                // The future is dropped when the time is over, and with it the connection or stream.
                match timeout(order.after, sent).await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(Told::Left),
                }
            }
            _ => sent.await,
        };
        let Ok(answer) = answer else { return Ok(Told::Broken) };
        match answer.status {
            StatusCode::ACCEPTED => Ok(Told::Job(self.job(order, &answer).await?)),
            StatusCode::SERVICE_UNAVAILABLE => match problem(&answer.json()?) {
                Some(problem) if problem == "limit-reached" => Ok(Told::Refused),
                problem => Err(format!("503 with the problem {problem:?}")),
            },
            _ if !answer.body.starts_with(format!("token {},", order.token).as_bytes()) => {
                Err(format!("{} without the token", answer.status))
            }
            status => Ok(Told::Direct(Made::of(status, &answer.body))),
        }
    }

    async fn job(&self, order: &Order, accepted: &Answer) -> Result<Job, Surprise> {
        let url = accepted.header("location")?;
        let status = format!("{url}/status");
        let mut canceled = None;
        match order.kind {
            Kind::Canceled | Kind::CanceledAtTheEnd => {
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

    /// Waits for the end, in one of three ways; gives the document and the result.
    async fn follow(&self, url: &str, way: u64) -> Result<(Value, Answer), Surprise> {
        let (status, result) = (format!("{url}/status"), format!("{url}/result"));
        match way % 3 {
            0 => loop {
                let answer = self.get(url, 0).await?;
                if answer.status == StatusCode::SEE_OTHER {
                    let result = self.get(answer.header("location")?, 0).await?;
                    return Ok((answer.json()?, result));
                }
                answer.expect(StatusCode::ACCEPTED)?;
                sleep(Duration::from_millis(50)).await;
            },
            1 => loop {
                let answer = self.get(&status, 5).await?;
                let document = answer.expect(StatusCode::OK)?.json()?;
                if document["status"] != "running" {
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
            let request = Request::delete(format!("http://{}{url}", self.address));
            let request = request.body(Body::default()).map_err(|error| error.to_string())?;
            *answer = self.send(request).await?.status;
        }
        match answers {
            [first, second] if first == second => Ok(first),
            _ => Err(format!("DELETE twice was answered {answers:?}")),
        }
    }

    async fn get(&self, url: &str, wait: u64) -> Result<Answer, Surprise> {
        let mut request = Request::get(format!("http://{}{url}", self.address));
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

fn post(order: &Order, address: SocketAddr) -> Request<Body> {
    let Order { token, ending, size, .. } = order;
    let query =
        format!("token={token}&ms={}&ending={ending:?}&size={size}", order.takes.as_millis());
    let mut request = Request::post(format!("http://{address}{}?{query}", order.path));
    if order.kind == Kind::Asked {
        request = request.header("prefer", "respond-async");
    }
    let body = match order.kind {
        Kind::SlowUpload => in_pieces(order.after),
        // Every third has none.
        _ if order.token % 3 == 0 => Body::default(),
        _ => Full::from(format!("the body of {}", order.token)).boxed(),
    };
    request.body(body).expect("a request")
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
