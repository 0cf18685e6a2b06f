//! The steps of an import, besides writing the content.

use serde::{Deserialize, Serialize};

use super::{OperateError, Operator};
use crate::copy::import::{Holding, ImportError, Importer};
use crate::oci::{Digest, Reference, RepoName, Tag};

/// What else an import does.
#[derive(Debug, Serialize, Deserialize)]
pub enum ImportOperation {
    /// What the name of an image means here: a [`Resolved`].
    Resolve { name: String },
    /// What the cache has of blobs for a repository: the [`Holding`]s.
    Holdings {
        repository: String,
        digests: Vec<Digest>,
    },
    /// Links a blob that is stored into a repository.
    Link { repository: String, digest: Digest },
    /// Makes a tag name a manifest of the repository.
    Tag {
        repository: String,
        tag: String,
        digest: Digest,
    },
}

/// What the name of an image means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The repository's stored name.
    pub repository: String,
    /// None for an image that is named by its digest.
    pub tag: Option<String>,
}

impl Resolved {
    fn new(stored: &RepoName, reference: &Reference) -> Self {
        Self {
            repository: stored.to_string(),
            tag: match reference {
                Reference::Tag(tag) => Some(tag.to_string()),
                Reference::Digest(_) => None,
            },
        }
    }
}

impl Operator {
    /// Returns the operation's result as JSON.
    pub(super) async fn import(&self, operation: ImportOperation) -> Result<Vec<u8>, OperateError> {
        let importer = |stored: &str| {
            let stored = RepoName::from_stored(stored).map_err(|_bad| ImportError::Query)?;
            Importer::new(&self.cache, stored)
        };
        let json = match operation {
            ImportOperation::Resolve { name } => {
                let (target, reference) = self.warmer()?.resolve(&name)?;
                serde_json::to_vec(&Resolved::new(&target.stored, &reference))
            }
            ImportOperation::Holdings {
                repository,
                digests,
            } => {
                let holdings: Vec<Holding> = importer(&repository)?.holdings(&digests).await;
                serde_json::to_vec(&holdings)
            }
            ImportOperation::Link { repository, digest } => {
                importer(&repository)?.link(&digest).await?;
                serde_json::to_vec(&())
            }
            ImportOperation::Tag {
                repository,
                tag,
                digest,
            } => {
                let tag: Tag = tag.parse().map_err(|_bad| ImportError::Query)?;
                importer(&repository)?.tag(&tag, &digest).await?;
                tracing::info!(repository, %tag, %digest, "an operator has imported an image");
                serde_json::to_vec(&())
            }
        };
        Ok(json?)
    }
}
