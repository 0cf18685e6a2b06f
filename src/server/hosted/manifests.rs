//! Manifests that are pushed or deleted.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{HostedHandlers, answer};
use crate::access::AuditEvent;
use crate::hosted::{BodyError, HostedError};
use crate::oci::manifest::{MAX_MANIFEST, is_deep};
use crate::oci::{Reference, RepoName, Tag};
use crate::server::call::{Answered, Call, CallError};
use crate::server::push_body::UploadBody;
use crate::server::push_head::HeadError;

/// The most that is received of manifests at a time, in units of [`UNIT`] bytes: 256 MiB.
const UNITS: usize = 4096;
const UNIT: u64 = 64 * 1024;
/// How long a request waits for its units before it is refused.
const TURN_TIME: Duration = Duration::from_secs(10);
/// How long a client may take for a whole manifest.
const MANIFEST_TIME: Duration = Duration::from_mins(2);

const DEEP: &str = "its arrays and objects are nested too deeply";

/// Bounds the manifests that are received at a time.
pub(super) fn arriving() -> Semaphore {
    Semaphore::new(UNITS)
}

/// The length of a manifest that is pushed, in bytes, if it is announced.
pub(super) fn manifest_length(call: &Call<'_>) -> Result<Option<u64>, HeadError> {
    let length = call.push.as_deref().and_then(|head| head.length);
    match length {
        Some(length) if length > MAX_MANIFEST => Err(HeadError::LargeManifest),
        length => Ok(length),
    }
}

impl HostedHandlers {
    pub(super) async fn put_manifest(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        (reference, tags): (&Reference, &[Tag]),
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let head = call.push.as_deref();
        let length = manifest_length(call)?;
        let content = self.receive(length, body).await?;
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

    /// Reads the body of a manifest, of this length in bytes if it is known.
    async fn receive(
        &self,
        length: Option<u64>,
        body: &mut UploadBody,
    ) -> Result<Bytes, CallError> {
        let max = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let most = length.unwrap_or(MAX_MANIFEST).div_ceil(UNIT);
        let units = self
            .arriving
            .acquire_many(u32::try_from(most).unwrap_or(u32::MAX));
        let Ok(Ok(_units)) = timeout(TURN_TIME, units).await else {
            return Err(HostedError::TooManyManifests.into());
        };
        let content = match timeout(MANIFEST_TIME, body.whole(max)).await {
            Ok(content) => content.map_err(HostedError::Body)?,
            Err(_elapsed) => return Err(HostedError::Body(BodyError::Timeout).into()),
        };
        Ok(content.ok_or(HeadError::LargeManifest)?)
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
