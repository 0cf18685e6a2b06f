//! The permissions of what the store creates.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::layout::Layout;

/// Readable for the owner and the group, writable for the owner.
const DEFAULT_FILE: u32 = 0o640;

/// The permissions, and where needed the owner, of the files and directories of one store.
///
/// A directory that has data already keeps its own, whoever wrote it: the reference registry goes on
/// reading and writing there when it is switched back to.
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
        use std::os::unix::fs::MetadataExt as _;
        let seen = fs::metadata(layout.registry()).ok();
        let owner = seen.as_ref().map(|seen| (seen.uid(), seen.gid()));
        let (file, directory, exact) = match (file, seen) {
            (Some(file), _) => (file, searchable(file), true),
            (None, Some(seen)) => (as_file(seen.mode()), as_directory(seen.mode()), true),
            (None, None) => (DEFAULT_FILE, searchable(DEFAULT_FILE), false),
        };
        Self {
            file,
            directory,
            exact,
            owner,
        }
    }

    /// Those of a store that is there, which its own files have.
    pub fn beside(layout: &Layout) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let own = layout.lock();
        let seen = own.parent().and_then(|own| fs::metadata(own).ok());
        seen.map_or_else(
            || Self::of(layout, None),
            |seen| Self {
                file: as_file(seen.mode()),
                directory: as_directory(seen.mode()),
                exact: true,
                owner: Some((seen.uid(), seen.gid())),
            },
        )
    }

    /// Creates a file, or opens it when the options say so.
    pub fn open(&self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
        let file = options.mode(self.file).open(path)?;
        if let Some((user, group)) = self.owner {
            given(fchown(&file, Some(user), Some(group)))?;
        }
        if self.exact {
            given(file.set_permissions(fs::Permissions::from_mode(self.file)))?;
        }
        Ok(file)
    }

    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().mode(self.directory).create(path)?;
        self.settle_dir(path)
    }

    /// Gives a directory that is there its owner and its permissions.
    pub(super) fn settle_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        if let Some((user, group)) = self.owner {
            given(chown(path, Some(user), Some(group)))?;
        }
        if self.exact {
            given(fs::set_permissions(
                path,
                fs::Permissions::from_mode(self.directory),
            ))?;
        }
        Ok(())
    }

    /// Opens the lock file, which nobody but the owner may open.
    pub(super) fn open_lock(path: &Path) -> io::Result<File> {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
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

/// The mode of directories beside files of this mode: whoever may read them may look for them.
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

/// Somebody else's file stays as it is: what matters is that it can be used.
fn given(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}
