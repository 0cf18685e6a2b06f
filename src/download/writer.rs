//! Hashes and writes batches of chunks on the blocking pool.
//!
//! Each byte of the blob is accepted once: the same memory is hashed and written. Further copies are
//! only compared with the file. So the hashed bytes are the bytes in the file, in whatever order and
//! however often chunks arrive.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::suspect::{Suspect, read_back};
use crate::oci::{Algorithm, Digest, Hasher, RangeSet};
use crate::storage::{Partial, Stage, StoreError};

/// Bytes read back from the file at once, to hash or compare them.
const PIECE: usize = 256 * 1024;
/// Bytes read back for the hash in one batch. Bounds how long new chunks wait.
const MAX_READ_BACK: u64 = 8 * 1024 * 1024;

/// Hashes and writes. Moves to the blocking pool with each batch, and back.
pub(super) struct Writer {
    /// None when nothing is stored.
    stage: Option<Box<dyn Stage>>,
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
}

impl Writer {
    /// `kept` is in the file already. It is hashed like all other bytes.
    pub(super) fn new(
        stage: Option<Box<dyn Stage>>,
        algorithm: Algorithm,
        kept: RangeSet,
        suspect: Option<Suspect>,
    ) -> Self {
        Self {
            writing: stage.is_some(),
            stage,
            hasher: Hasher::new(algorithm),
            hashed: 0,
            file: kept,
            fresh: RangeSet::new(),
            failure: None,
            changed: None,
            repeated: false,
            suspect,
            agreed: RangeSet::new(),
            differs: RangeSet::new(),
        }
    }

    /// The digest of the hashed bytes. Call once. When some byte arrived more than once, hashes the
    /// file again, which would reveal an error in the record of what is written; this blocks. None
    /// when the file can't be read.
    pub(super) fn finish(&mut self, algorithm: Algorithm) -> Option<Digest> {
        let hashed = std::mem::replace(&mut self.hasher, Hasher::new(algorithm)).finish();
        let stage = self.stage.as_deref().filter(|_| self.needs_rehash());
        stage.map_or(Some(hashed), |stage| rehash(stage, algorithm, self.hashed))
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

    /// The staged file, verified or not, with the ranges that are in it.
    pub(super) fn into_file(self) -> Option<(Box<dyn Stage>, RangeSet)> {
        let file = self.file;
        self.stage.map(|stage| (stage, file))
    }

    /// Whether the file has bytes that can be hashed next.
    pub(super) fn is_behind(&self) -> bool {
        self.changed.is_none() && self.file.end_of(self.hashed) > self.hashed
    }

    /// Whether bytes are written to the file.
    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Stops writing. Bytes in the file can still be read back.
    pub(super) fn stop_writing(&mut self) {
        self.writing = false;
    }

    pub(super) fn stage(&self) -> Option<&dyn Stage> {
        self.stage.as_deref()
    }

    /// The complete stage; none when writing has failed.
    pub(super) fn into_stage(self) -> Option<Box<dyn Stage>> {
        let writing = self.writing;
        self.stage.filter(|_| writing)
    }

    /// The checkpoint of a blob of `total` bytes. Leaves out the last byte: requesting it proves that
    /// the upstream has the blob.
    pub(super) fn partial(&self, upstream: &Arc<str>, total: u64) -> Partial {
        let mut ranges = self.file.clone();
        ranges.remove(total.saturating_sub(1), u64::MAX);
        Partial {
            upstream: Arc::clone(upstream),
            total,
            ranges,
        }
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
        self.stage
            .as_deref()
            .is_some_and(|stage| read_back(stage, offset, buffer))
    }
}

/// The digest of the first `size` bytes of the file. None when they can't be read. Blocks.
fn rehash(stage: &dyn Stage, algorithm: Algorithm, size: u64) -> Option<Digest> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let left = usize::try_from(size - at).unwrap_or(PIECE);
        let piece = buffer.get_mut(..left.min(PIECE)).unwrap_or_default();
        if !read_back(stage, at, piece) {
            return None;
        }
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Some(hasher.finish())
}
