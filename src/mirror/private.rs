//! Who may read what of the one cache: the gate in front of everything that is read for a caller
//! (`proxy.authorize: caller`), and what crosses from one upstream to another.
//!
//! What must never happen: a caller learns anything of a repository, its existence included, before the
//! upstream has let its account read it; the upstream's word for a digest hands out what only another
//! upstream has given.

use std::sync::Arc;

use super::single_flight::Interest;
use super::verdicts::{Class, Question};
use super::{Mirror, MirrorError, Target};
use crate::config::Authorize;
use crate::oci::{Accept, Digest, Reference, RepoName};
use crate::upstream::{CallerId, Failure, Login, UpstreamError};

impl Mirror {
    /// Succeeds when the caller's account may read the repository, or when all callers share the
    /// mirror's account. The error is the upstream's answer.
    ///
    /// Comes before every look at the cache and at running downloads.
    pub(super) async fn permit(
        &self,
        target: &Target,
        question: impl FnOnce() -> Question,
    ) -> Result<(), MirrorError> {
        match target.upstream.caller() {
            None => Ok(()),
            // Boxed: a connection keeps the memory of a request's future.
            Some(account) => Box::pin(self.ask_for(target, account, question())).await,
        }
    }

    async fn ask_for(
        &self,
        target: &Target,
        account: CallerId,
        question: Question,
    ) -> Result<(), MirrorError> {
        // Not by way of another replica, which may remember a permission that the upstream has withdrawn: this
        // one would rely on it for as long again.
        let direct = target.direct();
        let ask = |interest: Interest| {
            let (target, question) = (direct.clone(), question.clone());
            async move { interest.answer(Box::pin(question.ask(&target))).await }
        };
        self.negatives.check(target, || question.clone())?;
        let key = (target.stored.clone(), account, question.class());
        let access = target.upstream.config.caller;
        let asking = self.verdicts.get(key, question.clone(), access, ask);
        asking
            .await
            .inspect_err(|error| self.negatives.note(target, question, error))
    }

    /// A request has failed. If the upstream has nothing for it, the same question is answered so for a
    /// while. If the upstream refused a caller's account, its permission ends.
    pub(super) fn note_refusal(
        &self,
        target: &Target,
        question: impl Fn() -> Question,
        error: &MirrorError,
    ) {
        self.negatives.note(target, question(), error);
        if let Some(account) = target.upstream.caller() {
            let question = question();
            let key = (target.stored.clone(), account, question.class());
            self.verdicts.on_error(&key, &question, error);
        }
    }

    /// Whether the catalog may have a repository for the caller with a login: where the upstream is asked
    /// with the accounts of callers, only if it lately let this one access it.
    pub fn is_listed(&self, stored: &RepoName, login: Option<&Arc<Login>>) -> bool {
        let Some(upstream) = self.upstreams.of_stored(stored) else {
            return false;
        };
        match upstream.caller_of(login) {
            None => true,
            Some(account) => {
                let key = (stored.clone(), account, Class::Content);
                self.verdicts.is_allowed(&key)
            }
        }
    }

    /// Whether the target's upstream is believed when it says that it has content that is cached. Not
    /// for content that only upstreams outside its trust group have given: one that answers each HEAD
    /// with 200 could be used to read what they gave in confidence, also those that are no longer
    /// configured. Such content is downloaded again, from the target's upstream.
    pub(super) async fn may_share(&self, target: &Target, digest: &Digest) -> bool {
        let alone = !self.upstreams.are_separate() && !self.cache.has_hosted();
        if alone && !self.cache.may_have_unproved() {
            return true;
        }
        let accepts = |stored: &RepoName| self.trusts(target, stored);
        self.cache.is_linked_by(digest, accepts).await
    }

    /// Whether what is cached for a repository may be shared with the target's upstream: everybody may
    /// read it, or both upstreams are in one trust group.
    fn trusts(&self, target: &Target, stored: &RepoName) -> bool {
        // What clients have pushed is no upstream's to give.
        if self.cache.hosts(stored) {
            return false;
        }
        let Some(owner) = self.upstreams.of_stored(stored) else {
            return false;
        };
        let (own, other) = (&target.upstream.config, &owner.config);
        own.name == other.name
            || self.upstreams.is_public(owner)
            || (own.trust.is_some() && own.trust == other.trust)
            || (other.caller.authorize == Authorize::Caller
                && self
                    .verdicts
                    .is_allowed(&(stored.clone(), CallerId::ANONYMOUS, Class::Content)))
    }
}

impl Question {
    /// Asks the upstream. Succeeds when it lets the account read the repository.
    async fn ask(&self, target: &Target) -> Result<(), UpstreamError> {
        let Target { upstream, repo, .. } = target;
        match self {
            Self::Manifest(reference, accept) => ask_for_manifest(target, reference, accept).await,
            Self::Blob(digest) => upstream.head_blob(repo, digest).await.map(drop),
            Self::Tags => upstream.tags_page(repo, 1, None).await.map(drop),
            // Not for the referrers: many registries answer everybody with an empty list.
            Self::Referrers(digest) => {
                let subject = Reference::Digest(*digest);
                ask_for_manifest(target, &subject, &Accept::everything()).await
            }
        }
    }
}

async fn ask_for_manifest(
    Target { upstream, repo, .. }: &Target,
    reference: &Reference,
    accept: &Accept,
) -> Result<(), UpstreamError> {
    let head = match upstream.head_manifest(repo, reference, accept, None).await {
        // The answer was a success.
        Err(error) if matches!(error.failure, Failure::Schema1) => return Ok(()),
        head => head?,
    };
    // An upstream without HEAD says nothing.
    if head.digest.is_none() && head.size.is_none() && head.media_type.is_none() {
        upstream.get_manifest(repo, reference, accept).await?;
    }
    Ok(())
}
