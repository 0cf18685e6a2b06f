//! Staged writes: a file in the spool until its content is whole and durable, then renamed.
//!
//! The spool belongs to one process at a time, which a lock proves. So a file that is in it at the
//! start was left behind by a process that is gone.

use std::fs::{self, File, TryLockError};
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::layout::{Layout, is_leftover};
use super::{Reader, Stage, StoreError, disk};
use crate::oci::Digest;

/// The directory of unfinished files, locked for this process.
#[derive(Debug)]
pub(super) struct Spool {
    layout: Layout,
    /// Makes names unique within this process, which is alone here.
    next: AtomicU64,
    /// Held, not read: the lock goes with it.
    _lock: File,
}

impl Spool {
    /// Makes the directories, takes the lock, clears leftovers, and proves that files can be made.
    pub(super) fn open(layout: Layout) -> Result<Self, StoreError> {
        let not_writable = |path: PathBuf| {
            let root = layout.root().to_owned();
            |source| StoreError::NotWritable { root, path, source }
        };
        let spool = layout.spool();
        let created = disk::create_dirs(&spool).map_err(not_writable(spool.clone()))?;
        disk::sync_names(&spool, &created);

        let path = layout.lock();
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(not_writable(path.clone()))?;
        take_lock(&lock, &layout)?;

        // Before the probe, because it may make room on a full disk.
        let swept = sweep(&spool)?;
        if swept > 0 {
            tracing::info!(files = swept, "removed what an earlier run left unfinished");
        }
        let probe = layout.draft(0);
        File::create(&probe).map_err(not_writable(probe.clone()))?;
        fs::remove_file(&probe).map_err(not_writable(probe))?;

        Ok(Self {
            layout,
            next: AtomicU64::new(1),
            _lock: lock,
        })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn stage(self: &Arc<Self>, digest: &Digest) -> Result<FileStage, StoreError> {
        let path = self.layout.staged(digest, self.unique());
        let create = || {
            // The mode is the default one (0644 less the umask): other tools may read the cache.
            let writer = File::create_new(&path)?;
            // A handle of its own, because on Windows reading would move the writer's cursor.
            File::open(&path).map(|reader| (writer, reader))
        };
        match create() {
            Ok((writer, reader)) => Ok(FileStage {
                spool: Arc::clone(self),
                digest: *digest,
                reader: Reader::of_file(reader, &path),
                path,
                writer,
                length: 0,
                state: State::Whole,
            }),
            Err(source) => {
                disk::discard(&path);
                Err(StoreError::io("create", &path, source))
            }
        }
    }

    /// Makes `target` a link to `digest`, or leaves what was there. `sync` is for a link whose
    /// earlier content matters: then power loss leaves the old digest or the new one. Otherwise it
    /// may leave an empty file, which reads as no link.
    pub(super) fn write_link(
        &self,
        target: &Path,
        digest: &Digest,
        sync: bool,
    ) -> Result<(), StoreError> {
        if disk::read_link(target)? == Some(*digest) {
            return Ok(());
        }
        let draft = self.layout.draft(self.unique());
        let placed = disk::write_link(&draft, digest, sync)
            .and_then(|()| disk::place(&draft, target).map(drop));
        if placed.is_err() {
            disk::discard(&draft);
        }
        placed
    }
}

fn take_lock(lock: &File, layout: &Layout) -> Result<(), StoreError> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            root: layout.root().to_owned(),
        }),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!(
                root = %layout.root().display(),
                "this file system has no locks: make sure that no other process uses the store"
            );
            Ok(())
        }
        Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &layout.lock(), source)),
    }
}

/// Removes what earlier processes left; returns how many files. Partial downloads go too: nothing
/// resumes them yet. Files that don't look like ours stay.
fn sweep(spool: &Path) -> Result<usize, StoreError> {
    let mut swept = 0;
    for (name, kind) in disk::list(spool)? {
        if kind.is_file() && is_leftover(&name) && disk::remove_file(&spool.join(name))? {
            swept += 1;
        }
    }
    Ok(swept)
}

/// A blob that is being written.
#[derive(Debug)]
pub(super) struct FileStage {
    spool: Arc<Spool>,
    digest: Digest,
    path: PathBuf,
    writer: File,
    reader: Reader,
    /// In bytes: everything appended.
    length: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file is what was appended.
    Whole,
    /// A write failed somewhere in the middle.
    Broken,
    /// The file has its final name.
    Placed,
}

impl FileStage {
    fn check_whole(&self) -> Result<(), StoreError> {
        match self.state {
            State::Whole | State::Placed => Ok(()),
            State::Broken => Err(StoreError::Incomplete {
                path: self.path.clone(),
            }),
        }
    }
}

impl Stage for FileStage {
    fn content(&self) -> Reader {
        self.reader.clone()
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.check_whole()?;
        match write_all(&mut self.writer, chunks) {
            Ok(written) => {
                self.length += written;
                Ok(())
            }
            Err(source) => {
                self.state = State::Broken;
                Err(StoreError::io("write", &self.path, source))
            }
        }
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        self.check_whole()?;
        self.writer
            .sync_data()
            .map_err(|source| StoreError::io("sync", &self.path, source))?;
        let target = self.spool.layout.blob(&self.digest);
        match disk::file_size(&target)? {
            Some(size) if size == self.length => return Ok(()),
            Some(size) => tracing::warn!(
                digest = %self.digest, size, expected = self.length,
                "a damaged blob in the store is replaced"
            ),
            None => {}
        }
        let created = disk::place(&self.path, &target)?;
        self.state = State::Placed;
        disk::sync_names(&target, &created);
        Ok(())
    }
}

impl Drop for FileStage {
    fn drop(&mut self) {
        if self.state != State::Placed {
            disk::discard(&self.path);
        }
    }
}

/// Writes all chunks with as few calls as the system allows; returns how many bytes that were.
fn write_all(writer: &mut impl Write, chunks: &[Bytes]) -> io::Result<u64> {
    let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    // Drops empty chunks at the front, so that a write of 0 bytes can only mean trouble.
    IoSlice::advance_slices(&mut rest, 0);
    let mut written = 0;
    while !rest.is_empty() {
        match writer.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                written += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, is interrupted before each, and has room for `room`.
    #[derive(Default)]
    struct Grudging {
        taken: Vec<u8>,
        room: usize,
        asked: usize,
    }

    impl Write for Grudging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked += 1;
            if self.asked % 2 == 1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = bytes.len().min(3).min(self.room - self.taken.len());
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn chunks() -> Vec<Bytes> {
        ["", "ab", "", "", "cdefgh", "i", ""]
            .map(|text| Bytes::from_static(text.as_bytes()))
            .to_vec()
    }

    #[test]
    fn short_and_interrupted_writes_are_continued() {
        let mut writer = Grudging {
            room: 100,
            ..Grudging::default()
        };
        assert_eq!(write_all(&mut writer, &chunks()).unwrap(), 9);
        assert_eq!(writer.taken, b"abcdefghi");
    }

    #[test]
    fn a_write_that_takes_nothing_is_an_error() {
        let mut writer = Grudging {
            room: 4,
            ..Grudging::default()
        };
        let error = write_all(&mut writer, &chunks()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn after_a_failed_write_nothing_can_be_committed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(Layout::new(root.path())).unwrap());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"ab");
        let mut stage = Box::new(spool.stage(&digest).unwrap());
        stage.append(&[Bytes::from_static(b"a")]).unwrap();
        // A handle that can't write stands in for a disk that is full for a moment.
        let writer = std::mem::replace(&mut stage.writer, File::open(&stage.path).unwrap());
        stage.append(&[Bytes::from_static(b"b")]).unwrap_err();
        stage.writer = writer;

        let error = stage.append(&[Bytes::from_static(b"b")]).unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        let error = stage.commit().unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        assert!(!spool.layout.blob(&digest).exists());
        assert!(disk::list(&spool.layout.spool()).unwrap().is_empty());
    }
}
