//! The real curl against the examples, the programs themselves. Of the hyper example: slow uploads over
//! both protocols, with and without `Expect`, the next request on the same connection, and a job
//! followed to its end. Of the example of orders: keys, owners, and a client that gives up.

#[path = "support/example.rs"]
mod example;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use example::Example;

/// Below what the layer buffers of an upload, and above.
const SIZES: [usize; 2] = [1_000_000, 5_000_000];

/// So that either size takes about a second, which is four times the example's budget. The large
/// one is sent in fewer, larger pieces.
fn rate(size: usize) -> [String; 2] {
    ["--limit-rate".to_owned(), size.to_string()]
}

/// How curl sends its upload.
const PROTOCOLS: [&[&str]; 3] =
    [&["-H", "Expect:"], &["-H", "Expect: 100-continue"], &["--http2-prior-knowledge"]];

#[test]
fn an_upload_slower_than_the_budget_is_answered_by_its_handler() {
    let server = Example::start("hyper_server");
    in_every_case(|size, protocol| {
        let upload = upload(size);
        let curl = Curl::new().upload(protocol, &rate(size), &server, "/digest");
        let answers = curl.run(&upload);
        let [answer] = &answers[..] else { panic!("{answers:#?}") };
        assert_eq!(answer.status, 200, "{protocol:?} {answer:#?}");
        assert_eq!(answer.body, digest(&upload), "{protocol:?}");
    });
}

#[test]
fn a_slow_handler_becomes_a_job_that_has_the_whole_upload() {
    let server = Example::start("hyper_server");
    in_every_case(|size, protocol| {
        let upload = upload(size);
        // The pause is longer than the one more budget that follows a slow upload.
        let path = "/digest?pause_ms=1500";
        let mut curl = Curl::new().upload(protocol, &rate(size), &server, path);
        // curl 7.88 cannot use an HTTP/2 connection twice where it was told to speak HTTP/2 from
        // the start, whatever the server; tests/request_body.rs does it with another client.
        let is_http1 = !protocol.contains(&"--http2-prior-knowledge");
        if is_http1 {
            curl = curl.next(&["-d", "next"], &server, "/digest");
        }
        let answers = curl.run(&upload);
        assert_eq!(answers[0].status, 202, "{protocol:?} {answers:#?}");
        if is_http1 {
            let next = &answers[1];
            assert_eq!((next.status, &next.body), (200, &digest(b"next")), "{protocol:?}");
            assert_eq!(next.connects, 0, "{protocol:?}: on the same connection");
        }
        let job: serde_json::Value = serde_json::from_str(&answers[0].body).unwrap();
        let job = job["links"]["self"].as_str().unwrap();
        let followed = Curl::new().next(&["-L", "-H", "Prefer: wait=30"], &server, job).run(b"");
        assert_eq!(followed[0].status, 200, "{followed:#?}");
        assert_eq!(followed[0].body, digest(&upload), "{protocol:?}: nothing is lost");
    });
}

#[test]
fn trap_4_5_curls_offer_of_h2c_is_no_upgrade() {
    let server = Example::start("hyper_server");
    let upload = upload(1000);
    let answers = Curl::new()
        .upload(&["--http2"], &[], &server, "/digest?pause_ms=1000")
        .next(&["--http2", "-d", "next"], &server, "/digest")
        .run(&upload);
    let [accepted, next] = &answers[..] else { panic!("{answers:#?}") };
    assert_eq!(accepted.status, 202, "{accepted:#?}");
    assert_eq!((next.status, &next.body), (200, &digest(b"next")));
    assert_eq!((accepted.connects, next.connects), (1, 0), "on the same connection");
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_what_was_promised() {
    let mut server = Example::start("hyper_server");
    let job = Curl::new().upload(&[], &[], &server, "/digest?pause_ms=3000").run(b"promised");
    assert_eq!(job[0].status, 202, "{job:#?}");
    let job: serde_json::Value = serde_json::from_str(&job[0].body).unwrap();
    server.interrupt();
    assert_eq!(server.line(), "finishing jobs, for 30 s at most");

    // Status URLs are answered until the job is done, and past it for a request that waits.
    let job = job["links"]["self"].as_str().unwrap();
    let running = Curl::new().next(&[], &server, job).run(b"");
    assert_eq!(running[0].status, 202, "{running:#?}");
    let result = format!("{job}/result");
    let result = Curl::new().next(&["-H", "Prefer: wait=30"], &server, &result).run(b"");
    assert_eq!((result[0].status, &result[0].body), (200, &digest(b"promised")));

    assert_eq!(server.line(), "1 finished, 0 interrupted");
    let status = server.wait();
    assert!(status.success(), "{status}");
}

/// What stands at the top of the example of orders, sent by curl.
#[test]
fn an_order_is_placed_once_and_seen_by_its_owner_only() {
    let mut server = Example::start("orders");
    let send = |token: &str, options: &[&str], path: &str| {
        let token = format!("Authorization: Bearer {token}");
        let options = [&["-H", &token], options].concat();
        Curl::new().next(&options, &server, path).run(b"").remove(0)
    };
    let order = |key: &str, order: &str, path: &str| {
        let key = format!("Idempotency-Key: {key}");
        send("ada", &["-H", &key, "-d", order], path)
    };
    let first = order("\"1\"", "two lamps", "/orders");
    assert_eq!((first.status, &*first.body), (201, "order 1: two lamps"));
    for key in ["\"1\"", "1"] {
        assert_eq!(order(key, "two lamps", "/orders").body, first.body);
    }
    assert_eq!(order("\"1\"", "a chair", "/orders").status, 422);
    assert_eq!(send("ada", &["-d", "a chair"], "/orders").status, 400);
    let nobody = Curl::new().next(&["-H", "Idempotency-Key: 9", "-d", "x"], &server, "/orders");
    assert_eq!(nobody.run(b"")[0].status, 401);
    // Another's equal key is another key.
    let others = send("eve", &["-H", "Idempotency-Key: \"1\"", "-d", "two lamps"], "/orders");
    assert_eq!(others.body, "order 2: two lamps");

    // The client gives up before it has an answer, and asks again.
    let gives_up = Command::new("curl")
        .args(["--silent", "--max-time", "0.1", "-d", "a rug"])
        .args(["-H", "Authorization: Bearer ada", "-H", "Idempotency-Key: \"2\""])
        .arg(format!("{}/orders?bank_ms=1500", server.url))
        .status();
    assert_eq!(gives_up.unwrap().code(), Some(28), "curl has given up");
    let again = order("\"2\"", "a rug", "/orders?bank_ms=1500");
    assert_eq!(again.status, 202, "{again:#?}");
    let job: serde_json::Value = serde_json::from_str(&again.body).unwrap();
    let job = job["links"]["self"].as_str().unwrap();
    assert_eq!(send("eve", &[], job).status, 404);
    let followed = send("ada", &["-L", "-H", "Prefer: wait=30"], job);
    assert_eq!((followed.status, &*followed.body), (201, "order 3: a rug"));
    let at_last = order("\"2\"", "a rug", "/orders?bank_ms=1500");
    assert_eq!((at_last.status, &*at_last.body), (201, "order 3: a rug"));

    for number in 1..=3 {
        assert_eq!(server.line(), format!("order {number}: charging"), "each once");
        assert_eq!(server.line(), format!("order {number}: placed"));
    }
    #[cfg(unix)]
    {
        server.interrupt();
        let stats = server.line();
        assert!(stats.starts_with("orders: 3 kept in "), "{stats}");
        assert!(stats.ends_with(" bytes, 0 refused"), "{stats}");
        assert!(server.line().starts_with("receipts: 0 kept in 0 bytes"));
        assert!(server.wait().success());
    }
}

/// All at once: most of the time they wait.
fn in_every_case(test: impl Fn(usize, &[&str]) + Sync) {
    std::thread::scope(|threads| {
        for (size, protocol) in SIZES.into_iter().flat_map(|size| PROTOCOLS.map(|p| (size, p))) {
            threads.spawn({
                let test = &test;
                move || test(size, protocol)
            });
        }
    });
}

/// Bytes without a pattern that would hide a piece that is lost or told twice.
fn upload(len: usize) -> Vec<u8> {
    let numbers = std::iter::successors(Some(1_u32), |n| {
        Some(n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
    });
    numbers.map(|n| (n >> 24) as u8).take(len).collect()
}

/// What the example answers to this upload.
fn digest(upload: &[u8]) -> String {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in upload {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    format!("{{\"bytes\":{},\"adler32\":\"{b:04x}{a:04x}\"}}", upload.len())
}

/// One run of curl: an upload from its standard input, then other requests in order.
struct Curl(Command);

#[derive(Debug)]
struct Answer {
    status: u16,
    /// How many connections curl has made for it.
    connects: u32,
    body: String,
}

impl Curl {
    fn new() -> Self {
        Self(Command::new("curl"))
    }

    fn upload(self, protocol: &[&str], more: &[String], server: &Example, path: &str) -> Self {
        let mut this = self.next(&["--data-binary", "@-"], server, path);
        this.0.args(protocol).args(more);
        this
    }

    fn next(mut self, options: &[&str], server: &Example, path: &str) -> Self {
        if self.0.get_args().next().is_some() {
            self.0.arg("--next");
        }
        // The body of each answer is a line, and so is what curl knows of it.
        self.0
            .args(["--silent", "--show-error", "--max-time", "120"])
            .args(["--write-out", "\n%{http_code} %{num_connects}\n"])
            .args(options)
            .arg(format!("{}{path}", server.url));
        self
    }

    fn run(mut self, upload: &[u8]) -> Vec<Answer> {
        let mut curl =
            self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("curl is there");
        // It reads all of it before it sends the first byte.
        let written = curl.stdin.take().unwrap().write_all(upload);
        let output = curl.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{:?}: {}\n{text}", self.0, output.status);
        written.unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        let answer = |lines: &[&str]| {
            let (status, connects) = lines[1].split_once(' ').unwrap();
            let (status, connects) = (status.parse().unwrap(), connects.parse().unwrap());
            Answer { status, connects, body: lines[0].to_owned() }
        };
        lines.chunks(2).map(answer).collect()
    }
}
