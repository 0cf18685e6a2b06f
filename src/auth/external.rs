//! An external token service, as the reference registry's `auth.token`: JWTs that name what their
//! owner may do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;

use super::caller::{Grant, Grants};
use super::error::AuthSetupError;
use super::files;
use super::jwt::{self, Expected, JwtError};
use crate::config::TokenService;

/// Certificates that a token may bring.
const MAX_CHAIN: usize = 5;
const USAGES: [&[u8]; 3] = [
    // RFC 5280, section 4.2.1.12: server, client, code signing. Tokens have no usage of their own.
    &[43, 6, 1, 5, 5, 7, 3, 1],
    &[43, 6, 1, 5, 5, 7, 3, 2],
    &[43, 6, 1, 5, 5, 7, 3, 3],
];

/// Verifies the tokens of one service.
pub(super) struct External {
    pub(super) realm: String,
    pub(super) service: String,
    issuer: String,
    algorithms: Vec<Algorithm>,
    config: TokenService,
    trusted: RwLock<Arc<Trusted>>,
}

/// What the files of keys have.
#[derive(Default)]
struct Trusted {
    roots: Vec<CertificateDer<'static>>,
    /// By key ID: the thumbprint (RFC 7638), libtrust's form, or that in the file of keys.
    keys: HashMap<String, DecodingKey>,
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("External").field(&self.issuer).finish()
    }
}

/// What a token says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    /// Empty for an anonymous caller.
    pub(super) subject: String,
    pub(super) grants: Grants,
    /// Seconds since 1970.
    pub(super) expires: u64,
}

#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    access: Option<Vec<Grant>>,
}

impl External {
    /// Reads the files. Blocks.
    pub(super) fn open(config: &TokenService) -> Result<Self, AuthSetupError> {
        Ok(Self {
            realm: config.realm.clone(),
            service: config.service.clone(),
            issuer: config.issuer.clone(),
            algorithms: jwt::algorithms(&config.algorithms),
            trusted: RwLock::new(Arc::new(Trusted::read(config)?)),
            config: config.clone(),
        })
    }

    /// Reads the files again. After an error, the keys before stay in use. Blocks.
    pub(super) fn renew(&self) -> Result<(), AuthSetupError> {
        let trusted = Arc::new(Trusted::read(&self.config)?);
        *self.trusted.write() = trusted;
        Ok(())
    }

    pub(super) fn verify(&self, token: &str, now: u64) -> Result<Verified, JwtError> {
        let trusted = Arc::clone(&self.trusted.read());
        let (header, algorithm) = jwt::header(token, &self.algorithms)?;
        let key = trusted.key_of(&header, now)?;
        let expected = Expected {
            issuer: &self.issuer,
            audience: &self.service,
            now,
        };
        let (claims, expires) = jwt::verify(token, &key, algorithm, &expected)?;
        let claims = Claims::deserialize(claims).map_err(|_wrong| JwtError::Claim)?;
        Ok(Verified {
            subject: claims.sub,
            grants: Grants::new(claims.access.unwrap_or_default()),
            expires,
        })
    }
}

impl Trusted {
    fn read(config: &TokenService) -> Result<Self, AuthSetupError> {
        let mut trusted = Self::default();
        if let Some(path) = &config.root_cert_bundle {
            trusted.add_certificates(path)?;
        }
        if let Some(path) = &config.jwks {
            trusted.add_keys(path)?;
        }
        Ok(trusted)
    }

    fn add_certificates(&mut self, path: &Path) -> Result<(), AuthSetupError> {
        let pem = read(path)?;
        let unusable = || AuthSetupError::Certificates(path.to_owned());
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_not_pem| unusable())?;
            let (key, ids) = public_key(&certificate).ok_or_else(unusable)?;
            self.keys
                .extend(ids.into_iter().map(|id| (id, key.clone())));
            self.roots.push(certificate);
        }
        if self.roots.is_empty() {
            return Err(unusable());
        }
        Ok(())
    }

    fn add_keys(&mut self, path: &Path) -> Result<(), AuthSetupError> {
        let json = read(path)?;
        let failed = |source| AuthSetupError::Keys {
            path: path.to_owned(),
            source,
        };
        let set: JwkSet = serde_json::from_slice(&json).map_err(failed)?;
        for key in &set.keys {
            let id = key.common.key_id.clone();
            if let (Some(id), Some(key)) = (id, key_of(key)) {
                self.keys.insert(id, key);
            }
        }
        Ok(())
    }

    /// The key that signed a token.
    fn key_of(&self, header: &jwt::Header, now: u64) -> Result<DecodingKey, JwtError> {
        match (&header.x5c, &header.jwk, &header.kid) {
            (Some(chain), _, _) => self.key_of_chain(chain, now),
            // Its own key counts if it is one of ours: what is used is ours.
            (None, Some(jwk), kid) => {
                let own = jwk.get("kid").and_then(|kid| kid.as_str());
                let thumbprint = thumbprint(jwk);
                let known = thumbprint.and_then(|id| self.keys.get(&id));
                let known = known.or_else(|| self.keys.get(own.or(kid.as_deref())?));
                known.cloned().ok_or(JwtError::Key)
            }
            (None, None, Some(kid)) => self.keys.get(kid).cloned().ok_or(JwtError::Key),
            (None, None, None) => Err(JwtError::Key),
        }
    }

    /// The key of the first certificate, if it is one of the bundle's or is signed by one.
    fn key_of_chain(&self, chain: &[String], now: u64) -> Result<DecodingKey, JwtError> {
        if chain.len() > MAX_CHAIN {
            return Err(JwtError::Chain);
        }
        let decoded: Result<Vec<_>, _> = chain.iter().map(|text| STANDARD.decode(text)).collect();
        let decoded = decoded.map_err(|_not_base64| JwtError::Malformed)?;
        let decoded: Vec<CertificateDer<'_>> = decoded.into_iter().map(Into::into).collect();
        let (leaf, others) = decoded.split_first().ok_or(JwtError::Malformed)?;
        let trusted = if self.roots.contains(leaf) {
            is_within_its_time(leaf, now)
        } else {
            self.is_signed(leaf, others, now)
        };
        let key = public_key(leaf).filter(|_| trusted);
        key.map(|(key, _)| key).ok_or(JwtError::Chain)
    }

    fn is_signed(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: u64,
    ) -> bool {
        let Ok(leaf) = EndEntityCert::try_from(leaf) else {
            return false;
        };
        let anchors = self.roots.iter().map(anchor_from_trusted_cert);
        let anchors: Vec<_> = anchors.filter_map(Result::ok).collect();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        USAGES.iter().any(|usage| {
            let usage = KeyUsage::required_if_present(usage);
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            leaf.verify_for_usage(algorithms, &anchors, others, time, usage, None, None)
                .is_ok()
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AuthSetupError> {
    files::read(path).map_err(|source| AuthSetupError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A key that verifies signatures; a shared secret is none.
pub(super) fn key_of(jwk: &Jwk) -> Option<DecodingKey> {
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (key.family() != jsonwebtoken::AlgorithmFamily::Hmac).then_some(key)
}

fn is_within_its_time(certificate: &CertificateDer<'_>, now: u64) -> bool {
    let parsed = X509Certificate::from_der(certificate).ok();
    let now = i64::try_from(now).ok();
    let now = now.and_then(|now| ASN1Time::from_timestamp(now).ok());
    let both = parsed.zip(now);
    both.is_some_and(|((_, parsed), now)| parsed.validity().is_valid_at(now))
}

/// The key of a certificate and what it is called.
fn public_key(certificate: &CertificateDer<'_>) -> Option<(DecodingKey, Vec<String>)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let info = parsed.public_key();
    let bits = &*info.subject_public_key.data;
    let (key, jwk) = match info.parsed().ok()? {
        PublicKey::RSA(rsa) => {
            let modulus = rsa.modulus.iter().position(|byte| *byte != 0)?;
            let modulus = URL_SAFE_NO_PAD.encode(rsa.modulus.get(modulus..)?);
            let exponent = rsa.exponent.iter().position(|byte| *byte != 0)?;
            let exponent = URL_SAFE_NO_PAD.encode(rsa.exponent.get(exponent..)?);
            let jwk = serde_json::json!({"kty": "RSA", "n": modulus, "e": exponent});
            (DecodingKey::from_rsa_der(bits), jwk)
        }
        PublicKey::EC(point) => {
            let (x, y) = point
                .data()
                .get(1..)?
                .split_at_checked(point.data().len() / 2)?;
            let curve = match x.len() {
                32 => "P-256",
                48 => "P-384",
                _ => return None,
            };
            let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
            let jwk = serde_json::json!({"kty": "EC", "crv": curve, "x": x, "y": y});
            (DecodingKey::from_ec_der(bits), jwk)
        }
        // Ed25519 (RFC 8410).
        _ if bits.len() == 32 => {
            let x = URL_SAFE_NO_PAD.encode(bits);
            let jwk = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": x});
            (DecodingKey::from_ed_der(bits), jwk)
        }
        _ => return None,
    };
    let ids = thumbprint(&jwk).into_iter().chain([libtrust_id(info.raw)]);
    Some((key, ids.collect()))
}

/// RFC 7638: base64url of the hash of a key's required members, in the order of their names.
fn thumbprint(jwk: &serde_json::Value) -> Option<String> {
    let members: &[&str] = match jwk.get("kty")?.as_str()? {
        "RSA" => &["e", "kty", "n"],
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        _ => return None,
    };
    let member = |name: &&str| Some(format!("\"{name}\":\"{}\"", jwk.get(*name)?.as_str()?));
    let members: Option<Vec<_>> = members.iter().map(member).collect();
    let text = format!("{{{}}}", members?.join(","));
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    Some(URL_SAFE_NO_PAD.encode(hash))
}

/// The key ID of Docker's older token services: the first 240 bits of the hash of the public key
/// (`SubjectPublicKeyInfo`) in base32, in groups of four.
fn libtrust_id(key: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest::digest(&digest::SHA256, key);
    let bytes = hash.as_ref().iter().take(30);
    let (mut id, mut bits, mut count) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            let letter = ALPHABET.get((bits >> count & 31) as usize);
            if id.len() % 5 == 4 {
                id.push(':');
            }
            id.extend(letter.map(|letter| char::from(*letter)));
        }
        bits &= 0xff;
    }
    id
}

#[cfg(test)]
mod tests;
