//! For this project's simulation: replaces the operating system's wall clock and random bytes on one thread.
//!
//! Not part of the public API: it may change in any release.

use std::{cell::RefCell, rc::Rc, time::SystemTime};

/// What answers in place of the operating system.
///
/// It is called on the thread that has [entered](enter) it, from wherever the crate needs the time or
/// random bytes.
pub trait Source {
    /// Returns the wall-clock time.
    fn now(&self) -> SystemTime;

    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]);
}

thread_local! {
    static SOURCE: RefCell<Option<Rc<dyn Source>>> = const { RefCell::new(None) };
}

/// Asks `source` in place of the operating system on this thread, until the guard is dropped.
///
/// Guards may be nested, and are dropped in the reverse order. Other threads, such as those of
/// `spawn_blocking`, still ask the operating system.
#[must_use = "the operating system answers again when this is dropped"]
pub fn enter(source: Rc<dyn Source>) -> Entered {
    Entered { before: SOURCE.replace(Some(source)) }
}

/// A guard: when it is dropped, whatever answered before [`enter`] answers again.
pub struct Entered {
    before: Option<Rc<dyn Source>>,
}

impl std::fmt::Debug for Entered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        // Outside of the borrow: the source may be dropped here, and is not this crate's code.
        drop(SOURCE.try_with(|source| source.replace(before)));
    }
}

/// The source of this thread; none while the thread's variables are being destroyed.
fn source() -> Option<Rc<dyn Source>> {
    SOURCE.try_with(|source| source.borrow().clone()).ok().flatten()
}

pub(super) fn now() -> Option<SystemTime> {
    Some(source()?.now())
}

pub(super) fn fill(bytes: &mut [u8]) -> bool {
    let Some(source) = source() else { return false };
    source.fill(bytes);
    true
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{job::JobId, system};

    struct Fixed(u8);

    impl Source for Fixed {
        fn now(&self) -> SystemTime {
            UNIX_EPOCH + Duration::from_secs(self.0.into())
        }

        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn an_entered_source_answers_on_its_thread_until_its_guard_is_dropped() {
        let is_real = || system::now() > UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert!(is_real());
        let outer = enter(Rc::new(Fixed(1)));
        {
            let _inner = enter(Rc::new(Fixed(2)));
            assert_eq!(system::now(), UNIX_EPOCH + Duration::from_secs(2));
            assert_eq!(JobId::random().unwrap().to_string(), "02".repeat(16));
            assert!(std::thread::spawn(is_real).join().unwrap());
        }
        assert_eq!(system::now(), UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!(JobId::random().unwrap().to_string(), "01".repeat(16));
        drop(outer);
        assert!(is_real());
        assert_ne!(JobId::random().unwrap(), JobId::random().unwrap());
    }
}
