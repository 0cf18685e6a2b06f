//! One long file in parts.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{BundleError, Extent};
use crate::oci::{Algorithm, Hasher};

/// The most parts.
const MAX_PARTS: usize = 999;

/// `FILE.001`
fn part(file: &Path, number: usize) -> PathBuf {
    appended(file, &format!(".{number:03}"))
}

fn appended(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Writes a file, in parts of at most so many bytes where that is wanted. Nothing has its name before all is
/// written; dropping this before that removes it.
#[derive(Debug)]
pub(super) struct PartsWriter {
    file: PathBuf,
    max: Option<u64>,
    /// The part that is being written.
    draft: Option<(File, Hasher, u64)>,
    /// Of the parts that are complete.
    sums: Vec<String>,
    /// The first one, so that it stays locked.
    first: Option<File>,
}

impl PartsWriter {
    /// `max`: bytes of a part; at least one. Fails where a reader would take something else for the bundle.
    pub(super) fn create(file: &Path, max: Option<u64>) -> Result<Self, BundleError> {
        let (other, what) = match max {
            Some(_) => (file.to_owned(), "another bundle"),
            None => (part(file, 1), "a part of another bundle"),
        };
        if other.exists() {
            return Err(BundleError::InTheWay { path: other, what });
        }
        let mut writer = Self {
            file: file.to_owned(),
            max,
            draft: None,
            sums: Vec::new(),
            first: None,
        };
        let path = writer.draft_path(1);
        writer.open().map_err(|source| BundleError::Io {
            operation: "created",
            path,
            source,
        })?;
        Ok(writer)
    }

    /// The path of a part that isn't complete; `number` counts from 1.
    fn draft_path(&self, number: usize) -> PathBuf {
        appended(&self.path(number), ".new")
    }

    fn path(&self, number: usize) -> PathBuf {
        match self.max {
            Some(_) => part(&self.file, number),
            None => self.file.clone(),
        }
    }

    fn open(&mut self) -> io::Result<()> {
        let number = self.sums.len() + 1;
        if number > MAX_PARTS {
            let text = format!("more than {MAX_PARTS} parts would be needed");
            return Err(io::Error::other(text));
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let file = options.open(self.draft_path(number))?;
        // Of two that write one file, each would give the other's part a name.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(io::Error::other("another process is writing it"));
        }
        file.set_len(0)?;
        self.draft = Some((file, Hasher::new(Algorithm::Sha256), 0));
        Ok(())
    }

    /// Ends the current part.
    fn close(&mut self) -> io::Result<()> {
        if let Some((file, hasher, _)) = self.draft.take() {
            file.sync_all()?;
            self.first.get_or_insert(file);
            self.sums.push(hasher.finish().hex());
        }
        Ok(())
    }

    /// Gives the parts their names, and writes their sums. Returns the parts.
    pub(super) fn finish(mut self) -> Result<Vec<PathBuf>, BundleError> {
        let finished = self.try_finish();
        finished.map_err(|source| BundleError::Io {
            operation: "written",
            path: self.file.clone(),
            source,
        })
    }

    fn try_finish(&mut self) -> io::Result<Vec<PathBuf>> {
        self.close()?;
        let (mut paths, mut lines) = (Vec::new(), Vec::new());
        for (index, sum) in self.sums.iter().enumerate() {
            let path = self.path(index + 1);
            fs::rename(self.draft_path(index + 1), &path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            lines.push(format!("{sum}  {name}\n"));
            paths.push(path);
        }
        fs::write(appended(&self.file, ".sha256"), lines.concat())?;
        if self.max.is_some() {
            self.remove_parts_after(paths.len())?;
        }
        self.sums.clear();
        Ok(paths)
    }
}

impl PartsWriter {
    /// Removes the parts of an earlier bundle that had more of them.
    fn remove_parts_after(&self, count: usize) -> io::Result<()> {
        let further = (count + 1..=MAX_PARTS).map(|number| self.path(number));
        further
            .take_while(|path| path.exists())
            .try_for_each(fs::remove_file)
    }
}

impl Write for PartsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_full = |draft: &(File, Hasher, u64)| self.max.is_some_and(|max| draft.2 >= max);
        if self.draft.as_ref().is_none_or(is_full) {
            self.close()?;
            self.open()?;
        }
        let Some((file, hasher, length)) = &mut self.draft else {
            return Ok(0);
        };
        let room = self.max.map_or(u64::MAX, |max| max - *length);
        let take = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let written = file.write(bytes.get(..take).unwrap_or_default())?;
        hasher.update(bytes.get(..written).unwrap_or_default());
        *length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PartsWriter {
    fn drop(&mut self) {
        let parts = self.sums.len() + usize::from(self.draft.is_some());
        for number in 1..=parts {
            // What can't be removed is named so that nobody takes it for a bundle.
            drop(fs::remove_file(self.draft_path(number)));
        }
    }
}

/// Reads a file, or all its parts as one.
#[derive(Debug)]
pub(super) struct PartsReader {
    /// Each with where it begins and ends, in bytes.
    parts: Vec<(Arc<File>, u64, u64)>,
    at: u64,
}

impl PartsReader {
    /// Opens `FILE`, or all of `FILE.001`, `FILE.002`, ...; `FILE.001` may be named, too.
    pub(super) fn open(file: &Path) -> Result<Self, BundleError> {
        let failed = |path: &Path, source| BundleError::Io {
            operation: "read",
            path: path.to_owned(),
            source,
        };
        let first_of = |file: &Path| part(file, 1);
        let base = match file.extension() {
            Some(ending) if ending == "001" => file.with_extension(""),
            _ => file.to_owned(),
        };
        let paths = if file == base && file.exists() || !first_of(&base).exists() {
            vec![file.to_owned()]
        } else {
            let numbers = (1..=MAX_PARTS).map(|number| part(&base, number));
            numbers.take_while(|path| path.exists()).collect()
        };
        let (mut parts, mut end) = (Vec::new(), 0);
        for path in paths {
            let file = File::open(&path).map_err(|source| failed(&path, source))?;
            let length = file
                .metadata()
                .map_err(|source| failed(&path, source))?
                .len();
            parts.push((Arc::new(file), end, end + length));
            end += length;
        }
        Ok(Self { parts, at: 0 })
    }

    /// Bytes of all parts.
    pub(super) fn len(&self) -> u64 {
        self.parts.last().map_or(0, |(.., end)| *end)
    }

    /// Where so many bytes from an offset on are.
    pub(super) fn extents(&self, offset: u64, size: u64) -> Vec<Extent> {
        let of_part = |(file, start, end): &(Arc<File>, u64, u64)| {
            let (from, to) = (offset.max(*start), (offset + size).min(*end));
            (from < to).then(|| Extent {
                file: Arc::clone(file),
                offset: from - start,
                length: to - from,
            })
        };
        self.parts.iter().filter_map(of_part).collect()
    }

    /// Reads bytes at an offset. 0 is the end.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.parts.iter().find(|(.., end)| offset < *end);
        let Some((file, start, end)) = part else {
            return Ok(0);
        };
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let take = buffer.len().min(left);
        file.read_at(buffer.get_mut(..take).unwrap_or_default(), offset - start)
    }
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.read_at(self.at, buffer)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for PartsReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
