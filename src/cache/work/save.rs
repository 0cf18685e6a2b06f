//! Saving what the index collects, in the background.

use std::sync::Arc;

use crate::cache::index::RETRY;
use crate::cache::state::file;
use crate::cache::state::journal::Journal;
use crate::cache::state::timestamp::Timestamp;
use crate::cache::{CacheError, Inner};
use crate::error_chain::on_one_line;

/// Changes that are written at a time.
const MAX_CHANGES: usize = 65_536;
/// Entries that are copied under one lock.
const PAGE: usize = 1024;

/// Saves what the index collects. Owned by the one task that does.
#[derive(Debug)]
pub(crate) struct Saver {
    /// None while the blocking pool has it, and for good when it was lost there.
    journal: Option<Journal>,
    /// The snapshot lacks something that the journal doesn't have either: a new one is to be tried,
    /// not before this time.
    pub(super) owed: Option<Timestamp>,
}

impl Saver {
    pub(super) fn new(journal: Journal, owed: bool) -> Self {
        Self {
            journal: Some(journal),
            owed: owed.then(Timestamp::default),
        }
    }

    /// Appends what has changed, and returns how many bytes that took. When it fails, a new snapshot is
    /// owed, which has it all.
    pub(super) async fn save(&mut self, shared: &Arc<Inner>) -> u64 {
        let before = self.journal_bytes();
        loop {
            let began = tokio::time::Instant::now();
            let changes = shared.with(|index| index.take_changes(MAX_CHANGES));
            if changes.removed.is_empty() && changes.put.is_empty() {
                return self.journal_bytes().saturating_sub(before);
            }
            let saved = self
                .blocking(move |journal| {
                    let mut lines = Vec::new();
                    for link in &changes.removed {
                        file::write_removed(&mut lines, link);
                    }
                    for record in &changes.put {
                        file::write_put(&mut lines, record);
                    }
                    journal.append(&lines)
                })
                .await;
            if saved.is_ok() {
                shared.counts.lock().last_save = began.elapsed();
            }
            self.note(shared, saved);
        }
    }

    fn journal_bytes(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::bytes)
    }

    /// Folds when the journal has grown, or when a save failed.
    pub(super) async fn fold_if_due(&mut self, shared: &Arc<Inner>) {
        let grown = self.journal.as_ref().is_some_and(Journal::wants_fold);
        if grown || self.owed.is_some_and(|retry_at| retry_at <= shared.now()) {
            self.fold(shared).await;
        }
    }

    /// Writes everything into a new snapshot.
    pub(super) async fn fold(&mut self, shared: &Arc<Inner>) {
        // What changes from here on is in the snapshot or still to be saved, or both.
        shared.with(|index| drop(index.take_changes(usize::MAX)));
        let source = Arc::clone(shared);
        let mut from = Some(0);
        let folded = self
            .blocking(move |journal| {
                journal.fold(&mut || {
                    let at = from?;
                    let (records, next) = source.with(|index| index.records(at, PAGE));
                    from = next;
                    Some(records)
                })
            })
            .await;
        self.note(shared, folded);
    }

    fn note(&mut self, shared: &Inner, result: Result<(), CacheError>) {
        self.owed = None;
        if let Err(error) = result {
            self.owed = Some(shared.now().after(RETRY));
            shared.counts.lock().save_failures += 1;
            tracing::warn!(error = %on_one_line(&error), "the expiry state can't be saved");
        }
    }

    async fn blocking(
        &mut self,
        step: impl FnOnce(&mut Journal) -> Result<(), CacheError> + Send + 'static,
    ) -> Result<(), CacheError> {
        let Some(mut journal) = self.journal.take() else {
            return Ok(());
        };
        let done = tokio::task::spawn_blocking(move || {
            let result = step(&mut journal);
            (journal, result)
        });
        match done.await {
            Ok((journal, result)) => {
                self.journal = Some(journal);
                result
            }
            Err(source) => Err(CacheError::Lost { source }),
        }
    }
}
