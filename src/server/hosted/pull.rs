//! Manifests and blobs that are pulled.

use std::sync::OnceLock;

use super::HostedHandlers;
use crate::access::Permission;
use crate::cache::{CachedBlob, ReadMode};
use crate::hosted::HostedError;
use crate::metrics::Outcome;
use crate::mirror::{BlobAnswer, BlobContent, Exchange, ManifestAnswer, ManifestHit};
use crate::oci::{Digest, Reference, RepoName, Requested};
use crate::server::answer;
use crate::server::cache_status::{Named, Origin};
use crate::server::call::{Answered, Call, CallError};
use crate::server::conditional::Verdict;
use crate::server::redirect::{self, Redirectable, Way};

impl HostedHandlers {
    pub(super) async fn manifest(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        reference: &Reference,
    ) -> Result<Answered, CallError> {
        self.permit(call, name, Some(reference))?;
        let manifest = self.hosted().manifest(name, reference).await?;
        if let Reference::Tag(_) = reference {
            call.permits_content(&self.access, name, reference, &manifest.meta.digest)?;
        }
        let found = ManifestAnswer {
            found: ManifestHit::Whole(manifest),
            outcome: Outcome::Hit,
            exchange: Exchange::default(),
        };
        Ok(self.give_manifest(call, reference, &found))
    }

    pub(super) fn give_manifest(
        &self,
        call: &Call<'_>,
        reference: &Reference,
        found: &ManifestAnswer,
    ) -> Answered {
        let named = Named::by_reference(reference);
        let mut response = answer::manifest(&call.conditions, named, found);
        answer::keep_private(!self.access.is_open(), &mut response);
        (response, found.outcome)
    }

    pub(super) async fn blob(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: Digest,
    ) -> Result<Answered, CallError> {
        self.permit(call, name, Some(&Reference::Digest(digest)))?;
        let blob = match self.hosted().warm_blob(name, &digest) {
            Some(blob) => blob,
            None => Box::pin(self.cold_blob(call, name, &digest)).await?,
        };
        let verdict = call.conditions.evaluate(&digest);
        let ranges = call.conditions.ranges(&digest);
        let mut counted = None;
        if call.mode == ReadMode::Content
            && verdict == Verdict::Proceed
            && let Some(redirects) = self.mirror.redirects()
        {
            let asked = Redirectable::new(call, ranges, !self.access.is_open());
            let find = async { Ok(self.mirror.redirect_stored(name, digest, ranges).await) };
            match Box::pin(asked.way::<CallError>(redirects, find)).await? {
                Way::Redirect(location) => return Ok(redirect::answered(&digest, location)),
                Way::Send(body) => counted = body,
            }
        }
        let found = BlobAnswer {
            size: Some(blob.size()),
            body: Some(BlobContent::Stored(blob)),
            outcome: Outcome::Hit,
            visit: None,
            exchange: Exchange::default(),
        };
        let (mut response, outcome) = self.give_blob(call, (name, &digest), call.mode, found);
        response.body_mut().hold(None, counted);
        Ok((response, outcome))
    }

    /// `mode`: what was looked for.
    pub(super) fn give_blob(
        &self,
        call: &Call<'_>,
        (name, digest): (&RepoName, &Digest),
        mode: ReadMode,
        found: BlobAnswer,
    ) -> Answered {
        let ranges = call.conditions.ranges(digest);
        let ranges = ranges.filter(|_| call.mode == ReadMode::Content);
        let outcome = found.outcome;
        let origin = Origin {
            outcome,
            named: Named::ByDigest,
            exchange: found.exchange,
        };
        let mut response = match call.conditions.evaluate(digest) {
            Verdict::Failed => answer::precondition_failed(digest, origin),
            Verdict::NotModified => answer::blob_not_modified(digest, origin),
            Verdict::Proceed if ranges.is_some_and(Requested::never_satisfiable) => {
                answer::unsatisfiable(found.size, origin)
            }
            Verdict::Proceed => answer::blob(digest, mode, ranges, found, origin, None),
        };
        answer::keep_private(!self.access.is_open(), &mut response);
        if call.is_of_client() {
            response
                .body_mut()
                .watched(self.access.watch(name, *digest));
        }
        (response, outcome)
    }

    /// Looks for a blob, and answers HEAD for one that needn't be pushed.
    async fn cold_blob(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<CachedBlob, HostedError> {
        let may_push = OnceLock::new();
        // Who can't push it has no use for another repository's blob, and mustn't learn of it. Where another
        // replica writes, that one decides.
        let may_reuse = |stored: &RepoName| {
            call.mode == ReadMode::Head
                && call.relay.is_none()
                && *may_push.get_or_init(|| self.may_push(call, name))
                && self.may_pull(call, stored)
        };
        self.hosted()
            .blob(name, digest, call.mode, &may_reuse)
            .await
    }

    /// Checks that the caller may pull.
    pub(super) fn permit(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        reference: Option<&Reference>,
    ) -> Result<(), CallError> {
        call.addressed.set(self.metrics_id);
        call.permit_hosted(&self.access, name, (Permission::Pull, reference))
    }
}
