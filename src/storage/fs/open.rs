//! Files that are kept open: a blob that is requested again is opened without the blocking pool.
//!
//! Removing or setting aside a blob closes its file here, so that its space is free. Changes from
//! outside are seen, too: a file that has lost its name, or has another size or modification time
//! than when it was opened, is opened anew.

use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use crate::oci::Digest;
use crate::storage::Content;

/// Files that are kept open. A quarter of the descriptors that many systems give a process.
const MAX_OPEN: usize = 256;

/// The files that were opened last.
#[derive(Debug)]
pub(super) struct OpenFiles {
    files: Cache<Digest, Content>,
    /// How many names have been taken away.
    removals: AtomicU64,
}

impl OpenFiles {
    pub(super) fn new() -> Self {
        Self {
            files: Cache::new(MAX_OPEN),
            removals: AtomicU64::new(0),
        }
    }

    /// A file that is open, still has its name, and is unchanged. Asks the kernel once; that doesn't
    /// wait for a local disk, which an open file's size is never read from.
    pub(super) fn get(&self, digest: &Digest) -> Option<Content> {
        let content = self.files.get(digest)?;
        if is_unchanged(&content) {
            return Some(content);
        }
        self.files.remove(digest);
        None
    }

    /// How many names have been taken away. To be called before a file is opened.
    pub(super) fn removals(&self) -> u64 {
        self.removals.load(Ordering::SeqCst)
    }

    /// Keeps a file that was opened after `before` names had gone, unless any has gone since: it may
    /// be its.
    pub(super) fn keep(&self, digest: &Digest, content: &Content, before: u64) {
        if !is_unchanged(content) {
            return;
        }
        self.files.insert(*digest, content.clone());
        // In this order: a removal counts before it looks into the cache.
        if self.removals() != before {
            self.files.remove(digest);
        }
    }

    /// The blob's name is gone.
    pub(super) fn removed(&self, digest: &Digest) {
        self.removals.fetch_add(1, Ordering::SeqCst);
        self.files.remove(digest);
    }
}

/// Whether a file still has a name, and the size and the time that it was opened with.
fn is_unchanged(content: &Content) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = content.reader.file().and_then(|file| file.metadata().ok());
    metadata.is_some_and(|now| now.nlink() > 0 && content.is_as(&now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::storage::{Modified, Reader};
    use std::fs;

    #[test]
    fn a_file_is_kept_until_its_name_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let opened = || {
            fs::write(&path, b"content").unwrap();
            let reader = Reader::at(&path);
            let metadata = reader.file().unwrap().metadata().unwrap();
            Content {
                size: metadata.len(),
                modified: Modified::of(&metadata).unwrap(),
                reader,
            }
        };
        let files = OpenFiles::new();
        files.keep(&digest, &opened(), files.removals());
        assert_eq!(files.get(&digest).unwrap().size, 7);
        fs::write(&path, b"cut").unwrap();
        assert!(files.get(&digest).is_none(), "another size");
        files.keep(&digest, &opened(), files.removals());
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_times(times).unwrap();
        assert!(files.get(&digest).is_none(), "another time");

        files.keep(&digest, &opened(), files.removals());
        fs::remove_file(&path).unwrap();
        assert!(files.get(&digest).is_none());

        files.keep(&digest, &opened(), files.removals());
        files.removed(&digest);
        assert!(files.get(&digest).is_none());

        // Removed, or renamed, between being opened and being kept.
        let before = files.removals();
        let content = opened();
        files.removed(&digest);
        files.keep(&digest, &content, before);
        assert!(files.get(&digest).is_none());
    }
}
