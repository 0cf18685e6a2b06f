//! Continues a download with the next source when one fails.
//!
//! A source that refuses, breaks off or stalls leaves good bytes: the next source continues after them.
//! After wrong bytes, everything that arrived is discarded and the next source starts at byte 0. Bytes
//! that followers have already received are compared with those of the next source; a follower whose
//! bytes differ gets an error.

use std::sync::Arc;

use super::DownloadError;
use super::admission::Space;
use super::commit;
use super::plan::Plan;
use super::storing::Storing;
use super::suspect::Suspect;
use super::task::Transfer;
use super::writer::Writer;
use crate::error_chain::on_one_line;

impl Transfer<'_> {
    /// Handles an error. `Ok`: the download continues. `Err`: it has failed; when the error was a
    /// source's, the registry has forgotten the download already.
    pub(super) async fn fail_over(&mut self, error: DownloadError) -> Result<(), DownloadError> {
        // Whether the bytes contradict each other, the announced size or the digest.
        let wrong = match &error {
            DownloadError::Upstream(_) => false,
            DownloadError::Digest { .. }
            | DownloadError::Length { .. }
            | DownloadError::Changed { .. } => true,
            DownloadError::Lost
            | DownloadError::Stuck
            | DownloadError::Busy
            | DownloadError::Stopping => return Err(error),
        };
        let digest = self.download.digest;
        if wrong && (self.streams.source.distrust(&error) || self.mixed) {
            // Bytes of several sources or endpoints are mixed: the current source starts again, alone.
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
        self.shared.options.metrics.downloads.sources_changed.inc();
        if wrong {
            self.restart(&error).await;
        } else {
            self.stop_streams();
            self.download.progress.clear_marks();
            self.plan.change_source();
            self.mixed = self.opened || self.resumed.is_some();
        }
        // Replicas may wait for this download already.
        if !self.streams.source.reads_from_peer() {
            source.avoid_peers();
        }
        self.member = member;
        self.answered = false;
        *self.download.source.write() = Arc::clone(&source);
        self.streams.source = source;
        Ok(())
    }

    /// Discards the bytes that have arrived. Keeps the file while followers have bytes to compare.
    async fn restart(&mut self, error: &DownloadError) {
        self.stop_streams();
        self.flush().await;
        let algorithm = self.download.digest.algorithm();
        let nothing = Storing::nothing(algorithm);
        let storing = std::mem::replace(&mut self.storing, nothing);
        let (mut writer, admission) = (storing.idle, storing.admission);
        let older = self.suspect.take();
        let oldest = writer.as_mut().and_then(|writer| writer.suspect.take());
        let content = writer.as_deref().and_then(Writer::content);
        let file = writer.map(|writer| (writer.stage, writer.file));
        let (stage, known) = file.unwrap_or_default();
        self.download.progress.restart(&known, error);
        // Before the next stage: there is one at a time.
        commit::discard(stage).await;
        let suspect = content.map(|content| Suspect {
            content,
            ranges: known,
            error: error.clone(),
            _admission: admission,
        });
        if self.download.progress.is_comparing() {
            self.suspect = suspect;
            commit::discard((older, oldest)).await;
        } else {
            commit::discard((older, oldest, suspect)).await;
        }
        self.plan = Plan::new(self.shared.settings().segments, self.plan.fill);
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
