//! The client of one upstream registry; millpond holds one [`Upstream`] for each that is
//! configured.
//!
//! A question (`manifests`, `blobs`, `lists`) goes to one of the upstream's `endpoints`, and to the next
//! one when that can't answer; each `endpoint` has connections, credentials, tokens and a `health` of its
//! own. There it becomes a request; `auth` gives it the credentials
//! that the upstream's own challenge asks for (`challenge`, `token`, `credentials`); `transport`
//! sends it, follows redirects by the rules of `redirect` and tries again by those of `retry`; `limits` and
//! `limiter` keep it back where the upstream or the operator wants fewer requests;
//! `body` reads the answer.
//!
//! What it never does: send credentials anywhere but to the upstream's own origin and to a token
//! service of its site (or one that the operator named); ask for more than reading, but for `push`, which
//! only copies use; be led to
//! internal addresses (`guard`); believe a length, a digest, a range or a redirect of the other
//! side; wait without an end; show a query or a password in an error or a log. It caches nothing
//! but tokens, and doesn't join equal requests: its callers do.
//!
//! Credentials come from the configuration, from files, Docker configurations or helpers (`accounts`,
//! `secret_files`, `docker_config`, `helper`). A token belongs to the secret that it was obtained with.
//!
//! Proxies are those of the configuration or the environment (`HTTPS_PROXY`, `HTTP_PROXY`,
//! `ALL_PROXY`, `NO_PROXY`). Credentials don't pass through one unless it is a TLS connection that it
//! passes on. Sources: OCI distribution-spec 1.1, distribution's token authentication
//! specification, RFC 9110.

mod account;
mod accounts;
mod address;
mod allowance;
mod attempt;
mod auth;
mod blobs;
mod body;
mod budget;
mod callers;
mod challenge;
mod circuit;
mod clients;
#[cfg(feature = "otel")]
mod collector;
mod connect_time;
mod content_range;
mod credential_error;
mod credentials;
mod docker_config;
mod document;
mod endpoint;
mod endpoints;
mod error;
mod exchange;
mod failures;
mod gate;
mod guard;
mod health;
mod hedge;
mod helper;
mod latency;
mod limiter;
mod limits;
mod lists;
mod login;
mod login_check;
mod lookup;
mod manifests;
mod multi_range;
mod multipart;
mod observe;
mod one_way;
mod own_address;
mod peer;
mod peer_blobs;
mod peer_client;
mod peers;
mod priority;
mod push;
mod ranges;
mod reasons;
mod redirect;
mod relay;
mod relay_answer;
mod relay_body;
mod reply;
mod retry;
mod route;
mod scope;
mod secret_files;
mod site;
mod status;
mod token;
mod token_requests;
mod transport;
mod upload_body;
mod usage;
mod writer;

#[cfg(test)]
mod tests;

/// The lock of `circuit`, `budget` and `one_way`. `tests/interleavings` replaces it.
mod sync {
    pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
}

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{self, Authorize, Timeouts};
use crate::metrics::{Metrics, UpstreamId};
use crate::oci::RepoName;
pub use account::LoginError;
pub use address::Network;
pub use blobs::BlobStream;
pub use body::BlobChunks;
pub use callers::CallerId;
use callers::Callers;
pub use clients::TlsFiles;
#[cfg(feature = "otel")]
pub use collector::{Collector, CollectorError};
pub use credential_error::CredentialError;
pub use docker_config::DockerConfigError;
pub use document::{DocumentError, Documents};
use endpoint::{Endpoint, EndpointOptions};
use endpoints::Endpoints;
pub use error::{Failure, Message, Phase, SetupError, ShownUrl, Source, UpstreamError, Violation};
use failures::WRONG_CONTENT;
pub use guard::InternalTarget;
pub use helper::HelperError;
use limiter::Limiter;
pub use limits::AccountStatus;
pub use lists::UnparsedList;
pub use login::Login;
pub use lookup::Lookup;
pub use manifests::{FetchedManifest, ManifestHead, UnverifiedManifest, Validator};
pub use multipart::MultipartError;
pub use observe::{Challenged, Observation};
pub use peers::{OwnerKey, Peers, PeersError, PeersOptions};
pub use push::{PushedManifest, StartedUpload, UploadSession};
pub use ranges::{BlobRanges, MAX_RANGE_HEADER, MAX_RANGES};
pub use reasons::{NOT_FOUND, wrong_answer};
pub use redirect::RedirectError;
pub use relay::RelayRequest;
pub use relay_answer::{RelayAnswer, RelayChunks, RelayError, read_answer};
pub use relay_body::{BodyFeed, RelayBody, relay_body};
pub use retry::MAX_RETRY_AFTER;
pub use route::BlobRoute;
pub use secret_files::find_account;
pub use status::{EndpointStatus, LastError, TokenAges};
use transport::Transport;
pub use upload_body::{Aborted, UploadBody, UploadChunks};
pub use usage::MonthlyUsage;
use usage::Usage;

/// The client of one upstream.
pub struct Upstream {
    pub config: Arc<config::Upstream>,
    endpoints: Arc<Endpoints>,
    /// The account of a caller. None where all callers share the mirror's account.
    caller: Option<CallerId>,
    /// Those of callers with logins. None where all callers share the mirror's account, and in an
    /// account itself.
    callers: Option<Arc<Callers>>,
    /// The other replicas, which are asked before the endpoints. None where nobody is: there are none, or
    /// the question is this replica's own.
    peers: Option<Arc<Peers>>,
}

/// What another replica's answer says beside the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAnswer {
    pub address: SocketAddr,
    /// How long ago the upstream said what a tag names; 0 for a digest.
    pub age: Duration,
}

/// The TLS of an upstream, to be set up anew when its files change.
pub struct UpstreamTls(Vec<Arc<Transport>>);

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamTls")
    }
}

impl UpstreamTls {
    /// Uses what other files have for the next connections. After an error, what was used before stays
    /// in use. Blocks.
    pub fn renew(&self, files: &TlsFiles) -> Result<(), SetupError> {
        let transports = || self.0.iter().enumerate();
        let renewed = transports().map(|(index, transport)| transport.renewed(files.of(index)));
        let renewed: Vec<_> = renewed.collect::<Result<_, _>>()?;
        for ((_, transport), clients) in transports().zip(renewed) {
            transport.set(clients);
        }
        Ok(())
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.name()).finish()
    }
}

impl Upstream {
    /// Sets up the client; nothing is sent, and no credentials are looked for. `files` has what the
    /// files of the configuration hold.
    pub fn new(
        config: config::Upstream,
        files: &TlsFiles,
        timeouts: Timeouts,
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Self, SetupError> {
        let config = Arc::new(config);
        let (first, others) = config.ordered_endpoints();
        let options = EndpointOptions {
            timeouts,
            clock,
            metrics,
            retries: others.is_empty(),
            limiter: Arc::new(Limiter::new(&config, clock)),
            reserve: config.rate_limit.reserve,
        };
        let client = |index, endpoint| Endpoint::new(index, endpoint, files.of(index), &options);
        let first = client(0, first)?;
        let others = (1..)
            .zip(others)
            .map(|(index, endpoint)| client(index, endpoint));
        let others = others.collect::<Result<_, _>>()?;
        let callers = match config.caller.authorize {
            Authorize::Shared => None,
            Authorize::Caller => Some(Callers::new()?),
        };
        Ok(Self {
            endpoints: Arc::new(Endpoints::new(first, others, config.endpoint_selection)),
            caller: callers.as_ref().map(|_| CallerId::ANONYMOUS),
            callers: callers.map(Arc::new),
            peers: None,
            config,
        })
    }

    /// The same client, which never asks its upstream if it is offline.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        // Nobody else has them yet.
        if let Some(endpoints) = Arc::get_mut(&mut self.endpoints) {
            endpoints.offline = offline;
        }
        self
    }

    /// Whether the upstream is never asked.
    pub fn is_offline(&self) -> bool {
        self.endpoints.offline
    }

    /// The error of all that isn't asked because of that.
    pub fn offline_error(&self) -> UpstreamError {
        self.endpoints.offline_error()
    }

    /// Its TLS, also that of the accounts of callers.
    pub fn tls(&self) -> UpstreamTls {
        let endpoints = self.endpoints.all();
        UpstreamTls(
            endpoints
                .map(|endpoint| Arc::clone(&endpoint.transport))
                .collect(),
        )
    }

    /// What this upstream is called in logs, metrics and errors.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What clients are told that it is called: its name, unless that is its address and no public name.
    pub fn public_name(&self) -> Option<&str> {
        let name = self.name();
        let is_address = name == config::authority(&self.config.url);
        (!is_address || site::is_public(name)).then_some(name)
    }

    /// What clients' requests for this upstream are counted under.
    pub fn metrics_id(&self) -> UpstreamId {
        self.endpoints.first.transport.metrics.id()
    }

    /// Logs that the upstream failed, and what was done instead of what was asked for: at most once
    /// a minute for each kind of failure.
    pub fn report(&self, error: &UpstreamError, instead: &str) {
        let failures = &self.endpoints.first.transport.failures;
        failures.report(self.name(), error, instead);
    }

    /// Logs and counts bytes of a repository's blob that weren't the blob's, in the same way.
    pub fn report_wrong(&self, repo: &RepoName, error: &dyn std::error::Error, instead: &str) {
        let transport = &self.endpoints.first.transport;
        transport.metrics.failed(WRONG_CONTENT);
        let failures = &transport.failures;
        failures.report_wrong(self.name(), repo, error, instead);
    }

    /// How many times as long as usual known answers are used before the upstream is asked again: more
    /// than once while little is left of its rate limit (`proxy.ratelimit.reserve`), at most 60 times.
    pub fn stretch(&self) -> u32 {
        let now = tokio::time::Instant::now();
        let accounts = self
            .endpoints
            .all()
            .flat_map(|endpoint| endpoint.accounts());
        let stretches = accounts.map(|auth| auth.stretch(now));
        stretches.min().unwrap_or(1)
    }

    /// Whether it may be asked for what no client waits for: more than the reserve of its rate limit is left,
    /// some account isn't told to wait, and the operator's limits leave something.
    pub fn has_spare_requests(&self) -> bool {
        let now = tokio::time::Instant::now();
        let endpoints = self.endpoints.all();
        let mut accounts = endpoints.flat_map(|endpoint| endpoint.accounts());
        let may_ask = accounts.any(|auth| auth.general_limits().budget.paused_for(now).is_none());
        may_ask && self.stretch() == 1 && self.endpoints.first.transport.limiter.has_spare()
    }

    /// The bytes of blobs that it has sent in this month; none where they aren't limited.
    pub fn monthly_usage(&self) -> Option<MonthlyUsage> {
        let usage = self.endpoints.first.transport.limiter.usage.as_ref();
        usage.map(Usage::now)
    }

    /// Counts what it sent in this month before this client was made.
    pub fn restore_usage(&self, earlier: &MonthlyUsage) {
        if let Some(usage) = &self.endpoints.first.transport.limiter.usage {
            usage.restore(earlier);
        }
    }

    /// Of each endpoint the upstream's name, its own, and the time since each token in use was obtained.
    pub fn token_ages(&self) -> impl Iterator<Item = (String, String, Vec<Duration>)> {
        let now = tokio::time::Instant::now();
        self.endpoints.all().map(move |endpoint| {
            let ages = status::token_ages(endpoint, now);
            (self.name().to_owned(), endpoint.health.label.clone(), ages)
        })
    }

    /// Its endpoints, as operators see them.
    pub fn status(&self) -> Vec<EndpointStatus> {
        let is_alone = !self.endpoints.are_several();
        let endpoints = self.endpoints.all();
        endpoints
            .map(|endpoint| EndpointStatus::of(endpoint, is_alone))
            .collect()
    }
}
