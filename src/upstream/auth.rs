//! Answering challenges: which credentials a request goes out with.
//!
//! The first request for a repository goes out bare and is challenged; what the challenge asked
//! for is remembered, so that the next one carries its token at once. Only the upstream's own
//! challenges are answered, never those of a host that a redirect led to.

use std::sync::Arc;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use url::Url;

use super::challenge::{self, Challenge};
use super::error::{UpstreamError, Violation};
use super::reply::Reply;
use super::token::{Lease, MAX_ANSWER, Token, TokenRequest, Tokens};
use super::transport::{Ask, Transport};
use super::{Kind, body, redirect};
use crate::oci::RepoName;

/// Repositories whose way of authenticating is remembered.
const MAX_REPOSITORIES: usize = 4096;
/// Requests sent for one question: bare, with a kept token, with a renewed one.
const MAX_SENT: usize = 3;

/// How a repository wants to be asked.
#[derive(Debug, Clone)]
enum Scheme {
    Basic(HeaderValue),
    Bearer(Arc<TokenRequest>),
}

/// What a request is sent with.
#[derive(Debug)]
struct Ticket {
    header: HeaderValue,
    /// Nothing newer can be had: refused now, it is refused for good.
    last: bool,
}

#[derive(Debug)]
pub(super) struct Auth {
    /// The header of Basic credentials.
    credentials: Option<HeaderValue>,
    schemes: Cache<RepoName, Scheme>,
    tokens: Tokens,
}

impl Auth {
    pub(super) fn new(credentials: Option<HeaderValue>) -> Self {
        Self {
            credentials,
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
        ask: &Ask,
    ) -> Result<Reply, UpstreamError> {
        let result = self.converse(transport, repo, ask).await;
        if matches!(result, Err(UpstreamError::Unauthorized { .. })) {
            // What was remembered may be what is wrong: learn anew next time.
            self.schemes.remove(repo);
        }
        result
    }

    async fn converse(
        &self,
        transport: &Transport,
        repo: &RepoName,
        ask: &Ask,
    ) -> Result<Reply, UpstreamError> {
        let mut ticket = self.remembered(transport, repo).await?;
        let mut sent = 0;
        loop {
            let header = ticket.as_ref().map(|ticket| &ticket.header);
            let reply = transport.exchange(ask, header).await?;
            if !reply.is_challenge() {
                return Ok(reply);
            }
            sent += 1;
            let is_final = ticket.as_ref().is_some_and(|ticket| ticket.last);
            if is_final || sent == MAX_SENT {
                return Err(transport.unauthorized(reply).await);
            }
            let scheme = self.answerable(&reply, &ask.url, repo, transport.insecure)?;
            let Some(scheme) = scheme else {
                return Err(transport.unauthorized(reply).await);
            };
            body::drain(&mut { reply }).await;
            ticket = Some(self.ticket(transport, &scheme, header).await?);
            self.schemes.insert(repo.clone(), scheme);
        }
    }

    async fn remembered(
        &self,
        transport: &Transport,
        repo: &RepoName,
    ) -> Result<Option<Ticket>, UpstreamError> {
        let Some(scheme) = self.schemes.get(repo) else {
            return Ok(None);
        };
        let ticket = self.ticket(transport, &scheme, None).await;
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
    ) -> Result<Ticket, UpstreamError> {
        match scheme {
            Scheme::Basic(header) => Ok(Ticket {
                header: header.clone(),
                last: true,
            }),
            Scheme::Bearer(request) => {
                let ask = || self.request_token(transport, request);
                let Lease { token, fresh } = self.tokens.get(request, rejected, ask).await?;
                Ok(Ticket {
                    header: token.header,
                    last: fresh,
                })
            }
        }
    }

    async fn request_token(
        &self,
        transport: &Transport,
        request: &TokenRequest,
    ) -> Result<Token, UpstreamError> {
        let ask = Ask::new(Kind::Token, Method::GET, request.url());
        let asked_at = transport.clock.now();
        let reply = transport.exchange(&ask, self.credentials.as_ref()).await?;
        let body = body::read(reply, MAX_ANSWER, transport.timeouts.header).await?;
        Token::parse(&body, asked_at)
            .ok_or_else(|| UpstreamError::protocol(&ask.url, Violation::Token))
    }

    /// The challenge that will be answered: Bearer before Basic, and Basic only with credentials.
    fn answerable(
        &self,
        reply: &Reply,
        upstream: &Url,
        repo: &RepoName,
        insecure: bool,
    ) -> Result<Option<Scheme>, UpstreamError> {
        let challenges = challenges(reply.headers());
        for challenge in &challenges {
            if let Challenge::Bearer {
                realm,
                service,
                scope,
            } = challenge
            {
                let realm = check_realm(upstream, realm, insecure)
                    .map_err(|error| reply.violates(Violation::Realm(error)))?;
                let scope = scope.clone();
                return Ok(Some(Scheme::Bearer(Arc::new(TokenRequest {
                    realm,
                    service: service.clone(),
                    scope: scope.unwrap_or_else(|| format!("repository:{repo}:pull")),
                }))));
            }
        }
        let header = self.credentials.clone();
        let header = header.filter(|_| challenges.contains(&Challenge::Basic));
        Ok(header.map(Scheme::Basic))
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
    insecure: bool,
) -> Result<Url, redirect::RedirectError> {
    let mut url = Url::parse(realm).map_err(|_relative| redirect::RedirectError::Scheme)?;
    redirect::check(upstream, &url, insecure)?;
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
