//! The only deleter.
//!
//! Work comes as content to look at. What is due is decided under the lock; then the content is
//! marked, the lock is given back, and the links (for a manifest first the tags that name it) and at
//! last the file are removed. While content is marked nobody gets a hold on it, and content that is
//! held is never marked. So whoever holds a digest while he opens or links it can't lose it, and the
//! file of content that some repository links is never removed.
//!
//! A crash in between leaves content without links, or links without tags: the next start removes
//! the rest. What can't be removed is tried again later.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::expiry::RETRY;
use crate::cache::Inner;
use crate::cache::index::Index;
use crate::cache::index::entry::{Content, Entry, content_flag, entry_flag};
use crate::cache::index::slab::Id;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, Tag};
use crate::storage::{Link, LinkKind};

/// Contents that are deleted at one time.
const SWEEPERS: usize = 4;

/// Content that is marked, and what of it goes.
#[derive(Debug)]
pub(in crate::cache) struct Job {
    content: Id<Content>,
    digest: Digest,
    links: Vec<Condemned>,
}

#[derive(Debug)]
struct Condemned {
    entry: Id<Entry>,
    link: Link,
    /// Tags that name the manifest.
    tags: Vec<Tag>,
}

impl Index {
    /// Puts content into the sweeper's queue.
    pub(in crate::cache) fn enqueue(&mut self, id: Id<Content>) {
        if let Some(content) = self.contents.get_mut(id)
            && !content.flags.has(content_flag::QUEUED)
        {
            content.flags.set(content_flag::QUEUED);
            self.sweep.push_back(id);
            self.news.work = true;
        }
    }

    /// Marks the next content of which something goes.
    pub(in crate::cache) fn take_job(&mut self, now: Timestamp) -> Option<Job> {
        if !self.complete {
            return None;
        }
        while let Some(id) = self.sweep.pop_front() {
            let Some(content) = self.contents.get_mut(id) else {
                continue;
            };
            content.flags.clear(content_flag::QUEUED);
            // What is marked already is looked at again when that is done.
            if content.flags.has(content_flag::DELETING) {
                continue;
            }
            if content.holds > 0 {
                self.postpone(id, now);
                continue;
            }
            let links = self.condemned(id, now);
            let Some(content) = self.contents.get_mut(id) else {
                continue;
            };
            let orphan = content.first.is_none() && content.flags.has(content_flag::FILE);
            if links.is_empty() && !orphan {
                self.spare(id);
                self.release_content(id);
                continue;
            }
            content.flags.set(content_flag::DELETING);
            self.going.begins();
            let digest = content.digest();
            self.deleting += 1;
            return Some(Job {
                content: id,
                digest,
                links,
            });
        }
        self.news.freed = true;
        None
    }

    /// Leaves held content alone: expired entries for a while, evicted ones altogether, condemned
    /// ones until it is released.
    fn postpone(&mut self, id: Id<Content>, now: Timestamp) {
        self.spare(id);
        let expired: Vec<_> = self
            .entries_of(id)
            .filter(|(_, entry)| entry.flags.has(entry_flag::EXPIRED))
            .map(|(id, _)| id)
            .collect();
        for entry in expired {
            self.put_off(entry, now);
        }
        self.news.freed = true;
    }

    fn put_off(&mut self, id: Id<Entry>, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.flags.clear(entry_flag::EXPIRED);
            self.schedule(id, now.after(RETRY).seconds());
        }
    }

    /// The links that go. An entry that was used since it expired doesn't.
    fn condemned(&mut self, id: Id<Content>, now: Timestamp) -> Vec<Condemned> {
        let going = content_flag::EVICTED | content_flag::LOST;
        let whole = self
            .contents
            .get(id)
            .is_some_and(|content| content.flags.has(going));
        let (mut due, mut used) = (Vec::new(), Vec::new());
        for (entry_id, entry) in self.entries_of(id) {
            let expired = entry.flags.has(entry_flag::EXPIRED);
            let in_time = || self.deadline(entry_id).is_none_or(|at| at > now.seconds());
            if whole || entry.flags.has(entry_flag::CONDEMNED) || (expired && !in_time()) {
                due.extend(self.condemn(entry_id, entry));
            } else if expired {
                used.push(entry_id);
            }
        }
        for entry in used {
            if let Some(known) = self.entries.get_mut(entry) {
                known.flags.clear(entry_flag::EXPIRED);
            }
            if let Some(deadline) = self.deadline(entry) {
                self.schedule(entry, deadline);
            }
        }
        due
    }

    fn condemn(&self, id: Id<Entry>, entry: &Entry) -> Option<Condemned> {
        let tags = match entry.kind {
            LinkKind::Layer => Vec::new(),
            LinkKind::Revision => {
                let hash = self.hash_content(entry.content);
                let tags = &self.repos.get(entry.repo)?.tags;
                let named = tags.iter().filter(|(_, named)| **named == hash);
                named.map(|(tag, _)| tag.clone()).collect()
            }
        };
        Some(Condemned {
            entry: id,
            link: self.link_of(entry)?,
            tags,
        })
    }

    /// Notes what became of the links. True when the file is to go, too.
    fn unlinked(&mut self, job: &Job, gone: &[bool], now: Timestamp) -> bool {
        for (condemned, gone) in job.links.iter().zip(gone) {
            if !gone {
                self.put_off(condemned.entry, now);
                if let Some(entry) = self.entries.get_mut(condemned.entry) {
                    entry.flags.set(entry_flag::FAILED);
                }
                let lost = |content: &Content| content.flags.has(content_flag::LOST);
                if self.contents.get(job.content).is_some_and(lost)
                    && let Some(entry) = self.entries.get_mut(condemned.entry)
                {
                    // However late its time, it is tried again.
                    entry.flags.set(entry_flag::CONDEMNED);
                }
                continue;
            }
            let repo = self.find_repo(condemned.link.repo.as_str());
            if let Some(repo) = repo.and_then(|repo| self.repos.get_mut(repo)) {
                for tag in &condemned.tags {
                    repo.tags.remove(tag);
                }
            }
            self.remove_entry(condemned.entry);
        }
        // Of what was set aside a new file may have come that this index took for the old one.
        let file = content_flag::FILE | content_flag::LOST;
        let content = self.contents.get(job.content);
        content.is_some_and(|content| content.first.is_none() && content.flags.has(file))
    }

    /// Takes the mark off. `removed` tells what became of the file, if it was to go.
    fn swept(&mut self, id: Id<Content>, removed: Option<bool>, now: Timestamp) {
        match removed {
            Some(true) => self.file_removed(id),
            Some(false) => self.retries.push_back((now.after(RETRY).seconds(), id)),
            None => {}
        }
        self.spare(id);
        if let Some(content) = self.contents.get_mut(id) {
            content.flags.clear(content_flag::DELETING);
            self.deleting = self.deleting.saturating_sub(1);
        }
        // The next deadline may be that of a retry.
        self.news.schedule |= removed == Some(false);
        self.news.freed = true;
        self.release_content(id);
    }
}

/// Runs until `quit`; what is under way is finished.
pub(in crate::cache) async fn run(shared: Arc<Inner>, quit: CancellationToken) {
    let mut running = FuturesUnordered::new();
    loop {
        while !quit.is_cancelled()
            && running.len() < SWEEPERS
            && let Some(job) = shared.with(|index| index.take_job(shared.now()))
        {
            running.push(sweep(&shared, job));
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

async fn sweep(shared: &Inner, job: Job) {
    let mut gone = Vec::with_capacity(job.links.len());
    for condemned in &job.links {
        gone.push(unlink(shared, condemned).await);
    }
    let file = shared.with(|index| index.unlinked(&job, &gone, shared.now()));
    let mut removed = None;
    if file {
        let result = shared.store.remove(&job.digest).await;
        removed = Some(shared.succeeded("blob", result.map(drop)));
    }
    shared.with(|index| index.swept(job.content, removed, shared.now()));
}

/// Removes the tags that name a manifest, then the link. The tags first, so that no tag names what
/// is gone.
async fn unlink(shared: &Inner, condemned: &Condemned) -> bool {
    let Link { repo, digest, .. } = &condemned.link;
    for tag in &condemned.tags {
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
    let removed = shared.store.unlink(&condemned.link).await;
    shared.succeeded("link", removed.map(drop))
}
