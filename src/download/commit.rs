//! The end of a download: committed to the store, or left as a partial file.

use super::storing::Storing;
use super::{Download, DownloadError, Inner};
use crate::cache::Admission;
use crate::cache::Stage;
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// A complete download whose digest is verified.
pub(super) struct VerifiedDownload {
    /// Bytes.
    pub(super) size: u64,
    /// Its staged file and reserved space; none when it was passed through.
    pub(super) place: Option<(Box<dyn Stage>, Admission)>,
}

impl VerifiedDownload {
    /// `storing` has passed [`check`].
    pub(super) fn new(storing: Storing, size: u64) -> Self {
        let (writer, place) = storing.into_parts();
        let stage = writer.and_then(|writer| writer.into_stage());
        let place = stage.zip(place);
        Self { size, place }
    }
}

/// Verifies size and digest. Everything has been hashed.
pub(super) async fn check(
    storing: &mut Storing,
    digest: Digest,
    size: u64,
) -> Result<(), DownloadError> {
    let mut writer = storing.take_idle().ok_or(DownloadError::Lost)?;
    let sent = writer.hashed;
    if sent != size {
        storing.put_back(writer);
        return Err(DownloadError::Length {
            digest: digest.into(),
            announced: size,
            sent,
        });
    }
    let (writer, got) = if writer.needs_rehash() {
        let hash = move || {
            let got = writer.finish(digest.algorithm());
            (writer, got)
        };
        let hashed = tokio::task::spawn_blocking(hash).await;
        hashed.map_err(|_panicked| DownloadError::Lost)?
    } else {
        let got = writer.finish(digest.algorithm());
        (writer, got)
    };
    storing.put_back(writer);
    let expected = digest.into();
    match got {
        Some(got) if got == digest => Ok(()),
        Some(got) => Err(DownloadError::Digest {
            expected,
            got: got.into(),
        }),
        None => Err(DownloadError::Changed {
            digest: expected,
            at: 0,
        }),
    }
}

/// Commits a verified download and links it. Followers have their bytes already: a failure leaves the
/// blob uncached and fails no client.
pub(super) async fn commit(shared: &Inner, download: &Download, verified: VerifiedDownload) {
    let VerifiedDownload { size, place } = verified;
    let Some((stage, admission)) = place else {
        return;
    };
    let digest = download.digest;
    // Once the commit has ended no client joins: it finds the blob in the cache.
    let repositories = || shared.registry.committed(&digest, download.id);
    if let Err(error) = admission.commit(stage, size, repositories).await {
        shared.metrics.store_failed();
        tracing::error!(%digest, error = %on_one_line(&error), "download served but not cached");
    }
}

/// Drops `written`, and so removes its file, on the blocking pool: removing a large file takes long.
pub(super) async fn discard(written: impl Send + 'static) {
    if let Err(panicked) = tokio::task::spawn_blocking(move || drop(written)).await {
        tracing::error!(error = %on_one_line(&panicked), "removing what was written panicked");
    }
}

/// Leaves the partial file, with its last checkpoint, for the next download of the blob.
pub(super) async fn leave(download: &Download, storing: Storing) {
    let (writer, place) = storing.into_parts();
    let on_disk = writer.as_ref().map_or(0, |writer| writer.file.len());
    let stage = writer.and_then(|writer| writer.into_stage());
    if let Some((stage, admission)) = stage.zip(place) {
        admission.pause(stage, &download.upstream, on_disk).await;
    }
}
