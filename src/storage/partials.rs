//! The files of staged writes: what a checkpoint claims, listing them, and removing those that nothing
//! can resume.
//!
//! A checkpoint is renamed into place after the bytes that it claims were written, and is removed
//! before them. So a process that is killed leaves one of four: a staged file with a true checkpoint,
//! which the start keeps; a staged file without one; a checkpoint without its file; a draft.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::checkpoint::{Checkpoint, MAX_CHECKPOINT, Unusable};
use super::claims::Claims;
use super::layout::{Layout, Spooled, StageName, spooled};
use super::spool::Spool;
use super::{Partial, StoreError, disk};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// The two files of one staged write. The caller has locked its name, or has the spool for itself.
#[derive(Debug)]
pub(super) struct StageFiles {
    digest: Digest,
    staged: PathBuf,
    checkpoint: PathBuf,
}

impl StageFiles {
    pub(super) fn new(layout: &Layout, name: StageName) -> Self {
        Self {
            digest: name.digest,
            staged: layout.staged(name),
            checkpoint: layout.checkpoint(name),
        }
    }

    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn staged(&self) -> &Path {
        &self.staged
    }

    /// The checkpoint, and when it was written. None when there is none.
    pub(super) fn read(
        &self,
        boot: &str,
    ) -> Result<Option<(Checkpoint, Claims, SystemTime)>, Unusable> {
        let Some(text) = disk::read_small(&self.checkpoint, MAX_CHECKPOINT + 1)? else {
            return Ok(None);
        };
        let (checkpoint, claims) = Checkpoint::parse(&text, &self.digest, boot)?;
        let modified = fs::metadata(&self.checkpoint).and_then(|file| file.modified());
        let modified = disk::found(modified)
            .map_err(|source| StoreError::io("look at", &self.checkpoint, source))?;
        Ok(modified.map(|modified| (checkpoint, claims, modified)))
    }

    /// Replaces the checkpoint. `sync` makes it durable, with the names of both files.
    pub(super) fn write(
        &self,
        spool: &Spool,
        checkpoint: &Checkpoint,
        sync: bool,
    ) -> Result<(), StoreError> {
        let text = checkpoint
            .to_text()
            .map_err(|error| StoreError::io("write", &self.checkpoint, error.into()))?;
        spool.write_file(&self.checkpoint, &text, sync)?;
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

    /// Removes both files; what can't be removed is tried again at the next start.
    pub(super) fn discard(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = %on_one_line(&error), "a file stays in the spool");
        }
    }

    /// Removes a partial that can't be resumed.
    pub(super) fn discard_unusable(&self, error: &Unusable) {
        let path = self.staged.display();
        tracing::warn!(%path, error = %on_one_line(error), "a partial download can't be resumed and is removed");
        self.discard();
    }

    /// What the checkpoint claims, and when it was written. None when a file is missing, or when the
    /// partial can't be resumed, which removes it.
    fn partial(&self, boot: &str) -> Result<Option<(Partial, SystemTime)>, StoreError> {
        match self.read(boot) {
            Ok(Some((checkpoint, claims, modified))) => {
                let partial = Partial {
                    upstream: checkpoint.upstream.into(),
                    total: checkpoint.total,
                    ranges: claims.ranges(),
                };
                Ok(Some((partial, modified)))
            }
            Ok(None) => Ok(None),
            Err(Unusable::Store(error)) => Err(error),
            Err(unusable) => {
                self.discard_unusable(&unusable);
                Ok(None)
            }
        }
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

impl Spool {
    /// The partials without a stage, sorted by digest and upstream, each with when its checkpoint was
    /// written.
    pub(super) fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        let mut partials = Vec::new();
        for name in checkpoints(self.layout())? {
            let Some(_lock) = self.locks().try_lock(&name) else {
                continue;
            };
            let files = StageFiles::new(self.layout(), name);
            if let Some((partial, modified)) = files.partial(self.boot())? {
                partials.push((name.digest, partial, modified));
            }
        }
        partials
            .sort_by(|(one, a, _), (other, b, _)| (one, &a.upstream).cmp(&(other, &b.upstream)));
        Ok(partials)
    }

    /// Removes a partial. False when there is none, or it has a stage.
    pub(super) fn discard_partial(
        &self,
        digest: &Digest,
        upstream: &str,
    ) -> Result<bool, StoreError> {
        let name = StageName::new(digest, upstream);
        match self.locks().try_lock(&name) {
            Some(_lock) => StageFiles::new(self.layout(), name).remove(),
            None => Ok(false),
        }
    }

    /// Removes the partials of a digest that has been committed, except those that have a stage.
    pub(super) fn remove_partials(&self, digest: &Digest) {
        let names = checkpoints(self.layout()).inspect_err(|error| {
            tracing::warn!(error = %on_one_line(error), "a partial of a committed blob stays in the spool");
        });
        for name in names.unwrap_or_default() {
            if name.digest == *digest
                && let Some(_lock) = self.locks().try_lock(&name)
            {
                StageFiles::new(self.layout(), name).discard();
            }
        }
    }
}

/// Removes what earlier processes have left, except partials that can be resumed, and files that don't
/// look like ours.
pub(super) fn sweep(layout: &Layout, boot: &str) -> Result<(), StoreError> {
    let (mut stages, mut removed) = (BTreeSet::new(), 0_usize);
    for (name, kind) in disk::list(&layout.spool())? {
        match spooled(&name).filter(|_ours| kind.is_file()) {
            Some(Spooled::Staged(name) | Spooled::Checkpoint(name)) => {
                stages.insert(name);
            }
            Some(Spooled::Leftover) => {
                removed += usize::from(disk::remove_file(&layout.spool().join(name))?);
            }
            None => {}
        }
    }
    for name in stages {
        let files = StageFiles::new(layout, name);
        if !is_resumable(layout, &files, boot)? {
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

/// Whether there are both files, and no committed blob: a commit removes all partials of its digest,
/// but the process may have been killed in between.
fn is_resumable(layout: &Layout, files: &StageFiles, boot: &str) -> Result<bool, StoreError> {
    let partial = files.partial(boot).unwrap_or_else(|error| {
        tracing::warn!(error = %on_one_line(&error), "a checkpoint can't be read");
        None
    });
    let committed = disk::file_size(&layout.blob(&files.digest)).ok().flatten();
    Ok(disk::file_size(&files.staged)?.is_some()
        && partial.is_some_and(|(partial, _)| committed != Some(partial.total)))
}

#[cfg(test)]
mod tests;
