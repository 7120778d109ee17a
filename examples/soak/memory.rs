//! How much memory is in use: an allocator that counts, and a reading once nothing moves any more.

use std::time::Duration;

use peak_alloc::PeakAlloc;
use tokio::time::sleep;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The bytes in use, once they have stayed the same for a second, or after ten seconds.
pub async fn settled() -> usize {
    let (mut bytes, mut same) = (ALLOCATOR.current_usage(), 0);
    for _ in 0..100 {
        sleep(Duration::from_millis(100)).await;
        let now = ALLOCATOR.current_usage();
        same = if now == bytes { same + 1 } else { 0 };
        bytes = now;
        if same == 10 {
            break;
        }
    }
    bytes
}

/// The most that was in use since the last call.
pub fn peak() -> usize {
    let peak = ALLOCATOR.peak_usage();
    ALLOCATOR.reset_peak_usage();
    peak
}
