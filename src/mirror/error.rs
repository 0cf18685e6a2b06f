//! Why a request has no answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::StoreError;
use crate::download::DownloadError;
use crate::metrics::Outcome;
use crate::oci::manifest::SCHEMA1_REFUSED;
use crate::oci::{Classified, Digest, ErrorKind};
use crate::upstream::{Failure, UpstreamError, wrong_answer};
use crate::workers::WorkLost;

/// Every client that waited for the same result gets a clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MirrorError {
    #[error("no upstream is configured for the registry {0}")]
    UnknownUpstream(String),
    #[error("{upstream} can't have a repository below the name of the upstream {prefix}")]
    Shadowed { upstream: String, prefix: String },
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The upstream has lately said so.
    #[error(transparent)]
    Remembered(UpstreamError),
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
    #[error(
        "the tag isn't cached, and its upstream isn't asked for it (`offline` in `proxy.tags.rules`)"
    )]
    Offline,
    /// Another replica asks for what this one asks a replica for, or for an upstream that isn't configured
    /// here: it has to ask elsewhere.
    #[error("this replica doesn't answer this for another one")]
    Misdirected,
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

impl Classified for MirrorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownUpstream(_) | Self::Shadowed { .. } => ErrorKind::NameUnknown,
            Self::Upstream(error) | Self::Remembered(error) => error.kind(),
            Self::Fetch(error) => error.kind(),
            Self::WrongDigest { .. } => ErrorKind::WrongAnswer,
            Self::StoredSchema1 { .. } | Self::Offline => ErrorKind::NotFound,
            Self::Misdirected => ErrorKind::Misdirected,
            Self::Store(_) | Self::Lost => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownUpstream(_)
            | Self::Shadowed { .. }
            | Self::Offline
            | Self::Misdirected => self.to_string().into(),
            Self::Upstream(error) | Self::Remembered(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::WrongDigest { .. } => wrong_answer(self),
            Self::StoredSchema1 { .. } => SCHEMA1_REFUSED.into(),
            Self::Store(_) | Self::Lost => "the mirror failed; its log says why".into(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            Self::Fetch(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl MirrorError {
    /// The upstream's own error, however it came here.
    pub fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Upstream(error)
            | Self::Remembered(error)
            | Self::Fetch(DownloadError::Upstream(error)) => Some(error),
            _ => None,
        }
    }

    fn failure(&self) -> Option<&Failure> {
        self.upstream().map(|error| &error.failure)
    }

    /// Whether the upstream said that it doesn't have the content, or that it doesn't give it to this
    /// mirror: registries answer either way for a repository that doesn't exist. Or whether it isn't
    /// asked.
    pub fn finds_nothing(&self) -> bool {
        let is_offline = matches!(self.failure(), Some(Failure::Offline));
        is_offline || matches!(self, Self::Offline) || self.is_not_found() || self.is_refusal()
    }

    /// Whether the upstream's answer is one to a question that was asked since then: not one that is
    /// remembered, or that other clients had asked for before.
    pub fn was_asked_since(&self, started: Instant) -> bool {
        self.upstream()
            .is_some_and(|error| error.asked_at() >= started)
    }

    /// The upstream's answer that it doesn't have the content, or doesn't give it to the account.
    pub(super) fn negative_answer(&self) -> Option<&UpstreamError> {
        let error = self.upstream()?;
        let is_negative = matches!(error.failure, Failure::NotFound(_) | Failure::Denied(_));
        // A replica's answer may be as old as it is remembered; that replica remembers it.
        (is_negative && error.peer().is_none()).then_some(error)
    }

    /// Whether the upstream's answer is remembered: it wasn't asked.
    pub const fn is_remembered(&self) -> bool {
        matches!(self, Self::Remembered(_))
    }

    /// Whether the upstream answered that it doesn't have the content.
    pub fn is_not_found(&self) -> bool {
        matches!(self.failure(), Some(Failure::NotFound(_)))
    }

    /// Whether the upstream answered that the account that it was asked with may not read the content.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.failure(),
            Some(
                Failure::Unauthorized(_) | Failure::Denied(_) | Failure::CredentialsRefused { .. }
            )
        )
    }

    /// Whether the upstream's answer ends a tag: it has gone, or now names what can't be served.
    pub(super) fn ends_tag(&self) -> bool {
        matches!(
            self.failure(),
            Some(Failure::NotFound(_) | Failure::Schema1)
        )
    }

    /// Whether a list is longer than what is read of one.
    pub(super) fn is_too_long(&self) -> bool {
        self.upstream().is_some_and(UpstreamError::is_too_long)
    }

    /// Whether the upstream itself is out of order or out of reach: not where it or the mirror limits
    /// the requests.
    pub(super) fn is_outage(&self) -> bool {
        self.upstream().is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::UpstreamFailed(_) | ErrorKind::Unreachable | ErrorKind::Timeout
            )
        })
    }

    /// Whether what was known before may be served instead: the upstream couldn't answer, which is
    /// something else than an answer that the client doesn't like.
    pub(super) fn permits_stale(&self) -> bool {
        self.is_offline() || self.upstream().is_some_and(UpstreamError::is_transient)
    }

    /// Whether the upstream is never asked.
    pub(super) fn is_offline(&self) -> bool {
        matches!(self.failure(), Some(Failure::Offline))
    }

    /// The outcome of serving what is known after this error. What is known offline isn't stale: nobody
    /// knows better.
    pub(super) fn outcome_of_known(&self) -> Outcome {
        if self.is_offline() {
            Outcome::Hit
        } else {
            Outcome::Stale
        }
    }
}
