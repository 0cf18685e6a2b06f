//! Reads bundles.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::parts::PartsReader;
use super::{BundleError, Extent, INDEX_FILE, LAYOUT_FILE};
use crate::error_chain::quoted;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Algorithm, Descriptor, Digest, Manifest};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of an archive that aren't its files': the headers of all entries, with long names.
const MAX_HEADERS: u64 = 64 * 1024 * 1024;
/// The first bytes of compressed files: gzip, zstd, bzip2, xz.
const COMPRESSED: [&[u8]; 4] = [
    &[0x1f, 0x8b],
    &[0x28, 0xb5, 0x2f, 0xfd],
    b"BZh",
    &[0xfd, b'7', b'z'],
];

/// A bundle that is open.
#[derive(Debug)]
pub struct BundleReader {
    path: PathBuf,
    parts: PartsReader,
    /// Where each blob is, and how many bytes it has.
    blobs: HashMap<Digest, (u64, u64)>,
    index: Manifest,
}

impl BundleReader {
    /// Opens a bundle, and looks what is in it. Reads no blob.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let parts = PartsReader::open(path)?;
        let mut start = [0; 6];
        let read = parts.read_at(0, &mut start);
        let unreadable = |source| BundleError::Io {
            operation: "read",
            path: path.to_owned(),
            source,
        };
        read.map_err(unreadable)?;
        if is_compressed(&start) {
            let path = path.to_owned();
            return Err(BundleError::Compressed { path });
        }
        let length = parts.len();
        let mut archive = tar::Archive::new(Headers::of(parts));
        let found = look(&mut archive, length).map_err(|error| match error {
            Unusable::Io(source) => unreadable(source),
            Unusable::Shape(reason) => BundleError::NotABundle {
                path: path.to_owned(),
                reason,
            },
        })?;
        let Headers { archive: parts, .. } = archive.into_inner();
        let bad = |reason: String| BundleError::NotABundle {
            path: path.to_owned(),
            reason,
        };
        let document = |place: Option<(u64, u64)>, name: &str| match place {
            None => Err(bad(format!("it has no {name}"))),
            Some((_, size)) if size > MAX_MANIFEST => Err(bad(format!("its {name} is too large"))),
            Some((offset, size)) => read_all(&parts, offset, size).map_err(unreadable),
        };
        let layout: Result<Layout, _> =
            serde_json::from_slice(&document(found.layout, LAYOUT_FILE)?);
        if !layout.is_ok_and(|layout| layout.image_layout_version.starts_with("1.")) {
            return Err(bad(format!("the version in {LAYOUT_FILE} is unknown")));
        }
        let index = Manifest::parse(&document(found.index, INDEX_FILE)?);
        let index =
            index.map_err(|error| bad(format!("its {INDEX_FILE} can't be used: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            parts,
            blobs: found.blobs,
            index,
        })
    }

    /// The error of what is in it, and can't be used.
    pub(super) fn unusable(&self, reason: &str) -> BundleError {
        BundleError::NotABundle {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entries of its index.
    pub fn entries(&self) -> &[Descriptor] {
        &self.index.manifests
    }

    /// Bytes of a blob that it has.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|(_, size)| *size)
    }

    /// The blobs that it has.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.keys()
    }

    /// Where the bytes of a blob are that it has. The digest is verified by who gets all of them.
    pub fn extents(&self, digest: &Digest) -> Result<Vec<Extent>, BundleError> {
        let place = self.blobs.get(digest);
        let (start, size) = *place.ok_or_else(|| BundleError::Missing {
            digest: (*digest).into(),
        })?;
        Ok(self.parts.extents(start, size))
    }

    /// At most `max` bytes of a blob that it has, from `offset` on. Empty at the end.
    pub fn read(&self, digest: &Digest, offset: u64, max: usize) -> Result<Vec<u8>, BundleError> {
        let place = self.blobs.get(digest);
        let (start, size) = *place.ok_or_else(|| BundleError::Missing {
            digest: (*digest).into(),
        })?;
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let read = read_all(&self.parts, start + offset, left.min(max) as u64);
        read.map_err(|source| BundleError::Io {
            operation: "read",
            path: self.path.clone(),
            source,
        })
    }

    /// A manifest that it has, verified and parsed.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, BundleError> {
        if let Some(size) = self.size(digest).filter(|size| *size > MAX_MANIFEST) {
            return Err(BundleError::Size {
                digest: (*digest).into(),
                expected: MAX_MANIFEST,
                got: size,
            });
        }
        let content = self.read(digest, 0, usize::MAX)?;
        let got = Digest::of(digest.algorithm(), &content);
        if got != *digest {
            return Err(BundleError::Digest {
                expected: (*digest).into(),
                got: got.into(),
            });
        }
        Manifest::parse(&content).map_err(|source| BundleError::Manifest {
            digest: (*digest).into(),
            source,
        })
    }
}

/// Reads the headers of an archive, and skips its files. Long names are read into memory, so there is a bound.
pub(in crate::copy) struct Headers<R> {
    archive: R,
    /// How many bytes may still be read.
    left: u64,
}

impl<R> Headers<R> {
    pub(in crate::copy) fn of(archive: R) -> Self {
        let left = MAX_HEADERS;
        Self { archive, left }
    }
}

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.archive.read(buffer)?;
        let left = self.left.checked_sub(length as u64);
        self.left = left.ok_or_else(|| io::Error::other("its headers are too large"))?;
        Ok(length)
    }
}

impl<R: Seek> Seek for Headers<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.archive.seek(to)
    }
}

/// Whether a file that begins so is compressed.
pub(in crate::copy) fn is_compressed(start: &[u8]) -> bool {
    COMPRESSED.iter().any(|magic| start.starts_with(magic))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// Where the files of a layout are in an archive, and how many bytes they have.
#[derive(Debug, Default)]
struct Found {
    layout: Option<(u64, u64)>,
    index: Option<(u64, u64)>,
    blobs: HashMap<Digest, (u64, u64)>,
}

/// Why an archive can't be used.
enum Unusable {
    Io(io::Error),
    Shape(String),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The library's: a header is wrong.
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::Shape(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

/// Finds the files of a layout. Others are left alone.
fn look(archive: &mut tar::Archive<Headers<PartsReader>>, length: u64) -> Result<Found, Unusable> {
    let mut found = Found::default();
    for (count, entry) in archive.entries_with_seek()?.enumerate() {
        let entry = entry?;
        if count >= MAX_ENTRIES {
            return Err(Unusable::Shape(format!(
                "it has more than {MAX_ENTRIES} entries"
            )));
        }
        let name = entry.path_bytes();
        let place = (entry.raw_file_position(), entry.size());
        if place.0.checked_add(place.1).is_none_or(|end| end > length) {
            let name = quoted(&String::from_utf8_lossy(&name));
            return Err(Unusable::Shape(format!("it ends in the middle of {name}")));
        }
        let Some(file) = std::str::from_utf8(&name).ok().and_then(File::parse) else {
            continue;
        };
        if entry.header().entry_type() != tar::EntryType::Regular {
            if entry.header().entry_type().is_dir() {
                continue;
            }
            return Err(Unusable::Shape(
                "a file of the layout is a link or the like".to_owned(),
            ));
        }
        let is_new = match file {
            File::Layout => found.layout.replace(place).is_none(),
            File::Index => found.index.replace(place).is_none(),
            File::Blob(digest) => found.blobs.insert(digest, place).is_none(),
        };
        if !is_new {
            return Err(Unusable::Shape(
                "it has a file of the layout twice".to_owned(),
            ));
        }
    }
    Ok(found)
}

/// A file of a layout.
enum File {
    Layout,
    Index,
    Blob(Digest),
}

impl File {
    /// By its path in the layout.
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix("./").unwrap_or(path);
        match path {
            LAYOUT_FILE => Some(Self::Layout),
            INDEX_FILE => Some(Self::Index),
            path => {
                let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
                let algorithms = [Algorithm::Sha256, Algorithm::Sha512];
                let mut algorithms = algorithms.into_iter();
                let algorithm = algorithms.find(|known| known.as_str() == algorithm)?;
                Digest::from_parts(algorithm, hex).ok().map(Self::Blob)
            }
        }
    }
}

fn read_all(parts: &PartsReader, offset: u64, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_wider| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; size];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match parts.read_at(offset + read as u64, rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => read += length,
        }
    }
    Ok(bytes)
}
