//! The state of a download: published bytes, followers, and the next step of each follower.

use std::collections::HashMap;

use crate::cache::{Piece, Reader, WITHHELD};
use crate::download::DownloadError;
use crate::download::memory::Memory;
use crate::download::plan::MissingBytes;
use crate::download::position::{Members, Position};
use crate::oci::{ByteRange, RangeSet};

/// Ranges of the file of at least this many bytes are sent from the file instead of memory.
const WORTH_A_CALL: u64 = 64 * 1024;

/// The phase of a download.
#[derive(Debug, Clone, Default)]
pub(super) enum Phase {
    /// Waits for the upstream's response head.
    #[default]
    Opening,
    /// Bytes arrive.
    Streaming,
    /// Complete and verified. Only this phase ends a whole body cleanly.
    Verified,
    Failed(DownloadError),
    /// Ended without a result. No follower has received a byte.
    Superseded,
}

#[derive(Debug, Default)]
pub(super) struct ProgressState {
    pub(super) phase: Phase,
    /// Size of the blob, once it is announced or the blob is complete.
    pub(super) total: Option<u64>,
    /// Reads the staged file.
    pub(super) reader: Option<Reader>,
    /// Published bytes: in memory or in the file.
    pub(super) have: RangeSet,
    /// Bytes in the file.
    pub(super) written: RangeSet,
    pub(super) memory: Memory,
    /// Whether bytes are passed through: nothing further is written to the file.
    pub(super) passes: bool,
    /// In pass-through, bytes before this offset may be gone.
    pub(super) lost: u64,
    /// Positions of the streams, by stream.
    pub(super) marks: Vec<(u64, u64)>,
    /// Bytes that followers have received.
    pub(super) given: RangeSet,
    pub(super) followers: HashMap<u64, Position>,
    /// Next number for followers and their waits.
    pub(super) next: u64,
    /// Blobs of at most this many bytes are verified before the first byte is sent.
    pub(super) verified_first: u64,
    pub(super) members: Members,
    /// The task has ended.
    pub(super) concluded: bool,
    /// Bytes of the current source that equal the discarded ones.
    pub(super) agreed: RangeSet,
}

/// The range that a follower reads next.
#[derive(Debug, Clone, Copy)]
pub(in crate::download) struct ReadPosition {
    pub(in crate::download) offset: u64,
    /// None: up to the end of the blob.
    pub(in crate::download) end: Option<u64>,
    /// Whether all bytes before the offset have been read: the end of such a body is withheld until
    /// the digest is verified.
    pub(in crate::download) whole: bool,
    /// Whether the client is best served from the file (sendfile).
    pub(in crate::download) from_file: bool,
}

/// The next step of a follower.
#[derive(Debug)]
pub(in crate::download) enum Step {
    /// Bytes at the requested offset, none beyond the requested end.
    Give(Piece),
    /// The blob ends at the offset.
    End,
    /// The bytes haven't arrived.
    Wait,
}

/// The end of a piece that begins at `start`.
pub(in crate::download) fn end_of(piece: &Piece, start: u64) -> u64 {
    match piece {
        Piece::Bytes(bytes) => start + bytes.len() as u64,
        Piece::File { end, .. } => *end,
    }
}

impl ProgressState {
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether a follower may receive bytes or the size now.
    pub(super) fn admits(&self, follower: u64) -> Result<bool, DownloadError> {
        let Some(position) = self.followers.get(&follower) else {
            return Err(DownloadError::Lost);
        };
        if let Some(error) = &position.error {
            return Err(error.clone());
        }
        if let Phase::Failed(error) = &self.phase {
            return Err(self.failure(position.member, error));
        }
        Ok(self.members.admits(position.member)? && !position.compares)
    }

    /// The error for a member's followers: its own source's, if that was tried.
    pub(super) fn failure(&self, member: u64, error: &DownloadError) -> DownloadError {
        let own = self.members.failures.get(&member);
        match error {
            // No error of a source.
            DownloadError::Stopping => error.clone(),
            _ => own.unwrap_or(error).clone(),
        }
    }

    /// Records the bytes that a follower receives.
    pub(super) fn gives(&mut self, follower: u64, start: u64, piece: &Piece) {
        let end = end_of(piece, start);
        if let Some(position) = self.followers.get_mut(&follower) {
            position.given.insert(start, end);
        }
        self.given.insert(start, end);
    }

    /// The bytes that a follower waits for (to read or to compare), with the number of its wait.
    pub(super) fn want(&self, position: &Position) -> Option<(u64, MissingBytes)> {
        if !position.compares {
            return Some((position.waits?, self.lacks(position.at, position.end)?));
        }
        let missing = |range: &ByteRange| {
            let at = self.have.end_of(range.start);
            let end = Some(range.end);
            (at < range.end).then_some(MissingBytes { at, end })
        };
        Some((0, position.given.ranges().iter().find_map(missing)?))
    }

    pub(super) fn mark(&mut self, stream: u64, at: Option<u64>) {
        self.marks.retain(|(of, _)| *of != stream);
        self.marks.extend(at.map(|at| (stream, at)));
    }

    /// Records the position of a follower. Returns whether the task must be told.
    pub(super) fn moves(&mut self, follower: u64, reading: ReadPosition) -> bool {
        if let Some(position) = self.followers.get_mut(&follower) {
            position.at = reading.offset;
            position.end = reading.end;
            position.waits = None;
        }
        self.forget_old();
        self.passes
    }

    /// The bytes that a follower lacks that waits at `at`. That byte may have arrived: the end of a
    /// body is withheld until the blob is complete.
    fn lacks(&self, at: u64, end: Option<u64>) -> Option<MissingBytes> {
        let next = self.have.end_of(at);
        let limit = end.into_iter().chain(self.total).min();
        let lacks = next == at || limit.is_none_or(|limit| next < limit);
        lacks.then_some(MissingBytes { at: next, end })
    }

    /// Records that a follower waits. Returns whether no stream brings its bytes next.
    pub(super) fn waits(
        &mut self,
        follower: u64,
        ReadPosition { offset, end, .. }: ReadPosition,
    ) -> bool {
        let turn = self.number();
        if let Some(position) = self.followers.get_mut(&follower) {
            position.waits = Some(turn);
        }
        self.lacks(offset, end)
            .is_some_and(|want| !self.marks.iter().any(|(_, mark)| *mark == want.at))
    }

    pub(super) fn step(&self, reading: ReadPosition) -> Result<Step, DownloadError> {
        let ReadPosition {
            offset,
            end,
            whole,
            from_file,
        } = reading;
        let verified = match &self.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Superseded => return Err(DownloadError::Lost),
            Phase::Verified => true,
            Phase::Opening | Phase::Streaming => false,
        };
        // A body that is read from byte 0 must not end cleanly before the digest is verified.
        if (verified || !whole) && self.total.is_some_and(|total| offset >= total) {
            return Ok(Step::End);
        }
        let known = self.total.unwrap_or_else(|| self.have.len());
        if !verified && known <= self.verified_first {
            return Ok(Step::Wait);
        }
        let mut limit = end.unwrap_or(u64::MAX);
        if let Some(total) = self.total
            && whole
            && !verified
            && limit >= total
        {
            limit = total.saturating_sub(WITHHELD);
        }
        if offset >= limit || !self.have.contains(offset, offset + 1) {
            return Ok(Step::Wait);
        }
        let in_file = limit
            .min(self.written.end_of(offset))
            .saturating_sub(offset);
        let memory = self.memory.get(offset);
        match (memory, self.reader.clone()) {
            (Some(mut chunk), _) if !from_file || in_file < WORTH_A_CALL => {
                chunk.truncate(usize::try_from(limit - offset).unwrap_or(usize::MAX));
                Ok(Step::Give(Piece::Bytes(chunk)))
            }
            (_, Some(reader)) if in_file > 0 => Ok(Step::Give(Piece::File {
                reader,
                start: offset,
                end: offset + in_file,
            })),
            // Neither in memory nor in the file: passed through before this follower joined.
            _ => Err(DownloadError::Lost),
        }
    }

    /// Drops old chunks from memory: those that are in the file, except the most recent ones; in
    /// pass-through those that every follower has read.
    pub(super) fn forget_old(&mut self) {
        if !self.passes {
            self.memory.trim(&self.written);
            return;
        }
        let positions = self.followers.values().map(|follower| follower.at);
        let floor = positions.min().unwrap_or(u64::MAX);
        if let Some(end) = self.memory.forget_below(floor) {
            self.lost = self.lost.max(end);
        }
    }
}
