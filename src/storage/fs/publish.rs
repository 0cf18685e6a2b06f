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

impl TagDraft {
    fn discard(&self) {
        disk::discard(disk::remove_file(&self.draft));
    }
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
            drafts.iter().for_each(TagDraft::discard);
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
    let (placed, error) = on(spool, move |spool| Ok(place(spool, &drafts)))
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
fn draft(spool: &Spool, tagging: &Tagging) -> Result<Vec<TagDraft>, StoreError> {
    let mut drafts = Vec::new();
    for tag in &tagging.tags {
        match draft_one(spool, tagging, tag) {
            Ok(draft) => drafts.extend(draft),
            Err(error) => {
                drafts.iter().for_each(TagDraft::discard);
                return Err(error);
            }
        }
    }
    Ok(drafts)
}

fn draft_one(
    spool: &Spool,
    Tagging { repo, digest, .. }: &Tagging,
    tag: &Tag,
) -> Result<Option<TagDraft>, StoreError> {
    let index = spool.layout.tag_index(repo, tag, digest);
    spool.write_link(repo, &index, digest, false)?;
    let current = spool.layout.tag_current(repo, tag);
    let draft = spool.draft_link(repo, &current, digest)?;
    Ok(draft.map(|draft| TagDraft {
        tag: tag.clone(),
        current,
        draft,
    }))
}

/// Gives tags their names, up to the first error.
fn place(spool: &Spool, drafts: &[TagDraft]) -> (Vec<(Tag, PathBuf)>, Option<StoreError>) {
    let (mut placed, mut failure) = (Vec::new(), None);
    for TagDraft {
        tag,
        current,
        draft,
    } in drafts
    {
        match spool.place_draft(draft, current) {
            Ok(created) => spool.unsynced.add_name(current.clone(), &created),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
        placed.push((tag.clone(), current.clone()));
    }
    // Placing has removed the draft that failed.
    let unplaced = drafts.iter().skip(placed.len() + 1);
    unplaced.for_each(TagDraft::discard);
    (placed, failure)
}

async fn on<T: Send + 'static>(
    spool: &Arc<Spool>,
    step: impl FnOnce(&Arc<Spool>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let spool = Arc::clone(spool);
    blocking(move || step(&spool)).await
}
