//! A staged write into a file: anywhere in it, in any order, until it is renamed into the store.
//!
//! What lies between the written parts is a hole, which takes no space and reads as zeros.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::pwritev;

use super::checkpoint::{Checkpoint, Unusable};
use super::claims::Claims;
use super::error::Context as _;
use super::partials::{self, StageFiles};
use super::{Modified, Partial, Reader, Stage, StoreError, disk};

/// A blob that is being written.
#[derive(Debug)]
pub(super) struct FileStage {
    upstream: Arc<str>,
    file: StagedFile,
    /// Whether there is a checkpoint.
    checkpointed: bool,
    state: FileStageState,
    /// Locked until they are gone or left.
    files: StageFiles,
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

/// The open file of a stage.
#[derive(Debug)]
struct StagedFile {
    writer: File,
    reader: Reader,
    /// The end of the file, in bytes.
    length: u64,
    /// The bytes that were written and, in a resumed stage, match their checksums.
    claims: Claims,
}

impl FileStage {
    /// Starts with an empty file, in place of a partial.
    pub(super) fn create(files: StageFiles, upstream: Arc<str>) -> Result<Self, StoreError> {
        let path = &files.staged;
        files.remove()?;
        let mut options = File::options();
        let options = options.write(true).create_new(true);
        let writer = files.spool.modes.open(options, path);
        let writer = writer.context("create", path)?;
        let reader = File::open(path).context("create", path);
        let reader = reader.inspect_err(|_| disk::discard(files.remove()))?;
        let file = StagedFile {
            writer,
            reader: Reader::of_file(reader, path),
            length: 0,
            claims: Claims::default(),
        };
        Ok(Self {
            upstream,
            file,
            checkpointed: false,
            state: FileStageState::Whole,
            files,
        })
    }

    /// Resumes the partial of this name: reads all that its checkpoint claims, and drops claims that
    /// don't match their checksums. None when there is no partial; one that can't be resumed is
    /// removed. On an error it stays, and so it does if the stage is dropped before it is
    /// [`taken`](Self::take).
    pub(super) fn resume(
        files: StageFiles,
        upstream: Arc<str>,
    ) -> Result<Option<(Self, Partial)>, StoreError> {
        let verified = files.usable(StagedFile::verified(&files, &upstream))?;
        Ok(verified.map(|(file, total)| {
            let partial = Partial {
                upstream: Arc::clone(&upstream),
                total,
                ranges: file.claims.ranges(),
            };
            let stage = Self {
                upstream,
                file,
                checkpointed: true,
                state: FileStageState::Left,
                files,
            };
            (stage, partial)
        }))
    }

    /// The caller has the resumed stage, and decides from here on whether the files stay.
    pub(super) fn take(mut self) -> Box<dyn Stage> {
        self.state = FileStageState::Whole;
        Box::new(self)
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        if self.state == FileStageState::Broken {
            let path = self.files.staged.clone();
            return Err(StoreError::Incomplete { path });
        }
        Ok(())
    }

    /// Any later sync could succeed without the bytes of a failed one, so nothing can be committed
    /// after it.
    fn sync(&mut self) -> Result<(), StoreError> {
        let synced = self.file.writer.sync_data();
        let synced = synced.context("sync", &self.files.staged);
        synced.inspect_err(|_| self.state = FileStageState::Broken)
    }
}

impl StagedFile {
    /// The file of a partial, and the size of the whole blob.
    fn verified(files: &StageFiles, upstream: &str) -> Result<Option<(Self, u64)>, Unusable> {
        let Some((checkpoint, mut claims, _)) = files.read()? else {
            return Ok(None);
        };
        let Checkpoint { total, digest, .. } = checkpoint;
        if checkpoint.upstream != *upstream {
            return Err(Unusable::other(&checkpoint));
        }
        let path = &files.staged;
        let writer = disk::found(File::options().write(true).open(path)).context("open", path)?;
        let writer = writer.ok_or_else(|| Unusable::damaged("a file of it is missing"))?;
        let length = writer.metadata().context("open", path)?.len();
        if length > total {
            let reason = format!("its file has {length} bytes, and the blob {total}");
            return Err(Unusable::damaged(reason));
        }
        let reader = Reader::of_file(File::open(path).context("open", path)?, path);
        let claimed = claims.ranges().len();
        claims.verify(|offset, buffer| reader.fill_blocking(offset, buffer));
        let verified = claims.ranges().len();
        if verified == 0 {
            let reason = "none of its bytes match their checksums";
            return Err(Unusable::damaged(reason));
        }
        if verified < claimed {
            let bytes = claimed - verified;
            tracing::warn!(%digest, bytes, "damaged bytes of a partial download are downloaded again");
        }
        let file = Self {
            writer,
            reader,
            length,
            claims,
        };
        Ok(Some((file, total)))
    }
}

impl Stage for FileStage {
    fn content(&self) -> Reader {
        self.file.reader.clone()
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.check_whole()?;
        let written = write_chunks(&self.file.writer, offset, chunks);
        let written = written.context("write", &self.files.staged);
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let end = offset.saturating_add(bytes);
        if written.is_err() {
            self.file.claims.remove(offset, end);
            self.state = FileStageState::Broken;
            return written;
        }
        if bytes > 0 {
            self.file.length = self.file.length.max(end);
        }
        let mut at = offset;
        for chunk in chunks {
            self.file.claims.add(at, chunk);
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError> {
        let (digest, boot) = (self.files.digest(), &self.files.spool.boot);
        let claims = &self.file.claims;
        let mut checkpoint = Checkpoint::new(digest, &self.upstream, total, boot, claims);
        // Not synced at first: the process may have to end before the sync does.
        self.files.write(&checkpoint, false)?;
        self.checkpointed = true;
        if sync {
            self.sync()?;
            checkpoint.synced = true;
            self.files.write(&checkpoint, true)?;
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
        let (spool, digest) = (&self.files.spool, self.files.digest());
        let target = spool.layout.blob(digest);
        match disk::file_size(&target)? {
            Some(size) if size == self.file.length => {
                partials::remove_all(spool, digest);
                return Ok(None);
            }
            Some(size) => tracing::warn!(
                %digest, size, expected = self.file.length,
                "a damaged blob in the store is replaced"
            ),
            None => {}
        }
        let created = disk::place(&self.files.staged, &target, &spool.modes)?;
        // The start removes the checkpoint if the process is killed here.
        self.state = FileStageState::Placed;
        disk::discard(self.files.remove());
        partials::remove_all(spool, digest);
        disk::sync_names(&target, &created);
        let written = self.file.writer.metadata().ok();
        Ok(written.as_ref().and_then(Modified::of))
    }
}

impl Drop for FileStage {
    fn drop(&mut self) {
        match self.state {
            FileStageState::Whole | FileStageState::Broken => disk::discard(self.files.remove()),
            FileStageState::Placed | FileStageState::Left => {}
        }
    }
}

/// Writes the chunks into a file, one after the other, from an offset on.
pub(super) fn write_chunks(file: &File, offset: u64, chunks: &[Bytes]) -> io::Result<()> {
    let write = |offset, slices: &[IoSlice<'_>]| Ok(pwritev(file, slices, offset)?);
    write_all(write, offset, chunks)
}

/// Writes all chunks, one after the other, with as few calls as the system allows. `write` is one
/// call: it takes some of the bytes, as [`io::Write::write_vectored`] does, at an offset.
fn write_all(
    mut write: impl FnMut(u64, &[IoSlice<'_>]) -> io::Result<usize>,
    mut offset: u64,
    chunks: &[Bytes],
) -> io::Result<()> {
    let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    // Drops empty chunks at the front, so that a write of 0 bytes can only mean trouble.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match write(offset, rest) {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::storage::Layout;
    use crate::storage::layout::StageName;
    use crate::storage::spool::Spool;

    const START: u64 = 1000;

    /// Takes three bytes at a time, is interrupted before each, and has room for `room`.
    #[derive(Default)]
    struct Grudging {
        taken: Vec<u8>,
        room: usize,
        asked: usize,
    }

    impl Grudging {
        fn write(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
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
        write_all(|at, slices| writer.write(at, slices), START, &chunks()).unwrap();
        assert_eq!(writer.taken, b"abcdefghi");
    }

    #[test]
    fn a_write_that_takes_nothing_is_an_error() {
        let mut writer = Grudging {
            room: 4,
            ..Grudging::default()
        };
        let error = write_all(|at, slices| writer.write(at, slices), START, &chunks());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn after_a_failed_write_nothing_can_be_committed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(Layout::new(root.path()), None).unwrap());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"ab");
        let files = StageFiles::try_lock(&spool, StageName::new(&digest, "u")).unwrap();
        let mut stage = Box::new(FileStage::create(files, "u".into()).unwrap());
        stage.write_at(0, &[Bytes::from_static(b"a")]).unwrap();
        // A handle that can't write stands in for a disk that is full for a moment.
        let unwritable = File::open(&stage.files.staged).unwrap();
        let writer = std::mem::replace(&mut stage.file.writer, unwritable);
        stage.write_at(1, &[Bytes::from_static(b"b")]).unwrap_err();
        stage.file.writer = writer;

        let error = stage.write_at(1, &[Bytes::from_static(b"b")]).unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        let error = stage.commit().unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
        assert!(!spool.layout.blob(&digest).exists());
        assert!(disk::list(&spool.layout.spool()).unwrap().is_empty());
    }
}
