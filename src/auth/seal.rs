//! The tokens of the built-in token service: a caller's name, sealed, so that nobody else can read,
//! change or make one.
//!
//! A token is base64url of a version byte, a random nonce and what AES-256-GCM-SIV (RFC 8452) made of
//! a JSON document. Replicas that share the key accept each other's tokens.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::error::AuthSetupError;
use super::files;

/// The first byte of a token, and what is authenticated beside the document.
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"millpond caller token 1";
/// A key has at least so many bytes.
const MIN_KEY: usize = 32;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// None for an anonymous caller.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) groups: Vec<String>,
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub(super) login: Option<SealedLogin>,
    /// Seconds since 1970: when it was made, and when it expires.
    #[serde(rename = "i")]
    pub(super) issued: u64,
    #[serde(rename = "e")]
    pub(super) expires: u64,
}

/// An account of the caller's at an upstream.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealedLogin {
    #[serde(rename = "n")]
    pub(super) upstream: String,
    /// The `Authorization` header.
    #[serde(rename = "h")]
    pub(super) header: String,
}

impl std::fmt::Debug for SealedLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealedLogin")
    }
}

/// Seals tokens with one key.
#[derive(Debug)]
pub(super) struct Sealer {
    key: LessSafeKey,
}

impl Sealer {
    /// Makes the key of any secret of at least 32 bytes.
    fn new(secret: &[u8]) -> Option<Self> {
        if secret.len() < MIN_KEY {
            return None;
        }
        let key = digest::digest(&digest::SHA256, secret);
        let key = UnboundKey::new(&AES_256_GCM_SIV, key.as_ref()).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
        })
    }

    /// With a key that ends with the process.
    pub(super) fn random() -> Result<Self, AuthSetupError> {
        Self::new(&random()?).ok_or(AuthSetupError::Random)
    }

    /// With the key in a file. Blocks.
    pub(super) fn from_file(path: &Path) -> Result<Self, AuthSetupError> {
        let secret = files::read(path).map_err(|source| AuthSetupError::Read {
            path: path.to_owned(),
            source,
        })?;
        let sealer = Self::new(secret.trim_ascii());
        sealer.ok_or_else(|| AuthSetupError::ShortKey(path.to_owned()))
    }

    /// With the key in a file of our own, which is made if it isn't there. Blocks.
    pub(super) fn from_own_file(path: &Path) -> Result<Self, AuthSetupError> {
        match Self::from_file(path) {
            Err(AuthSetupError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            read => return read,
        }
        let text = const_hex::encode(random()?);
        let written = files::write_private(path, text.as_bytes());
        written.map_err(|source| AuthSetupError::WriteKey {
            path: path.to_owned(),
            source,
        })?;
        Self::new(text.as_bytes()).ok_or(AuthSetupError::Random)
    }

    pub(super) fn seal(&self, claims: &Claims) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = serde_json::to_vec(claims).ok()?;
        let unique = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(CONTEXT);
        self.key
            .seal_in_place_append_tag(unique, aad, &mut sealed)
            .ok()?;
        let token = [&[VERSION], &nonce[..], &sealed].concat();
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// What a token says, if it was sealed with this key and is valid at this time (seconds since
    /// 1970).
    pub(super) fn open(&self, token: &str, now: u64) -> Option<Claims> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let aad = Aad::from(CONTEXT);
        let document = self.key.open_in_place(nonce, aad, &mut sealed).ok()?;
        let claims: Claims = serde_json::from_slice(document).ok()?;
        (*version == VERSION && now < claims.expires).then_some(claims)
    }
}

fn random() -> Result<[u8; 32], AuthSetupError> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_none| AuthSetupError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims {
            user: Some("alice".to_owned()),
            groups: vec!["admins".to_owned()],
            login: Some(SealedLogin {
                upstream: "docker.io".to_owned(),
                header: "Basic dTpw".to_owned(),
            }),
            issued: 1000,
            expires: 1300,
        }
    }

    #[test]
    fn a_token_is_valid_until_it_expires_and_for_its_key_only() {
        let sealer = Sealer::random().unwrap();
        let token = sealer.seal(&claims()).unwrap();
        assert_eq!(sealer.open(&token, 1299), Some(claims()));
        assert_eq!(sealer.open(&token, 1300), None);
        assert_eq!(Sealer::random().unwrap().open(&token, 1299), None);
        assert_ne!(
            sealer.seal(&claims()).unwrap(),
            token,
            "the nonce is random"
        );
        assert!(!format!("{:?}", claims()).contains("dTpw"));
    }

    #[test]
    fn a_key_survives_restarts_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own/token.key");
        let token = Sealer::from_own_file(&path)
            .unwrap()
            .seal(&claims())
            .unwrap();
        assert!(
            Sealer::from_own_file(&path)
                .unwrap()
                .open(&token, 1299)
                .is_some()
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(
            Sealer::from_own_file(&path),
            Err(AuthSetupError::ShortKey(_))
        ));
    }

    proptest! {
        #[test]
        fn a_changed_or_cut_token_is_worth_nothing(at in 0_usize..300, bit in 0_u8..8, cut in 0_usize..300) {
            let sealer = Sealer::new(&[7; 32]).unwrap();
            let token = sealer.seal(&claims()).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            let end = cut % bytes.len();
            let cut = URL_SAFE_NO_PAD.encode(&bytes[..end]);
            prop_assert_eq!(sealer.open(&cut, 1299), None);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(sealer.open(&URL_SAFE_NO_PAD.encode(&bytes), 1299), None);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9_=.-]{0,200}") {
            prop_assert_eq!(Sealer::new(&[7; 32]).unwrap().open(&text, 0), None);
        }
    }
}
