//! What is there of a download, where its followers are, and what each of them does next.

use std::collections::HashMap;

use crate::download::DownloadError;
use crate::download::memory::Memory;
use crate::download::plan::MissingBytes;
use crate::download::position::{Members, Position};
use crate::oci::{ByteRange, RangeSet};
use crate::retention::WITHHELD;
use crate::storage::{Piece, Reader};

/// Bytes in the file that are better sent from there, at the cost of a system call, than from memory.
const WORTH_A_CALL: u64 = 64 * 1024;

/// Where a download stands.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Waiting for the upstream's head.
    Opening,
    /// Bytes are coming.
    Streaming,
    /// All bytes are there and have the digest. The only phase that ends a whole body well.
    Verified,
    Failed(DownloadError),
}

#[derive(Debug)]
pub(super) struct ProgressState {
    pub(super) phase: Phase,
    /// Length of the blob, once the upstream has told or all has come.
    pub(super) total: Option<u64>,
    /// Reads the staged file.
    pub(super) reader: Option<Reader>,
    /// What followers may read: in memory or in the file.
    pub(super) have: RangeSet,
    /// What is in the file.
    pub(super) written: RangeSet,
    pub(super) memory: Memory,
    /// Whether what comes is written to the file.
    pub(super) stored: bool,
    /// Bytes before it are perhaps to be had no more, because nothing is stored.
    pub(super) lost: u64,
    /// Where the streams are: bytes that come by themselves.
    pub(super) marks: Vec<(u64, u64)>,
    /// What has been given to followers; kept only while that decides what is fetched.
    pub(super) given: Option<RangeSet>,
    pub(super) followers: HashMap<u64, Position>,
    /// Names followers, and puts their waits in order.
    pub(super) next: u64,
    /// Blobs of at most so many bytes are given to nobody before they are verified.
    pub(super) verified_first: u64,
    pub(super) members: Members,
    /// What the present source has sent like the one whose bytes were thrown away.
    pub(super) agreed: RangeSet,
}

/// What a follower reads next.
#[derive(Debug, Clone, Copy)]
pub(in crate::download) struct ReadPosition {
    pub(in crate::download) offset: u64,
    /// None: up to the end of the blob.
    pub(in crate::download) end: Option<u64>,
    /// All bytes before the offset have been read: where all after it are read too, the end is held
    /// back until the digest is right.
    pub(in crate::download) whole: bool,
    /// The client is best sent what the file has.
    pub(in crate::download) from_file: bool,
}

/// The next step of a follower.
#[derive(Debug)]
pub(in crate::download) enum Step {
    /// Bytes at the offset asked for, and none behind the end that was asked for.
    Give(Piece),
    /// Nothing comes after the offset.
    End,
    /// Nothing yet.
    Wait,
}

impl ProgressState {
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether a follower may be given bytes now, or be told the length.
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

    /// Why a member's followers get no more: its own source's error, where that has been tried.
    pub(super) fn failure(&self, member: u64, error: &DownloadError) -> DownloadError {
        let own = self.members.failures.get(&member);
        match error {
            // These are nobody's source's.
            DownloadError::Present | DownloadError::Stopping => error.clone(),
            _ => own.unwrap_or(error).clone(),
        }
    }

    /// Notes what a follower is given.
    pub(super) fn gives(&mut self, follower: u64, start: u64, piece: &Piece) {
        let end = match piece {
            Piece::Bytes(bytes) => start + bytes.len() as u64,
            Piece::File { end, .. } => *end,
        };
        if let Some(position) = self.followers.get_mut(&follower) {
            position.given.insert(start, end);
        }
        if let Some(given) = &mut self.given {
            given.insert(start, end);
        }
    }

    /// What a follower waits for, with its turn: bytes that it lacks, or that are to be compared.
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

    /// Notes where a follower is. Whether the task must know.
    pub(super) fn moves(&mut self, follower: u64, reading: ReadPosition) -> bool {
        if let Some(position) = self.followers.get_mut(&follower) {
            position.at = reading.offset;
            position.end = reading.end;
            position.waits = None;
        }
        self.forget_old();
        !self.stored
    }

    /// What has to come for somebody who waits at `at`. That byte may be there: the end of a blob is
    /// held back until all of it has come.
    fn lacks(&self, at: u64, end: Option<u64>) -> Option<MissingBytes> {
        let next = self.have.end_of(at);
        let limit = end.into_iter().chain(self.total).min();
        let lacks = next == at || limit.is_none_or(|limit| next < limit);
        lacks.then_some(MissingBytes { at: next, end })
    }

    /// Notes that a follower waits. Whether no stream is about to bring what it waits for.
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
            Phase::Verified => true,
            Phase::Opening | Phase::Streaming => false,
        };
        // Only a body that was read from byte 0 on must not end well before it is verified.
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
            // Neither in memory nor in the file: passed through, and this follower came too late.
            _ => Err(DownloadError::Lost),
        }
    }

    /// Drops old chunks: those that the file has, beyond what is kept for followers at the mark; of
    /// a download that isn't stored those that every follower has read.
    pub(super) fn forget_old(&mut self) {
        if self.stored {
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
