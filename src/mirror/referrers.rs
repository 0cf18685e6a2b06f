//! What is attached to a manifest: signatures, SBOMs and the like.

use std::sync::Arc;

use bytes::Bytes;

use super::remembered::List;
use super::single_flight::Interest;
use super::tags::TagKey;
use super::verdicts::Question;
use super::{Exchange, Mirror, MirrorError, ReadMode, Target};
use crate::metrics::Outcome;
use crate::oci::manifest::{referrers_index, referrers_tag};
use crate::oci::{Accept, Descriptor, Digest, Manifest, ManifestType, Reference};
use crate::upstream::UnparsedList;

/// Cached referrers of one digest that are listed while the upstream can't answer.
const MAX_REFERRERS: usize = 1_000;

/// The manifests attached to a digest.
#[derive(Debug)]
pub struct ReferrersAnswer {
    /// An image index.
    pub index: Bytes,
    pub outcome: Outcome,
    pub exchange: Exchange,
}

/// All referrers of a subject.
pub(super) type Referrers = Vec<Descriptor>;

impl List for Referrers {
    fn weight(&self) -> u64 {
        self.iter().map(Descriptor::memory).sum()
    }
}

impl ReferrersAnswer {
    fn nothing() -> Self {
        Self {
            index: Bytes::from(referrers_index(std::iter::empty())),
            outcome: Outcome::Miss,
            exchange: Exchange::of(Outcome::Miss),
        }
    }
}

impl Mirror {
    /// The referrers of a digest, filtered by artifact type. From the upstream's API, else from the
    /// tag that stands in for it (distribution-spec, "Unavailable Referrers API"), else, while the
    /// upstream can't answer, what it said last, or what is cached.
    ///
    /// The upstream is asked for all of them, so that the answer serves every filter.
    pub async fn referrers(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersAnswer, MirrorError> {
        match self.permit(target, || Question::Referrers(digest)).await {
            // The upstream doesn't know the subject, or hides it.
            Err(error) if error.is_not_found() => return Ok(ReferrersAnswer::nothing()),
            permitted => permitted?,
        }
        let ask = |interest| {
            let (mirror, target) = (Arc::clone(self), target.clone());
            async move { Box::pin(mirror.ask_for_referrers(&target, digest, &interest)).await }
        };
        let key = ((target.stored.clone(), digest), target.upstream.caller());
        let report =
            |error: &MirrorError| target.report(error, "listed the referrers of its last answer");
        let asked = if target.upstream.is_offline() {
            Err(target.upstream.offline_error().into())
        } else {
            self.referrers.get(key, ask, report).await
        };
        let (referrers, outcome, exchange) = match asked {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(ReferrersAnswer::nothing()),
            Err(error) if error.permits_stale() => {
                let cached = self.cached_referrers(target, digest).await;
                if cached.is_empty() && !error.is_offline() {
                    return Err(error);
                }
                target.report(&error, "listed the referrers that are cached");
                let exchange = Exchange::failed(&error);
                (Arc::new(cached), error.outcome_of_known(), exchange)
            }
            // The upstream may well filter them itself.
            Err(error) if error.is_too_long() && artifact_type.is_some() => {
                let some = target
                    .upstream
                    .referrers(&target.repo, &digest, artifact_type)
                    .await?;
                let some = some.ok_or(error)?;
                let some = Arc::new(self.parse_referrers(some).await?);
                (some, Outcome::Miss, Exchange::of(Outcome::Miss))
            }
            Err(error) => {
                self.note_refusal(target, || Question::Referrers(digest), &error);
                return Err(error);
            }
        };
        let kind = artifact_type.map(str::to_owned);
        let admission = self.cache.workers().admit(referrers.weight()).await?;
        let render = move || {
            let all = referrers.iter();
            let wanted = all.filter(|one| kind.is_none() || one.artifact_type == kind);
            Bytes::from(referrers_index(wanted))
        };
        let index = admission.run(render).await?;
        Ok(ReferrersAnswer {
            index,
            outcome,
            exchange,
        })
    }

    /// Requests the referrers of a digest, once for all clients that wait.
    async fn ask_for_referrers(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        interest: &Interest,
    ) -> Result<(Referrers, Outcome), MirrorError> {
        let asking = target.upstream.referrers(&target.repo, &digest, None);
        match interest.answer(asking).await? {
            Some(list) => Ok((self.parse_referrers(list).await?, Outcome::Miss)),
            None => interest.answer(self.fallback_tag(target, digest)).await,
        }
    }

    async fn parse_referrers(&self, list: UnparsedList) -> Result<Referrers, MirrorError> {
        let admission = self.cache.workers().admit(list.size()).await?;
        Ok(admission.run(move || list.referrers()).await??)
    }

    async fn fallback_tag(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
    ) -> Result<(Referrers, Outcome), MirrorError> {
        let nothing = || (Vec::new(), Outcome::Miss);
        let Some(tag) = referrers_tag(&digest) else {
            return Ok(nothing());
        };
        let reference = Reference::Tag(tag);
        let answer = match self
            .manifest(target, &reference, &Accept::everything(), ReadMode::Content)
            .await
        {
            Ok(answer) => answer,
            // No tag: nothing refers to the digest. With a caller's account it may only be hidden from
            // that: an error isn't remembered for the others.
            Err(error) if error.is_not_found() && target.upstream.caller().is_none() => {
                return Ok(nothing());
            }
            Err(error) => return Err(error),
        };
        // The upstream has just been asked for its API, whatever is known of the tag.
        let outcome = match answer.outcome {
            Outcome::Stale => Outcome::Stale,
            _ => Outcome::Miss,
        };
        // A head has none, and isn't what was asked for.
        let content = answer.content().unwrap_or_default();
        Ok((self.listed(content).await?, outcome))
    }

    /// The entries of an index; of another manifest, none.
    pub(super) async fn listed(&self, content: Bytes) -> Result<Referrers, MirrorError> {
        let admission = self.cache.workers().admit(content.len() as u64).await?;
        let read = move || match Manifest::parse(&content) {
            Ok(index) if index.media_type == ManifestType::OciIndex => index.manifests,
            _ => Vec::new(),
        };
        Ok(admission.run(read).await?)
    }

    /// What this mirror has stored that refers to the subject, or lists what does.
    async fn cached_referrers(&self, target: &Target, subject: Digest) -> Referrers {
        let found = self.stored_referrers(target, subject).await;
        let Some(tag) = referrers_tag(&subject).filter(|_| found.is_empty()) else {
            return found;
        };
        let key = TagKey {
            repo: target.stored.clone(),
            tag,
            accept: Accept::everything(),
        };
        let stored = self
            .last_known(target, &key, (ReadMode::Content, Outcome::Stale))
            .await;
        match stored.and_then(|stored| stored.content()) {
            Some(content) => self.listed(content).await.unwrap_or(found),
            None => found,
        }
    }

    async fn stored_referrers(&self, target: &Target, subject: Digest) -> Referrers {
        let mut referrers = self.cache.referrers(&target.stored, &subject).await;
        referrers.sort_unstable();
        let mut found = Vec::new();
        for digest in referrers.into_iter().take(MAX_REFERRERS) {
            if let Some(manifest) = self.cache.peek_manifest(&target.stored, &digest).await {
                let size = manifest.meta.size;
                found.push(manifest.parsed.descriptor(digest, size));
            }
        }
        found
    }
}
