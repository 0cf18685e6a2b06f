//! Manifests, by digest and by tag.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::tags::{Known, Lookup, TagKey};
use super::{Mirror, MirrorError, Target, Want};
use crate::metrics::Outcome;
use crate::oci::{Accept, Digest, Manifest, Reference};
use crate::upstream::UpstreamError;

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
    pub(super) fn loaded(known: Known, content: Bytes, outcome: Outcome) -> Self {
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
            self.manifest_used(target, &known);
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
        let hold = self.retention.hold(&digest).await;
        let present = self.stored_manifest(digest).await;
        if present.is_some() || want == Want::Head {
            // Present through another repository: a HEAD, which costs no quota, proves that it is
            // this repository's, too.
            let known = self
                .head(target, &Reference::Digest(digest), &Accept::everything())
                .await?;
            if let Some((known, content)) = present {
                if self.claim_manifest(target, &known, &content).await {
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
        drop(hold);
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
        let _hold = self.retention.hold(&known.digest).await;
        let Some((known, content)) = self.stored_manifest(known.digest).await else {
            self.records.awaits(key, known.digest);
            return Resolved {
                known,
                content: None,
                outcome: Outcome::Miss,
            };
        };
        if self.claim_manifest(target, &known, &content).await {
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

    /// Links a manifest that came through another repository, or again one that did through this.
    async fn claim_manifest(&self, target: &Target, known: &Known, content: &Bytes) -> bool {
        match Manifest::parse(content) {
            Ok(manifest) => {
                self.link_manifest(target, &manifest, known.digest, known.size)
                    .await
            }
            Err(_not_one) => false,
        }
    }
}
