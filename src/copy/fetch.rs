//! Reads a blob from the source, wherever it breaks off, and checks the digest.

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use super::error::CopyError;
use super::host::Patience;
use super::source::Source;
use crate::oci::{Descriptor, Digest, Hasher};

/// A blob that is read, perhaps several times and in parts.
pub(super) struct Fetch<'a> {
    source: &'a Source,
    blob: &'a Descriptor,
    hash: Mutex<Hash>,
}

/// The hash of the bytes from 0 on.
struct Hash {
    hasher: Hasher,
    /// Bytes that were hashed.
    at: u64,
}

/// Takes the bytes of a blob in order. An error ends the reading.
pub(super) trait Sink {
    async fn take(&mut self, bytes: Bytes) -> Result<(), CopyError>;
}

impl<'a> Fetch<'a> {
    pub(super) fn new(source: &'a Source, blob: &'a Descriptor) -> Self {
        let hasher = Hasher::new(blob.digest.algorithm());
        Self {
            source,
            blob,
            hash: Mutex::new(Hash { hasher, at: 0 }),
        }
    }

    /// Gives the bytes from `from` to `to` (exclusive) to a sink, going on where the source breaks off. The
    /// last bytes of a blob are given only if the digest is right, as far as this process has had all others.
    pub(super) async fn read(
        &self,
        from: u64,
        to: u64,
        sink: &mut impl Sink,
    ) -> Result<(), CopyError> {
        let mut at = from;
        let mut patience = self.source.host().map(|host| Patience::new(host));
        while at < to {
            let before = at;
            let Err(error) = self.stream(&mut at, to, sink).await else {
                break;
            };
            match (error, &mut patience) {
                (CopyError::Source(error), Some(patience)) => {
                    let waited = patience.wait(error, at > before).await;
                    waited.map_err(CopyError::source)?;
                }
                (error, _) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads one stream, from `at` on.
    async fn stream(&self, at: &mut u64, to: u64, sink: &mut impl Sink) -> Result<(), CopyError> {
        let blob = self.blob;
        let mut stream = self.source.blob(blob, *at).await?;
        if let Some(actual) = stream.total.filter(|total| *total != blob.size) {
            return Err(self.wrong_size(actual));
        }
        let mut offset = stream.offset;
        while *at < to {
            let Some(bytes) = stream.body.next().await else {
                return Err(self.wrong_size(*at));
            };
            let mut bytes = bytes?;
            let begins = offset;
            offset += bytes.len() as u64;
            // What comes before: the source doesn't know ranges.
            let skipped = at.saturating_sub(begins).min(bytes.len() as u64);
            drop(bytes.split_to(usize::try_from(skipped).unwrap_or(usize::MAX)));
            let wanted = (to - *at).min(bytes.len() as u64);
            bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            let after = *at + bytes.len() as u64;
            self.hash(*at, &bytes);
            if after == blob.size && !self.is_right() {
                return Err(CopyError::WrongBytes(Box::new(blob.digest)));
            }
            sink.take(bytes).await?;
            *at = after;
        }
        Ok(())
    }

    fn hash(&self, at: u64, bytes: &[u8]) {
        let mut hash = self.hash.lock();
        let skipped = hash
            .at
            .checked_sub(at)
            .and_then(|skipped| usize::try_from(skipped).ok());
        // Nothing is known of a gap, nor of what comes after it.
        if let Some(new) = skipped.and_then(|skipped| bytes.get(skipped..)) {
            hash.hasher.update(new);
            hash.at += new.len() as u64;
        }
    }

    /// Whether the digest is right. Unknown, where an earlier process has had the first bytes: then the
    /// destination alone verifies it.
    fn is_right(&self) -> bool {
        let mut hash = self.hash.lock();
        if hash.at != self.blob.size {
            return true;
        }
        let fresh = Hasher::new(self.blob.digest.algorithm());
        let actual: Digest = std::mem::replace(&mut hash.hasher, fresh).finish();
        hash.at = 0;
        actual == self.blob.digest
    }

    fn wrong_size(&self, actual: u64) -> CopyError {
        CopyError::WrongSize {
            digest: Box::new(self.blob.digest),
            expected: self.blob.size,
            actual,
        }
    }
}
