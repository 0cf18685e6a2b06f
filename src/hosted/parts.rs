//! What a manifest refers to, and whether its repository has it.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;

use super::{Hosted, HostedError, Incomplete, MayPull};
use crate::bucket::REQUESTS_AT_A_TIME;
use crate::cache::{Hold, LinkKind, ManifestPart};
use crate::oci::{Declared, Descriptor, Manifest, RepoName};

/// Parts of one manifest that the bucket is asked for, at most: a client must not cause requests without bound. Where
/// more are missing, they have to be pushed.
const MAX_ASKED: usize = 1000;

/// What a repository has of a manifest's parts.
pub(super) struct Parts {
    /// Stored here.
    pub(super) here: Vec<ManifestPart>,
    pub(super) holds: Vec<Hold>,
    /// In the bucket only.
    pub(super) elsewhere: Vec<ManifestPart>,
}

impl Hosted {
    /// The parts of a manifest that its repository has here, and the holds on them.
    pub(super) async fn parts_here(
        &self,
        repo: &RepoName,
        manifest: &Manifest,
    ) -> (Vec<ManifestPart>, Vec<Hold>) {
        let parts: BTreeSet<ManifestPart> = descriptors(manifest).map(|(part, _)| part).collect();
        let all: Vec<_> = parts.into_iter().collect();
        let (holds, missing) = self.0.cache.claim(repo, &all).await;
        let held = all.into_iter().filter(|part| !missing.contains(part));
        (held.collect(), holds)
    }

    /// Holds the parts of a manifest that its repository has, after linking those that are reused.
    pub(super) async fn parts(
        &self,
        (repo, index): (&RepoName, usize),
        manifest: &Manifest,
        incomplete: Incomplete,
        may_reuse: &MayPull<'_>,
    ) -> Result<Parts, HostedError> {
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
            let mut elsewhere = Vec::new();
            if incomplete == Incomplete::Refuse {
                let needed = needed(manifest, &missing);
                elsewhere = self.in_bucket(repo, &needed).await?;
                let lacking = needed.iter().filter(|(part, _)| !elsewhere.contains(part));
                let lacking: Vec<_> = lacking.map(|((_, digest), _)| *digest).collect();
                if !lacking.is_empty() {
                    return Err(HostedError::PartsMissing(lacking));
                }
            }
            return Ok(Parts {
                here: parts.into_iter().collect(),
                holds,
                elsewhere,
            });
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
            } else {
                check_size(descriptor, size)?;
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

    /// Those of some parts that the repository has in the bucket.
    async fn in_bucket(
        &self,
        repo: &RepoName,
        needed: &[(ManifestPart, &Descriptor)],
    ) -> Result<Vec<ManifestPart>, HostedError> {
        let Some(bucket) = self.0.sharing.as_ref().map(|sharing| &sharing.bucket) else {
            return Ok(Vec::new());
        };
        if needed.len() > MAX_ASKED {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for page in needed.chunks(REQUESTS_AT_A_TIME) {
            let asked = page.iter().map(|((kind, digest), _)| async move {
                if bucket.links(repo, *kind, digest).await? {
                    bucket.size(digest).await
                } else {
                    Ok(None)
                }
            });
            let answers = try_join_all(asked).await?;
            for ((part, descriptor), size) in page.iter().zip(answers) {
                if let Some(size) = size {
                    check_size(descriptor, size)?;
                    found.push(*part);
                }
            }
        }
        Ok(found)
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

/// Checks that a part has the size that its manifest gives.
fn check_size(descriptor: &Descriptor, size: u64) -> Result<(), HostedError> {
    if size == descriptor.size {
        return Ok(());
    }
    let (digest, said) = (descriptor.digest, descriptor.size);
    let text = format!("{digest} has {size} bytes, and not {said}");
    Err(HostedError::InvalidManifest(text.into()))
}

/// The missing parts that the repository has to have, in the order of the manifest.
fn needed<'a>(
    manifest: &'a Manifest,
    missing: &[ManifestPart],
) -> Vec<(ManifestPart, &'a Descriptor)> {
    let missing: BTreeSet<_> = missing.iter().collect();
    let mut named = BTreeSet::new();
    let needed = descriptors(manifest).filter(|(part, descriptor)| {
        missing.contains(part) && !descriptor.is_foreign() && named.insert(part.1)
    });
    needed.collect()
}
