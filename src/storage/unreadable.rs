//! Entries that a listing of the store couldn't read: one bad sector or one link in a circle costs
//! that entry, and not the listing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Link, StoreError};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName, Tag};

/// Entries that are remembered. With more than that, nothing is known of any part of the store.
const MAX_UNREADABLE: usize = 10_000;

/// Something in the store that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub entry: UnreadableEntry,
    pub path: PathBuf,
    /// On one line.
    pub reason: String,
}

/// What an unreadable path holds, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnreadableEntry {
    Blob(Digest),
    Link(Link),
    Tag(RepoName, Tag),
    /// A directory of blobs, all of those whose digest's first byte is this.
    Blobs(u8),
    /// A directory of repositories, links or tags.
    Repositories,
}

/// The entries of one store that couldn't be read when they were listed last.
#[derive(Debug, Default)]
pub(super) struct UnreadableEntries(Mutex<BTreeMap<PathBuf, Unreadable>>);

impl UnreadableEntries {
    /// Remembers an entry that can't be read, and logs it the first time.
    pub(super) fn add(&self, entry: UnreadableEntry, path: &Path, error: &StoreError) {
        let reason = on_one_line(error);
        let mut entries = self.0.lock();
        if entries.len() >= MAX_UNREADABLE || entries.contains_key(path) {
            return;
        }
        let unreadable = Unreadable {
            entry,
            path: path.to_owned(),
            reason: reason.clone(),
        };
        entries.insert(path.to_owned(), unreadable);
        drop(entries);
        tracing::error!(
            path = %path.display(), reason,
            "this entry of the store can't be read and is skipped; `millpond scrub --repair` \
             removes it"
        );
    }

    /// Forgets an entry that could be read, or has gone.
    pub(super) fn remove(&self, path: &Path) {
        let mut entries = self.0.lock();
        if !entries.is_empty() {
            entries.remove(path);
        }
    }

    pub(super) fn all(&self) -> Vec<Unreadable> {
        let mut all: Vec<_> = self.0.lock().values().cloned().collect();
        if all.len() >= MAX_UNREADABLE {
            let more = |entry| Unreadable {
                entry,
                path: PathBuf::new(),
                reason: format!("more than {MAX_UNREADABLE} entries can't be read"),
            };
            all.extend((0..=u8::MAX).map(|first| more(UnreadableEntry::Blobs(first))));
            all.push(more(UnreadableEntry::Repositories));
        }
        all
    }
}
