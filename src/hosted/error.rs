//! Why a request to a hosted repository fails.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::BodyError;
use crate::bucket::BucketError;
use crate::cache::{Damaged, Full, NotReady, OverQuota, StoreError};
use crate::oci::manifest::ManifestError;
use crate::oci::{Classified, Digest, ErrorKind, Tag};
use crate::workers::WorkLost;

/// What a client is told to wait where a later attempt may succeed.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum HostedError {
    #[error("the repository isn't hosted here")]
    NotHosted,
    #[error("there is no such repository")]
    UnknownRepository,
    #[error("the repository doesn't have it")]
    NotFound,
    #[error("there is no such upload, or it has ended")]
    UnknownUpload,
    /// `received` bytes are kept.
    #[error("the upload continues at byte {received}")]
    WrongStart { received: u64 },
    #[error("another request writes to this upload")]
    UploadBusy,
    #[error("the space {space} has {max} uploads already; finish or cancel some")]
    TooManyUploads { space: String, max: usize },
    #[error("{announced} bytes were announced, and {sent} sent")]
    WrongLength { announced: u64, sent: u64 },
    #[error("the content has the digest {actual}, not {expected}")]
    WrongDigest {
        expected: Box<Digest>,
        actual: Box<Digest>,
    },
    #[error("the body ended early: {0}")]
    Body(#[source] BodyError),
    #[error("the manifest can't be read: {0}")]
    Manifest(#[from] ManifestError),
    #[error("the manifest is not valid: {0}")]
    InvalidManifest(Cow<'static, str>),
    #[error("the repository lacks {} of the manifest's parts; push them first", .0.len())]
    PartsMissing(Vec<Digest>),
    #[error("the tag {} is immutable and names {digest}", tag.as_str())]
    Immutable { tag: Tag, digest: Box<Digest> },
    #[error("a manifest of the repository refers to the blob; delete the manifest first")]
    Referenced,
    #[error("the space {0} is read-only")]
    ReadOnly(String),
    #[error("deleting is disabled for the space {0}")]
    DeleteDisabled(String),
    #[error("{bytes} bytes are more than the {max} that a blob may have here")]
    TooLarge { bytes: u64, max: u64 },
    #[error("the space {space} is over its quota: {quota}")]
    OverQuota { space: String, quota: OverQuota },
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("the store failed: {0}")]
    Store(Arc<StoreError>),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("what the repositories have in the bucket isn't known yet")]
    Unknown,
    #[error("the bucket doesn't take the content")]
    Bucket(#[from] BucketError),
    #[error("too many manifests are pushed at the same time; try again")]
    TooManyManifests,
    #[error("the work was lost")]
    Lost,
}

impl From<StoreError> for HostedError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<WorkLost> for HostedError {
    fn from(_: WorkLost) -> Self {
        Self::Lost
    }
}

impl HostedError {
    /// The bytes that an upload has received, where a request began elsewhere.
    pub fn received(&self) -> Option<u64> {
        match self {
            Self::WrongStart { received } => Some(*received),
            _ => None,
        }
    }
}

impl Classified for HostedError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotHosted | Self::Referenced | Self::ReadOnly(_) | Self::DeleteDisabled(_) => {
                ErrorKind::ReadOnly
            }
            Self::UnknownRepository => ErrorKind::NameUnknown,
            Self::NotFound => ErrorKind::NotFound,
            Self::UnknownUpload => ErrorKind::UploadUnknown,
            Self::WrongStart { .. } => ErrorKind::UploadRange,
            Self::UploadBusy => ErrorKind::UploadBusy,
            Self::TooManyUploads { .. } => ErrorKind::RateLimited,
            Self::WrongLength { .. } | Self::Body(_) => ErrorKind::SizeInvalid,
            Self::WrongDigest { .. } => ErrorKind::DigestInvalid,
            Self::Manifest(_) | Self::InvalidManifest(_) => ErrorKind::ManifestInvalid,
            Self::PartsMissing(_) => ErrorKind::PartsMissing,
            Self::Immutable { .. } => ErrorKind::Immutable,
            Self::TooLarge { .. } | Self::OverQuota { .. } => ErrorKind::OverLimit,
            Self::Full(_) => ErrorKind::Full,
            Self::Store(error) if error.is_full() => ErrorKind::Full,
            Self::NotReady(_) | Self::TooManyManifests | Self::Bucket(_) | Self::Unknown => {
                ErrorKind::Busy
            }
            Self::Damaged(_) | Self::Store(_) | Self::Lost => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Store(error) if error.is_full() => "the disk is full".into(),
            Self::Store(_) | Self::Lost => "the server failed; its log says why".into(),
            Self::Full(_) => "there is no space left, and nothing that may go".into(),
            Self::NotReady(_) => "the stored content can't be listed; the log says why".into(),
            Self::Bucket(_) => "the bucket that replicas share fails; try again later".into(),
            Self::Body(BodyError::Broken(_)) => "the body ended early".into(),
            Self::Manifest(error) => crate::error_chain::on_one_line(error).into(),
            error => error.to_string().into(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        (self.kind() == ErrorKind::Busy).then_some(RETRY_AFTER)
    }

    fn missing_parts(&self) -> &[Digest] {
        match self {
            Self::PartsMissing(digests) => digests,
            _ => &[],
        }
    }
}
