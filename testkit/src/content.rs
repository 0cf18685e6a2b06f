//! Bytes, and the digests that name them.

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

/// The SHA-256 digest of some bytes: `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    named("sha256", &Sha256::digest(bytes))
}

/// The SHA-512 digest of some bytes: `sha512:<hex>`.
pub fn sha512(bytes: &[u8]) -> String {
    named("sha512", &Sha512::digest(bytes))
}

fn named(algorithm: &str, hash: &[u8]) -> String {
    let hex = hash.iter().map(|byte| format!("{byte:02x}"));
    format!("{algorithm}:{}", hex.collect::<String>())
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}
