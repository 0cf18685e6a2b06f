//! The spool: the directory of files that are unfinished, each until it is renamed or removed.
//!
//! It belongs to one process at a time, which a lock proves. So a file that is in it at the start was
//! left by a process that has ended: the start keeps partials with a usable checkpoint and removes
//! the other files of ours.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::RwLock;

use super::checkpoint::boot_id;
use super::disk::LinkText;
use super::error::Context as _;
use super::key_locks::KeyLocks;
use super::layout::{Layout, StageName};
use super::modes::Modes;
use super::origins::{Origins, UpstreamChange};
use super::unreadable::UnreadableEntries;
use super::unsynced::Unsynced;
use super::{StoreError, disk};
use crate::error_chain::on_one_line;
use crate::oci::{Algorithm, Digest, Pattern, RepoName};

/// Bytes that a check writes: a block of most file systems.
const PROBE: usize = 4096;
/// The largest file of upstreams that is read, in bytes.
const MAX_ORIGINS: u64 = 4 * 1024 * 1024;

/// The directory of unfinished files, locked for this process.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) layout: Layout,
    pub(super) modes: Modes,
    pub(super) locks: Arc<KeyLocks<StageName>>,
    pub(super) unreadable: UnreadableEntries,
    pub(super) unsynced: Unsynced,
    /// See [`boot_id`].
    pub(super) boot: String,
    /// Opened by [`inspect`](Self::inspect): nothing is created or tidied.
    pub(super) inspected: bool,
    /// Makes the names of drafts unique within this process, which has the directory for itself.
    next: AtomicU64,
    /// The names of hosted repositories.
    hosted: OnceLock<Vec<Pattern>>,
    /// Empty until [`set_upstreams`](Self::set_upstreams).
    origins: RwLock<Origins>,
    /// Held, not read: the lock goes with it.
    _lock: Option<File>,
}

impl Spool {
    /// Makes the directories and takes the lock.
    pub(super) fn open(layout: Layout, mode: Option<u32>) -> Result<Self, StoreError> {
        let not_writable = |path: &Path| StoreError::not_writable(layout.root(), path);
        let modes = Modes::of(&layout, mode);
        let spool = layout.spool();
        let created = disk::create_dirs(&spool, &modes).map_err(not_writable(&spool))?;
        for own in [&spool, &layout.own()] {
            modes.settle_dir(own).map_err(not_writable(own))?;
        }
        disk::sync_names(&spool, &created);

        let path = layout.lock();
        let lock = Modes::open_lock(&path).map_err(not_writable(&path))?;
        take_lock(&lock, &layout)?;
        Ok(Self::with(layout, modes, Some(lock), false))
    }

    /// Takes the lock of an existing directory, and changes nothing but the process id in the lock
    /// file. A directory without a lock file has never been used by a server.
    pub(super) fn inspect(layout: Layout) -> Result<Self, StoreError> {
        let root = layout.root();
        let metadata = disk::found(fs::metadata(root)).context("look at", root)?;
        if !metadata.is_some_and(|metadata| metadata.is_dir()) {
            let root = root.to_owned();
            return Err(StoreError::Missing { root });
        }
        let path = layout.lock();
        let lock = disk::found(File::options().write(true).open(&path)).context("open", &path)?;
        if let Some(lock) = &lock {
            take_lock(lock, &layout)?;
        }
        let modes = Modes::of(&layout, None);
        Ok(Self::with(layout, modes, lock, true))
    }

    fn with(layout: Layout, modes: Modes, lock: Option<File>, inspected: bool) -> Self {
        Self {
            layout,
            modes,
            locks: Arc::default(),
            unreadable: UnreadableEntries::default(),
            unsynced: Unsynced::default(),
            hosted: OnceLock::new(),
            boot: boot_id(),
            inspected,
            next: AtomicU64::new(1),
            origins: RwLock::default(),
            _lock: lock,
        }
    }

    /// Proves that files can be made.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        let probe = self.layout.draft(0);
        File::create(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(StoreError::not_writable(self.layout.root(), &probe))
    }

    /// Says which upstreams there are, and keeps it for the next start. Returns which of them are
    /// others than at the last one. Blocks.
    pub(super) fn set_upstreams(
        &self,
        upstreams: &BTreeMap<String, String>,
    ) -> Result<Vec<UpstreamChange>, StoreError> {
        let path = self.layout.origins();
        let text = disk::read_small(&path, MAX_ORIGINS)?.unwrap_or_default();
        let known: Origins = serde_json::from_slice(&text).unwrap_or_default();
        let draft = self.draft();
        disk::write_small(&draft, b"", false, &self.modes)?;
        // By the clock that dates the links.
        let now = fs::metadata(&draft).and_then(|draft| draft.modified());
        disk::discard(disk::remove_file(&draft));
        let now = now.context("look at", &draft)?;
        let (origins, changes) = known.updated(upstreams, now);
        if origins != known {
            let text = serde_json::to_vec(&origins).map_err(io::Error::from);
            let text = text.context("write", &path)?;
            self.write_file(&path, &text, true)?;
        }
        *self.origins.write() = origins;
        Ok(changes)
    }

    /// Links and tags of this repository that were written at this time or before are of another
    /// upstream. None when its upstream has always been the one it is, or it has none.
    pub(super) fn changed(&self, repo: &RepoName) -> Option<SystemTime> {
        let changed = self.origins.read().changed(repo)?;
        (!self.is_hosted(repo)).then_some(changed)
    }

    /// Says which repositories are hosted. What is said first stays.
    pub(super) fn set_hosted(&self, patterns: Vec<Pattern>) {
        drop(self.hosted.set(patterns));
    }

    pub(super) fn hosted(&self) -> &[Pattern] {
        self.hosted.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn is_hosted(&self, repo: &RepoName) -> bool {
        let mut patterns = self.hosted().iter();
        patterns.any(|pattern| pattern.matches(repo.as_str()))
    }

    /// Whether the upstream of some repository is another one than it was.
    pub(super) fn has_changed_upstreams(&self) -> bool {
        self.origins.read().have_changed()
    }

    /// Whether a link or tag of this repository was written since its upstream is the one it is.
    pub(super) fn is_proved(&self, repo: &RepoName, path: &Path) -> bool {
        self.changed(repo).is_none_or(|changed| {
            let written = fs::metadata(path).and_then(|file| file.modified());
            written.is_ok_and(|written| written > changed)
        })
    }

    /// Writes a small file, removes it, and looks whether the blobs' directory can be listed.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let probe = self.draft();
        let written = fs::write(&probe, [0; PROBE]).context("write", &probe);
        written.and(disk::remove_file(&probe))?;
        let blobs = self.layout.blobs(Algorithm::Sha256, 0);
        disk::list(blobs.parent().unwrap_or(&blobs)).map(drop)
    }

    /// A new name for a small file.
    fn draft(&self) -> PathBuf {
        self.layout.draft(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives a small file this content, whatever it had before. A process that is killed leaves the
    /// old content or the new; so does a power cut if `sync` is set. Returns the directories that were
    /// made for it.
    pub(super) fn write_file(
        &self,
        path: &Path,
        content: &[u8],
        sync: bool,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let draft = self.write_draft(content, sync)?;
        self.place_draft(&draft, path)
    }

    /// Writes a small file that hasn't its name yet.
    fn write_draft(&self, content: &[u8], sync: bool) -> Result<PathBuf, StoreError> {
        let draft = self.draft();
        let written = disk::write_small(&draft, content, sync, &self.modes);
        written.inspect_err(|_| disk::discard(disk::remove_file(&draft)))?;
        Ok(draft)
    }

    /// Gives a draft its name. Returns the directories that were made for it.
    pub(super) fn place_draft(
        &self,
        draft: &Path,
        path: &Path,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let placed = disk::place(draft, path, &self.modes);
        placed.inspect_err(|_| disk::discard(disk::remove_file(draft)))
    }

    /// Makes `target` a link to `digest`, or leaves its content. `sync` is for a link whose
    /// earlier content matters: then power loss leaves the old digest or the new one. Otherwise it
    /// may leave an empty file, which reads as no link. Returns the directories that were made for it;
    /// none where it was there.
    pub(super) fn write_link(
        &self,
        repo: &RepoName,
        target: &Path,
        digest: &Digest,
        sync: bool,
    ) -> Result<Option<Vec<PathBuf>>, StoreError> {
        if self.is_link_to(repo, target, digest) {
            return Ok(None);
        }
        // As the reference registry writes it: the digest, no line end.
        let written = self.write_file(target, digest.to_string().as_bytes(), sync);
        written.map(Some)
    }

    /// The same without giving the file its name, or syncing it. None where the link is there.
    pub(super) fn draft_link(
        &self,
        repo: &RepoName,
        target: &Path,
        digest: &Digest,
    ) -> Result<Option<PathBuf>, StoreError> {
        if self.is_link_to(repo, target, digest) {
            return Ok(None);
        }
        let draft = self.write_draft(digest.to_string().as_bytes(), false);
        draft.map(Some)
    }

    /// Whether a link has this content. One that can't be read is replaced, as a damaged one is.
    fn is_link_to(&self, repo: &RepoName, target: &Path, digest: &Digest) -> bool {
        let is_known = disk::read_link(target).is_ok_and(|known| known == Some(*digest));
        is_known && self.is_proved(repo, target)
    }

    /// Removes an empty link file. A concurrent write of it wins.
    pub(super) fn remove_empty(&self, path: &Path) {
        // A directory in its place is none of ours.
        let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        if self.inspected || !is_file {
            return;
        }
        let draft = self.draft();
        let removed = fs::rename(path, &draft).and_then(|()| {
            // Written since it was read: it goes back, unless it has been written once more.
            let is_empty = matches!(disk::read_link_text(&draft), Ok(LinkText::Empty));
            if is_empty || path.exists() {
                return fs::remove_file(&draft);
            }
            fs::rename(&draft, path)
        });
        match removed {
            Ok(()) => {
                tracing::info!(path = %path.display(), "removed a link that a crash left empty");
                disk::prune(path, &self.layout.repositories());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %on_one_line(&error), "an empty link can't be removed");
            }
        }
    }

    /// Gives a file a second name.
    pub(super) fn link_file(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let draft = self.draft();
        fs::hard_link(from, &draft).context("link", from)?;
        let placed = disk::place(&draft, to, &self.modes).map(drop);
        placed.inspect_err(|_| disk::discard(disk::remove_file(&draft)))
    }
}

/// Takes the lock, and writes the process's id into its file, for the error of the next process.
fn take_lock(mut lock: &File, layout: &Layout) -> Result<(), StoreError> {
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(layout.lock()).ok();
            return Err(StoreError::InUse {
                root: layout.root().to_owned(),
                holder: holder.and_then(|pid| pid.trim().parse().ok()),
            });
        }
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!(
                root = %layout.root().display(),
                "this file system has no locks: make sure that no other process uses the store"
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).context("lock", &layout.lock()),
    }
    let pid = format!("{}\n", std::process::id());
    let noted = lock
        .set_len(0)
        .and_then(|()| io::Write::write_all(&mut lock, pid.as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(error = %on_one_line(&error), "the lock file doesn't name this process");
    }
    Ok(())
}
