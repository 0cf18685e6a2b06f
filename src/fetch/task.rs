//! The detached download: upstream to store, in one task that outlives its clients.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::task::JoinHandle;

use super::{Download, FetchError, Shared, Source};
use crate::oci::{Digest, Hasher};
use crate::store::{Link, LinkKind, Stage, StoreError};
use crate::upstream::{BlobStream, UpstreamError};

/// Bytes that may wait for the writer. Past it the upstream's socket is left alone.
const MAX_PENDING: usize = 4 * 1024 * 1024;
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
        Ok(stage) => {
            download.progress.verified();
            commit(&shared, &download, stage).await;
        }
        Err(error) => {
            if let FetchError::Store(_) = error {
                shared.metrics.store_failed();
            }
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

/// Makes a verified download part of the store. Its followers have their bytes already, so a
/// failure costs the cache and not the clients.
async fn commit(shared: &Shared, download: &Download, stage: Box<dyn Stage>) {
    let committed = tokio::task::spawn_blocking(move || stage.commit()).await;
    // From here on nobody joins: who asks finds the blob in the store.
    let repositories = download.repositories().take().unwrap_or_default();
    let stored = match committed {
        Ok(Ok(())) => link_all(shared, download.digest, repositories).await,
        Ok(Err(error)) => Err(error),
        Err(panicked) => {
            tracing::error!(digest = %download.digest, error = %panicked, "commit panicked");
            return;
        }
    };
    if let Err(error) = stored {
        shared.metrics.store_failed();
        tracing::error!(digest = %download.digest, %error, "download served but not cached");
    }
}

async fn link_all(
    shared: &Shared,
    digest: Digest,
    repositories: Vec<crate::oci::RepoName>,
) -> Result<(), StoreError> {
    for repo in repositories {
        shared
            .store
            .link(&Link {
                repo,
                kind: LinkKind::Layer,
                digest,
            })
            .await?;
    }
    Ok(())
}

struct Transfer<'a> {
    shared: &'a Shared,
    download: &'a Download,
    source: &'a dyn Source,
}

impl Transfer<'_> {
    /// Streams, hashes and stages the blob. What it returns has the digest.
    async fn run(&self) -> Result<Box<dyn Stage>, FetchError> {
        let digest = self.download.digest;
        let BlobStream {
            offset: _,
            total,
            mut body,
        } = self.source.open(0).await?;
        let stage = self.shared.store.stage(&digest).await?;
        self.download.progress.opened(total, stage.content());
        let mut sink = Sink::new(
            self.download,
            Writer {
                stage,
                hasher: Hasher::new(digest.algorithm()),
                mark: 0,
            },
            total,
        );
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
        let Writer {
            stage,
            hasher,
            mark,
        } = sink.finish().await?;
        if let Some(announced) = total
            && announced != mark
        {
            return Err(FetchError::Length {
                digest: digest.into(),
                announced,
                sent: mark,
            });
        }
        let got = hasher.finish();
        if got == digest {
            Ok(stage)
        } else {
            Err(FetchError::Digest {
                expected: digest.into(),
                got: got.into(),
            })
        }
    }

    /// Opens the upstream again at `offset`, after `error`. Returns the body and how many of its
    /// first bytes are known already, where the upstream ignores ranges.
    async fn resume(
        &self,
        error: UpstreamError,
        mut in_row: u32,
        offset: u64,
        total: Option<u64>,
    ) -> Result<(BoxStream<'static, Result<Bytes, UpstreamError>>, u64), FetchError> {
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

/// What hashes and writes. It moves to the blocking pool with each batch, and back.
struct Writer {
    stage: Box<dyn Stage>,
    hasher: Hasher,
    mark: u64,
}

impl Writer {
    /// Blocks.
    fn write(mut self, batch: &[Bytes]) -> Result<Self, StoreError> {
        for chunk in batch {
            self.hasher.update(chunk);
            self.mark += chunk.len() as u64;
        }
        self.stage.append(batch)?;
        Ok(self)
    }
}

/// Takes chunks, shows them to followers at once, and hashes and writes them behind that, in
/// batches as large as what came while the last batch was being written.
struct Sink<'a> {
    download: &'a Download,
    total: Option<u64>,
    received: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    writer: Writing,
}

enum Writing {
    Idle(Writer),
    Busy(JoinHandle<Result<Writer, StoreError>>),
    /// An error has been returned; nothing follows.
    Gone,
}

impl<'a> Sink<'a> {
    fn new(download: &'a Download, writer: Writer, total: Option<u64>) -> Self {
        let writer = Writing::Idle(writer);
        Self {
            download,
            total,
            received: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            writer,
        }
    }

    /// Takes all of `body` but its first `skip` bytes.
    async fn drain(
        &mut self,
        body: &mut BoxStream<'static, Result<Bytes, UpstreamError>>,
        mut skip: u64,
    ) -> Result<(), FetchError> {
        loop {
            let room = self.pending_bytes < MAX_PENDING;
            tokio::select! {
                biased;
                written = written(&mut self.writer) => self.take_back(written?),
                chunk = body.next(), if room => match chunk {
                    None => return Ok(()),
                    Some(chunk) => {
                        let mut chunk = chunk?;
                        let known = usize::try_from(skip).unwrap_or(chunk.len()).min(chunk.len());
                        skip -= known as u64;
                        self.push(chunk.split_off(known))?;
                    }
                },
            }
        }
    }

    fn push(&mut self, chunk: Bytes) -> Result<(), FetchError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let sent = self.received + chunk.len() as u64;
        if let Some(announced) = self.total
            && sent > announced
        {
            return Err(FetchError::Length {
                digest: self.download.digest.into(),
                announced,
                sent,
            });
        }
        self.received = sent;
        self.download.progress.received(chunk.clone());
        self.pending_bytes += chunk.len();
        self.pending.push(chunk);
        self.start_writing();
        Ok(())
    }

    /// Gives what is pending to the writer, if that is idle.
    fn start_writing(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.writer = match std::mem::replace(&mut self.writer, Writing::Gone) {
            Writing::Idle(writer) => {
                let batch = std::mem::take(&mut self.pending);
                self.pending_bytes = 0;
                Writing::Busy(tokio::task::spawn_blocking(move || writer.write(&batch)))
            }
            other => other,
        };
    }

    fn take_back(&mut self, writer: Writer) {
        self.download.progress.written(writer.mark);
        self.writer = Writing::Idle(writer);
        self.start_writing();
    }

    /// Writes what is left.
    async fn finish(mut self) -> Result<Writer, FetchError> {
        loop {
            match self.writer {
                Writing::Idle(writer) => return Ok(writer),
                Writing::Gone => return Err(FetchError::Lost),
                Writing::Busy(_) => {
                    let writer = written(&mut self.writer).await?;
                    self.take_back(writer);
                }
            }
        }
    }
}

/// Waits for the batch that is being written; forever when there is none. Cancel safe.
async fn written(writing: &mut Writing) -> Result<Writer, FetchError> {
    let Writing::Busy(batch) = writing else {
        return std::future::pending().await;
    };
    let result = batch.await;
    *writing = Writing::Gone;
    match result {
        Ok(writer) => Ok(writer?),
        Err(_panicked) => Err(FetchError::Lost),
    }
}
