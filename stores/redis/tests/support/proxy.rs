//! A connection that a test can cut: a proxy in front of a server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Whether connections are cut, and how often they were: one that is mended at once was cut all the same.
#[derive(Clone, Copy, Default)]
struct Cut {
    is_cut: bool,
    times: usize,
}

/// Passes on what is sent to a server, unless it is cut.
pub struct Proxy {
    address: SocketAddr,
    server: Arc<AtomicU16>,
    is_cut: watch::Sender<Cut>,
    loses_replies: watch::Sender<bool>,
    /// How long each reply is under way, in milliseconds.
    delay: Arc<AtomicU64>,
    replied: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of the server on this port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (is_cut, cut)) =
            (listener.local_addr().unwrap(), watch::channel(Cut::default()));
        let (loses_replies, loses) = watch::channel(false);
        let replied = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&replied);
        let server = Arc::new(AtomicU16::new(port));
        let (to, delay) = (Arc::clone(&server), Arc::new(AtomicU64::new(0)));
        let delayed = Arc::clone(&delay);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut cut, port) = (cut.clone(), to.load(Ordering::Relaxed));
                let times = cut.borrow().times;
                let (loses, delay, count) =
                    (loses.clone(), Arc::clone(&delayed), Arc::clone(&count));
                tokio::spawn(async move {
                    // An error is the end of a connection, too.
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let (mut requests, to_client) = client.into_split();
                    let (replies, mut to_server) = server.into_split();
                    tokio::select! {
                        _ = copy(&mut requests, &mut to_server) => {}
                        () = pass_on(replies, to_client, loses, delay, count) => {}
                        _ = cut.wait_for(|cut| cut.is_cut || cut.times > times) => {}
                    }
                });
            }
        });
        Self { address, server, is_cut, loses_replies, delay, replied }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// From now on, every connection is closed as soon as it is there.
    pub fn cut(&self) {
        self.is_cut.send_modify(|cut| *cut = Cut { is_cut: true, times: cut.times + 1 });
    }

    /// The address is from now on that of another server.
    pub fn lead_to(&self, port: u16) {
        self.server.store(port, Ordering::Relaxed);
        self.cut();
        self.mend();
    }

    /// From now on, what the server answers is dropped.
    pub fn lose_replies(&self) {
        self.loses_replies.send_replace(true);
    }

    /// From now on, what the server says takes so long to arrive.
    pub fn delay(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// The bytes that the server has answered.
    pub fn replied(&self) -> usize {
        self.replied.load(Ordering::Relaxed)
    }

    pub fn mend(&self) {
        self.loses_replies.send_replace(false);
        self.is_cut.send_modify(|cut| cut.is_cut = false);
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    loses: watch::Receiver<bool>,
    delay: Arc<AtomicU64>,
    replied: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        replied.fetch_add(read, Ordering::Relaxed);
        let delay = delay.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if !*loses.borrow() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
