//! Continues a download with the next source when one fails.
//!
//! A source that refuses, breaks off or stalls leaves good bytes: the next source continues after them.
//! After wrong bytes, everything that arrived is discarded and the next source starts at byte 0. Bytes
//! that followers have already received are compared with those of the next source; a follower whose
//! bytes differ gets an error.

use std::sync::Arc;

use super::commit;
use super::place::Space;
use super::plan::Plan;
use super::progress::Given;
use super::storing::Storing;
use super::suspect::Suspect;
use super::task::Transfer;
use super::writer::Writer;
use super::{DownloadError, Source};
use crate::error_chain::on_one_line;
use crate::oci::RangeSet;

/// What an error says about the bytes that have arrived.
enum Bytes {
    Good,
    /// They contradict each other, the announced size or the digest.
    Wrong,
}

impl Transfer<'_> {
    /// Handles an error. `Ok`: the download continues. `Err`: it has failed; when the error was a
    /// source's, the registry has forgotten the download already.
    pub(super) async fn fail_over(&mut self, error: DownloadError) -> Result<(), DownloadError> {
        let bytes = match &error {
            DownloadError::Upstream(_) => Bytes::Good,
            DownloadError::Digest { .. }
            | DownloadError::Length { .. }
            | DownloadError::Changed { .. } => Bytes::Wrong,
            DownloadError::Store(_)
            | DownloadError::Lost
            | DownloadError::Stuck
            | DownloadError::Busy
            | DownloadError::Stopping => return Err(error),
        };
        let digest = self.download.digest;
        if matches!(bytes, Bytes::Wrong) && self.mixed {
            // Bytes of several sources are mixed: the current source starts again, alone.
            tracing::warn!(%digest, error = %on_one_line(&error), "starting the download again without earlier bytes");
            self.restart(&error).await;
            return Ok(());
        }
        let (registry, id) = (&self.shared.registry, self.download.id);
        let next = registry.next_source(&digest, id, self.member);
        let progress = &self.download.progress;
        progress.source_failed(self.member, error.clone());
        let Some((member, source)) = next else {
            return Err(error);
        };
        tracing::warn!(%digest, error = %on_one_line(&error), "a source failed; continuing with the source of the next repository");
        self.shared.metrics.downloads.sources_changed.inc();
        match bytes {
            Bytes::Good => {
                self.stop_streams();
                self.download.progress.clear_marks();
                self.plan.change_source();
                self.mixed = self.opened || self.resumed.is_some();
            }
            Bytes::Wrong => self.restart(&error).await,
        }
        self.change_source(member, source);
        Ok(())
    }

    fn change_source(&mut self, member: u64, source: Arc<dyn Source>) {
        self.member = member;
        self.answered = false;
        self.streams.change_source(source);
    }

    /// Discards the bytes that have arrived. Keeps the file while followers have bytes to compare.
    async fn restart(&mut self, error: &DownloadError) {
        self.stop_streams();
        self.flush().await;
        let algorithm = self.download.digest.algorithm();
        let nothing = Storing::new(None, algorithm, RangeSet::new(), None);
        let (writer, place) = std::mem::replace(&mut self.storing, nothing).into_parts();
        let older = self.suspect.take();
        let mut writer = writer;
        let oldest = writer.as_mut().and_then(|writer| writer.take_suspect());
        let content = writer.as_deref().and_then(Writer::content);
        let (stage, known) = writer.map(|writer| writer.into_file()).unwrap_or_default();
        let given = self.download.progress.restart(&known, error);
        // Before the next stage: there is one at a time.
        commit::discard(stage).await;
        let suspect = content.map(|content| Suspect {
            content,
            ranges: known,
            _place: place,
        });
        if given == Given::Some {
            self.suspect = suspect;
            commit::discard((older, oldest)).await;
        } else {
            commit::discard((older, oldest, suspect)).await;
        }
        self.plan = Plan::new(self.shared.settings.segments, self.plan.fill);
        self.suspected = Some(error.clone());
        self.opened = false;
        self.resumed = None;
        self.ended = false;
        self.received = 0;
        self.mixed = false;
        self.space = Space::default();
        self.replan = true;
    }

    /// Writes the pending bytes, so that they can be read back for the comparison.
    async fn flush(&mut self) {
        while self.storing.is_busy() {
            let Ok(mut writer) = self.storing.written().await else {
                return;
            };
            // Stops hashing: the digest is of no interest any more.
            writer.changed.get_or_insert(0);
            self.storing.give_back(writer);
        }
    }
}
