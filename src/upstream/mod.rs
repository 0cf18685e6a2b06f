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
mod document;
mod error;
mod failures;
mod gate;
mod guard;
mod lists;
mod login;
mod manifests;
mod multi_range;
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
use crate::config::{self, Timeouts};
use crate::metrics::Metrics;
use crate::oci::RepoName;
pub use address::Network;
pub use blobs::BlobStream;
pub use body::BlobChunks;
use credentials::Auth;
pub use document::{DocumentError, Documents};
pub use error::{Failure, Message, Phase, SetupError, ShownUrl, Source, UpstreamError, Violation};
pub use guard::InternalTarget;
pub use lists::UnparsedList;
pub use login::Login;
pub use manifests::{FetchedManifest, ManifestHead, UnverifiedManifest};
use multi_range::MultiRange;
pub use multipart::MultipartError;
pub use ranges::{BlobRanges, MAX_RANGE_HEADER, MAX_RANGES};
pub use redirect::RedirectError;
pub use retry::MAX_RETRY_AFTER;
use transport::Transport;

/// The client of one upstream.
pub struct Upstream {
    pub config: Arc<config::Upstream>,
    transport: Transport,
    auth: Auth,
    multi_range: Arc<MultiRange>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.name()).finish()
    }
}

impl Upstream {
    /// Sets up the client; nothing is sent. `ca_pem` holds certificates that are trusted besides the
    /// system's.
    pub fn new(
        config: config::Upstream,
        ca_pem: Option<&[u8]>,
        timeouts: Timeouts,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let config = Arc::new(config);
        Ok(Self {
            transport: Transport::new(Arc::clone(&config), ca_pem, timeouts, clock, metrics)?,
            multi_range: Arc::new(MultiRange::new(&config.name)),
            auth: Auth::new(config.credentials.as_ref()),
            config,
        })
    }

    /// What this upstream is called in logs, metrics and errors.
    pub fn name(&self) -> &str {
        &self.config.name
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
