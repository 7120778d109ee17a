//! Panics of other people's code, caught where a task serves more than one request.
//!
//! Closures of the app (`owner`, `seal`, `restore`), its services and their bodies, and stores of
//! others may panic anywhere. In the request's own future that is the request's own affair: the panic
//! unwinds as it would without the layer, or ends that one job. On a task that others depend on it is
//! caught by what is here, and becomes an error of the one call.
//!
//! Knows nothing of the rest of the crate.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// A panic that was caught.
#[derive(Debug)]
pub(crate) struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}

impl Panicked {
    /// The panic's message.
    pub(crate) fn message(&self) -> &str {
        &self.0
    }

    fn of(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let panicked = Self(text.unwrap_or("(no message)").to_owned());
        // The payload is the app's own value, and its drop may panic as well.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            mem::forget(another);
        }
        panicked
    }
}

/// Runs `code`, and catches its panic. What it was about is not used any more after one.
#[inline]
pub(crate) fn caught<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(Panicked::of)
}

/// Polls a future that is not polled again once this is ready, and catches its panic.
#[inline]
pub(crate) fn poll_caught<F: Future + ?Sized>(
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Panicked>> {
    match caught(|| future.poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(panicked) => Poll::Ready(Err(panicked)),
    }
}

/// Runs `future` to its end, and catches its panic, also that of its drop.
pub(crate) async fn until_caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = Some(Box::pin(future));
    poll_fn(|cx| {
        let Some(polled) = &mut future else { return Poll::Pending };
        let polled = poll_caught(polled.as_mut(), cx);
        if polled.is_pending() {
            return Poll::Pending;
        }
        match caught(|| drop(future.take())) {
            Ok(()) => polled,
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    })
    .await
}

/// Logs something. The subscriber, and the `Display` of an error in it, are other people's code:
/// without them work goes on.
pub(crate) fn log(event: impl FnOnce()) {
    let _ = caught(event);
}

/// Wakes a task. An executor whose waker panics must not keep others from being woken.
pub(crate) fn wake(waker: Waker) {
    let _ = caught(|| waker.wake());
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        panic::panic_any,
        sync::Arc,
        task::Wake,
    };

    use super::*;

    struct PanicsInDrop;

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }

    #[test]
    fn a_panic_is_told_by_its_message() {
        assert_eq!(caught(|| 7).unwrap(), 7);
        let text = |panicked: Result<(), Panicked>| panicked.unwrap_err().to_string();
        assert_eq!(text(caught(|| panic!("literal"))), "panicked: literal");
        assert_eq!(text(caught(|| panic!("{}", 1 + 1))), "panicked: 2");
        assert_eq!(text(caught(|| panic_any(7))), "panicked: (no message)");
    }

    #[test]
    fn a_payload_that_panics_in_its_drop_is_caught_too() {
        let panicked = caught(|| panic_any(PanicsInDrop)).unwrap_err();
        assert_eq!(panicked.message(), "(no message)");
    }

    #[test]
    fn a_panic_is_caught_while_another_one_unwinds() {
        struct Catches;
        impl Drop for Catches {
            fn drop(&mut self) {
                assert!(caught(|| panic!("within")).is_err());
            }
        }
        let panicked = caught(|| {
            let _catches = Catches;
            panic!("without");
        });
        assert_eq!(panicked.unwrap_err().message(), "without");
    }

    #[tokio::test]
    async fn a_future_is_caught_in_its_poll_and_its_drop() {
        assert_eq!(until_caught(ready(7)).await.unwrap(), 7);
        let polled = until_caught(async { panic!("in poll") }).await;
        assert_eq!(polled.unwrap_err().message(), "in poll");
        let held = PanicsInDrop;
        let dropped = until_caught(poll_fn(move |_| {
            let _held = &held;
            Poll::Ready(())
        }));
        assert_eq!(dropped.await.unwrap_err().message(), "in drop");
        let waits = until_caught(pending::<()>());
        assert!(tokio_test::task::spawn(waits).poll().is_pending());
    }

    #[test]
    fn a_waker_that_panics_harms_nobody() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("no executor");
            }
        }
        wake(Waker::from(Arc::new(Panics)));
    }
}
