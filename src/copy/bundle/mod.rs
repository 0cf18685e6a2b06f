//! Bundles: images in one file, to be carried where no registry can be reached.
//!
//! A bundle is an archive (tar) of an OCI image layout (image-spec, image-layout.md), which other tools
//! read as `oci-archive:FILE:NAME`. Each blob is in it once. `index.json` comes first; it has an entry for
//! each name of an image, and one for each manifest that is attached to an image; images of Docker's types have
//! a second one for other tools ([`stand_in`]). Beside the file, `FILE.sha256`
//! has its sum. A large bundle may be split into `FILE.001`, `FILE.002`, ..., whose concatenation is the
//! archive.
//!
//! A bundle may come from anywhere: [`reader`] extracts nothing, takes no path from it, and bounds what it
//! reads of it into memory. All calls block.

mod parts;
pub mod plan;
pub mod reader;
pub mod stand_in;
#[cfg(test)]
mod tests;
pub mod writer;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::oci::Digest;
use crate::oci::manifest::ManifestError;

/// The annotation with an image's name (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's annotation with an image's full name, where `ref.name` may be the tag alone.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// The file that names the version of the layout.
const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_FILE: &str = "index.json";

/// Bytes of a file, for those who let the kernel copy them.
#[derive(Debug, Clone)]
pub struct Extent {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u64,
}

/// Why a bundle can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{} can't be {operation}: {source}", path.display())]
    Io {
        /// A participle.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} isn't an archive of an OCI image layout: {reason}", path.display())]
    NotABundle { path: PathBuf, reason: String },
    #[error("{} is {what}; remove it, or choose another name", path.display())]
    InTheWay { path: PathBuf, what: &'static str },
    #[error("{} is compressed; uncompress it first", path.display())]
    Compressed { path: PathBuf },
    #[error("the bundle has no {digest}")]
    Missing { digest: Box<Digest> },
    #[error("{expected} has the digest {got}")]
    Digest {
        expected: Box<Digest>,
        got: Box<Digest>,
    },
    #[error("{digest} has {got} bytes, and not {expected}")]
    Size {
        digest: Box<Digest>,
        expected: u64,
        got: u64,
    },
    #[error("the manifest {digest} can't be used")]
    Manifest {
        digest: Box<Digest>,
        source: ManifestError,
    },
}

/// The path of a blob in a layout.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
