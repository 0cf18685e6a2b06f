//! Why an image isn't copied.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinError;

use super::bundle::BundleError;
use crate::oci::Digest;
use crate::oci::manifest::ManifestError;
use crate::upstream::{Failure, UpstreamError};

/// Why an image, or a part of it, isn't copied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    #[error("the source fails: {0}")]
    Source(#[source] UpstreamError),
    #[error("the destination fails: {0}")]
    Destination(#[source] UpstreamError),
    /// The formats before 2016, which have no digests of content.
    #[error(
        "the source has it as a Docker schema 1 manifest, which can't be copied; push the image again as \
         Docker schema 2 or OCI"
    )]
    Schema1,
    #[error("{path}: {action}", path = .path.display())]
    File {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("{path}: {problem}", path = .path.display())]
    Files { path: PathBuf, problem: String },
    #[error(transparent)]
    Archive(#[from] Arc<BundleError>),
    #[error("the work on a file was lost")]
    Lost(#[source] Arc<JoinError>),
    #[error("{path}: the manifest {digest} can't be read: {error}", path = .path.display())]
    Manifest {
        path: PathBuf,
        digest: Box<Digest>,
        #[source]
        error: Arc<ManifestError>,
    },
    #[error("the source sent bytes of another digest than {0}")]
    WrongBytes(Box<Digest>),
    #[error(
        "the blob {digest} has {actual} bytes at the source, and not the {expected} of its manifest"
    )]
    WrongSize {
        digest: Box<Digest>,
        expected: u64,
        actual: u64,
    },
    #[error("the index has no manifest for {0}")]
    NoPlatform(String),
    #[error("the image has more than {0}")]
    TooLarge(&'static str),
}

impl From<BundleError> for CopyError {
    fn from(error: BundleError) -> Self {
        Arc::new(error).into()
    }
}

impl CopyError {
    /// Of the source's registry.
    pub(super) fn source(error: UpstreamError) -> Self {
        match error.failure {
            Failure::Schema1 => Self::Schema1,
            _ => Self::Source(error),
        }
    }

    pub(super) fn file(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            action,
            source: Arc::new(source),
        }
    }

    /// The registry's error, if it is one.
    pub fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Source(error) | Self::Destination(error) => Some(error),
            _ => None,
        }
    }

    /// Whether a registry refuses the credentials, or demands some.
    pub fn is_refused(&self) -> bool {
        let failure = self.upstream().map(|error| &error.failure);
        matches!(
            failure,
            Some(
                Failure::Unauthorized(_)
                    | Failure::CredentialsRefused { .. }
                    | Failure::NoCredentials(_)
                    | Failure::Denied(_)
            )
        )
    }
}
