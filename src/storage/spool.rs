//! The spool: the directory of files that are unfinished, each until it is renamed or removed.
//!
//! It belongs to one process at a time, which a lock proves. So a file that is in it at the start was
//! left by a process that has ended: the start keeps partials with a usable checkpoint and removes
//! the other files of ours.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::checkpoint::boot_id;
use super::disk::LinkText;
use super::layout::{Layout, StageName};
use super::modes::Modes;
use super::origins::{Origins, UpstreamChange};
use super::partials;
use super::stage_locks::StageLocks;
use super::unreadable::UnreadableEntries;
use super::{StoreError, disk};
use crate::error_chain::on_one_line;
use crate::oci::{Algorithm, Digest, RepoName};

/// Bytes that a check writes: a block of most file systems.
const PROBE: usize = 4096;
/// The largest file of upstreams that is read, in bytes.
const MAX_ORIGINS: u64 = 4 * 1024 * 1024;

/// The directory of unfinished files, locked for this process.
#[derive(Debug)]
pub(super) struct Spool {
    layout: Layout,
    /// Makes the names of drafts unique within this process, which has the directory for itself.
    next: AtomicU64,
    locks: StageLocks<StageName>,
    boot: String,
    unreadable: UnreadableEntries,
    modes: Modes,
    /// Unset where nobody says which upstreams there are.
    origins: OnceLock<Origins>,
    /// Opened by [`inspect`](Self::inspect): nothing is created or tidied.
    inspected: bool,
    /// Held, not read: the lock goes with it.
    _lock: Option<File>,
}

impl Spool {
    /// Makes the directories, takes the lock, clears leftovers, and proves that files can be made.
    pub(super) fn open(layout: Layout, mode: Option<u32>) -> Result<Self, StoreError> {
        let modes = Modes::of(&layout, mode);
        let not_writable = |path: PathBuf| {
            let root = layout.root().to_owned();
            |source| StoreError::NotWritable { root, path, source }
        };
        let spool = layout.spool();
        let created = disk::create_dirs(&spool, &modes).map_err(not_writable(spool.clone()))?;
        for own in spool.ancestors().take(2) {
            modes
                .settle_dir(own)
                .map_err(not_writable(own.to_owned()))?;
        }
        disk::sync_names(&spool, &created);

        let path = layout.lock();
        let lock = Modes::open_lock(&path).map_err(not_writable(path.clone()))?;
        take_lock(&lock, &layout)?;
        note_holder(&lock);

        // Before the probe, because it may make room on a full disk.
        let boot = boot_id();
        partials::sweep(&layout, &boot)?;
        let probe = layout.draft(0);
        File::create(&probe).map_err(not_writable(probe.clone()))?;
        fs::remove_file(&probe).map_err(not_writable(probe))?;

        Ok(Self {
            layout,
            next: AtomicU64::new(1),
            locks: StageLocks::default(),
            boot,
            unreadable: UnreadableEntries::default(),
            modes,
            origins: OnceLock::new(),
            inspected: false,
            _lock: Some(lock),
        })
    }

    /// Takes the lock of a directory that is there, and changes nothing but the process id in the lock
    /// file. A directory without a lock
    /// file has never been used by a server.
    pub(super) fn inspect(layout: Layout) -> Result<Self, StoreError> {
        let modes = Modes::of(&layout, None);
        let root = layout.root();
        let there = disk::found(fs::metadata(root))
            .map_err(|source| StoreError::io("look at", root, source))?;
        if !there.is_some_and(|metadata| metadata.is_dir()) {
            let root = root.to_owned();
            return Err(StoreError::Missing { root });
        }
        let path = layout.lock();
        let lock = disk::found(File::options().write(true).open(&path))
            .map_err(|source| StoreError::io("open", &path, source))?;
        if let Some(lock) = &lock {
            take_lock(lock, &layout)?;
            note_holder(lock);
        }
        Ok(Self {
            layout,
            next: AtomicU64::new(1),
            locks: StageLocks::default(),
            boot: boot_id(),
            unreadable: UnreadableEntries::default(),
            modes,
            origins: OnceLock::new(),
            inspected: true,
            _lock: lock,
        })
    }

    pub(super) fn unreadable(&self) -> &UnreadableEntries {
        &self.unreadable
    }

    pub(super) fn is_inspected(&self) -> bool {
        self.inspected
    }

    pub(super) fn modes(&self) -> &Modes {
        &self.modes
    }

    /// Says which upstreams there are, and keeps it for the next start. Returns which of them are
    /// others than at the last one. Blocks; to be called once.
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
        disk::discard(&draft);
        let now = now.map_err(|source| StoreError::io("look at", &draft, source))?;
        let (origins, changes) = known.updated(upstreams, now);
        if origins != known {
            let text = serde_json::to_vec(&origins)
                .map_err(|error| StoreError::io("write", &path, error.into()))?;
            self.write_file(&path, &text, true)?;
        }
        // Whoever called this before has said the same.
        drop(self.origins.set(origins));
        Ok(changes)
    }

    /// Whether the repository's upstream has ever been another one.
    pub(super) fn has_changed(&self, repo: &RepoName) -> bool {
        let origins = self.origins.get();
        origins.is_some_and(|origins| origins.changed(repo).is_some())
    }

    /// Whether a link or tag of this repository was written since its upstream is the one it is.
    pub(super) fn is_proved(&self, repo: &RepoName, path: &Path) -> bool {
        let changed = self.origins.get().and_then(|origins| origins.changed(repo));
        changed.is_none_or(|changed| {
            let written = fs::metadata(path).and_then(|file| file.modified());
            written.is_ok_and(|written| written > changed)
        })
    }

    /// Writes a small file, removes it, and looks whether the blobs' directory can be listed.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let probe = self.draft();
        let written =
            fs::write(&probe, [0; PROBE]).map_err(|source| StoreError::io("write", &probe, source));
        let removed = match fs::remove_file(&probe) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &probe, error))
            }
            _ => Ok(()),
        };
        written.and(removed)?;
        let blobs = self.layout.blobs(Algorithm::Sha256, 0);
        disk::list(blobs.parent().unwrap_or(&blobs)).map(drop)
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn locks(&self) -> &StageLocks<StageName> {
        &self.locks
    }

    /// See [`boot_id`].
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// A new name for a small file.
    fn draft(&self) -> PathBuf {
        self.layout.draft(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives a small file this content, whatever it had before. A process that is killed leaves the
    /// old content or the new; so does a power cut if `sync` is set.
    pub(super) fn write_file(
        &self,
        path: &Path,
        content: &[u8],
        sync: bool,
    ) -> Result<(), StoreError> {
        let draft = self.draft();
        let placed = disk::write_small(&draft, content, sync, &self.modes)
            .and_then(|()| disk::place(&draft, path, &self.modes).map(drop));
        placed.inspect_err(|_| disk::discard(&draft))
    }

    /// Makes `target` a link to `digest`, or leaves what was there. `sync` is for a link whose
    /// earlier content matters: then power loss leaves the old digest or the new one. Otherwise it
    /// may leave an empty file, which reads as no link.
    pub(super) fn write_link(
        &self,
        repo: &RepoName,
        target: &Path,
        digest: &Digest,
        sync: bool,
    ) -> Result<(), StoreError> {
        // One that can't be read is replaced, as a damaged one is.
        let is_known = disk::read_link(target).is_ok_and(|known| known == Some(*digest));
        if is_known && self.is_proved(repo, target) {
            return Ok(());
        }
        // As the reference registry writes it: the digest, no line end.
        self.write_file(target, digest.to_string().as_bytes(), sync)
    }
}

impl Spool {
    /// Removes a link file that is empty. Whoever writes it at the same time wins.
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
                if let Some(directory) = path.parent() {
                    disk::prune(directory, &self.layout.repositories());
                }
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
        fs::hard_link(from, &draft).map_err(|source| StoreError::io("link", from, source))?;
        let placed = disk::place(&draft, to, &self.modes);
        if placed.is_err() {
            disk::discard(&draft);
        }
        placed.map(drop)
    }
}

fn take_lock(lock: &File, layout: &Layout) -> Result<(), StoreError> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            root: layout.root().to_owned(),
            holder: fs::read_to_string(layout.lock())
                .ok()
                .and_then(|pid| pid.trim().parse().ok()),
        }),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!(
                root = %layout.root().display(),
                "this file system has no locks: make sure that no other process uses the store"
            );
            Ok(())
        }
        Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &layout.lock(), source)),
    }
}

/// Writes the process's id into the lock's file, for whoever finds it locked.
fn note_holder(mut lock: &File) {
    let pid = format!("{}\n", std::process::id());
    let noted = lock
        .set_len(0)
        .and_then(|()| io::Write::write_all(&mut lock, pid.as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(error = %on_one_line(&error), "the lock file doesn't name this process");
    }
}
