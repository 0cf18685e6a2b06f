//! The permissions of what the store creates.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::Path;

use super::layout::Layout;

/// Readable for the owner and the group, writable for the owner.
const DEFAULT_FILE: u32 = 0o640;

/// The permissions, and where needed the owner, of the files and directories of one store.
///
/// A directory that has data already keeps its own, even if another program wrote it: the reference
/// registry goes on reading and writing there when it is switched back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    file: u32,
    directory: u32,
    /// Whatever the umask of this process is.
    exact: bool,
    /// User and group that everything belongs to, where this process may give files away.
    owner: Option<(u32, u32)>,
}

impl Modes {
    /// `file` is what the operator wants for files; none is what the directory has, else the default
    /// less the umask.
    pub fn of(layout: &Layout, file: Option<u32>) -> Self {
        let seen = Self::seen(&layout.registry());
        let (exact, owner) = (file.is_some(), seen.and_then(|seen| seen.owner));
        let file = file.unwrap_or(DEFAULT_FILE);
        seen.filter(|_| !exact).unwrap_or(Self {
            file,
            directory: searchable(file),
            exact,
            owner,
        })
    }

    /// Those of an existing store's own files.
    pub fn beside(layout: &Layout) -> Self {
        Self::seen(&layout.own()).unwrap_or_else(|| Self::of(layout, None))
    }

    /// Those of a directory, for its files, and of its owner.
    fn seen(directory: &Path) -> Option<Self> {
        let seen = fs::metadata(directory).ok()?;
        Some(Self {
            file: as_file(seen.mode()),
            directory: as_directory(seen.mode()),
            exact: true,
            owner: Some((seen.uid(), seen.gid())),
        })
    }

    /// Creates a file, or opens it when the options say so.
    pub fn open(&self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let file = options.mode(self.file).open(path)?;
        self.settle(&file, self.file)?;
        Ok(file)
    }

    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(self.directory).create(path)?;
        self.settle_dir(path)
    }

    /// Gives an existing directory its owner and its permissions.
    pub(super) fn settle_dir(&self, path: &Path) -> io::Result<()> {
        given(File::open(path).and_then(|directory| self.settle(&directory, self.directory)))
    }

    fn settle(&self, file: &File, mode: u32) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            given(fchown(file, Some(user), Some(group)))?;
        }
        if self.exact {
            given(file.set_permissions(fs::Permissions::from_mode(mode)))?;
        }
        Ok(())
    }

    /// Opens the lock file, which only its owner may open.
    pub(super) fn open_lock(path: &Path) -> io::Result<File> {
        let mut options = File::options();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        given(lock.set_permissions(fs::Permissions::from_mode(0o600)))?;
        Ok(lock)
    }
}

/// The mode of directories beside files of this mode: searchable by all that may read the files.
const fn searchable(file: u32) -> u32 {
    file | ((file & 0o444) >> 2)
}

/// The mode of files in a directory of this mode.
const fn as_file(directory: u32) -> u32 {
    (directory & 0o666) | 0o600
}

const fn as_directory(mode: u32) -> u32 {
    (mode & 0o7777) | 0o700
}

/// Another user's file keeps its owner and mode: it only has to be usable.
fn given(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}
