//! The pipeline of a request. [`Service::route`] finds the action; [`Service::call`] notes the caller and
//! parses the conditions; the [handler](super::handlers) begins with [`Call::target`], which chooses the
//! upstream's repository and authorizes the caller. A handler never sees a header or a path.

use std::sync::Arc;

use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use quick_cache::sync::Cache;

use super::access::Record;
use super::answer;
use super::body::Body;
use super::cache_status::{self, Named};
use super::conditional::Conditions;
use super::connection::Handler;
use super::error::Refusal;
use super::handlers::Handlers;
use super::request::{Peer, RequestBody};
use crate::download::Client;
use crate::metrics::{Kind, Metrics, Outcome};
use crate::mirror::{Exchange, Mirror, MirrorError, ReadMode, Target};
use crate::oci::{Accept, Action, Reference, RepoName, Route, RouteError};

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
    handlers: Handlers,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    /// What `Accept` lines mean, which is asked for with every tag.
    accepts: Cache<Box<[u8]>, Accept>,
}

/// A response and what is counted of it.
pub(super) type Answered = (Response<Body>, Outcome);

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Nobody is asked for credentials yet.
    Anonymous,
}

/// A request, parsed.
pub(super) struct Call<'a> {
    pub(super) caller: Caller,
    /// containerd's `ns` parameter.
    pub(super) ns: Option<&'a str>,
    /// The host that the client addressed.
    pub(super) host: Option<&'a str>,
    pub(super) conditions: Conditions<'a>,
    /// The manifest types that the client reads. Everything, unless the action depends on it.
    pub(super) accept: Accept,
    pub(super) mode: ReadMode,
    /// For fairness among clients.
    pub(super) client: Client,
}

impl Handler for Service {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let (head, body) = request.into_parts();
        let mut record = Record::new(
            Arc::clone(&self.metrics),
            &head,
            Arc::clone(&peer.name),
            self.settings.access_log,
        );
        let (kind, answered) = match self.route(&head) {
            Ok(route) => {
                let answered = self.run(&route, &head, body, &peer).await;
                (kind(&route.action), answered)
            }
            Err(error) => (Kind::Other, Err(Refusal::of(&error))),
        };
        let (mut response, outcome) = answered.unwrap_or_else(|refusal| {
            if let Some(log) = &refusal.log {
                record.failed(log);
            }
            (answer::refusal(&refusal), Outcome::Error)
        });
        if !self.settings.headers.is_empty() {
            let configured = self.settings.headers.clone();
            response.headers_mut().extend(configured);
        }
        let expects_body = head.method != Method::HEAD;
        record.answered(kind, outcome, response.status(), expects_body);
        response.body_mut().record_end(record);
        response
    }
}

impl Service {
    pub fn new(mirror: Arc<Mirror>, metrics: Arc<Metrics>, settings: ServerSettings) -> Self {
        Self {
            handlers: Handlers::new(mirror, &settings),
            metrics,
            settings,
            accepts: Cache::new(MAX_ACCEPTS),
        }
    }

    /// What the request is to do.
    fn route(&self, head: &Parts) -> Result<Route, RouteError> {
        let Parts { method, uri, .. } = head;
        if head.headers.get_all(HOST).iter().nth(1).is_some() {
            return Err(RouteError::Hosts);
        }
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

    async fn run(
        &self,
        route: &Route,
        head: &Parts,
        body: RequestBody,
        peer: &Peer,
    ) -> Result<Answered, Refusal> {
        let action = &route.action;
        let call = self.call(route, head, peer);
        let answered = self.handlers.dispatch(action, &call, body).await;
        answered.map_err(|error| refuse(action, &error))
    }

    /// Parses what the action needs of the request.
    fn call<'a>(&self, route: &'a Route, head: &'a Parts, peer: &Peer) -> Call<'a> {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        Call {
            caller: Caller::Anonymous,
            ns: route.ns.as_deref(),
            host: host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str)),
            conditions: Conditions::parse(&head.headers),
            accept: match &route.action {
                Action::Manifest {
                    reference: Reference::Tag(_),
                    ..
                } => self.accept(&head.headers),
                // A digest fixes the content.
                _ => Accept::everything(),
            },
            mode: if head.method == Method::HEAD {
                ReadMode::Head
            } else {
                ReadMode::Content
            },
            client: Client::at(peer.address),
        }
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
}

impl Call<'_> {
    /// The repository that the call addresses, if the caller may access it.
    pub(super) fn target(&self, mirror: &Mirror, name: &RepoName) -> Result<Target, MirrorError> {
        let target = mirror.upstreams.target(self.ns, self.host, name)?;
        match self.caller {
            // Everybody may read everything that the mirror's own credentials can read.
            Caller::Anonymous => Ok(target),
        }
    }
}

fn refuse(action: &Action, error: &MirrorError) -> Refusal {
    Refusal {
        cache_status: cache_status::failed(Named::by(action), Exchange::failed(error)),
        ..Refusal::of_action(error, action)
    }
}

/// What is requested, for the metrics.
fn kind(action: &Action) -> Kind {
    match action {
        Action::Root | Action::Options => Kind::Other,
        Action::Base => Kind::Base,
        Action::Catalog(_) => Kind::Catalog,
        Action::Tags { .. } => Kind::Tags,
        Action::Manifest { .. } => Kind::Manifest,
        Action::Blob { .. } => Kind::Blob,
        Action::Referrers { .. } => Kind::Referrers,
    }
}
