//! Answering challenges: which credentials a request goes out with.
//!
//! The first request for a repository goes out bare and is challenged; what the challenge asked
//! for is remembered, so that the next one carries its token at once. Only the upstream's own
//! challenges are answered, never those of a host that a redirect led to.
//!
//! A token is asked for with the scope that `scope` chooses. The operator's credentials go to the
//! token service only if `realm` names it or it belongs to the upstream's site; any other token
//! service is asked anonymously.

use std::sync::Arc;

use http::Method;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use url::Url;

use super::challenge::{self, Challenge};
use super::credentials::Scheme;
use super::error::{Failure, ShownUrl, UpstreamError, Violation};
use super::redirect::RedirectError;
use super::reply::UpstreamResponse;
use super::scope::scopes;
use super::token::{MAX_ANSWER, Token, TokenGrant, TokenRequest};
use super::transport::UpstreamRequest;
use super::{Upstream, body, redirect, site};
use crate::config::is_loopback;
use crate::metrics::Kind;
use crate::oci::RepoName;

/// Requests sent for one question: bare, with a kept token, with a renewed one, and with one for
/// the challenge's scope.
const MAX_SENT: usize = 4;

/// What a request is sent with.
struct Authorization {
    header: HeaderValue,
    scheme: Scheme,
    /// Nothing newer can be had: refused now, it is refused for good.
    last: bool,
}

impl Upstream {
    /// Asks a question about a repository, authenticating as the upstream demands. Returns a
    /// success, or the error.
    pub(super) async fn ask(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut authorization = match self.auth.schemes.get(repo) {
            Some(scheme) => Some(self.authorize(repo, scheme, None).await?),
            None => None,
        };
        let mut sent = 0;
        loop {
            let header = authorization.as_ref().map(|sent| &sent.header);
            let reply = self.transport.exchange(ask, header).await?;
            if !reply.is_challenge() {
                if let Some(authorization) = authorization.filter(|_| sent > 0) {
                    let schemes = &self.auth.schemes;
                    schemes.insert(repo.clone(), authorization.scheme);
                }
                return Ok(reply);
            }
            sent += 1;
            let schemes = self.schemes(&reply, repo)?;
            let tried = authorization
                .as_ref()
                .map_or(0, |sent| sent.tried(&schemes));
            let mut untried = schemes.into_iter().skip(tried);
            let Some(scheme) = untried.next().filter(|_| sent < MAX_SENT) else {
                // What was remembered may be what is wrong: learn anew next time.
                self.auth.schemes.remove(repo);
                let refused = authorization.map(|authorization| authorization.scheme);
                let error = self.transport.refusal(reply).await;
                return Err(match refused {
                    Some(Scheme::Basic(_)) if self.account.is_none() => credentials_refused(error),
                    _ => error,
                });
            };
            body::drain(&mut { reply }).await;
            let next = self.authorize(repo, scheme, header).await;
            authorization = Some(match (next, untried.next()) {
                (Err(error), Some(wider)) if refuses_scope(&error) => {
                    self.authorize(repo, wider, header).await?
                }
                (next, _) => next?,
            });
        }
    }

    /// `rejected` is the header that was just refused: it isn't given again.
    async fn authorize(
        &self,
        repo: &RepoName,
        scheme: Scheme,
        rejected: Option<&HeaderValue>,
    ) -> Result<Authorization, UpstreamError> {
        let (header, last) = match &scheme {
            Scheme::Basic(header) => (header.clone(), true),
            Scheme::Bearer(request) => {
                let ask = || self.request_token(request);
                let grant = self.auth.tokens.get(request, rejected, ask).await;
                let TokenGrant { token, fresh } = grant.inspect_err(|_| {
                    // The token service may have moved; only a new challenge can tell.
                    self.auth.schemes.remove(repo);
                })?;
                (token.header, fresh)
            }
        };
        Ok(Authorization {
            header,
            scheme,
            last,
        })
    }

    async fn request_token(&self, request: &TokenRequest) -> Result<Token, UpstreamError> {
        let transport = &self.transport;
        let ask = UpstreamRequest::new(Kind::Token, Method::GET, request.url());
        let trusted = self.trusts(&request.realm);
        let credentials = self.auth.credentials.as_ref();
        if credentials.is_some() && !trusted {
            self.warn_withheld(&request.realm);
        }
        let credentials = credentials.filter(|_| trusted);
        let asked_at = transport.clock.now();
        let reply = transport.exchange(&ask, credentials).await;
        let reply = reply.map_err(|error| match credentials {
            Some(_) if self.account.is_none() => credentials_refused(error),
            // It is the answer for the caller, whose credentials these are.
            _ => error,
        })?;
        let body = body::read(reply, MAX_ANSWER, transport.timeouts.header).await?;
        Token::parse(&body, asked_at)
            .ok_or_else(|| UpstreamError::protocol(&ask.url, Violation::Token))
    }

    /// Whether a token service may be given the credentials: the operator named it or it belongs to
    /// the upstream, and nobody on the way can read them unless the operator permits that.
    fn trusts(&self, realm: &Url) -> bool {
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

    /// What a challenge may be answered with, each when the one before it was refused: Bearer before
    /// Basic, and Basic only with credentials.
    fn schemes(
        &self,
        reply: &UpstreamResponse,
        repo: &RepoName,
    ) -> Result<Vec<Scheme>, UpstreamError> {
        let lines = reply.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges = challenge::parse(lines.filter_map(|line| line.to_str().ok()));
        for challenge in &challenges {
            if let Challenge::Bearer {
                realm,
                service,
                scope,
            } = challenge
            {
                let realm = check_realm(&self.config.url, realm, self.config.plain_http)
                    .map_err(|error| reply.violates(Violation::Realm(error)))?;
                let request = |scope| {
                    Scheme::Bearer(Arc::new(TokenRequest {
                        realm: realm.clone(),
                        service: service.clone(),
                        scope,
                    }))
                };
                let scopes = scopes(repo, self.config.scope.as_deref(), scope.as_deref());
                return Ok(scopes.into_iter().map(request).collect());
            }
        }
        let header = self.auth.credentials.clone();
        let header = header.filter(|_| challenges.contains(&Challenge::Basic));
        Ok(header.into_iter().map(Scheme::Basic).collect())
    }
}

impl Authorization {
    /// How many of a challenge's schemes have been tried in vain, when this was refused with it.
    fn tried(&self, schemes: &[Scheme]) -> usize {
        let at = schemes.iter().position(|scheme| *scheme == self.scheme);
        at.map_or(0, |at| at + usize::from(self.last))
    }
}

/// Whether a token service's answer may be about the scope that was asked for.
const fn refuses_scope(error: &UpstreamError) -> bool {
    matches!(
        error.failure,
        Failure::Unauthorized(_)
            | Failure::CredentialsRefused { .. }
            | Failure::Denied(_)
            | Failure::Unexpected(400 | 404)
    )
}

/// The error of a request that carried the credentials.
fn credentials_refused(UpstreamError { url, failure }: UpstreamError) -> UpstreamError {
    let failure = match failure {
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
    UpstreamError { url, failure }
}

/// A realm is an absolute URL, and as safe as the upstream that named it.
fn check_realm(upstream: &Url, realm: &str, plain_http: bool) -> Result<Url, RedirectError> {
    let url = Url::parse(realm).map_err(|_relative| RedirectError::Scheme)?;
    redirect::checked(upstream, url, plain_http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_is_absolute_and_no_less_safe_than_its_upstream() {
        let upstream = Url::parse("https://registry.example").unwrap();
        let check = |realm| check_realm(&upstream, realm, false).map(String::from);
        let safe = check("https://auth.example/token?a=b#c");
        assert_eq!(safe.as_deref(), Ok("https://auth.example/token?a=b"));
        for (realm, error) in [
            ("http://auth.example/token", RedirectError::Downgrade),
            ("/token", RedirectError::Scheme),
            ("Registry Realm", RedirectError::Scheme),
            ("https://u:p@auth.example/", RedirectError::UserInfo),
        ] {
            assert_eq!(check(realm), Err(error), "{realm}");
        }
        assert!(check_realm(&upstream, "http://auth.example/token", true).is_ok());
    }
}
