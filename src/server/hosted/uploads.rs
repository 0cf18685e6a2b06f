//! Blobs that are pushed.

use http::StatusCode;

use super::HostedHandlers;
use super::answer::{self, Session};
use crate::access::AuditEvent;
use crate::hosted::{HostedError, Part};
use crate::oci::{Algorithm, Digest, Reference, RepoName, UploadId};
use crate::server::call::{Answered, Call, CallError, Sender};
use crate::server::error::Refusal;
use crate::server::push_body::UploadBody;

impl HostedHandlers {
    pub(super) async fn start(
        &self,
        name: &RepoName,
        algorithm: Option<Algorithm>,
    ) -> Result<Answered, CallError> {
        let upload = self.hosted().start_upload(name, algorithm).await?;
        Ok(self.session(name, &upload, 0))
    }

    pub(super) async fn put_blob(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: &Digest,
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let length = part(call, body)?.length;
        let storing = self.hosted().put_blob(name, digest, length, body);
        storing.await?;
        Ok(self.blob_created(name, digest))
    }

    /// A client that can't mount a blob uploads it: an upload is started then.
    pub(super) async fn mount(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
    ) -> Result<Answered, CallError> {
        let is_relayed = call.sender == Sender::Relay;
        let from = match from {
            None => Some(None),
            // Another replica has found it, and permits it.
            Some(from) if is_relayed => Some(Some(from.clone())),
            Some(from) => self.source(call, from).map(Some),
        };
        if let Some(from) = from {
            let is_permitted = is_relayed && from.is_some();
            let may_pull = |stored: &RepoName| is_permitted || self.may_pull(call, stored);
            let mounting = self.hosted().mount(name, digest, from.as_ref(), &may_pull);
            match mounting.await {
                Ok(true) => return Ok(self.blob_created(name, digest)),
                Ok(false) | Err(HostedError::NotFound | HostedError::UnknownRepository) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.start(name, Some(digest.algorithm())).await
    }

    /// The stored name of the repository that a blob shall be mounted from.
    pub(super) fn source(&self, call: &Call<'_>, from: &RepoName) -> Option<RepoName> {
        if self.has(from) {
            return Some(from.clone());
        }
        let target = self.mirror.upstreams.target(None, call.host, from);
        target.ok().map(|target| target.stored)
    }

    pub(super) async fn status(
        &self,
        name: &RepoName,
        upload: &UploadId,
    ) -> Result<Answered, CallError> {
        let received = self.hosted().upload_status(name, upload).await?;
        Ok(self.session_with(name, upload, received, StatusCode::NO_CONTENT))
    }

    pub(super) async fn append(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        upload: &UploadId,
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let part = part(call, body)?;
        match self.hosted().append(name, upload, part, body).await {
            Ok(received) => Ok(self.session(name, upload, received)),
            Err(error) => self.elsewhere(name, upload, error),
        }
    }

    pub(super) async fn finish(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        (upload, digest): (&UploadId, &Digest),
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let part = part(call, body)?;
        let finishing = self.hosted().finish(name, upload, digest, part, body);
        match finishing.await {
            Ok(()) => Ok(self.blob_created(name, digest)),
            Err(error) => self.elsewhere(name, upload, error),
        }
    }

    pub(super) async fn cancel(
        &self,
        name: &RepoName,
        upload: &UploadId,
    ) -> Result<Answered, CallError> {
        self.hosted().cancel(name, upload).await?;
        Ok(answer::done(StatusCode::NO_CONTENT))
    }

    pub(super) async fn delete_blob(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<Answered, CallError> {
        self.hosted().delete_blob(name, digest).await?;
        self.audit(call, AuditEvent::Deleted, name, &Reference::Digest(*digest));
        Ok(answer::done(StatusCode::ACCEPTED))
    }

    /// The session's own response where its bytes continue elsewhere; the error otherwise.
    fn elsewhere(
        &self,
        name: &RepoName,
        upload: &UploadId,
        error: HostedError,
    ) -> Result<Answered, CallError> {
        let Some(received) = error.received() else {
            return Err(error.into());
        };
        let location = self.links.to(name, "blobs/uploads", upload);
        let session = Session {
            location: &location,
            upload,
            received,
        };
        Ok(session.is_elsewhere(&Refusal::of(&error)))
    }

    fn session(&self, name: &RepoName, upload: &UploadId, received: u64) -> Answered {
        self.session_with(name, upload, received, StatusCode::ACCEPTED)
    }

    fn session_with(
        &self,
        name: &RepoName,
        upload: &UploadId,
        received: u64,
        status: StatusCode,
    ) -> Answered {
        let location = self.links.to(name, "blobs/uploads", upload);
        let session = Session {
            location: &location,
            upload,
            received,
        };
        session.goes_on(status)
    }

    fn blob_created(&self, name: &RepoName, digest: &Digest) -> Answered {
        answer::created(&self.links.to(name, "blobs", digest), digest)
    }
}

/// What the head of a request says of its body.
pub(super) fn part(call: &Call<'_>, body: &UploadBody) -> Result<Part, CallError> {
    let Some(head) = &call.push else {
        return Ok(Part::NONE);
    };
    let part = head.part()?;
    // A request without a body needs no field that says so (RFC 9112, section 6.3).
    let length = part.length.or_else(|| body.is_empty().then_some(0));
    Ok(Part { length, ..part })
}
