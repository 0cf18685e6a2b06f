//! A staged write into a file: anywhere in it, in any order, until it is renamed into the store.
//!
//! What lies between the written parts is a hole, which takes no space and reads as zeros.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use super::checkpoint::{Checkpoint, Unusable};
use super::claims::Claims;
use super::layout::StageName;
use super::partials::StageFiles;
use super::spool::Spool;
use super::stage_locks::StageLock;
use super::trust::stamp;
use super::{Modified, Partial, Reader, Stage, StoreError, disk};

/// A blob that is being written.
#[derive(Debug)]
pub(super) struct FileStage {
    spool: Arc<Spool>,
    upstream: Arc<str>,
    files: StageFiles,
    writer: File,
    reader: Reader,
    /// The end of the file, in bytes.
    length: u64,
    claims: Claims,
    /// Whether there is a checkpoint.
    checkpointed: bool,
    state: FileStageState,
    /// Released after the files are gone or left.
    _lock: StageLock<StageName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileStageState {
    /// The file has what was written.
    Whole,
    /// A write or a sync failed.
    Broken,
    /// The file has its final name.
    Placed,
    /// File and checkpoint stay, to be resumed.
    Left,
}

impl FileStage {
    /// Starts with an empty file, in place of a partial.
    pub(super) fn create(
        spool: &Arc<Spool>,
        lock: StageLock<StageName>,
        upstream: Arc<str>,
    ) -> Result<Self, StoreError> {
        let files = StageFiles::new(spool.layout(), *lock.key());
        files.remove()?;
        let error = |source| StoreError::io("create", files.staged(), source);
        let mut options = File::options();
        let writer = spool
            .modes()
            .open(options.write(true).create_new(true), files.staged())
            .map_err(error)?;
        let reader = File::open(files.staged()).map_err(error);
        let reader = reader.inspect_err(|_| files.discard())?;
        Ok(Self {
            spool: Arc::clone(spool),
            upstream,
            reader: Reader::of_file(reader, files.staged()),
            files,
            writer,
            length: 0,
            claims: Claims::default(),
            checkpointed: false,
            state: FileStageState::Whole,
            _lock: lock,
        })
    }

    /// Resumes the partial of this name: reads all that its checkpoint claims, and drops claims that
    /// don't match their checksums. None when there is no partial; one that can't be resumed is
    /// removed. On an error it stays.
    pub(super) fn resume(
        spool: &Arc<Spool>,
        lock: StageLock<StageName>,
        upstream: Arc<str>,
    ) -> Result<Option<(Self, Partial)>, StoreError> {
        let files = StageFiles::new(spool.layout(), *lock.key());
        let opened = match Opened::verified(spool, &files, &upstream) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(Unusable::Store(error)) => return Err(error),
            Err(unusable) => {
                files.discard_unusable(&unusable);
                return Ok(None);
            }
        };
        let partial = Partial {
            upstream: Arc::clone(&upstream),
            total: opened.total,
            ranges: opened.claims.ranges(),
        };
        let stage = Self {
            spool: Arc::clone(spool),
            upstream,
            files,
            writer: opened.writer,
            reader: opened.reader,
            length: opened.length,
            claims: opened.claims,
            checkpointed: true,
            state: FileStageState::Whole,
            _lock: lock,
        };
        Ok(Some((stage, partial)))
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        if self.state == FileStageState::Broken {
            let path = self.files.staged().to_owned();
            return Err(StoreError::Incomplete { path });
        }
        Ok(())
    }

    /// Any later sync could succeed without the bytes of a failed one, so nothing can be committed
    /// after it.
    fn sync(&mut self) -> Result<(), StoreError> {
        self.writer.sync_data().map_err(|source| {
            self.state = FileStageState::Broken;
            StoreError::io("sync", self.files.staged(), source)
        })
    }
}

/// The open file of a partial.
struct Opened {
    writer: File,
    reader: Reader,
    length: u64,
    total: u64,
    /// Those that match their checksums.
    claims: Claims,
}

impl Opened {
    fn verified(
        spool: &Spool,
        files: &StageFiles,
        upstream: &str,
    ) -> Result<Option<Self>, Unusable> {
        let Some((checkpoint, mut claims, _)) = files.read(spool.boot())? else {
            return Ok(None);
        };
        let Checkpoint { total, digest, .. } = checkpoint;
        if checkpoint.upstream != *upstream {
            return Err(Unusable::Other {
                digest: digest.into(),
                upstream: checkpoint.upstream,
            });
        }
        let error = |source| StoreError::io("open", files.staged(), source);
        let mut options = File::options();
        let writer = disk::found(options.write(true).open(files.staged())).map_err(error)?;
        let writer = writer.ok_or(Unusable::Missing)?;
        let length = writer.metadata().map_err(error)?.len();
        if length > total {
            return Err(Unusable::Length { length, total });
        }
        let reader = File::open(files.staged()).map_err(error)?;
        let reader = Reader::of_file(reader, files.staged());
        let claimed = claims.ranges().len();
        claims.verify(|offset, buffer| reader.fill_blocking(offset, buffer));
        let verified = claims.ranges().len();
        if verified == 0 {
            return Err(Unusable::Damaged);
        }
        if verified < claimed {
            let bytes = claimed - verified;
            tracing::warn!(%digest, bytes, "damaged bytes of a partial download are downloaded again");
        }
        Ok(Some(Self {
            writer,
            reader,
            length,
            total,
            claims,
        }))
    }
}

impl Stage for FileStage {
    fn content(&self) -> Reader {
        self.reader.clone()
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.check_whole()?;
        let end = write_all(&mut self.writer, offset, chunks).map_err(|source| {
            let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            self.claims.remove(offset, offset.saturating_add(bytes));
            self.state = FileStageState::Broken;
            StoreError::io("write", self.files.staged(), source)
        })?;
        if let Some(end) = end {
            self.length = self.length.max(end);
        }
        let mut at = offset;
        for chunk in chunks {
            self.claims.add(at, chunk);
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError> {
        let (digest, boot) = (self.files.digest(), self.spool.boot());
        let checkpoint = Checkpoint::new(digest, &self.upstream, total, boot, &self.claims);
        // Not synced at first: the process may have to end before the sync does.
        self.files.write(&self.spool, &checkpoint, false)?;
        self.checkpointed = true;
        if sync {
            self.sync()?;
            self.files.write(&self.spool, &checkpoint.synced(), true)?;
        }
        Ok(())
    }

    fn leave(mut self: Box<Self>) {
        if self.checkpointed {
            self.state = FileStageState::Left;
        }
    }

    fn commit(mut self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        self.check_whole()?;
        self.sync()?;
        let digest = self.files.digest();
        let target = self.spool.layout().blob(&digest);
        match disk::file_size(&target)? {
            Some(size) if size == self.length => {
                self.spool.remove_partials(&digest);
                return Ok(None);
            }
            Some(size) => tracing::warn!(
                %digest, size, expected = self.length,
                "a damaged blob in the store is replaced"
            ),
            None => {}
        }
        let created = disk::place(self.files.staged(), &target, self.spool.modes())?;
        // The start removes the checkpoint if the process is killed here.
        self.state = FileStageState::Placed;
        self.files.discard();
        self.spool.remove_partials(&digest);
        disk::sync_names(&target, &created);
        Ok(stamp(&self.writer).map(|(_, modified)| modified))
    }
}

impl Drop for FileStage {
    fn drop(&mut self) {
        match self.state {
            FileStageState::Whole | FileStageState::Broken => self.files.discard(),
            FileStageState::Placed | FileStageState::Left => {}
        }
    }
}

/// What writes at an offset: a file, or what stands in for one in tests.
trait WriteAt {
    /// One call to the system: some of the bytes, as with [`io::Write::write_vectored`].
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl WriteAt for File {
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, slices, offset)?)
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
    use crate::storage::stage_locks::StageLocks;

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
        let locks = StageLocks::default();
        let lock = locks.try_lock(&StageName::new(&digest, "u")).unwrap();
        let mut stage = Box::new(FileStage::create(&spool, lock, "u".into()).unwrap());
        stage.write_at(0, &[Bytes::from_static(b"a")]).unwrap();
        // A handle that can't write stands in for a disk that is full for a moment.
        let writer =
            std::mem::replace(&mut stage.writer, File::open(stage.files.staged()).unwrap());
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
