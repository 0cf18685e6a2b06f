//! A response whose cached file fails continues from the upstream.

use std::sync::Arc;

use bytes::Bytes;

use super::blobs::BlobContent;
use super::{Mirror, MirrorError, Target};
use crate::cache::{CachedBlob, Piece, Reader};
use crate::download::Client;
use crate::error_chain::on_one_line;
use crate::oci::{Digest, Requested};

/// Bytes compared at once.
const COMPARED: usize = 128 * 1024;

/// Continues a response whose cached file has failed.
#[derive(Debug)]
pub struct Recovery {
    pub mirror: Arc<Mirror>,
    pub target: Target,
    pub digest: Digest,
    pub client: Client,
}

/// How much of a blob has been sent when its file fails.
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
    /// Quarantines the failed file and finds the blob anew. If the failed file wasn't verified, the
    /// bytes that have been sent are compared with the new source's; if they differ, the response
    /// ends with an error.
    pub async fn recover(
        &self,
        failed: &CachedBlob,
        sent: Sent,
    ) -> Result<BlobContent, MirrorError> {
        let Self {
            mirror,
            target,
            digest,
            client,
        } = self;
        mirror.metrics.store_failed();
        let content = failed.content();
        mirror.cache.quarantine(digest, Some(content)).await;
        let proved = failed.is_verified();
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
            && !stored.become_verified().await
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
            BlobContent::Stored(stored) => stored.content().reader.read_at(at, most).await?,
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
