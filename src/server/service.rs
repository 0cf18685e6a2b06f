//! From a request to its answer: route, ask the mirror, answer.

use std::sync::Arc;

use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use quick_cache::sync::Cache;
use serde_json::json;

use super::access::Record;
use super::answer;
use super::body::Body;
use super::cache_status::{self, Named, Origin};
use super::conditional::{Verdict, evaluate, requested_ranges};
use super::connection::Handler;
use super::error::Refusal;
use super::request::{Peer, RequestBody};
use crate::download::Client;
use crate::metrics::{Kind, Metrics, Outcome};
use crate::mirror::{Exchange, Mirror, MirrorError, ReadMode, Recovery, Target};
use crate::oci::route::{Endpoint, Page};
use crate::oci::{Accept, Digest, Reference, RepoName, Requested, Route, RouteError};

pub(super) const API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
pub(super) const API_VERSION_2: HeaderValue = HeaderValue::from_static("registry/2.0");
/// Browsers take an answer for what it says it is.
pub(super) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// Different `Accept` lines whose meaning is kept; each kind of client has its own.
const MAX_ACCEPTS: usize = 256;
/// Bytes of such a line.
const MAX_ACCEPT: usize = 1024;

/// How the API presents itself.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// Path before `/v2/`: empty, or `/x` without a slash at the end.
    pub prefix: String,
    /// Scheme and host of links, where they shall not be relative; without a slash at the end.
    pub origin: Option<String>,
    /// Sent with every answer.
    pub headers: HeaderMap,
    /// Whether each request is logged.
    pub access_log: bool,
}

/// The registry API over one mirror.
#[derive(Debug)]
pub struct Service {
    mirror: Arc<Mirror>,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    /// What `Accept` lines mean, which is asked for with every tag.
    accepts: Cache<Box<[u8]>, Accept>,
}

/// An answer and what is counted of it.
type Answered = (Response<Body>, Outcome);

/// One request, taken apart.
struct Asked<'a> {
    ns: Option<&'a str>,
    host: Option<&'a str>,
    headers: &'a HeaderMap,
    client: Client,
    want: ReadMode,
}

impl Handler for Service {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let (parts, _ignored_body) = request.into_parts();
        self.answer(Request::from_parts(parts, ()), peer).await
    }
}

impl Service {
    pub fn new(mirror: Arc<Mirror>, metrics: Arc<Metrics>, settings: ServerSettings) -> Self {
        Self {
            mirror,
            metrics,
            settings,
            accepts: Cache::new(MAX_ACCEPTS),
        }
    }

    async fn answer(&self, request: Request<()>, peer: Peer) -> Response<Body> {
        let client = Client::at(peer.address);
        let mut record = Record::new(
            Arc::clone(&self.metrics),
            &request,
            peer.name,
            self.settings.access_log,
        );
        let refused = |refusal: &Refusal| (Kind::Other, Outcome::Error, answer::refusal(refusal));
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next();
        let (kind, outcome, mut response) = match self.route(request.method(), request.uri()) {
            _ if hosts.next().is_some() => refused(&Refusal::hosts()),
            Err(error) => refused(&Refusal::route(&error)),
            Ok(route) => {
                let kind = kind(&route.endpoint);
                match self.dispatch(&route, &request, host, client).await {
                    Ok((response, outcome)) => (kind, outcome, response),
                    Err(error) => {
                        let what = describe(&route.endpoint);
                        let mut refusal = Refusal::mirror(&error, kind, &what);
                        let named = match &route.endpoint {
                            Endpoint::Blob { .. } => Named::ByDigest,
                            Endpoint::Manifest { reference, .. } => named(reference),
                            _ => Named::Otherwise,
                        };
                        refusal.cache_status =
                            cache_status::failed(named, Exchange::failed(&error));
                        if let Some(log) = &refusal.log {
                            record.failed(log);
                        }
                        (kind, Outcome::Error, answer::refusal(&refusal))
                    }
                }
            }
        };
        if !self.settings.headers.is_empty() {
            let configured = self.settings.headers.clone();
            response.headers_mut().extend(configured);
        }
        record.answered(
            kind,
            outcome,
            response.status(),
            request.method() != Method::HEAD,
        );
        response.body_mut().record_end(record);
        response
    }

    fn route(&self, method: &Method, uri: &Uri) -> Result<Route, RouteError> {
        // What asks whether the server is alive needn't know the prefix.
        if self.settings.prefix.is_empty() || uri.path() == "/" || uri.path() == "*" {
            return Route::parse(method, uri);
        }
        let whole = uri.path_and_query().map_or("", |whole| whole.as_str());
        let rest = whole
            .strip_prefix(&self.settings.prefix)
            .filter(|rest| rest.starts_with('/'));
        let rest = rest
            .and_then(|rest| rest.parse().ok())
            .ok_or(RouteError::NotFound)?;
        Route::parse(method, &rest)
    }

    async fn dispatch(
        &self,
        route: &Route,
        request: &Request<()>,
        host: Option<&HeaderValue>,
        client: Client,
    ) -> Result<Answered, MirrorError> {
        let Route { endpoint, ns } = route;
        let host = host.and_then(|host| host.to_str().ok());
        let asked = Asked {
            ns: ns.as_deref(),
            host: host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)),
            headers: request.headers(),
            client,
            want: if request.method() == Method::HEAD {
                ReadMode::Head
            } else {
                ReadMode::Content
            },
        };
        match endpoint {
            Endpoint::Root => Ok((answer::alive(), Outcome::Hit)),
            Endpoint::Options => Ok((answer::options(), Outcome::Hit)),
            Endpoint::Base => Ok((answer::base(), Outcome::Hit)),
            // These are rare: put aside, so that connections needn't keep room for them.
            Endpoint::Catalog(page) => Box::pin(self.catalog(page)).await,
            Endpoint::Tags { name, page } => Box::pin(self.tags(&asked, name, page)).await,
            Endpoint::Manifest { name, reference } => self.manifest(&asked, name, reference).await,
            Endpoint::Blob { name, digest } => self.blob(&asked, name, *digest).await,
            Endpoint::Referrers {
                name,
                digest,
                artifact_type,
            } => {
                let artifact_type = artifact_type.as_deref();
                Box::pin(self.referrers(&asked, name, *digest, artifact_type)).await
            }
        }
    }

    fn target(&self, asked: &Asked<'_>, name: &RepoName) -> Result<Target, MirrorError> {
        self.mirror.upstreams().target(asked.ns, asked.host, name)
    }

    async fn manifest(
        &self,
        asked: &Asked<'_>,
        name: &RepoName,
        reference: &Reference,
    ) -> Result<Answered, MirrorError> {
        let target = self.target(asked, name)?;
        let accept = match reference {
            Reference::Tag(_) => self.accept(asked.headers),
            // The digest fixes the content.
            Reference::Digest(_) => Accept::everything(),
        };
        let found = self
            .mirror
            .manifest(&target, reference, &accept, asked.want)
            .await
            .inspect_err(|error| report(&target, error))?;
        let outcome = found.outcome;
        Ok((
            answer::manifest(asked.headers, named(reference), &found),
            outcome,
        ))
    }

    fn accept(&self, headers: &HeaderMap) -> Accept {
        let mut lines = headers.get_all(ACCEPT).iter();
        let line = lines.next().filter(|line| line.len() <= MAX_ACCEPT);
        let Some(line) = line.filter(|_| lines.next().is_none()) else {
            return Accept::from_headers(headers);
        };
        let known = self.accepts.get(line.as_bytes());
        known.unwrap_or_else(|| {
            let accept = Accept::from_headers(headers);
            self.accepts.insert(line.as_bytes().into(), accept.clone());
            accept
        })
    }

    async fn blob(
        &self,
        asked: &Asked<'_>,
        name: &RepoName,
        digest: Digest,
    ) -> Result<Answered, MirrorError> {
        let target = self.target(asked, name)?;
        let verdict = evaluate(asked.headers, &digest);
        let ranges =
            requested_ranges(asked.headers, &digest).filter(|_| asked.want == ReadMode::Content);
        let refused = ranges.as_ref().is_some_and(Requested::never_satisfiable);
        // Who gets no byte of the blob must not make the mirror download it.
        let want = if verdict == Verdict::Proceed && !refused {
            asked.want
        } else {
            ReadMode::Head
        };
        let mut found = self
            .mirror
            .blob(&target, digest, want, ranges.as_ref(), asked.client)
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
                let recovery =
                    Recovery::new(Arc::clone(&self.mirror), target, digest, asked.client);
                answer::blob(&digest, want, ranges.as_ref(), found, origin, recovery)
            }
        };
        response.body_mut().visited(visit);
        Ok((response, outcome))
    }

    async fn referrers(
        &self,
        asked: &Asked<'_>,
        name: &RepoName,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Answered, MirrorError> {
        let target = self.target(asked, name)?;
        let found = self
            .mirror
            .referrers(&target, digest, artifact_type)
            .await
            .inspect_err(|error| report(&target, error))?;
        let origin = Origin::list(found.outcome, found.exchange);
        Ok((
            answer::referrers(found.index, artifact_type.is_some(), origin),
            found.outcome,
        ))
    }

    async fn tags(
        &self,
        asked: &Asked<'_>,
        name: &RepoName,
        page: &Page,
    ) -> Result<Answered, MirrorError> {
        let target = self.target(asked, name)?;
        let found = self.mirror.tags(&target, page).await;
        let found = found.inspect_err(|error| report(&target, error))?;
        let tags: Vec<&str> = found.tags.iter().map(crate::oci::Tag::as_str).collect();
        let last = tags.last().filter(|_| found.more);
        let next = last.map(|last| {
            self.next_page(
                &format!("{name}/tags/list"),
                page,
                tags.len(),
                last,
                asked.ns,
            )
        });
        Ok((
            answer::list(
                &json!({"name": name.as_str(), "tags": tags}),
                next.as_deref(),
                Origin::list(found.outcome, found.exchange),
            ),
            found.outcome,
        ))
    }

    async fn catalog(&self, page: &Page) -> Result<Answered, MirrorError> {
        let found = self.mirror.catalog(page).await?;
        let names: Vec<&str> = found.repositories.iter().map(RepoName::as_str).collect();
        let last = names.last().filter(|_| found.more);
        let next = last.map(|last| self.next_page("_catalog", page, names.len(), last, None));
        Ok((
            answer::list(
                &json!({"repositories": names}),
                next.as_deref(),
                Origin::list(Outcome::Hit, Exchange::default()),
            ),
            Outcome::Hit,
        ))
    }

    /// The address of the page after `last`.
    fn next_page(
        &self,
        path: &str,
        page: &Page,
        listed: usize,
        last: &str,
        ns: Option<&str>,
    ) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("last", last)
            .append_pair("n", &page.n.unwrap_or(listed).to_string());
        if let Some(ns) = ns {
            query.append_pair("ns", ns);
        }
        let ServerSettings { prefix, origin, .. } = &self.settings;
        format!(
            "{}{prefix}/v2/{path}?{}",
            origin.as_deref().unwrap_or_default(),
            query.finish()
        )
    }
}

/// An upstream's failure that the client is told of.
fn report(target: &Target, error: &MirrorError) {
    target.report(error, "the client was told of the failure");
}

fn named(reference: &Reference) -> Named {
    match reference {
        Reference::Digest(_) => Named::ByDigest,
        Reference::Tag(_) => Named::Otherwise,
    }
}

/// What is asked for, for the metrics.
fn kind(endpoint: &Endpoint) -> Kind {
    match endpoint {
        Endpoint::Root | Endpoint::Options => Kind::Other,
        Endpoint::Base => Kind::Base,
        Endpoint::Catalog(_) => Kind::Catalog,
        Endpoint::Tags { .. } => Kind::Tags,
        Endpoint::Manifest { .. } => Kind::Manifest,
        Endpoint::Blob { .. } => Kind::Blob,
        Endpoint::Referrers { .. } => Kind::Referrers,
    }
}

/// What is asked for, in words.
fn describe(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Root | Endpoint::Options | Endpoint::Base => "the registry".to_owned(),
        Endpoint::Catalog(_) => "the catalog".to_owned(),
        Endpoint::Tags { name, .. } => format!("tags of {name}"),
        Endpoint::Manifest { name, reference } => format!("manifest {reference} of {name}"),
        Endpoint::Blob { name, digest } => format!("blob {digest} of {name}"),
        Endpoint::Referrers { name, digest, .. } => format!("referrers of {digest} in {name}"),
    }
}
