//! A connection that a test can cut: a proxy in front of a server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes on what is sent to a server, unless it is cut.
pub struct Proxy {
    address: SocketAddr,
    server: Arc<AtomicU16>,
    is_cut: watch::Sender<bool>,
}

impl Proxy {
    /// In front of the server on this port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (is_cut, cut)) = (listener.local_addr().unwrap(), watch::channel(false));
        let server = Arc::new(AtomicU16::new(port));
        let to = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut cut, port) = (cut.clone(), to.load(Ordering::Relaxed));
                tokio::spawn(async move {
                    // An error is the end of a connection, too.
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self { address, server, is_cut }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// From now on, every connection is closed as soon as it is there.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// The address is from now on that of another server.
    pub fn lead_to(&self, port: u16) {
        self.server.store(port, Ordering::Relaxed);
        self.cut();
        self.mend();
    }

    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}
