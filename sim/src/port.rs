//! How clients reach nodes: requests and answers that the scheduler carries.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use http::Request;

/// The number of a request.
pub type CallId = u64;

/// An answer as a client sees it.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The node that answered, and its incarnation.
    pub node: (usize, u32),
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// What clients have sent since the scheduler looked last.
#[derive(Debug)]
pub enum Sent {
    /// A request to a node.
    Request(CallId, usize, Box<Request<String>>),
    /// The client has gone.
    Gone(CallId),
}

/// Where clients send requests. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Port(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: CallId,
    sent: Vec<Sent>,
    calls: BTreeMap<CallId, Call>,
}

#[derive(Debug, Default)]
struct Call {
    answer: Option<Option<Reply>>,
    waker: Option<Waker>,
}

/// A request whose client waits: dropped, the client has gone.
struct Waits<'a> {
    port: &'a Port,
    id: CallId,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut inner = self.port.lock();
        if inner.calls.remove(&self.id).is_some_and(|call| call.answer.is_none()) {
            inner.sent.push(Sent::Gone(self.id));
        }
    }
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to a node. Returns its answer; `None` if the connection is lost.
    pub async fn send(&self, node: usize, request: Request<String>) -> Option<Reply> {
        let waits = {
            let mut inner = self.lock();
            inner.next += 1;
            let id = inner.next;
            inner.calls.insert(id, Call::default());
            inner.sent.push(Sent::Request(id, node, Box::new(request)));
            Waits { port: self, id }
        };
        std::future::poll_fn(|cx| {
            let mut inner = self.lock();
            let Some(call) = inner.calls.get_mut(&waits.id) else { return Poll::Ready(None) };
            match &call.answer {
                Some(answer) => Poll::Ready(answer.clone()),
                None => {
                    call.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes what clients have sent.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.lock().sent)
    }

    /// Answers a request; `None` tells its client that the connection is lost.
    pub fn answer(&self, id: CallId, answer: Option<Reply>) {
        let mut inner = self.lock();
        let Some(call) = inner.calls.get_mut(&id).filter(|call| call.answer.is_none()) else {
            return;
        };
        call.answer = Some(answer);
        let waker = call.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
