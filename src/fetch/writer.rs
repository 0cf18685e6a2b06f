//! Hashing and writing, in batches, on the blocking pool.

use bytes::Bytes;

use crate::oci::{Algorithm, Hasher, RangeSet};
use crate::store::{Partial, Stage, StoreError};

/// Bytes read back at once, to be hashed or compared.
const PIECE: usize = 256 * 1024;
/// Bytes read back for the hash in one batch: so long do new chunks wait at most.
const MAX_READ_BACK: u64 = 8 * 1024 * 1024;

/// What hashes and writes. It moves to the blocking pool with each batch, and back.
pub(super) struct Writer {
    /// None where nothing is stored.
    stage: Option<Box<dyn Stage>>,
    /// Whether what comes is written; not any more when that has failed once.
    writing: bool,
    hasher: Hasher,
    /// Bytes that have been hashed: the blob's first ones.
    pub(super) hashed: u64,
    /// What is in the file.
    pub(super) file: RangeSet,
    /// What the last batch has written.
    pub(super) fresh: RangeSet,
    /// Why writing has stopped, until it is reported.
    pub(super) failure: Option<StoreError>,
    /// The first byte that came a second time as another one, or couldn't be read back.
    pub(super) changed: Option<u64>,
}

impl Writer {
    /// `kept` is in the file already. It is hashed like what comes, and not believed.
    pub(super) fn new(stage: Option<Box<dyn Stage>>, algorithm: Algorithm, kept: RangeSet) -> Self {
        Self {
            writing: stage.is_some(),
            stage,
            hasher: Hasher::new(algorithm),
            hashed: 0,
            file: kept,
            fresh: RangeSet::new(),
            failure: None,
            changed: None,
        }
    }

    /// Whether the file has bytes whose turn it is to be hashed.
    pub(super) fn is_behind(&self) -> bool {
        self.changed.is_none() && self.file.end_of(self.hashed) > self.hashed
    }

    /// Whether what comes goes to the file.
    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Writes no more; what is in the file can still be read back.
    pub(super) fn stop_writing(&mut self) {
        self.writing = false;
    }

    pub(super) fn stage(&self) -> Option<&dyn Stage> {
        self.stage.as_deref()
    }

    /// The stage with all that was written, and the hash of it.
    pub(super) fn into_parts(self) -> (Option<Box<dyn Stage>>, Hasher) {
        let Self {
            stage,
            writing,
            hasher,
            ..
        } = self;
        (stage.filter(|_| writing), hasher)
    }

    /// What is there of a blob of `total` bytes, for whoever takes the download up. Without its
    /// last byte: that one is asked of the upstream, which so says that it has the blob.
    pub(super) fn partial(&self, total: u64) -> Partial {
        let mut ranges = self.file.clone();
        ranges.remove(total.saturating_sub(1), u64::MAX);
        Partial { total, ranges }
    }

    /// Takes a batch of chunks with their offsets. Blocks.
    pub(super) fn take(mut self: Box<Self>, mut batch: Vec<(u64, Bytes)>) -> Box<Self> {
        self.fresh = RangeSet::new();
        // In the order of the hash: what comes before its turn has to be read back.
        batch.sort_by_key(|(offset, _)| *offset);
        let mut run: Vec<Bytes> = Vec::new();
        let (mut start, mut end) = (0, 0);
        for (offset, chunk) in &batch {
            let mut at = *offset;
            let mut rest = chunk.clone();
            while !rest.is_empty() {
                let known = self.file.end_of(at);
                let until = if known > at {
                    known
                } else {
                    self.file.next_start(at).unwrap_or(u64::MAX)
                };
                let length = usize::try_from(until - at).unwrap_or(usize::MAX);
                let part = rest.split_to(length.min(rest.len()));
                let next = at + part.len() as u64;
                if known > at {
                    self.compare(at, &part);
                } else if self.writing {
                    if at != end {
                        self.write(start, &std::mem::take(&mut run));
                        start = at;
                    }
                    run.push(part.clone());
                    end = next;
                }
                self.hash(at, &part);
                at = next;
            }
        }
        self.write(start, &run);
        self.catch_up();
        self
    }

    fn hash(&mut self, at: u64, part: &Bytes) {
        let known = self.hashed.saturating_sub(at);
        let new = usize::try_from(known)
            .ok()
            .and_then(|known| part.get(known..));
        if at <= self.hashed
            && let Some(new) = new
        {
            self.hasher.update(new);
            self.hashed += new.len() as u64;
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

    /// What came a second time must be what is there.
    fn compare(&mut self, at: u64, part: &[u8]) {
        let mut buffer = vec![0; part.len().min(PIECE)];
        let mut offset = at;
        for expected in part.chunks(PIECE) {
            let piece = buffer.get_mut(..expected.len()).unwrap_or_default();
            if !self.read_back(offset, piece) || piece != expected {
                self.changed.get_or_insert(offset);
                return;
            }
            offset += expected.len() as u64;
        }
    }

    /// Hashes what is in the file and whose turn has come.
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

    /// Fills the buffer from the file. False when that can't be.
    fn read_back(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let Some(stage) = &self.stage else {
            return false;
        };
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match stage.read_at(offset + filled as u64, rest) {
                Ok(0) => return false,
                Ok(read) => filled += read,
                Err(error) => {
                    tracing::warn!(%error, "what was written can't be read back");
                    return false;
                }
            }
        }
        true
    }
}
