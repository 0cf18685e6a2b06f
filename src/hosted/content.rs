//! The bytes of an upload, which are hashed as they are written.

use bytes::Bytes;

use crate::cache::{Charge, Reservation, StoreError, UploadFile};
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes that are read back at a time.
const PIECE: usize = 1024 * 1024;

/// Chunks of at most 64 KiB that are written and then hashed, while the processor still has them at hand.
const BATCH: usize = 4;

/// What an upload has received.
#[derive(Debug)]
pub(super) struct Content {
    /// Open while somebody has the turn.
    pub(super) file: Option<Box<dyn UploadFile>>,
    hasher: Hasher,
    algorithm: Algorithm,
    /// Bytes that have been hashed, from the start.
    hashed: u64,
}

/// What an upload counts for, in its quota and on the disk.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// None once the upload has become a blob.
    pub(super) charge: Option<Charge>,
    pub(super) reservation: Option<Reservation>,
}

impl Content {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self {
            file: None,
            hasher: Hasher::new(algorithm),
            algorithm,
            hashed: 0,
        }
    }

    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// The digest that the upload ends with is known. It is hashed as it arrives from here on, if
    /// nothing has arrived yet.
    pub(super) fn expect(&mut self, algorithm: Algorithm) {
        if self.hashed == 0 && self.algorithm != algorithm {
            self.algorithm = algorithm;
            self.hasher = Hasher::new(algorithm);
        }
    }

    /// Adds chunks at the end, up to the first error. Returns the bytes that the file has now. Blocks.
    pub(super) fn append(&mut self, chunks: &[Bytes]) -> (u64, Result<(), StoreError>) {
        let Some(file) = &mut self.file else {
            return (0, Ok(()));
        };
        for batch in chunks.chunks(BATCH) {
            let before = file.size();
            if let Err(error) = file.append(batch) {
                return (before, Err(error));
            }
            // After a restart the start isn't hashed: that is read back at the end.
            if self.hashed == before {
                for chunk in batch {
                    self.hasher.update(chunk);
                }
                self.hashed = file.size();
            }
        }
        (file.size(), Ok(()))
    }

    /// The digest of the whole content, where it was hashed as it arrived.
    pub(super) fn hashed(&self, algorithm: Algorithm) -> Option<Digest> {
        let size = self.file.as_ref()?.size();
        let is_hashed = self.algorithm == algorithm && self.hashed == size;
        is_hashed.then(|| self.hasher.clone().finish())
    }

    /// The digest of the whole content, which is read. None where the file can't be. Blocks.
    pub(super) fn digest(&self, algorithm: Algorithm) -> Option<Digest> {
        let file = self.file.as_ref()?;
        let size = file.size();
        let (mut hasher, content) = (Hasher::new(algorithm), file.content());
        let (mut at, mut buffer) = (0, Vec::new());
        while at < size {
            let left = usize::try_from(size - at).unwrap_or(PIECE);
            buffer.resize(left.min(PIECE), 0);
            if !content.fill_blocking(at, &mut buffer) {
                return None;
            }
            hasher.update(&buffer);
            at += buffer.len() as u64;
        }
        Some(hasher.finish())
    }
}
