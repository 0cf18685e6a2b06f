//! Tags, referrers and the catalog.

use std::sync::Arc;

use super::{Mirror, MirrorError, Target, Want};
use crate::metrics::Outcome;
use crate::oci::route::{MAX_PAGE, Page};
use crate::oci::{Accept, Algorithm, Descriptor, Digest, ManifestType, Reference, RepoName, Tag};

/// Cached referrers of one digest that are listed while the upstream can't answer.
const MAX_REFERRERS: usize = 1_000;

/// A page of tags.
#[derive(Debug)]
pub struct TagsAnswer {
    pub tags: Vec<Tag>,
    /// Whether more follow.
    pub more: bool,
    pub outcome: Outcome,
}

/// The manifests attached to a digest.
#[derive(Debug)]
pub struct ReferrersAnswer {
    pub manifests: Vec<Descriptor>,
    pub outcome: Outcome,
}

/// A page of the repositories that are cached.
#[derive(Debug)]
pub struct CatalogPage {
    pub repositories: Vec<RepoName>,
    pub more: bool,
}

impl Mirror {
    /// The upstream's tags; while it can't answer, the ones that are cached.
    pub async fn tags(&self, target: &Target, page: &Page) -> Result<TagsAnswer, MirrorError> {
        match target
            .upstream
            .client
            .tags(&target.repo, page.n, page.last.as_deref())
            .await
        {
            Ok(answer) => Ok(TagsAnswer {
                tags: answer.tags,
                more: answer.next,
                outcome: Outcome::Miss,
            }),
            Err(error) => {
                let error = MirrorError::from(error);
                let cached = if error.permits_stale() {
                    self.stored_tags(target).await
                } else {
                    Vec::new()
                };
                if cached.is_empty() {
                    return Err(error);
                }
                target.report(&error, "listed the tags that are cached");
                let (tags, more) = paginate(cached, page, usize::MAX, Tag::as_str);
                Ok(TagsAnswer {
                    tags,
                    more,
                    outcome: Outcome::Stale,
                })
            }
        }
    }

    /// The repositories that have something cached, by their names in the store.
    pub async fn catalog(&self, page: &Page) -> Result<CatalogPage, MirrorError> {
        let all = self.store.repositories().await?;
        let (repositories, more) = paginate(all, page, MAX_PAGE, RepoName::as_str);
        Ok(CatalogPage { repositories, more })
    }

    /// The referrers of a digest, filtered by artifact type. From the upstream's API, else from the
    /// tag that stands in for it (distribution-spec, "Unavailable Referrers API"), else, while the
    /// upstream can't answer, from what is cached.
    pub async fn referrers(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersAnswer, MirrorError> {
        let asked = match target
            .upstream
            .client
            .referrers(&target.repo, &digest, artifact_type)
            .await
        {
            Ok(Some(referrers)) => {
                let index = crate::oci::Manifest::parse(&referrers.bytes).map_err(|source| {
                    MirrorError::Referrers {
                        digest: Box::new(digest),
                        source: Arc::new(source),
                    }
                })?;
                Ok((index.manifests, Outcome::Miss))
            }
            Ok(None) => self.fallback_tag(target, digest).await,
            Err(error) => Err(error.into()),
        };
        let (mut manifests, outcome) = match asked {
            Ok(answer) => answer,
            Err(error) if error.permits_stale() => {
                let cached = self.cached_referrers(target, digest).await;
                if cached.is_empty() {
                    return Err(error);
                }
                target.report(&error, "listed the referrers that are cached");
                (cached, Outcome::Stale)
            }
            Err(error) => return Err(error),
        };
        if let Some(kind) = artifact_type {
            manifests.retain(|manifest| manifest.artifact_type.as_deref() == Some(kind));
        }
        Ok(ReferrersAnswer { manifests, outcome })
    }

    async fn fallback_tag(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
    ) -> Result<(Vec<Descriptor>, Outcome), MirrorError> {
        let Some(reference) = fallback_reference(&digest) else {
            return Ok((Vec::new(), Outcome::Miss));
        };
        match self
            .manifest(target, &reference, &Accept::everything(), Want::Content)
            .await
        {
            Ok(answer) => {
                // A head has none, and isn't what was asked for.
                let content = answer.content().unwrap_or_default();
                let is_index = answer.found.known().media_type == ManifestType::OciIndex;
                let listed = match crate::oci::Manifest::parse(&content) {
                    Ok(index) if is_index => index.manifests,
                    _ => Vec::new(),
                };
                Ok((listed, answer.outcome))
            }
            // No tag: nothing refers to the digest.
            Err(error) if error.is_not_found() => Ok((Vec::new(), Outcome::Miss)),
            Err(error) => Err(error),
        }
    }

    async fn cached_referrers(&self, target: &Target, subject: Digest) -> Vec<Descriptor> {
        let mut referrers = self.retention.referrers(&target.stored, &subject).await;
        referrers.sort_unstable();
        let mut found = Vec::new();
        for digest in referrers.into_iter().take(MAX_REFERRERS) {
            if let Some(stored) = self.linked_document(target, digest).await {
                let size = stored.verified.known.size;
                found.push(stored.manifest.descriptor(digest, size));
            }
        }
        found
    }
}

/// The tag that holds the referrers of a digest: `sha256-<hex>`, of which at most 64 digits.
fn fallback_reference(digest: &Digest) -> Option<Reference> {
    let hex = digest.hex();
    let shown = match digest.algorithm() {
        Algorithm::Sha256 => hex.as_str(),
        Algorithm::Sha512 => hex.get(..64)?,
    };
    format!("{}-{shown}", digest.algorithm()).parse().ok()
}

/// One page of a sorted list, and whether more follow.
fn paginate<T>(
    all: Vec<T>,
    page: &Page,
    limit: usize,
    name: impl Fn(&T) -> &str,
) -> (Vec<T>, bool) {
    let n = page.n.unwrap_or(limit).min(limit);
    let after = |entry: &T| page.last.as_deref().is_none_or(|last| name(entry) > last);
    let mut rest = all.into_iter().filter(after);
    let entries: Vec<T> = rest.by_ref().take(n).collect();
    let more = n > 0 && rest.next().is_some();
    (entries, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let all = || {
            ["a", "b", "c"]
                .map(|tag| tag.parse::<Tag>().unwrap())
                .to_vec()
        };
        let page = |n, last: Option<&str>| {
            let page = Page {
                n,
                last: last.map(str::to_owned),
            };
            let (tags, more) = paginate(all(), &page, 100, Tag::as_str);
            (
                tags.iter().map(Tag::to_string).collect::<Vec<_>>().concat(),
                more,
            )
        };
        assert_eq!(page(None, None), ("abc".into(), false));
        assert_eq!(page(Some(2), None), ("ab".into(), true));
        assert_eq!(page(Some(2), Some("b")), ("c".into(), false));
        assert_eq!(page(Some(1), Some("aa")), ("b".into(), true));
        assert_eq!(page(Some(0), None), (String::new(), false));
        assert_eq!(page(None, Some("z")), (String::new(), false));
    }

    #[test]
    fn the_tag_that_stands_in_for_the_referrers_api() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let tag = fallback_reference(&digest).unwrap().to_string();
        assert_eq!(tag, digest.to_string().replace(':', "-"));
        let long = fallback_reference(&Digest::of(Algorithm::Sha512, b""))
            .unwrap()
            .to_string();
        assert_eq!(long.len(), "sha512-".len() + 64);
    }
}
