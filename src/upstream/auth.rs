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

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use url::Url;

use super::challenge::{self, Challenge};
use super::error::{UpstreamError, Violation};
use super::reply::UpstreamResponse;
use super::scope::Scopes;
use super::token::{MAX_ANSWER, Token, TokenGrant, TokenRequest, Tokens};
use super::transport::{Transport, UpstreamRequest};
use super::{ShownUrl, UpstreamSettings, body, redirect, site};
use crate::config::is_loopback;
use crate::metrics::Kind;
use crate::oci::RepoName;

/// Repositories whose way of authenticating is remembered.
const MAX_REPOSITORIES: usize = 4096;
/// Requests sent for one question: bare, with a kept token, with a renewed one, and with one for
/// the challenge's scope.
const MAX_SENT: usize = 4;

/// How requests for a repository are authorized.
#[derive(Debug, Clone)]
enum Scheme {
    Basic(HeaderValue),
    Bearer(Arc<TokenRequest>),
}

/// What a request is sent with.
#[derive(Debug)]
struct Authorization {
    header: HeaderValue,
    scheme: Scheme,
    /// Nothing newer can be had: refused now, it is refused for good.
    last: bool,
}

/// What a challenge may be answered with.
enum Answer {
    Basic(HeaderValue),
    Bearer {
        narrow: Arc<TokenRequest>,
        /// For when the narrow one is refused.
        wider: Option<Arc<TokenRequest>>,
    },
}

#[derive(Debug)]
pub(super) struct Auth {
    /// The header of Basic credentials.
    credentials: Option<HeaderValue>,
    /// A token service that is given the credentials whatever its host is.
    realm: Option<Url>,
    /// The scope of all tokens, in which `{name}` stands for the repository's name.
    scope: Option<String>,
    schemes: Cache<RepoName, Scheme>,
    tokens: Tokens,
}

impl Auth {
    pub(super) fn new(settings: &UpstreamSettings, credentials: Option<HeaderValue>) -> Self {
        Self {
            credentials,
            realm: settings.realm.clone(),
            scope: settings.scope.clone(),
            schemes: Cache::new(MAX_REPOSITORIES),
            tokens: Tokens::new(),
        }
    }

    /// Asks a question about a repository, authenticating as the upstream demands. Returns a
    /// success, or the error.
    pub(super) async fn ask(
        &self,
        transport: &Transport,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let result = self.converse(transport, repo, ask).await;
        if matches!(
            result,
            Err(UpstreamError::Unauthorized { .. } | UpstreamError::CredentialsRefused { .. })
        ) {
            // What was remembered may be what is wrong: learn anew next time.
            self.schemes.remove(repo);
        }
        result
    }

    async fn converse(
        &self,
        transport: &Transport,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut ticket = self.remembered(transport, repo, &ask.url).await?;
        let mut sent = 0;
        loop {
            let header = ticket.as_ref().map(|ticket| &ticket.header);
            let reply = transport.exchange(ask, header).await?;
            if !reply.is_challenge() {
                if let Some(ticket) = ticket.filter(|_| sent > 0) {
                    self.schemes.insert(repo.clone(), ticket.scheme);
                }
                return Ok(reply);
            }
            sent += 1;
            let answer = self.answerable(&reply, &ask.url, repo, transport)?;
            let scheme = answer.and_then(|answer| next_scheme(ticket.as_ref(), &answer));
            let Some((scheme, wider)) = scheme.filter(|_| sent < MAX_SENT) else {
                let refused = matches!(ticket.map(|ticket| ticket.scheme), Some(Scheme::Basic(_)));
                let error = transport.refusal(reply).await;
                return Err(if refused {
                    credentials_refused(error)
                } else {
                    error
                });
            };
            body::drain(&mut { reply }).await;
            let next = self.ticket(transport, &scheme, header, &ask.url).await;
            ticket = Some(match (next, wider) {
                (Err(error), Some(wider)) if refuses_scope(&error) => {
                    let wider = Scheme::Bearer(wider);
                    self.ticket(transport, &wider, header, &ask.url).await?
                }
                (next, _) => next?,
            });
        }
    }

    async fn remembered(
        &self,
        transport: &Transport,
        repo: &RepoName,
        upstream: &Url,
    ) -> Result<Option<Authorization>, UpstreamError> {
        let Some(scheme) = self.schemes.get(repo) else {
            return Ok(None);
        };
        let ticket = self.ticket(transport, &scheme, None, upstream).await;
        if ticket.is_err() {
            // The token service may have moved; only a new challenge can tell.
            self.schemes.remove(repo);
        }
        ticket.map(Some)
    }

    /// `rejected` is the header that was just refused: it isn't given again.
    async fn ticket(
        &self,
        transport: &Transport,
        scheme: &Scheme,
        rejected: Option<&HeaderValue>,
        upstream: &Url,
    ) -> Result<Authorization, UpstreamError> {
        let (header, last) = match scheme {
            Scheme::Basic(header) => (header.clone(), true),
            Scheme::Bearer(request) => {
                let ask = || self.request_token(transport, request, upstream);
                let TokenGrant { token, fresh } = self.tokens.get(request, rejected, ask).await?;
                (token.header, fresh)
            }
        };
        Ok(Authorization {
            header,
            scheme: scheme.clone(),
            last,
        })
    }

    async fn request_token(
        &self,
        transport: &Transport,
        request: &TokenRequest,
        upstream: &Url,
    ) -> Result<Token, UpstreamError> {
        let ask = UpstreamRequest::new(Kind::Token, Method::GET, request.url());
        let credentials = self.credentials.as_ref();
        let trusted = self.trusts(&request.realm, upstream, transport.plain_http);
        if credentials.is_some() && !trusted {
            warn_withheld(transport, &request.realm);
        }
        let credentials = credentials.filter(|_| trusted);
        let asked_at = transport.clock.now();
        let reply = transport.exchange(&ask, credentials).await;
        let reply = reply.map_err(|error| match credentials {
            Some(_) => credentials_refused(error),
            None => error,
        })?;
        let body = body::read(reply, MAX_ANSWER, transport.timeouts.header).await?;
        Token::parse(&body, asked_at)
            .ok_or_else(|| UpstreamError::protocol(&ask.url, Violation::Token))
    }

    /// Whether a token service may be given the credentials: the operator named it or it belongs to
    /// the upstream, and nobody on the way can read them unless the operator permits that.
    fn trusts(&self, realm: &Url, upstream: &Url, plain_http: bool) -> bool {
        let named = self.realm.as_ref();
        let known = named.is_some_and(|named| redirect::same_origin(named, realm))
            || site::same_site(realm, upstream);
        known && (realm.scheme() == "https" || is_loopback(realm) || plain_http)
    }

    /// How a challenge will be answered: Bearer before Basic, and Basic only with credentials.
    fn answerable(
        &self,
        reply: &UpstreamResponse,
        upstream: &Url,
        repo: &RepoName,
        transport: &Transport,
    ) -> Result<Option<Answer>, UpstreamError> {
        let challenges = challenges(reply.headers());
        for challenge in &challenges {
            if let Challenge::Bearer {
                realm,
                service,
                scope,
            } = challenge
            {
                let realm = check_realm(upstream, realm, transport.plain_http)
                    .map_err(|error| reply.violates(Violation::Realm(error)))?;
                let scopes = match &self.scope {
                    Some(template) => Scopes::configured(template, repo),
                    None => Scopes::of(repo, scope.as_deref()),
                };
                let request = |scope| {
                    Arc::new(TokenRequest {
                        realm: realm.clone(),
                        service: service.clone(),
                        scope,
                    })
                };
                return Ok(Some(Answer::Bearer {
                    narrow: request(scopes.narrow),
                    wider: scopes.wider.map(request),
                }));
            }
        }
        let header = self.credentials.clone();
        let header = header.filter(|_| challenges.contains(&Challenge::Basic));
        Ok(header.map(Answer::Basic))
    }
}

/// Says why private repositories can't be read, at most once a minute.
fn warn_withheld(transport: &Transport, realm: &Url) {
    if transport.failures.admit("credentials_withheld").is_none() {
        return;
    }
    let realm = ShownUrl::from(realm);
    tracing::warn!(
        upstream = %transport.name,
        %realm,
        "the token service is not on the upstream's site, so it is asked without the configured \
         credentials; to send them there, add `realm: {realm}` to the upstream"
    );
}

/// What to try after `refused` was answered with a challenge, and the token request to make if the
/// token service refuses that. None when everything has been tried.
fn next_scheme(
    refused: Option<&Authorization>,
    answer: &Answer,
) -> Option<(Scheme, Option<Arc<TokenRequest>>)> {
    let tried = refused.map(|ticket| (&ticket.scheme, ticket.last));
    match (answer, tried) {
        (Answer::Basic(_), Some((Scheme::Basic(_), _))) => None,
        (Answer::Basic(header), _) => Some((Scheme::Basic(header.clone()), None)),
        (Answer::Bearer { narrow, wider }, Some((Scheme::Bearer(request), last))) => {
            if wider.as_ref() == Some(request) {
                return (!last).then(|| (Scheme::Bearer(Arc::clone(request)), None));
            }
            if last && narrow == request {
                let wider = wider.as_ref()?;
                return Some((Scheme::Bearer(Arc::clone(wider)), None));
            }
            Some((Scheme::Bearer(Arc::clone(narrow)), wider.clone()))
        }
        (Answer::Bearer { narrow, wider }, _) => {
            Some((Scheme::Bearer(Arc::clone(narrow)), wider.clone()))
        }
    }
}

/// Whether a token service's answer may be about the scope that was asked for.
fn refuses_scope(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Unauthorized { .. }
        | UpstreamError::CredentialsRefused { .. }
        | UpstreamError::Denied { .. } => true,
        error => matches!(error.unexpected_status(), Some(400 | 404)),
    }
}

/// The error of a request that carried the credentials.
fn credentials_refused(error: UpstreamError) -> UpstreamError {
    match error {
        UpstreamError::Unauthorized { url, message } => UpstreamError::CredentialsRefused {
            url,
            status: 401,
            message,
        },
        UpstreamError::Denied { url, message } => UpstreamError::CredentialsRefused {
            url,
            status: 403,
            message,
        },
        error => error,
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter();
    challenge::parse(lines.filter_map(|line| line.to_str().ok()))
}

/// A realm is an absolute URL, and as safe as the upstream that named it.
fn check_realm(
    upstream: &Url,
    realm: &str,
    plain_http: bool,
) -> Result<Url, redirect::RedirectError> {
    let mut url = Url::parse(realm).map_err(|_relative| redirect::RedirectError::Scheme)?;
    redirect::check(upstream, &url, plain_http)?;
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirect::RedirectError;

    #[test]
    fn a_realm_is_absolute_and_no_less_safe_than_its_upstream() {
        let upstream = Url::parse("https://registry.example").unwrap();
        let check = |realm| check_realm(&upstream, realm, false).map(String::from);
        assert_eq!(
            check("https://auth.example/token?a=b#c").as_deref(),
            Ok("https://auth.example/token?a=b")
        );
        assert_eq!(
            check("http://auth.example/token"),
            Err(RedirectError::Downgrade)
        );
        assert_eq!(check("/token"), Err(RedirectError::Scheme));
        assert_eq!(check("Registry Realm"), Err(RedirectError::Scheme));
        assert_eq!(
            check("https://u:p@auth.example/"),
            Err(RedirectError::UserInfo)
        );
        assert!(check_realm(&upstream, "http://auth.example/token", true).is_ok());
    }
}
