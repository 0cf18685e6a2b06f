//! The sources of identities, and the tokens that are made of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use http::HeaderValue;
use ipnet::IpNet;
use quick_cache::sync::Cache;

use super::authorization::{Authorization, Basic};
use super::caller::{Caller, Grants, User};
use super::error::{AuthError, AuthSetupError};
use super::external::External;
use super::htpasswd::{Htpasswd, Verdict};
use super::oidc::Issuers;
use super::seal::{Claims, SealedLogin, Sealer};
use super::service::{self, Grant, TokenRequest};
use super::throttle::{Attempt, Throttle};
use super::{AuthenticatorOptions, Presented, certificates};
use crate::clock::Clock;
use crate::config::CertificateUser;
use crate::metrics::{Authentication, Metrics};
use crate::upstream::Login;

/// Verified tokens that are remembered, so that a kept-alive connection costs one verification.
const MAX_TOKENS: usize = 16 * 1024;

/// Knows all users.
#[derive(Debug)]
pub(super) struct Users {
    htpasswd: Option<Htpasswd>,
    throttle: Arc<Throttle>,
    groups: BTreeMap<String, Vec<String>>,
    external: Option<External>,
    issuers: Issuers,
    certificates: Vec<CertificateUser>,
    networks: Vec<(Vec<IpNet>, Arc<User>)>,
    sealer: Sealer,
    token_ttl: Duration,
    logins: bool,
    /// What tokens say, by their hash.
    tokens: Cache<[u8; 32], Arc<Session>>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Who presented credentials.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub(super) user: Option<Arc<User>>,
    login: Option<Arc<Login>>,
    login_upstream: Option<Arc<str>>,
    granted: Option<Arc<Grants>>,
}

/// What a token says.
#[derive(Debug)]
struct Session {
    identity: Identity,
    /// Seconds since 1970.
    expires: u64,
}

/// What a user name and a password are.
enum Verified {
    /// With the time, in seconds since 1970, up to which that is so.
    Right(Identity, u64),
    /// The user has another password.
    Wrong,
    Unknown,
}

impl From<User> for Identity {
    fn from(user: User) -> Self {
        Self {
            user: Some(Arc::new(user)),
            ..Self::default()
        }
    }
}

impl Users {
    pub(super) const fn takes_logins(&self) -> bool {
        self.logins
    }

    /// Reads the files. Blocks.
    pub(super) fn open(options: AuthenticatorOptions) -> Result<Self, AuthSetupError> {
        let config = options.config;
        let sealer = match (&config.key, &options.key) {
            (Some(path), _) => Sealer::from_file(path)?,
            (None, Some(path)) => Sealer::from_own_file(path)?,
            (None, None) => Sealer::random()?,
        };
        let networks = config.networks.into_iter().map(|entry| {
            let (name, groups) = (entry.user, entry.groups);
            (entry.networks, Arc::new(User { name, groups }))
        });
        Ok(Self {
            htpasswd: config.htpasswd.as_deref().map(Htpasswd::open).transpose()?,
            throttle: Arc::default(),
            groups: config.groups,
            external: config.token.as_ref().map(External::open).transpose()?,
            issuers: Issuers::open(config.oidc)?,
            certificates: config.certificates,
            networks: networks.collect(),
            sealer,
            token_ttl: config.token_ttl,
            logins: options.logins,
            tokens: Cache::new(MAX_TOKENS),
            clock: options.clock,
            metrics: options.metrics,
        })
    }

    pub(super) fn external(&self) -> Option<&External> {
        self.external.as_ref()
    }

    pub(super) async fn identify(
        &self,
        presented: &Presented<'_>,
        address: Option<IpAddr>,
    ) -> Result<Caller, AuthError> {
        let identified = match Authorization::parse(presented.headers) {
            Ok(Authorization::None) => Ok(Identity::default()),
            Ok(Authorization::Bearer(token)) => match self.remembered(token) {
                Some(session) => Ok(session.identity.clone()),
                None => Box::pin(self.bearer(token)).await,
            },
            Ok(Authorization::Basic(basic)) => Box::pin(self.basic(&basic, address)).await,
            Err(error) => Err(error),
        };
        let mut identity = identified.inspect_err(|error| self.count_error(error))?;
        if identity.user.is_none() {
            identity.user = self.ambient(presented, address);
        }
        Ok(Caller {
            user: identity.user,
            address,
            login: identity.login,
            login_upstream: identity.login_upstream,
            granted: identity.granted,
        })
    }

    /// The user that the certificate or the address belongs to.
    fn ambient(&self, presented: &Presented<'_>, address: Option<IpAddr>) -> Option<Arc<User>> {
        self.certified(presented).or_else(|| {
            let address = address?;
            let mut networks = self.networks.iter();
            let found = networks.find(|(nets, _)| nets.iter().any(|net| net.contains(&address)));
            found.map(|(_, user)| {
                self.metrics.authenticated(Authentication::Network);
                Arc::clone(user)
            })
        })
    }

    fn certified(&self, presented: &Presented<'_>) -> Option<Arc<User>> {
        let user = certificates::user(presented.certificate?, &self.certificates)?;
        self.metrics.authenticated(Authentication::Certificate);
        Some(Arc::new(user))
    }

    /// The caller of an ordinary request with a password.
    async fn basic(&self, basic: &Basic, address: Option<IpAddr>) -> Result<Identity, AuthError> {
        match self.verify(basic, address, !self.logins).await? {
            Verified::Right(identity, _) => Ok(identity),
            Verified::Unknown if self.logins => {
                self.metrics.authenticated(Authentication::Login);
                let header = basic.header().ok_or(AuthError::Refused)?;
                Ok(Identity {
                    login: Some(Arc::new(Login::new(header))),
                    ..Identity::default()
                })
            }
            Verified::Wrong | Verified::Unknown => Err(AuthError::Refused),
        }
    }

    /// Verifies a password, or an identity token in its place. A wrong password of a known user counts
    /// as an attempt to guess it; that of an unknown user does if `count_unknown`.
    async fn verify(
        &self,
        basic: &Basic,
        address: Option<IpAddr>,
        count_unknown: bool,
    ) -> Result<Verified, AuthError> {
        if let Some(session) = self.identity_token(basic.password()).await? {
            return Ok(Verified::Right(session.identity.clone(), session.expires));
        }
        let Some(htpasswd) = &self.htpasswd else {
            return Ok(Verified::Unknown);
        };
        let attempt = self.attempt(basic, address, count_unknown);
        match htpasswd.verify(basic, &attempt).await? {
            Verdict::Right => {
                self.metrics.authenticated(Authentication::Password);
                Ok(Verified::Right(self.user(&basic.user).into(), u64::MAX))
            }
            Verdict::Wrong => Ok(Verified::Wrong),
            Verdict::Unknown => Ok(Verified::Unknown),
        }
    }

    fn attempt(&self, basic: &Basic, address: Option<IpAddr>, count_unknown: bool) -> Attempt {
        let key = Throttle::key(address, &basic.user);
        Attempt::new(&self.throttle, key, count_unknown)
    }

    fn user(&self, name: &str) -> User {
        User {
            name: name.to_owned(),
            groups: self.groups.get(name).cloned().unwrap_or_default(),
        }
    }

    fn now(&self) -> u64 {
        let since = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }

    fn remembered(&self, token: &str) -> Option<Arc<Session>> {
        let session = self.tokens.get(&hash(token))?;
        if self.now() >= session.expires {
            return None;
        }
        self.metrics.authenticated(Authentication::Token);
        Some(session)
    }

    fn remember(&self, token: &str, identity: Identity, expires: u64) -> Arc<Session> {
        let session = Arc::new(Session { identity, expires });
        self.tokens.insert(hash(token), Arc::clone(&session));
        session
    }

    /// The caller of a request with a token that isn't remembered.
    async fn bearer(&self, token: &str) -> Result<Identity, AuthError> {
        if let Some(session) = self.identity_token(token).await? {
            return Ok(session.identity.clone());
        }
        let (identity, expires) = if let Some(external) = &self.external {
            let verified = external.verify(token, self.now())?;
            let subject = verified.subject;
            let identity = Identity {
                user: (!subject.is_empty()).then(|| Arc::new(self.user(&subject))),
                granted: Some(Arc::new(verified.grants)),
                ..Identity::default()
            };
            (identity, verified.expires)
        } else {
            let claims = self.sealer.open(token, self.now());
            let claims = claims.ok_or(AuthError::Refused)?;
            let expires = claims.expires;
            (unsealed(claims), expires)
        };
        self.metrics.authenticated(Authentication::Token);
        Ok(self.remember(token, identity, expires).identity.clone())
    }

    /// The user that an identity token names. None if it isn't one of a known issuer's.
    async fn identity_token(&self, token: &str) -> Result<Option<Arc<Session>>, AuthError> {
        let Some(issuer) = self.issuers.of(token) else {
            return Ok(None);
        };
        if let Some(session) = self.remembered(token) {
            return Ok(Some(session));
        }
        let (user, expires) = issuer.verify(token, self.now()).await?;
        self.metrics.authenticated(Authentication::IdentityToken);
        Ok(Some(self.remember(token, user.into(), expires)))
    }

    /// Issues a token.
    pub(super) async fn token(
        &self,
        presented: &Presented<'_>,
        address: Option<IpAddr>,
        request: &TokenRequest,
    ) -> Result<Vec<u8>, AuthError> {
        let authorization = Authorization::parse(presented.headers);
        let authorization = authorization.inspect_err(|error| self.count_error(error))?;
        let basic = match (&request.grant, &authorization) {
            (Some(Grant::Password(basic) | Grant::Refresh(basic)), _)
            | (None, Authorization::Basic(basic)) => basic,
            // No token of ours is exchanged for another one: it would live for ever.
            (None, Authorization::Bearer(token)) => {
                let session = self.identity_token(token).await?;
                let session = session.ok_or(AuthError::Refused)?;
                return self.issue(session.identity.user.as_deref(), None, session.expires);
            }
            (None, Authorization::None) => {
                return self.issue(self.certified(presented).as_deref(), None, u64::MAX);
            }
        };
        let mut verified = self.verify(basic, address, !request.is_pull()).await;
        // An answer at once would tell that there is such a user.
        if let (true, Err(AuthError::Throttled(_)), Some(htpasswd)) =
            (request.is_pull(), &verified, &self.htpasswd)
        {
            let attempt = self.attempt(basic, address, false);
            if let Err(error) = htpasswd.spend(basic, &attempt).await {
                verified = Err(error);
            }
        }
        match verified {
            Ok(Verified::Right(identity, until)) => {
                self.issue(identity.user.as_deref(), None, until)
            }
            // dockerd and the kubelet send the upstream's credentials to the realm of a mirror.
            Ok(Verified::Unknown) if request.is_pull() => {
                let header = basic.header();
                let header = header.filter(|_| self.logins && !basic.user.is_empty());
                let login = request.upstream.clone().zip(header);
                self.issue(
                    None,
                    login.and_then(|(upstream, header)| sealed(upstream, &header)),
                    u64::MAX,
                )
            }
            // When passwords are throttled, this one isn't looked at: nobody learns whether it is right.
            Ok(Verified::Wrong) | Err(AuthError::Throttled(_)) if request.is_pull() => {
                self.issue(None, None, u64::MAX)
            }
            Err(error) => {
                self.count_error(&error);
                Err(error)
            }
            Ok(Verified::Wrong | Verified::Unknown) => {
                self.count_error(&AuthError::Refused);
                Err(AuthError::Refused)
            }
        }
    }

    /// The token ends at `until` at the latest, with what showed who the caller is.
    fn issue(
        &self,
        user: Option<&User>,
        login: Option<SealedLogin>,
        until: u64,
    ) -> Result<Vec<u8>, AuthError> {
        let issued = self.now();
        let lifetime = lifetime(self.token_ttl, issued, until);
        let claims = Claims {
            user: user.map(|user| user.name.clone()),
            groups: user.map(|user| user.groups.clone()).unwrap_or_default(),
            login,
            issued,
            expires: issued + lifetime,
        };
        let token = self.sealer.seal(&claims).ok_or(AuthError::Unsealed)?;
        self.metrics.authenticated(match user {
            Some(_) => Authentication::IssuedUser,
            None => Authentication::IssuedAnonymous,
        });
        Ok(service::document(&token, lifetime, self.clock.wall()))
    }

    fn count_error(&self, error: &AuthError) {
        self.metrics.authenticated(match error {
            AuthError::Throttled(_) => Authentication::Throttled,
            AuthError::Malformed(_) => Authentication::Malformed,
            AuthError::Busy | AuthError::Issuer => Authentication::Unavailable,
            _ => Authentication::Refused,
        });
    }
}

/// Seconds that a token is valid.
fn lifetime(ttl: Duration, issued: u64, until: u64) -> u64 {
    ttl.as_secs().min(until.saturating_sub(issued))
}

fn hash(token: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

fn sealed(upstream: String, header: &HeaderValue) -> Option<SealedLogin> {
    let header = header.to_str().ok()?.to_owned();
    Some(SealedLogin { upstream, header })
}

fn unsealed(claims: Claims) -> Identity {
    let groups = claims.groups;
    let user = claims.user.map(|name| Arc::new(User { name, groups }));
    let login = claims.login.and_then(|login| {
        let header = HeaderValue::try_from(login.header).ok()?;
        Some((Arc::new(Login::new(header)), Arc::from(login.upstream)))
    });
    let (login, login_upstream) = login.unzip();
    Identity {
        user,
        login,
        login_upstream,
        granted: None,
    }
}

#[cfg(test)]
mod tests;
