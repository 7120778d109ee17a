//! The quickstart example as a reader runs it: the program itself, over real HTTP. And its own unit
//! tests, which no build of an example runs.

#[path = "support/program.rs"]
mod program;
mod support;
#[path = "../examples/quickstart"]
mod example {
    #[allow(dead_code, reason = "the example uses it")]
    mod report;
}

use std::{process::Stdio, time::Instant};

use http::Request;
use program::program;
use support::{Answer, Client, soon};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

const CSV: &str = "id,price,paid\n1,2.5,true\n2,4,false\n9,9007199254740993,true\n";

#[tokio::test]
async fn a_report_in_its_time_or_as_a_job() {
    // Two at once: nothing in it is bound to one port.
    let (first, second) = (Quickstart::start().await, Quickstart::start().await);
    assert_ne!(first.url, second.url);
    for server in [first, second] {
        let fast = server.post("/reports", CSV).await;
        assert_eq!(fast.status, 200, "{fast:#?}");
        assert_eq!(fast.json()["rows"], 3);

        let start = Instant::now();
        let accepted = server.post("/reports?pause_ms=1500", CSV).await;
        let after = start.elapsed();
        let job = accepted.location().to_owned();
        // Not before the budget, and long before the handler; how long the machine takes over a
        // 202 is not this test's business.
        assert!((250..1200).contains(&after.as_millis()), "{after:?}");

        let running = server.get(&job).await;
        assert_eq!((running.status.as_u16(), running.header("retry-after")), (202, "1"));
        assert_eq!(server.ended(&job).await["status"], "succeeded");
        let found = server.get(&job).await;
        assert_eq!(found.status, 303);
        let result = server.get(found.header("location")).await;
        assert_eq!(result.status, 200);
        assert_eq!(result.body, fast.body, "as if it had been fast");

        let late = server.delete(&job).await;
        assert_eq!((late.status.as_u16(), &late.json()["status"]), (409, &"succeeded".into()));
        assert_eq!(server.get(&format!("{job}/result")).await.body, fast.body);
    }
}

#[tokio::test]
async fn a_canceled_video_is_dropped() {
    let mut server = Quickstart::start().await;
    let job = server.post("/videos?seconds=600", "").await.location().to_owned();
    assert_eq!(server.line().await, "video 1: started, 600 s");
    for _ in 0..2 {
        let canceled = server.delete(&job).await;
        assert_eq!(canceled.status, 200);
        assert_eq!(canceled.json()["status"], "canceled");
    }
    let line = server.line().await;
    assert!(line.starts_with("video 1: dropped unfinished after "), "{line}");
    assert_eq!(server.get(&format!("{job}/result")).await.status, 410);
}

#[tokio::test]
async fn videos_say_how_far_they_are_and_wait_for_their_turn() {
    let mut server = Quickstart::start().await;
    let mut jobs = Vec::new();
    for _ in 0..10 {
        let accepted = server.post("/videos?seconds=600", "").await;
        jobs.push((accepted.location().to_owned(), accepted.json()));
    }
    let places: Vec<_> = jobs.iter().map(|(_, job)| job["queue_position"].as_u64()).collect();
    assert_eq!(places, [[None; 2].as_slice(), &[1, 2, 3, 4, 5, 6, 7, 8].map(Some)].concat());
    let full = server.post("/videos?seconds=600", "").await;
    assert_eq!((full.status.as_u16(), &full.json()["limit"]), (503, &"queue".into()));

    let (first, _) = &jobs[0];
    let progress = async {
        loop {
            let job = server.get(&format!("{first}/status")).await.json();
            if job["progress"]["ratio"].as_f64() > Some(0.0) {
                return job["progress"].clone();
            }
        }
    };
    // Two are begun at once, so which of them is the first is for the machine to say.
    let message = soon("progress", progress).await["message"].as_str().unwrap().to_owned();
    let video = message.strip_prefix("transcoding ").expect(&message);
    for _ in 0..2 {
        let line = server.line().await;
        assert!(line.ends_with(": started, 600 s"), "{line}");
    }
    assert_eq!(server.delete(first).await.status, 200);
    let line = server.line().await;
    assert!(line.starts_with(&format!("{video}: dropped unfinished after ")), "{line}");
    assert_eq!(server.line().await, "video 3: started, 600 s", "its turn has come");
    let next = server.get(&format!("{}/status", jobs[3].0)).await.json();
    assert_eq!((&next["status"], &next["queue_position"]), (&"queued".into(), &1.into()));
}

#[tokio::test]
async fn what_is_no_csv_is_refused() {
    let server = Quickstart::start().await;
    for body in ["", "{}", "<html>", "a,b\n1\n", "a,\"b\n"] {
        let refused = server.post("/reports", body).await;
        assert_eq!(refused.status, 422, "{body}: {refused:#?}");
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    // The same when it was a job in between.
    let job = server.post("/reports?pause_ms=600", "a,b\n1\n").await.location().to_owned();
    assert_eq!(server.ended(&job).await["status"], "failed");
    let refused = server.get(&format!("{job}/result")).await;
    assert_eq!((refused.status.as_u16(), refused.header("asyncresult")), (422, "422"));
    assert_eq!(refused.json()["line"], 2);
}

#[tokio::test]
async fn serves_its_page() {
    let page = Quickstart::start().await.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.text().starts_with("<!doctype html>"));
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_finishes_what_was_promised() {
    let mut server = Quickstart::start().await;
    let job = server.post("/videos?seconds=2", "").await.location().to_owned();
    // The 202 may be there before its job has had a turn.
    while server.line().await != "video 1: started, 2 s" {}
    server.interrupt().await;
    while server.line().await != "finishing jobs, for 30 s at most" {}

    let running = server.get(&format!("{job}/status")).await;
    assert_eq!((running.status.as_u16(), &running.json()["status"]), (200, &"running".into()));
    assert_eq!(server.post("/videos", "").await.status, 503, "no new promise");
    assert_eq!(server.post("/reports", CSV).await.status, 200);

    assert_eq!(server.line().await, "video 1: finished");
    let result = server.ended(&job).await;
    assert_eq!(
        (&result["status"], &result["progress"]["ratio"]),
        (&"succeeded".into(), &1.0.into())
    );
    let result = server.get(&format!("{job}/result")).await;
    assert_eq!((result.status.as_u16(), &result.json()["seconds"]), (200, &2.into()));
    assert_eq!(server.line().await, "1 finished, 0 interrupted");
    let status = soon("the end of the process", server.process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_twice_stops_at_once() {
    let mut server = Quickstart::start().await;
    server.post("/videos?seconds=600", "").await.location();
    server.interrupt().await;
    while server.line().await != "finishing jobs, for 30 s at most" {}
    server.interrupt().await;
    assert_eq!(server.line().await, "stopped at once");
    let status = soon("the end of the process", server.process.wait()).await.unwrap();
    assert_eq!(status.code(), Some(1));
}

/// The example, running; killed when this is dropped.
struct Quickstart {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    url: String,
    client: Client,
}

impl Quickstart {
    async fn start() -> Self {
        let mut process = Command::new(program("quickstart"))
            .env("ADDR", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = process.stdout.take().expect("piped");
        let lines = BufReader::new(stdout).lines();
        let mut this = Self { process, lines, url: String::new(), client: Client::http1() };
        let line = this.line().await;
        this.url = line.strip_prefix("listening on ").expect(&line).to_owned();
        this
    }

    /// The next line that it prints.
    async fn line(&mut self) -> String {
        soon("a line", self.lines.next_line()).await.unwrap().expect("its output has ended")
    }

    /// Ctrl-C.
    async fn interrupt(&self) {
        let kill = Command::new("kill")
            .args(["-INT", &self.process.id().expect("it runs").to_string()])
            .status()
            .await;
        assert!(kill.unwrap().success());
    }

    async fn send(&self, method: &str, path: &str, prefer: &str, body: &'static str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("prefer", prefer);
        soon(path, self.client.send(request, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: &'static str) -> Answer {
        self.send("POST", path, "", body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", "").await
    }

    /// The document of this job once it has ended, which it does in less than ten seconds.
    async fn ended(&self, job: &str) -> serde_json::Value {
        self.send("GET", &format!("{job}/status"), "wait=10", "").await.json()
    }
}
