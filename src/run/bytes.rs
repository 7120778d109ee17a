//! The bytes of request bodies that are buffered, all together.

use super::atomic::{AtomicUsize, Ordering};

/// The bytes of all request bodies that are buffered. A count and no more: nothing else is read or
/// written on the strength of it, so its order to other memory does not matter.
#[derive(Debug)]
pub(crate) struct BodyBytes {
    used: AtomicUsize,
    max: usize,
}

impl BodyBytes {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Whether there is room for more at all.
    pub(crate) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }

    /// Counts bytes that have come. The last frame may go over the limit: it is here already.
    pub(crate) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
