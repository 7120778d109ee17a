//! What the operating system decides: the wall-clock time and random bytes. No other file asks for them.

use std::time::SystemTime;

#[cfg(feature = "simulation")]
pub mod simulation;

/// Returns the wall-clock time.
#[inline]
pub(crate) fn now() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(now) = simulation::now() {
        return now;
    }
    SystemTime::now()
}

/// Fills `bytes` with random bytes that nobody can predict.
///
/// # Errors
/// If the operating system has none to give.
#[inline]
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(feature = "simulation")]
    if simulation::fill(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}
