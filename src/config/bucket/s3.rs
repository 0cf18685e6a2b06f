//! `storage.s3`: Amazon S3 and the servers that speak its protocol.

use url::Url;

use crate::config::registry_url::authority;
use crate::config::secret::Secret;

/// A bucket in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// `http` or `https`, without credentials, query and fragment. None is Amazon's, over TLS.
    pub endpoint: Option<Url>,
    /// Whether the bucket's name is in the path of URLs, and not in their host.
    pub force_path_style: bool,
    /// Without keys, credentials come from the environment: variables, a web identity, or the
    /// instance.
    pub keys: Option<S3Keys>,
    /// Whether certificates aren't checked.
    pub skip_verify: bool,
    /// What the server is told to encrypt objects with. None leaves that to the bucket's settings.
    pub encryption: Option<S3Encryption>,
    /// The class of new objects, as `x-amz-storage-class` has it. None leaves out the header.
    ///
    /// `object_store` sends it for `Attribute::StorageClass` of an upload.
    pub storage_class: Option<String>,
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub root: String,
    /// The bytes of each part of an upload, 5 MiB to 5 GiB.
    pub chunk_size: u64,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Keys {
    pub access: String,
    pub secret: Secret,
    /// Of temporary keys.
    pub token: Option<Secret>,
}

/// The server's encryption of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Encryption {
    /// With keys of the store's own (`AES256`).
    Store,
    /// With a key of the key management service (`aws:kms`), by its id.
    Kms(String),
}

impl S3 {
    /// The URL that the names of objects are appended to, without a slash at the end:
    /// `https://bucket.s3.eu-west-1.amazonaws.com` or `http://minio:9000/bucket`.
    pub fn url(&self) -> String {
        let (scheme, host) = match &self.endpoint {
            Some(endpoint) => {
                let host = authority(endpoint);
                let path = endpoint.path().trim_end_matches('/');
                (endpoint.scheme(), format!("{host}{path}"))
            }
            None => ("https", amazon(&self.region)),
        };
        if self.force_path_style {
            format!("{scheme}://{host}/{}", self.bucket)
        } else {
            format!("{scheme}://{}.{host}", self.bucket)
        }
    }

    /// Whether the connection is encrypted, so that payloads needn't be signed.
    pub fn is_secure(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        endpoint.is_none_or(|endpoint| endpoint.scheme() == "https")
    }
}

/// The host of S3 in a region. China's are in a domain of their own.
fn amazon(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{suffix}")
}
