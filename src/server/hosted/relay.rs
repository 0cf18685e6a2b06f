//! Requests at a replica that isn't the writer of the hosted repositories.
//!
//! ```text
//! permission, here ─┬─ push, upload, deletion ─────────────────────────────► the writer
//!                   └─ read ─► the bucket ── fails? ─► by digest: this replica's copy ── none? ─► the writer
//! ```
//!
//! [`HostedHandlers::read_elsewhere`] is the one place that chooses where a read is answered from.

use std::pin::pin;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HeaderMap, LINK, LOCATION};
use http::{Method, StatusCode};
use serde::Deserialize;
use url::form_urlencoded;

use super::HostedHandlers;
use super::manifests::manifest_length;
use super::uploads::part;
use crate::access::{Denied, HOSTED, Permission, Watch};
use crate::hosted::{HostedError, PushBody as _};
use crate::metrics::Outcome;
use crate::mirror::{CatalogPage, Exchange};
use crate::oci::manifest::referrers_index;
use crate::oci::{Action, Digest, MAX_PAGE, Page, Push, Reference, RepoName, digits};
use crate::server::answer::{self, CONTENT_DIGEST};
use crate::server::body::Body;
use crate::server::cache_status::{self, CACHE_STATUS, Named, Origin};
use crate::server::call::{Answered, Call, CallError};
use crate::server::push_body::UploadBody;
use crate::server::relay_head::{RelayHead, answer_fields};
use crate::upstream::{BodyFeed, RelayAnswer, RelayError, RelayRequest, read_answer, relay_body};

/// Bytes of a page of the writer's catalog at most.
const MAX_CATALOG: usize = 1024 * 1024;
/// Pages of it that are read for one answer, at most, of [`MAX_PAGE`] names each.
const MAX_CATALOG_PAGES: usize = 1000;

/// The writer's answer, and what it hasn't taken of the request's body.
struct Relayed {
    answer: RelayAnswer,
    feed: Option<BodyFeed>,
}

/// A page of the writer's catalog.
#[derive(Deserialize)]
struct WriterCatalog {
    repositories: Vec<String>,
}

impl HostedHandlers {
    /// Whether another replica writes the hosted repositories.
    pub(in crate::server) fn is_written_elsewhere(&self) -> bool {
        let replicas = self.repositories.replicas.as_ref();
        replicas.is_some_and(|replicas| !replicas.writes_hosted())
    }

    /// Whether a client's action is one for the writer.
    pub(in crate::server) fn is_for_writer(&self, action: &Action, ns: Option<&str>) -> bool {
        // The cheaper question first: it is asked of every request.
        self.is_written_elsewhere()
            && self.is_own(ns)
            && action.repository().is_some_and(|name| self.has(name))
    }

    // --- Writes --------------------------------------------------------------------------------

    /// Relays what writes, or is about an upload. The caller may do it.
    pub(super) async fn relay_push(
        &self,
        call: &Call<'_>,
        head: &RelayHead,
        (name, push): (&RepoName, &Push),
        body: &mut UploadBody,
    ) -> Result<Answered, CallError> {
        let mount = match push {
            Push::NoSession => return Err(HostedError::UnknownUpload.into()),
            // What the head says of the body is refused before a client is asked for it.
            Push::Blob { .. } | Push::Append(_) | Push::Finish { .. } => {
                part(call, body)?;
                None
            }
            Push::PutManifest { .. } => {
                manifest_length(call)?;
                None
            }
            Push::Mount { digest, from } => {
                Some(self.mount_head(call, name, digest, from.as_ref()))
            }
            _ => None,
        };
        let head = mount.as_ref().unwrap_or(head);
        let relayed = self.send(call, head, Some(body)).await?;
        self.pass_on(head, relayed, (cache_status::METHOD, None))
    }

    /// The request for a blob that another repository may have. The caller's permission to pull there is
    /// decided here; without it, an upload is started.
    fn mount_head(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
    ) -> RelayHead {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let source = from.map(|from| {
            let stored = self.source(call, from);
            stored.filter(|stored| self.may_pull(call, stored))
        });
        match source {
            None => query.append_pair("mount", &digest.to_string()),
            Some(Some(stored)) => query
                .append_pair("mount", &digest.to_string())
                .append_pair("from", stored.as_str()),
            Some(None) => query.append_pair("digest-algorithm", digest.algorithm().as_str()),
        };
        RelayHead {
            method: Method::POST,
            target: format!("/v2/{name}/blobs/uploads/?{}", query.finish()),
            headers: HeaderMap::new(),
        }
    }

    /// Sends a request to the writer, with the body as it comes. The client isn't asked for its body before
    /// a connection to the writer takes it.
    async fn send(
        &self,
        call: &Call<'_>,
        head: &RelayHead,
        body: Option<&mut UploadBody>,
    ) -> Result<Relayed, CallError> {
        let replicas = self.repositories.replicas.as_ref();
        let replicas = replicas.ok_or(RelayError::NoWriter)?;
        let request = |body| RelayRequest {
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            caller: call.caller.relayed(),
            body,
        };
        let Some(body) = body.filter(|body| !body.is_empty()) else {
            let answer = replicas.relay(request(None)).await?;
            return Ok(Relayed { answer, feed: None });
        };
        let length = call.push.as_ref().and_then(|head| head.length);
        let (mut feed, relayed) = relay_body(length);
        let mut sending = pin!(replicas.relay(request(Some(relayed))));
        let answer = {
            let feeding = pin!(feed_body(body, &mut feed));
            tokio::select! {
                biased;
                answer = sending.as_mut() => answer,
                ended = feeding => {
                    ended?;
                    sending.await
                }
            }
        };
        let (answer, feed) = (answer?, Some(feed));
        Ok(Relayed { answer, feed })
    }

    /// The writer's answer as this replica's own.
    fn pass_on(
        &self,
        head: &RelayHead,
        relayed: Relayed,
        (reason, watch): (&str, Option<Watch>),
    ) -> Result<Answered, CallError> {
        let Relayed { answer, feed } = relayed;
        let status = answer.status;
        // As for a hidden repository: the pipeline makes all of these alike.
        if status == StatusCode::NOT_FOUND && self.access.hides() {
            answer.end();
            return Err(HostedError::NotFound.into());
        }
        let mut response = answer::generated();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.extend(answer_fields(&answer.headers));
        for name in [LOCATION, LINK] {
            let written = answer.headers.get(&name);
            let led_here = written.and_then(|text| self.links.led_here(text.to_str().ok()?));
            if let Some(text) = led_here {
                headers.insert(name, answer::ascii(&text));
            }
        }
        let hop = cache_status::relayed(reason, &answer.writer, status);
        headers.insert(CACHE_STATUS, hop);
        let length = headers.get(CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|length| digits(length.to_str().ok()?));
        let is_empty = head.method == Method::HEAD
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || length == Some(0);
        if is_empty {
            answer.end();
        } else {
            *response.body_mut() = Body::relayed(answer.into_body(feed), length, watch);
        }
        let is_error = status.is_client_error() || status.is_server_error();
        let outcome = if is_error {
            Outcome::Error
        } else {
            Outcome::Miss
        };
        Ok((response, outcome))
    }

    // --- Reads ---------------------------------------------------------------------------------

    /// Answers a read: from the bucket; where that can't be asked, from this replica's own copy of what has the
    /// digest; else from the writer, which alone knows lists.
    pub(super) async fn read_elsewhere(
        &self,
        action: &Action,
        call: &Call<'_>,
        head: &RelayHead,
    ) -> Result<Answered, CallError> {
        let is_hidden = match self.permit_read(action, call) {
            // Like a repository that doesn't exist, it has no referrers, and is asked for as long.
            Err(CallError::Denied(Denied::Hidden(_)))
                if matches!(action, Action::Referrers { .. }) =>
            {
                true
            }
            permitted => {
                permitted?;
                false
            }
        };
        if let Some(found) = self.read_bucket(action, call).await? {
            return Ok(found);
        }
        // A copy may be of what has been deleted: only where the bucket can't say.
        if !self.mirror.bucket_answers()
            && let Some(found) = self.read_copy(action, call).await?
        {
            return Ok(found);
        }
        self.read_from_writer(action, call, (head, is_hidden)).await
    }

    fn permit_read(&self, action: &Action, call: &Call<'_>) -> Result<(), CallError> {
        match action {
            Action::Tags { name, .. } => {
                call.addressed.set(self.metrics_id);
                call.permit_hosted(&self.access, name, (Permission::List, None))
            }
            Action::Manifest { name, reference } => self.permit(call, name, Some(reference)),
            Action::Blob { name, digest } | Action::Referrers { name, digest, .. } => {
                self.permit(call, name, Some(&Reference::Digest(*digest)))
            }
            _ => Err(HostedError::NotHosted.into()),
        }
    }

    /// What this replica has by its digest. One that is damaged here is none.
    async fn read_copy(
        &self,
        action: &Action,
        call: &Call<'_>,
    ) -> Result<Option<Answered>, CallError> {
        let found = match action {
            Action::Blob { name, digest } => self.blob(call, name, *digest).await,
            Action::Manifest {
                name,
                reference: reference @ Reference::Digest(_),
            } => self.manifest(call, name, reference).await,
            _ => return Ok(None),
        };
        match found {
            Err(CallError::Hosted(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn read_from_writer(
        &self,
        action: &Action,
        call: &Call<'_>,
        (head, is_hidden): (&RelayHead, bool),
    ) -> Result<Answered, CallError> {
        let relayed = self.send(call, head, None).await?;
        let reason = Named::by(action).miss();
        if let (true, Action::Referrers { artifact_type, .. }) = (is_hidden, action) {
            let hop = cache_status::relayed(reason, &relayed.answer.writer, StatusCode::OK);
            relayed.answer.end();
            let index = referrers_index(std::iter::empty());
            let origin = Origin::list(Outcome::Miss, Exchange::default());
            let mut response = answer::referrers(index.into(), artifact_type.is_some(), origin);
            response.headers_mut().insert(CACHE_STATUS, hop);
            answer::keep_private(!self.access.is_open(), &mut response);
            return Ok((response, Outcome::Miss));
        }
        if let Action::Manifest {
            name,
            reference: reference @ Reference::Tag(_),
        } = action
        {
            self.permit_tagged(call, name, reference, &relayed.answer)?;
        }
        let watch = match action {
            Action::Blob { name, digest } => Some(self.access.watch(name, *digest)),
            _ => None,
        };
        let (mut response, outcome) = self.pass_on(head, relayed, (reason, watch))?;
        answer::keep_private(!self.access.is_open(), &mut response);
        Ok((response, outcome))
    }

    /// Checks that the manifest that a tag names isn't on this replica's deny list.
    fn permit_tagged(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        reference: &Reference,
        answer: &RelayAnswer,
    ) -> Result<(), CallError> {
        if !answer.status.is_success() && answer.status != StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        let digest = answer.headers.get(CONTENT_DIGEST);
        let digest = digest.and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| RelayError::NoDigest(Arc::clone(&answer.writer)))?;
        call.permits_content(&self.access, name, reference, &digest)
    }

    // --- The catalog ---------------------------------------------------------------------------

    /// The hosted repositories, for another replica, which decides which of them its client sees.
    pub(in crate::server) async fn catalog(&self, page: &Page) -> Result<Answered, CallError> {
        let all = self.hosted().repositories().await?;
        let (names, more) = page.of(&all, RepoName::as_str);
        let names: Vec<&str> = names.iter().map(RepoName::as_str).collect();
        let last = names.last().filter(|_| more);
        let next = last.map(|last| {
            self.links
                .next_page("_catalog", page, names.len(), last, None)
        });
        let document = serde_json::json!({"repositories": names});
        let origin = Origin::list(Outcome::Hit, Exchange::default());
        let response = answer::list(&document, next.as_deref(), origin);
        Ok((response, Outcome::Hit))
    }

    /// A page of the mirrored repositories with the writer's hosted ones that the caller may see.
    pub(in crate::server) async fn with_writers_catalog(
        &self,
        call: &Call<'_>,
        page: &Page,
        mirrored: CatalogPage,
    ) -> Result<CatalogPage, CallError> {
        let n = page.length();
        let (hosted, more_hosted) = self.writers_catalog(call, page).await?;
        let mut repositories = mirrored.repositories;
        repositories.extend(hosted);
        repositories.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        let more = mirrored.more || more_hosted || repositories.len() > n;
        repositories.truncate(n);
        Ok(CatalogPage { repositories, more })
    }

    /// The first of the writer's repositories that the caller may see, as many as a page has, and whether
    /// there are more. Looks through all pages of the writer's list where the caller sees few.
    async fn writers_catalog(
        &self,
        call: &Call<'_>,
        page: &Page,
    ) -> Result<(Vec<RepoName>, bool), CallError> {
        let n = page.length();
        let (mut seen, mut last, mut pages) = (Vec::new(), page.last.clone(), 0);
        loop {
            pages += 1;
            let head = catalog_head(last.as_deref());
            let Relayed { answer, .. } = self.send(call, &head, None).await?;
            let (status, more) = (answer.status, answer.headers.contains_key(LINK));
            let writer = Arc::clone(&answer.writer);
            let text = read_answer(answer, MAX_CATALOG).await?;
            let parsed = serde_json::from_slice::<WriterCatalog>(&text);
            let (true, Ok(catalog)) = (status.is_success(), parsed) else {
                return Err(RelayError::NoList(writer).into());
            };
            let end = catalog.repositories.last();
            // A list that goes on has to go forward.
            if more && end <= last.as_ref() {
                return Err(RelayError::NoList(writer).into());
            }
            last = end.cloned();
            let names = catalog.repositories.iter();
            let names = names.filter_map(|name| RepoName::from_stored(name).ok());
            seen.extend(names.filter(|name| self.access.shows(&call.caller, HOSTED, name)));
            if seen.len() > n || !more {
                let more = seen.len() > n;
                seen.truncate(n);
                return Ok((seen, more));
            }
            if pages == MAX_CATALOG_PAGES {
                return Err(RelayError::NoList(writer).into());
            }
        }
    }
}

/// The request for a page of the writer's repositories.
fn catalog_head(last: Option<&str>) -> RelayHead {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &MAX_PAGE.to_string());
    if let Some(last) = last {
        query.append_pair("last", last);
    }
    RelayHead::get(format!("/v2/_catalog?{}", query.finish()))
}

/// Passes a body on, piece by piece, until it ends or nobody takes it any more.
async fn feed_body(body: &mut UploadBody, feed: &mut BodyFeed) -> Result<(), HostedError> {
    if !feed.is_wanted().await {
        return Ok(());
    }
    while let Some(bytes) = body.next().await.map_err(HostedError::Body)? {
        if !feed.send(bytes).await {
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}
