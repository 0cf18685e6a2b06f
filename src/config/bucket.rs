//! The bucket behind the data directory: `storage.s3`, `storage.gcs` or `storage.azure`, with the
//! reference registry's keys, and `storage.shared` with ours.
//!
//! Sources: <https://distribution.github.io/distribution/storage-drivers/s3/>, `gcs/` and `azure/`
//! beside it.

mod azure;
mod gcs;
mod s3;
mod shared;

pub use azure::{Azure, AzureCredentials};
pub use gcs::{Gcs, GcsKey};
pub use s3::{S3, S3Encryption, S3Keys};
pub use shared::{RedirectMode, SharedStorage};

/// A bucket of an object store, which several replicas may share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub store: BucketStore,
    pub shared: SharedStorage,
}

/// Where the bucket is, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketStore {
    S3(S3),
    Gcs(Gcs),
    Azure(Azure),
}

impl BucketStore {
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub fn root(&self) -> &str {
        match self {
            Self::S3(s3) => &s3.root,
            Self::Gcs(gcs) => &gcs.root,
            Self::Azure(azure) => &azure.root,
        }
    }

    /// The bytes of each part of an upload, 5 MiB to 5 GiB. Smaller objects are uploaded at once.
    pub fn chunk_size(&self) -> u64 {
        match self {
            Self::S3(s3) => s3.chunk_size,
            Self::Gcs(gcs) => gcs.chunk_size,
            Self::Azure(azure) => azure.chunk_size,
        }
    }
}
