//! The start: builds the index from the state files and then from the store, while requests are
//! already answered. Nothing is deleted before the index is complete.
//!
//! The store is right: a link that no state file has gets an entry, an entry without a link is
//! forgotten, and a link without a file is removed, as is a file without a link. Unreadable content
//! isn't taken for missing: it stays, with everything that belongs to it. Blobs aren't read; manifests
//! are, because the index has what they refer to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::save::Saver;
use crate::cache::index::{Index, Settled, Unreadables};
use crate::cache::policy::MASS_GRACE;
use crate::cache::state::file::Line;
use crate::cache::state::journal::Journal;
use crate::cache::{Inner, Upkeep, pins};
use crate::error_chain::on_one_line;
use crate::oci::manifest::{MAX_MANIFEST, QUICK};
use crate::oci::{Digest, Manifest, RepoName};
use crate::storage::{self, Link, LinkKind, StoreError, Unreadable, UnreadableEntry};

/// Entries visited under one lock.
const PAGE: usize = 1024;
/// Manifests read at one time.
const READERS: usize = 4;
/// How long the building rests after an error of the store.
const REST: Duration = Duration::from_secs(30);
/// Below so many entries, most of them being due is no sign of anything.
const MIN_MASS: usize = 16;

/// Reads the state files.
pub(crate) async fn load(shared: &Arc<Inner>, mut journal: Journal) -> Option<Saver> {
    let target = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || {
        let now = target.now();
        let reserve = |entries| target.with(|index| index.expect_entries(entries));
        let mut take = |lines: &[Line<'_>]| target.with(|index| index.load(lines));
        let loaded = journal.load(now, target.settings.upkeep, reserve, &mut take);
        (journal, loaded)
    });
    let (journal, loaded) = match read.await {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(error = %on_one_line(&error), "the expiry state couldn't be read");
            return None;
        }
    };
    if loaded.future > 0 {
        let entries = loaded.future;
        tracing::warn!(
            entries,
            "were last used in the future: the clock is or was wrong; taken as used now"
        );
    }
    let mut due = 0;
    let count = |index: &mut Index, at| {
        let (more, next) = index.count_due(at, PAGE);
        due += more;
        next
    };
    shared.pages(count).await;
    let entries = shared.with(|index| index.usage().entries);
    tracing::info!(entries, due, "loaded the expiry state");
    if entries >= MIN_MASS && due > entries / 2 {
        shared.with(|index| index.set_grace(MASS_GRACE));
        tracing::warn!(
            entries, due, grace = ?MASS_GRACE,
            "most of the cache is due at the start: the machine was off for long, or the clock is \
             wrong; nothing of it goes before the grace is over"
        );
    }
    Some(Saver::new(journal, loaded.broken))
}

/// Builds the index from the store, and tries again until that succeeds. Meanwhile nothing is cached
/// that needs space, and commands report the reason.
pub(crate) async fn run(shared: &Arc<Inner>) {
    let work = async {
        while let Err(error) = load_and_build(shared).await {
            tracing::warn!(
                error,
                "the store can't be listed, or the pins can't be read: nothing expires until that works"
            );
            shared.with(|index| index.set_unlisted(error));
            tokio::time::sleep(REST).await;
        }
    };
    shared.quit.run_until_cancelled(work).await;
}

/// Reads the pins first: nothing that they keep may be deleted. The error is on one line.
async fn load_and_build(shared: &Arc<Inner>) -> Result<(), String> {
    let loaded = pins::load(shared).await;
    loaded.map_err(|error| on_one_line(&error))?;
    build(shared).await.map_err(|error| on_one_line(&error))
}

/// Warns of repositories that have become hosted, and of those that aren't any more.
async fn note_hosted(shared: &Inner) {
    let before = match shared.store.hosted_before().await {
        Ok(before) => before,
        Err(error) => {
            let error = on_one_line(&error);
            tracing::warn!(
                error,
                "it isn't known which repositories were hosted before"
            );
            return;
        }
    };
    let (mut new, mut gone) = (0_usize, 0_usize);
    for (repo, is_hosted) in shared.repositories().await {
        let was_hosted = before.iter().any(|pattern| pattern.matches(repo.as_str()));
        new += usize::from(is_hosted && !was_hosted);
        gone += usize::from(was_hosted && !is_hosted);
    }
    if new > 0 {
        tracing::warn!(
            repositories = new,
            "were cached before they became hosted; what they have is kept as hosted content"
        );
    }
    if gone > 0 {
        tracing::error!(
            repositories = gone,
            "were hosted and match no pattern of `hosted` any more: what clients have pushed to them \
             expires like what is cached, unless a pattern has them again"
        );
    }
}

async fn build(shared: &Arc<Inner>) -> Result<(), StoreError> {
    for first in 0..=u8::MAX {
        for page in shared.store.blobs(first).await?.chunks(PAGE) {
            shared.with(|index| {
                for (digest, size) in page {
                    index.file_found(digest, *size);
                }
            });
        }
    }
    shared.with(Index::all_files_found);
    let mut unseen = Unreadables::default();
    for repo in shared.store.repositories().await? {
        list_repository(shared, &repo, &mut unseen).await?;
    }
    let unreadable = shared.store.unreadable().await?;
    shared.with(|index| {
        for Unreadable { entry, .. } in &unreadable {
            if let UnreadableEntry::Link(link) = entry {
                index.unproved_found(link, shared.now());
            }
        }
    });
    unseen.add(&unreadable);
    shared.counts.lock().unreadable = unseen.count;
    read_manifests(shared).await;
    if shared.settings.upkeep == Upkeep::Full {
        note_hosted(shared).await;
    }
    settle(shared, &unseen).await;
    Ok(())
}

async fn list_repository(
    shared: &Inner,
    repo: &RepoName,
    unseen: &mut Unreadables,
) -> Result<(), StoreError> {
    for kind in [LinkKind::Revision, LinkKind::Layer] {
        let digests = shared.store.links(repo, kind).await?;
        let unproved = shared.store.unproved(repo, kind).await?;
        let mut without_file = Vec::new();
        for page in digests.chunks(PAGE) {
            shared.with(|index| {
                for digest in page {
                    let link = Link::new(repo, kind, digest);
                    if unproved.binary_search(digest).is_ok() {
                        index.unproved_found(&link, shared.now());
                    } else {
                        index.link_found(&link, shared.now());
                    }
                    if !index.has_file(digest) {
                        without_file.push(*digest);
                    }
                }
            });
        }
        unseen.add_unproved(unproved);
        // Listing a link may have given its content another name.
        for digest in without_file {
            if let Ok(Some(size)) = shared.store.size(&digest).await {
                shared.with(|index| index.file_found(&digest, size));
            }
        }
    }
    list_tags(shared, repo).await
}

async fn list_tags(shared: &Inner, repo: &RepoName) -> Result<(), StoreError> {
    for tag in shared.store.tags(repo).await? {
        let Some(digest) = shared.store.tag(repo, &tag).await? else {
            continue;
        };
        if shared.with(|index| index.tag_found(repo, &tag, &digest)) {
            continue;
        }
        let mut unreadable = Unreadables::default();
        unreadable.add(&shared.store.unreadable().await?);
        if unreadable.may_have_link(&digest) {
            shared.with(|index| index.set_tag(repo, &tag, &digest));
        } else if shared.with(|index| index.hosts(repo)) {
            tracing::error!(%repo, tag = tag.as_str(), %digest, "a hosted tag names a manifest that is lost");
        } else if shared.settings.upkeep == Upkeep::Full {
            // A tag is pointed at a manifest after that is linked: this one's link has gone.
            tracing::info!(%repo, tag = tag.as_str(), "a tag named a manifest that is gone");
            let removed = shared.store.remove_tag(repo, &tag).await;
            shared.succeeded("tag", removed.map(drop));
        }
    }
    Ok(())
}

async fn read_manifests(shared: &Arc<Inner>) {
    let mut from = Some(0);
    while let Some(at) = from {
        let (unread, next) = shared.with(|index| index.unread_manifests(at, PAGE));
        from = next;
        futures_util::stream::iter(unread)
            .for_each_concurrent(READERS, |digest| async move {
                if let Some(manifest) = read_manifest(shared, &digest).await {
                    shared.with(|index| index.describe(&digest, &manifest));
                }
            })
            .await;
    }
}

/// What can't be read refers to nothing: its parts are images of their own.
async fn read_manifest(shared: &Inner, digest: &Digest) -> Option<Manifest> {
    let bytes = storage::read_all(&*shared.store, digest, MAX_MANIFEST).await;
    let bytes = bytes.inspect_err(
        |error| tracing::warn!(%digest, error = %on_one_line(&error), "a manifest can't be read"),
    );
    let bytes = bytes.ok()??;
    if bytes.len() <= QUICK {
        return Manifest::parse(&bytes).ok();
    }
    // A panic of the parser is a manifest that can't be read.
    let parsed = tokio::task::spawn_blocking(move || Manifest::parse(&bytes));
    parsed.await.ok()?.ok()
}

async fn settle(shared: &Inner, unseen: &Unreadables) {
    let removes = shared.settings.upkeep == Upkeep::Full;
    let mut settled = Settled::default();
    shared
        .pages(|index, at| index.settle_entries((at, PAGE), unseen, removes, &mut settled))
        .await;
    shared
        .pages(|index, at| index.settle_blobs((at, PAGE), unseen, removes, &mut settled))
        .await;
    let Settled {
        gone,
        dangling,
        lost,
        orphans,
    } = settled;
    if lost > 0 {
        tracing::error!(
            links = lost,
            "hosted repositories have lost content: files are missing; pushing it again heals that"
        );
    }
    if gone + dangling + orphans > 0 {
        tracing::info!(
            entries_without_link = gone,
            links_without_file = dangling,
            files_without_link = orphans,
            "the state and the store were brought together"
        );
    }
    let usage = shared.with(|index| {
        index.complete();
        index.usage()
    });
    shared.complete.cancel();
    let (entries, bytes) = (usage.entries, usage.used);
    tracing::info!(entries, bytes, "the index of the cache is complete");
}
