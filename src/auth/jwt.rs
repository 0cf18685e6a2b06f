//! Signed tokens of others (RFC 7519): what is common to an external token service and to issuers of
//! identity tokens.
//!
//! Nothing of a token is believed before its signature is verified, with a key that the operator or
//! the issuer named and an algorithm that the operator permits. A token with its own key, without a
//! signature, or signed with a shared secret (which an attacker could take a public key for) is
//! refused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// How far the clocks may differ, in seconds.
const LEEWAY: f64 = 60.0;

/// Why a token isn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("it is malformed")]
    Malformed,
    #[error("its algorithm isn't permitted")]
    Algorithm,
    #[error("its key isn't known")]
    Key,
    #[error("its certificates aren't trusted")]
    Chain,
    #[error("its signature is wrong")]
    Signature,
    #[error("its issuer is another one")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it isn't valid yet")]
    NotYet,
    #[error("it lacks a claim")]
    Claim,
}

/// The part of a token that says how it is signed.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    alg: String,
    #[serde(default)]
    pub(super) kid: Option<String>,
    /// Base64 of DER; the first one signed the token.
    #[serde(default)]
    pub(super) x5c: Option<Vec<String>>,
    #[serde(default)]
    pub(super) jwk: Option<Value>,
    /// Extensions that whoever doesn't know them must refuse (RFC 7515, section 4.1.11).
    #[serde(default)]
    crit: Option<Value>,
}

/// One text or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// The claims that are checked of every token.
#[derive(Debug, Deserialize)]
struct Standard {
    iss: String,
    aud: Audience,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

/// Whom and what tokens must be from and for.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// Whether a text has the form of a signed token: three parts.
pub(super) fn is_jwt(text: &str) -> bool {
    text.len() <= MAX_TOKEN && text.split('.').count() == 3 && text.starts_with("ey")
}

/// Reads the permitted algorithms; the configuration has checked their names.
pub(super) fn algorithms(names: &[String]) -> Vec<Algorithm> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// The header of a token and its algorithm, if that is permitted.
pub(super) fn header(
    token: &str,
    permitted: &[Algorithm],
) -> Result<(Header, Algorithm), JwtError> {
    if !is_jwt(token) {
        return Err(JwtError::Malformed);
    }
    let header = token.split('.').next().unwrap_or_default();
    let header: Header = part(header)?;
    if header.crit.is_some() {
        return Err(JwtError::Malformed);
    }
    let algorithm: Option<Algorithm> = header.alg.parse().ok();
    let algorithm = algorithm.filter(|algorithm| permitted.contains(algorithm));
    Ok((header, algorithm.ok_or(JwtError::Algorithm)?))
}

/// The claims of a token whose signature isn't verified: to find out whom to ask for keys.
pub(super) fn unverified<T: DeserializeOwned>(token: &str) -> Result<T, JwtError> {
    part(token.split('.').nth(1).unwrap_or_default())
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, JwtError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_not_base64| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_not_json| JwtError::Malformed)
}

/// Verifies the signature, and then who issued the token, for whom and until when. Returns the claims,
/// and when the token expires (seconds since 1970).
pub(super) fn verify(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
    expected: &Expected<'_>,
) -> Result<(Value, u64), JwtError> {
    if key.family() != algorithm.family() {
        return Err(JwtError::Algorithm);
    }
    // Its own checks of claims ask the system's clock.
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let decoded = jsonwebtoken::decode::<Value>(token, key, &validation);
    let claims = decoded.map_err(|_wrong| JwtError::Signature)?.claims;
    let standard = Standard::deserialize(&claims).map_err(|_missing| JwtError::Claim)?;
    if standard.iss != expected.issuer {
        return Err(JwtError::Issuer);
    }
    let is_for_us = match &standard.aud {
        Audience::One(one) => one == expected.audience,
        Audience::Many(many) => many.iter().any(|one| one == expected.audience),
    };
    if !is_for_us {
        return Err(JwtError::Audience);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds have far fewer than 53 bits"
    )]
    let now = expected.now as f64;
    if now >= standard.exp + LEEWAY {
        return Err(JwtError::Expired);
    }
    if standard.nbf.is_some_and(|from| now + LEEWAY < from) {
        return Err(JwtError::NotYet);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is beyond now; a far time saturates"
    )]
    let expires = (standard.exp + LEEWAY) as u64;
    Ok((claims, expires))
}
