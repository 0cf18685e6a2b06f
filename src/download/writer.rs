//! Hashes and writes batches of chunks on the blocking pool.
//!
//! Each byte of the blob is accepted once: the same memory is hashed and written. Further copies are
//! only compared with the file. So the hashed bytes are the bytes in the file, in whatever order and
//! however often chunks arrive.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::checkpoints::{self, Checkpoints};
use super::suspect::{self, Suspect};
use crate::cache::{Reader, Stage, StoreError};
use crate::oci::{Algorithm, ByteRange, Digest, Hasher, RangeSet};

/// Bytes read back from the file at once, to hash or compare them.
const PIECE: usize = 256 * 1024;
/// Bytes read back for the hash in one batch. Bounds how long new chunks wait.
const MAX_READ_BACK: u64 = 8 * 1024 * 1024;

/// Hashes and writes. Moves to the blocking pool with each batch, and back.
pub(super) struct Writer {
    /// None when nothing is stored, or nothing further.
    pub(super) stage: Option<Box<dyn Stage>>,
    /// Reads what was written before the stage was given up.
    content: Option<Reader>,
    /// Whether bytes are written. False after the first failed write.
    pub(super) writing: bool,
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
    pub(super) suspect: Option<Suspect>,
    /// Bytes of the last batch that equal the suspect's, and those that differ.
    pub(super) agreed: RangeSet,
    pub(super) differs: RangeSet,
    /// Size of the blob in bytes, once it is known. Until then there are no checkpoints.
    pub(super) total: Option<u64>,
    checkpoints: Checkpoints,
    /// Whether the last call of [`checkpoint`](Self::checkpoint) has left something to resume.
    pub(super) checkpointed: bool,
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
        if self.needs_rehash() {
            self.hasher = Hasher::new(algorithm);
            if !self.hash_file(0, self.hashed) {
                return None;
            }
        }
        Some(std::mem::replace(&mut self.hasher, Hasher::new(algorithm)).finish())
    }

    /// Whether exactly the bytes before `end` have been hashed, and they have the digest.
    pub(super) fn is_whole(&self, end: u64, digest: &Digest) -> bool {
        self.hashed == end && self.hasher.clone().finish() == *digest
    }

    /// Whether [`finish`](Self::finish) reads the whole file.
    pub(super) fn needs_rehash(&self) -> bool {
        self.repeated && self.writing
    }

    /// Whether the file has bytes that can be hashed next.
    pub(super) fn is_behind(&self) -> bool {
        self.changed.is_none() && self.file.end_of(self.hashed) > self.hashed
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

    /// Writes a checkpoint of a blob of `total` bytes, and makes it durable if `sync` is set. Sets
    /// `checkpointed` to false when it fails, or when there is nothing to resume: the last byte is
    /// always downloaded again, which proves that the upstream has the blob. Blocks.
    pub(super) fn checkpoint(&mut self, total: u64, sync: bool) {
        let starts = self.file.ranges().first().map(|range| range.start);
        let resumable = starts.is_some_and(|start| start.saturating_add(1) < total);
        let stage = self.stage.as_mut().filter(|_| self.writing && resumable);
        self.checkpointed =
            stage.is_some_and(|stage| checkpoints::write(&mut **stage, total, sync));
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
        for (start, mut rest) in batch {
            let end = start + rest.len() as u64;
            let parts: Vec<_> = accepted.split(start, end).collect();
            for (ByteRange { start, end }, is_copy) in parts {
                let part = rest.split_to(usize::try_from(end - start).unwrap_or(rest.len()));
                if is_copy {
                    copies.push((start, part));
                } else {
                    accepted.insert(start, end);
                    new.insert(start, part);
                }
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
    fn compare(&mut self, start: u64, copy: &[u8]) {
        if let Some(content) = self.content() {
            let changed = &mut self.changed;
            suspect::compare(&content, &self.file, start, copy, PIECE, |range, equal| {
                if !equal {
                    changed.get_or_insert(range.start);
                }
            });
        }
    }

    /// Hashes bytes in the file that follow the hashed ones.
    fn catch_up(&mut self) {
        let until = self
            .file
            .end_of(self.hashed)
            .min(self.hashed + MAX_READ_BACK);
        if self.hash_file(self.hashed, until) {
            self.hashed = until;
        } else {
            self.changed.get_or_insert(self.hashed);
        }
    }

    /// Hashes `at..end` of the file. False when it can't be read or is too short.
    fn hash_file(&mut self, mut at: u64, end: u64) -> bool {
        let content = self.content();
        let mut buffer = Vec::new();
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(PIECE);
            buffer.resize(left.min(PIECE), 0);
            let read = |content: &Reader| content.fill_blocking(at, &mut buffer);
            if !content.as_ref().is_some_and(read) {
                return false;
            }
            self.hasher.update(&buffer);
            at += buffer.len() as u64;
        }
        true
    }
}
