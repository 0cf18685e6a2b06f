//! When the checkpoint of a running download is written.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Stage;
use crate::error_chain::on_one_line;

/// Bytes that have to be written before another checkpoint is worth it.
const MIN_BYTES: u64 = 256 * 1024;
/// Bytes after which a checkpoint is written before its time.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Time between two checkpoints, and before the first. A process that is killed loses what was written
/// since the last one.
const INTERVAL: Duration = Duration::from_millis(100);
/// The interval is at least this many times as long as the last checkpoint took, for slow disks: on
/// others one takes a tenth of a millisecond.
const SHARE: u32 = 10;

/// The checkpoints of one download.
pub(super) struct Checkpoints {
    next: Instant,
    /// Earliest time of the next checkpoint, whatever has been written.
    not_before: Instant,
    /// Bytes in the file at the last checkpoint.
    bytes: u64,
}

impl Checkpoints {
    /// `bytes`: in the file, and claimed by a checkpoint.
    pub(super) fn new(bytes: u64) -> Self {
        let now = Instant::now();
        Self {
            next: now + INTERVAL,
            not_before: now,
            bytes,
        }
    }

    /// Writes a checkpoint, if one is due. `bytes`: in the file. Blocks.
    pub(super) fn write_if_due(&mut self, stage: &mut dyn Stage, bytes: u64, total: u64) {
        let started = Instant::now();
        if !self.is_due(bytes, started) {
            return;
        }
        write(stage, total, false);
        let ended = Instant::now();
        self.bytes = bytes;
        self.not_before = ended + (ended - started) * SHARE;
        self.next = self.not_before.max(ended + INTERVAL);
    }

    fn is_due(&self, bytes: u64, now: Instant) -> bool {
        let new = bytes.saturating_sub(self.bytes);
        let due = new >= MIN_BYTES && now >= self.next;
        due || new >= MAX_BYTES && now >= self.not_before
    }
}

/// Writes the checkpoint of a blob of `total` bytes. False when it fails. Blocks.
pub(super) fn write(stage: &mut dyn Stage, total: u64, sync: bool) -> bool {
    let written = stage.checkpoint(total, sync).inspect_err(|error| {
        tracing::warn!(error = %on_one_line(error), "can't write the checkpoint of a download");
    });
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_and_bytes_make_a_checkpoint_due() {
        let checkpoints = Checkpoints::new(MIN_BYTES);
        let (now, later) = (Instant::now(), Instant::now() + INTERVAL);
        assert!(!checkpoints.is_due(2 * MIN_BYTES, now));
        assert!(checkpoints.is_due(2 * MIN_BYTES, later));
        assert!(!checkpoints.is_due(2 * MIN_BYTES - 1, later));
        assert!(checkpoints.is_due(MIN_BYTES + MAX_BYTES, now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_checkpoint_postpones_the_next() {
        let now = Instant::now();
        let checkpoints = Checkpoints {
            not_before: now + 2 * INTERVAL,
            next: now + 2 * INTERVAL,
            ..Checkpoints::new(0)
        };
        assert!(!checkpoints.is_due(MAX_BYTES, now + INTERVAL));
        assert!(checkpoints.is_due(MIN_BYTES, now + 2 * INTERVAL));
    }
}
