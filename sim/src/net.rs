//! The network between nodes and servers: byte streams whose bytes the scheduler carries.
//!
//! A node writes into its end of a link and reads from it. What it wrote is taken from there after each
//! of its steps, and what arrives is put there between two steps, so nothing here depends on the order in
//! which tasks are polled.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of a link. Numbers are given in order.
pub type LinkId = u64;

/// All links. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Net(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: LinkId,
    ends: BTreeMap<LinkId, End>,
    sent: Vec<Sent>,
}

/// The node's end of a link.
#[derive(Debug)]
struct End {
    state: State,
    received: VecDeque<u8>,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialing,
    Open,
    Closed,
}

/// What a node has sent since the scheduler looked last.
#[derive(Debug)]
pub enum Sent {
    /// It wants a link to this server.
    Dial {
        /// The link's number, if it comes to be.
        link: LinkId,
        /// Which node.
        node: usize,
        /// Which server.
        server: usize,
    },
    /// These bytes.
    Bytes(LinkId, Vec<u8>),
    /// It has closed its end.
    Close(LinkId),
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials a server, and waits until the scheduler connects or refuses.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn dial(&self, node: usize, server: usize) -> io::Result<NodeStream> {
        let stream = {
            let mut inner = self.lock();
            inner.next += 1;
            let link = inner.next;
            let end = End { state: State::Dialing, received: VecDeque::new(), waker: None };
            inner.ends.insert(link, end);
            inner.sent.push(Sent::Dial { link, node, server });
            NodeStream { net: self.clone(), link }
        };
        std::future::poll_fn(|cx| {
            let mut inner = self.lock();
            match inner.ends.get_mut(&stream.link) {
                Some(end) if end.state == State::Dialing => {
                    end.waker = Some(cx.waker().clone());
                    Poll::<io::Result<()>>::Pending
                }
                Some(end) if end.state == State::Open => Poll::Ready(Ok(())),
                _ => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            }
        })
        .await?;
        Ok(stream)
    }

    /// Takes what nodes have sent.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.lock().sent)
    }

    /// Opens a link that was dialed. Returns whether its node still wants it.
    pub fn open(&self, link: LinkId) -> bool {
        self.change(link, |end| end.state = State::Open)
    }

    /// Closes the node's end: it reads an end of file, and its writes fail.
    pub fn close(&self, link: LinkId) {
        self.change(link, |end| end.state = State::Closed);
    }

    /// Gives bytes to the node.
    pub fn deliver(&self, link: LinkId, bytes: &[u8]) {
        self.change(link, |end| {
            if end.state == State::Open {
                end.received.extend(bytes);
            }
        });
    }

    fn change(&self, link: LinkId, change: impl FnOnce(&mut End)) -> bool {
        let mut inner = self.lock();
        let Some(end) = inner.ends.get_mut(&link) else { return false };
        change(end);
        let waker = end.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// A node's end of a link.
#[derive(Debug)]
pub struct NodeStream {
    net: Net,
    link: LinkId,
}

impl Drop for NodeStream {
    fn drop(&mut self) {
        let mut inner = self.net.lock();
        inner.ends.remove(&self.link);
        inner.sent.push(Sent::Close(self.link));
    }
}

impl AsyncRead for NodeStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.net.lock();
        let Some(end) = inner.ends.get_mut(&self.link) else { return Poll::Ready(Ok(())) };
        if end.received.is_empty() {
            if end.state == State::Closed {
                return Poll::Ready(Ok(()));
            }
            end.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = end.received.len().min(buf.remaining());
        let bytes: Vec<u8> = end.received.drain(..count).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.net.lock();
        if inner.ends.get(&self.link).is_none_or(|end| end.state != State::Open) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // One message for all that a node writes to a link in one step.
        match inner.sent.last_mut() {
            Some(Sent::Bytes(link, sent)) if *link == self.link => sent.extend_from_slice(bytes),
            _ => inner.sent.push(Sent::Bytes(self.link, bytes.to_vec())),
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
