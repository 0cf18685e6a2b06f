//! Requests for hosted repositories: from a parsed call to a response.
//!
//! `pull` answers reads, `lists` tags and referrers, `uploads` blobs that are pushed, `manifests` what
//! writes or removes manifests, `answer` makes the responses. Each begins with
//! [`Call::permit_hosted`]. Where another replica writes the repositories, `relay` answers instead, and
//! `shared` what is read from the bucket.
//!
//! What must never happen: a body is read before the caller is known to be allowed to send it; a caller
//! who may not push learns through `reuse` what other repositories have; a replica that isn't the writer
//! changes what is hosted.

mod answer;
mod lists;
mod manifests;
mod pull;
mod relay;
mod shared;
mod uploads;

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::call::{Answered, Call, CallError, Sender, WrongPlace};
use super::leftovers::Leftovers;
use super::links::Links;
use super::push_body::UploadBody;
use super::request::RequestBody;
use crate::access::{Access, AuditEvent, HOSTED, Permission, Resource};
use crate::hosted::{Hosted, HostedError};
use crate::metrics::{Metrics, UpstreamId};
use crate::mirror::Mirror;
use crate::oci::{Action, Push, Reference, RepoName};
use crate::upstream::Peers;

/// The hosted repositories, as the server presents them.
#[derive(Debug, Clone)]
pub struct HostedRepositories {
    pub hosted: Hosted,
    /// The patterns of their names, for messages.
    pub patterns: Arc<str>,
    /// The names by which `ns` may mean this server, in lower case.
    pub own_names: Vec<String>,
    /// Nothing is mirrored.
    pub only: bool,
    /// The other replicas, of which one may be the writer. None where this server works alone.
    pub replicas: Option<Arc<Peers>>,
}

/// Answers calls for hosted repositories.
#[derive(Debug)]
pub(super) struct HostedHandlers {
    repositories: HostedRepositories,
    mirror: Arc<Mirror>,
    access: Access,
    links: Links,
    leftovers: Leftovers,
    metrics_id: UpstreamId,
    /// Units of manifests that may be received.
    arriving: Semaphore,
}

impl HostedHandlers {
    pub(super) fn new(
        repositories: HostedRepositories,
        mirror: Arc<Mirror>,
        access: Access,
        links: Links,
        leftovers: Leftovers,
        metrics: &Metrics,
    ) -> Self {
        Self {
            repositories,
            mirror,
            access,
            links,
            leftovers,
            metrics_id: metrics.hosted(HOSTED),
            arriving: manifests::arriving(),
        }
    }

    const fn hosted(&self) -> &Hosted {
        &self.repositories.hosted
    }

    /// Whether a repository is hosted, by its name in the store.
    pub(super) fn has(&self, name: &RepoName) -> bool {
        self.hosted().is_hosted(name)
    }

    /// Whether a call for a repository of this name is one for a hosted one: `ns` may mean an upstream, and
    /// another replica asks about the upstream that it names.
    pub(super) fn answers(&self, call: &Call<'_>, name: &RepoName) -> bool {
        match call.sender {
            Sender::Client => self.is_own(call.ns) && self.has(name),
            Sender::Replica { .. } => false,
            Sender::Relay => self.has(name),
        }
    }

    /// Whether `ns` means this server.
    pub(super) fn is_own(&self, ns: Option<&str>) -> bool {
        let own = |ns: &str| {
            let mut names = self.repositories.own_names.iter();
            names.any(|name| name.eq_ignore_ascii_case(ns))
        };
        ns.is_none_or(own)
    }

    /// Checks that a repository can be mirrored, by its name in the store.
    pub(super) fn permits_mirroring(&self, stored: &RepoName) -> Result<(), WrongPlace> {
        if self.repositories.only {
            return Err(WrongPlace::Nowhere(Arc::clone(&self.repositories.patterns)));
        }
        if self.has(stored) {
            return Err(WrongPlace::Hosted);
        }
        Ok(())
    }

    /// Why a repository can't be pushed to.
    pub(super) fn mirrored(&self) -> WrongPlace {
        WrongPlace::Mirrored(Arc::clone(&self.repositories.patterns))
    }

    /// Carries out an action on a hosted repository. Reads have no body.
    pub(super) async fn answer(
        &self,
        action: &Action,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<Answered, CallError> {
        if let (Some(head), false) = (&call.relay, matches!(action, Action::Push { .. })) {
            let answered = self.read_elsewhere(action, call, head).await;
            return Ok(answer::in_namespace(answered?, call));
        }
        let answered = match action {
            Action::Manifest { .. } | Action::Blob { .. } => self.read(action, call).await,
            Action::Tags { name, page } => Box::pin(self.tags(call, name, page)).await,
            Action::Referrers {
                name,
                digest,
                artifact_type,
                last,
            } => {
                let wanted = (artifact_type.as_deref(), last.as_deref());
                Box::pin(self.referrers(call, name, *digest, wanted)).await
            }
            // In memory of its own: every request has room for what this waits for otherwise.
            Action::Push { name, push } => Box::pin(self.push(call, name, push, body)).await,
            Action::Root
            | Action::Options
            | Action::Base
            | Action::Token { .. }
            | Action::Catalog(_) => Err(HostedError::NotHosted.into()),
        };
        Ok(answer::in_namespace(answered?, call))
    }

    /// A manifest or a blob. Where other replicas may have been the writer before, tags are the bucket's, and so
    /// is what is missing here.
    async fn read(&self, action: &Action, call: &Call<'_>) -> Result<Answered, CallError> {
        let found = match action {
            Action::Manifest { name, reference } => {
                if let (true, Reference::Tag(_)) = (self.hosted().is_shared(), reference) {
                    self.permit(call, name, Some(reference))?;
                    if let Some(found) = Box::pin(self.read_bucket(action, call)).await? {
                        return Ok(found);
                    }
                }
                self.manifest(call, name, reference).await
            }
            Action::Blob { name, digest } => self.blob(call, name, *digest).await,
            _ => return Err(HostedError::NotHosted.into()),
        };
        let Err(CallError::Hosted(HostedError::NotFound)) = &found else {
            return found;
        };
        if self.may_be_in_bucket(action) {
            let shared = Box::pin(self.read_bucket(action, call)).await?;
            return shared.map_or(found, Ok);
        }
        match action {
            Action::Manifest { name, reference } if Box::pin(self.hosted().has_learnt()).await => {
                self.manifest(call, name, reference).await
            }
            _ => found,
        }
    }

    /// Whether the bucket may have what isn't here: of other replicas all, else layers only, because which
    /// manifests there are is known.
    fn may_be_in_bucket(&self, action: &Action) -> bool {
        let hosted = self.hosted();
        hosted.is_shared() || (hosted.has_bucket() && matches!(action, Action::Blob { .. }))
    }

    /// Carries out what writes, or is about an upload. The caller's right comes before the body.
    async fn push(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        push: &Push,
        body: RequestBody,
    ) -> Result<Answered, CallError> {
        let mut body = UploadBody::new(body);
        let answered = self.carry_out(call, name, push, &mut body).await;
        let awaits_continue = call.push.as_ref().is_some_and(|head| head.awaits_continue);
        if let Some(unread) = body.unread()
            && !awaits_continue
        {
            self.leftovers.discard(unread);
        }
        answered
    }

    async fn carry_out(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        push: &Push,
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        call.addressed.set(self.metrics_id);
        let (permission, reference) = wanted(push);
        call.permit_hosted(&self.access, name, (permission, reference.as_ref()))?;
        if let Some(head) = &call.relay {
            return self.relay_push(call, head, (name, push), body).await;
        }
        match push {
            Push::Start { algorithm } => self.start(name, *algorithm).await,
            Push::Blob { digest } => self.put_blob(call, name, digest, body).await,
            Push::Mount { digest, from } => self.mount(call, name, digest, from.as_ref()).await,
            Push::NoSession => Err(HostedError::UnknownUpload.into()),
            Push::Status(upload) => self.status(name, upload).await,
            Push::Append(upload) => self.append(call, name, upload, body).await,
            Push::Finish { upload, digest } => {
                self.finish(call, name, (upload, digest), body).await
            }
            Push::Cancel(upload) => self.cancel(name, upload).await,
            Push::PutManifest { reference, tags } => {
                self.put_manifest(call, name, (reference, tags), body).await
            }
            Push::DeleteManifest(reference) => self.delete_manifest(call, name, reference).await,
            Push::DeleteBlob(digest) => self.delete_blob(call, name, digest).await,
        }
    }

    /// Logs that a caller has written or removed something.
    fn audit(&self, call: &Call<'_>, event: AuditEvent, name: &RepoName, reference: &Reference) {
        let permission = match event {
            AuditEvent::Deleted => Permission::Delete,
            _ => Permission::Push,
        };
        let resource = Resource {
            upstream: HOSTED,
            repository: name,
            reference: Some(reference),
        };
        let audit = self.access.audit();
        audit.done(event, &call.caller, &resource, permission);
    }

    /// Whether a caller may pull from a repository, by its name in the store.
    fn may_pull(&self, call: &Call<'_>, stored: &RepoName) -> bool {
        let (upstream, is_listed) = if self.has(stored) {
            (HOSTED, true)
        } else {
            let Some(upstream) = self.mirror.upstreams.of_stored(stored) else {
                return false;
            };
            let login = call.caller.login_for(upstream.name());
            (upstream.name(), self.mirror.is_listed(stored, login))
        };
        let resource = Resource {
            upstream,
            repository: stored,
            reference: None,
        };
        is_listed
            && call.caller.grants(stored.as_str(), "pull")
            && self
                .access
                .permits(&call.caller, &resource, Permission::Pull)
    }

    /// Whether a caller may push into a repository.
    fn may_push(&self, call: &Call<'_>, name: &RepoName) -> bool {
        let resource = Resource {
            upstream: HOSTED,
            repository: name,
            reference: None,
        };
        call.caller.grants(name.as_str(), "push")
            && self
                .access
                .permits(&call.caller, &resource, Permission::Push)
    }
}

/// What a push needs the permission for.
fn wanted(push: &Push) -> (Permission, Option<Reference>) {
    match push {
        Push::Start { .. }
        | Push::NoSession
        | Push::Status(_)
        | Push::Append(_)
        | Push::Cancel(_) => (Permission::Push, None),
        Push::Blob { digest } | Push::Mount { digest, .. } | Push::Finish { digest, .. } => {
            (Permission::Push, Some(Reference::Digest(*digest)))
        }
        Push::PutManifest { reference, .. } => (Permission::Push, Some(reference.clone())),
        Push::DeleteManifest(reference) => (Permission::Delete, Some(reference.clone())),
        Push::DeleteBlob(digest) => (Permission::Delete, Some(Reference::Digest(*digest))),
    }
}
