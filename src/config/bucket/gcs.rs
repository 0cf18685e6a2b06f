//! `storage.gcs`: Google Cloud Storage.

use std::path::PathBuf;

use crate::config::secret::Secret;

/// A bucket in Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gcs {
    pub bucket: String,
    /// Without a key, the application default credentials: `GOOGLE_APPLICATION_CREDENTIALS`, those of
    /// `gcloud auth application-default login`, or the instance's.
    pub key: Option<GcsKey>,
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub root: String,
    /// The bytes of each part of an upload, 5 MiB to 5 GiB.
    pub chunk_size: u64,
}

/// The key of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcsKey {
    File(PathBuf),
    /// The JSON document that such a file has.
    Json(Secret),
}
