//! Manifests, by digest and by tag.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::single_flight::{Interest, Waiter};
use super::tags::{PATIENCE, TagKey, Worth};
use super::verdicts::Question;
use super::{Exchange, Mirror, MirrorError, ReadMode, Target};
use crate::cache::{CachedManifest, ManifestMeta};
use crate::config::Freshness;
use crate::download::Party;
use crate::error_chain::on_one_line;
use crate::metrics::Outcome;
use crate::oci::{Accept, Classified as _, Digest, Reference, Tag};
use crate::telemetry;
use crate::upstream::{
    CallerId, FetchedManifest, ManifestHead, OwnerKey, PeerAnswer, UnverifiedManifest,
    UpstreamError,
};

#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    pub found: ManifestHit,
    pub outcome: Outcome,
    pub exchange: Exchange,
}

/// What is known of a manifest.
#[derive(Debug, Clone)]
pub enum ManifestHit {
    /// Its head: only when the content wasn't asked for.
    Head(ManifestMeta),
    Whole(Arc<CachedManifest>),
}

impl ManifestHit {
    pub fn known(&self) -> &ManifestMeta {
        match self {
            Self::Head(known) => known,
            Self::Whole(manifest) => &manifest.meta,
        }
    }
}

impl ManifestAnswer {
    fn new(found: ManifestHit, outcome: Outcome) -> Self {
        Self {
            found,
            outcome,
            exchange: Exchange::of(outcome),
        }
    }

    pub(super) fn head(known: ManifestMeta, outcome: Outcome) -> Self {
        Self::new(ManifestHit::Head(known), outcome)
    }

    pub(super) fn whole(manifest: Arc<CachedManifest>, outcome: Outcome) -> Self {
        Self::new(ManifestHit::Whole(manifest), outcome)
    }

    /// The answer came from another replica, if one is named.
    fn from(mut self, peer: Option<PeerAnswer>) -> Self {
        self.exchange.peer = peer.map(|peer| peer.address);
        self
    }

    fn with(self, exchange: Exchange) -> Self {
        Self { exchange, ..self }
    }

    /// Always there when the content was asked for.
    pub fn content(&self) -> Option<Bytes> {
        match &self.found {
            ManifestHit::Head(_) => None,
            ManifestHit::Whole(manifest) => Some(manifest.content.clone()),
        }
    }
}

/// A shared question to an upstream, and whether other replicas may be asked: a request of theirs never waits
/// for such a one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum FlightKey {
    Tag(TagKey, ReadMode, Option<CallerId>, bool),
    Digest(Party, Digest, ReadMode, bool),
}

/// The headers of a manifest, unless the upstream left one out.
fn known(head: &ManifestHead) -> Option<ManifestMeta> {
    Some(ManifestMeta {
        digest: head.digest?,
        media_type: head.media_type?,
        size: head.size?,
    })
}

impl Mirror {
    /// Finds a manifest. `accept` matters for tags only: a digest fixes the content.
    ///
    /// A warm manifest is found without waiting. The rest is boxed: a connection keeps the memory of a
    /// request's future for as long as it lives.
    pub async fn manifest(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
        accept: &Accept,
        want: ReadMode,
    ) -> Result<ManifestAnswer, MirrorError> {
        let question = || Question::Manifest(reference.clone(), accept.clone());
        self.permit(target, question).await?;
        match reference {
            Reference::Digest(digest) => {
                if let Some(manifest) = self.cache.hot_manifest(&target.stored, digest) {
                    return Ok(ManifestAnswer::whole(manifest, Outcome::Hit));
                }
                self.negatives.check(target, question)?;
                let finding = Box::pin(self.by_digest(target, *digest, want));
                finding
                    .await
                    .inspect_err(|error| self.note_refusal(target, question, error))
            }
            Reference::Tag(tag) => {
                let key = TagKey {
                    repo: target.stored.clone(),
                    tag: tag.clone(),
                    accept: accept.clone(),
                };
                let fresh = self.records.fresh(&key, || target.upstream.stretch());
                let fresh = fresh.or_else(|| self.update_in_background(target, &key, want));
                if let Some((known, outcome)) = &fresh {
                    let hot = match want {
                        // Its size and type may be another upstream's secret.
                        ReadMode::Head if self.upstreams.are_separate() => None,
                        // Needs no more proof than the upstream's word for the tag, and is no use of
                        // the content.
                        ReadMode::Head => self.cache.manifest_in_memory(&known.digest),
                        ReadMode::Content => self.cache.hot_manifest(&target.stored, &known.digest),
                    };
                    if let Some(manifest) = hot {
                        return Ok(ManifestAnswer::whole(manifest, *outcome));
                    }
                } else {
                    self.negatives.check(target, question)?;
                }
                let finding = Box::pin(self.by_tag(target, key, fresh, want));
                finding
                    .await
                    .inspect_err(|error| self.note_refusal(target, question, error))
            }
        }
    }

    pub(super) async fn by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        want: ReadMode,
    ) -> Result<ManifestAnswer, MirrorError> {
        if want == ReadMode::Head
            && let Some(known) = self.cache.manifest_meta(&target.stored, &digest)
        {
            return Ok(ManifestAnswer::head(known, Outcome::Hit));
        }
        // Until it has been fetched again, when it turns out to be damaged: the link of a manifest whose
        // file is gone goes otherwise, and so do the tags that name it.
        let _hold = self.cache.hold(&digest).await;
        if let Some(manifest) = self.cached_manifest(target, &digest).await {
            return Ok(ManifestAnswer::whole(manifest, Outcome::Hit));
        }
        let flight = |asks_peers| FlightKey::Digest(target.party(), digest, want, asks_peers);
        self.refuse_circle(target, || flight(true))?;
        let (mirror, asked) = (Arc::clone(self), target.routed(OwnerKey::Content(&digest)));
        let key = flight(asked.upstream.asks_peers());
        let answer = self.manifest_flights.join(key, |interest| async move {
            mirror.ask_by_digest(&asked, digest, want, &interest).await
        });
        match answer.await? {
            Err(error) if error.permits_stale() => {
                // For its content, the bucket was asked before the upstream.
                if want == ReadMode::Head
                    && let Some(manifest) = self.bucket_manifest(target, &digest).await?
                {
                    let answer = ManifestAnswer::whole(manifest, error.outcome_of_known());
                    return Ok(answer.with(Exchange::failed(&error)));
                }
                Err(self.unless_schema1(target, digest, error).await)
            }
            answer => answer,
        }
    }

    /// Refuses the request of another replica where this one asks a replica the same.
    fn refuse_circle(
        &self,
        target: &Target,
        flight: impl FnOnce() -> FlightKey,
    ) -> Result<(), MirrorError> {
        if target.from_peer && self.manifest_flights.is_running(&flight()) {
            return Err(MirrorError::Misdirected);
        }
        Ok(())
    }

    fn refuse_circle_of_tag(&self, target: &Target, key: &TagKey) -> Result<(), MirrorError> {
        let caller = target.upstream.caller();
        for want in [ReadMode::Head, ReadMode::Content] {
            self.refuse_circle(target, || FlightKey::Tag(key.clone(), want, caller, true))?;
        }
        Ok(())
    }

    /// Asks the upstream for a digest, once for all clients that wait.
    async fn ask_by_digest(
        &self,
        target: &Target,
        digest: Digest,
        want: ReadMode,
        interest: &Interest,
    ) -> Result<ManifestAnswer, MirrorError> {
        let (reference, accept) = (Reference::Digest(digest), Accept::everything());
        let _hold = self.cache.hold(&digest).await;
        let present = self.any_manifest(target, &digest).await;
        if present.is_some() || want == ReadMode::Head {
            // Present through another repository: a HEAD, which costs no quota, proves that it is
            // this repository's, too.
            let repo = &target.repo;
            let asking = target
                .upstream
                .head_manifest(repo, &reference, &accept, None);
            let head = interest.answer(asking).await?;
            if let Some(got) = head.digest.filter(|got| *got != digest) {
                return Err(MirrorError::WrongDigest {
                    expected: Box::new(digest),
                    got: Box::new(got),
                });
            }
            self.negatives.on_arrival(target);
            if let Some(stored) = present {
                if self.cache.link_manifest(&target.stored, &stored).await {
                    self.on_manifest_stored(target, digest).await;
                }
                let answer = ManifestAnswer::whole(stored, Outcome::Revalidated);
                return Ok(answer.from(head.peer));
            }
            if let Some(known) = known(&head) {
                return Ok(ManifestAnswer::head(known, Outcome::Miss).from(head.peer));
            }
        }
        let (answer, _) = self.fetch(target, &reference, &accept, interest).await?;
        if answer.exchange.stored {
            self.on_manifest_stored(target, digest).await;
        }
        Ok(answer)
    }

    async fn by_tag(
        self: &Arc<Self>,
        target: &Target,
        key: TagKey,
        fresh: Option<(ManifestMeta, Outcome)>,
        want: ReadMode,
    ) -> Result<ManifestAnswer, MirrorError> {
        let is_offline = target.upstream.is_offline();
        let freshness = if is_offline {
            Freshness::Offline
        } else {
            self.records.freshness(&key)
        };
        if let Freshness::Limited(_) = freshness {
            if let Some((known, outcome)) = fresh {
                let answer = ManifestAnswer::head(known, outcome);
                return self.deliver(target, answer, want).await;
            }
        } else if let Some(known) = self.last_known(target, &key, (want, Outcome::Hit)).await {
            // Not of an offline tag: an import changes it.
            if freshness == Freshness::Immutable {
                self.records.still_holds(&key, known.found.known().clone());
            }
            return Ok(known);
        }
        if is_offline {
            return Err(target.upstream.offline_error().into());
        }
        if freshness == Freshness::Offline {
            return Err(MirrorError::Offline);
        }
        self.refuse_circle_of_tag(target, &key)?;
        let mut question = self.question_of_tag(target, &key, want).await;
        let answer = match tokio::time::timeout(PATIENCE, &mut question).await {
            Ok(answer) => answer?,
            Err(_elapsed) => match self.serve_stale(target, &key, want, None).await {
                Some(stale) => {
                    // For the next clients: a slow upstream would otherwise never be heard.
                    question.leave_running();
                    return Ok(stale.with(Exchange::unanswered()));
                }
                None => question.await?,
            },
        };
        match answer {
            Ok(answer) => {
                if want == ReadMode::Head {
                    // A use. What the mirror asks by itself is none.
                    let digest = answer.found.known().digest;
                    self.cache.manifest_meta(&target.stored, &digest);
                }
                self.deliver(target, answer, want).await
            }
            Err(error) if error.permits_stale() => {
                let retry_after = error.retry_after();
                let stale = self.serve_stale(target, &key, want, retry_after).await;
                let Some(stale) = stale else {
                    return Err(match self.cache.tagged(&key.repo, &key.tag).await {
                        Some(digest) => self.unless_schema1(target, digest, error).await,
                        None => error,
                    });
                };
                target.report(&error, "served the last known digest of the tag");
                Ok(stale.with(Exchange::failed(&error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Serves what is stale, if that is permitted while the upstream is asked, and sees to it that it is
    /// asked. Not with the account of a caller, whose failure would be the others' delay.
    fn update_in_background(
        self: &Arc<Self>,
        target: &Target,
        key: &TagKey,
        want: ReadMode,
    ) -> Option<(ManifestMeta, Outcome)> {
        // Nor for another replica, which does so itself.
        if target.upstream.caller().is_some() || target.from_peer {
            return None;
        }
        let known = self.records.begin_update(key)?;
        let (mirror, target, key) = (Arc::clone(self), target.clone(), key.clone());
        let updating = async move {
            // Reported where it fails.
            drop(mirror.by_tag(&target, key, None, want).await);
        };
        let (task, _) = telemetry::caused("update a stale tag", updating);
        self.tasks.spawn(task);
        Some(known)
    }

    /// Joins the question what a tag names. A known tag is only confirmed, by one question for all, whether
    /// or not they want the content.
    pub(super) async fn question_of_tag(
        self: &Arc<Self>,
        target: &Target,
        key: &TagKey,
        want: ReadMode,
    ) -> Waiter<FlightKey, Result<ManifestAnswer, MirrorError>> {
        let is_known = self.records.last(key).is_some()
            || self.cache.tagged(&key.repo, &key.tag).await.is_some();
        let want = if is_known { ReadMode::Head } else { want };
        let target = target.routed(OwnerKey::Tag(&target.repo, &key.tag));
        let (mirror, key, asks_peers) =
            (Arc::clone(self), key.clone(), target.upstream.asks_peers());
        let flight = FlightKey::Tag(key.clone(), want, target.upstream.caller(), asks_peers);
        self.manifest_flights.join(flight, |interest| async move {
            let answer = mirror.ask_by_tag(&target, &key, want, &interest).await;
            if let Err(error) = &answer {
                mirror.on_upstream_404(&target, &key, error).await;
            }
            answer
        })
    }

    /// What is known last, if anything; the next clients get it without waiting for an upstream
    /// that has just failed to answer. Where it was asked with a caller's account, it may have failed
    /// for that one only, and the others ask it themselves.
    async fn serve_stale(
        &self,
        target: &Target,
        key: &TagKey,
        want: ReadMode,
        retry_after: Option<Duration>,
    ) -> Option<ManifestAnswer> {
        if !self.records.may_be_stale(key) {
            return None;
        }
        let known = self.last_known(target, key, (want, Outcome::Stale)).await;
        let stale = if let Some(stale) = known {
            stale
        } else {
            let manifest = self.bucket_tag(target, key).await?;
            self.update_tag(key, manifest.meta.digest).await;
            ManifestAnswer::whole(manifest, Outcome::Stale)
        };
        if target.upstream.caller().is_none() {
            self.records
                .unconfirmed(key, stale.found.known().clone(), retry_after);
        }
        Some(stale)
    }

    /// Asks the upstream for a tag, once for all clients with the same Accept list. `want` the head of one
    /// that is known: a HEAD costs no quota. Where nothing is known yet, a GET answers in one round trip.
    async fn ask_by_tag(
        &self,
        target: &Target,
        key: &TagKey,
        want: ReadMode,
        interest: &Interest,
    ) -> Result<ManifestAnswer, MirrorError> {
        let reference = Reference::Tag(key.tag.clone());
        if want == ReadMode::Head {
            let (repo, accept) = (&target.repo, &key.accept);
            let (last, validator) = (self.records.last(key), self.records.validator(key));
            let validator = validator.filter(|_| last.is_some());
            let upstream = &target.upstream;
            let asking = upstream.head_manifest(repo, &reference, accept, validator.as_ref());
            let mut head = interest.answer(asking).await?;
            let worth = |peer: PeerAnswer| self.records.worth(key, peer.age);
            if head.peer.map(worth) == Some(Worth::Outdated) {
                let upstream = upstream.direct();
                let asking = upstream.head_manifest(repo, &reference, accept, validator.as_ref());
                head = interest.answer(asking).await?;
            }
            if let Some(last) = last.filter(|_| head.is_unchanged) {
                head = ManifestHead {
                    digest: Some(last.digest),
                    media_type: Some(last.media_type),
                    size: Some(last.size),
                    validator,
                    is_unchanged: true,
                    peer: None,
                };
            }
            if let Some(mut answer) = self.confirm(target, key, &head).await {
                if head.peer.map(worth) == Some(Worth::Stale) {
                    answer.outcome = Outcome::Stale;
                }
                return Ok(answer);
            }
        }
        let fetching = self.fetch(target, &reference, &key.accept, interest);
        let (mut answer, peer) = fetching.await?;
        let age = peer.map_or(Duration::ZERO, |peer| peer.age);
        if self.records.worth(key, age) == Worth::Stale {
            answer.outcome = Outcome::Stale;
        }
        let known = answer.found.known();
        self.records.confirmed(key, known.clone(), None, age);
        if answer.exchange.stored {
            self.update_tag(key, known.digest).await;
        }
        Ok(answer)
    }

    /// Downloads a manifest and stores it. A client is served also where the cache doesn't take it. Another
    /// replica's wrong bytes are asked of the upstream.
    async fn fetch(
        &self,
        target: &Target,
        reference: &Reference,
        accept: &Accept,
        interest: &Interest,
    ) -> Result<(ManifestAnswer, Option<PeerAnswer>), MirrorError> {
        let (repo, upstream) = (&target.repo, &target.upstream);
        let mut is_asked = false;
        let near = match (&self.bucket, reference) {
            (Some(_), Reference::Digest(digest)) => {
                let asking = upstream.peer_manifest(repo, reference, accept);
                let near = interest.answer(asking).await?;
                if near.is_none()
                    && let Some(manifest) = self.bucket_manifest(target, digest).await?
                {
                    return Ok((ManifestAnswer::whole(manifest, Outcome::Miss), None));
                }
                is_asked = true;
                near
            }
            _ => None,
        };
        let fetched = if let Some(fetched) = near {
            fetched
        } else {
            let upstream = if is_asked {
                upstream.direct()
            } else {
                Arc::clone(upstream)
            };
            let asking = upstream.get_manifest(repo, reference, accept);
            interest.answer(asking).await?
        };
        let mut peer = fetched.peer();
        let mut fetched = self.verify(fetched).await?;
        if let (Err(error), Some(PeerAnswer { address, .. })) = (&fetched, peer) {
            tracing::warn!(replica = %address, %repo, error = %on_one_line(error), "another replica sent a wrong manifest; asking the upstream");
            let upstream = target.upstream.direct();
            let asking = upstream.get_manifest(repo, reference, accept);
            fetched = self.verify(interest.answer(asking).await?).await?;
            peer = None;
        }
        let fetched = fetched?;
        let digest = fetched.digest;
        let (manifest, stored) = self
            .cache
            .put_manifest(
                &target.stored,
                fetched.digest,
                fetched.bytes,
                fetched.manifest,
            )
            .await;
        self.note_manifest(&manifest);
        self.negatives.on_arrival(target);
        if stored && peer.is_none() {
            self.share_manifest(&target.stored, &digest, None, is_asked);
        }
        let mut answer = ManifestAnswer::whole(manifest, Outcome::Miss);
        answer.exchange.stored = stored;
        Ok((answer.from(peer), peer))
    }

    /// Checks what was fetched, off the runtime's threads where that takes long.
    async fn verify(
        &self,
        fetched: UnverifiedManifest,
    ) -> Result<Result<FetchedManifest, UpstreamError>, MirrorError> {
        let admission = self.cache.workers().admit(fetched.size() as u64).await?;
        Ok(admission.run(move || fetched.verify()).await?)
    }

    /// The upstream has just named the tag's digest: that links the manifest, if the store has it.
    /// None when the upstream's answer lacks a header: then a GET is needed.
    async fn confirm(
        &self,
        target: &Target,
        key: &TagKey,
        head: &ManifestHead,
    ) -> Option<ManifestAnswer> {
        let digest = head.digest?;
        if self
            .records
            .last(key)
            .is_none_or(|last| last.digest != digest)
        {
            self.negatives.on_arrival(target);
        }
        let confirmed = |known| {
            let validator = head.validator.clone();
            let age = head.peer.map_or(Duration::ZERO, |peer| peer.age);
            self.records.confirmed(key, known, validator, age);
        };
        let _hold = self.cache.hold(&digest).await;
        if let Some(known) = self.cache.peek_manifest_meta(&target.stored, &digest) {
            confirmed(known.clone());
            self.update_tag(key, digest).await;
            return Some(ManifestAnswer::head(known, Outcome::Revalidated).from(head.peer));
        }
        let Some(stored) = self.any_manifest(target, &digest).await else {
            let known = known(head)?;
            confirmed(known.clone());
            self.records.expect_manifest(key, digest);
            return Some(ManifestAnswer::head(known, Outcome::Miss).from(head.peer));
        };
        confirmed(stored.meta.clone());
        if self.cache.link_manifest(&target.stored, &stored).await {
            self.update_tag(key, digest).await;
        }
        Some(ManifestAnswer::whole(stored, Outcome::Revalidated).from(head.peer))
    }

    /// How long ago the upstream said that the tag names this digest, for another replica. None where that
    /// isn't known.
    pub fn tag_age(
        &self,
        target: &Target,
        tag: &Tag,
        accept: &Accept,
        digest: &Digest,
    ) -> Option<Duration> {
        let key = TagKey {
            repo: target.stored.clone(),
            tag: tag.clone(),
            accept: accept.clone(),
        };
        self.records.age(&key, digest)
    }

    /// Adds the content to an answer that lacks it, where it is wanted.
    async fn deliver(
        self: &Arc<Self>,
        target: &Target,
        answer: ManifestAnswer,
        want: ReadMode,
    ) -> Result<ManifestAnswer, MirrorError> {
        let digest = match &answer.found {
            ManifestHit::Head(known) if want == ReadMode::Content => known.digest,
            ManifestHit::Head(_) | ManifestHit::Whole(_) => return Ok(answer),
        };
        let mut loaded = self.by_digest(target, digest, want).await?;
        if loaded.outcome == Outcome::Hit {
            (loaded.outcome, loaded.exchange) = (answer.outcome, answer.exchange);
        }
        Ok(loaded)
    }
}
