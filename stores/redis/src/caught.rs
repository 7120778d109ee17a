//! Events for `tracing`. The subscriber is the app's, and so is the `Display` of what an error comes from:
//! should they panic, the task that logs goes on.

use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Logs something.
pub(crate) fn log(event: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
        dropped(payload);
    }
}

/// Runs this to its end, and begins anew after a panic.
pub(crate) async fn repeated<F>(what: &str, task: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(stopped) = tokio::spawn(task()).await {
        // Or its runtime is shutting down.
        let Ok(panic) = stopped.try_into_panic() else { return };
        dropped(panic);
        log(|| tracing::error!("the task for {what} has panicked, and begins anew"));
    }
}

/// Drops what a panic was thrown with, which may be of any type: its drop may panic as well.
fn dropped(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::panic_any,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::*;

    struct PanicsInDrop;

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }

    #[test]
    fn an_event_that_panics_is_passed_over() {
        log(|| panic!("in a subscriber"));
        log(|| panic_any(PanicsInDrop));
    }

    #[tokio::test]
    async fn a_task_begins_anew_after_each_panic() {
        let begun = Arc::new(AtomicU32::new(0));
        repeated("a test", || {
            let before = begun.fetch_add(1, Ordering::Relaxed);
            async move {
                match before {
                    0 => panic!("in a task"),
                    1 => panic_any(PanicsInDrop),
                    _ => {}
                }
            }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
