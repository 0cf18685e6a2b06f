//! The pipeline of a request. [`Service::route`] finds the action; [`Service::call`] notes the caller and
//! parses the conditions; the [handler](super::handlers) begins with [`Call::target`], which chooses
//! the upstream's repository and authorizes the caller. A handler never sees a header or a path.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::access::{Options, Record};
use super::answer;
use super::body::Body;
use super::cache_status::{self, HIT_NEGATIVE, Named};
use super::call::{Answered, Call, CallError, Sender};
use super::conditional::Conditions;
use super::error::Refusal;
use super::handlers::Handlers;
use super::hosted::{HostedHandlers, HostedRepositories};
use super::leftovers::Leftovers;
use super::links::Links;
use super::peer_gate::{FromPeer, PeerGate, PeerSubject};
use super::push_head::PushHead;
use super::relay_head::RelayHead;
use super::request::{Handler, Peer, RequestBody};
use crate::access::{Access, Denied};
use crate::auth::{
    AuthError, Authenticator, Caller, Lacking, MAX_FORM, Presented, TokenRequest, User,
};
use crate::config::AccessLog;
use crate::download::Client;
use crate::health::{Availability, Closed};
use crate::hosted::HostedError;
use crate::metrics::{Addressed, Answer, Kind, Metrics, Outcome, RefusedCaller};
use crate::mirror::{Exchange, Mirror, MirrorError, ReadMode};
use crate::oci::{Accept, Action, Push, Reference, RepoName, Route, RouteError};
use crate::telemetry::{Context, RequestIds, Span, TraceParent, Tracer, X_REQUEST_ID};
use crate::upstream::Login;

/// Different `Accept` lines whose meaning is kept; each kind of client has its own.
const MAX_ACCEPTS: usize = 256;
/// Bytes of such a line.
const MAX_ACCEPT: usize = 1024;

/// How long a form may take to come.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// How the API presents itself.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// Path before `/v2/`: empty, or `/x` without a slash at the end.
    pub prefix: String,
    /// Scheme and host of links, where they shall not be relative; without a slash at the end.
    pub origin: Option<String>,
    /// Sent with every answer.
    pub headers: HeaderMap,
    /// Which requests are logged, if any.
    pub access_log: Option<AccessLog>,
    /// Which requests are traced, if any.
    pub tracer: Option<Arc<Tracer>>,
}

/// What lets requests in.
#[derive(Debug, Default)]
pub struct Gate {
    pub authenticator: Arc<Authenticator>,
    pub access: Access,
    pub availability: Availability,
    /// Recognises the other replicas, where there are some.
    pub replicas: Option<PeerGate>,
}

/// Where it is noted what becomes known of a request while it is answered.
struct Noted<'a> {
    addressed: &'a Addressed,
    /// None for a request that is neither logged nor counted.
    record: Option<&'a mut Record>,
}

impl Noted<'_> {
    fn comes_from(&mut self, address: Option<IpAddr>, user: Option<&Arc<User>>) {
        if let Some(record) = &mut self.record {
            record.comes_from(address, user);
        }
    }
}

/// The registry API over one mirror.
#[derive(Debug)]
pub struct Service {
    handlers: Handlers,
    authenticator: Arc<Authenticator>,
    availability: Availability,
    replicas: Option<PeerGate>,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    ids: RequestIds,
    /// What `Accept` lines mean, which is asked for with every tag.
    accepts: Cache<Box<[u8]>, Accept>,
}

impl Handler for Service {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let (head, body) = request.into_parts();
        let mut record = Box::new(self.record(&head, &peer));
        let addressed = Addressed::default();
        let route = self.route(&head);
        let kind = route
            .as_ref()
            .map_or(Kind::Other, |route| kind(&route.action));
        record.is_for(kind);
        let mut from_peer = None;
        let answered = match &route {
            Ok(route) => match self.closed(&route.action) {
                None => {
                    let context = record.context().clone();
                    let noted = Noted {
                        addressed: &addressed,
                        record: Some(&mut record),
                    };
                    // Others than these don't sign their answer: the replica asks elsewhere.
                    let replicas = self.replicas.as_ref();
                    from_peer = replicas.and_then(|replicas| replicas.recognise(&head));
                    // Pinned here: a future that is passed on by value has its memory twice in this one.
                    let asker = (&peer, from_peer.as_deref());
                    let run = pin!(self.run(route, &head, body, asker, noted));
                    context.scope(run).await
                }
                Some(closed) => Err(Refusal::closed(closed)),
            },
            Err(error) => Err(Refusal::of(error)),
        };
        let (mut response, result) = match answered {
            Ok(answered) => answered,
            Err(refusal) => {
                if let Some(log) = &refusal.log {
                    record.failed(log);
                }
                (answer::refusal(&refusal), Outcome::Error)
            }
        };
        if !self.settings.headers.is_empty() {
            let configured = self.settings.headers.clone();
            response.headers_mut().extend(configured);
        }
        if let (Some(from), Some(replicas)) = (from_peer, &self.replicas) {
            replicas.sign(&from, &mut response);
        }
        let id = record.context().id().header();
        response.headers_mut().insert(X_REQUEST_ID, id);
        let expects_body = head.method != Method::HEAD;
        let upstream = addressed.get();
        let answer = Answer {
            upstream,
            route: kind,
            result,
        };
        record.answered(answer, response.status(), expects_body);
        response.body_mut().record_end(record);
        response
    }
}

impl Service {
    /// Begins the record of a request, and decides whether it is traced.
    fn record(&self, head: &Parts, peer: &Peer) -> Record {
        let id = self.ids.of(&head.headers);
        let (mut span, mut caller) = (None, None);
        if let Some(tracer) = &self.settings.tracer {
            caller = TraceParent::of(&head.headers);
            span = Span::of_request(tracer, caller);
        }
        let options = Options {
            metrics: Arc::clone(&self.metrics),
            context: Context::traced(id, span.as_ref(), caller),
            log: self.settings.access_log,
            span,
            peer: Arc::clone(&peer.name),
            address: peer.address,
        };
        Record::new(options, head)
    }

    /// `hosted`: the repositories that aren't mirrored, if there are some. `tasks` owns what goes on with
    /// connections.
    pub fn new(
        mirror: Arc<Mirror>,
        hosted: Option<HostedRepositories>,
        gate: Gate,
        (metrics, tasks): (Arc<Metrics>, TaskTracker),
        settings: ServerSettings,
    ) -> Self {
        let origin = settings.origin.as_deref().unwrap_or_default();
        let links = Links::new(origin, settings.prefix.clone());
        let hosted = hosted.map(|repositories| {
            HostedHandlers::new(
                repositories,
                Arc::clone(&mirror),
                gate.access.clone(),
                links.clone(),
                Leftovers::new(tasks),
                &metrics,
            )
        });
        Self {
            handlers: Handlers::new(mirror, hosted, gate.access, links),
            authenticator: gate.authenticator,
            availability: gate.availability,
            replicas: gate.replicas,
            metrics,
            settings,
            ids: RequestIds::default(),
            accepts: Cache::new(MAX_ACCEPTS),
        }
    }

    /// Whether no request is answered, or not this one.
    fn closed(&self, action: &Action) -> Option<Closed> {
        let closed = self.availability.closed();
        // Load balancers ask with `GET /` whether to send more.
        closed.filter(|closed| *closed == Closed::Unhealthy || *action == Action::Root)
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

    /// Whether a request that needs neither an upstream nor the store is answered. It is neither logged
    /// nor counted.
    pub(super) async fn answers(&self) -> bool {
        let (head, ()) = Request::new(()).into_parts();
        let peer = Peer {
            address: None,
            name: "watchdog".into(),
            certificate: None,
            is_secure: false,
        };
        let Ok(route) = self.route(&head) else {
            return false;
        };
        let noted = Noted {
            addressed: &Addressed::default(),
            record: None,
        };
        let answered = self.run(&route, &head, RequestBody::Empty, (&peer, None), noted);
        answered.await.is_ok()
    }

    async fn run(
        &self,
        route: &Route,
        head: &Parts,
        body: RequestBody,
        (peer, from_peer): (&Peer, Option<&FromPeer>),
        noted: Noted<'_>,
    ) -> Result<Answered, Refusal> {
        let hides = self.handlers.access().hides() && from_peer.is_none();
        let started = hides.then(Instant::now);
        let presented = presented(head, peer);
        let asker = (&presented, from_peer);
        match self.answer(route, head, body, asker, noted).await {
            Ok(answered) => Ok(answered),
            Err(error) => {
                if matches!(error, CallError::Mirror(MirrorError::Misdirected)) {
                    self.metrics.replicas().refused.inc();
                }
                if let Some(started) = started {
                    Box::pin(self.conceal(&error, started)).await;
                }
                Err(self.refuse(route, &error, &presented, hides))
            }
        }
    }

    async fn answer(
        &self,
        route: &Route,
        head: &Parts,
        body: RequestBody,
        (presented, from_peer): (&Presented<'_>, Option<&FromPeer>),
        mut noted: Noted<'_>,
    ) -> Result<Answered, CallError> {
        let action = &route.action;
        if let Some(from_peer) = from_peer {
            let (caller, sender) = authorized_elsewhere(from_peer, presented);
            noted.comes_from(caller.address, caller.user.as_ref());
            let caller = (caller, sender);
            let call = self.call(route, head, (caller, noted.addressed));
            return self.handlers.dispatch(action, &call, body).await;
        }
        if let Action::Token { upstream, is_form } = action {
            let upstream = upstream.as_deref();
            noted.comes_from(self.authenticator.address(presented)?, None);
            return Box::pin(self.token(upstream, *is_form, head, body, presented)).await;
        }
        let caller = self.authenticator.identify(presented).await;
        // Who fails to say who it is has an address all the same.
        let caller = caller.inspect_err(|_refused| {
            if let Ok(address) = self.authenticator.address(presented) {
                noted.comes_from(address, None);
            }
        })?;
        noted.comes_from(caller.address, caller.user.as_ref());
        if *action == Action::Base && self.authenticator.wants_token(presented, &caller) {
            return Err(AuthError::Needed.into());
        }
        let caller = (caller, Sender::Client);
        let call = self.call(route, head, (caller, noted.addressed));
        self.handlers.dispatch(action, &call, body).await
    }

    /// Makes a hidden repository, and one that is known not to exist, take as long as one that the
    /// upstream is asked for.
    async fn conceal(&self, error: &CallError, started: Instant) {
        let access = self.handlers.access();
        match error {
            CallError::Denied(Denied::Hidden(_)) => access.wait_like_not_found(started).await,
            CallError::Mirror(error) if error.finds_nothing() => {
                if error.was_asked_since(started) {
                    access.took_to_find_nothing(started.elapsed());
                } else {
                    access.wait_like_not_found(started).await;
                }
            }
            // Unlike a mirrored repository's, its answer would come at once.
            CallError::Hosted(error) if finds_nothing(error) => {
                access.wait_like_not_found(started).await;
            }
            CallError::Mirror(_)
            | CallError::Caller(_)
            | CallError::Denied(_)
            | CallError::Place(_)
            | CallError::Head(_)
            | CallError::Hosted(_)
            | CallError::Relay(_) => {}
        }
    }

    /// The built-in token service.
    async fn token(
        &self,
        upstream: Option<&str>,
        is_form: bool,
        head: &Parts,
        body: RequestBody,
        presented: &Presented<'_>,
    ) -> Result<Answered, CallError> {
        if !self.authenticator.issues_tokens() {
            return Err(AuthError::NoTokenService.into());
        }
        let request = if is_form {
            let reading = timeout(FORM_TIMEOUT, body.read(MAX_FORM)).await;
            let form = reading.map_err(|_elapsed| AuthError::Malformed("the form didn't come"))?;
            let form = form.map_err(|_cut| {
                AuthError::Malformed("the form is too long, or the connection broke off")
            })?;
            TokenRequest::of_form(upstream, &form)?
        } else {
            TokenRequest::of_query(upstream, head.uri.query().unwrap_or_default())?
        };
        let document = self.authenticator.token(presented, &request).await?;
        Ok((answer::token(document), Outcome::Hit))
    }

    /// Parses what the action needs of the request.
    fn call<'a>(
        &self,
        route: &'a Route,
        head: &'a Parts,
        ((caller, sender), addressed): ((Caller, Sender<'a>), &'a Addressed),
    ) -> Call<'a> {
        let ns = route.ns.as_deref();
        let is_for_writer =
            sender == Sender::Client && self.handlers.is_for_writer(&route.action, ns);
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        Call {
            client: Client::at(caller.address),
            caller,
            addressed,
            ns,
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
            sender,
            relay: is_for_writer.then(|| Box::new(RelayHead::of(head, &self.settings.prefix))),
            push: match &route.action {
                Action::Push { .. } => Some(Box::new(PushHead::parse(&head.headers))),
                _ => None,
            },
        }
    }

    fn refuse(
        &self,
        route: &Route,
        error: &CallError,
        presented: &Presented<'_>,
        hides: bool,
    ) -> Refusal {
        let action = &route.action;
        let (ns, host) = (route.ns.as_deref(), host(presented));
        let is_of_upstream = matches!(error, CallError::Mirror(_));
        let upstream = is_of_upstream.then(|| self.handlers.upstream(action, ns, host));
        let upstream = upstream.flatten();
        let name = upstream.as_ref().and_then(|it| it.public_name());
        let refusal = Refusal::of_action(error, action, name);
        if let Some(reason) = refused_caller(error, refusal.status) {
            self.metrics.caller_refused(reason);
        }
        match error {
            // As for a hidden repository; the log has what the upstream said.
            CallError::Mirror(error) if hides && error.finds_nothing() => Refusal {
                log: refusal.log,
                ..Refusal::of_action(&Denied::Hidden("".into()), action, None)
            },
            CallError::Mirror(error) => {
                let cache_status = if error.is_remembered() {
                    HIT_NEGATIVE
                } else {
                    cache_status::failed(Named::by(action), Exchange::failed(error))
                };
                let refusal = Refusal {
                    cache_status,
                    ..refusal
                };
                // A login could satisfy the upstream.
                if refusal.status == StatusCode::UNAUTHORIZED && self.authenticator.takes_logins() {
                    self.challenged(refusal, route, presented, &AuthError::Needed)
                } else {
                    refusal
                }
            }
            // The audit log has it.
            CallError::Denied(Denied::Anonymous(_)) => Refusal {
                log: None,
                ..self.challenged(refusal, route, presented, &AuthError::Needed)
            },
            CallError::Denied(_) => Refusal {
                log: None,
                ..refusal
            },
            CallError::Caller(error) if refusal.status == StatusCode::UNAUTHORIZED => {
                self.challenged(refusal, route, presented, error)
            }
            // As for a hidden repository.
            CallError::Hosted(error) if hides && finds_nothing(error) => {
                Refusal::of_action(&Denied::Hidden("".into()), action, None)
            }
            CallError::Relay(_) => Refusal {
                cache_status: cache_status::failed(Named::by(action), Exchange::unanswered()),
                ..refusal
            },
            CallError::Caller(_)
            | CallError::Place(_)
            | CallError::Head(_)
            | CallError::Hosted(_) => refusal,
        }
    }

    /// The refusal with a challenge.
    fn challenged(
        &self,
        refusal: Refusal,
        route: &Route,
        presented: &Presented<'_>,
        error: &AuthError,
    ) -> Refusal {
        let (action, ns) = (&route.action, route.ns.as_deref());
        let (upstream, repository) = self.handlers.addressed(action, ns, host(presented));
        let lacking = Lacking {
            upstream: &upstream,
            repository: repository.as_ref().map(RepoName::as_str),
            actions: scope_of(action),
            error,
        };
        Refusal {
            challenge: self.authenticator.challenge(presented, &lacking),
            ..refusal
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

fn presented<'a>(head: &'a Parts, peer: &'a Peer) -> Presented<'a> {
    Presented {
        headers: &head.headers,
        address: peer.address,
        certificate: peer.certificate.as_ref(),
        secure: peer.is_secure,
        authority: head.uri.authority().map(http::uri::Authority::as_str),
    }
}

/// The caller of another replica, which has authorized it, and what that replica asks for.
fn authorized_elsewhere<'a>(
    from_peer: &'a FromPeer,
    presented: &Presented<'_>,
) -> (Caller, Sender<'a>) {
    match &from_peer.subject {
        PeerSubject::Upstream(upstream) => {
            // The replica sends its caller's account at the upstream.
            let login = presented.headers.get(AUTHORIZATION).cloned();
            let caller = Caller {
                login: login.map(|header| Arc::new(Login::new(header))),
                ..Caller::anonymous(presented.address)
            };
            (caller, Sender::Replica { upstream })
        }
        PeerSubject::Relayed(caller) => (Caller::of_relay(caller), Sender::Relay),
    }
}

/// The host that a client addressed.
fn host<'a>(presented: &Presented<'a>) -> Option<&'a str> {
    let host = presented.headers.get(HOST);
    let host = host.and_then(|host| host.to_str().ok());
    host.or(presented.authority)
}

/// Why the caller was refused, if it was.
fn refused_caller(error: &CallError, status: StatusCode) -> Option<RefusedCaller> {
    match error {
        CallError::Mirror(_) => matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            .then_some(RefusedCaller::Upstream),
        CallError::Denied(denied) => Some(denied.counted_as()),
        CallError::Caller(error) => error.counted_as(),
        CallError::Place(_) | CallError::Head(_) | CallError::Hosted(_) | CallError::Relay(_) => {
            None
        }
    }
}

/// Whether there is nothing of what a request names.
fn finds_nothing(error: &HostedError) -> bool {
    matches!(
        error,
        HostedError::NotFound | HostedError::UnknownRepository | HostedError::UnknownUpload
    )
}

/// The actions of a scope that permits an action, as the reference registry asks for them.
fn scope_of(action: &Action) -> &'static str {
    match action {
        Action::Push { push, .. } => match **push {
            Push::DeleteManifest(_) | Push::DeleteBlob(_) => "delete",
            Push::Start { .. }
            | Push::Blob { .. }
            | Push::Mount { .. }
            | Push::NoSession
            | Push::Status(_)
            | Push::Append(_)
            | Push::Finish { .. }
            | Push::Cancel(_)
            | Push::PutManifest { .. } => "pull,push",
        },
        _ => "pull",
    }
}

/// What is requested, for the metrics.
fn kind(action: &Action) -> Kind {
    match action {
        Action::Root | Action::Options => Kind::Other,
        Action::Base => Kind::Base,
        Action::Token { .. } => Kind::Token,
        Action::Catalog(_) => Kind::Catalog,
        Action::Tags { .. } => Kind::Tags,
        Action::Manifest { .. } => Kind::Manifest,
        Action::Blob { .. } => Kind::Blob,
        Action::Referrers { .. } => Kind::Referrers,
        Action::Push { .. } => Kind::Push,
    }
}
