//! What can go wrong with an answer, told apart by who has to do something about it.

use std::sync::Arc;

use crate::cache::StoreError;
use crate::download::DownloadError;
use crate::oci::Digest;
use crate::upstream::UpstreamError;
use crate::workers::WorkLost;

/// Cloned to everybody who waited for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MirrorError {
    #[error("no upstream is configured for the registry {0}")]
    UnknownUpstream(String),
    #[error("{upstream} can't have a repository below the name of the upstream {prefix}")]
    Shadowed { upstream: String, prefix: String },
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Fetch(#[from] DownloadError),
    #[error("the store failed: {0}")]
    Store(Arc<StoreError>),
    #[error("the upstream says that the manifest's digest is {got}; {expected} was asked for")]
    WrongDigest {
        expected: Box<Digest>,
        got: Box<Digest>,
    },
    /// `asked` is what came of asking the upstream for it.
    #[error("the stored manifest {digest} is of Docker's schema 1, which is not served")]
    StoredSchema1 {
        digest: Box<Digest>,
        asked: Box<MirrorError>,
    },
    #[error("a shared request ended without a result")]
    Lost,
}

impl From<StoreError> for MirrorError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<WorkLost> for MirrorError {
    fn from(_: WorkLost) -> Self {
        Self::Lost
    }
}

impl MirrorError {
    /// The upstream's own error, however it came here.
    pub fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Upstream(error) | Self::Fetch(DownloadError::Upstream(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the upstream answered, but not with what was asked for.
    pub(super) fn is_wrong_answer(&self) -> bool {
        matches!(
            self,
            Self::WrongDigest { .. }
                | Self::Fetch(
                    DownloadError::Digest { .. }
                        | DownloadError::Length { .. }
                        | DownloadError::Changed { .. }
                )
        )
    }

    /// Whether the upstream said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self.upstream(), Some(UpstreamError::NotFound { .. }))
    }

    /// Whether the upstream's answer ends a tag: it has gone, or now names what can't be served.
    pub(super) fn ends_tag(&self) -> bool {
        let schema1 = matches!(self.upstream(), Some(UpstreamError::Schema1 { .. }));
        schema1 || self.is_not_found()
    }

    /// Whether a download that was joined ended without saying anything about the blob.
    pub(super) fn permits_retry(&self) -> bool {
        matches!(self, Self::Fetch(error) if error.is_of_this_download())
    }

    /// Whether a list is longer than what is read of one.
    pub(super) fn is_too_long(&self) -> bool {
        self.upstream().is_some_and(UpstreamError::is_too_long)
    }

    /// Whether what was known before may be served instead: the upstream couldn't answer, which is
    /// something else than an answer that the client doesn't like.
    pub(super) fn permits_stale(&self) -> bool {
        self.upstream().is_some_and(UpstreamError::permits_stale)
    }
}
