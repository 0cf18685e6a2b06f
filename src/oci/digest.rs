//! Content digests: `sha256:<64 hex>` and `sha512:<128 hex>` (image-spec, descriptor.md#digests).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use super::bytes;

/// A registered digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A well-formed digest. Only lower-case hexadecimal is accepted, as the specification says, so that
/// one content has one name (and one path on disk).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest has the form <algorithm>:<hex>")]
    Form,
    #[error("the digest algorithm is not supported; sha256 and sha512 are")]
    Algorithm,
    #[error("the hexadecimal part is not the algorithm's length of lower-case digits")]
    Hex,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The part after the colon: 64 or 128 lower-case digits.
    pub fn hex(&self) -> String {
        const_hex::encode(self.bytes())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The byte that the first two digits of the hexadecimal part write.
    pub const fn first_byte(&self) -> u8 {
        match self {
            Self::Sha256([first, ..]) | Self::Sha512([first, ..]) => *first,
        }
    }

    /// A digest from an algorithm and its hexadecimal part (two components of a path on disk).
    pub fn from_parts(algorithm: Algorithm, hex: &str) -> Result<Self, DigestError> {
        fn decode<const N: usize>(hex: &str) -> Result<[u8; N], DigestError> {
            // const-hex also accepts upper-case digits and a prefix `0x`.
            if hex.len() != N * 2 || hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(DigestError::Hex);
            }
            const_hex::decode_to_array(hex).or(Err(DigestError::Hex))
        }
        match algorithm {
            Algorithm::Sha256 => decode(hex).map(Self::Sha256),
            Algorithm::Sha512 => decode(hex).map(Self::Sha512),
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = bytes::split_once(text, b':').ok_or(DigestError::Form)?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|one| one.as_str() == algorithm);
        Self::from_parts(algorithm.ok_or(DigestError::Algorithm)?, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest piece by piece.
#[derive(Debug, Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Self::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_no_bytes_is_known() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        let long = Digest::of(Algorithm::Sha512, b"").to_string();
        assert!(long.starts_with("sha512:cf83e1357eefb8bd"), "{long}");
    }

    #[test]
    fn malformed_digests_are_refused() {
        for (text, error) in [
            ("", DigestError::Form),
            ("sha256", DigestError::Form),
            (
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                DigestError::Algorithm,
            ),
            ("SHA256:e3b0", DigestError::Algorithm),
            ("sha256:", DigestError::Hex),
            ("sha256:../../../../etc/passwd", DigestError::Hex),
            (&EMPTY.to_uppercase(), DigestError::Algorithm),
            (&EMPTY.replace('e', "E"), DigestError::Hex),
            (&format!("{EMPTY}0"), DigestError::Hex),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_digest_parses_back(bytes in any::<[u8; 32]>(), more in any::<[u8; 32]>()) {
            let mut long = [0; 64];
            long[..32].copy_from_slice(&bytes);
            long[32..].copy_from_slice(&more);
            for digest in [Digest::Sha256(bytes), Digest::Sha512(long)] {
                prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            }
        }

        #[test]
        fn a_parsed_digest_prints_as_written(text in "(sha256|sha512|md5|):[0-9a-fA-F:/.]{0,130}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn pieces_hash_like_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..500), cut in 0usize..500) {
            let cut = cut.min(bytes.len());
            for algorithm in Algorithm::ALL {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(&bytes[..cut]);
                hasher.update(&bytes[cut..]);
                prop_assert_eq!(hasher.finish(), Digest::of(algorithm, &bytes));
            }
        }
    }
}
