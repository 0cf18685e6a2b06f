//! Manifests that are pushed or deleted.

use http::StatusCode;

use super::{HostedHandlers, answer};
use crate::access::AuditEvent;
use crate::hosted::HostedError;
use crate::oci::manifest::{MAX_MANIFEST, is_deep};
use crate::oci::{Reference, RepoName, Tag};
use crate::server::call::{Answered, Call, CallError};
use crate::server::push_body::UploadBody;
use crate::server::push_head::HeadError;

const DEEP: &str = "its arrays and objects are nested too deeply";

impl HostedHandlers {
    pub(super) async fn put_manifest(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        (reference, tags): (&Reference, &[Tag]),
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let head = call.push.as_deref();
        let length = head.and_then(|head| head.length);
        if length.is_some_and(|length| length > MAX_MANIFEST) {
            return Err(HeadError::LargeManifest.into());
        }
        let max = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let content = body.whole(max).await.map_err(HostedError::Body)?;
        let content = content.ok_or(HeadError::LargeManifest)?;
        if is_deep(&content) {
            return Err(HostedError::InvalidManifest(DEEP.into()).into());
        }
        let content_type = head.and_then(|head| head.content_type.as_deref());
        let may_pull = |stored: &RepoName| self.may_pull(call, stored);
        let putting =
            self.hosted()
                .put_manifest(name, reference, tags, content_type, content, &may_pull);
        let pushed = putting.await?;
        self.audit(call, AuditEvent::Pushed, name, reference);
        let location = self.links.to(name, "manifests", pushed.digest);
        let created = answer::created(&location, &pushed.digest);
        Ok(answer::described(created, pushed.subject.as_ref(), tags))
    }

    pub(super) async fn delete_manifest(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        reference: &Reference,
    ) -> Result<Answered, CallError> {
        self.hosted().delete_manifest(name, reference).await?;
        self.audit(call, AuditEvent::Deleted, name, reference);
        Ok(answer::done(StatusCode::ACCEPTED))
    }
}
