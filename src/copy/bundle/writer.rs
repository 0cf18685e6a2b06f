//! Writes bundles.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::parts::PartsWriter;
use super::{BundleError, INDEX_FILE, LAYOUT, LAYOUT_FILE, blob_path};
use crate::oci::manifest::media_type;
use crate::oci::{Descriptor, Digest, Hasher};

/// A bundle that is being written. Dropping it before it is finished removes it.
pub struct BundleWriter {
    tar: tar::Builder<PartsWriter>,
    path: PathBuf,
    /// The blobs that are in it.
    written: HashSet<Digest>,
}

impl std::fmt::Debug for BundleWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BundleWriter").field(&self.path).finish()
    }
}

/// The index of a layout.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: &'a [Descriptor],
}

impl BundleWriter {
    /// Begins a bundle whose index has these entries. `max_size`: bytes of a part, where it is to be split.
    pub fn create(
        path: &Path,
        max_size: Option<u64>,
        entries: &[Descriptor],
    ) -> Result<Self, BundleError> {
        let mut writer = Self {
            tar: tar::Builder::new(PartsWriter::create(path, max_size)?),
            path: path.to_owned(),
            written: HashSet::new(),
        };
        let index = Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX,
            manifests: entries,
        };
        let index = serde_json::to_vec(&index).map_err(io::Error::from);
        let index = index.map_err(|source| writer.failed(source))?;
        writer.append(LAYOUT_FILE, LAYOUT.len() as u64, LAYOUT.as_bytes())?;
        writer.append(INDEX_FILE, index.len() as u64, &*index)?;
        Ok(writer)
    }

    /// Adds content of `size` bytes, unless the bundle has it. False where it has; nothing is read then.
    pub fn add(
        &mut self,
        digest: &Digest,
        size: u64,
        content: impl Read,
    ) -> Result<bool, BundleError> {
        if !self.written.insert(*digest) {
            return Ok(false);
        }
        let mut content = Hashed {
            content,
            hasher: Hasher::new(digest.algorithm()),
            read: 0,
        };
        // The archive takes no more than it was told.
        self.append(&blob_path(digest), size, (&mut content).take(size))?;
        let Hashed { hasher, read, .. } = content;
        if read != size {
            return Err(BundleError::Size {
                digest: (*digest).into(),
                expected: size,
                got: read,
            });
        }
        let got = hasher.finish();
        if got != *digest {
            return Err(BundleError::Digest {
                expected: (*digest).into(),
                got: got.into(),
            });
        }
        Ok(true)
    }

    fn append(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), BundleError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        // Equal images make equal bundles.
        header.set_mtime(0);
        let appended = self.tar.append_data(&mut header, name, content);
        appended.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> BundleError {
        BundleError::Io {
            operation: "written",
            path: self.path.clone(),
            source,
        }
    }

    /// Ends the bundle. Returns its files.
    pub fn finish(self) -> Result<Vec<PathBuf>, BundleError> {
        let path = self.path;
        let parts = self.tar.into_inner().map_err(|source| BundleError::Io {
            operation: "written",
            path,
            source,
        })?;
        parts.finish()
    }
}

/// Hashes and counts what is read.
struct Hashed<R> {
    content: R,
    hasher: Hasher,
    read: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        self.read += length as u64;
        Ok(length)
    }
}
