//! The bytes that the store in memory may hold, counted by whoever takes some and gives some back.

use super::atomic::{AtomicUsize, Ordering};

/// Bytes in use, and their limit. Nothing else is read or written on the strength of the count, so
/// its order to other memory does not matter; the limit is held by each step being one.
/// `tests/loom.rs` tries all orders of those.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes so many bytes, if there is room.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Something that took `before` takes `after` from now on, whether there is room or not.
    pub(super) fn recount(&self, before: usize, after: usize) {
        // One step, which wraps around for a difference below zero: nobody sees too many in between.
        self.used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
