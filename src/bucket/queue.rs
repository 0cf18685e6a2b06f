//! What was committed here and isn't in the bucket yet.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cache::LinkKind;
use crate::oci::{Digest, RepoName, Tag};

/// Entries at most, also of a saved queue. More are dropped: each costs a request to the upstream later.
pub(super) const MAX_QUEUED: usize = 10_000;

/// A link of a repository, which is to be in the bucket with its content, and perhaps a tag that names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upload {
    pub repo: RepoName,
    pub kind: LinkKind,
    pub digest: Digest,
    /// Of a manifest only.
    pub tag: Option<Tag>,
}

impl Upload {
    /// What is to be in the bucket.
    pub fn new(repo: &RepoName, kind: LinkKind, digest: &Digest, tag: Option<&Tag>) -> Self {
        Self {
            repo: repo.clone(),
            kind,
            digest: *digest,
            tag: tag.cloned(),
        }
    }
}

/// An upload, and whether the bucket has just said that it lacks the content, or has it wrong.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) upload: Upload,
    pub(super) is_absent: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    added: Notify,
    /// Something has ended.
    freed: Notify,
}

/// The right to upload some content, or to remove its link, which nobody else has meanwhile.
#[must_use = "others may change it once this is dropped"]
#[expect(missing_debug_implementations, reason = "it has nothing to show")]
pub struct Claim<'a> {
    queue: &'a Queue,
    entry: Entry,
    /// Whether it has been queued, and isn't done yet.
    is_due: bool,
}

impl Claim<'_> {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The upload isn't needed any more.
    pub(super) fn done(mut self) {
        self.is_due = false;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.queue.ended(self.entry.clone(), self.is_due);
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// All that wait or run.
    known: HashSet<Upload>,
    running: Vec<Entry>,
    /// Counts changes.
    version: u64,
}

impl Queue {
    /// Adds an upload, unless it waits or runs already. False where the queue is full.
    pub(super) fn push(&self, entry: Entry) -> bool {
        let mut state = self.state.lock();
        if state.known.len() >= MAX_QUEUED {
            return state.known.contains(&entry.upload);
        }
        if state.known.insert(entry.upload.clone()) {
            state.waiting.push_back(entry);
            state.version += 1;
            drop(state);
            self.added.notify_one();
        }
        true
    }

    /// Nothing runs: what did when its task panicked waits again.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        let running = std::mem::take(&mut state.running);
        state.waiting.extend(running);
    }

    /// The next upload of content that isn't being uploaded. None once `drain` is done and nothing waits.
    pub(super) async fn next(&self, drain: &CancellationToken) -> Option<Entry> {
        loop {
            let added = self.added.notified();
            {
                let mut state = self.state.lock();
                if let Some(entry) = state.take() {
                    drop(state);
                    // There may be work for another worker, too.
                    self.added.notify_one();
                    return Some(entry);
                }
                if drain.is_cancelled() && state.waiting.is_empty() {
                    return None;
                }
            }
            tokio::select! {
                () = added => {}
                () = drain.cancelled(), if !drain.is_cancelled() => {}
            }
        }
    }

    /// Makes an upload one that runs, queued or not, as soon as its content isn't being uploaded. One that was
    /// queued is queued again, unless it is [done](Claim::done).
    pub(super) async fn claim(&self, upload: &Upload) -> Claim<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some((entry, is_due)) = self.state.lock().claim(upload) {
                return Claim {
                    queue: self,
                    entry,
                    is_due,
                };
            }
            freed.await;
        }
    }

    /// Forgets uploads that wait.
    pub(super) fn withdraw(&self, is_meant: impl Fn(&Upload) -> bool) {
        let mut state = self.state.lock();
        let State {
            waiting,
            known,
            version,
            ..
        } = &mut *state;
        waiting.retain(|entry| {
            let stays = !is_meant(&entry.upload);
            if !stays {
                known.remove(&entry.upload);
                *version += 1;
            }
            stays
        });
    }

    /// An upload has ended: it isn't needed any more, or has to be tried again.
    pub(super) fn ended(&self, entry: Entry, again: bool) {
        let mut state = self.state.lock();
        state.running.retain(|other| other.upload != entry.upload);
        if again {
            state.waiting.push_back(entry);
        } else {
            state.known.remove(&entry.upload);
        }
        state.version += 1;
        drop(state);
        self.freed.notify_waiters();
        // Others may wait for the same content, and the last one ends a drain.
        self.added.notify_waiters();
        self.added.notify_one();
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().known.len()
    }

    /// Counts the changes so far.
    pub(super) fn version(&self) -> u64 {
        self.state.lock().version
    }

    /// All that wait or run, as JSON.
    pub(super) fn saved(&self) -> (u64, Saved) {
        let state = self.state.lock();
        let all = state.running.iter().chain(&state.waiting);
        let uploads = all.map(|entry| SavedUpload::of(&entry.upload)).collect();
        (state.version, Saved { uploads })
    }

    /// Adds what an earlier process has left.
    pub(super) fn restore(&self, saved: Saved) {
        let uploads = saved.uploads.into_iter().take(MAX_QUEUED);
        for upload in uploads.filter_map(SavedUpload::upload) {
            self.push(Entry {
                upload,
                is_absent: false,
            });
        }
    }
}

impl State {
    /// The entry, and whether it was queued. None while the content is being uploaded.
    fn claim(&mut self, upload: &Upload) -> Option<(Entry, bool)> {
        let digest = upload.digest;
        if self
            .running
            .iter()
            .any(|other| other.upload.digest == digest)
        {
            return None;
        }
        let before = self.waiting.len();
        self.waiting.retain(|other| other.upload != *upload);
        let is_due = self.waiting.len() < before;
        let entry = Entry {
            upload: upload.clone(),
            is_absent: false,
        };
        self.known.insert(upload.clone());
        self.running.push(entry.clone());
        Some((entry, is_due))
    }

    fn take(&mut self) -> Option<Entry> {
        let running = &self.running;
        let is_free = |entry: &Entry| {
            let digest = entry.upload.digest;
            running.iter().all(|other| other.upload.digest != digest)
        };
        let at = self.waiting.iter().position(is_free)?;
        let entry = self.waiting.remove(at)?;
        self.running.push(entry.clone());
        Some(entry)
    }
}

/// The queue in its file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    uploads: Vec<SavedUpload>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedUpload {
    repository: String,
    /// `layer` or `manifest`.
    kind: String,
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

impl SavedUpload {
    fn of(upload: &Upload) -> Self {
        let kind = match upload.kind {
            LinkKind::Layer => "layer",
            LinkKind::Revision => "manifest",
        };
        Self {
            repository: upload.repo.to_string(),
            kind: kind.to_owned(),
            digest: upload.digest,
            tag: upload.tag.as_ref().map(ToString::to_string),
        }
    }

    /// None for what no version writes.
    fn upload(self) -> Option<Upload> {
        let kind = match self.kind.as_str() {
            "layer" => LinkKind::Layer,
            "manifest" => LinkKind::Revision,
            _ => return None,
        };
        Some(Upload {
            repo: self.repository.parse().ok()?,
            kind,
            digest: self.digest,
            tag: self.tag.map(|tag| tag.parse()).transpose().ok()?,
        })
    }
}
