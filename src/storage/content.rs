//! Reading: committed blobs and growing stages alike.

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::error::Context as _;
use super::memory::file::MemoryFile;
use super::{StoreError, blocking};
use crate::error_chain::on_one_line;
use crate::metrics::Histogram;

/// The most that one read returns, in bytes, whatever the caller asks for.
pub const MAX_READ: usize = 1024 * 1024;
/// Distance, in bytes, between the bytes by which a range is probed for being cached: what the kernel
/// reads ahead comes, and goes, in runs about as long.
const PROBE_STRIDE: usize = 256 * 1024;

/// A committed blob, open for reading.
#[derive(Debug, Clone)]
pub struct Content {
    /// In bytes.
    pub size: u64,
    /// When the file was opened.
    pub modified: Modified,
    pub reader: Reader,
}

impl Content {
    /// Whether both are the same file in the same state.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
            && self.reader.is_same(&other.reader)
    }

    /// Whether the open file still has the size and the modification time that it was opened with.
    pub fn is_unchanged(&self) -> bool {
        let file = self.reader.file();
        file.is_none_or(|file| file.metadata().is_ok_and(|now| self.is_as(&now)))
    }

    pub(super) fn is_as(&self, now: &Metadata) -> bool {
        now.len() == self.size && Modified::of(now) == Some(self.modified)
    }
}

/// When a file was modified last, in units of 1/65,536 s since the Unix epoch, as 48 bits. Stores
/// that aren't file systems use any number that differs between two contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Modified(u64);

impl Modified {
    /// Keeps the low 48 bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & 0xffff_ffff_ffff)
    }

    pub const fn to_bits(self) -> u64 {
        self.0
    }

    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        metadata.modified().ok().map(Self::at)
    }

    fn at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let fraction = (u64::from(since.subsec_nanos()) << 16) / 1_000_000_000;
        Self::from_bits(since.as_secs() << 16 | fraction)
    }
}

/// Some bytes of a blob, which is being read from an offset on.
#[derive(Debug, Clone)]
pub enum Piece {
    /// They are in memory.
    Bytes(Bytes),
    /// The reader has them: from `start` up to, not including, `end`.
    File {
        reader: Reader,
        start: u64,
        end: u64,
    },
}

/// Reads content at any offset. Clones share one open file.
#[derive(Debug, Clone)]
pub struct Reader(Source);

#[derive(Debug, Clone)]
enum Source {
    File(Arc<OpenFile>),
    Memory(Arc<MemoryFile>),
    Gated(Arc<Gated>),
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// The name it was opened by, for errors: it may have another one by now, or none.
    path: PathBuf,
    /// [`VERIFIED`], [`SUSPECT`], or 0: nothing is known.
    trust: AtomicU8,
    /// Measures reads that wait for the disk.
    reads: Option<Histogram>,
}

/// State of open content, shared by its readers: it was found to have its digest.
const VERIFIED: u8 = 1;
/// Reading or sending it has failed since.
const SUSPECT: u8 = 2;

/// Another reader, whose reads a gate may fail or shorten.
#[derive(Debug)]
struct Gated {
    inner: Reader,
    gate: Arc<dyn ReadGate>,
}

/// Fails or shortens reads: the hook by which tests inject faults.
#[async_trait::async_trait]
pub trait ReadGate: Debug + Send + Sync {
    /// The most bytes that the read may return, or its error.
    async fn pass(&self) -> Result<usize, StoreError>;

    /// The same, on the blocking pool.
    fn pass_blocking(&self) -> Result<usize, StoreError>;
}

impl Reader {
    /// `path` is for errors.
    pub(super) fn of_file(file: File, path: &Path) -> Self {
        Self::measured(file, path, None)
    }

    /// The same. `reads` measures the reads that wait for the disk.
    pub(super) fn measured(file: File, path: &Path, reads: Option<Histogram>) -> Self {
        Self(Source::File(Arc::new(OpenFile {
            file,
            path: path.to_owned(),
            trust: AtomicU8::default(),
            reads,
        })))
    }

    /// Wraps `inner` so that each read asks `gate` first. The result has no file to send from, so that
    /// every byte is read.
    pub fn gated(inner: Self, gate: Arc<dyn ReadGate>) -> Self {
        Self(Source::Gated(Arc::new(Gated { inner, gate })))
    }

    fn trust(&self) -> &AtomicU8 {
        match &self.0 {
            Source::File(open) => &open.trust,
            Source::Memory(file) => &file.trust,
            Source::Gated(gated) => gated.inner.trust(),
        }
    }

    /// Whether this content was found to have its digest, in the state in which it was opened.
    pub fn is_verified(&self) -> bool {
        self.trust().load(Ordering::Acquire) == VERIFIED
    }

    /// This content was found to have its digest.
    pub fn set_verified(&self) {
        self.trust().store(VERIFIED, Ordering::Release);
    }

    /// Reading or sending it has failed: it has to be verified again, whatever was known before.
    pub fn suspect(&self) {
        self.trust().store(SUSPECT, Ordering::Release);
    }

    pub fn is_suspect(&self) -> bool {
        self.trust().load(Ordering::Acquire) == SUSPECT
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::File(one), Source::File(other)) => same_file(&one.file, &other.file),
            (Source::Memory(one), Source::Memory(other)) => Arc::ptr_eq(one, other),
            (Source::Gated(one), Source::Gated(other)) => one.inner.is_same(&other.inner),
            _ => false,
        }
    }

    /// A file of this content that has no name.
    #[cfg(test)]
    pub(crate) fn of_temporary(content: &[u8]) -> Self {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Self::of_file(file, Path::new("temporary"))
    }

    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self::of_file(File::open(path).unwrap(), path)
    }

    pub(super) fn of_memory(file: Arc<MemoryFile>) -> Self {
        Self(Source::Memory(file))
    }

    /// The open file, to send from it without reading it. None for content in memory.
    pub fn file(&self) -> Option<&File> {
        match &self.0 {
            Source::File(open) => Some(&open.file),
            Source::Memory(_) | Source::Gated(_) => None,
        }
    }

    /// Fills `buffer` from `offset` on. False when it can't be read or ends before that, which the log
    /// tells. Blocks.
    pub fn fill_blocking(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_blocking(offset + filled as u64, rest) {
                Ok(0) => return false,
                Ok(read) => filled += read,
                Err(error) => {
                    tracing::warn!(error = %on_one_line(&error), "what was written can't be read back");
                    return false;
                }
            }
        }
        true
    }

    /// Fills `buffer` from `offset` on as far as one read goes; 0 is the end of the content.
    /// Blocks.
    pub(crate) fn read_blocking(
        &self,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StoreError> {
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        match &self.0 {
            Source::Memory(file) => Ok(file.read_into(offset, buffer)),
            Source::File(open) => {
                read_waiting(&open.file, buffer, offset).context("read", &open.path)
            }
            Source::Gated(gated) => {
                let max = gated.gate.pass_blocking()?.min(buffer.len());
                let buffer = buffer.get_mut(..max).unwrap_or_default();
                gated.inner.read_blocking(offset, buffer)
            }
        }
    }

    /// How many bytes from `offset` on, `max` at most, the page cache has, as far as a few probes can
    /// tell: a file's range that short can be sent without waiting for a disk. 0 when the next bytes
    /// aren't there, and where the system or the file system can't say.
    pub fn cached(&self, offset: u64, max: usize) -> usize {
        let Some(file) = self.file() else { return 0 };
        let is_cached = |at: usize| {
            let at = offset.checked_add(at as u64);
            let at = at.filter(|at| i64::try_from(*at).is_ok());
            at.and_then(|at| read_cached(file, &mut [0], at)).is_some()
        };
        let mut cached = 0;
        if max > 0 && is_cached(0) {
            while cached < max {
                let next = cached.saturating_add(PROBE_STRIDE).min(max);
                if !is_cached(next - 1) {
                    break;
                }
                cached = next;
            }
        }
        cached
    }

    /// At most `max` bytes from `offset` on, and never more than [`MAX_READ`]. It may be fewer,
    /// without being the end. An empty result is the end of the content (or `max` is 0): before
    /// the size of a committed blob that means that the file was damaged, and it is the caller's
    /// task to fail. A buffer of `max` bytes is made, so ask for no more than is expected.
    pub async fn read_at(&self, offset: u64, max: usize) -> Result<Bytes, StoreError> {
        self.read_into(BytesMut::new(), offset, max).await
    }

    /// The same in this buffer, which is made larger where it is too small. Content that is in memory
    /// doesn't need it.
    pub async fn read_into(
        &self,
        mut buffer: BytesMut,
        offset: u64,
        max: usize,
    ) -> Result<Bytes, StoreError> {
        let max = max.min(MAX_READ);
        // No file is longer, and to preadv2 the greatest offset means "the cursor".
        if max == 0 || i64::try_from(offset).is_err() {
            return Ok(Bytes::new());
        }
        match &self.0 {
            Source::Memory(file) => Ok(file.read_at(offset, max)),
            Source::Gated(gated) => {
                let max = gated.gate.pass().await?.min(max);
                Box::pin(gated.inner.read_into(buffer, offset, max)).await
            }
            Source::File(open) => {
                if buffer.capacity() < max {
                    // Memory that the system has just cleared isn't cleared again.
                    buffer = BytesMut::zeroed(max);
                }
                buffer.resize(max, 0);
                if let Some(read) = read_cached(&open.file, &mut buffer, offset) {
                    buffer.truncate(read);
                    return Ok(buffer.freeze());
                }
                let (open, started) = (Arc::clone(open), Instant::now());
                let reads = open.reads.clone();
                let read = blocking(move || {
                    let read = read_waiting(&open.file, &mut buffer, offset);
                    let read = read.context("read", &open.path)?;
                    buffer.truncate(read);
                    Ok(buffer.freeze())
                });
                let read = read.await;
                if let Some(reads) = reads {
                    reads.observe(started.elapsed());
                }
                read
            }
        }
    }
}

fn same_file(one: &File, other: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |file: &File| file.metadata().map(|file| (file.dev(), file.ino())).ok();
    id(one).is_some_and(|one| id(other) == Some(one))
}

/// What the page cache has, without waiting for a disk and so without leaving this thread. `None`
/// when only a read that may wait can tell: nothing is cached, the end seems to be reached, the
/// file system doesn't know the flag, or there is an error for the other read to find.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    use rustix::io::{ReadWriteFlags, preadv2};

    let mut buffers = [io::IoSliceMut::new(buffer)];
    preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT)
        .ok()
        .filter(|read| *read > 0)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_file: &File, _buffer: &mut [u8], _offset: u64) -> Option<usize> {
    None
}

fn read_waiting(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match std::os::unix::fs::FileExt::read_at(file, buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_that_differ_by_a_tick_are_told_apart() {
        let at = |nanos| UNIX_EPOCH + Duration::new(1_795_839_197, nanos);
        assert_ne!(Modified::at(at(0)), Modified::at(at(20_000)));
        assert_eq!(Modified::at(at(0)).to_bits() >> 16, 1_795_839_197);
        let last = Modified::at(at(999_999_999)).to_bits();
        assert_eq!(last >> 16, 1_795_839_197);
        assert_eq!(Modified::from_bits(last), Modified::at(at(999_999_999)));
        assert_eq!(Modified::from_bits(u64::MAX).to_bits(), 0xffff_ffff_ffff);
    }

    fn file_of(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        std::fs::write(&path, content).unwrap();
        (directory, path)
    }

    #[test]
    fn both_ways_of_reading_agree() {
        let (_directory, path) = file_of(b"0123456789");
        let file = File::open(&path).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(read_waiting(&file, &mut buffer, 8).unwrap(), 2);
        assert_eq!(&buffer[..2], b"89");
        assert_eq!(read_waiting(&file, &mut buffer, 10).unwrap(), 0);
        // What was just written is cached, except where the platform or file system can't say.
        if let Some(read) = read_cached(&file, &mut buffer, 8) {
            assert_eq!(&buffer[..read], b"89");
        }
        assert_eq!(read_cached(&file, &mut buffer, 10), None);
    }

    #[tokio::test]
    async fn a_reader_has_its_file_and_reads_within_bounds() {
        let (_directory, path) = file_of(&vec![7; MAX_READ + 1]);
        let reader = Reader::of_file(File::open(&path).unwrap(), &path);
        let file = reader.file().unwrap();
        assert_eq!(file.metadata().unwrap().len(), MAX_READ as u64 + 1);
        assert!(Reader::of_memory(Arc::default()).file().is_none());
        assert!(reader.read_at(0, usize::MAX).await.unwrap().len() <= MAX_READ);
        assert_eq!(reader.read_at(MAX_READ as u64, 9).await.unwrap(), &[7][..]);
        for offset in [MAX_READ as u64 + 1, u64::MAX] {
            assert!(reader.read_at(offset, 9).await.unwrap().is_empty());
        }
    }

    #[test]
    fn cached_bytes_are_counted_up_to_the_first_that_are_missing() {
        let reader = Reader::of_temporary(&vec![7; 2 * PROBE_STRIDE + 9]);
        // Where the platform or file system can't say, nothing is.
        if reader.cached(0, 1) > 0 {
            assert_eq!(reader.cached(9, 2 * PROBE_STRIDE), 2 * PROBE_STRIDE);
            // The file ends within the third stride.
            assert_eq!(reader.cached(0, usize::MAX), 2 * PROBE_STRIDE);
        }
        assert_eq!(reader.cached(0, 0), 0);
        for offset in [2 * PROBE_STRIDE as u64 + 9, u64::MAX] {
            assert_eq!(reader.cached(offset, 1), 0);
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_read_error_names_the_file() {
        let (directory, _path) = file_of(b"");
        let reader = Reader::of_file(File::open(directory.path()).unwrap(), directory.path());
        let error = reader.read_at(0, 9).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&directory.path().display().to_string())
        );
        assert_eq!(error.kind(), Some(io::ErrorKind::IsADirectory));
    }
}
