//! A real `redis-server` of a test's own, and a connection that reads whole replies.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long a server may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server behind a Unix socket, ended with the test.
pub struct Real {
    child: Child,
    dir: PathBuf,
}

impl Real {
    /// Starts one that keeps nothing on disk, and whose hashes keep the order of their fields: that is
    /// so while they are small.
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-offload-sim-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let child = Command::new(program)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(&dir)
            .arg("--unixsocket")
            .arg(dir.join("socket"))
            .args(["--hash-max-listpack-entries", "100000"])
            .args(["--hash-max-listpack-value", "1000000"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server: install Debian's package of this name");
        Self { child, dir }
    }

    pub fn connect(&self) -> Connection {
        let begun = Instant::now();
        loop {
            match UnixStream::connect(self.dir.join("socket")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Connection { stream, read: Vec::new() };
                }
                Err(error) if begun.elapsed() > PATIENCE => panic!("redis-server: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A connection to a real server.
pub struct Connection {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Connection {
    pub fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
    }

    /// Reads one reply, or one message.
    pub fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Some(len) = length(&self.read) {
                return self.read.drain(..len).collect();
            }
            self.read_more();
        }
    }

    /// Reads so many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.read.len() < len {
            self.read_more();
        }
        self.read.drain(..len).collect()
    }

    fn read_more(&mut self) {
        let mut buffer = [0; 1 << 16];
        let len = self.stream.read(&mut buffer).expect("redis-server answers");
        assert!(len > 0, "redis-server closed the connection");
        self.read.extend_from_slice(&buffer[..len]);
    }
}

/// The bytes of the first reply, if it is complete.
fn length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = end + 2;
    let number = || std::str::from_utf8(&bytes[1..end]).unwrap().parse::<i64>().unwrap();
    let of = |count: i64| (0..count).try_fold(line, |at, _| Some(at + length(bytes.get(at..)?)?));
    match bytes[0] {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Some(line),
        b'$' | b'=' => match number() {
            -1 => Some(line),
            len => {
                let whole = line + usize::try_from(len).unwrap() + 2;
                (bytes.len() >= whole).then_some(whole)
            }
        },
        b'*' | b'~' | b'>' => of(number()),
        b'%' => of(number() * 2),
        other => panic!("no reply begins with {:?}", char::from(other)),
    }
}
