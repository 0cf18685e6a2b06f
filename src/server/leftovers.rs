//! Bodies that were refused: discarded while the refusal is sent.
//!
//! A client that sends its body without waiting reads the response later. If the connection were closed
//! meanwhile, the client's system would discard the response with the bytes that nobody read (RFC 9112,
//! section 9.6).

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::request::RequestBody;

/// How long a refused body is read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read of a refused body: a client that has sent so many doesn't look at the response.
const MAX: u64 = 64 << 20;

/// Discards refused bodies.
#[derive(Debug, Clone, Default)]
pub(super) struct Leftovers {
    /// Owns the reading: that of connections, which it is a part of.
    tasks: TaskTracker,
}

impl Leftovers {
    pub(super) const fn new(tasks: TaskTracker) -> Self {
        Self { tasks }
    }

    /// Reads a body to its end, for a bounded time. Its connection is closed after that.
    pub(super) fn discard(&self, mut body: RequestBody) {
        let reading = async move {
            let mut read = 0;
            while let Ok(Some(bytes)) = body.next().await {
                read += bytes.len() as u64;
                if read > MAX {
                    return;
                }
            }
        };
        self.tasks.spawn(async move {
            // Whether it came to its end or not.
            drop(timeout(PATIENCE, reading).await);
        });
    }
}
