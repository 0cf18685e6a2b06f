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
//! Proxies are taken from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) by the HTTP
//! library. Sources: OCI distribution-spec 1.1, distribution's token authentication
//! specification, RFC 9110.

mod address;
mod auth;
mod blobs;
mod body;
mod challenge;
mod clients;
mod content_range;
mod credentials;
mod error;
mod explain;
mod failures;
mod gate;
mod guard;
mod lists;
mod manifests;
mod multipart;
mod ranges;
mod redirect;
mod reply;
mod retry;
mod scope;
mod site;
mod token;
mod transport;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use url::Url;

use crate::clock::Clock;
use crate::config::{Credentials, HostPattern, Timeouts, is_loopback};
use crate::metrics::Metrics;
use crate::oci::RepoName;
pub use address::Network;
use auth::Auth;
pub use blobs::{BlobHead, BlobStream};
pub use body::BlobChunks;
pub use error::{Message, Phase, SetupError, ShownUrl, Source, UpstreamError, Violation};
pub use guard::InternalTarget;
pub use lists::UnparsedList;
pub use manifests::{FetchedManifest, ManifestHead, UnverifiedManifest};
pub use multipart::MultipartError;
use ranges::MultiRange;
pub use ranges::{BlobRanges, MAX_RANGE_HEADER, MAX_RANGES};
pub use redirect::RedirectError;
use reply::UpstreamResponse;
pub use retry::MAX_RETRY_AFTER;
use transport::{Transport, UpstreamRequest};

/// How to reach an upstream.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// What it is called in logs, metrics and errors.
    pub name: String,
    /// `https://registry.example`, with or without a path that `/v2/` is below.
    pub url: Url,
    pub credentials: Option<Credentials>,
    /// Certificates trusted besides the system's, as PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Trust any certificate.
    pub insecure: bool,
    /// Permit credentials over plain HTTP to other machines, and redirects and token services that
    /// lead from https to http.
    pub plain_http: bool,
    /// The token service that is given the credentials although it is on another site: its scheme,
    /// host and port count.
    pub realm: Option<Url>,
    /// Hosts that redirects and token services may lead to whatever their addresses are.
    pub redirects: Vec<HostPattern>,
    /// The scope of all tokens instead of `repository:{name}:pull`.
    pub scope: Option<String>,
    pub timeouts: Timeouts,
}

impl fmt::Debug for UpstreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSettings")
            .field("name", &self.name)
            .field("url", &ShownUrl::from(&self.url))
            .field("credentials", &self.credentials)
            .field("insecure", &self.insecure)
            .field("plain_http", &self.plain_http)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// The client of one upstream.
#[derive(Debug)]
pub struct Upstream {
    url: Url,
    transport: Transport,
    auth: Auth,
    multi_range: Arc<MultiRange>,
}

impl Upstream {
    /// Sets up the client; nothing is sent. Fails with [`UpstreamError::Setup`].
    pub fn new(
        settings: UpstreamSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, UpstreamError> {
        let name: Arc<str> = settings.name.as_str().into();
        Self::set_up(settings, clock, metrics)
            .map_err(|reason| UpstreamError::Setup { name, reason })
    }

    fn set_up(
        settings: UpstreamSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        redirect::check(&settings.url, &settings.url, settings.plain_http).map_err(|error| {
            match error {
                RedirectError::UserInfo => SetupError::UserInfo,
                _ => SetupError::Url,
            }
        })?;
        let credentials = settings.credentials.as_ref();
        let credentials = credentials
            .map(|pair| credentials::header(pair).ok_or(SetupError::Credentials))
            .transpose()?;
        let readable = settings.url.scheme() == "http" && !is_loopback(&settings.url);
        if credentials.is_some() && readable && !settings.plain_http {
            return Err(SetupError::PlainHttp);
        }
        let transport = Transport::new(&settings, clock, metrics)?;
        let auth = Auth::new(&settings, credentials);
        let mut url = settings.url;
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self {
            url,
            transport,
            auth,
            multi_range: Arc::default(),
        })
    }

    /// What this upstream is called.
    pub fn name(&self) -> &str {
        &self.transport.name
    }

    /// Logs that the upstream failed, and what was done instead of what was asked for: at most once
    /// a minute for each kind of failure.
    pub fn report(&self, error: &UpstreamError, instead: &str) {
        self.transport.failures.report(self.name(), error, instead);
    }

    /// The address of `/v2/<repo>/<endpoint>/<item>`.
    fn endpoint(&self, repo: &RepoName, endpoint: &str, item: &str) -> Url {
        let mut url = self.url.clone();
        // Only a URL that can't be a base has no segments, and none of those is set up.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").extend(repo.components());
            segments.push(endpoint).push(item);
        }
        url
    }

    async fn ask(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        self.auth.ask(&self.transport, repo, ask).await
    }
}
