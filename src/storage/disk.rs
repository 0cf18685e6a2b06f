//! The few things the store does to directories and small files, with the operation and the path
//! in every error. All of them block.

use std::fs::{self, File, FileType};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::modes::Modes;
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// How often a file is put in place when the directories made for it are pruned meanwhile.
const PLACE_ATTEMPTS: u32 = 4;

/// The longest link file that is read, in bytes: a digest has at most 135.
const MAX_LINK: u64 = 256;

/// Nothing there is an answer. A file where a directory would be means nothing is there either.
pub(super) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it; returns the ones that weren't there.
pub(super) fn create_dirs(directory: &Path, modes: &Modes) -> io::Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    let mut created = Vec::new();
    for ancestor in directory.ancestors() {
        match modes.create_dir(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            result => {
                created.extend(newly(result, ancestor)?);
                break;
            }
        }
    }
    for below in missing.into_iter().rev() {
        created.extend(newly(modes.create_dir(below), below)?);
    }
    Ok(created)
}

fn newly(created: io::Result<()>, directory: &Path) -> io::Result<Option<PathBuf>> {
    match created {
        Ok(()) => Ok(Some(directory.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renames a file to its final name, over whatever has that name, and makes the directories above
/// it. Returns the directories it made.
pub(super) fn place(from: &Path, to: &Path, modes: &Modes) -> Result<Vec<PathBuf>, StoreError> {
    let directory = to.parent().unwrap_or(to);
    let mut created = Vec::new();
    let mut attempt = 1;
    loop {
        let renamed = create_dirs(directory, modes).and_then(|new| {
            created.extend(new);
            fs::rename(from, to)
        });
        match renamed {
            Ok(()) => return Ok(created),
            // A removal next to this one pruned the directory between the two calls.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < PLACE_ATTEMPTS => {
                attempt += 1;
            }
            Err(error) => return Err(StoreError::io("put in place", to, error)),
        }
    }
}

/// Makes the name of a file durable: its directory, and the parents of the directories that were
/// made for it. The content is durable already, and a name that gets lost with the power only costs
/// another download, so trouble is logged and no error.
pub(super) fn sync_names(file: &Path, created: &[PathBuf]) {
    let parents = created.iter().map(PathBuf::as_path).chain([file]);
    for directory in parents.filter_map(Path::parent) {
        match sync_directory(directory) {
            Ok(()) => {}
            // Some network and user-space file systems have no such call.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) => {}
            Err(error) => {
                tracing::warn!(path = %directory.display(), error = %on_one_line(&error), "a directory couldn't be synced");
            }
        }
    }
}

/// Makes the names in a directory durable. The empty path is the working directory: the parent of a
/// relative path's first component.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    let here = Path::new(".");
    let empty = directory.as_os_str().is_empty();
    File::open(if empty { here } else { directory })?.sync_all()
}

/// Removes a file. False when it wasn't there.
pub(super) fn remove_file(path: &Path) -> Result<bool, StoreError> {
    found(fs::remove_file(path))
        .map(|removed| removed.is_some())
        .map_err(|source| StoreError::io("remove", path, source))
}

/// Removes a file, a symbolic link, or a directory with all that is in it. False when there was
/// nothing.
pub(super) fn remove_tree(path: &Path) -> Result<bool, StoreError> {
    let remove = || -> io::Result<bool> {
        let Some(metadata) = found(fs::symlink_metadata(path))? else {
            return Ok(false);
        };
        let removed = if metadata.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        found(removed).map(|removed| removed.is_some())
    };
    remove().map_err(|source| StoreError::io("remove", path, source))
}

/// Removes a file that nobody needs any more; one that stays is swept at the next start.
pub(super) fn discard(path: &Path) {
    if let Err(error) = remove_file(path) {
        tracing::warn!(error = %on_one_line(&error), "a file stays in the spool");
    }
}

/// Whether the store's directory can be used, or made where there is none: what is there already is
/// a directory, and can be written.
pub(super) fn check_root(root: &Path) -> Result<(), StoreError> {
    let error = |path: &Path, source| StoreError::NotWritable {
        root: root.to_owned(),
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(root).map_err(|source| error(root, source))?;
    for path in absolute.ancestors() {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return may_write(path).map_err(|source| error(path, source));
            }
            Ok(_file) => return Err(error(path, io::ErrorKind::NotADirectory.into())),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(path, source)),
        }
    }
    Ok(())
}

fn may_write(directory: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Removes empty directories from `lowest` up to, and not including, `keep`.
pub(super) fn prune(lowest: &Path, keep: &Path) {
    for directory in lowest.ancestors() {
        let inside = directory.starts_with(keep) && directory != keep;
        // The usual failure is the wanted one: the directory isn't empty.
        if !inside || fs::remove_dir(directory).is_err() {
            return;
        }
    }
}

/// The entries of a directory, in no order; empty when there is no directory. Names that aren't
/// UTF-8 are left out: no name of ours is such.
pub(super) fn list(directory: &Path) -> Result<Vec<(String, FileType)>, StoreError> {
    let error = |source| StoreError::io("list", directory, source);
    let Some(entries) = found(fs::read_dir(directory)).map_err(error)? else {
        return Ok(Vec::new());
    };
    let mut listed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        // The entry may have been removed since it was listed.
        let kind = found(entry.file_type()).map_err(error)?;
        if let (Some(kind), Ok(name)) = (kind, entry.file_name().into_string()) {
            listed.push((name, kind));
        }
    }
    Ok(listed)
}

/// The size of a regular file, in bytes.
pub(super) fn file_size(path: &Path) -> Result<Option<u64>, StoreError> {
    let metadata =
        found(fs::metadata(path)).map_err(|source| StoreError::io("look at", path, source))?;
    Ok(metadata
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len()))
}

/// The first `max` bytes of a file. A directory in its place reads as an empty file.
pub(super) fn read_small(path: &Path, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let error = |source| StoreError::io("read", path, source);
    let Some(file) = found(File::open(path)).map_err(error)? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    match file.take(max).read_to_end(&mut content) {
        Ok(_) => {}
        Err(source) if source.kind() == io::ErrorKind::IsADirectory => {}
        Err(source) => return Err(error(source)),
    }
    Ok(Some(content))
}

/// Makes a small file. `sync` makes its content durable, but not its name.
pub(super) fn write_small(
    draft: &Path,
    content: &[u8],
    sync: bool,
    modes: &Modes,
) -> Result<(), StoreError> {
    let write = || {
        let mut file = modes.open(File::options().write(true).create_new(true), draft)?;
        file.write_all(content)?;
        if sync { file.sync_data() } else { Ok(()) }
    };
    write().map_err(|source| StoreError::io("write", draft, source))
}

/// What a link file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkText {
    /// There is no file.
    Missing,
    /// Nothing was written before the power went.
    Empty,
    Digest(Digest),
    /// Something else.
    Other,
}

/// Reads a link file. The log tells of one that is damaged.
pub(super) fn read_link_text(path: &Path) -> Result<LinkText, StoreError> {
    let Some(content) = read_small(path, MAX_LINK)? else {
        return Ok(LinkText::Missing);
    };
    // Some file systems fill up with zeros what they had no time to write.
    if content.iter().all(|byte| *byte == 0) {
        return Ok(LinkText::Empty);
    }
    let text = str::from_utf8(&content).ok();
    let digest = text.and_then(|text| text.trim_ascii_end().parse().ok());
    Ok(digest.map_or_else(
        || {
            tracing::warn!(path = %path.display(), "a link holds no digest and is ignored");
            LinkText::Other
        },
        LinkText::Digest,
    ))
}

/// The digest in a link file. A link that holds no digest reads as not there: it is written anew
/// when it is needed.
pub(super) fn read_link(path: &Path) -> Result<Option<Digest>, StoreError> {
    Ok(match read_link_text(path)? {
        LinkText::Digest(digest) => Some(digest),
        LinkText::Missing | LinkText::Empty | LinkText::Other => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Layout;

    fn modes(root: &Path) -> Modes {
        Modes::of(&Layout::new(root), None)
    }

    #[test]
    fn says_which_directories_it_made() {
        let root = tempfile::tempdir().unwrap();
        let (a, ab) = (root.path().join("a"), root.path().join("a/b"));
        let abc = ab.join("c");
        assert_eq!(
            create_dirs(&ab, &modes(root.path())).unwrap(),
            [a, ab.clone()]
        );
        assert_eq!(
            create_dirs(&abc, &modes(root.path())).unwrap(),
            [root.path().join("a/b/c")]
        );
        assert!(create_dirs(&abc, &modes(root.path())).unwrap().is_empty());
        assert!(abc.is_dir());
    }

    #[test]
    fn prunes_up_to_what_is_kept_or_in_use() {
        let root = tempfile::tempdir().unwrap();
        let path = |below: &str| root.path().join(below);
        create_dirs(&path("keep/a/b"), &modes(root.path())).unwrap();
        create_dirs(&path("keep/c"), &modes(root.path())).unwrap();

        prune(&path("keep/a/b"), &path("keep"));
        assert!(!path("keep/a").exists());
        fs::write(path("keep/c/file"), "").unwrap();
        prune(&path("keep/c"), &path("keep"));
        assert!(path("keep/c/file").exists());
        fs::remove_file(path("keep/c/file")).unwrap();
        prune(&path("keep/c"), &path("elsewhere"));
        assert!(path("keep/c").exists(), "outside of what may be pruned");
        prune(&path("keep/c"), &path("keep"));
        assert!(path("keep").exists() && !path("keep/c").exists());
    }

    #[test]
    fn a_name_is_placed_while_its_directory_is_pruned() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    prune(&directory, root.path());
                }
            });
            let mut placed = 0;
            for number in 0..50 {
                let draft = root.path().join(format!("draft{number}"));
                fs::write(&draft, "x").unwrap();
                // Losing every attempt is possible; a wrong error or a half-placed file isn't.
                match place(&draft, &directory.join("file"), &modes(root.path())) {
                    Ok(_) => {
                        placed += 1;
                        fs::remove_file(directory.join("file")).unwrap();
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), Some(io::ErrorKind::NotFound));
                        assert!(draft.exists());
                    }
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(placed > 0);
        });
    }
}
