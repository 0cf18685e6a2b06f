//! Answering challenges: which credentials a request goes out with.
//!
//! The first request for a repository goes out bare and is challenged; what the challenge asked
//! for is remembered, so that the next one carries its token at once. Only the upstream's own
//! challenges are answered, never those of a host that a redirect led to.
//!
//! A token is asked for (`token_requests`) with the scope that `scope` chooses.
//!
//! Credentials are looked for only when a challenge asks for them. Those that are refused are renewed
//! at once (`accounts`): when that gives others, the request is sent once more.

use std::sync::Arc;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use url::Url;

use super::account::{Account, AccountId, Secret};
use super::challenge::{self, Challenge};
use super::credential_error::CredentialError;
use super::credentials::Scheme;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError, Violation};
use super::peer::Asker;
use super::redirect::RedirectError;
use super::reply::UpstreamResponse;
use super::scope::scopes;
use super::token::{TokenGrant, TokenRequest};
use super::token_requests::credentials_refused;
use super::transport::UpstreamRequest;
use super::{body, redirect};
use crate::error_chain::on_one_line;
use crate::oci::RepoName;

/// Requests sent for one question: bare, with a kept token, with a renewed one, and with one for
/// the challenge's scope.
const MAX_SENT: usize = 4;

/// What a request is sent with.
struct Authorization {
    header: HeaderValue,
    scheme: Scheme,
    /// Whose header it is, with Basic.
    account: Option<AccountId>,
    /// Nothing newer can be had: refused now, it is refused for good.
    last: bool,
}

impl Endpoint {
    /// Asks a question about a repository, authenticating as the upstream demands. Returns a
    /// success, or the error.
    pub(super) async fn ask(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let asked_at = self.transport.clock.now();
        if let Some(peer) = &self.peer {
            let asker = Asker {
                upstream: self.name(),
                login: self.login.as_ref(),
                transport: &self.transport,
            };
            return Box::pin(peer.ask(&asker, ask))
                .await
                .map_err(|error| error.since(asked_at));
        }
        let reply = if self.others.is_empty() || self.auth.accounts.position(repo) > 0 {
            self.ask_authenticated(repo, ask).await
        } else {
            Box::pin(self.ask_with_accounts(repo, ask)).await
        };
        reply.map_err(|error| error.since(asked_at))
    }

    pub(super) async fn ask_authenticated(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut authorization = match self.auth.schemes.get(repo) {
            Some(scheme) => self.authorize(repo, scheme, None).await?,
            None => None,
        };
        let mut sent = 0;
        loop {
            let header = authorization.as_ref().map(|sent| &sent.header);
            let limits = self.auth.limits(repo);
            let reply = self.exchange(limits, ask, header).await?;
            if !reply.is_challenge() {
                if let Some(authorization) = authorization.filter(|_| sent > 0) {
                    let schemes = &self.auth.schemes;
                    schemes.insert(repo.clone(), authorization.scheme);
                }
                return Ok(reply);
            }
            sent += 1;
            let schemes = self.schemes(&reply, repo).await?;
            let tried = authorization
                .as_ref()
                .map_or(0, |sent| sent.tried(&schemes));
            let mut untried = schemes.into_iter().skip(tried);
            let Some(scheme) = untried.next().filter(|_| sent < MAX_SENT) else {
                let renewed = self.renewed(repo, authorization.as_ref()).await?;
                if let Some(renewed) = renewed.filter(|_| sent < MAX_SENT) {
                    body::drain(&mut { reply }).await;
                    authorization = Some(renewed);
                    continue;
                }
                // What was remembered may be what is wrong: learn anew next time.
                self.auth.schemes.remove(repo);
                let refused = authorization.map(|authorization| authorization.scheme);
                let error = self.transport.refusal(reply).await;
                return Err(match refused {
                    Some(Scheme::Basic) if self.caller.is_none() => credentials_refused(error),
                    _ => error,
                });
            };
            body::drain(&mut { reply }).await;
            let next = self.authorize(repo, scheme, header).await;
            authorization = match (next, untried.next()) {
                (Err(error), Some(wider)) if refuses_scope(&error) => {
                    self.authorize(repo, wider, header).await?
                }
                (next, _) => next?,
            };
        }
    }

    /// What requests for a repository have last been authorized with, renewed if it is about to expire;
    /// nothing if none was challenged.
    pub(super) async fn known_authorization(
        &self,
        repo: &RepoName,
    ) -> Result<Option<HeaderValue>, UpstreamError> {
        let Some(scheme) = self.auth.schemes.get(repo) else {
            return Ok(None);
        };
        let authorization = self.authorize(repo, scheme, None).await?;
        Ok(authorization.map(|authorization| authorization.header))
    }

    /// What a request goes out with; nothing where credentials are missing that aren't required.
    /// `rejected` is the header that was just refused: it isn't given again.
    async fn authorize(
        &self,
        repo: &RepoName,
        scheme: Scheme,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<Authorization>, UpstreamError> {
        let Scheme::Bearer(request) = &scheme else {
            let account = self.account(repo, None).await?;
            return account.map(|account| self.basic(&account)).transpose();
        };
        let kept = |token| TokenGrant {
            token,
            fresh: false,
        };
        let grant = match self.kept_token(repo, request, rejected, false).await {
            Some(token) => Ok(kept(token)),
            None => match self.token(repo, request, rejected).await {
                // A helper that fails takes away no token that is valid.
                Err(error) if matches!(error.failure, Failure::NoCredentials(_)) => {
                    let token = self.kept_token(repo, request, rejected, true).await;
                    token.map(kept).ok_or(error)
                }
                grant => grant,
            },
        };
        let TokenGrant { token, fresh } = grant.inspect_err(|_| {
            // The token service may have moved; only a new challenge can tell.
            self.auth.schemes.remove(repo);
        })?;
        Ok(Some(Authorization {
            header: token.header,
            scheme,
            account: None,
            last: fresh,
        }))
    }

    fn basic(&self, account: &Account) -> Result<Authorization, UpstreamError> {
        let Secret::Basic(header) = &account.secret else {
            let error = Failure::NoCredentials(CredentialError::IdentityToken);
            return Err(UpstreamError::new(&self.config.url, error));
        };
        Ok(Authorization {
            header: header.clone(),
            scheme: Scheme::Basic,
            account: Some(account.id),
            last: true,
        })
    }

    /// The authorization in place of Basic credentials that were refused, if they have changed.
    async fn renewed(
        &self,
        repo: &RepoName,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, UpstreamError> {
        let Some(id) = refused.and_then(|refused| refused.account) else {
            return Ok(None);
        };
        let account = self.account(repo, Some(id)).await?;
        let account = account.filter(|account| account.id != id);
        account.map(|account| self.basic(&account)).transpose()
    }

    /// The configured account for a repository; another one than `rejected` if it has changed. An
    /// error if there is none although one is configured and required.
    pub(super) async fn account(
        &self,
        repo: &RepoName,
        rejected: Option<AccountId>,
    ) -> Result<Option<Arc<Account>>, UpstreamError> {
        let (accounts, url) = (&self.auth.accounts, &self.config.url);
        let account = if accounts.has(repo) && self.exposes(url) {
            Err(CredentialError::Exposed)
        } else {
            accounts.get(repo, rejected).await
        };
        match account {
            Err(error) if !self.config.credentials_required && self.caller.is_none() => {
                if self.transport.failures.admit("no_credentials").is_some() {
                    tracing::warn!(
                        upstream = self.name(),
                        error = %on_one_line(&error),
                        "there are no credentials, so the upstream is asked without"
                    );
                }
                Ok(None)
            }
            account => {
                account.map_err(|error| UpstreamError::new(url, Failure::NoCredentials(error)))
            }
        }
    }

    /// Whether credentials that are sent to `url` could be read on the way by a proxy, which the
    /// operator hasn't permitted.
    pub(super) fn exposes(&self, url: &Url) -> bool {
        !self.config.plain_http && self.transport.guard.exposes(url)
    }

    /// What a challenge may be answered with, each when the one before it was refused: Bearer before
    /// Basic, and Basic only with credentials.
    async fn schemes(
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
        if !challenges.contains(&Challenge::Basic) {
            return Ok(Vec::new());
        }
        let account = self.account(repo, None).await?;
        Ok(account.map(|_| Scheme::Basic).into_iter().collect())
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

/// A realm is an absolute URL, and as safe as the upstream that named it.
pub(super) fn check_realm(
    upstream: &Url,
    realm: &str,
    plain_http: bool,
) -> Result<Url, RedirectError> {
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
