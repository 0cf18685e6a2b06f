//! What goes wrong with the bucket. Nobody but the log is told: the upstream is asked instead.

use std::sync::Arc;
use std::time::Duration;

use crate::error_chain::on_one_line;

/// A cause that can be shared.
pub(super) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a request to the bucket failed. An object that isn't there is no error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BucketError {
    /// 401 or 403, or there are no credentials.
    #[error("the bucket refuses the request")]
    Refused(#[source] Cause),
    #[error("the request to the bucket failed")]
    Failed(#[source] Cause),
    #[error("the bucket didn't answer within {0:?}")]
    Late(Duration),
    /// The object had other bytes than its head said.
    #[error("the object's body ended after {received} of {expected} bytes")]
    Short { received: u64, expected: u64 },
    #[error("the object is stored with a content encoding")]
    Encoded,
    #[error("the object is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    /// The content was to be uploaded.
    #[error("the content isn't stored here any more")]
    Gone,
    #[error("the hosted repositories have more than {limit} manifests and tags in the bucket")]
    TooMany { limit: usize },
    #[error("a sweep may be deleting the content")]
    Swept,
    /// Nothing was sent: the bucket has failed lately.
    #[error("the bucket has failed, and isn't asked for a while")]
    LeftAlone,
}

/// Why the bucket can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum BucketSetupError {
    #[error("the client of the bucket can't be set up")]
    Client(#[source] Cause),
    #[error("the file {path} of the bucket's credentials can't be read: {source}")]
    Credentials {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

impl BucketError {
    pub(super) fn failed(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Arc::new(source))
    }
}

/// An error with all its causes on one line, for errors whose causes aren't kept.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Told(pub(super) String);

impl Told {
    pub(super) fn of(error: &dyn std::error::Error) -> Self {
        Self(on_one_line(error))
    }
}
