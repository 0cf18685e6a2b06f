//! Errors of the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;

/// What went wrong in the store. A thing that isn't there is no error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store couldn't {operation} {}", path.display())]
    Io {
        /// A verb in the infinitive.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the store directory {} can't be used: {} can't be written; check that the directory \
         exists on a writable file system and belongs to the user that runs millpond",
        root.display(), path.display()
    )]
    NotWritable {
        root: PathBuf,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the store directory {} is in use by {}; each millpond needs its own: stop that process, wait \
         until it ends where it is `millpond scrub` or `millpond purge`, or name another directory",
        root.display(),
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        root: PathBuf,
        /// Its process id, where the lock file tells it.
        holder: Option<u32>,
    },
    #[error("the data directory {} doesn't exist; a server makes it when it starts", root.display())]
    Missing { root: PathBuf },
    #[error("the staged file {} lacks data because an earlier write failed", path.display())]
    Incomplete { path: PathBuf },
    #[error("{digest} has {size} bytes, more than the {max} that are read at once")]
    TooLarge { digest: Digest, size: u64, max: u64 },
    #[error("{digest} ends at byte {end} of {size}")]
    Truncated { digest: Digest, end: u64, size: u64 },
    #[error("a blocking step of the store was lost")]
    Lost { source: tokio::task::JoinError },
}

impl StoreError {
    /// What the operating system said, where it said something.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::NotWritable { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// No space or no quota is left (ENOSPC, EDQUOT): deleting something would help.
    pub fn is_full(&self) -> bool {
        matches!(
            self.kind(),
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }

    /// The file can't be read, and trying again won't help: its medium or its file system is
    /// damaged. Errors that may pass (no descriptors, no memory, no permission) aren't meant.
    pub fn is_damage(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        let code = source.raw_os_error();
        code.is_some_and(|code| DAMAGE.contains(&code)) || source.kind() == io::ErrorKind::Other
    }

    /// The file system is mounted, or has turned, read-only (EROFS): reads go on, writes can't.
    pub fn is_read_only(&self) -> bool {
        self.kind() == Some(io::ErrorKind::ReadOnlyFilesystem)
    }

    pub(super) fn not_writable(root: &Path, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let (root, path) = (root.to_owned(), path.to_owned());
        |source| Self::NotWritable { root, path, source }
    }
}

/// Makes an error of the operating system one of the store.
pub(super) trait Context<T> {
    /// `operation` is a verb in the infinitive.
    fn context(self, operation: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, operation: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io {
            operation,
            path: path.to_owned(),
            source,
        })
    }
}

/// Codes of the operating system for a damaged medium or file system: EIO, ENXIO, ELOOP and EBADMSG,
/// and on Linux EUCLEAN and EREMOTEIO.
const DAMAGE: &[i32] = &[
    rustix::io::Errno::IO.raw_os_error(),
    rustix::io::Errno::NXIO.raw_os_error(),
    rustix::io::Errno::LOOP.raw_os_error(),
    rustix::io::Errno::BADMSG.raw_os_error(),
    #[cfg(target_os = "linux")]
    rustix::io::Errno::UCLEAN.raw_os_error(),
    #[cfg(target_os = "linux")]
    rustix::io::Errno::REMOTEIO.raw_os_error(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_full_disk_from_a_read_only_one() {
        let failed = |kind: io::ErrorKind| io::Result::<()>::Err(kind.into());
        let error = |kind| failed(kind).context("write", Path::new("/x")).unwrap_err();
        for (kind, full, read_only) in [
            (io::ErrorKind::StorageFull, true, false),
            (io::ErrorKind::QuotaExceeded, true, false),
            (io::ErrorKind::ReadOnlyFilesystem, false, true),
            (io::ErrorKind::PermissionDenied, false, false),
        ] {
            assert_eq!(error(kind).is_full(), full, "{kind}");
            assert_eq!(error(kind).is_read_only(), read_only, "{kind}");
        }
        assert_eq!(
            error(io::ErrorKind::StorageFull).to_string(),
            "the store couldn't write /x"
        );
    }
}
