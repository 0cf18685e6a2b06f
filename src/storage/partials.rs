//! The files of staged writes: what a checkpoint claims, listing them, and removing those that nothing
//! can resume.
//!
//! A checkpoint is renamed into place after the bytes that it claims were written, and is removed
//! before them. So a process that is killed leaves one of four: a staged file with a true checkpoint,
//! which the start keeps; a staged file without one; a checkpoint without its file; a draft.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::checkpoint::{Checkpoint, MAX_CHECKPOINT, Unusable};
use super::claims::Claims;
use super::error::Context as _;
use super::key_locks::KeyLock;
use super::layout::{Layout, Spooled, StageName, spooled};
use super::spool::Spool;
use super::{Partial, StoreError, disk};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// The two files of one staged write. Nobody else touches them while this exists.
#[derive(Debug)]
pub(super) struct StageFiles {
    pub(super) spool: Arc<Spool>,
    pub(super) staged: PathBuf,
    checkpoint: PathBuf,
    lock: KeyLock<StageName>,
}

impl StageFiles {
    /// Waits while a stage has the files. Cancel safe.
    pub(super) async fn lock(spool: &Arc<Spool>, name: StageName) -> Self {
        Self::of(spool, spool.locks.lock(name).await)
    }

    /// None while a stage has the files.
    pub(super) fn try_lock(spool: &Arc<Spool>, name: StageName) -> Option<Self> {
        let lock = spool.locks.try_lock(&name)?;
        Some(Self::of(spool, lock))
    }

    fn of(spool: &Arc<Spool>, lock: KeyLock<StageName>) -> Self {
        Self {
            spool: Arc::clone(spool),
            staged: spool.layout.staged(lock.key),
            checkpoint: spool.layout.checkpoint(lock.key),
            lock,
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.lock.key.digest
    }

    /// The checkpoint, and when it was written. None when there is none.
    pub(super) fn read(&self) -> Result<Option<(Checkpoint, Claims, SystemTime)>, Unusable> {
        let Some(text) = disk::read_small(&self.checkpoint, MAX_CHECKPOINT + 1)? else {
            return Ok(None);
        };
        let (checkpoint, claims) = Checkpoint::parse(&text, self.digest(), &self.spool.boot)?;
        let modified = fs::metadata(&self.checkpoint).and_then(|file| file.modified());
        let modified = disk::found(modified).context("look at", &self.checkpoint)?;
        Ok(modified.map(|modified| (checkpoint, claims, modified)))
    }

    /// Replaces the checkpoint. `sync` makes it durable, with the names of both files.
    pub(super) fn write(&self, checkpoint: &Checkpoint, sync: bool) -> Result<(), StoreError> {
        let text = checkpoint.to_text().map_err(io::Error::from);
        let text = text.context("write", &self.checkpoint)?;
        self.spool
            .write_file(&self.checkpoint, &text, sync)
            .map(drop)?;
        if sync {
            disk::sync_names(&self.checkpoint, &[]);
        }
        Ok(())
    }

    /// Removes both files, the claims before what they claim. False when there was no checkpoint.
    pub(super) fn remove(&self) -> Result<bool, StoreError> {
        // One without the other is removed at the next start; both would be a partial again.
        let checkpoint = disk::remove_file(&self.checkpoint);
        let staged = disk::remove_file(&self.staged);
        staged.and(checkpoint)
    }

    /// Passes on what was read of a partial. One that can't be resumed is removed, and reads as none.
    pub(super) fn usable<T>(
        &self,
        read: Result<Option<T>, Unusable>,
    ) -> Result<Option<T>, StoreError> {
        match read {
            Ok(read) => Ok(read),
            Err(Unusable::Store(error)) => Err(error),
            Err(error) => {
                let path = self.staged.display();
                tracing::warn!(%path, error = %on_one_line(&error), "a partial download can't be resumed and is removed");
                disk::discard(self.remove());
                Ok(None)
            }
        }
    }

    /// What the checkpoint claims, and when it was written.
    fn partial(&self) -> Result<Option<(Partial, SystemTime)>, StoreError> {
        let read = self.usable(self.read())?;
        Ok(read.map(|(checkpoint, claims, modified)| {
            let partial = Partial {
                upstream: checkpoint.upstream.into(),
                total: checkpoint.total,
                ranges: claims.ranges(),
            };
            (partial, modified)
        }))
    }

    /// Whether there are both files, and no committed blob: a commit removes all partials of its
    /// digest, but the process may have been killed in between.
    fn is_resumable(&self) -> Result<bool, StoreError> {
        let partial = self.partial().unwrap_or_else(|error| {
            tracing::warn!(error = %on_one_line(&error), "a checkpoint can't be read");
            None
        });
        let committed = disk::file_size(&self.spool.layout.blob(self.digest()));
        let committed = committed.ok().flatten();
        Ok(disk::file_size(&self.staged)?.is_some()
            && partial.is_some_and(|(partial, _)| committed != Some(partial.total)))
    }
}

/// The staged writes that have a checkpoint, sorted by digest.
fn checkpoints(layout: &Layout) -> Result<BTreeSet<StageName>, StoreError> {
    let listed = disk::list(&layout.spool())?.into_iter();
    let checkpoints = listed.filter_map(|(name, _)| match spooled(&name) {
        Some(Spooled::Checkpoint(name)) => Some(name),
        _ => None,
    });
    Ok(checkpoints.collect())
}

/// The partials without a stage, sorted by digest and upstream, each with when its checkpoint was
/// written.
pub(super) fn list(spool: &Arc<Spool>) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
    let mut partials = Vec::new();
    for name in checkpoints(&spool.layout)? {
        if let Some(files) = StageFiles::try_lock(spool, name)
            && let Some((partial, modified)) = files.partial()?
        {
            partials.push((name.digest, partial, modified));
        }
    }
    partials.sort_by(|(one, a, _), (other, b, _)| (one, &a.upstream).cmp(&(other, &b.upstream)));
    Ok(partials)
}

/// Removes the partials of a digest that has been committed, except those that have a stage.
pub(super) fn remove_all(spool: &Arc<Spool>, digest: &Digest) {
    let names = checkpoints(&spool.layout).inspect_err(|error| {
        tracing::warn!(error = %on_one_line(error), "a partial of a committed blob stays in the spool");
    });
    let names = names.unwrap_or_default().into_iter();
    for name in names.filter(|name| name.digest == *digest) {
        if let Some(files) = StageFiles::try_lock(spool, name) {
            disk::discard(files.remove());
        }
    }
}

/// Removes what earlier processes have left, except partials that can be resumed, and files that don't
/// look like ours.
pub(super) fn sweep(spool: &Arc<Spool>) -> Result<(), StoreError> {
    let directory = spool.layout.spool();
    let (mut stages, mut removed) = (BTreeSet::new(), 0_usize);
    for (name, kind) in disk::list(&directory)? {
        match spooled(&name).filter(|_ours| kind.is_file()) {
            Some(Spooled::Staged(name) | Spooled::Checkpoint(name)) => {
                stages.insert(name);
            }
            Some(Spooled::Leftover) => {
                removed += usize::from(disk::remove_file(&directory.join(name))?);
            }
            None => {}
        }
    }
    for name in stages {
        if let Some(files) = StageFiles::try_lock(spool, name)
            && !files.is_resumable()?
        {
            files.remove()?;
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(
            files = removed,
            "removed what an earlier run left unfinished"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
