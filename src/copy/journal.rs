//! Remembers the uploads that have begun, so that a later run resumes them: also after kill -9.
//!
//! A small file for each upload, in a directory of the user, says where the registry continues it. How much
//! the registry has is asked there and not remembered. A file is locked as long as its upload runs, so that
//! no two runs continue the same one. Nothing of it is needed: without a directory, a later run begins anew.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::oci::{Algorithm, Digest, RepoName};

/// Uploads that are older than this are forgotten: registries drop them after a week at most.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// The longest URL that is remembered, in bytes.
const MAX_LOCATION: u64 = 16 * 1024;

/// A directory with the uploads that have begun.
#[derive(Debug, Clone)]
pub struct Journal {
    /// None: nothing is remembered.
    directory: Option<PathBuf>,
}

/// The record of one upload, locked.
#[derive(Debug)]
pub(super) struct Record(Option<(PathBuf, File)>);

impl Journal {
    /// Uses a directory, which is created; records in it that are too old are removed. Blocks.
    pub fn open(directory: &Path, now: SystemTime) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let changed = entry.metadata().and_then(|entry| entry.modified());
            let is_old = |changed| now.duration_since(changed).is_ok_and(|age| age > MAX_AGE);
            if is_record(&entry.file_name()) && changed.is_ok_and(is_old) {
                // Another run may have removed it.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(Self {
            directory: Some(directory.to_owned()),
        })
    }

    /// Remembers nothing.
    pub fn none() -> Self {
        Self { directory: None }
    }

    /// The record of an upload of a blob to a registry. Where another process has it, or the directory fails,
    /// nothing is remembered. Blocks shortly.
    pub(super) fn record(&self, registry: &str, repo: &RepoName, digest: &Digest) -> Record {
        let Some(directory) = &self.directory else {
            return Record(None);
        };
        let key = format!("{registry}\n{repo}\n{digest}");
        let name = Digest::of(Algorithm::Sha256, key.as_bytes()).hex();
        let path = directory.join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        // In a directory that others can write to, a link could lead to any file of the user's.
        let no_follow = OFlags::NOFOLLOW.bits().try_into().unwrap_or_default();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, no_follow);
        let file = options.open(&path).ok();
        let locked =
            file.filter(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
        Record(locked.map(|file| (path, file)))
    }
}

/// Whether a file of this name is a record: the directory may have files of others.
fn is_record(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    Digest::from_parts(Algorithm::Sha256, name).is_ok()
}

impl Record {
    /// Where the registry continues the upload.
    pub(super) fn location(&mut self) -> Option<String> {
        let (_, file) = self.0.as_mut()?;
        let mut text = String::new();
        file.rewind().ok()?;
        io::Read::by_ref(file)
            .take(MAX_LOCATION)
            .read_to_string(&mut text)
            .ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// The registry continues the upload here from now on; None forgets it.
    pub(super) fn set(&mut self, location: Option<&str>) {
        let Some((_, file)) = &mut self.0 else {
            return;
        };
        let text = location.filter(|text| (text.len() as u64) < MAX_LOCATION);
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.unwrap_or_default().as_bytes()));
        // A torn record costs an upload that begins anew.
        drop(written);
    }

    /// The upload has ended.
    pub(super) fn end(self) {
        if let Some((path, _)) = self.0 {
            // What is left is removed when it is old.
            drop(fs::remove_file(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_remembered_until_it_ends_and_belongs_to_one_run() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let journal = Journal::open(&directory.path().join("new/uploads"), now).unwrap();
        let repo: RepoName = "a/b".parse().unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"");
        let record = || journal.record("host:1", &repo, &digest);
        let mut first = record();
        assert_eq!(first.location(), None);
        first.set(Some("http://host:1/upload?state=long-and-secret"));
        first.set(Some("http://host:1/upload?state=2"));
        assert_eq!(record().location(), None, "it is locked");
        drop(first);
        let mut again = record();
        assert_eq!(
            again.location().as_deref(),
            Some("http://host:1/upload?state=2")
        );
        let mut other = journal.record("host:2", &repo, &digest);
        assert_eq!(other.location(), None);
        again.end();
        assert_eq!(record().location(), None);
    }

    #[test]
    fn old_records_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a".repeat(64));
        fs::write(&path, "x").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        Journal::open(directory.path(), written + MAX_AGE).unwrap();
        assert!(path.exists());
        Journal::open(directory.path(), written + MAX_AGE + Duration::from_secs(1)).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn files_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (file, below) = (
            directory.path().join("thesis.tex"),
            directory.path().join("b"),
        );
        fs::write(&file, "x").unwrap();
        fs::create_dir(&below).unwrap();
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        Journal::open(directory.path(), written + 2 * MAX_AGE).unwrap();
        assert!(file.exists() && below.exists());
    }

    #[test]
    fn no_link_leads_to_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), SystemTime::UNIX_EPOCH).unwrap();
        let (repo, digest) = ("a/b".parse().unwrap(), Digest::of(Algorithm::Sha256, b""));
        let mut record = journal.record("host:1", &repo, &digest);
        record.set(Some("x"));
        let path = fs::read_dir(directory.path()).unwrap().next().unwrap();
        let path = path.unwrap().path();
        record.end();
        let precious = tempfile::NamedTempFile::new().unwrap();
        fs::write(precious.path(), "precious").unwrap();
        std::os::unix::fs::symlink(precious.path(), path).unwrap();
        let mut record = journal.record("host:1", &repo, &digest);
        record.set(Some("x"));
        assert_eq!(fs::read_to_string(precious.path()).unwrap(), "precious");
    }
}
