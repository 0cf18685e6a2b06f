//! The delete queue: blobs of which a link or the file may have to be removed. What is due is decided
//! when a blob's turn comes, so queueing one too often costs a look and no more.

use std::collections::VecDeque;

use super::blob::Blob;
use super::slab::Id;

/// Where a blob stands in the delete queue. Only the queue changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    #[default]
    Idle,
    /// In the queue, once.
    Queued,
    /// Its turn came while it was held: it is queued again when it is released.
    Held,
    /// Its links or its file are being removed. It can be neither held nor linked.
    Deleting {
        /// Something else became due meanwhile: it is queued again.
        again: bool,
    },
}

impl Turn {
    pub(super) fn is_deleting(self) -> bool {
        matches!(self, Self::Deleting { .. })
    }
}

#[derive(Debug, Default)]
pub(super) struct DeleteQueue {
    queue: VecDeque<Id<Blob>>,
    /// Files whose removal failed, with the second at which it is tried again. A blob may have been
    /// forgotten by then.
    retries: VecDeque<(u32, Id<Blob>)>,
    deleting: usize,
}

impl DeleteQueue {
    /// Queues a blob. True when there is work that wasn't there before.
    pub(super) fn push(&mut self, id: Id<Blob>, turn: &mut Turn) -> bool {
        match turn {
            Turn::Queued => return false,
            Turn::Deleting { again } => {
                *again = true;
                return false;
            }
            Turn::Idle | Turn::Held => *turn = Turn::Queued,
        }
        self.queue.push_back(id);
        true
    }

    /// The next blob, whose turn is then to be set with [`start`](Self::start) or
    /// [`pass`](Self::pass).
    pub(super) fn pop(&mut self) -> Option<Id<Blob>> {
        self.queue.pop_front()
    }

    /// The blob that was popped is being deleted.
    pub(super) fn start(&mut self, turn: &mut Turn) {
        *turn = Turn::Deleting { again: false };
        self.deleting += 1;
    }

    /// Nothing of the blob that was popped is deleted now.
    pub(super) fn pass(turn: &mut Turn, held: bool) {
        *turn = if held { Turn::Held } else { Turn::Idle };
    }

    /// The deletion has ended. True when there is new work.
    pub(super) fn finish(&mut self, id: Id<Blob>, turn: &mut Turn) -> bool {
        self.deleting = self.deleting.saturating_sub(1);
        let again = *turn == Turn::Deleting { again: true };
        *turn = Turn::Idle;
        again && self.push(id, turn)
    }

    pub(super) fn retry_at(&mut self, second: u32, id: Id<Blob>) {
        self.retries.push_back((second, id));
    }

    pub(super) fn next_retry(&self) -> Option<u32> {
        self.retries.front().map(|(at, _)| *at)
    }

    pub(super) fn pop_retry(&mut self, now: u32) -> Option<Id<Blob>> {
        let due = self.next_retry().is_some_and(|at| at <= now);
        let retry = if due { self.retries.pop_front() } else { None };
        retry.map(|(_, id)| id)
    }

    /// Whether nothing is queued and nothing is being deleted.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.deleting == 0
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> impl Iterator<Item = Id<Blob>> {
        self.queue.iter().copied()
    }

    #[cfg(test)]
    pub(super) fn deleting(&self) -> usize {
        self.deleting
    }
}
