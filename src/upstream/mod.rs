//! The client of one upstream registry; millpond holds one [`Upstream`] for each that is
//! configured.
//!
//! A question (`manifests`, `blobs`, `lists`) becomes a request; `auth` gives it the credentials
//! that the upstream's own challenge asks for (`challenge`, `token`, `credentials`); `transport`
//! sends it, follows redirects by the rules of `redirect` and tries again by those of `retry`;
//! `body` reads the answer.
//!
//! What it never does: send credentials anywhere but to the upstream's own origin and to a token
//! service of its site (or one that the operator named); ask for more than reading; be led to
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
mod auth;
mod blobs;
mod body;
mod callers;
mod challenge;
mod clients;
#[cfg(feature = "otel")]
mod collector;
mod connect_time;
mod content_range;
mod credential_error;
mod credentials;
mod docker_config;
mod document;
mod error;
mod failures;
mod gate;
mod guard;
mod helper;
mod lists;
mod login;
mod login_check;
mod manifests;
mod multi_range;
mod multipart;
mod observe;
mod ranges;
mod redirect;
mod reply;
mod retry;
mod scope;
mod secret_files;
mod site;
mod token;
mod token_requests;
mod transport;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use url::Url;

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
use credentials::Auth;
pub use docker_config::DockerConfigError;
pub use document::{DocumentError, Documents};
pub use error::{
    Failure, Message, NOT_FOUND, Phase, SetupError, ShownUrl, Source, UpstreamError, Violation,
};
pub use guard::InternalTarget;
pub use helper::HelperError;
pub use lists::UnparsedList;
pub use login::Login;
pub use manifests::{FetchedManifest, ManifestHead, UnverifiedManifest};
use multi_range::MultiRange;
pub use multipart::MultipartError;
pub use observe::{Challenged, Observation};
pub use ranges::{BlobRanges, MAX_RANGE_HEADER, MAX_RANGES};
pub use redirect::RedirectError;
pub use retry::MAX_RETRY_AFTER;
use transport::Transport;

/// The client of one upstream.
pub struct Upstream {
    pub config: Arc<config::Upstream>,
    transport: Arc<Transport>,
    auth: Auth,
    multi_range: Arc<MultiRange>,
    /// The account of a caller. None where all callers share the mirror's account.
    caller: Option<CallerId>,
    /// Those of callers with logins. None where all callers share the mirror's account, and in an
    /// account itself.
    callers: Option<Callers>,
}

/// The TLS of an upstream, to be set up anew when its files change.
pub struct UpstreamTls(Arc<Transport>);

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamTls")
    }
}

impl UpstreamTls {
    /// Uses what other files have for the next connections. After an error, what was used before stays
    /// in use. Blocks.
    pub fn renew(&self, files: &TlsFiles) -> Result<(), SetupError> {
        self.0.renew(files)
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
        let metrics = metrics.upstream(&config.name);
        let transport = Transport::new(Arc::clone(&config), files, timeouts, clock, metrics)?;
        // For callers without a login. The configured credentials are never used for a caller.
        let (auth, caller, callers) = match config.caller.authorize {
            Authorize::Shared => (Auth::new(&config), None, None),
            Authorize::Caller => {
                let auth = Auth::of_caller(&config, None);
                (auth, Some(CallerId::ANONYMOUS), Some(Callers::new()?))
            }
        };
        Ok(Self {
            transport: Arc::new(transport),
            multi_range: Arc::new(MultiRange::new(&config.name)),
            auth,
            caller,
            callers,
            config,
        })
    }

    /// Its TLS, also that of the accounts of callers.
    pub fn tls(&self) -> UpstreamTls {
        UpstreamTls(Arc::clone(&self.transport))
    }

    /// What this upstream is called in logs, metrics and errors.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What clients' requests for this upstream are counted under.
    pub fn metrics_id(&self) -> UpstreamId {
        self.transport.metrics.id()
    }

    /// Logs that the upstream failed, and what was done instead of what was asked for: at most once
    /// a minute for each kind of failure.
    pub fn report(&self, error: &UpstreamError, instead: &str) {
        self.transport.failures.report(self.name(), error, instead);
    }

    /// The address of `/v2/<repo>/<endpoint>/<item>`.
    fn endpoint(&self, repo: &RepoName, endpoint: &str, item: &str) -> Url {
        let mut url = self.config.url.clone();
        // Only a URL that can't be a base has no segments, and none of those is configured.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").extend(repo.components());
            segments.push(endpoint).push(item);
        }
        url
    }
}
