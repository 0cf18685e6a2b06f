//! Changes several files: first writes all contents to temporary files beside them, then renames these. A
//! file that can't be prepared leaves all files as they were.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The folder whose folders are each for one registry, and the file that each of containerd's has. A folder
/// that has become empty must not stay: containerd would no longer look for the default.
const REGISTRIES: &str = "certs.d";
const HOSTS: &str = "hosts.toml";

/// The permissions of users that are neither the file's owner nor in its group.
const OTHERS: u32 = 0o007;

#[derive(Default)]
pub(super) struct Transaction {
    /// Temporary files, and the files that they replace.
    staged: Vec<(PathBuf, PathBuf)>,
    removed: Vec<PathBuf>,
    /// Directories that were made, parents first.
    made: Vec<PathBuf>,
}

impl Transaction {
    /// Prepares a file's new content. It gets the mode and the owner of `like`; without one, it is
    /// readable for all, or for its owner only if it `is_secret`, whatever the umask is. A secret is
    /// never readable for all.
    pub(super) fn write(
        &mut self,
        target: &Path,
        text: &str,
        like: Option<&Path>,
        is_secret: bool,
    ) -> anyhow::Result<()> {
        let staged = self.stage(target, text, like, is_secret);
        staged.with_context(|| format!("{} can't be written", target.display()))
    }

    fn stage(
        &mut self,
        target: &Path,
        text: &str,
        like: Option<&Path>,
        is_secret: bool,
    ) -> io::Result<()> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        self.make(parent)?;
        let name = target.file_name().unwrap_or_default().display();
        let temporary = parent.join(format!(".{name}.{:08x}.tmp", fastrand::u32(..)));
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        self.staged.push((temporary, target.to_owned()));
        let mut mode = if is_secret { 0o600 } else { 0o644 };
        if let Some(like) = like {
            let wanted = fs::metadata(like)?;
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (wanted.uid(), wanted.gid()) {
                std::os::unix::fs::fchown(&file, Some(wanted.uid()), Some(wanted.gid()))?;
            }
            mode = wanted.mode() & if is_secret { !OTHERS } else { !0 };
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// Makes a directory and the missing ones above it.
    fn make(&mut self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.make(parent)?;
        }
        fs::create_dir(dir)?;
        self.made.push(dir.to_owned());
        fs::set_permissions(dir, Permissions::from_mode(0o755))
    }

    /// Has a file removed.
    pub(super) fn remove(&mut self, path: &Path) {
        self.removed.push(path.to_owned());
    }

    /// Replaces and removes the files.
    pub(super) fn commit(mut self) -> anyhow::Result<()> {
        self.made.clear();
        for (temporary, target) in std::mem::take(&mut self.staged) {
            let renamed = fs::rename(&temporary, &target).and_then(|()| sync_parent(&target));
            if let Err(error) = renamed {
                self.staged.push((temporary, target.clone()));
                let context = format!(
                    "{}: earlier files are written, this isn't",
                    target.display()
                );
                return Err(error).context(context);
            }
        }
        for path in std::mem::take(&mut self.removed) {
            fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
            let dir = path.parent().unwrap_or(Path::new("/"));
            let folders = dir.parent().and_then(Path::file_name);
            let is_hosts = path.file_name().is_some_and(|name| name == HOSTS);
            if is_hosts || folders.is_some_and(|name| name == REGISTRIES) {
                // One with further files stays.
                drop(fs::remove_dir(dir));
            }
        }
        Ok(())
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Leaves nothing behind of what wasn't committed.
impl Drop for Transaction {
    fn drop(&mut self) {
        for (temporary, _) in &self.staged {
            drop(fs::remove_file(temporary));
        }
        for dir in self.made.iter().rev() {
            drop(fs::remove_dir(dir));
        }
    }
}
