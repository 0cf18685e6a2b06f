//! The start: the index is built from the state files and then from the store, while requests are
//! already answered. Nothing depends on the index but deleting, and nothing is deleted before it is
//! complete.
//!
//! The store is right: a link that no state knows gets an entry, an entry whose link is gone goes, a
//! link whose file is gone goes, and so does a file that no link names. What can't be read isn't
//! taken for gone: it, and what belongs to it, stays. Blobs aren't read; of manifests the JSON is, to
//! know what they refer to.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::cache::index::Index;
use crate::cache::index::entry::{Content, Origin, Repo, content_flag, entry_flag};
use crate::cache::index::graph::References;
use crate::cache::index::slab::Id;
use crate::cache::record::MASS_GRACE;
use crate::cache::state::file::{Line, Times};
use crate::cache::state::journal::{Journal, Saver};
use crate::cache::state::timestamp::Timestamp;
use crate::cache::{Inner, Upkeep};
use crate::error_chain::on_one_line;
use crate::oci::manifest::{MAX_MANIFEST, QUICK};
use crate::oci::{Digest, Manifest, ManifestType, RepoName};
use crate::storage::layout::MAX_STORED_NAME;
use crate::storage::{self, Link, LinkKind, StoreError, Unreadable, UnreadableEntry};

/// The TTL of the reference registry 2.8, and the default of its later versions.
const THEIR_TTL: Duration = Duration::from_hours(7 * 24);
/// Entries visited under one lock.
const PAGE: usize = 1024;
/// Manifests read at one time.
const READERS: usize = 4;
/// How long the building rests after an error of the store.
const REST: Duration = Duration::from_secs(30);
/// Below so many entries, most of them being due is no sign of anything.
const MIN_MASS: usize = 16;

impl Index {
    /// Puts an entry of the state file in. One that is known already keeps the wider span of times.
    fn restore(
        &mut self,
        repo: Id<Repo>,
        kind: LinkKind,
        digest: &Digest,
        times: Times,
    ) -> Option<()> {
        let last_use = match times.last_use {
            Some(known) => known,
            None => self.guess_use(repo, times.origin),
        };
        let content = self.intern_content(digest)?;
        let known = self.contents.get_mut(content)?;
        known.last_use = known.last_use.max(last_use);
        let Some(entry) = self.find_entry(repo, kind, content) else {
            self.insert_entry(repo, kind, content, (times.origin, last_use))?;
            return Some(());
        };
        let known = self.entries.get_mut(entry)?;
        known.set_origin(known.origin().merge(times.origin));
        known.last_use = known.last_use.max(last_use);
        Some(())
    }

    /// When an adopted entry was last used, as far as its expiry tells: the reference registry's TTL
    /// is most likely the one that is configured here. It only matters for what is evicted first; the
    /// entry doesn't expire before its own time, however wrong this is.
    fn guess_use(&self, repo: Id<Repo>, origin: Origin) -> Timestamp {
        let Origin::Adopted(expiry) = origin else {
            return self.started;
        };
        let ttl = self.repos.get(repo).and_then(|repo| repo.ttl);
        let ttl = ttl.map_or(THEIR_TTL, |seconds| Duration::from_secs(seconds.into()));
        expiry.before(ttl).min(self.started)
    }

    /// A link was seen in the store. One that no state knows starts its time now, or has that of
    /// the same content linked in the other way, which share one entry in the file.
    pub(in crate::cache) fn confirm(&mut self, link: &Link, now: Timestamp) -> Option<()> {
        let (repo, content) = (
            self.intern_repo(&link.repo)?,
            self.intern_content(&link.digest)?,
        );
        if let Some(known) = self.find_entry(repo, link.kind, content) {
            self.entries.get_mut(known)?.flags.set(entry_flag::SEEN);
            return Some(());
        }
        let other = match link.kind {
            LinkKind::Layer => LinkKind::Revision,
            LinkKind::Revision => LinkKind::Layer,
        };
        let sibling = self.find_entry(repo, other, content);
        let times = sibling
            .and_then(|id| self.entries.get(id))
            .map_or((Origin::Created(now), now), |entry| {
                (entry.origin(), entry.last_use)
            });
        let entry = self.insert_entry(repo, link.kind, content, times)?;
        let known = self.contents.get_mut(content)?;
        known.last_use = known.last_use.max(times.1);
        self.entries.get_mut(entry)?.flags.set(entry_flag::SEEN);
        self.mark_dirty(entry);
        Some(())
    }

    /// A link is there and can't be read, or is of another upstream: it gets an entry, so that what
    /// it is a link to isn't taken for superfluous, and goes in its time. Nobody is served by it.
    fn expect(&mut self, link: &Link, now: Timestamp) -> Option<()> {
        let (repo, content) = (
            self.intern_repo(&link.repo)?,
            self.intern_content(&link.digest)?,
        );
        if self.find_entry(repo, link.kind, content).is_none() {
            self.insert_entry(repo, link.kind, content, (Origin::Created(now), now))?;
        }
        Some(())
    }

    /// Takes lines of the state files.
    fn load(&mut self, lines: &[Line<'_>]) {
        for line in lines {
            let repo = match self.find_repo(line.repo) {
                Some(known) => Some(known),
                None if line.repo.len() > MAX_STORED_NAME => None,
                None => RepoName::from_stored(line.repo)
                    .ok()
                    .filter(|_| line.times.is_some())
                    .and_then(|name| self.intern_repo(&name)),
            };
            let Some(repo) = repo else { continue };
            if let Some(times) = line.times {
                self.restore(repo, line.kind, &line.digest, times);
                if let Some(verified) = line.verified
                    && let Some(content) = self.find_content(&line.digest)
                {
                    self.restore_verified(content, verified);
                }
            } else if let Some(content) = self.find_content(&line.digest)
                && let Some(entry) = self.find_entry(repo, line.kind, content)
                // One that was made or used since the start is there, whatever the journal says.
                && self.entries.get(entry).is_some_and(|entry| !entry.flags.has(entry_flag::SEEN))
            {
                self.remove_entry(entry);
                self.release_content(content);
            }
        }
    }

    pub(in crate::cache) fn has_file(&self, digest: &Digest) -> bool {
        let content = self
            .find_content(digest)
            .and_then(|id| self.contents.get(id));
        content.is_some_and(|content| content.flags.has(content_flag::FILE))
    }

    pub(in crate::cache) fn condemn_entry(&mut self, link: &Link) {
        if let Some(id) = self.find_link(link)
            && let Some(entry) = self.entries.get_mut(id)
        {
            entry.flags.set(entry_flag::CONDEMNED);
            let content = entry.content;
            self.condemn_content(content);
        }
    }

    /// Some entry of the content is condemned.
    pub(in crate::cache) fn condemn_content(&mut self, id: Id<Content>) {
        if let Some(content) = self.contents.get_mut(id) {
            content.flags.set(content_flag::CONDEMNED);
        }
        self.enqueue(id);
    }

    /// A page of entries after everything was seen: those without link go, and the links without
    /// file. Returns how many, and where the next page begins.
    fn settle_entries(
        &mut self,
        from: usize,
        unseen: &Unseen,
        upkeep: Upkeep,
    ) -> (usize, usize, Option<usize>) {
        let (page, next) = self.entries.page(from, PAGE);
        let (mut gone, mut dangling) = (0, 0);
        for id in page {
            let Some(entry) = self.entries.get(id) else {
                continue;
            };
            let (content, seen) = (entry.content, entry.flags.has(entry_flag::SEEN));
            let Some(known) = self.contents.get(content) else {
                continue;
            };
            let (digest, file) = (known.digest(), known.flags.has(content_flag::FILE));
            if !seen && !unseen.may_have_link(&digest) {
                gone += 1;
                self.remove_entry(id);
                self.release_content(content);
            } else if seen
                && !file
                && !unseen.may_have_file(&digest)
                && upkeep == Upkeep::Full
                && let Some(link) = self.link_of(entry)
            {
                dangling += 1;
                self.condemn_entry(&link);
            }
        }
        (gone, dangling, next)
    }

    /// A page of contents: files that no link names go.
    fn settle_contents(
        &mut self,
        from: usize,
        unseen: &Unseen,
        upkeep: Upkeep,
    ) -> (usize, Option<usize>) {
        let (page, next) = self.contents.page(from, PAGE);
        let mut orphans = 0;
        for id in page {
            let orphan = self.contents.get(id).is_some_and(|content| {
                content.first.is_none()
                    && content.flags.has(content_flag::FILE)
                    && !unseen.may_have_link(&content.digest())
            });
            if orphan && upkeep == Upkeep::Full {
                orphans += 1;
                self.enqueue(id);
            }
            self.release_content(id);
        }
        (orphans, next)
    }

    /// A page of manifests that haven't been read.
    fn unread_manifests(&self, from: usize) -> (Vec<Digest>, Option<usize>) {
        let (page, next) = self.entries.page(from, PAGE);
        let unread = page.into_iter().filter_map(|id| {
            let entry = self
                .entries
                .get(id)
                .filter(|entry| entry.kind == LinkKind::Revision)?;
            let content = self.contents.get(entry.content)?;
            let unread = content.manifest.is_none() && content.flags.has(content_flag::FILE);
            unread.then(|| content.digest())
        });
        (unread.collect(), next)
    }

    fn was_due(&self, from: usize) -> (usize, Option<usize>) {
        let (page, next) = self.entries.page(from, PAGE);
        let due = page.into_iter().filter(|id| self.is_overdue(*id));
        (due.count(), next)
    }
}

/// Reads the state files.
pub(in crate::cache) async fn load(shared: &Arc<Inner>, mut journal: Journal) -> Option<Saver> {
    let target = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || {
        let now = target.now();
        let reserve = |entries| target.with(|index| index.reserve(entries));
        let mut take = |lines: &[Line<'_>]| target.with(|index| index.load(lines));
        let loaded = journal.load(now, target.upkeep, reserve, &mut take);
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
    let (mut due, mut from) = (0, Some(0));
    while let Some(at) = from {
        let (more, next) = shared.with(|index| index.was_due(at));
        (due, from) = (due + more, next);
    }
    let entries = shared.with(|index| index.entries.len());
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

/// Builds the index from the store, again and again until that succeeds. Meanwhile nothing is
/// cached that needs space, and commands are told why.
pub(in crate::cache) async fn run(shared: Arc<Inner>, quit: CancellationToken) {
    let work = async {
        while let Err(error) = build(&shared).await {
            let error = on_one_line(&error);
            tracing::warn!(
                error,
                "the store can't be listed: nothing expires until it can"
            );
            shared.with(|index| {
                index.unlisted = Some(error);
                index.news.freed = true;
            });
            tokio::time::sleep(REST).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = quit.cancelled() => {}
    }
}

async fn build(shared: &Arc<Inner>) -> Result<(), StoreError> {
    for first in 0..=u8::MAX {
        for page in shared.store.blobs(first).await?.chunks(PAGE) {
            shared.with(|index| {
                for (digest, size) in page {
                    // A file that is being deleted while it is listed is gone.
                    if let Some(id) = index.intern_content(digest) {
                        index.file_present(id, *size);
                    }
                }
            });
        }
    }
    shared.with(|index| {
        index.sized = true;
        index.news.freed = true;
    });
    let mut unseen = Unseen::default();
    for repo in shared.store.repositories().await? {
        list_repository(shared, &repo, &mut unseen).await?;
    }
    let unreadable = shared.store.unreadable().await?;
    shared.with(|index| {
        for Unreadable { entry, .. } in &unreadable {
            if let UnreadableEntry::Link(link) = entry {
                index.expect(link, shared.now());
            }
        }
    });
    unseen.add(&unreadable);
    let count = u64::try_from(unseen.count).unwrap_or(u64::MAX);
    shared.counters.unreadable.store(count, Ordering::Relaxed);
    read_manifests(shared).await;
    settle(shared, &unseen).await;
    Ok(())
}

/// What couldn't be read, and so isn't known to be missing.
#[derive(Debug, Default)]
struct Unseen {
    count: usize,
    /// Content whose file, or a link to it, couldn't be read or doesn't count.
    digests: HashSet<Digest>,
    /// The first bytes of digests of which files may be there.
    blobs: HashSet<u8>,
    /// Any repository may have any link.
    links: bool,
}

impl Unseen {
    fn of(unreadable: &[Unreadable]) -> Self {
        let mut unseen = Self::default();
        unseen.add(unreadable);
        unseen
    }

    fn add(&mut self, unreadable: &[Unreadable]) {
        let unseen = self;
        unseen.count += unreadable.len();
        for Unreadable { entry, .. } in unreadable {
            match entry {
                UnreadableEntry::Blob(digest) => drop(unseen.digests.insert(*digest)),
                UnreadableEntry::Link(link) => drop(unseen.digests.insert(link.digest)),
                UnreadableEntry::Blobs(first) => drop(unseen.blobs.insert(*first)),
                UnreadableEntry::Repositories => unseen.links = true,
                UnreadableEntry::Tag(..) => {}
            }
        }
    }

    fn may_have_file(&self, digest: &Digest) -> bool {
        self.digests.contains(digest) || self.blobs.contains(&digest.first_byte())
    }

    fn may_have_link(&self, digest: &Digest) -> bool {
        self.links || self.digests.contains(digest)
    }
}

async fn list_repository(
    shared: &Inner,
    repo: &RepoName,
    unseen: &mut Unseen,
) -> Result<(), StoreError> {
    for kind in [LinkKind::Revision, LinkKind::Layer] {
        let digests = shared.store.links(repo, kind).await?;
        let unproved = shared.store.unproved(repo, kind).await?;
        let mut without_file = Vec::new();
        for page in digests.chunks(PAGE) {
            shared.with(|index| {
                for digest in page {
                    let link = Link {
                        repo: repo.clone(),
                        kind,
                        digest: *digest,
                    };
                    if unproved.binary_search(digest).is_ok() {
                        index.expect(&link, shared.now());
                    } else {
                        index.confirm(&link, shared.now());
                    }
                    if !index.has_file(digest) {
                        without_file.push(*digest);
                    }
                }
            });
        }
        unseen.digests.extend(unproved);
        // Listing a link may have given its content another name.
        for digest in without_file {
            if let Ok(Some(size)) = shared.store.size(&digest).await {
                shared.with(|index| {
                    if let Some(id) = index.find_content(&digest) {
                        index.file_present(id, size);
                    }
                });
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
        let link = Link {
            repo: repo.clone(),
            kind: LinkKind::Revision,
            digest,
        };
        let linked = shared.with(|index| {
            let entry = index.find_link(&link).and_then(|id| index.entries.get(id));
            entry.is_some_and(|entry| entry.flags.has(entry_flag::SEEN))
        });
        let unread = async || -> Result<bool, StoreError> {
            let unreadable = shared.store.unreadable().await?;
            Ok(Unseen::of(&unreadable).may_have_link(&digest))
        };
        if linked || unread().await? {
            shared.with(|index| index.set_tag(repo, &tag, &digest));
        } else if shared.upkeep == Upkeep::Full {
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
        let (unread, next) = shared.with(|index| index.unread_manifests(at));
        from = next;
        futures_util::stream::iter(unread)
            .for_each_concurrent(READERS, |digest| async move {
                if let Some((media_type, references, sizes)) = read_manifest(shared, &digest).await
                {
                    shared.with(|index| {
                        index.set_references(&digest, media_type, &references);
                        index.expect_sizes(&sizes);
                    });
                }
            })
            .await;
    }
}

/// What can't be read refers to nothing: its parts are images of their own.
async fn read_manifest(
    shared: &Inner,
    digest: &Digest,
) -> Option<(ManifestType, References, Vec<(Digest, u64)>)> {
    let bytes = storage::read_all(&*shared.store, digest, MAX_MANIFEST).await;
    let bytes = bytes.inspect_err(
        |error| tracing::warn!(%digest, error = %on_one_line(&error), "a manifest can't be read"),
    );
    let bytes = bytes.ok()??;
    let size = bytes.len();
    let read = move || {
        let manifest = Manifest::parse(&bytes).ok()?;
        let references = references(&manifest);
        Some((manifest.media_type, references, sizes(&manifest)))
    };
    if size <= QUICK {
        return read();
    }
    // A panic of the parser is a manifest that can't be read.
    tokio::task::spawn_blocking(read).await.ok()?
}

/// What a manifest refers to, with the sizes that it gives for it.
pub(in crate::cache) fn sizes(manifest: &Manifest) -> Vec<(Digest, u64)> {
    let parts = manifest.config.iter().chain(&manifest.blobs);
    let parts = parts.chain(&manifest.manifests);
    parts.map(|part| (part.digest, part.size)).collect()
}

/// The digests that a manifest names.
pub fn references(manifest: &Manifest) -> References {
    let parts = manifest
        .config
        .iter()
        .chain(&manifest.blobs)
        .chain(&manifest.manifests);
    References {
        parts: parts.map(|descriptor| descriptor.digest).collect(),
        subject: manifest.subject.as_ref().map(|subject| subject.digest),
    }
}

async fn settle(shared: &Inner, unseen: &Unseen) {
    let upkeep = shared.upkeep;
    let (mut gone, mut dangling, mut from) = (0, 0, Some(0));
    while let Some(at) = from {
        let (without_link, without_file, next) =
            shared.with(|index| index.settle_entries(at, unseen, upkeep));
        gone += without_link;
        dangling += without_file;
        from = next;
        tokio::task::yield_now().await;
    }
    let (mut orphans, mut from) = (0, Some(0));
    while let Some(at) = from {
        let (more, next) = shared.with(|index| index.settle_contents(at, unseen, upkeep));
        orphans += more;
        from = next;
        tokio::task::yield_now().await;
    }
    if gone + dangling + orphans > 0 {
        tracing::info!(
            entries_without_link = gone,
            links_without_file = dangling,
            files_without_link = orphans,
            "the state and the store were brought together"
        );
    }
    let (entries, bytes) = shared.with(|index| {
        index.complete = true;
        index.unlisted = None;
        index.news = crate::cache::index::WakeUps {
            schedule: true,
            work: true,
            freed: true,
        };
        (index.entries.len(), index.used)
    });
    shared.complete.cancel();
    tracing::info!(entries, bytes, "the index of the cache is complete");
}
