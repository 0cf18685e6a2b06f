//! What `docker save` writes: a tar with configurations, uncompressed layers, and `manifest.json`, which lists
//! them. There are no manifests in it as registries have them; they are made here, of Docker's schema 2, and
//! the layers keep their bytes.
//!
//! Nothing is extracted, and no path of the archive is used as one. Source: docker/cli, `docker save`;
//! moby/image/tarexport.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bundle::reader::{Headers, is_compressed};
use super::error::CopyError;
use super::files::{ImageFiles, NAME};
use super::layout::PIECE;
use crate::error_chain::quoted;
use crate::oci::manifest::{MAX_MANIFEST, media_type};
use crate::oci::{Algorithm, Descriptor, Digest, Hasher};

const LIST: &str = "manifest.json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const COMPRESSED_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// The most entries of an archive, and links on the way to a layer.
const MAX_ENTRIES: usize = 100_000;
const MAX_LINKS: usize = 8;

/// An archive that is open.
#[derive(Debug)]
pub(super) struct DockerArchive {
    path: PathBuf,
    file: File,
    entries: Vec<Descriptor>,
    content: HashMap<Digest, Content>,
}

#[derive(Debug)]
enum Content {
    /// In the file.
    At(Place),
    /// A manifest that was made.
    Made(Bytes),
}

/// Where bytes are in the file, and how many.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// An entry of the archive.
enum Entry {
    File(Place),
    /// To another one, relative to its own directory.
    Link(String),
}

/// An image, as `manifest.json` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl DockerArchive {
    /// Opens an archive and finds its images. Hashes layers only if they are compressed.
    pub(super) fn open(path: &Path) -> Result<Self, CopyError> {
        let unreadable = |error| CopyError::file(path, "it can't be read")(error);
        let file = File::open(path).map_err(unreadable)?;
        let mut archive = Self {
            path: path.to_owned(),
            file,
            entries: Vec::new(),
            content: HashMap::new(),
        };
        let mut start = [0; 6];
        archive.file.read_at(&mut start, 0).map_err(unreadable)?;
        if is_compressed(&start) {
            return Err(archive.broken("it is compressed; uncompress it first"));
        }
        let files = archive.files()?;
        let list = archive.document(&files, LIST)?;
        let list: Result<Vec<Listed>, _> = serde_json::from_slice(&list);
        let list =
            list.map_err(|error| archive.broken(format!("{LIST} can't be read: {error}")))?;
        for image in list {
            archive.add(&files, image)?;
        }
        Ok(archive)
    }

    fn broken(&self, problem: impl Into<String>) -> CopyError {
        CopyError::Files {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    fn failed(&self, error: io::Error) -> CopyError {
        CopyError::file(&self.path, "it can't be read")(error)
    }

    /// All files and links, by their names.
    fn files(&self) -> Result<HashMap<String, Entry>, CopyError> {
        let malformed =
            |error: io::Error| self.broken(format!("it is no archive of docker save: {error}"));
        let length = self
            .file
            .metadata()
            .map_err(|error| self.failed(error))?
            .len();
        let mut files = HashMap::new();
        let mut archive = tar::Archive::new(Headers::of(&self.file));
        for entry in archive.entries_with_seek().map_err(malformed)? {
            let entry = entry.map_err(malformed)?;
            let place = Place {
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            let kind = entry.header().entry_type();
            let found = if kind.is_file() {
                let end = place.offset.checked_add(place.size);
                if end.is_none_or(|end| end > length) {
                    return Err(self.broken(format!("it ends in the middle of {}", quoted(&name))));
                }
                Entry::File(place)
            } else if let Some(target) = entry.link_name_bytes().filter(|_| kind.is_symlink()) {
                Entry::Link(String::from_utf8_lossy(&target).into_owned())
            } else {
                continue;
            };
            files.insert(name, found);
            if files.len() > MAX_ENTRIES {
                return Err(self.broken(format!("it has more than {MAX_ENTRIES} files")));
            }
        }
        Ok(files)
    }

    /// Where a file is, behind links.
    fn place(&self, files: &HashMap<String, Entry>, name: &str) -> Result<Place, CopyError> {
        let mut at = name.to_owned();
        for _ in 0..=MAX_LINKS {
            match files.get(&at) {
                Some(Entry::File(place)) => return Ok(*place),
                Some(Entry::Link(target)) => at = beside(&at, target),
                None => break,
            }
        }
        Err(self.broken(format!("it has no {}", quoted(name))))
    }

    /// All of a small file.
    fn document(&self, files: &HashMap<String, Entry>, name: &str) -> Result<Bytes, CopyError> {
        let place = self.place(files, name)?;
        if place.size > MAX_MANIFEST {
            return Err(self.broken(format!("{} is too large", quoted(name))));
        }
        let size = usize::try_from(place.size).unwrap_or(usize::MAX);
        self.bytes(place, 0, size)
    }

    fn bytes(&self, place: Place, offset: u64, max: usize) -> Result<Bytes, CopyError> {
        let left = usize::try_from(place.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(max)];
        let read = self.file.read_exact_at(&mut bytes, place.offset + offset);
        read.map_err(|error| self.failed(error))?;
        Ok(bytes.into())
    }

    /// Makes the manifest of an image.
    fn add(&mut self, files: &HashMap<String, Entry>, image: Listed) -> Result<(), CopyError> {
        let bytes = self.document(files, &image.config)?;
        let config: Result<Config, _> = serde_json::from_slice(&bytes);
        let config =
            config.map_err(|error| self.broken(format!("{}: {error}", quoted(&image.config))))?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(self.broken(format!(
                "{} has other layers than {LIST}",
                quoted(&image.config)
            )));
        }
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(diff_ids) {
            let place = self.place(files, name)?;
            let (kind, digest) = self.layer(place, diff_id)?;
            self.content.insert(digest, Content::At(place));
            layers.push(described(kind, &digest, place.size));
        }
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let place = self.place(files, &image.config)?;
        self.content.insert(digest, Content::At(place));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": described(CONFIG, &digest, place.size), "layers": layers,
        });
        self.enter(
            manifest.to_string().into(),
            image.repo_tags.unwrap_or_default(),
        )
    }

    /// The media type and the digest of a layer, which is verified when it is copied.
    fn layer(&self, place: Place, diff_id: Digest) -> Result<(&'static str, Digest), CopyError> {
        if !is_compressed(&self.bytes(place, 0, 6)?) {
            return Ok((LAYER, diff_id));
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut at = 0;
        while at < place.size {
            let piece = self.bytes(place, at, PIECE)?;
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        Ok((COMPRESSED_LAYER, hasher.finish()))
    }

    /// Adds entries for a manifest, one for each of its names.
    fn enter(&mut self, manifest: Bytes, names: Vec<String>) -> Result<(), CopyError> {
        let digest = Digest::of(Algorithm::Sha256, &manifest);
        let entry = described(media_type::DOCKER_MANIFEST, &digest, manifest.len() as u64);
        let entry: Result<Descriptor, _> = serde_json::from_value(entry);
        let entry = entry.map_err(|error| self.broken(error.to_string()))?;
        self.content.insert(digest, Content::Made(manifest));
        if names.is_empty() {
            self.entries.push(entry.clone());
        }
        for name in names {
            let mut entry = entry.clone();
            entry.annotations.insert(NAME.to_owned(), name);
            self.entries.push(entry);
        }
        Ok(())
    }

    fn content(&self, digest: &Digest) -> Result<&Content, CopyError> {
        let content = self.content.get(digest);
        content.ok_or_else(|| self.broken(format!("it has no {digest}")))
    }
}

fn described(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

/// The name that a link's target has in the archive.
fn beside(link: &str, target: &str) -> String {
    let mut parts: Vec<_> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl ImageFiles for DockerArchive {
    fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> Result<Vec<Descriptor>, CopyError> {
        Ok(self.entries.clone())
    }

    fn size(&self, digest: &Digest) -> Result<u64, CopyError> {
        Ok(match self.content(digest)? {
            Content::At(place) => place.size,
            Content::Made(bytes) => bytes.len() as u64,
        })
    }

    fn read(&self, digest: &Digest, offset: u64, max: usize) -> Result<Bytes, CopyError> {
        match self.content(digest)? {
            Content::At(place) => self.bytes(*place, offset, max),
            Content::Made(bytes) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(max).min(bytes.len());
                Ok(bytes.slice(from..to))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::FileImage;
    use super::*;

    fn archive(entries: &[(&str, Result<&[u8], &str>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.as_file());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match content {
                Ok(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, name, *bytes).unwrap();
                }
                Err(target) => {
                    header.set_size(0);
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, name, target).unwrap();
                }
            }
        }
        tar.finish().unwrap();
        drop(tar);
        file
    }

    fn config(layers: &[&[u8]]) -> String {
        let digests = layers
            .iter()
            .map(|layer| Digest::of(Algorithm::Sha256, layer).to_string());
        json!({"rootfs": {"type": "layers", "diff_ids": digests.collect::<Vec<_>>()}}).to_string()
    }

    #[test]
    fn images_have_manifests_of_their_layers() {
        let (plain, packed) = (
            b"a plain layer".as_slice(),
            b"\x1f\x8bcompressed".as_slice(),
        );
        let config = config(&[plain, plain, b"what the compressed one has"]);
        let list = json!([{"Config": "c.json", "RepoTags": ["debian:12"],
            "Layers": ["a/layer.tar", "b/layer.tar", "c.tar"]}]);
        let file = archive(&[
            ("a/layer.tar", Ok(plain)),
            ("b/layer.tar", Err("../a/layer.tar")),
            ("c.tar", Ok(packed)),
            ("c.json", Ok(config.as_bytes())),
            (LIST, Ok(list.to_string().as_bytes())),
        ]);
        let archive: &dyn ImageFiles = &DockerArchive::open(file.path()).unwrap();
        assert_eq!(archive.names().unwrap(), ["debian:12"]);
        let image = archive.find(&FileImage::Name("docker.io/library/debian:12".to_owned()));
        let image = image.unwrap();
        assert_eq!(archive.find(&FileImage::Only).unwrap().digest, image.digest);
        let layers = &image.manifest.blobs;
        let kinds: Vec<_> = layers
            .iter()
            .map(|layer| layer.media_type.as_str())
            .collect();
        assert_eq!(kinds, [LAYER, LAYER, COMPRESSED_LAYER]);
        for (layer, bytes) in layers.iter().zip([plain, plain, packed]) {
            assert_eq!(layer.digest, Digest::of(Algorithm::Sha256, bytes));
            assert_eq!(archive.size(&layer.digest).unwrap(), bytes.len() as u64);
            assert_eq!(archive.read(&layer.digest, 2, 3).unwrap(), &bytes[2..5]);
            assert!(
                archive
                    .read(&layer.digest, layer.size, 9)
                    .unwrap()
                    .is_empty()
            );
        }
    }

    #[test]
    fn what_isnt_one_is_refused_with_the_reason() {
        let missing = json!([{"Config": "c.json", "Layers": ["../../etc/passwd"]}]).to_string();
        let config = config(&[b"x"]);
        for (entries, reason) in [
            (
                &[("a", Ok(b"".as_slice()))][..],
                "it has no \"manifest.json\"",
            ),
            (&[(LIST, Ok(b"{}"))], "manifest.json can't be read"),
            (&[(LIST, Ok(missing.as_bytes()))], "it has no \"c.json\""),
            (
                &[
                    (LIST, Ok(missing.as_bytes())),
                    ("c.json", Ok(config.as_bytes())),
                ],
                "it has no \"../../etc/passwd\"",
            ),
            (
                &[("a/b", Err("b")), (LIST, Err("a/b"))],
                "it has no \"manifest.json\"",
            ),
        ] {
            let file = archive(entries);
            let refused = DockerArchive::open(file.path()).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x1f\x8bx").unwrap();
        let refused = DockerArchive::open(file.path()).unwrap_err().to_string();
        assert!(refused.contains("compressed"), "{refused}");
    }

    #[test]
    fn what_is_read_of_headers_is_bounded() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(2 << 30);
        header.set_cksum();
        // A long name of 2 GiB, in a sparse file.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, header.as_bytes()).unwrap();
        file.as_file().set_len(3 << 30).unwrap();
        let refused = DockerArchive::open(file.path()).unwrap_err().to_string();
        assert!(refused.contains("its headers are too large"), "{refused}");
    }
}
