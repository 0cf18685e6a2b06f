//! The few things the store does to directories and small files, with the operation and the path
//! in every error. All of them block.

use std::fs::{self, File, FileType};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::error::Context as _;
use super::modes::Modes;
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// How often a file is put in place when the directories made for it are pruned meanwhile.
const PLACE_ATTEMPTS: u32 = 4;

/// The longest link file that is read, in bytes: a digest has at most 135.
const MAX_LINK: u64 = 256;

/// A missing file isn't an error but `None`. So is a file in the place of a directory above it.
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
    let mut created = Vec::new();
    let mut made = modes.create_dir(directory);
    if let (Err(error), Some(above)) = (&made, directory.parent())
        && error.kind() == io::ErrorKind::NotFound
    {
        created = create_dirs(above, modes)?;
        made = modes.create_dir(directory);
    }
    match made {
        Ok(()) => created.push(directory.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(created)
}

/// Renames a file to its final name, over whatever has that name, and makes the directories above
/// it. Returns the directories it made.
pub(super) fn place(from: &Path, to: &Path, modes: &Modes) -> Result<Vec<PathBuf>, StoreError> {
    let directory = to.parent().unwrap_or(to);
    let mut created = Vec::new();
    let mut retries = 1..PLACE_ATTEMPTS;
    loop {
        let renamed = create_dirs(directory, modes).and_then(|new| {
            created.extend(new);
            fs::rename(from, to)
        });
        match renamed {
            // A removal next to this one pruned the directory between the two calls.
            Err(error) if error.kind() == io::ErrorKind::NotFound && retries.next().is_some() => {}
            renamed => return renamed.context("put in place", to).map(|()| created),
        }
    }
}

/// Makes the name of a file durable: its directory, and the parents of the directories that were
/// made for it. The content is durable already, and a name that gets lost with the power only costs
/// another download, so trouble is logged and no error.
pub(super) fn sync_names(file: &Path, created: &[PathBuf]) {
    let parents = created.iter().map(PathBuf::as_path).chain([file]);
    for directory in parents.filter_map(Path::parent) {
        let Err(error) = sync_directory(directory) else {
            continue;
        };
        if !is_unsupported(&error) {
            tracing::warn!(path = %directory.display(), error = %on_one_line(&error), "a directory couldn't be synced");
        }
    }
}

/// Makes the content of a file durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.context("sync", path)
}

/// Makes the names in a directory durable, where its file system can.
pub(super) fn sync_names_in(directory: &Path) -> Result<(), StoreError> {
    match sync_directory(directory) {
        Err(error) if is_unsupported(&error) => Ok(()),
        synced => synced.context("sync", directory),
    }
}

/// Some network and user-space file systems have no such call.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
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
    let removed = found(fs::remove_file(path)).context("remove", path)?;
    Ok(removed.is_some())
}

/// Removes a file, a symbolic link, or a directory with all that is in it. False when there was
/// nothing.
pub(super) fn remove_tree(path: &Path) -> Result<bool, StoreError> {
    let metadata = found(fs::symlink_metadata(path)).context("remove", path)?;
    if !metadata.is_some_and(|metadata| metadata.is_dir()) {
        return remove_file(path);
    }
    let removed = found(fs::remove_dir_all(path)).context("remove", path)?;
    Ok(removed.is_some())
}

/// Logs that an unneeded file couldn't be removed. The next start removes it.
pub(super) fn discard(removed: Result<bool, StoreError>) {
    if let Err(error) = removed {
        tracing::warn!(error = %on_one_line(&error), "a file stays in the spool");
    }
}

/// Whether the store's directory can be used or made: the nearest existing path is a directory that
/// can be written.
pub(super) fn check_root(root: &Path) -> Result<(), StoreError> {
    use rustix::fs::{Access, access};

    let absolute = std::path::absolute(root).map_err(StoreError::not_writable(root, root))?;
    for path in absolute.ancestors() {
        let usable = match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(Into::into)
            }
            Ok(_file) => Err(io::ErrorKind::NotADirectory.into()),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        return usable.map_err(StoreError::not_writable(root, path));
    }
    Ok(())
}

/// Removes the directories that a removed entry has left empty: those above it, up to and not
/// including `keep`.
pub(super) fn prune(removed: &Path, keep: &Path) {
    for directory in removed.ancestors().skip(1) {
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
    let Some(entries) = found(fs::read_dir(directory)).context("list", directory)? else {
        return Ok(Vec::new());
    };
    let mut listed = Vec::new();
    for entry in entries {
        let entry = entry.context("list", directory)?;
        // The entry may have been removed since it was listed.
        let kind = found(entry.file_type()).context("list", directory)?;
        if let (Some(kind), Ok(name)) = (kind, entry.file_name().into_string()) {
            listed.push((name, kind));
        }
    }
    Ok(listed)
}

/// The size of a regular file, in bytes.
pub(super) fn file_size(path: &Path) -> Result<Option<u64>, StoreError> {
    let metadata = found(fs::metadata(path)).context("look at", path)?;
    let file = metadata.filter(fs::Metadata::is_file);
    Ok(file.map(|file| file.len()))
}

/// The first `max` bytes of a file. A directory in its place reads as an empty file.
pub(super) fn read_small(path: &Path, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(file) = found(File::open(path)).context("read", path)? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    match file.take(max).read_to_end(&mut content) {
        Err(error) if error.kind() != io::ErrorKind::IsADirectory => {
            Err(error).context("read", path)
        }
        _ => Ok(Some(content)),
    }
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
    write().context("write", draft)
}

/// What a link file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkText {
    Digest(Digest),
    /// Nothing was written before the power went.
    Empty,
    /// There is no file, or one that holds something else.
    None,
}

/// Reads a link file. The log tells of one that is damaged.
pub(super) fn read_link_text(path: &Path) -> Result<LinkText, StoreError> {
    let Some(content) = read_small(path, MAX_LINK)? else {
        return Ok(LinkText::None);
    };
    // Some file systems fill up with zeros what they had no time to write.
    if content.iter().all(|byte| *byte == 0) {
        return Ok(LinkText::Empty);
    }
    let text = str::from_utf8(&content).ok();
    if let Some(digest) = text.and_then(|text| text.trim_ascii_end().parse().ok()) {
        return Ok(LinkText::Digest(digest));
    }
    tracing::warn!(path = %path.display(), "a link holds no digest and is ignored");
    Ok(LinkText::None)
}

/// The digest in a link file. A link that holds no digest reads as not there: it is written anew
/// when it is needed.
pub(super) fn read_link(path: &Path) -> Result<Option<Digest>, StoreError> {
    Ok(match read_link_text(path)? {
        LinkText::Digest(digest) => Some(digest),
        LinkText::Empty | LinkText::None => None,
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
    fn create_dirs_returns_the_directories_it_made() {
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
    fn pruning_stops_at_a_used_or_kept_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = |below: &str| root.path().join(below);
        create_dirs(&path("keep/a/b"), &modes(root.path())).unwrap();
        create_dirs(&path("keep/c"), &modes(root.path())).unwrap();

        prune(&path("keep/a/b/gone"), &path("keep"));
        assert!(!path("keep/a").exists());
        fs::write(path("keep/c/file"), "").unwrap();
        prune(&path("keep/c/gone"), &path("keep"));
        assert!(path("keep/c/file").exists());
        fs::remove_file(path("keep/c/file")).unwrap();
        prune(&path("keep/c/file"), &path("elsewhere"));
        assert!(path("keep/c").exists(), "outside of what may be pruned");
        prune(&path("keep/c/file"), &path("keep"));
        assert!(path("keep").exists() && !path("keep/c").exists());
    }

    #[test]
    fn a_name_is_placed_while_its_directory_is_pruned() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a/b/file");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    prune(&file, root.path());
                }
            });
            let mut placed = 0;
            for number in 0..50 {
                let draft = root.path().join(format!("draft{number}"));
                fs::write(&draft, "x").unwrap();
                // Losing every attempt is possible; a wrong error or a half-placed file isn't.
                match place(&draft, &file, &modes(root.path())) {
                    Ok(_) => {
                        placed += 1;
                        fs::remove_file(&file).unwrap();
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
