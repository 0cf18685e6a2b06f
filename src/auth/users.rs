//! The sources of identities, and the tokens that are made of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use http::HeaderValue;
use ipnet::IpNet;
use parking_lot::RwLock;
use quick_cache::sync::Cache;

use super::authorization::{Authorization, Basic};
use super::caller::{Caller, Grants, User};
use super::error::{AuthError, AuthSetupError};
use super::external::External;
use super::failures::{self, AuthFailure, AuthFailureLog};
use super::htpasswd::{Htpasswd, Verdict};
use super::oidc::Issuers;
use super::seal::{Claims, SealedLogin, Sealer};
use super::service::{self, Grant, TokenRequest};
use super::throttle::{Attempt, Throttle};
use super::upstream_logins::UpstreamLogins;
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
    sealer: RwLock<Arc<Sealer>>,
    /// The configured file of the sealer's key.
    key: Option<PathBuf>,
    token_ttl: Duration,
    logins: Option<Arc<dyn UpstreamLogins>>,
    failures: Arc<dyn AuthFailureLog>,
    /// What tokens say, by their hash.
    tokens: Cache<[u8; 32], Arc<Session>>,
    /// Counts renewals of keys: what was verified before one isn't remembered.
    generation: AtomicU64,
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
    /// The keys that it was verified with.
    generation: u64,
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
        self.logins.is_some()
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
            sealer: RwLock::new(Arc::new(sealer)),
            key: config.key,
            token_ttl: config.token_ttl,
            logins: options.logins,
            failures: options.failures,
            tokens: Cache::new(MAX_TOKENS),
            generation: AtomicU64::new(0),
            clock: options.clock,
            metrics: options.metrics,
        })
    }

    pub(super) fn external(&self) -> Option<&External> {
        self.external.as_ref()
    }

    /// Reads the keys of the external token service again. After an error, those before stay in use.
    /// Blocks.
    pub(super) fn renew_external(&self) -> Result<(), AuthSetupError> {
        self.external.as_ref().map_or(Ok(()), External::renew)?;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Reads the configured key of our own tokens again: those that were sealed with the one before
    /// aren't valid any more. After an error, that one stays in use. Blocks.
    pub(super) fn renew_key(&self) -> Result<(), AuthSetupError> {
        let Some(path) = &self.key else {
            return Ok(());
        };
        let sealer = Arc::new(Sealer::from_file(path)?);
        *self.sealer.write() = sealer;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer.read())
    }

    /// To be taken before a token is verified.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
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
                None => Box::pin(self.bearer(token, address)).await,
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
            is_local: presented.address.is_none(),
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
        match self.verify(basic, address, !self.takes_logins()).await? {
            Verified::Right(identity, _) => Ok(identity),
            Verified::Unknown if self.takes_logins() => {
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
    /// as an attempt to guess it, and is logged; that of an unknown user if `count_unknown`.
    async fn verify(
        &self,
        basic: &Basic,
        address: Option<IpAddr>,
        count_unknown: bool,
    ) -> Result<Verified, AuthError> {
        let verified = self.verify_basic(basic, address, count_unknown).await;
        let reason = match &verified {
            Ok(Verified::Wrong) => Some("wrong password"),
            Ok(Verified::Unknown) => count_unknown.then_some("unknown user"),
            Ok(Verified::Right(..)) => None,
            Err(error) => failures::reason(error),
        };
        if let Some(reason) = reason {
            self.log_failure(failures::shown_user(basic), address, reason);
        }
        verified
    }

    async fn verify_basic(
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
        if self.now() >= session.expires || self.generation() != session.generation {
            return None;
        }
        self.metrics.authenticated(Authentication::Token);
        Some(session)
    }

    /// `generation` is that of the keys that the token was verified with.
    fn remember(
        &self,
        token: &str,
        identity: Identity,
        expires: u64,
        generation: u64,
    ) -> Arc<Session> {
        let session = Arc::new(Session {
            identity,
            expires,
            generation,
        });
        self.tokens.insert(hash(token), Arc::clone(&session));
        session
    }

    /// The caller of a request with a token that isn't remembered.
    async fn bearer(&self, token: &str, address: Option<IpAddr>) -> Result<Identity, AuthError> {
        let verified = self.verify_token(token).await;
        verified.inspect_err(|error| {
            // One of our own tokens that has expired, which clients present as a rule.
            let is_old = || self.sealer().open(token, 0).is_some();
            let reason = failures::reason(error).filter(|_| !is_old());
            if let Some(reason) = reason {
                self.log_failure(None, address, reason);
            }
        })
    }

    fn log_failure(&self, user: Option<&str>, address: Option<IpAddr>, reason: &'static str) {
        let failure = AuthFailure {
            user,
            address,
            reason,
        };
        self.failures.failed(&failure);
    }

    async fn verify_token(&self, token: &str) -> Result<Identity, AuthError> {
        if let Some(session) = self.identity_token(token).await? {
            return Ok(session.identity.clone());
        }
        let generation = self.generation();
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
            let claims = self.sealer().open(token, self.now());
            let claims = claims.ok_or(AuthError::Refused)?;
            let expires = claims.expires;
            (unsealed(claims), expires)
        };
        self.metrics.authenticated(Authentication::Token);
        let session = self.remember(token, identity, expires, generation);
        Ok(session.identity.clone())
    }

    /// The user that an identity token names. None if it isn't one of a known issuer's.
    async fn identity_token(&self, token: &str) -> Result<Option<Arc<Session>>, AuthError> {
        let Some(issuer) = self.issuers.of(token) else {
            return Ok(None);
        };
        if let Some(session) = self.remembered(token) {
            return Ok(Some(session));
        }
        let generation = self.generation();
        let (user, expires) = issuer.verify(token, self.now()).await?;
        self.metrics.authenticated(Authentication::IdentityToken);
        let session = self.remember(token, user.into(), expires, generation);
        Ok(Some(session))
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
                let session = self.identity_token(token).await;
                let session = session.and_then(|session| session.ok_or(AuthError::Refused));
                let session = session.inspect_err(|error| {
                    if let Some(reason) = failures::reason(error) {
                        self.log_failure(None, address, reason);
                    }
                })?;
                return self.issue(session.identity.user.as_deref(), None, session.expires);
            }
            (None, Authorization::None) => {
                return self.issue(self.certified(presented).as_deref(), None, u64::MAX);
            }
        };
        let logins = self.logins.as_ref().filter(|_| request.is_login());
        let count_unknown = !request.is_pull() && logins.is_none();
        let verified = self.verify_for_token(basic, address, request, count_unknown);
        match verified.await {
            Ok(Verified::Right(identity, until)) => {
                self.issue(identity.user.as_deref(), None, until)
            }
            Ok(Verified::Unknown) if let Some(logins) = logins => {
                let login = self.log_in(&**logins, basic, address, request);
                let login = login.await.inspect_err(|error| self.count_error(error))?;
                self.issue(None, Some(login), u64::MAX)
            }
            // dockerd and the kubelet send the upstream's credentials to the realm of a mirror.
            Ok(Verified::Unknown) if request.is_pull() => {
                let header = basic.header();
                let header = header.filter(|_| self.takes_logins() && !basic.user.is_empty());
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

    async fn verify_for_token(
        &self,
        basic: &Basic,
        address: Option<IpAddr>,
        request: &TokenRequest,
        count_unknown: bool,
    ) -> Result<Verified, AuthError> {
        let verified = self.verify(basic, address, count_unknown).await;
        // An answer at once would tell that there is such a user.
        if let (true, Err(AuthError::Throttled(_)), Some(htpasswd)) =
            (request.is_pull(), &verified, &self.htpasswd)
        {
            let attempt = self.attempt(basic, address, false);
            htpasswd.spend(basic, &attempt).await?;
        }
        verified
    }

    /// Asks the upstream that the realm names about an account that isn't known here. A wrong password
    /// counts as an attempt to guess it.
    async fn log_in(
        &self,
        logins: &dyn UpstreamLogins,
        basic: &Basic,
        address: Option<IpAddr>,
        request: &TokenRequest,
    ) -> Result<SealedLogin, AuthError> {
        let header = basic.header().filter(|_| !basic.user.is_empty());
        let header = header.ok_or(AuthError::Refused)?;
        let attempt = self.attempt(basic, address, true);
        let counted = attempt.clone();
        let counted = Box::new(move |is_right| {
            if is_right {
                counted.right();
            } else {
                counted.wrong();
            }
        });
        let login = Login::new(header.clone());
        let answer = match attempt.check() {
            Ok(()) => {
                logins
                    .check(request.upstream.as_deref(), login, counted)
                    .await
            }
            Err(throttled) => Err(throttled),
        };
        let answer = answer.and_then(|upstream| {
            let sealed = upstream.and_then(|upstream| sealed(upstream.as_ref().into(), &header));
            sealed.ok_or(AuthError::Refused)
        });
        answer.inspect_err(|error| {
            let reason = match error {
                AuthError::Refused => Some("refused by the upstream"),
                error => failures::reason(error),
            };
            if let Some(reason) = reason {
                self.log_failure(failures::shown_user(basic), address, reason);
            }
        })
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
        let token = self.sealer().seal(&claims).ok_or(AuthError::Unsealed)?;
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
            AuthError::Busy | AuthError::Issuer | AuthError::Upstream => {
                Authentication::Unavailable
            }
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
