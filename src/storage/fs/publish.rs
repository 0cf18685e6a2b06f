//! Makes what was pushed durable, and then lets tags name it.
//!
//! Two waits for the disk, however many files and directories there are: one for content, links and the
//! drafts of the tags together, and one for the names that the drafts get after that.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::FsShared;
use crate::oci::{Digest, Tag};
use crate::storage::spool::Spool;
use crate::storage::{Layout, Link, StoreError, SyncError, Tagging, blocking, disk};

/// A tag whose file is written, and hasn't its name yet.
#[derive(Debug)]
struct TagDraft {
    tag: Tag,
    current: PathBuf,
    draft: PathBuf,
}

pub(super) fn failed(source: StoreError) -> SyncError {
    SyncError {
        lost: Vec::new(),
        tagged: Vec::new(),
        source,
    }
}

/// Stores a small blob. False when it is there. Blocks.
pub(super) fn write_blob(
    FsShared { spool, open }: &FsShared,
    digest: &Digest,
    content: &Bytes,
) -> Result<bool, StoreError> {
    let path = spool.layout.blob(digest);
    if disk::file_size(&path)? == Some(content.len() as u64) {
        return Ok(false);
    }
    let created = spool.write_file(&path, content, false)?;
    open.removed(digest);
    spool.unsynced.add(path, &created);
    Ok(true)
}

/// See [`Store::publish`](crate::storage::Store::publish).
pub(super) async fn publish(
    spool: &Arc<Spool>,
    blobs: &[Digest],
    links: &[Link],
    tagging: Option<&Tagging>,
) -> Result<(), SyncError> {
    let drafts = match tagging.cloned() {
        Some(tagging) => on(spool, move |spool| draft(spool, &tagging)).await,
        None => Ok(Vec::new()),
    };
    let drafts = drafts.map_err(failed)?;
    let paths: Vec<_> = drafts.iter().map(|tag| tag.draft.clone()).collect();
    let files = files(&spool.layout, blobs, links, tagging);
    if let Err((lost, source)) = spool.unsynced.sync(files, &paths).await {
        let is_lost = |digest: &&Digest| lost.contains(&spool.layout.blob(digest));
        let lost = blobs.iter().filter(is_lost).copied().collect();
        let discard = move |_: &Arc<Spool>| {
            for draft in &paths {
                disk::discard(disk::remove_file(draft));
            }
            Ok(())
        };
        on(spool, discard).await.map_err(failed)?;
        return Err(SyncError {
            lost,
            ..failed(source)
        });
    }
    if drafts.is_empty() {
        return Ok(());
    }
    let (placed, error) = on(spool, move |spool| Ok(place(spool, drafts)))
        .await
        .map_err(failed)?;
    let names = placed.iter().map(|(_, current)| current.clone());
    let synced = spool
        .unsynced
        .sync(names, &[])
        .await
        .map_err(|(_, error)| error);
    let tagged = placed.into_iter().map(|(tag, _)| tag).collect();
    match error.map_or(synced, Err) {
        Ok(()) => Ok(()),
        Err(source) => Err(SyncError {
            tagged,
            ..failed(source)
        }),
    }
}

/// What may have to be made durable, drafts left aside.
fn files(
    layout: &Layout,
    blobs: &[Digest],
    links: &[Link],
    tagging: Option<&Tagging>,
) -> Vec<PathBuf> {
    let mut files: Vec<_> = blobs.iter().map(|digest| layout.blob(digest)).collect();
    files.extend(links.iter().map(|link| layout.link(link)));
    if let Some(Tagging { repo, tags, .. }) = tagging {
        // Of an earlier attempt that failed.
        files.extend(tags.iter().map(|tag| layout.tag_current(repo, tag)));
    }
    files
}

/// Writes the files of those tags that name something else.
fn draft(spool: &Arc<Spool>, tagging: &Tagging) -> Result<Vec<TagDraft>, StoreError> {
    let Tagging { repo, tags, digest } = tagging;
    let mut drafts = Vec::new();
    for tag in tags {
        let index = spool.layout.tag_index(repo, tag, digest);
        spool.write_link(repo, &index, digest, false)?;
        let current = spool.layout.tag_current(repo, tag);
        if let Some(draft) = spool.draft_link(repo, &current, digest)? {
            let tag = tag.clone();
            drafts.push(TagDraft {
                tag,
                current,
                draft,
            });
        }
    }
    Ok(drafts)
}

/// Gives tags their names, up to the first error.
fn place(spool: &Spool, drafts: Vec<TagDraft>) -> (Vec<(Tag, PathBuf)>, Option<StoreError>) {
    let mut placed = Vec::new();
    for TagDraft {
        tag,
        current,
        draft,
    } in drafts
    {
        match spool.place_draft(&draft, &current) {
            Ok(created) => spool.unsynced.add_name(current.clone(), &created),
            Err(error) => return (placed, Some(error)),
        }
        placed.push((tag, current));
    }
    (placed, None)
}

async fn on<T: Send + 'static>(
    spool: &Arc<Spool>,
    step: impl FnOnce(&Arc<Spool>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let spool = Arc::clone(spool);
    blocking(move || step(&spool)).await
}
