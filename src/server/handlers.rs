//! The handlers: from a parsed call to a response.

use std::pin::Pin;
use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;

use super::answer;
use super::cache_status::{Named, Origin};
use super::call::{Answered, Call, CallError, Sender, WrongPlace};
use super::conditional::Verdict;
use super::hosted::HostedHandlers;
use super::links::Links;
use super::redirect::{self, Redirectable, Way};
use super::request::RequestBody;
use crate::access::{Access, Denied, HOSTED, Permission};
use crate::auth::AuthError;
use crate::bucket::Redirects;
use crate::metrics::Outcome;
use crate::mirror::{Exchange, Mirror, MirrorError, ReadMode, Recovery, Target};
use crate::oci::manifest::referrers_index;
use crate::oci::{Action, Digest, Page, Reference, RepoName, Requested};
use crate::upstream::Upstream;

/// Answers calls from one mirror.
#[derive(Debug)]
pub(super) struct Handlers {
    mirror: Arc<Mirror>,
    /// None where nothing is hosted.
    hosted: Option<Box<HostedHandlers>>,
    access: Access,
    links: Links,
}

impl Handlers {
    pub(super) fn new(
        mirror: Arc<Mirror>,
        hosted: Option<HostedHandlers>,
        access: Access,
        links: Links,
    ) -> Self {
        Self {
            mirror,
            hosted: hosted.map(Box::new),
            access,
            links,
        }
    }

    /// What callers may do.
    pub(super) const fn access(&self) -> &Access {
        &self.access
    }

    /// The name of the upstream that a request is for, and the repository's for a token service.
    pub(super) fn addressed(
        &self,
        action: &Action,
        ns: Option<&str>,
        host: Option<&str>,
    ) -> (String, Option<RepoName>) {
        let upstreams = &self.mirror.upstreams;
        let hosted = action.repository().filter(|name| {
            let hosted = self.hosted.as_ref();
            hosted.is_some_and(|hosted| hosted.is_own(ns) && hosted.has(name))
        });
        if let Some(name) = hosted {
            let upstream = upstreams.addressed(None, host).name().to_owned();
            return (upstream, Some(name.clone()));
        }
        let named = action.repository().and_then(|name| {
            let target = upstreams.target(ns, host, name).ok()?;
            Some((
                target.upstream.name().to_owned(),
                Some(target.qualified(name).clone()),
            ))
        });
        let unnamed = || (upstreams.addressed(ns, host).name().to_owned(), None);
        named.unwrap_or_else(unnamed)
    }

    /// The upstream that has the repository of a request.
    pub(super) fn upstream(
        &self,
        action: &Action,
        ns: Option<&str>,
        host: Option<&str>,
    ) -> Option<Arc<Upstream>> {
        let target = self.mirror.upstreams.target(ns, host, action.repository()?);
        Some(target.ok()?.upstream)
    }

    /// Whether a client's action is one for another replica, which writes the hosted repository.
    pub(super) fn is_for_writer(&self, action: &Action, ns: Option<&str>) -> bool {
        let hosted = self.hosted.as_ref();
        hosted.is_some_and(|hosted| hosted.is_for_writer(action, ns))
    }

    /// The repository of an upstream that a call is for, if the caller may access it.
    fn target(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        wanted: (Permission, Option<&Reference>),
    ) -> Result<Target, CallError> {
        let mut target = call.target(&self.mirror, &self.access, name, wanted)?;
        if let Some(hosted) = &self.hosted {
            hosted.permits_mirroring(&target.stored)?;
        }
        if let Some(redirects) = self.mirror.redirects() {
            target.is_redirected = redirects.are_certain(self.is_private(&target));
        }
        Ok(target)
    }

    /// Carries out an action. Reads have no body: what a client sends all the same is discarded.
    pub(super) async fn dispatch(
        &self,
        action: &Action,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<Answered, CallError> {
        let is_of_peer = matches!(
            action,
            Action::Base | Action::Manifest { .. } | Action::Blob { .. }
        );
        match call.sender {
            Sender::Client => {}
            Sender::Replica { .. } if is_of_peer => {}
            Sender::Replica { .. } => return Err(MirrorError::Misdirected.into()),
            Sender::Relay => return Box::pin(self.relayed(action, call, body)).await,
        }
        if let Some(hosted) = &self.hosted
            && let Some(name) = action.repository()
            && hosted.answers(call, name)
        {
            // Boxed, so that it takes no memory in every connection.
            return Box::pin(hosted.answer(action, call, body)).await;
        }
        match action {
            Action::Root => Ok((answer::alive(), Outcome::Hit)),
            Action::Options => Ok((answer::options(), Outcome::Hit)),
            Action::Base => Ok((answer::base(), Outcome::Hit)),
            // Answered before there is a caller.
            Action::Token { .. } => Err(AuthError::NoTokenService.into()),
            // These are rare: boxed, so that they take no memory in every connection.
            Action::Catalog(page) => {
                if !call.caller.grants_catalog() {
                    self.access.log_refused_catalog(&call.caller);
                    return Err(AuthError::Scope.into());
                }
                Box::pin(self.catalog(call, page)).await
            }
            Action::Tags { name, page } => Box::pin(self.tags(call, name, page)).await,
            Action::Manifest { name, reference } => self.manifest(call, name, reference).await,
            Action::Blob { name, digest } => self.blob(call, name, *digest).await,
            Action::Referrers {
                name,
                digest,
                artifact_type,
                ..
            } => {
                let artifact_type = artifact_type.as_deref();
                Box::pin(self.referrers(call, name, *digest, artifact_type)).await
            }
            Action::Push { .. } => {
                let mirrored = self.hosted.as_ref().map(|hosted| hosted.mirrored());
                Err(mirrored.unwrap_or(WrongPlace::OnlyMirrored).into())
            }
        }
    }

    /// Carries out an action that another replica relays: only as the writer of the hosted repositories, so
    /// that no request goes in circles.
    async fn relayed(
        &self,
        action: &Action,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<Answered, CallError> {
        let hosted = self.hosted.as_ref();
        let hosted = hosted.filter(|hosted| !hosted.is_written_elsewhere());
        let hosted = hosted.ok_or(MirrorError::Misdirected)?;
        match (action, action.repository()) {
            (Action::Catalog(page), _) => hosted.catalog(page).await,
            (_, Some(name)) if hosted.answers(call, name) => {
                hosted.answer(action, call, body).await
            }
            _ => Err(MirrorError::Misdirected.into()),
        }
    }

    async fn manifest(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        reference: &Reference,
    ) -> Result<Answered, CallError> {
        let target = self.target(call, name, (Permission::Pull, Some(reference)))?;
        let found = self
            .mirror
            .manifest(&target, reference, &call.accept, call.mode)
            .await
            .inspect_err(|error| report(&target, error))?;
        let (outcome, digest) = (found.outcome, found.found.known().digest);
        // The digest of a request has been checked; the one that a tag names has not.
        if let Reference::Tag(_) = reference {
            call.permits(&self.access, &target, reference, &digest)?;
        }
        let named = Named::by_reference(reference);
        let mut response = answer::manifest(&call.conditions, named, &found);
        answer::keep_private(self.is_private(&target), &mut response);
        if let (Reference::Tag(tag), false) = (reference, call.is_of_client()) {
            let age = self.mirror.tag_age(&target, tag, &call.accept, &digest);
            answer::age(age, &mut response);
        }
        Ok((response, outcome))
    }

    async fn blob(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: Digest,
    ) -> Result<Answered, CallError> {
        let target = self.target(
            call,
            name,
            (Permission::Pull, Some(&Reference::Digest(digest))),
        )?;
        let is_private = self.is_private(&target);
        let verdict = call.conditions.evaluate(&digest);
        let ranges = call.conditions.ranges(&digest);
        let ranges = ranges.filter(|_| call.mode == ReadMode::Content);
        let refused = ranges.is_some_and(Requested::never_satisfiable);
        // Who gets no byte of the blob must not make the mirror download it.
        let want = if verdict == Verdict::Proceed && !refused {
            call.mode
        } else {
            ReadMode::Head
        };
        let mut counted = None;
        if want == ReadMode::Content
            && let Some(redirects) = self.mirror.redirects()
        {
            let way = self.way(redirects, call, &target, (digest, ranges));
            match way.await.inspect_err(|error| report(&target, error))? {
                Way::Redirect(location) => return Ok(redirect::answered(&digest, location)),
                Way::Send(body) => counted = body,
            }
        }
        let watch = call.is_of_client();
        let watch = watch.then(|| self.access.watch(&target.stored, digest));
        let mut found = self
            .mirror
            .blob(&target, digest, want, ranges, call.client)
            .await
            .inspect_err(|error| report(&target, error))?;
        let (outcome, visit) = (found.outcome, found.visit.take());
        let origin = Origin {
            outcome,
            named: Named::ByDigest,
            exchange: found.exchange,
        };
        let mut response = match verdict {
            Verdict::Failed => answer::precondition_failed(&digest, origin),
            Verdict::NotModified => answer::blob_not_modified(&digest, origin),
            Verdict::Proceed if refused => answer::unsatisfiable(found.size, origin),
            Verdict::Proceed => {
                let recovery = Recovery {
                    mirror: Arc::clone(&self.mirror),
                    target,
                    digest,
                    client: call.client,
                };
                answer::blob(&digest, want, ranges, found, origin, Some(recovery))
            }
        };
        answer::keep_private(is_private, &mut response);
        response.body_mut().hold(visit, counted);
        if let Some(watch) = watch {
            response.body_mut().watched(watch);
        }
        Ok((response, outcome))
    }

    /// How a GET of a blob is answered. Boxed, so that it takes no memory in every connection.
    fn way<'a>(
        &'a self,
        redirects: &'a Redirects,
        call: &'a Call<'a>,
        target: &'a Target,
        (digest, ranges): (Digest, Option<&'a Requested>),
    ) -> Pin<Box<impl Future<Output = Result<Way, MirrorError>>>> {
        let asked = Redirectable::new(call, ranges, self.is_private(target));
        let find = self.mirror.redirect(target, digest, ranges);
        Box::pin(asked.way(redirects, find))
    }

    async fn referrers(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Answered, CallError> {
        let started = Instant::now();
        let target = self.target(
            call,
            name,
            (Permission::Pull, Some(&Reference::Digest(digest))),
        );
        let target = match target {
            // What a repository that doesn't exist has, too.
            Err(CallError::Denied(Denied::Hidden(_))) => {
                self.access.wait_like_not_found(started).await;
                return Ok(no_referrers(artifact_type));
            }
            target => target?,
        };
        let found = self.mirror.referrers(&target, digest, artifact_type).await;
        let found = found.inspect_err(|error| report(&target, error));
        if self.access.hides() {
            match &found {
                Ok(found) if found.index == referrers_index(std::iter::empty()) => {
                    if found.outcome == Outcome::Hit {
                        self.access.wait_like_not_found(started).await;
                    }
                    return Ok(no_referrers(artifact_type));
                }
                Err(error) if error.finds_nothing() => {
                    if !error.was_asked_since(started) {
                        self.access.wait_like_not_found(started).await;
                    }
                    return Ok(no_referrers(artifact_type));
                }
                Ok(_) | Err(_) => {}
            }
        }
        let found = found?;
        let origin = Origin::list(found.outcome, found.exchange);
        let mut response = answer::referrers(found.index, artifact_type.is_some(), origin);
        answer::keep_private(self.is_private(&target), &mut response);
        Ok((response, found.outcome))
    }

    async fn tags(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        page: &Page,
    ) -> Result<Answered, CallError> {
        let target = self.target(call, name, (Permission::List, None))?;
        let found = self.mirror.tags(&target, page).await;
        let found = found.inspect_err(|error| report(&target, error))?;
        let tags: Vec<&str> = found.tags.iter().map(crate::oci::Tag::as_str).collect();
        let last = tags.last().filter(|_| found.more);
        let next = last.map(|last| {
            self.links.next_page(
                &format!("{name}/tags/list"),
                page,
                tags.len(),
                last,
                call.ns,
            )
        });
        let document = json!({"name": name.as_str(), "tags": tags});
        let origin = Origin::list(found.outcome, found.exchange);
        let mut response = answer::list(&document, next.as_deref(), origin);
        answer::keep_private(self.is_private(&target), &mut response);
        Ok((response, found.outcome))
    }

    async fn catalog(&self, call: &Call<'_>, page: &Page) -> Result<Answered, CallError> {
        let hosted = self.hosted.as_ref();
        let elsewhere = hosted.filter(|hosted| hosted.is_written_elsewhere());
        let shows = |upstream: &str, repository: &RepoName| {
            if hosted.is_some_and(|hosted| hosted.has(repository)) {
                return elsewhere.is_none() && self.access.shows(&call.caller, HOSTED, repository);
            }
            let login = call.caller.login_for(upstream);
            self.access.shows(&call.caller, upstream, repository)
                && self.mirror.is_listed(repository, login)
        };
        let mut found = self.mirror.catalog(page, &shows).await?;
        if let Some(hosted) = elsewhere.filter(|_| page.length() > 0) {
            found = hosted.with_writers_catalog(call, page, found).await?;
        }
        if found.repositories.is_empty() {
            self.access.decide_empty_catalog(&call.caller)?;
        }
        let names: Vec<&str> = found.repositories.iter().map(RepoName::as_str).collect();
        let last = names.last().filter(|_| found.more);
        let next = last.map(|last| {
            self.links
                .next_page("_catalog", page, names.len(), last, None)
        });
        let document = json!({"repositories": names});
        let origin = Origin::list(Outcome::Hit, Exchange::default());
        let mut response = answer::list(&document, next.as_deref(), origin);
        let is_private = !self.access.is_open() || self.mirror.upstreams.any_of_callers();
        answer::keep_private(is_private, &mut response);
        Ok((response, Outcome::Hit))
    }

    /// Whether a response depends on who the caller is.
    fn is_private(&self, target: &Target) -> bool {
        !self.access.is_open() || target.upstream.caller().is_some()
    }
}

/// The answer where nothing is attached to a digest, or may be known to be. The same for all that rules
/// hide or an upstream doesn't have.
fn no_referrers(artifact_type: Option<&str>) -> Answered {
    let origin = Origin::list(Outcome::Miss, Exchange::of(Outcome::Miss));
    let index = referrers_index(std::iter::empty());
    let response = answer::referrers(index.into(), artifact_type.is_some(), origin);
    (response, Outcome::Miss)
}

/// Logs an upstream's failure that the client gets as an error.
fn report(target: &Target, error: &MirrorError) {
    target.report(error, "the client was told of the failure");
}
