//! Memory that is free goes back to the system. The allocator (mimalloc, see `main.rs`) keeps pages that became free for a
//! second, in case they are wanted again, and gives them up when something large is freed after that. A process that has
//! read its configuration and idles frees nothing, so it would keep for ever what reading took. Knows nothing of what
//! the memory was for.

use std::hint::black_box;
use std::time::Duration;

/// As long as the allocator keeps pages.
const EVERY: Duration = Duration::from_secs(1);
/// Larger than what the allocator cuts out of shared pages (512 KiB). Never touched, so it costs no memory.
const LARGE: usize = 1 << 20;

/// Has the allocator look again and again, for ever.
pub async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        drop(black_box(Vec::<u8>::with_capacity(LARGE)));
    }
}
