//! The end of a download: committed to the store, or left as a partial file.

use std::sync::Arc;

use super::storing::{Stored, Storing};
use super::{Download, DownloadError, Inner};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};

/// Verifies size and digest. Everything has been hashed.
pub(super) async fn check(
    storing: &mut Storing,
    digest: Digest,
    size: u64,
) -> Result<(), DownloadError> {
    let mut writer = storing.idle.take().ok_or(DownloadError::Lost)?;
    let sent = writer.hashed;
    if sent != size {
        storing.idle = Some(writer);
        return Err(DownloadError::Length {
            digest: digest.into(),
            announced: size,
            sent,
        });
    }
    let rehash = writer.needs_rehash();
    let finish = move || {
        let got = writer.finish(digest.algorithm());
        (writer, got)
    };
    let (writer, got) = if rehash {
        let finished = tokio::task::spawn_blocking(finish).await;
        finished.map_err(|_panicked| DownloadError::Lost)?
    } else {
        finish()
    };
    storing.idle = Some(writer);
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

/// Commits a verified download of `size` bytes and links it. Followers have their bytes already: a
/// failure leaves the blob uncached and fails no client.
pub(super) async fn commit(shared: &Inner, download: &Download, stored: Stored, size: u64) {
    let Stored { stage, admission } = stored;
    let digest = download.digest;
    // Once the commit has ended no client joins: it finds the blob in the cache.
    let mut repositories: Vec<RepoName> = Vec::new();
    let linked = || {
        for party in shared.registry.committed(&digest, download.id) {
            // Several accounts may have joined for one repository.
            if !repositories.contains(&party.repository) {
                repositories.push(party.repository);
            }
        }
        repositories.clone()
    };
    let origin = shared.registry.proved(&digest, download.id);
    let origin = origin.map(|party| party.repository);
    let committed = admission.commit(stage, size, origin, linked).await;
    if let Err(error) = committed {
        shared.options.metrics.store_failed();
        tracing::error!(%digest, error = %on_one_line(&error), "download served but not cached");
        return;
    }
    let source = Arc::clone(&*download.source.read());
    source.on_stored(&repositories);
}

/// Drops `written`, and so removes its file, on the blocking pool: removing a large file takes long.
pub(super) async fn discard(written: impl Send + 'static) {
    if let Err(panicked) = tokio::task::spawn_blocking(move || drop(written)).await {
        tracing::error!(error = %on_one_line(&panicked), "removing a staged file panicked");
    }
}

/// Leaves the partial file, with its last checkpoint, for the next download of the blob.
pub(super) async fn leave(download: &Download, storing: Storing) {
    let on_disk = storing.idle.as_ref().map_or(0, |writer| writer.file.len());
    if let Some(Stored { stage, admission }) = storing.into_stored() {
        admission.pause(stage, &download.upstream, on_disk).await;
    }
}
