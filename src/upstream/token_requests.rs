//! Asking the token service of an upstream for tokens, with the account of a repository.
//!
//! The operator's credentials go to the token service only if `realm` names it or it belongs to the
//! upstream's site; any other token service is asked anonymously.

use std::sync::Arc;

use http::Method;
use http::header::HeaderValue;
use secrecy::ExposeSecret as _;
use url::Url;

use super::account::{Account, Secret};
use super::credential_error::CredentialError;
use super::endpoint::Endpoint;
use super::error::{Failure, ShownUrl, UpstreamError, Violation};
use super::limits::Limits;
use super::token::{MAX_ANSWER, Token, TokenGrant, TokenKey, TokenRequest};
use super::transport::UpstreamRequest;
use super::{body, redirect, site};
use crate::config::is_loopback;
use crate::metrics::{Kind, TokenFetch};
use crate::oci::RepoName;

impl Endpoint {
    /// A valid token of a helper's account, for which the helper isn't run. `even_if_over`: also if the
    /// account's lifetime is over.
    pub(super) async fn kept_token(
        &self,
        repo: &RepoName,
        request: &Arc<TokenRequest>,
        rejected: Option<&HeaderValue>,
        even_if_over: bool,
    ) -> Option<Token> {
        let account = self.auth.accounts.kept(repo, even_if_over).await?;
        let key = TokenKey {
            request: Arc::clone(request),
            account: Some(account),
        };
        self.auth.tokens.kept(&key, rejected)
    }

    pub(super) async fn token(
        &self,
        repo: &RepoName,
        request: &Arc<TokenRequest>,
        rejected: Option<&HeaderValue>,
    ) -> Result<TokenGrant, UpstreamError> {
        let account = if self.trusts(&request.realm) {
            self.account(repo, None).await?
        } else {
            if self.auth.accounts.has(repo) {
                self.warn_withheld(&request.realm);
            }
            None
        };
        let key = TokenKey {
            request: Arc::clone(request),
            account: account.as_ref().map(|account| account.id),
        };
        let ask = || self.request_token(repo, request, account);
        self.auth.tokens.get(&key, rejected, ask).await
    }

    /// Asks for a token: once more, when the credentials were refused and have changed.
    async fn request_token(
        &self,
        repo: &RepoName,
        request: &TokenRequest,
        account: Option<Arc<Account>>,
    ) -> Result<Token, UpstreamError> {
        let limits = self.auth.limits(repo);
        let result = self.fetch_token(limits, request, account.as_deref()).await;
        let refused = result.as_ref().err().is_some_and(|error| {
            matches!(
                error.failure,
                Failure::CredentialsRefused {
                    status: 400 | 401,
                    ..
                }
            )
        });
        let Some(id) = account.map(|account| account.id).filter(|_| refused) else {
            return result;
        };
        match self.account(repo, Some(id)).await? {
            Some(renewed) if renewed.id != id => {
                self.fetch_token(limits, request, Some(&renewed)).await
            }
            _ => result,
        }
    }

    /// Asks the token service, and counts the result.
    async fn fetch_token(
        &self,
        limits: &Limits,
        request: &TokenRequest,
        account: Option<&Account>,
    ) -> Result<Token, UpstreamError> {
        let result = self.send_token_request(limits, request, account).await;
        let counted = match &result {
            Ok(_) => TokenFetch::Granted,
            Err(error) if error.is_transient() => TokenFetch::Failed,
            Err(error) if error.status().is_some() => TokenFetch::Refused,
            Err(_) => TokenFetch::Failed,
        };
        self.transport.metrics.token(counted);
        result
    }

    pub(super) async fn send_token_request(
        &self,
        limits: &Limits,
        request: &TokenRequest,
        account: Option<&Account>,
    ) -> Result<Token, UpstreamError> {
        if account.is_some() && self.exposes(&request.realm) {
            let error = Failure::NoCredentials(CredentialError::Exposed);
            return Err(UpstreamError::new(&request.realm, error));
        }
        let get = || UpstreamRequest::new(Kind::Token, Method::GET, request.url());
        let (ask, header) = match account.map(|account| &account.secret) {
            None => (get(), None),
            Some(Secret::Basic(header)) => (get(), Some(header)),
            Some(Secret::Refresh(token)) => {
                let post = UpstreamRequest::new(Kind::Token, Method::POST, request.realm.clone());
                let form = request.refresh_form(token.expose_secret());
                (post.with_form(form), None)
            }
        };
        let transport = &self.transport;
        let asked_at = transport.clock.now();
        let reply = self.exchange(limits, &ask, header).await;
        let reply = reply.map_err(|error| {
            let error = error.since(asked_at);
            match account {
                Some(_) if header.is_none() => refresh_refused(error),
                Some(_) if self.caller.is_none() => credentials_refused(error),
                // It is the answer for the caller, whose credentials these are.
                _ => error,
            }
        })?;
        let body = body::read(reply, MAX_ANSWER, transport.timeouts.header).await?;
        let unusable = || UpstreamError::protocol(&ask.url, Violation::Token);
        Token::parse(&body, asked_at).ok_or_else(|| transport.failed(unusable()))
    }

    /// Whether a token service may be given the credentials: the operator named it or it belongs to
    /// the upstream, and nobody on the way can read them unless the operator permits that.
    pub(super) fn trusts(&self, realm: &Url) -> bool {
        let named = self.config.realm.as_ref();
        let known = named.is_some_and(|named| redirect::same_origin(named, realm))
            || site::same_site(realm, &self.config.url);
        known && (realm.scheme() == "https" || is_loopback(realm) || self.config.plain_http)
    }

    /// Says why private repositories can't be read, at most once a minute.
    fn warn_withheld(&self, realm: &Url) {
        let failures = &self.transport.failures;
        if failures.admit("credentials_withheld").is_none() {
            return;
        }
        let realm = ShownUrl::from(realm);
        tracing::warn!(
            upstream = self.name(),
            %realm,
            "the token service is not on the upstream's site, so it is asked without the configured \
             credentials; to send them there, add `realm: {realm}` to the upstream"
        );
    }
}

/// The error of a request that carried the credentials.
pub(super) fn credentials_refused(error: UpstreamError) -> UpstreamError {
    let failure = match error.failure {
        Failure::Unauthorized(message) => Failure::CredentialsRefused {
            status: 401,
            message,
        },
        Failure::Denied(message) => Failure::CredentialsRefused {
            status: 403,
            message,
        },
        failure => failure,
    };
    UpstreamError { failure, ..error }
}

/// The error of a request that carried a refresh token, which is refused with a 400 (RFC
/// 6749, section 5.2).
fn refresh_refused(error: UpstreamError) -> UpstreamError {
    match error.failure {
        Failure::Unexpected(400) => {
            let failure = Failure::CredentialsRefused {
                status: 400,
                message: None,
            };
            UpstreamError { failure, ..error }
        }
        _ => credentials_refused(error),
    }
}
