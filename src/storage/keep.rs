//! Partial files that outlive their stage: a staged file, and a sidecar that says what is in it.
//!
//! The sidecar is written after the file has been synced, so it never claims a byte that isn't
//! durable; it may claim fewer than are there. Whatever a crash leaves is therefore one of four: a
//! staged file with a sidecar that is true, which is kept; one without, which nobody can trust; a
//! sidecar whose file has been committed or removed; a draft. The start keeps the first and sweeps
//! the others.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use super::layout::Layout;
use super::partial::{self, MAX_SIDECAR, Partial, Unusable};
use super::spool::Spool;
use super::{Keeper, StoreError, disk};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// The two files of one staged write, whether a stage has them in hand or nobody.
///
/// # Why no sidecar stays behind
///
/// A keeper may be at work on one thread while the stage ends on another. Who ends the files sets
/// `gone` first and removes the sidecar then; a keeper puts the sidecar in place first and looks at
/// `gone` then. In the one order of all these steps either the keeper's rename comes before the
/// removal, which removes it; or it comes after, and so after `gone` was set, and the keeper removes
/// it itself. The names are this stage's own, so that removing twice can't hit another's file.
#[derive(Debug)]
pub(super) struct Part {
    digest: Digest,
    /// What the sidecar says of the upstream, once there is one.
    upstream: OnceLock<Arc<str>>,
    path: PathBuf,
    sidecar: PathBuf,
    /// A sidecar has been put in place.
    kept: AtomicBool,
    /// The files are being removed, or the staged one has its final name. Never unset.
    gone: AtomicBool,
}

impl Part {
    /// `kept` says whether there is a sidecar already.
    pub(super) fn new(layout: &Layout, digest: &Digest, unique: u64, kept: bool) -> Self {
        Self {
            digest: *digest,
            upstream: OnceLock::new(),
            path: layout.staged(digest, unique),
            sidecar: layout.sidecar(digest, unique),
            kept: AtomicBool::new(kept),
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What a partial is looked up by.
    pub(super) fn key(&self) -> Key {
        let upstream = self.upstream.get().cloned().unwrap_or_default();
        (self.digest, upstream)
    }

    /// The staged file.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::SeqCst)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// From here on no keeper leaves a sidecar.
    pub(super) fn end(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// Removes the sidecar of an ended part whose file has its final name.
    pub(super) fn remove_sidecar(&self) {
        disk::discard(&self.sidecar);
    }

    /// Removes both files, the claim before what it claims.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        self.end();
        // One without the other is swept at the next start, both would be a partial again.
        let sidecar = disk::remove_file(&self.sidecar);
        let file = disk::remove_file(&self.path);
        sidecar.and(file).map(drop)
    }

    /// Removes both files; what stays is swept at the next start.
    pub(super) fn discard(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = %on_one_line(&error), "a file stays in the spool");
        }
    }

    pub(super) fn warn(&self, error: &Unusable) {
        let path = self.path.display();
        tracing::warn!(%path, error = %on_one_line(&error), "a partial download can't be resumed and is removed");
    }

    /// What the sidecar says, when both files bear it out, and when it was written.
    pub(super) fn check(&self) -> Result<(Partial, SystemTime), Unusable> {
        let text = disk::read_small(&self.sidecar, MAX_SIDECAR + 1)?.ok_or(Unusable::Missing)?;
        let partial = partial::from_json(&text, &self.digest)?;
        let length = disk::file_size(&self.path)?.ok_or(Unusable::Missing)?;
        let upstream = self.upstream.get_or_init(|| Arc::clone(&partial.upstream));
        if *upstream != partial.upstream {
            return Err(Unusable::OtherUpstream);
        }
        let (least, most) = (partial.end(), partial.total);
        if !(least..=most).contains(&length) {
            return Err(Unusable::Length {
                length,
                least,
                most,
            });
        }
        let modified = disk::found(fs::metadata(&self.sidecar).and_then(|file| file.modified()))
            .map_err(|source| StoreError::io("look at", &self.sidecar, source))?;
        Ok((partial, modified.ok_or(Unusable::Missing)?))
    }
}

/// The digest, and the name of the upstream that a partial was downloaded from.
pub(super) type Key = (Digest, Arc<str>);

/// The partials that nobody has in hand, one for each digest and upstream.
///
/// Who takes a part out in order to remove it ends it under the lock, so that a keeper of it which
/// is still at work never removes its successor.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<BTreeMap<Key, Arc<Part>>>);

impl Left {
    /// Every step under the lock is one change of the map, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Part>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every part, sorted by digest and upstream.
    pub(super) fn all(&self) -> Vec<Arc<Part>> {
        self.lock().values().cloned().collect()
    }

    /// Takes a part in hand.
    pub(super) fn take(&self, digest: &Digest, upstream: &str) -> Option<Arc<Part>> {
        self.lock().remove(&(*digest, upstream.into()))
    }

    /// Leaves a part, in place of the one that was left before it.
    pub(super) fn put(&self, part: Arc<Part>) {
        let older = {
            let mut left = self.lock();
            let older = left.insert(part.key(), part);
            older.inspect(|older| older.end())
        };
        if let Some(older) = older {
            older.discard();
        }
    }

    /// Puts back what was taken a moment ago, unless there is another by now.
    pub(super) fn put_back(&self, part: &Arc<Part>) {
        let superseded = match self.lock().entry(part.key()) {
            Entry::Vacant(free) => {
                free.insert(Arc::clone(part));
                false
            }
            Entry::Occupied(_newer) => {
                part.end();
                true
            }
        };
        if superseded {
            part.discard();
        }
    }

    /// Removes a part. False when there is none.
    pub(super) fn remove(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        let ended = self.end_if(&(*digest, upstream.into()), |_any| true);
        ended.map_or(Ok(false), |part| part.remove().map(|()| true))
    }

    /// Removes the parts of a digest, whichever upstreams they are from.
    pub(super) fn remove_all(&self, digest: &Digest) -> Result<(), StoreError> {
        let ended: Vec<_> = {
            let mut left = self.lock();
            let ended = left.extract_if((*digest, "".into()).., |(of, _), part| {
                let is_meant = of == digest;
                if is_meant {
                    part.end();
                }
                is_meant
            });
            ended.map(|(_, part)| part).collect()
        };
        let removed = ended.iter().map(|part| part.remove());
        removed.fold(Ok(()), Result::and)
    }

    /// Removes this part, if it is still there. False when it isn't.
    pub(super) fn remove_same(&self, part: &Arc<Part>) -> bool {
        let ended = self.end_if(&part.key(), |left| Arc::ptr_eq(left, part));
        ended.inspect(|part| part.discard()).is_some()
    }

    /// Removes the part that `newer`, which is in hand, takes the place of.
    fn supersede(&self, newer: &Arc<Part>) {
        let older = self.end_if(&newer.key(), |left| {
            !Arc::ptr_eq(left, newer) && !newer.is_gone()
        });
        if let Some(older) = older {
            older.discard();
        }
    }

    fn end_if(&self, key: &Key, is_meant: impl FnOnce(&Arc<Part>) -> bool) -> Option<Arc<Part>> {
        let mut left = self.lock();
        if !left.get(key).is_some_and(is_meant) {
            return None;
        }
        left.remove(key).inspect(|part| part.end())
    }
}

/// Keeps what one stage has written.
#[derive(Debug)]
pub(super) struct FileKeeper {
    spool: Arc<Spool>,
    part: Arc<Part>,
    /// A sync failed. The system tells that once and may have dropped the bytes, so that the next
    /// sync would succeed without them. Shared with the stage, for its commit.
    unsynced: Arc<AtomicBool>,
}

impl FileKeeper {
    pub(super) fn new(spool: Arc<Spool>, part: Arc<Part>, unsynced: Arc<AtomicBool>) -> Self {
        Self {
            spool,
            part,
            unsynced,
        }
    }

    /// Through a handle of its own: on Linux a failed sync is told to each open file once, and the
    /// stage must hear of it at its commit even when this one has heard of it before.
    fn sync(&self) -> Result<(), StoreError> {
        let path = self.part.path();
        let file = File::options().write(true).open(path);
        let file = file.map_err(|source| StoreError::io("open", path, source))?;
        file.sync_data().map_err(|source| {
            self.unsynced.store(true, Ordering::SeqCst);
            StoreError::io("sync", path, source)
        })
    }

    fn write_sidecar(&self, partial: &Partial) -> Result<(), StoreError> {
        let (sidecar, draft) = (&self.part.sidecar, self.spool.draft());
        self.part
            .upstream
            .get_or_init(|| Arc::clone(&partial.upstream));
        let placed = partial::to_json(&self.part.digest, partial)
            .map_err(|error| StoreError::io("write", sidecar, error.into()))
            .and_then(|text| disk::write_small(&draft, &text, true, self.spool.modes()))
            .and_then(|()| disk::place(&draft, sidecar, self.spool.modes()).map(drop));
        if placed.is_err() {
            disk::discard(&draft);
        }
        placed
    }
}

impl Keeper for FileKeeper {
    fn keep(&self, partial: &Partial) -> Result<(), StoreError> {
        if self.part.is_gone() {
            return Ok(());
        }
        if self.unsynced.load(Ordering::SeqCst) {
            let path = self.part.path().clone();
            return Err(StoreError::Incomplete { path });
        }
        let kept = self.sync().and_then(|()| self.write_sidecar(partial));
        if self.part.is_gone() {
            // The file may have gone under the sync, too: neither is an error.
            self.part.remove_sidecar();
            return Ok(());
        }
        kept?;
        if !self.part.kept.swap(true, Ordering::SeqCst) {
            // The names of both files. Later sidecars take the place of one that is true as well.
            disk::sync_names(&self.part.sidecar, &[]);
        }
        self.spool.left().supersede(&self.part);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
