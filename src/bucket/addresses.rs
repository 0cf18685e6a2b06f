//! Signed addresses of objects.

use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout};

use super::client::Objects;
use super::error::{BucketError, Told};
use super::keys;
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// How long an address is valid from its signature on.
const VALID_FOR: Duration = Duration::from_mins(15);
/// How long an address is given to further clients. Temporary credentials, which end with what they have
/// signed, are renewed in their last five minutes: so a minute is left at least.
const GIVEN_FOR: Duration = Duration::from_mins(4);
/// Addresses that are remembered, each of half a KiB to 2 KiB; the least used go first.
const MAX_ADDRESSES: usize = 10_000;
/// How long nothing is signed after that has failed.
const UNSIGNED_FOR: Duration = Duration::from_mins(1);

/// Addresses that were lately signed, by the digest of the content.
#[derive(Debug)]
pub(super) struct Addresses {
    known: Cache<Digest, (HeaderValue, Instant)>,
    /// Until when nothing is signed.
    failed: Mutex<Option<Instant>>,
    /// How long signing may take: some stores are asked for the signature.
    timeout: Duration,
}

impl Addresses {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            known: Cache::new(MAX_ADDRESSES),
            failed: Mutex::default(),
            timeout,
        }
    }

    /// An address that was signed lately.
    pub(super) fn known(&self, digest: &Digest) -> Option<HeaderValue> {
        let (address, until) = self.known.get(digest)?;
        (Instant::now() < until).then_some(address)
    }

    /// Signs the address at which anybody can read content. None where that fails, or failed lately.
    pub(super) async fn sign(&self, objects: &Objects, digest: &Digest) -> Option<HeaderValue> {
        let failed = *self.failed.lock();
        if failed.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let until = Instant::now() + GIVEN_FOR;
        let signing = timeout(self.timeout, signed(objects, digest));
        let signed = signing.await;
        match signed.unwrap_or(Err(BucketError::Late(self.timeout))) {
            Ok(address) => {
                self.known.insert(*digest, (address.clone(), until));
                Some(address)
            }
            Err(error) => {
                *self.failed.lock() = Some(Instant::now() + UNSIGNED_FOR);
                tracing::warn!(error = %on_one_line(&error), "an address of the bucket can't be signed; clients aren't redirected for a minute");
                None
            }
        }
    }
}

async fn signed(objects: &Objects, digest: &Digest) -> Result<HeaderValue, BucketError> {
    let url = objects.signed(&keys::blob(digest), VALID_FOR).await?;
    let url = url.ok_or_else(|| {
        BucketError::failed(Told("the bucket's kind signs no addresses".to_owned()))
    })?;
    let mut address = HeaderValue::from_str(url.as_str()).map_err(BucketError::failed)?;
    // Whoever has it can read the content.
    address.set_sensitive(true);
    Ok(address)
}
