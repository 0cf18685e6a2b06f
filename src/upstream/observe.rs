//! What a diagnosis (`millpond doctor`) reads of responses' headers. Nothing here serves a pull.

use std::time::SystemTime;

use http::header::{ACCEPT, DATE, HeaderName, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use url::Url;

use super::challenge::{self, Challenge};
use super::endpoint::Endpoint;
use super::error::{ShownUrl, UpstreamError};
use super::reply::UpstreamResponse;
use super::transport::UpstreamRequest;
use super::{Upstream, body, error};
use crate::metrics::Kind;
use crate::oci::{Accept, Digest, Reference, RepoName};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Docker Hub's; other registries send them rarely.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");

/// The header of one response.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// By the server's clock (RFC 9110, section 6.6.1), to the second.
    pub date: Option<SystemTime>,
    /// `Cache-Status` (RFC 9211).
    pub cache_status: Option<String>,
    /// Such as `100;w=21600`: pulls in so many seconds.
    pub rate_limit: Option<String>,
    pub rate_limit_remaining: Option<String>,
    /// How the server wants requests to be authorized. None: it doesn't ask.
    pub challenge: Option<Challenged>,
}

/// A server's demand for authorization.
#[derive(Debug, Clone)]
pub enum Challenged {
    Basic,
    /// With a token of this service; and whether the configured credentials are kept from it,
    /// because it is neither on the upstream's site nor configured.
    Bearer {
        realm: String,
        withheld: bool,
    },
    /// By another scheme, or by none.
    Other,
}

impl Upstream {
    /// `GET /v2/` without credentials at the first endpoint. A challenge is a success.
    pub async fn observe_base(&self) -> Result<Observation, UpstreamError> {
        self.endpoints.first.observe_base().await
    }

    /// `GET /v2/` with what the challenge asks for: with the credentials for `repo`, if there are any,
    /// else with an anonymous token. At the first endpoint.
    pub async fn sign_in(&self, repo: &RepoName) -> Result<Observation, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let repo = &*endpoint.named(repo);
        let reply = endpoint.ask(repo, &endpoint.base()).await?;
        endpoint.observed(reply).await
    }

    /// `HEAD` of a manifest at the first endpoint.
    pub async fn observe_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Observation, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let repo = &*endpoint.named(repo);
        let url = endpoint.url(repo, "manifests", &reference.to_string());
        let ask = UpstreamRequest::new(Kind::Manifest, Method::HEAD, url);
        let ask = ask.with(ACCEPT, Accept::everything().header());
        endpoint.observed(endpoint.ask(repo, &ask).await?).await
    }

    /// `HEAD` of a blob at the first endpoint.
    pub async fn observe_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Observation, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let repo = &*endpoint.named(repo);
        let ask = endpoint.blob(Method::HEAD, repo, digest);
        endpoint.observed(endpoint.ask(repo, &ask).await?).await
    }

    /// Whether a forward proxy stands before the first endpoint: its name and its TLS are the proxy's
    /// business then.
    pub fn is_proxied(&self) -> bool {
        let endpoint = &self.endpoints.first;
        endpoint.transport.guard.is_proxied(&endpoint.config.url)
    }
}

impl Endpoint {
    async fn observe_base(&self) -> Result<Observation, UpstreamError> {
        let reply = self.transport.exchange(&self.base(), None).await?;
        self.observed(reply).await
    }

    fn base(&self) -> UpstreamRequest {
        let mut url = self.config.url.clone();
        // See `url`.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").push("");
        }
        UpstreamRequest::new(Kind::Manifest, Method::GET, url)
    }

    async fn observed(&self, mut reply: UpstreamResponse) -> Result<Observation, UpstreamError> {
        let text = |name| reply.text(name).and_then(error::message);
        let text = |name| text(name).map(|text| text.to_string());
        let date = reply.text(&DATE);
        let observation = Observation {
            date: date.and_then(|date| httpdate::parse_http_date(date).ok()),
            cache_status: text(&CACHE_STATUS),
            rate_limit: text(&RATE_LIMIT),
            rate_limit_remaining: text(&RATE_LIMIT_REMAINING),
            challenge: self.challenged(&reply),
        };
        if !reply.is_challenge() && reply.status() != StatusCode::OK {
            return Err(reply.unexpected());
        }
        body::drain(&mut reply).await;
        Ok(observation)
    }

    fn challenged(&self, reply: &UpstreamResponse) -> Option<Challenged> {
        if !reply.is_challenge() {
            return None;
        }
        let lines = reply.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges = challenge::parse(lines.filter_map(|line| line.to_str().ok()));
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, .. } => Some(realm),
            Challenge::Basic => None,
        });
        Some(match bearer {
            Some(realm) => {
                let url = Url::parse(realm).ok();
                let shown = url.as_ref().map(|url| ShownUrl::from(url).to_string());
                Challenged::Bearer {
                    withheld: url.is_some_and(|url| !self.trusts(&url)),
                    realm: shown.unwrap_or_else(|| "an invalid URL".to_owned()),
                }
            }
            None if challenges.contains(&Challenge::Basic) => Challenged::Basic,
            None => Challenged::Other,
        })
    }
}
