//! The bucket as the source of one blob.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use url::Url;

use super::Target;
use crate::bucket::{Bucket, SharedContent, Upload};
use crate::cache::LinkKind;
use crate::download::DownloadError;
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};
use crate::upstream::{BlobStream, UpstreamError};

/// What one download has learned of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It isn't asked yet.
    Unasked,
    /// It has the blob.
    Reading { is_again: bool },
    /// The blob was wrong twice.
    Wrong,
    /// It isn't asked any more.
    Over,
}

/// The bucket, for one download of one repository.
#[derive(Debug)]
pub(super) struct BucketBlob {
    bucket: Arc<Bucket>,
    /// Bytes by the descriptor of a verified manifest, where one was seen.
    described_size: Option<u64>,
    /// Whether the upstream is believed when it says that it has the blob, which only others may have given.
    is_believed: bool,
    state: Mutex<State>,
    /// The repository has the blob: by its link in the bucket, or by the upstream's word.
    is_proved: AtomicBool,
    /// The link is in the bucket.
    is_linked: AtomicBool,
    /// The bucket has said that it lacks the blob, or has it wrong.
    is_absent: AtomicBool,
    /// Some of the bytes have come from the upstream.
    is_upstreams: AtomicBool,
}

impl BucketBlob {
    pub(super) fn new(
        bucket: &Arc<Bucket>,
        described_size: Option<u64>,
        is_believed: bool,
    ) -> Self {
        Self {
            bucket: Arc::clone(bucket),
            described_size,
            is_believed,
            state: Mutex::new(State::Unasked),
            is_proved: AtomicBool::new(false),
            is_linked: AtomicBool::new(false),
            is_absent: AtomicBool::new(false),
            is_upstreams: AtomicBool::new(false),
        }
    }

    /// The blob's bytes. None: the upstream is to be asked. The error is the upstream's, which doesn't let
    /// the repository have the blob.
    pub(super) async fn open(
        &self,
        target: &Target,
        digest: &Digest,
        span: (u64, Option<u64>),
    ) -> Result<Option<BlobStream>, UpstreamError> {
        let state = *self.state.lock();
        match state {
            State::Unasked | State::Reading { .. } => {}
            State::Wrong => return Ok(self.give_up(digest).await),
            State::Over => return Ok(None),
        }
        let is_proved = self.is_proved.load(Ordering::Relaxed);
        let asked = if is_proved {
            self.bucket.content_alone(digest, span).await
        } else {
            let link = (&target.stored, LinkKind::Layer);
            self.bucket.content(link, digest, span).await
        };
        let content = match asked {
            Ok(Some(content)) => content,
            Ok(None) => {
                self.end(true);
                return Ok(None);
            }
            Err(error) => {
                tracing::debug!(%digest, error = %on_one_line(&error), "the bucket has no answer; asking the upstream");
                self.end(false);
                return Ok(None);
            }
        };
        if self
            .described_size
            .is_some_and(|size| size != content.total)
        {
            tracing::warn!(%digest, size = content.total, "a blob in the bucket hasn't the size that its manifest says");
            return Ok(self.give_up(digest).await);
        }
        if !content.is_linked {
            if !self.is_believed {
                self.end(false);
                return Ok(None);
            }
            let upstream = target.upstream.direct();
            upstream.head_blob(&target.repo, digest).await?;
        } else if !is_proved {
            self.is_linked.store(true, Ordering::Relaxed);
        }
        self.is_proved.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        if *state == State::Unasked {
            *state = State::Reading { is_again: false };
        }
        Ok(Some(stream(&target.upstream.config.url, content)))
    }

    /// It has the blob wrong.
    async fn give_up(&self, digest: &Digest) -> Option<BlobStream> {
        self.bucket.distrust(digest).await;
        self.end(true);
        None
    }

    /// It isn't asked any more.
    fn end(&self, is_absent: bool) {
        *self.state.lock() = State::Over;
        self.is_absent.fetch_or(is_absent, Ordering::Relaxed);
    }

    /// The upstream sends bytes.
    pub(super) fn on_upstream(&self) {
        self.is_upstreams.store(true, Ordering::Relaxed);
        self.end(false);
    }

    /// Whether it is to be asked before the upstream is.
    pub(super) fn is_asked(&self) -> bool {
        *self.state.lock() != State::Over
    }

    /// The bytes that arrived were wrong. True where they may be the bucket's: they are read once more, and
    /// then asked of the upstream.
    pub(super) fn distrust(&self, digest: &Digest, error: &DownloadError) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Reading { is_again } => {
                tracing::warn!(%digest, error = %on_one_line(error), "the bucket sent wrong bytes");
                *state = if is_again {
                    State::Wrong
                } else {
                    State::Reading { is_again: true }
                };
                true
            }
            State::Unasked | State::Wrong | State::Over => false,
        }
    }

    /// The blob is stored here for these repositories: sees to it that it is in the bucket for them, unless
    /// another replica does.
    pub(super) fn on_stored(&self, target: &Target, digest: &Digest, repositories: &[RepoName]) {
        let is_upstreams = self.is_upstreams.load(Ordering::Relaxed);
        if !is_upstreams && !self.is_proved.load(Ordering::Relaxed) {
            return;
        }
        let is_linked = self.is_linked.load(Ordering::Relaxed);
        for repo in repositories {
            if *repo == target.stored && is_linked && !is_upstreams {
                continue;
            }
            let upload = Upload::new(repo, LinkKind::Layer, digest, None);
            let is_absent = self.is_absent.load(Ordering::Relaxed);
            self.bucket.upload(upload, is_absent);
        }
    }
}

/// Content of the bucket as the stream of a download. `url` is for errors.
pub(super) fn stream(url: &Url, content: SharedContent) -> BlobStream {
    let url = url.clone();
    let broken = move |error| UpstreamError::elsewhere(&url, error);
    BlobStream {
        offset: content.range.start,
        end: Some(content.range.end),
        total: Some(content.total),
        body: content.body.map_err(broken).boxed(),
    }
}
