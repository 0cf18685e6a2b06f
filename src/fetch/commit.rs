//! A download's end: part of the store, or left for later.

use super::storing::Storing;
use super::{Download, FetchError, Shared, writer};
use crate::causes::on_one_line;
use crate::oci::{Digest, RepoName};
use crate::retention::{Hold, Reservation};
use crate::store::{Link, LinkKind, Stage};

/// A download that has the digest.
pub(super) struct Verified {
    /// Bytes.
    pub(super) size: u64,
    /// Its place in the store, if it has one.
    pub(super) place: Option<(Box<dyn Stage>, Reservation, Hold)>,
}

/// Checks length and digest. Everything has been hashed. What is wrong is removed.
pub(super) async fn verify(
    storing: Storing,
    digest: Digest,
    size: u64,
) -> Result<Verified, FetchError> {
    let (writer, place) = storing.into_parts();
    let finished = writer.ok_or(FetchError::Lost)?;
    let (sent, repeated) = (finished.hashed, finished.needs_rehash());
    let (stage, hasher) = finished.into_parts();
    if sent != size {
        discard(stage).await;
        return Err(FetchError::Length {
            digest: digest.into(),
            announced: size,
            sent,
        });
    }
    let got = hasher.finish();
    if got != digest {
        discard(stage).await;
        return Err(FetchError::Digest {
            expected: digest.into(),
            got: got.into(),
        });
    }
    let stage = match stage {
        Some(stage) if repeated => Some(check_again(stage, digest, size).await?),
        stage => stage,
    };
    let place = stage
        .zip(place)
        .map(|(stage, (reservation, hold))| (stage, reservation, hold));
    Ok(Verified { size, place })
}

/// Hashes the file once more. Bytes of it were offered more than once, so that the running hash is
/// not all that says what is in it.
async fn check_again(
    stage: Box<dyn Stage>,
    digest: Digest,
    size: u64,
) -> Result<Box<dyn Stage>, FetchError> {
    let check = move || {
        let got = writer::rehash(&*stage, digest.algorithm(), size);
        (got == Some(digest)).then_some(stage).ok_or(got)
    };
    let checked = tokio::task::spawn_blocking(check).await;
    checked
        .map_err(|_panicked| FetchError::Lost)?
        .map_err(|got| {
            tracing::error!(%digest, ?got, "the file differs from what was hashed");
            FetchError::Changed {
                digest: digest.into(),
                at: 0,
            }
        })
}

/// Makes a verified download part of the store. Its followers have their bytes already, so a
/// failure costs the cache and not the clients.
pub(super) async fn commit(shared: &Shared, download: &Download, verified: Verified) {
    let Verified { size, place } = verified;
    let Some((stage, reservation, hold)) = place else {
        return;
    };
    let digest = download.digest;
    let committed = tokio::task::spawn_blocking(move || stage.commit()).await;
    // From here on nobody joins: who asks finds the blob in the store.
    let repositories = shared.running.committed(&digest, download.id);
    match committed {
        Ok(Ok(placed)) => {
            reservation.commit(&hold, size);
            if let Some(modified) = placed {
                hold.verified(size, modified);
            }
            // A partial that was left behind this download's back has gone with the commit.
            drop(shared.partials.take(&digest));
            link_all(shared, digest, size, repositories).await;
        }
        Ok(Err(error)) => {
            shared.metrics.store_failed();
            tracing::error!(%digest, error = %on_one_line(&error), "download served but not cached");
        }
        Err(panicked) => {
            tracing::error!(%digest, error = %on_one_line(&panicked), "commit panicked");
        }
    }
    drop(hold);
}

/// Links the blob into each repository. One that fails costs that repository the blob, and no other.
async fn link_all(shared: &Shared, digest: Digest, size: u64, repositories: Vec<RepoName>) {
    for repo in repositories {
        let link = Link {
            repo,
            kind: LinkKind::Layer,
            digest,
        };
        match shared.store.link(&link).await {
            Ok(()) => shared
                .retention
                .linked(&link.repo, link.kind, &digest, size),
            Err(error) => {
                shared.metrics.store_failed();
                tracing::error!(%digest, repo = %link.repo, error = %on_one_line(&error), "can't link the blob");
            }
        }
    }
}

/// Removes what was written, by dropping what holds it: on the blocking pool, because the file may
/// be large.
pub(super) async fn discard(written: impl Send + 'static) {
    if let Err(panicked) = tokio::task::spawn_blocking(move || drop(written)).await {
        tracing::error!(error = %on_one_line(&panicked), "removing what was written panicked");
    }
}

/// Leaves what has been noted on disk for whoever asks for the blob next.
pub(super) async fn leave(shared: &Shared, digest: Digest, storing: Storing) {
    let (writer, place) = storing.into_parts();
    let on_disk = writer.as_ref().map_or(0, |writer| writer.file.len());
    let stage = writer.and_then(|writer| writer.into_parts().0);
    let Some((stage, (mut reservation, _hold))) = stage.zip(place) else {
        return;
    };
    reservation.shrink(on_disk);
    let left = tokio::task::spawn_blocking(move || stage.leave()).await;
    if let Err(panicked) = left {
        tracing::error!(%digest, error = %on_one_line(&panicked), "leaving a partial download panicked");
        return;
    }
    shared.partials.park(digest, reservation).await;
}
