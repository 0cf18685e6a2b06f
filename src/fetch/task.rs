//! The detached download: upstream to store, in one task that outlives its clients.

use std::sync::Arc;
use std::time::Duration;

use super::sink::{Sink, UNTOLD, Writer};
use super::{Download, FetchError, Shared, Source};
use crate::oci::{Digest, RepoName};
use crate::retention::{Hold, Reservation};
use crate::store::{Link, LinkKind, Stage, StoreError};
use crate::upstream::{BlobBody, BlobStream, UpstreamError};

/// How often in a row a download is taken up again before it fails.
const MAX_RESUMES: u32 = 5;
/// Bytes after which a broken stream counts as progress: the row of [`MAX_RESUMES`] starts anew.
const PROGRESS: u64 = 1024 * 1024;
/// The first pause before resuming; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Runs one download to its end, whatever that is, and tells its followers.
pub(super) async fn run(shared: Arc<Shared>, download: Arc<Download>, source: Arc<dyn Source>) {
    let guard = Guard {
        shared: &shared,
        download: &download,
    };
    let transfer = Transfer {
        shared: &shared,
        download: &download,
        source: &*source,
    };
    let stopped = shared.stop.cancelled();
    let result = tokio::select! {
        result = transfer.run() => result,
        () = stopped => Err(FetchError::Stopping),
    };
    match result {
        Ok(Some(done)) => {
            download.progress.verified();
            commit(&shared, &download, done).await;
        }
        Ok(None) => {
            // Passed through. Who comes now starts anew.
            shared.forget(&download);
            download.progress.verified();
        }
        Err(error) => {
            tracing::warn!(digest = %download.digest, %error, "download failed");
            // Forgotten first: who asks after this failure starts anew and isn't told of it.
            shared.forget(&download);
            download.progress.failed(error);
        }
    }
    drop(guard);
}

/// Makes sure that followers hear of the end also when the task is dropped or panics.
struct Guard<'a> {
    shared: &'a Shared,
    download: &'a Download,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.download);
        self.download.progress.failed(FetchError::Lost);
    }
}

/// A download that has the digest, and its place in the store.
struct Verified {
    stage: Box<dyn Stage>,
    /// Bytes.
    size: u64,
    reservation: Reservation,
    /// Keeps the file from being removed before it is linked.
    hold: Hold,
}

/// Makes a verified download part of the store. Its followers have their bytes already, so a
/// failure costs the cache and not the clients.
async fn commit(shared: &Shared, download: &Download, verified: Verified) {
    let Verified {
        stage,
        size,
        reservation,
        hold,
    } = verified;
    let digest = download.digest;
    let committed = tokio::task::spawn_blocking(move || stage.commit()).await;
    // From here on nobody joins: who asks finds the blob in the store.
    let repositories = download.repositories().take().unwrap_or_default();
    let stored = match committed {
        Ok(Ok(())) => {
            reservation.commit(&hold, size);
            link_all(shared, digest, size, repositories).await
        }
        Ok(Err(error)) => Err(error),
        Err(panicked) => {
            tracing::error!(%digest, error = %panicked, "commit panicked");
            return;
        }
    };
    if let Err(error) = stored {
        shared.metrics.store_failed();
        tracing::error!(%digest, %error, "download served but not cached");
    }
    drop(hold);
}

async fn link_all(
    shared: &Shared,
    digest: Digest,
    size: u64,
    repositories: Vec<RepoName>,
) -> Result<(), StoreError> {
    for repo in repositories {
        let link = Link {
            repo,
            kind: LinkKind::Layer,
            digest,
        };
        shared.store.link(&link).await?;
        shared
            .retention
            .linked(&link.repo, link.kind, &digest, size);
    }
    Ok(())
}

struct Transfer<'a> {
    shared: &'a Shared,
    download: &'a Download,
    source: &'a dyn Source,
}

impl Transfer<'_> {
    /// Streams, hashes and stages the blob. When this succeeds the blob has the digest; there is no
    /// stage to commit where it couldn't be written.
    async fn run(&self) -> Result<Option<Verified>, FetchError> {
        let digest = self.download.digest;
        let BlobStream {
            offset: _,
            end: _,
            total,
            mut body,
        } = self.source.open(0).await?;
        let hold = self.shared.retention.hold(&digest).await;
        let (stage, reservation) = self.place(digest, total).await.unzip();
        let reader = stage.as_ref().map(|stage| stage.content());
        self.download.progress.opened(total, reader);
        let writer = Writer::new(stage, digest.algorithm());
        let mut sink = Sink::new(self.shared, self.download, writer, total, reservation);
        let (mut in_row, mut last_break, mut skip) = (0, 0, 0);
        while let Err(error) = sink.drain(&mut body, skip).await {
            let FetchError::Upstream(error) = error else {
                return Err(error);
            };
            in_row = if sink.received >= last_break + PROGRESS {
                1
            } else {
                in_row + 1
            };
            last_break = sink.received;
            (body, skip) = self.resume(error, in_row, sink.received, total).await?;
        }
        let sent = sink.received;
        let (Writer { stage, hasher, .. }, reservation) = sink.finish().await?;
        if let Some(announced) = total
            && announced != sent
        {
            return Err(FetchError::Length {
                digest: digest.into(),
                announced,
                sent,
            });
        }
        let got = hasher.finish();
        if got != digest {
            return Err(FetchError::Digest {
                expected: digest.into(),
                got: got.into(),
            });
        }
        let place = stage.zip(reservation);
        Ok(place.map(|(stage, reservation)| Verified {
            stage,
            size: sent,
            reservation,
            hold,
        }))
    }

    /// A place for the bytes; none when the cache has none to give. That costs the cache, and not
    /// the clients.
    async fn place(
        &self,
        digest: Digest,
        total: Option<u64>,
    ) -> Option<(Box<dyn Stage>, Reservation)> {
        let reserved = self.shared.retention.reserve(total.unwrap_or(UNTOLD)).await;
        let reservation = reserved
            .inspect_err(|full| tracing::warn!(%digest, %full, "passing the download through"))
            .ok()?;
        let staged = self.shared.store.stage(&digest).await;
        let stage = staged
            .inspect_err(|error| {
                self.shared.metrics.store_failed();
                tracing::error!(%digest, %error, "can't store the download; passing it through");
            })
            .ok()?;
        Some((stage, reservation))
    }

    /// Opens the upstream again at `offset`, after `error`. Returns the body and how many of its
    /// first bytes are known already, where the upstream ignores ranges.
    async fn resume(
        &self,
        error: UpstreamError,
        mut in_row: u32,
        offset: u64,
        total: Option<u64>,
    ) -> Result<(BlobBody, u64), FetchError> {
        let mut error = error;
        loop {
            if in_row > MAX_RESUMES || !error.is_transient() {
                return Err(error.into());
            }
            tracing::info!(digest = %self.download.digest, offset, %error, "resuming download");
            let pause = FIRST_PAUSE * 2_u32.pow(in_row - 1);
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            match self.source.open(offset).await {
                Ok(stream) => {
                    if let (Some(announced), Some(sent)) = (total, stream.total)
                        && announced != sent
                    {
                        return Err(FetchError::Length {
                            digest: self.download.digest.into(),
                            announced,
                            sent,
                        });
                    }
                    self.shared.metrics.download_resumed();
                    return Ok((stream.body, offset.saturating_sub(stream.offset)));
                }
                Err(next) => (error, in_row) = (next, in_row + 1),
            }
        }
    }
}
