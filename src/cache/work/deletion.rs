//! The only deleter.
//!
//! The index decides what is due, under its lock, and marks the blob. Then, without the lock, the
//! links are removed (for a manifest first the tags that name it), and at last the file. A blob that
//! is being deleted can't be held, and a blob that is held isn't deleted. So a digest that is held
//! while it is opened or linked can't be lost, and the file of a blob that some repository
//! links is never removed.
//!
//! A crash in between leaves a blob without links, or links without tags: the next start removes the
//! rest. What can't be removed is tried again later.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::cache::Inner;
use crate::cache::index::{DueLink, Job};
use crate::storage::Link;

/// Blobs that are deleted at one time.
const MAX_JOBS: usize = 4;

/// Runs until the stop; deletions that have begun are finished.
pub(crate) async fn run(shared: Arc<Inner>) {
    let quit = &shared.quit;
    let mut running = FuturesUnordered::new();
    loop {
        while !quit.is_cancelled()
            && running.len() < MAX_JOBS
            && let Some(job) = shared.with(|index| index.take_job(shared.now()))
        {
            running.push(delete(&shared, job));
        }
        if quit.is_cancelled() && running.is_empty() {
            return;
        }
        tokio::select! {
            Some(()) = running.next(), if !running.is_empty() => {}
            () = shared.work.notified() => {}
            () = quit.cancelled(), if !quit.is_cancelled() => {}
        }
    }
}

async fn delete(shared: &Inner, job: Job) {
    let mut gone = Vec::with_capacity(job.links.len());
    for link in &job.links {
        gone.push(unlink(shared, link).await);
    }
    let file = shared.with(|index| index.unlinked(&job, &gone, shared.now()));
    let mut removed = None;
    if file {
        let result = shared.store.remove(&job.digest).await;
        removed = Some(shared.succeeded("blob", result.map(drop)));
    }
    let counted = shared.with(|index| index.finish(&job, removed, shared.now()));
    if let Some(blob) = counted {
        let metrics = &shared.metrics;
        metrics.removed(blob.reason, blob.bytes, blob.recently_used);
    }
}

/// Removes the tags that name a manifest, then the link. The tags first, so that no tag names what
/// is gone.
async fn unlink(shared: &Inner, DueLink { link, tags, .. }: &DueLink) -> bool {
    let Link { repo, digest, .. } = link;
    for tag in tags {
        // Until it is gone, or found to name something else.
        let _lock = shared.tags.lock((repo.clone(), tag.clone())).await;
        let named = match shared.store.tag(repo, tag).await {
            Ok(named) => named,
            Err(error) => return shared.succeeded("tag", Err(error)),
        };
        // It may name something else by now.
        if named == Some(*digest) {
            let removed = shared.store.remove_tag(repo, tag).await;
            if !shared.succeeded("tag", removed.map(drop)) {
                return false;
            }
        }
    }
    let removed = shared.store.unlink(link).await;
    let is_gone = shared.succeeded("link", removed.map(drop));
    if is_gone {
        shared.tell_loss(link, tags);
    }
    is_gone
}
