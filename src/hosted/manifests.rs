//! Manifests: read, stored, tagged, deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::parts::Parts;
use super::sharing::Shared;
use super::{Hosted, HostedError, MayPull, Pushed};
use crate::cache::{CachedManifest, Deleted, LinkKind, ManifestPush};
use crate::oci::{Algorithm, Declared, Digest, Manifest, Reference, RepoName, Tag};

/// Content that a manifest may refer to.
const MAX_REFERENCES: usize = 10_000;

impl Hosted {
    /// Stores a manifest. `tags` are further ones, beside that of the reference. Parts that were found
    /// for reuse are linked if `may_reuse` is true for a repository that has them.
    pub async fn put_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        tags: &[Tag],
        content_type: Option<&str>,
        body: Bytes,
        may_reuse: &MayPull<'_>,
    ) -> Result<Pushed, HostedError> {
        let (index, settings) = self.writable(repo)?;
        self.0.cache.ready().await?;
        if self.is_shared() {
            self.known().await?;
        }
        let (digest, parsed) = self.read(reference, content_type, body.clone()).await?;
        let mut tags = tags.to_vec();
        if let Reference::Tag(tag) = reference {
            tags.push(tag.clone());
        }
        for tag in tags.iter().filter(|tag| settings.is_immutable(tag)) {
            let named = self.named(repo, tag).await?;
            if let Some(named) = named.filter(|named| *named != digest) {
                return Err(immutable(tag, named));
            }
        }
        let target = (repo, index);
        let Parts {
            here: parts,
            holds,
            elsewhere,
        } = self
            .parts(target, &parsed, settings.incomplete, may_reuse)
            .await?;
        let subject = parsed.subject.as_ref().map(|subject| subject.digest);
        let tags = tags.into_iter().map(|tag| {
            let is_fixed = settings.is_immutable(&tag);
            (tag, is_fixed)
        });
        let tags: BTreeMap<_, _> = tags.collect();
        let shared = Shared {
            digest,
            content: body.clone(),
            parts: parts.clone(),
            elsewhere,
            tags: tags.keys().cloned().collect(),
        };
        let push = ManifestPush {
            digest,
            bytes: body,
            parsed,
            parts,
            tags,
            ignores_quota: false,
        };
        let (hosted, repo) = (self.clone(), repo.clone());
        let store = async move {
            let _holds = holds;
            let pushed = hosted.0.cache.push_manifest((&repo, index), push).await;
            pushed.map_err(|error| hosted.push_failed(index, error))?;
            hosted.share(&repo, shared).await
        };
        self.detached(store).await?;
        Ok(Pushed { digest, subject })
    }

    /// Parses a manifest and computes its digest.
    pub(super) async fn read(
        &self,
        reference: &Reference,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<(Digest, Manifest), HostedError> {
        let algorithm = match reference {
            Reference::Digest(digest) => digest.algorithm(),
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let leave = self.0.cache.workers().admit(body.len() as u64).await?;
        let read = move || (Digest::of(algorithm, &body), Manifest::parse(&body));
        let (digest, parsed) = leave.run(read).await?;
        if let Reference::Digest(expected) = reference
            && *expected != digest
        {
            return Err(HostedError::WrongDigest {
                expected: Box::new(*expected),
                actual: Box::new(digest),
            });
        }
        let parsed = parsed?;
        check_type(content_type, &parsed)?;
        let references = parsed.blobs.len() + parsed.manifests.len();
        if references > MAX_REFERENCES {
            let text = format!("it refers to {references} parts; {MAX_REFERENCES} are permitted");
            return Err(HostedError::InvalidManifest(text.into()));
        }
        Ok((digest, parsed))
    }

    /// A manifest of the repository.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Arc<CachedManifest>, HostedError> {
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => {
                let named = self.0.cache.hosted_tag(repo, tag).await;
                named.ok_or(HostedError::NotFound)?
            }
        };
        let found = self.0.cache.hosted_manifest(repo, &digest).await?;
        found.ok_or(HostedError::NotFound)
    }

    /// Removes a tag, or a manifest with all its tags.
    pub async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<(), HostedError> {
        self.deletable(repo).await?;
        let (hosted, repo, reference) = (self.clone(), repo.clone(), reference.clone());
        let delete = async move {
            match reference {
                Reference::Tag(tag) => hosted.delete_tag(&repo, &tag).await,
                Reference::Digest(digest) => hosted.delete_digest(&repo, &digest).await,
            }
        };
        self.detached(delete).await
    }

    async fn delete_tag(&self, repo: &RepoName, tag: &Tag) -> Result<(), HostedError> {
        let named = self.0.cache.hosted_tag(repo, tag).await;
        let named = named.ok_or(HostedError::NotFound)?;
        if self.space(repo)?.1.is_immutable(tag) {
            return Err(immutable(tag, named));
        }
        self.unshare_tag(repo, tag, &named).await?;
        if self.0.cache.remove_hosted_tag(repo, tag, None).await? {
            Ok(())
        } else {
            Err(HostedError::NotFound)
        }
    }

    async fn delete_digest(&self, repo: &RepoName, digest: &Digest) -> Result<(), HostedError> {
        let (_, settings) = self.space(repo)?;
        let tags = self.0.cache.tags_naming(repo, digest);
        if let Some(tag) = tags.iter().find(|tag| settings.is_immutable(tag)) {
            return Err(immutable(tag, *digest));
        }
        for tag in &tags {
            self.unshare_tag(repo, tag, digest).await?;
            self.0
                .cache
                .remove_hosted_tag(repo, tag, Some(digest))
                .await?;
        }
        self.unshare(repo, LinkKind::Revision, digest).await?;
        match self.0.cache.delete_hosted_manifest(repo, digest).await {
            Deleted::Gone => Ok(()),
            Deleted::Missing | Deleted::Referenced => Err(HostedError::NotFound),
        }
    }
}

fn immutable(tag: &Tag, digest: Digest) -> HostedError {
    HostedError::Immutable {
        tag: tag.clone(),
        digest: Box::new(digest),
    }
}

/// Whether the type that a client sends a manifest as is the manifest's.
fn check_type(content_type: Option<&str>, manifest: &Manifest) -> Result<(), HostedError> {
    let Some(sent) = content_type.map(str::trim).filter(|sent| !sent.is_empty()) else {
        return Ok(());
    };
    if Declared::from_content_type(sent) == Declared::Manifest(manifest.media_type) {
        return Ok(());
    }
    let actual = manifest.media_type.as_str();
    let text = format!("it is sent as {sent:?}, and is {actual}");
    Err(HostedError::InvalidManifest(text.into()))
}
