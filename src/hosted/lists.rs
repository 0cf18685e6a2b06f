//! What a repository has: tags and referrers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Hosted, HostedError};
use crate::oci::manifest::referrers_tag;
use crate::oci::{Descriptor, Digest, ManifestType, Reference, RepoName, Tag};

impl Hosted {
    /// All tags of a repository, in the order of their bytes.
    pub async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, HostedError> {
        self.listed_as_known().await?;
        let tags = self.0.cache.hosted_tags(repo).await;
        tags.ok_or(HostedError::UnknownRepository)
    }

    /// The manifests of the repository that have this subject, by digest, with the entries of a tag that
    /// lists them.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Vec<Arc<Descriptor>>, HostedError> {
        self.listed_as_known().await?;
        let mut all = BTreeMap::new();
        for descriptor in self.listed(repo, subject).await {
            all.insert(descriptor.digest, descriptor);
        }
        // What the manifests themselves say counts.
        for descriptor in self.0.cache.hosted_referrers(repo, subject).await {
            all.insert(descriptor.digest, descriptor);
        }
        Ok(all.into_values().collect())
    }

    /// The entries of the tag by which clients list referrers where a registry doesn't
    /// (distribution-spec, "Referrers Tag Schema").
    async fn listed(&self, repo: &RepoName, subject: &Digest) -> Vec<Arc<Descriptor>> {
        let Some(tag) = referrers_tag(subject) else {
            return Vec::new();
        };
        match self.manifest(repo, &Reference::Tag(tag)).await {
            Ok(index) if index.parsed.media_type == ManifestType::OciIndex => {
                let entries = index.parsed.manifests.iter().cloned();
                entries.map(Arc::new).collect()
            }
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// All hosted repositories that have something, sorted.
    pub async fn repositories(&self) -> Result<Vec<RepoName>, HostedError> {
        self.listed_as_known().await?;
        Ok(self.0.cache.hosted_repositories().await?)
    }
}
