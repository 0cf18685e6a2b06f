//! Identity tokens of OpenID Connect issuers: a CI job or a service account shows the token that its
//! own system gave it, and no password is stored anywhere.
//!
//! An issuer's public keys come from the address in its discovery document (OpenID Connect Discovery
//! 1.0, section 4). They are kept for an hour, and fetched again before that, at most every 30 s, when a
//! token names a key that isn't among them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::caller::User;
use super::error::{AuthError, AuthSetupError};
use super::external::key_of;
use super::files;
use super::jwt::{self, Expected, JwtError};
use crate::config::OidcIssuer;
use crate::error_chain::on_one_line;
use crate::upstream::{DocumentError, Documents};

/// The largest document of an issuer's, in bytes, and how long it may take to come.
const MAX_DOCUMENT: usize = 512 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
/// How long keys are used without asking again, and while the issuer doesn't answer.
const FRESH: Duration = Duration::from_hours(1);
const STALE: Duration = Duration::from_hours(24);
/// The shortest time between two attempts to fetch keys.
const RETRY: Duration = Duration::from_secs(30);
/// The longest name of a user or a group, in bytes, and the most groups.
const MAX_NAME: usize = 256;
const MAX_GROUPS: usize = 256;

/// The issuers that are trusted.
#[derive(Debug)]
pub(super) struct Issuers(Vec<Issuer>);

/// One issuer.
#[derive(Debug)]
pub(super) struct Issuer {
    config: OidcIssuer,
    algorithms: Vec<Algorithm>,
    documents: Documents,
    keys: Mutex<Keys>,
    /// One request at a time.
    fetching: Semaphore,
}

#[derive(Debug, Default)]
struct Keys {
    by_id: Arc<HashMap<String, DecodingKey>>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Why an issuer's keys can't be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("the document is malformed: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the document is of another issuer")]
    Issuer,
}

impl Issuers {
    /// Reads the files of certificate authorities. Blocks.
    pub(super) fn open(configs: Vec<OidcIssuer>) -> Result<Self, AuthSetupError> {
        configs
            .into_iter()
            .map(Issuer::open)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The issuer that a token claims to be from.
    pub(super) fn of(&self, token: &str) -> Option<&Issuer> {
        #[derive(Deserialize)]
        struct Claim {
            iss: String,
        }
        if self.0.is_empty() || !jwt::is_jwt(token) {
            return None;
        }
        let Claim { iss } = jwt::unverified(token).ok()?;
        self.0.iter().find(|issuer| issuer.config.issuer == iss)
    }
}

impl Issuer {
    fn open(config: OidcIssuer) -> Result<Self, AuthSetupError> {
        let ca = match &config.ca {
            None => None,
            Some(path) => Some(files::read(path).map_err(|source| AuthSetupError::Read {
                path: path.clone(),
                source,
            })?),
        };
        let documents = Documents::new(ca.as_deref());
        let documents = documents.map_err(|source| AuthSetupError::Issuer {
            issuer: config.issuer.clone(),
            source,
        })?;
        Ok(Self {
            algorithms: jwt::algorithms(&config.algorithms),
            config,
            documents,
            keys: Mutex::default(),
            fetching: Semaphore::new(1),
        })
    }

    /// Verifies a token. Returns its user, and when the token expires.
    pub(super) async fn verify(&self, token: &str, now: u64) -> Result<(User, u64), AuthError> {
        let (header, algorithm) = jwt::header(token, &self.algorithms)?;
        let kid = header.kid.as_deref().ok_or(JwtError::Key)?;
        let key = self.key(kid).await?;
        let expected = Expected {
            issuer: &self.config.issuer,
            audience: &self.config.audience,
            now,
        };
        let (claims, expires) = jwt::verify(token, &key, algorithm, &expected)?;
        Ok((self.user(&claims)?, expires))
    }

    async fn key(&self, kid: &str) -> Result<DecodingKey, AuthError> {
        if let Some(key) = self.known(kid, FRESH) {
            return Ok(key);
        }
        let fetching = self.fetching.acquire().await;
        // Another token's request may have fetched them meanwhile.
        if let Some(key) = self.known(kid, FRESH) {
            return Ok(key);
        }
        let may_try = {
            let mut keys = self.keys.lock();
            let may_try = keys.tried.is_none_or(|tried| tried.elapsed() >= RETRY);
            if may_try {
                keys.tried = Some(Instant::now());
            }
            may_try
        };
        if may_try {
            match self.fetch().await {
                Ok(by_id) => {
                    let mut keys = self.keys.lock();
                    keys.by_id = Arc::new(by_id);
                    keys.fetched = Some(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(issuer = self.config.issuer, error = %on_one_line(&error), "the keys of an issuer can't be fetched");
                }
            }
        }
        drop(fetching);
        if let Some(key) = self.known(kid, STALE) {
            return Ok(key);
        }
        let has_keys = self.keys.lock().fetched.is_some();
        Err(if has_keys {
            JwtError::Key.into()
        } else {
            AuthError::Issuer
        })
    }

    /// A key, if keys were fetched within that time.
    fn known(&self, kid: &str, within: Duration) -> Option<DecodingKey> {
        let keys = self.keys.lock();
        let is_recent = keys
            .fetched
            .is_some_and(|fetched| fetched.elapsed() < within);
        keys.by_id.get(kid).filter(|_| is_recent).cloned()
    }

    async fn fetch(&self) -> Result<HashMap<String, DecodingKey>, FetchError> {
        let base = self.config.issuer.trim_end_matches('/');
        let address = format!("{base}/.well-known/openid-configuration");
        let document = self.documents.get(&address, MAX_DOCUMENT, DEADLINE).await?;
        let discovery: Discovery = serde_json::from_slice(&document)?;
        if discovery.issuer != self.config.issuer {
            return Err(FetchError::Issuer);
        }
        let document = self
            .documents
            .get(&discovery.jwks_uri, MAX_DOCUMENT, DEADLINE)
            .await?;
        let set: JwkSet = serde_json::from_slice(&document)?;
        let keys = set.keys.iter();
        Ok(keys
            .filter_map(|key| Some((key.common.key_id.clone()?, key_of(key)?)))
            .collect())
    }

    fn user(&self, claims: &Value) -> Result<User, JwtError> {
        for (name, expected) in &self.config.required {
            let is_right = match claims.get(name) {
                Some(Value::String(text)) => text == expected,
                Some(Value::Bool(value)) => expected.parse() == Ok(*value),
                Some(Value::Number(number)) => {
                    expected.parse() == Ok(number.as_u64().unwrap_or(u64::MAX))
                }
                _ => false,
            };
            if !is_right {
                return Err(JwtError::Claim);
            }
        }
        let is_name = |text: &&str| !text.is_empty() && text.len() <= MAX_NAME;
        let name = claims.get(&self.config.user).and_then(Value::as_str);
        let name = name.filter(is_name).ok_or(JwtError::Claim)?;
        let groups = self
            .config
            .groups
            .as_ref()
            .and_then(|claim| claims.get(claim));
        let groups: Vec<&str> = match groups {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let groups = groups.into_iter().filter(is_name).take(MAX_GROUPS);
        Ok(User {
            name: name.to_owned(),
            groups: groups.map(str::to_owned).collect(),
        })
    }
}
