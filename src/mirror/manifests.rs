//! Manifests, by digest and by tag.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::tags::{Known, Lookup, TagKey};
use super::{Mirror, MirrorError, Target, Want};
use crate::metrics::Outcome;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Accept, Digest, Manifest, Reference, Tag};
use crate::store::{self, LinkKind};
use crate::upstream::{FetchedManifest, UpstreamError};

/// Manifests of one repository that are looked through while the upstream can't answer.
pub(super) const MAX_SCANNED: usize = 2_000;
/// How long a client that could be given a stale tag waits for the upstream's word on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A manifest that can be answered with.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// Always there when the content was asked for.
    pub content: Option<Bytes>,
    pub outcome: Outcome,
}

/// A shared question to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum FlightKey {
    Tag(TagKey, Want),
    Digest(crate::oci::RepoName, Digest, Want),
}

/// Its answer.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    known: Known,
    content: Option<Bytes>,
    outcome: Outcome,
}

impl Resolved {
    fn loaded(known: Known, content: Bytes, outcome: Outcome) -> Self {
        Self {
            known,
            content: Some(content),
            outcome,
        }
    }
}

impl From<Resolved> for ManifestAnswer {
    fn from(
        Resolved {
            known:
                Known {
                    digest,
                    media_type,
                    size,
                },
            content,
            outcome,
        }: Resolved,
    ) -> Self {
        Self {
            digest,
            media_type,
            size,
            content,
            outcome,
        }
    }
}

impl Mirror {
    /// Finds a manifest. `accept` matters for tags only: a digest fixes the content.
    pub async fn manifest(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
        accept: &Accept,
        want: Want,
    ) -> Result<ManifestAnswer, MirrorError> {
        let resolved = match reference {
            Reference::Digest(digest) => self.by_digest(target, *digest, want).await,
            Reference::Tag(tag) => {
                let key = TagKey {
                    repo: target.stored.clone(),
                    tag: tag.clone(),
                    accept: accept.clone(),
                };
                self.by_tag(target, key, want).await
            }
        };
        Ok(resolved?.into())
    }

    async fn by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        want: Want,
    ) -> Result<Resolved, MirrorError> {
        if let Some((known, content)) = self.linked_manifest(target, digest).await {
            return Ok(Resolved::loaded(known, content, Outcome::Hit));
        }
        let key = FlightKey::Digest(target.stored.clone(), digest, want);
        let (mirror, target) = (Arc::clone(self), target.clone());
        self.manifest_flights
            .run(key, || async move {
                mirror.ask_by_digest(&target, digest, want).await
            })
            .await?
    }

    /// One question for all who ask for the digest.
    async fn ask_by_digest(
        &self,
        target: &Target,
        digest: Digest,
        want: Want,
    ) -> Result<Resolved, MirrorError> {
        let present = self.stored_manifest(digest).await;
        if present.is_some() || want == Want::Head {
            // Present through another repository: a HEAD, which costs no quota, proves that it is
            // this repository's, too.
            let known = self
                .head(target, &Reference::Digest(digest), &Accept::everything())
                .await?;
            if let Some((known, content)) = present {
                let link = target.link(LinkKind::Revision, digest);
                if self.written("manifest link", self.store.link(&link).await) {
                    self.arrived(target, digest).await;
                }
                return Ok(Resolved::loaded(known, content, Outcome::Revalidated));
            }
            if let Some(known) = known {
                return Ok(Resolved {
                    known,
                    content: None,
                    outcome: Outcome::Miss,
                });
            }
        }
        let (reference, accept) = (Reference::Digest(digest), Accept::everything());
        let fetched = target
            .upstream
            .client
            .get_manifest(&target.repo, &reference, &accept)
            .await?;
        let (known, content, kept) = self.keep(target, fetched).await?;
        if kept {
            self.arrived(target, digest).await;
        }
        Ok(Resolved::loaded(known, content, Outcome::Miss))
    }

    /// containerd and docker resolve a tag by HEAD and then ask by digest: this is where the tag
    /// gets its place on disk, without which a restart would forget it.
    async fn arrived(&self, target: &Target, digest: Digest) {
        if let Some(key) = self.records.arrived(&target.stored, digest) {
            self.point(&key, digest).await;
        }
    }

    async fn by_tag(
        self: &Arc<Self>,
        target: &Target,
        key: TagKey,
        want: Want,
    ) -> Result<Resolved, MirrorError> {
        if let Lookup::Fresh { known, stale } = self.records.get(&key) {
            let outcome = if stale { Outcome::Stale } else { Outcome::Hit };
            return self
                .deliver(
                    target,
                    Resolved {
                        known,
                        content: None,
                        outcome,
                    },
                    want,
                )
                .await;
        }
        let question = {
            let (mirror, target, key) = (Arc::clone(self), target.clone(), key.clone());
            let flight = FlightKey::Tag(key.clone(), want);
            self.manifest_flights.run(flight, || async move {
                mirror.ask_by_tag(&target, &key, want).await
            })
        };
        tokio::pin!(question);
        let answer = match tokio::time::timeout(PATIENCE, &mut question).await {
            Ok(answer) => answer?,
            // The question goes on without this client, for the next ones.
            Err(_elapsed) => match self.serve_stale(target, &key, None).await {
                Some(stale) => return Ok(stale),
                None => question.await?,
            },
        };
        match answer {
            Ok(resolved) => self.deliver(target, resolved, want).await,
            Err(error) if error.permits_stale() => {
                let retry_after = error.upstream().and_then(UpstreamError::retry_after);
                let stale = self
                    .serve_stale(target, &key, retry_after)
                    .await
                    .ok_or_else(|| error.clone())?;
                tracing::warn!(repo = %key.repo, tag = %key.tag, %error, "serving the last known digest");
                Ok(stale)
            }
            Err(error) => Err(error),
        }
    }

    /// What is known last, if anything; the next clients get it without waiting for an upstream
    /// that has just failed to answer.
    async fn serve_stale(
        &self,
        target: &Target,
        key: &TagKey,
        retry_after: Option<Duration>,
    ) -> Option<Resolved> {
        let stale = self.last_known(target, key).await?;
        self.records
            .unconfirmed(key.clone(), stale.known.clone(), retry_after);
        Some(stale)
    }

    /// One question for all who ask for the tag with the same Accept list.
    async fn ask_by_tag(
        &self,
        target: &Target,
        key: &TagKey,
        want: Want,
    ) -> Result<Resolved, MirrorError> {
        let reference = Reference::Tag(key.tag.clone());
        let seen_before = !matches!(self.records.get(key), Lookup::Unknown)
            || self
                .readable("tag", self.store.tag(&key.repo, &key.tag).await)
                .is_some();
        // A HEAD costs no quota; but where nothing is known yet, a GET answers in one round trip.
        if seen_before || want == Want::Head {
            match self.head(target, &reference, &key.accept).await {
                Ok(Some(known)) => return Ok(self.confirm(target, key, known).await),
                Ok(None) => {}
                Err(error) => return Err(self.gone(target, key, error).await),
            }
        }
        let fetched = match target
            .upstream
            .client
            .get_manifest(&target.repo, &reference, &key.accept)
            .await
        {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.gone(target, key, error.into()).await),
        };
        let (known, content, kept) = self.keep(target, fetched).await?;
        self.records.confirmed(key.clone(), known.clone());
        if kept {
            self.point(key, known.digest).await;
        }
        Ok(Resolved::loaded(known, content, Outcome::Miss))
    }

    /// The upstream has just named the tag's digest: that links the manifest, if the store has it.
    async fn confirm(&self, target: &Target, key: &TagKey, known: Known) -> Resolved {
        self.records.confirmed(key.clone(), known.clone());
        let Some((known, content)) = self.stored_manifest(known.digest).await else {
            self.records.awaits(key, known.digest);
            return Resolved {
                known,
                content: None,
                outcome: Outcome::Miss,
            };
        };
        let link = target.link(LinkKind::Revision, known.digest);
        if self.written("manifest link", self.store.link(&link).await) {
            self.point(key, known.digest).await;
        }
        Resolved::loaded(known, content, Outcome::Revalidated)
    }

    /// Adds the content to an answer that lacks it, where it is wanted.
    async fn deliver(
        self: &Arc<Self>,
        target: &Target,
        resolved: Resolved,
        want: Want,
    ) -> Result<Resolved, MirrorError> {
        if want == Want::Head || resolved.content.is_some() {
            return Ok(resolved);
        }
        let loaded = self.by_digest(target, resolved.known.digest, want).await?;
        let outcome = if loaded.outcome == Outcome::Hit {
            resolved.outcome
        } else {
            loaded.outcome
        };
        Ok(Resolved { outcome, ..loaded })
    }

    /// An upstream's 404 ends the tag, for those who could have read what it named.
    async fn gone(&self, target: &Target, key: &TagKey, error: MirrorError) -> MirrorError {
        if error.is_not_found() {
            self.records.forget(key);
            let pointed = self.readable("tag", self.store.tag(&key.repo, &key.tag).await);
            let manifest = match pointed {
                Some(digest) => self.linked_manifest(target, digest).await,
                None => None,
            };
            if pointed.is_some()
                && manifest.is_none_or(|(known, _)| key.accept.allows(&known.media_type))
            {
                let removed = self.store.remove_tag(&key.repo, &key.tag).await;
                self.written("tag", removed.map(|_was_there| ()));
            }
        }
        error
    }

    /// What to serve when the upstream can't be asked: the digest it named last for this Accept
    /// list, else the one on disk if the client can read it.
    async fn last_known(&self, target: &Target, key: &TagKey) -> Option<Resolved> {
        let recorded = match self.records.get(key) {
            Lookup::Fresh { known, .. } | Lookup::Expired(known) => {
                self.linked_manifest(target, known.digest).await
            }
            Lookup::Unknown => None,
        };
        let (known, content) = if let Some(loaded) = recorded {
            loaded
        } else {
            let digest = self.readable("tag", self.store.tag(&key.repo, &key.tag).await)?;
            let loaded = self.linked_manifest(target, digest).await?;
            key.accept.allows(&loaded.0.media_type).then_some(loaded)?
        };
        Some(Resolved::loaded(known, content, Outcome::Stale))
    }

    /// Asks the upstream what a manifest is. None when its answer lacks a part: then only a GET
    /// tells.
    async fn head(
        &self,
        target: &Target,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Option<Known>, MirrorError> {
        let head = target
            .upstream
            .client
            .head_manifest(&target.repo, reference, accept)
            .await?;
        if let (Reference::Digest(expected), Some(got)) = (reference, head.digest)
            && *expected != got
        {
            return Err(MirrorError::WrongDigest {
                expected: Box::new(*expected),
                got: Box::new(got),
            });
        }
        let (Some(digest), Some(media_type), Some(size)) =
            (head.digest, head.media_type, head.size)
        else {
            return Ok(None);
        };
        Ok(Some(Known {
            digest,
            media_type,
            size,
        }))
    }

    /// Stores a manifest that the upstream gave for this repository. The last part of the answer
    /// says whether the store took it: a client is served either way.
    async fn keep(
        &self,
        target: &Target,
        fetched: FetchedManifest,
    ) -> Result<(Known, Bytes, bool), MirrorError> {
        let FetchedManifest { bytes, digest, .. } = fetched;
        let manifest = Manifest::parse(&bytes).map_err(|error| MirrorError::Manifest {
            digest: Box::new(digest),
            source: Arc::new(error),
        })?;
        let known = Known {
            digest,
            media_type: manifest.media_type,
            size: bytes.len() as u64,
        };
        let link = target.link(LinkKind::Revision, digest);
        let kept = self.written(
            "manifest",
            store::put(&*self.store, &digest, bytes.clone()).await,
        ) && self.written("manifest link", self.store.link(&link).await);
        Ok((known, bytes, kept))
    }

    async fn point(&self, key: &TagKey, digest: Digest) {
        let TagKey { repo, tag, .. } = key;
        // The reference registry's layout has one digest for a tag. An index serves most clients,
        // so an old client's manifest must not take its place while the index is current.
        let pointed = self.readable("tag", self.store.tag(repo, tag).await);
        if pointed != Some(digest) && !self.narrower(key, pointed).await {
            self.written("tag", self.store.set_tag(repo, tag, &digest).await);
        }
    }

    /// Whether the key's Accept list can't read what the tag points to: then its own manifest is
    /// a conversion for an old client.
    async fn narrower(&self, key: &TagKey, pointed: Option<Digest>) -> bool {
        let Some(pointed) = pointed else { return false };
        let current = self.stored_manifest(pointed).await;
        current.is_some_and(|(known, _)| !key.accept.allows(&known.media_type))
    }

    /// Whether a manifest of this repository refers to the blob. The upstream gave that manifest
    /// for the repository, and a registry takes no manifest whose blobs the repository lacks.
    pub(super) async fn vouched(&self, target: &Target, digest: Digest) -> bool {
        let revisions = self.store.links(&target.stored, LinkKind::Revision).await;
        let revisions = self.readable("manifests", revisions);
        for revision in revisions.into_iter().take(MAX_SCANNED) {
            if let Some((_, content)) = self.linked_manifest(target, revision).await
                && let Ok(manifest) = Manifest::parse(&content)
                && manifest
                    .config
                    .iter()
                    .chain(&manifest.blobs)
                    .any(|blob| blob.digest == digest)
            {
                return true;
            }
        }
        false
    }

    /// A manifest that this repository has.
    pub(super) async fn linked_manifest(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Option<(Known, Bytes)> {
        let linked = self
            .store
            .linked(&target.link(LinkKind::Revision, digest))
            .await;
        if self.readable("manifest link", linked) {
            self.stored_manifest(digest).await
        } else {
            None
        }
    }

    /// A manifest that the store has, through whichever repository. What doesn't have its digest,
    /// or is no manifest, is not there.
    async fn stored_manifest(&self, digest: Digest) -> Option<(Known, Bytes)> {
        let bytes = self.readable(
            "manifest",
            store::read_all(&*self.store, &digest, MAX_MANIFEST).await,
        )?;
        if Digest::of(digest.algorithm(), &bytes) != digest {
            tracing::error!(%digest, "the stored manifest is corrupt; it is fetched again");
            self.written(
                "corrupt manifest",
                self.store.remove(&digest).await.map(|_was_there| ()),
            );
            return None;
        }
        let manifest = Manifest::parse(&bytes).ok()?;
        Some((
            Known {
                digest,
                media_type: manifest.media_type,
                size: bytes.len() as u64,
            },
            bytes,
        ))
    }

    /// The tags that the store has of a repository: what is left when the upstream can't be asked.
    pub(super) async fn stored_tags(&self, target: &Target) -> Vec<Tag> {
        self.readable("tags", self.store.tags(&target.stored).await)
    }
}
