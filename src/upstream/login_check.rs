//! Whether an upstream knows a login, asked as `docker login` does.

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};

use super::account::{Account, Secret};
use super::auth::check_realm;
use super::challenge::{self, Challenge};
use super::credential_error::CredentialError;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError, Violation};
use super::reply::UpstreamResponse;
use super::token::TokenRequest;
use super::transport::UpstreamRequest;
use super::{Login, Upstream, body};
use crate::metrics::Kind;

impl Upstream {
    /// Whether the upstream accepts a caller's login. Where callers have logins, there is one endpoint.
    pub async fn accepts(&self, login: &Login) -> Result<bool, UpstreamError> {
        self.endpoints.first.accepts(login).await
    }
}

impl Endpoint {
    /// Whether the upstream accepts a caller's login: asks `GET /v2/`, with a token for no repository where
    /// the upstream wants one. True where it wants no credentials. False where it names a token service
    /// that isn't of its site: that one must not get the login.
    async fn accepts(&self, login: &Login) -> Result<bool, UpstreamError> {
        let (bare, challenged) = self.check(None).await?;
        if bare {
            return Ok(true);
        }
        let realm = challenged.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, .. } => Some((realm, service)),
            Challenge::Basic => None,
        });
        let Some((realm, service)) = realm else {
            if !challenged.contains(&Challenge::Basic) {
                return Ok(false);
            }
            if self.exposes(&self.config.url) {
                let error = Failure::NoCredentials(CredentialError::Exposed);
                return Err(UpstreamError::new(&self.config.url, error));
            }
            return Ok(self.check(Some(login.header())).await?.0);
        };
        let url = &self.config.url;
        let realm = check_realm(url, realm, self.config.plain_http)
            .map_err(|error| UpstreamError::protocol(url, Violation::Realm(error)))?;
        if !self.trusts(&realm) {
            return Ok(false);
        }
        let request = TokenRequest {
            realm,
            service: service.clone(),
            scope: String::new(),
        };
        let account = Account::renewed(None, Secret::Basic(login.header().clone()));
        match self
            .send_token_request(self.auth.general_limits(), &request, Some(&account))
            .await
        {
            Ok(token) => Ok(self.check(Some(&token.header)).await?.0),
            Err(error) if is_refusal(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks `GET /v2/`. False, and the challenges, where the upstream wants other credentials.
    async fn check(
        &self,
        authorization: Option<&HeaderValue>,
    ) -> Result<(bool, Vec<Challenge>), UpstreamError> {
        let mut url = self.config.url.clone();
        // Only a URL that can't be a base has no segments, and none of those is configured.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v2", ""]);
        }
        let ask = UpstreamRequest::new(Kind::Base, Method::GET, url);
        match self.transport.exchange(&ask, authorization).await {
            Ok(mut reply) => {
                let challenges = challenges(&reply);
                let accepted = reply.status() == StatusCode::OK;
                body::drain(&mut reply).await;
                Ok((accepted, challenges))
            }
            Err(error) if is_refusal(&error) => Ok((false, Vec::new())),
            Err(error) => Err(error),
        }
    }
}

fn challenges(reply: &UpstreamResponse) -> Vec<Challenge> {
    let lines = reply.headers().get_all(WWW_AUTHENTICATE).iter();
    challenge::parse(lines.filter_map(|line| line.to_str().ok()))
}

const fn is_refusal(error: &UpstreamError) -> bool {
    matches!(
        error.failure,
        Failure::Unauthorized(_) | Failure::Denied(_) | Failure::CredentialsRefused { .. }
    )
}
