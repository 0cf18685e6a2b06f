//! Blobs in the store: nobody is given one that is known to be damaged, and a response whose file
//! fails goes on from the upstream.

use std::sync::Arc;

use bytes::Bytes;

use super::blobs::BlobContent;
use super::{Mirror, MirrorError, ReadMode, Target};
use crate::cache::{Hold, Integrity, Trust, VERIFIED_FIRST, Verification};
use crate::download::Client;
use crate::error_chain::on_one_line;
use crate::oci::{Digest, Requested};
use crate::storage::{Content, Piece, Reader, StoreError};

/// Bytes compared at once.
const COMPARED: usize = 128 * 1024;

/// A blob that is read from the store.
#[derive(Debug)]
pub struct StoredBlob {
    pub content: Content,
    /// Under way while it isn't known whether the blob has its digest; none when it has.
    pub verification: Option<Verification>,
    /// Keeps the file from being removed while it is read; a small one needs none.
    _hold: Option<Hold>,
}

impl StoredBlob {
    fn new(content: Content, verification: Option<Verification>) -> Self {
        Self {
            content,
            verification,
            _hold: None,
        }
    }

    pub(super) fn held(self, hold: Hold) -> Self {
        Self {
            _hold: Some(hold),
            ..self
        }
    }
}

impl Mirror {
    /// Opens a blob that the store has. One that is damaged, as far as that is known, is set aside
    /// and missing; one that nobody has verified is being verified when this returns, and has been
    /// when it is small.
    pub(super) async fn open_blob(&self, digest: &Digest, want: ReadMode) -> Option<StoredBlob> {
        match self.store.open(digest).await {
            Ok(None) => None,
            Ok(Some(content)) if content.reader.is_verified() => {
                Some(StoredBlob::new(content, None))
            }
            // Put aside: rare, so that the usual future needn't keep room for it.
            Ok(Some(content)) => Box::pin(self.check_blob(digest, content, want)).await,
            Err(error) => Box::pin(self.cannot_open(digest, error)).await,
        }
    }

    async fn cannot_open(&self, digest: &Digest, error: StoreError) -> Option<StoredBlob> {
        let damaged = error.is_damage();
        self.readable::<()>("blob", Err(error));
        if damaged {
            self.cache.set_aside(digest, None).await;
        }
        None
    }

    async fn check_blob(
        &self,
        digest: &Digest,
        content: Content,
        want: ReadMode,
    ) -> Option<StoredBlob> {
        match self.cache.trust(digest, &content) {
            Trust::Verified => {
                content.reader.set_verified();
                return Some(StoredBlob::new(content, None));
            }
            Trust::Damaged => {
                let size = content.size;
                self.metrics.store_failed();
                tracing::error!(
                    %digest, size,
                    "a cached blob has a wrong size; it is set aside and fetched again"
                );
                self.cache.set_aside(digest, Some(&content)).await;
                return None;
            }
            Trust::Unknown => {}
        }
        let small = content.size <= VERIFIED_FIRST;
        if want == ReadMode::Head && !small {
            return Some(StoredBlob::new(content, None));
        }
        let hold = self.cache.hold(digest).await;
        let mut verification = self.cache.verify(digest, &content, hold).await;
        if !small {
            return Some(StoredBlob::new(content, Some(verification)));
        }
        match verification.ended().await {
            Integrity::Right => Some(StoredBlob::new(content, None)),
            Integrity::Damaged | Integrity::Unknown => {
                self.metrics.store_failed();
                None
            }
        }
    }
}

/// Where a response goes on whose file has failed.
#[derive(Debug)]
pub struct Recovery {
    mirror: Arc<Mirror>,
    target: Target,
    digest: Digest,
    client: Client,
}

/// What of a blob has been sent when its file fails.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// The first byte of the response.
    pub start: u64,
    /// The next byte to send.
    pub at: u64,
    /// Where the response ends.
    pub end: u64,
}

impl Recovery {
    pub fn new(mirror: Arc<Mirror>, target: Target, digest: Digest, client: Client) -> Self {
        Self {
            mirror,
            target,
            digest,
            client,
        }
    }

    /// Sets the failed file aside and finds the blob anew. If the failed file wasn't verified, what
    /// has been sent of it must be what the new source has; else there is nothing to go on with.
    pub async fn recover(
        &self,
        failed: &StoredBlob,
        sent: Sent,
    ) -> Result<BlobContent, MirrorError> {
        let Self {
            mirror,
            target,
            digest,
            client,
        } = self;
        mirror.metrics.store_failed();
        let content = &failed.content;
        mirror.cache.set_aside(digest, Some(content)).await;
        let proved = failed.verification.is_none();
        let first = if proved { sent.at } else { sent.start };
        // A whole body needs the whole blob, whose end is withheld until it is verified.
        let ranges = match sent.start {
            0 => None,
            _ => Requested::parse(&format!("bytes={first}-{}", sent.end.saturating_sub(1))),
        };
        let finding = mirror.find_blob(target, *digest, ranges.as_ref(), *client);
        let found = Box::pin(finding).await?;
        let mut body = found.body.ok_or(MirrorError::Lost)?;
        if let BlobContent::Stored(stored) = &mut body
            && let Some(mut verification) = stored.verification.take()
            && verification.ended().await != Integrity::Right
        {
            return Err(MirrorError::Lost);
        }
        if found.size != Some(content.size) {
            return Err(MirrorError::Lost);
        }
        if !proved && !is_same(&mut body, &content.reader, first, sent.at).await? {
            tracing::warn!(%digest, "bytes of a damaged blob have been sent; the response ends");
            return Err(MirrorError::Lost);
        }
        if let BlobContent::Fetching(follower) = &mut body
            && proved
            && sent.start == 0
        {
            follower.has_read_to(sent.at);
        }
        tracing::warn!(%digest, at = sent.at, "a response whose file failed goes on from elsewhere");
        Ok(body)
    }

    /// The log line of a response that ends because of this.
    pub fn failed(&self, error: &MirrorError) {
        let (digest, error) = (&self.digest, on_one_line(error));
        tracing::warn!(%digest, error, "a response whose file failed can't go on");
    }
}

/// Whether a body and a file have the same bytes from `at` up to `end`.
async fn is_same(
    body: &mut BlobContent,
    file: &Reader,
    mut at: u64,
    end: u64,
) -> Result<bool, MirrorError> {
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(COMPARED).min(COMPARED);
        let new = match body {
            BlobContent::Stored(stored) => stored.content.reader.read_at(at, most).await?,
            BlobContent::Fetching(follower) => match follower.piece(at, Some(end), false).await? {
                None => Bytes::new(),
                Some(Piece::Bytes(bytes)) => bytes,
                Some(Piece::File { reader, start, end }) => {
                    let rest = usize::try_from(end - start).unwrap_or(most);
                    reader.read_at(start, rest.min(most)).await?
                }
            },
        };
        let old = file.read_at(at, new.len()).await?;
        if old.is_empty() || !new.starts_with(&old) {
            return Ok(false);
        }
        at += old.len() as u64;
    }
    Ok(true)
}
