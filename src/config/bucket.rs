//! The bucket behind the data directory: `storage.s3`, `storage.gcs` or `storage.azure`, with the
//! reference registry's keys, and `storage.shared` with ours.
//!
//! Each key of the reference registry's is honoured, ignored with a warning because it makes no
//! difference, or refused with the alternative.
//!
//! Sources: <https://distribution.github.io/distribution/storage-drivers/s3/>, `gcs/` and `azure/`
//! beside it.

mod azure;
mod common;
mod gcs;
mod s3;
mod shared;

use super::section::Section;
use super::storage::Storage;

pub use azure::{Azure, AzureCredentials};
pub use gcs::{Gcs, GcsKey};
pub use s3::{S3, S3Encryption, S3Keys};
pub use shared::{RedirectMode, SharedStorage};

/// The sections of buckets: the second is another name for the first.
const DRIVERS: [&str; 4] = ["s3", "s3aws", "gcs", "azure"];

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
    /// The name of the section: `s3`, `gcs` or `azure`.
    pub fn driver(&self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
            Self::Azure(_) => "azure",
        }
    }

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

/// Reads the bucket's keys of the section `storage`. `local` is the driver in front of the bucket, and
/// `has_directory` tells whether its directory is written.
pub(super) fn read(storage: &Section<'_>, local: &Storage, has_directory: bool) -> Option<Bucket> {
    let named: Vec<&'static str> = DRIVERS
        .into_iter()
        .filter(|driver| storage.has(driver))
        .collect();
    let stores: Vec<_> = named
        .iter()
        .map(|driver| storage.section(driver, |section| store(section, driver)))
        .collect();
    let has_bucket = !named.is_empty();
    let is_disabled = redirect_is_disabled(storage, has_bucket);
    let shared = storage.section("shared", |section| {
        shared::read(section, has_bucket, is_disabled)
    });
    if !has_bucket {
        storage.print_nothing("shared");
    }
    let (first, others) = named.split_first()?;
    let first = storage.path(first);
    for other in others {
        let reason = format!("and `{first}` are two buckets; keep one");
        storage.reject(other, reason);
    }
    if *local == Storage::Memory {
        let message = format!(
            "`{first}` can't be used with `storage.inmemory`: the bucket is a second tier behind a \
             data directory; write `storage.filesystem.rootdirectory`"
        );
        storage.problem_at(&first, message);
    } else if !has_directory {
        let message = format!(
            "`storage.filesystem.rootdirectory` is missing; write the data directory: the bucket \
             `{first}` is a second tier behind it"
        );
        storage.problem_at(&first, message);
    }
    let store = stores.into_iter().flatten().next()?;
    Some(Bucket { store, shared })
}

fn store(section: &Section<'_>, driver: &str) -> Option<BucketStore> {
    match driver {
        "gcs" => gcs::read(section).map(BucketStore::Gcs),
        "azure" => azure::read(section).map(BucketStore::Azure),
        _ => s3::read(section).map(BucketStore::S3),
    }
}

/// The reference registry's switch, whose default is the opposite of ours: it redirects always.
fn redirect_is_disabled(storage: &Section<'_>, has_bucket: bool) -> bool {
    if has_bucket {
        return storage.section("redirect", |redirect| redirect.bool("disable", false));
    }
    let reason = "blobs are never redirected to the storage";
    storage.ignore(&[("redirect", reason)]);
    false
}
