//! Hashes and writes batches of chunks on the blocking pool.
//!
//! Each byte of the blob is accepted once: the same memory is hashed and written. Further copies are
//! only compared with the file. So the hashed bytes are the bytes in the file, in whatever order and
//! however often chunks arrive.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::checkpoints::Checkpoints;
use super::suspect::Suspect;
use crate::cache::{Reader, Stage, StoreError};
use crate::error_chain::on_one_line;
use crate::oci::{Algorithm, Digest, Hasher, RangeSet};

/// Bytes read back from the file at once, to hash or compare them.
const PIECE: usize = 256 * 1024;
/// Bytes read back for the hash in one batch. Bounds how long new chunks wait.
const MAX_READ_BACK: u64 = 8 * 1024 * 1024;

/// Hashes and writes. Moves to the blocking pool with each batch, and back.
pub(super) struct Writer {
    /// None when nothing is stored, or nothing further.
    stage: Option<Box<dyn Stage>>,
    /// Reads what was written before the stage was given up.
    content: Option<Reader>,
    /// Whether bytes are written. False after the first failed write.
    writing: bool,
    hasher: Hasher,
    /// Bytes that have been hashed, from the blob's start.
    pub(super) hashed: u64,
    /// The ranges that are in the file.
    pub(super) file: RangeSet,
    /// The ranges that the last batch has written.
    pub(super) fresh: RangeSet,
    /// Why writing has stopped, until it is reported.
    pub(super) failure: Option<StoreError>,
    /// Offset of the first byte that arrived again with another value or couldn't be read back.
    pub(super) changed: Option<u64>,
    /// Whether some byte arrived more than once.
    repeated: bool,
    /// Discarded bytes of an earlier source, while followers have some of them.
    suspect: Option<Suspect>,
    /// Bytes of the last batch that equal the suspect's, and those that differ.
    pub(super) agreed: RangeSet,
    pub(super) differs: RangeSet,
    /// Size of the blob in bytes, once it is known. Until then there are no checkpoints.
    pub(super) total: Option<u64>,
    checkpoints: Checkpoints,
    checkpointed: bool,
}

impl Writer {
    /// `resumed` is in the file already. It is hashed like all other bytes.
    pub(super) fn new(
        stage: Option<Box<dyn Stage>>,
        algorithm: Algorithm,
        resumed: RangeSet,
        suspect: Option<Suspect>,
    ) -> Self {
        Self {
            writing: stage.is_some(),
            stage,
            content: None,
            checkpointed: false,
            hasher: Hasher::new(algorithm),
            hashed: 0,
            checkpoints: Checkpoints::new(resumed.len()),
            file: resumed,
            fresh: RangeSet::new(),
            failure: None,
            changed: None,
            repeated: false,
            suspect,
            agreed: RangeSet::new(),
            differs: RangeSet::new(),
            total: None,
        }
    }

    /// The digest of the hashed bytes. Call once. When some byte arrived more than once, hashes the
    /// file again, which would reveal an error in the record of what is written; this blocks. None
    /// when the file can't be read.
    pub(super) fn finish(&mut self, algorithm: Algorithm) -> Option<Digest> {
        let hashed = std::mem::replace(&mut self.hasher, Hasher::new(algorithm)).finish();
        match self.content().filter(|_| self.needs_rehash()) {
            Some(content) => rehash(&content, algorithm, self.hashed),
            None => Some(hashed),
        }
    }

    /// Whether exactly the bytes before `end` have been hashed, and they have the digest.
    pub(super) fn is_whole(&self, end: u64, digest: &Digest) -> bool {
        self.hashed == end && self.hasher.clone().finish() == *digest
    }

    /// Whether [`finish`](Self::finish) reads the whole file.
    pub(super) fn needs_rehash(&self) -> bool {
        self.repeated && self.writing
    }

    /// Takes the suspect, once no follower needs it.
    pub(super) fn take_suspect(&mut self) -> Option<Suspect> {
        self.suspect.take()
    }

    /// The stage, if bytes are still written to it, and the ranges that are in the file.
    pub(super) fn into_file(self) -> (Option<Box<dyn Stage>>, RangeSet) {
        (self.stage, self.file)
    }

    /// Whether the file has bytes that can be hashed next.
    pub(super) fn is_behind(&self) -> bool {
        self.changed.is_none() && self.file.end_of(self.hashed) > self.hashed
    }

    /// Whether bytes are written to the file.
    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Stops writing. Bytes in the file can still be read back. Returns the stage, which is to be
    /// dropped on the blocking pool: while it exists, no other download of the blob can be stored.
    pub(super) fn stop_writing(&mut self) -> Option<Box<dyn Stage>> {
        self.writing = false;
        let stage = self.stage.take()?;
        self.content = Some(stage.content());
        Some(stage)
    }

    /// Reads the staged file; none when nothing was stored.
    pub(super) fn content(&self) -> Option<Reader> {
        let stage = self.stage.as_deref().map(Stage::content);
        stage.or_else(|| self.content.clone())
    }

    /// The complete stage; none when writing has failed.
    pub(super) fn into_stage(self) -> Option<Box<dyn Stage>> {
        let writing = self.writing;
        self.stage.filter(|_| writing)
    }

    /// Writes a checkpoint of a blob of `total` bytes, and makes it durable if `sync` is set. False when
    /// it fails, or when there is nothing to resume: the last byte is always downloaded again, which
    /// proves that the upstream has the blob. Blocks.
    pub(super) fn checkpoint(&mut self, total: u64, sync: bool) -> bool {
        self.checkpointed = false;
        let starts = self.file.ranges().first().map(|range| range.start);
        let resumable = starts.is_some_and(|start| start.saturating_add(1) < total);
        let Some(stage) = self.stage.as_mut().filter(|_| self.writing && resumable) else {
            return false;
        };
        let written = stage.checkpoint(total, sync).inspect_err(|error| {
            tracing::warn!(error = %on_one_line(error), "can't write the checkpoint of a download");
        });
        self.checkpointed = written.is_ok();
        self.checkpointed
    }

    /// Whether the last call of [`checkpoint`](Self::checkpoint) has left something to resume.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.checkpointed
    }

    /// Processes a batch of chunks with their offsets, in order of arrival. Blocks.
    pub(super) fn take(mut self: Box<Self>, batch: Vec<(u64, Bytes)>) -> Box<Self> {
        self.fresh = RangeSet::new();
        self.agreed = RangeSet::new();
        self.differs = RangeSet::new();
        let (new, copies) = self.split(batch);
        self.accept(new);
        for (offset, copy) in copies {
            self.repeated = true;
            self.compare(offset, &copy);
        }
        self.catch_up();
        if let (Some(stage), Some(total)) =
            (self.stage.as_mut().filter(|_| self.writing), self.total)
        {
            let bytes = self.file.len();
            self.checkpoints.write_if_due(&mut **stage, bytes, total);
        }
        self
    }

    /// Splits a batch into the first copy of each byte, by offset and without overlap, and further
    /// copies of bytes that arrived earlier.
    fn split(&self, batch: Vec<(u64, Bytes)>) -> (BTreeMap<u64, Bytes>, Vec<(u64, Bytes)>) {
        let mut accepted = self.file.clone();
        accepted.insert(0, self.hashed);
        let (mut new, mut copies) = (BTreeMap::new(), Vec::new());
        for (mut at, mut rest) in batch {
            while !rest.is_empty() {
                let known = accepted.end_of(at);
                let is_new = known <= at;
                let until = if is_new {
                    accepted.next_start(at).unwrap_or(u64::MAX)
                } else {
                    known
                };
                let length = usize::try_from(until - at).unwrap_or(usize::MAX);
                let part = rest.split_to(length.min(rest.len()));
                let next = at + part.len() as u64;
                if is_new {
                    accepted.insert(at, next);
                    new.insert(at, part);
                } else {
                    copies.push((at, part));
                }
                at = next;
            }
        }
        (new, copies)
    }

    /// Writes and hashes first copies, contiguous ones in one call.
    fn accept(&mut self, parts: BTreeMap<u64, Bytes>) {
        let mut run: Vec<Bytes> = Vec::new();
        let (mut start, mut end) = (0, 0);
        for (at, part) in parts {
            if at != end {
                self.store(start, &std::mem::take(&mut run));
                start = at;
            }
            end = at + part.len() as u64;
            run.push(part);
        }
        self.store(start, &run);
    }

    fn store(&mut self, start: u64, run: &[Bytes]) {
        self.write(start, run);
        let mut at = start;
        for part in run {
            if let Some(suspect) = &self.suspect {
                suspect.compare(at, part, &mut self.agreed, &mut self.differs);
            }
            // Bytes that aren't written have to be hashed now. The file may have those before them.
            while !self.writing && at > self.hashed && self.is_behind() {
                self.catch_up();
            }
            // Bytes ahead of the hash are read back later.
            if at == self.hashed {
                self.hasher.update(part);
                self.hashed += part.len() as u64;
            }
            at += part.len() as u64;
        }
    }

    fn write(&mut self, start: u64, run: &[Bytes]) {
        let Some(stage) = self
            .stage
            .as_mut()
            .filter(|_| self.writing && !run.is_empty())
        else {
            return;
        };
        let length: u64 = run.iter().map(|part| part.len() as u64).sum();
        match stage.write_at(start, run) {
            Ok(()) => {
                self.file.insert(start, start + length);
                self.fresh.insert(start, start + length);
            }
            Err(error) => {
                self.writing = false;
                self.failure = Some(error);
            }
        }
    }

    /// Compares a further copy with the file. Bytes that were passed through without being written
    /// can't be compared: followers and the hash have the first copy.
    fn compare(&mut self, mut at: u64, mut copy: &[u8]) {
        let mut buffer = vec![0; copy.len().min(PIECE)];
        while !copy.is_empty() {
            let known = self.file.end_of(at);
            let in_file = known > at;
            let until = if in_file {
                known
            } else {
                self.file.next_start(at).unwrap_or(u64::MAX)
            };
            let length = usize::try_from(until - at).unwrap_or(usize::MAX);
            let (part, rest) = copy.split_at(length.min(copy.len()).min(PIECE));
            let piece = buffer.get_mut(..part.len()).unwrap_or_default();
            if in_file && (!self.read_back(at, piece) || piece != part) {
                self.changed.get_or_insert(at);
                return;
            }
            at += part.len() as u64;
            copy = rest;
        }
    }

    /// Hashes bytes in the file that follow the hashed ones.
    fn catch_up(&mut self) {
        let until = self
            .file
            .end_of(self.hashed)
            .min(self.hashed + MAX_READ_BACK);
        let mut buffer = Vec::new();
        while self.hashed < until {
            let left = usize::try_from(until - self.hashed).unwrap_or(PIECE);
            buffer.resize(left.min(PIECE), 0);
            if !self.read_back(self.hashed, &mut buffer) {
                self.changed.get_or_insert(self.hashed);
                return;
            }
            self.hasher.update(&buffer);
            self.hashed += buffer.len() as u64;
        }
    }

    /// Fills the buffer from the file. False when the file can't be read or is too short.
    fn read_back(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.content()
            .is_some_and(|content| content.fill_blocking(offset, buffer))
    }
}

/// The digest of the first `size` bytes of the file. None when they can't be read. Blocks.
fn rehash(content: &Reader, algorithm: Algorithm, size: u64) -> Option<Digest> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let left = usize::try_from(size - at).unwrap_or(PIECE);
        let piece = buffer.get_mut(..left.min(PIECE)).unwrap_or_default();
        if !content.fill_blocking(at, piece) {
            return None;
        }
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Some(hasher.finish())
}
