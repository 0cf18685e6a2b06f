//! A staged write into a file: anywhere in it, in any order, until it is renamed into the store.
//!
//! What lies between the written parts is a hole, which takes no space and reads as zeros.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::keep::{FileKeeper, Part};
use super::spool::Spool;
use super::trust::stamp;
use super::{Keeper, Modified, Reader, Stage, StoreError, disk};

/// A blob that is being written.
#[derive(Debug)]
pub(super) struct FileStage {
    spool: Arc<Spool>,
    part: Arc<Part>,
    writer: File,
    reader: Reader,
    /// The end of the file, in bytes.
    length: u64,
    state: FileStageState,
    /// See [`FileKeeper`].
    unsynced: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileStageState {
    /// The file has what was written.
    Whole,
    /// A write failed somewhere in the middle.
    Broken,
    /// The file has its final name.
    Placed,
    /// The file stays for who takes it up.
    Left,
}

impl FileStage {
    /// Makes the file of a part.
    pub(super) fn create(spool: &Arc<Spool>, part: Part) -> Result<Self, StoreError> {
        let error = |part: &Part, source| StoreError::io("create", part.path(), source);
        let mut options = File::options();
        let created = spool
            .modes()
            .open(options.write(true).create_new(true), part.path());
        let writer = created.map_err(|source| error(&part, source))?;
        let part = Arc::new(part);
        Self::of(spool, writer, Arc::clone(&part)).map_err(|source| {
            part.discard();
            error(&part, source)
        })
    }

    /// Opens the file of a part that was left.
    pub(super) fn take_up(spool: &Arc<Spool>, part: &Arc<Part>) -> Result<Self, StoreError> {
        let writer = File::options().write(true).open(part.path());
        writer
            .and_then(|writer| Self::of(spool, writer, Arc::clone(part)))
            .map_err(|source| StoreError::io("open", part.path(), source))
    }

    fn of(spool: &Arc<Spool>, writer: File, part: Arc<Part>) -> io::Result<Self> {
        // A handle of its own, because on Windows writing would move the reader's cursor.
        let reader = File::open(part.path())?;
        Ok(Self {
            spool: Arc::clone(spool),
            length: writer.metadata()?.len(),
            writer,
            reader: Reader::of_file(reader, part.path()),
            part,
            state: FileStageState::Whole,
            unsynced: Arc::default(),
        })
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        if self.state == FileStageState::Broken || self.unsynced.load(Ordering::SeqCst) {
            let path = self.part.path().clone();
            return Err(StoreError::Incomplete { path });
        }
        Ok(())
    }
}

impl Stage for FileStage {
    fn content(&self) -> Reader {
        self.reader.clone()
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.check_whole()?;
        match write_all(&mut self.writer, offset, chunks) {
            Ok(None) => Ok(()),
            Ok(Some(end)) => {
                self.length = self.length.max(end);
                Ok(())
            }
            Err(source) => {
                self.state = FileStageState::Broken;
                Err(StoreError::io("write", self.part.path(), source))
            }
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        self.reader.read_blocking(offset, buffer)
    }

    fn keeper(&self) -> Box<dyn Keeper> {
        Box::new(FileKeeper::new(
            Arc::clone(&self.spool),
            Arc::clone(&self.part),
            Arc::clone(&self.unsynced),
        ))
    }

    fn leave(mut self: Box<Self>) {
        if self.part.is_kept() {
            self.state = FileStageState::Left;
            self.spool.left().put(Arc::clone(&self.part));
        }
    }

    fn commit(mut self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        self.check_whole()?;
        self.writer
            .sync_data()
            .map_err(|source| StoreError::io("sync", self.part.path(), source))?;
        let digest = self.part.digest();
        let target = self.spool.layout().blob(digest);
        match disk::file_size(&target)? {
            Some(size) if size == self.length => {
                self.spool.forget(digest);
                return Ok(None);
            }
            Some(size) => tracing::warn!(
                %digest, size, expected = self.length,
                "a damaged blob in the store is replaced"
            ),
            None => {}
        }
        // Before the rename, so that a keeper that misses the file knows why. The sidecar goes after
        // it: until then a crash leaves the partial, afterwards a sidecar without a file.
        self.part.end();
        let created = disk::place(self.part.path(), &target, self.spool.modes())?;
        self.state = FileStageState::Placed;
        self.part.remove_sidecar();
        self.spool.forget(self.part.digest());
        disk::sync_names(&target, &created);
        Ok(stamp(&self.writer).map(|(_, modified)| modified))
    }
}

impl Drop for FileStage {
    fn drop(&mut self) {
        match self.state {
            FileStageState::Whole | FileStageState::Broken => self.part.discard(),
            FileStageState::Placed | FileStageState::Left => {}
        }
    }
}

/// What writes at an offset: a file, or what stands in for one in tests.
trait WriteAt {
    /// One call to the system: some of the bytes, as with [`io::Write::write_vectored`].
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

#[cfg(unix)]
impl WriteAt for File {
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, slices, offset)?)
    }
}

#[cfg(windows)]
impl WriteAt for File {
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        std::os::windows::fs::FileExt::seek_write(self, first, offset)
    }
}

/// Writes all chunks, one after the other, with as few calls as the system allows. Returns where
/// they end; `None` when there was nothing to write.
fn write_all(
    writer: &mut impl WriteAt,
    mut offset: u64,
    chunks: &[Bytes],
) -> io::Result<Option<u64>> {
    let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    // Drops empty chunks at the front, so that a write of 0 bytes can only mean trouble.
    IoSlice::advance_slices(&mut rest, 0);
    if rest.is_empty() {
        return Ok(None);
    }
    while !rest.is_empty() {
        match writer.write_at(offset, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                // No file goes on past what an offset can say: the system refuses before that.
                offset = offset.saturating_add(count as u64);
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::storage::Layout;

    const START: u64 = 1000;

    /// Takes three bytes at a time, is interrupted before each, and has room for `room`.
    #[derive(Default)]
    struct Grudging {
        taken: Vec<u8>,
        room: usize,
        asked: usize,
    }

    impl WriteAt for Grudging {
        fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let bytes = &slices[0];
            assert_eq!(offset, START + self.taken.len() as u64);
            self.asked += 1;
            if self.asked % 2 == 1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = bytes.len().min(3).min(self.room - self.taken.len());
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
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
        let end = write_all(&mut writer, START, &chunks()).unwrap();
        assert_eq!(end, Some(START + 9));
        assert_eq!(writer.taken, b"abcdefghi");
    }

    #[test]
    fn a_write_that_takes_nothing_is_an_error() {
        let mut writer = Grudging {
            room: 4,
            ..Grudging::default()
        };
        let error = write_all(&mut writer, START, &chunks()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn after_a_failed_write_nothing_can_be_committed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(Layout::new(root.path()), None).unwrap());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"ab");
        let mut stage = Box::new(spool.stage(&digest).unwrap());
        stage.write_at(0, &[Bytes::from_static(b"a")]).unwrap();
        // A handle that can't write stands in for a disk that is full for a moment.
        let writer = std::mem::replace(&mut stage.writer, File::open(stage.part.path()).unwrap());
        stage.write_at(1, &[Bytes::from_static(b"b")]).unwrap_err();
        stage.writer = writer;

        let error = stage.write_at(1, &[Bytes::from_static(b"b")]).unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        let error = stage.commit().unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        assert!(!spool.layout().blob(&digest).exists());
        assert!(disk::list(&spool.layout().spool()).unwrap().is_empty());
    }
}
