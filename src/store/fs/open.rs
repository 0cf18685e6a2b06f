//! Files that are kept open: a blob that is asked for again is there without a visit to the blocking
//! pool.
//!
//! Removing or setting aside a blob closes its file here, so that its space is free. What happens to
//! the files from outside is seen, too: a file that has lost its name isn't handed out, and its size
//! is asked for each time.

use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use crate::oci::Digest;
use crate::store::{Content, Reader};

/// Files that are kept open. A quarter of the descriptors that many systems give a process.
const MAX_OPEN: usize = 256;

/// The files that were opened last.
#[derive(Debug)]
pub(super) struct OpenFiles {
    files: Cache<Digest, Reader>,
    /// How many names have been taken away.
    removals: AtomicU64,
}

/// When a file was looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before(u64);

impl OpenFiles {
    pub(super) fn new() -> Self {
        Self {
            files: Cache::new(MAX_OPEN),
            removals: AtomicU64::new(0),
        }
    }

    /// A file that is open and still has its name. Asks the kernel once; that doesn't wait for a
    /// local disk, which an open file's size is never read from.
    pub(super) fn get(&self, digest: &Digest) -> Option<Content> {
        let reader = self.files.get(digest)?;
        let size = reader.file().and_then(named_size);
        if size.is_none() {
            self.files.remove(digest);
        }
        size.map(|size| Content { size, reader })
    }

    /// To be called before a file is opened.
    pub(super) fn before(&self) -> Before {
        Before(self.removals.load(Ordering::SeqCst))
    }

    /// Keeps a file that was opened after `before`, unless any name has gone since: it may be its.
    pub(super) fn keep(&self, digest: &Digest, content: &Content, before: Before) {
        if content.reader.file().and_then(named_size).is_none() {
            return;
        }
        self.files.insert(*digest, content.reader.clone());
        // In this order: a removal counts before it looks into the cache.
        if self.removals.load(Ordering::SeqCst) != before.0 {
            self.files.remove(digest);
        }
    }

    /// The blob's name is gone.
    pub(super) fn removed(&self, digest: &Digest) {
        self.removals.fetch_add(1, Ordering::SeqCst);
        self.files.remove(digest);
    }
}

/// The size of a file that still has a name.
#[cfg(unix)]
fn named_size(file: &std::fs::File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = file.metadata().ok()?;
    (metadata.nlink() > 0).then_some(metadata.len())
}

/// Elsewhere an open file can't be removed: none is kept.
#[cfg(not(unix))]
fn named_size(_file: &std::fs::File) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use std::fs;

    #[cfg(unix)]
    #[test]
    fn a_file_is_kept_until_its_name_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let opened = || {
            fs::write(&path, b"content").unwrap();
            let reader = Reader::at(&path);
            Content { size: 7, reader }
        };
        let files = OpenFiles::new();
        files.keep(&digest, &opened(), files.before());
        assert_eq!(files.get(&digest).unwrap().size, 7);
        fs::write(&path, b"cut").unwrap();
        assert_eq!(files.get(&digest).unwrap().size, 3);
        fs::remove_file(&path).unwrap();
        assert!(files.get(&digest).is_none());

        files.keep(&digest, &opened(), files.before());
        files.removed(&digest);
        assert!(files.get(&digest).is_none());

        // Removed, or renamed, between being opened and being kept.
        let before = files.before();
        let content = opened();
        files.removed(&digest);
        files.keep(&digest, &content, before);
        assert!(files.get(&digest).is_none());
    }
}
