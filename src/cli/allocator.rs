//! How the C library's allocator keeps freed memory.
//!
//! By default glibc has eight arenas for each core, and takes large blocks from them once some of these were
//! freed. Blocks that live differently long then share pages, and a process that needs 12 to 25 MiB
//! grows to 60 within millions of requests. With these settings it stays at half of that, and what free
//! blocks between used ones hold is given back regularly.

use std::convert::Infallible;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

/// How often free memory is given back. Between two times it grows by a few MiB, on a busy server.
const TRIM_INTERVAL: Duration = Duration::from_mins(1);

/// Gives free memory back to the system, for as long as the server runs.
pub(super) async fn trim_regularly() -> Infallible {
    loop {
        sleep(TRIM_INTERVAL).await;
        let started = Instant::now();
        let trimmed = spawn_blocking(trim).await;
        tracing::debug!(took = ?started.elapsed(), ok = trimmed.is_ok(), "free memory was given back");
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn configure() {
    /// Bytes of the smallest block that is mapped by itself and unmapped when it is freed.
    const MAPPED_FROM: libc::c_int = 128 << 10;
    /// Bytes at the end of an arena that are kept for the next block.
    const KEPT: libc::c_int = 128 << 10;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let arenas = libc::c_int::try_from(threads).unwrap_or(libc::c_int::MAX);
    for (setting, value) in [
        (libc::M_ARENA_MAX, arenas),
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
        (libc::M_TRIM_THRESHOLD, KEPT),
    ] {
        // SAFETY: mallopt(3) takes two numbers by value, may be called at any time, and refuses a
        // value that it doesn't accept. A refused setting costs memory and nothing else.
        #[expect(unsafe_code, reason = "the C library has no other interface for it")]
        unsafe {
            libc::mallopt(setting, value);
        }
    }
}

/// Each arena is locked for a part of a millisecond; threads take small blocks from caches of their own
/// meanwhile.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: malloc_trim(3) takes a number by value, locks what it changes, and may be called at any time
    // from any thread. It only gives back pages that no block uses.
    #[expect(unsafe_code, reason = "the C library has no other interface for it")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) const fn configure() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn trim() {}
