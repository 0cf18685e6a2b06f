//! Images in files, for reading: a directory with an image layout, an archive of one, or what `docker save`
//! writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::bundle::BundleError;
use super::bundle::reader::BundleReader;
use super::error::CopyError;
use super::location::Location;
use super::plan::Document;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Descriptor, Digest, Manifest, RepoName, Tag};

/// The annotation that names an image (image-spec, annotations.md).
pub(super) const NAME: &str = "org.opencontainers.image.ref.name";
/// Entries of an index that are read in search of referrers.
const MAX_ENTRIES: usize = 10_000;

/// Manifests, by the subject that they are attached to.
pub(super) type Attached = HashMap<Digest, Vec<Digest>>;

/// Files with images. All calls block.
pub trait ImageFiles: Debug + Send + Sync {
    fn path(&self) -> &Path;

    /// The entries of the index that can be read as descriptors.
    fn entries(&self) -> Result<Vec<Descriptor>, CopyError>;

    /// Bytes of a blob or a manifest.
    fn size(&self, digest: &Digest) -> Result<u64, CopyError>;

    /// At most `max` bytes of a blob or a manifest, from `offset` on; none at its end. They aren't verified.
    fn read(&self, digest: &Digest, offset: u64, max: usize) -> Result<Bytes, CopyError>;
}

/// What tells the images in files apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileImage {
    Name(String),
    Digest(Digest),
    /// The only one.
    Only,
}

/// The repository and the tag that the name of an image in files has: `12`, or `docker.io/library/debian:12`.
pub fn parts_of(name: &str) -> (Option<RepoName>, Option<Tag>) {
    if let Ok(tag) = name.parse() {
        return (None, Some(tag));
    }
    match name.parse() {
        Ok(Location::Registry(registry)) => (registry.repository, registry.tag),
        _ => (None, None),
    }
}

/// Whether a written name means the image with a name: `debian:12` is `docker.io/library/debian:12`.
fn means(written: &str, name: &str) -> bool {
    let full = |text: &str| text.parse::<Location>().ok().map(|image| image.to_string());
    written == name || (written.contains([':', '/']) && full(written) == full(name))
}

fn name(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(NAME).map(String::as_str)
}

impl dyn ImageFiles {
    fn broken(&self, problem: impl Into<String>) -> CopyError {
        CopyError::Files {
            path: self.path().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// The names of the images.
    pub(super) fn names(&self) -> Result<Vec<String>, CopyError> {
        let entries = self.entries()?;
        let mut names: Vec<_> = entries.iter().filter_map(name).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The image that is meant, verified.
    pub(super) fn find(&self, image: &FileImage) -> Result<Document, CopyError> {
        if let FileImage::Digest(digest) = image {
            return self.manifest(digest);
        }
        let entries = self.entries()?;
        let mut matching: Vec<_> = match image {
            FileImage::Name(written) => {
                let named =
                    |entry: &&Descriptor| name(entry).is_some_and(|name| means(written, name));
                entries.iter().filter(named).collect()
            }
            _ => entries.iter().collect(),
        };
        // One image may have several names; a referrer is no image of its own.
        matching.sort_by_key(|entry| entry.digest);
        matching.dedup_by_key(|entry| entry.digest);
        if matching.len() > 1 {
            matching.retain(|entry| {
                let document = self.manifest(&entry.digest);
                document.is_ok_and(|document| document.manifest.subject.is_none())
            });
        }
        match (matching.as_slice(), image) {
            ([found], _) => self.manifest(&found.digest),
            ([], FileImage::Name(written)) => {
                Err(self.broken(format!("no image is called {written}")))
            }
            ([], _) => Err(self.broken("there is no image")),
            _ => Err(self.broken("it has several images; write the name of one of them")),
        }
    }

    /// The digest of the image with a name, if there is one.
    pub(super) fn named(&self, tag: &Tag) -> Result<Option<Digest>, CopyError> {
        let entries = self.entries()?;
        let mut entries = entries.iter();
        let found = entries.find(|entry| name(entry) == Some(tag.as_str()));
        Ok(found.map(|entry| entry.digest))
    }

    /// A manifest, verified.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Document, CopyError> {
        let size = self.size(digest)?;
        if size > MAX_MANIFEST {
            return Err(self.broken(format!("the manifest {digest} is too large")));
        }
        let mut bytes = BytesMut::new();
        loop {
            let piece = self.read(digest, bytes.len() as u64, usize::MAX)?;
            bytes.extend_from_slice(&piece);
            if piece.is_empty() || bytes.len() as u64 >= size {
                break;
            }
        }
        let bytes = bytes.freeze();
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err(CopyError::WrongBytes(Box::new(*digest)));
        }
        let manifest = Manifest::parse(&bytes).map_err(|error| CopyError::Manifest {
            path: self.path().to_path_buf(),
            digest: Box::new(*digest),
            error: Arc::new(error),
        })?;
        Ok(Document {
            digest: *digest,
            bytes,
            manifest,
        })
    }

    /// The manifests among the entries that have a subject. Reads all of them.
    pub(super) fn attached(&self) -> Result<Attached, CopyError> {
        let mut found = Attached::new();
        for entry in self.entries()?.iter().take(MAX_ENTRIES) {
            // What can't be read is no referrer.
            let document = self.manifest(&entry.digest).ok();
            if let Some(subject) = document.and_then(|document| document.manifest.subject) {
                let attached = found.entry(subject.digest).or_default();
                if !attached.contains(&entry.digest) {
                    attached.push(entry.digest);
                }
            }
        }
        Ok(found)
    }
}

impl ImageFiles for BundleReader {
    fn path(&self) -> &Path {
        Self::path(self)
    }

    fn entries(&self) -> Result<Vec<Descriptor>, CopyError> {
        Ok(Self::entries(self).to_vec())
    }

    fn size(&self, digest: &Digest) -> Result<u64, CopyError> {
        let size = Self::size(self, digest);
        size.ok_or_else(|| {
            BundleError::Missing {
                digest: (*digest).into(),
            }
            .into()
        })
    }

    fn read(&self, digest: &Digest, offset: u64, max: usize) -> Result<Bytes, CopyError> {
        Ok(Self::read(self, digest, offset, max)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_in_files() {
        for (name, repository, tag) in [
            ("12", None, Some("12")),
            ("debian:12", Some("library/debian"), Some("12")),
            ("ghcr.io/a/b:c", Some("a/b"), Some("c")),
            ("a b", None, None),
        ] {
            let (of_name, tag_of_name) = parts_of(name);
            assert_eq!(of_name.as_ref().map(RepoName::as_str), repository);
            assert_eq!(tag_of_name.as_ref().map(Tag::as_str), tag);
        }
        for (written, name, is_meant) in [
            ("12", "12", true),
            ("debian:12", "docker.io/library/debian:12", true),
            ("docker.io/library/debian:12", "debian:12", true),
            ("12", "docker.io/library/12", false),
            ("debian:12", "debian:13", false),
            ("a b", "a  b", false),
        ] {
            assert_eq!(means(written, name), is_meant, "{written} {name}");
        }
    }
}
