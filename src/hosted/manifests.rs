//! Manifests: checked, stored, tagged, deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::sharing::Shared;
use super::{Hosted, HostedError, Incomplete, MayPull, Pushed};
use crate::cache::{CachedManifest, Deleted, Hold, LinkKind, ManifestPart, ManifestPush};
use crate::oci::{Algorithm, Declared, Descriptor, Digest, Manifest, Reference, RepoName, Tag};

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
        let (parts, holds) = self
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
            tags: tags.keys().cloned().collect(),
        };
        let push = ManifestPush {
            digest,
            bytes: body,
            parsed,
            parts,
            tags,
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
    async fn read(
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

    /// Holds the parts of a manifest that its repository has, after linking those that are reused.
    async fn parts(
        &self,
        (repo, index): (&RepoName, usize),
        manifest: &Manifest,
        incomplete: Incomplete,
        may_reuse: &MayPull<'_>,
    ) -> Result<(Vec<ManifestPart>, Vec<Hold>), HostedError> {
        let mut parts: BTreeSet<ManifestPart> =
            descriptors(manifest).map(|(part, _)| part).collect();
        let mut reused = false;
        loop {
            let all: Vec<_> = parts.iter().copied().collect();
            let (holds, missing) = self.0.cache.claim(repo, &all).await;
            for part in &missing {
                parts.remove(part);
            }
            let unusable = self.verify_parts(manifest, &parts).await?;
            for part in &unusable {
                parts.remove(part);
            }
            let missing: Vec<_> = missing.into_iter().chain(unusable).collect();
            if !std::mem::replace(&mut reused, true)
                && self.reuse((repo, index), &missing, may_reuse).await?
            {
                parts.extend(missing);
                continue;
            }
            let needed = needed(manifest, &missing);
            if incomplete == Incomplete::Refuse && !needed.is_empty() {
                return Err(HostedError::PartsMissing(needed));
            }
            return Ok((parts.into_iter().collect(), holds));
        }
    }

    /// The held parts whose content turns out to be damaged. Verifies what wasn't yet. The error is a
    /// size that the manifest gives and that isn't the part's.
    async fn verify_parts(
        &self,
        manifest: &Manifest,
        parts: &BTreeSet<ManifestPart>,
    ) -> Result<Vec<ManifestPart>, HostedError> {
        let mut unusable = Vec::new();
        let held: Vec<_> = descriptors(manifest)
            .filter(|(part, _)| parts.contains(part))
            .collect();
        let digests: Vec<_> = held.iter().map(|((_, digest), _)| *digest).collect();
        let stored = self.0.cache.stored_parts(&digests);
        for ((part, descriptor), stored) in held.into_iter().zip(stored) {
            let Some((size, verified)) = stored else {
                unusable.push(part);
                continue;
            };
            if !verified && self.0.cache.open_verified(&part.1).await.is_none() {
                unusable.push(part);
            } else if size != descriptor.size {
                let (digest, said) = (part.1, descriptor.size);
                let text = format!("{digest} has {size} bytes, and not {said}");
                return Err(HostedError::InvalidManifest(text.into()));
            }
        }
        Ok(unusable)
    }

    /// Links layers that mirrored repositories have. True when there were some.
    async fn reuse(
        &self,
        (repo, index): (&RepoName, usize),
        missing: &[ManifestPart],
        may_reuse: &MayPull<'_>,
    ) -> Result<bool, HostedError> {
        if !self.settings(index)?.reuse {
            return Ok(false);
        }
        let mut linked = false;
        let layers = missing.iter().filter(|(kind, _)| *kind == LinkKind::Layer);
        for (_, digest) in layers {
            if self.is_reusable(digest, may_reuse) {
                let (hosted, repo, digest) = (self.clone(), repo.clone(), *digest);
                linked |= self
                    .detached(async move { hosted.link((&repo, index), &digest).await })
                    .await?;
            }
        }
        Ok(linked)
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

/// What a manifest refers to, other than its subject, each with how its repository links it: children of
/// an index that aren't manifests by their media type (the layers of a build cache) are blobs.
fn descriptors(manifest: &Manifest) -> impl Iterator<Item = (ManifestPart, &Descriptor)> {
    let blobs = manifest.config.iter().chain(&manifest.blobs);
    let blobs = blobs.map(|blob| ((LinkKind::Layer, blob.digest), blob));
    let children = manifest.manifests.iter().map(|child| {
        let kind = match Declared::from_media_type(&child.media_type) {
            Declared::Manifest(_) | Declared::Schema1 => LinkKind::Revision,
            Declared::Unknown => LinkKind::Layer,
        };
        ((kind, child.digest), child)
    });
    blobs.chain(children)
}

/// The missing parts that the repository has to have, in the order of the manifest.
fn needed(manifest: &Manifest, missing: &[ManifestPart]) -> Vec<Digest> {
    let missing: BTreeSet<_> = missing.iter().collect();
    let mut named = BTreeSet::new();
    let needed = descriptors(manifest).filter(|(part, descriptor)| {
        missing.contains(part) && !descriptor.is_foreign() && named.insert(part.1)
    });
    needed.map(|((_, digest), _)| digest).collect()
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
