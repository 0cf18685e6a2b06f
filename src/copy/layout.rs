//! OCI image layouts in directories: reading, and writing so that an interrupted copy can go on.
//!
//! ```text
//! oci-layout            {"imageLayoutVersion": "1.0.0"}
//! index.json            the images, by their names (org.opencontainers.image.ref.name), and referrers
//! blobs/<alg>/<hex>     content, manifests included
//! blobs/<alg>/<hex>.part   a blob that isn't complete
//! ```
//!
//! A blob gets its name once its digest is verified and it is synced; `index.json` is replaced by a rename.
//! One run at a time writes to a directory. Nothing but digests becomes a path. Source: image-spec image-layout.md.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bundle::writer::BundleWriter;
use super::error::CopyError;
use super::files::{ImageFiles, NAME};
use super::plan::Document;
use crate::oci::manifest::media_type;
use crate::oci::{Algorithm, Descriptor, Digest, Hasher, Tag};

/// The largest `index.json`, in bytes.
const MAX_INDEX: u64 = 16 * 1024 * 1024;
/// Bytes that are read at a time.
pub(super) const PIECE: usize = 256 * 1024;

/// A directory with an image layout.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: Arc<Path>,
    /// Held while `index.json` changes or a manifest is written, by one of the copies of this process.
    changing: Arc<Mutex<()>>,
    /// The directory, locked by the run that writes to it.
    held: Arc<Mutex<Option<File>>>,
}

/// `index.json`, with all that others have written in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u64,
    #[serde(default = "index_type")]
    media_type: String,
    #[serde(default)]
    manifests: Vec<Value>,
    #[serde(flatten)]
    more: serde_json::Map<String, Value>,
}

fn index_type() -> String {
    media_type::OCI_INDEX.to_owned()
}

/// A blob that is being written.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    digest: Digest,
    hasher: Hasher,
    /// Bytes that are there and hashed.
    pub at: u64,
}

impl Layout {
    /// Nothing is read or written yet.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            changing: Arc::default(),
            held: Arc::default(),
        }
    }

    /// Lets no other run write to the directory, which is created, as long as this value or a clone lives. An
    /// error if one does: both would write the same parts of blobs, and `index.json`.
    pub(super) fn lock(&self) -> Result<(), CopyError> {
        let mut held = self.held.lock();
        if held.is_some() {
            return Ok(());
        }
        let root = &*self.root;
        fs::create_dir_all(root).map_err(CopyError::file(root, "it can't be created"))?;
        let directory = File::open(root);
        let directory = directory.map_err(CopyError::file(root, "it can't be opened"))?;
        // A file system without locks has none to wait for.
        if flock(&directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(self.broken("another run is writing to it; try again when that has ended"));
        }
        *held = Some(directory);
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let algorithm = digest.algorithm().as_str();
        self.root.join("blobs").join(algorithm).join(digest.hex())
    }

    fn broken(&self, problem: impl Into<String>) -> CopyError {
        CopyError::Files {
            path: self.root.to_path_buf(),
            problem: problem.into(),
        }
    }

    fn read_index(&self) -> Result<Index, CopyError> {
        let path = self.root.join("index.json");
        let bytes = read_all(&path, MAX_INDEX)?;
        let index: Result<Index, _> = serde_json::from_slice(&bytes);
        index.map_err(|error| self.broken(format!("index.json is not that of a layout: {error}")))
    }

    /// Whether a blob of this size is there.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Whether it has an index.
    pub(super) fn exists(&self) -> bool {
        self.root.join("index.json").exists()
    }

    /// Forgets the images; their content stays.
    pub(super) fn forget(&self) -> Result<(), CopyError> {
        let path = self.root.join("index.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CopyError::file(path, "it can't be removed")(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes an archive with the images of the index, and what belongs to them.
    pub(super) fn pack(&self, archive: &Path) -> Result<(), CopyError> {
        let entries = self.entries()?;
        let mut writer = BundleWriter::create(archive, None, &entries)?;
        let mut waiting: Vec<Digest> = entries.iter().map(|entry| entry.digest).collect();
        while let Some(digest) = waiting.pop() {
            let document = (self as &dyn ImageFiles).manifest(&digest)?;
            let size = document.bytes.len() as u64;
            if writer.add(&digest, size, &*document.bytes)? {
                waiting.extend(document.children().map(|child| child.digest));
                for blob in document.blobs() {
                    let path = self.blob(&blob.digest);
                    let file = File::open(&path);
                    let file = file.map_err(CopyError::file(path, "the blob can't be read"))?;
                    writer.add(&blob.digest, blob.size, file)?;
                }
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// Removes the layout, and the directory unless there is something else in it.
    pub(super) fn remove(&self) -> Result<(), CopyError> {
        let removed = fs::remove_dir_all(self.root.join("blobs"))
            .and_then(|()| fs::remove_file(self.root.join("index.json")))
            .and_then(|()| fs::remove_file(self.root.join("oci-layout")))
            .and_then(|()| match fs::remove_dir(&self.root) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed,
            });
        removed.map_err(CopyError::file(&*self.root, "it can't be removed"))
    }

    /// Creates what a layout has, unless that is there. A layout of others may lack the directory of an
    /// algorithm.
    pub(super) fn create(&self) -> Result<(), CopyError> {
        for algorithm in Algorithm::ALL {
            let path = self.root.join("blobs").join(algorithm.as_str());
            fs::create_dir_all(&path).map_err(CopyError::file(path, "it can't be created"))?;
        }
        let marker = self.root.join("oci-layout");
        if marker.exists() {
            return Ok(());
        }
        replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// A blob to be written, or what is there of it.
    pub(super) fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, CopyError> {
        let target = self.blob(digest);
        let path = target.with_extension("part");
        let failed = || CopyError::file(&path, "the blob can't be written");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(failed())?;
        let (mut hasher, mut at) = (Hasher::new(digest.algorithm()), 0);
        let mut buffer = vec![0; PIECE];
        loop {
            let length = file.read(&mut buffer).map_err(failed())?;
            if length == 0 || at > size {
                break;
            }
            hasher.update(buffer.get(..length).unwrap_or_default());
            at += length as u64;
        }
        let mut partial = Partial {
            file,
            path,
            target,
            digest: *digest,
            hasher,
            at,
        };
        if at > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Writes a manifest; it isn't an entry of `index.json` yet.
    pub(super) fn put_manifest(&self, document: &Document) -> Result<(), CopyError> {
        let _changing = self.changing.lock();
        if self.has(&document.digest, document.bytes.len() as u64) {
            return Ok(());
        }
        replace(&self.blob(&document.digest), &document.bytes)
    }

    /// Adds an entry to `index.json`: of an image with this name, instead of another one with it; or of a
    /// referrer, without.
    pub(super) fn enter(&self, document: &Document, tag: Option<&Tag>) -> Result<(), CopyError> {
        let _changing = self.changing.lock();
        let path = self.root.join("index.json");
        let mut index = if self.exists() {
            self.read_index()?
        } else {
            Index {
                schema_version: 2,
                media_type: index_type(),
                manifests: Vec::new(),
                more: serde_json::Map::new(),
            }
        };
        let mut descriptor = document
            .manifest
            .descriptor(document.digest, document.bytes.len() as u64);
        descriptor.annotations.clear();
        if document.manifest.subject.is_none() {
            descriptor.artifact_type = None;
        }
        if let Some(tag) = tag {
            let name = (NAME.to_owned(), tag.to_string());
            descriptor.annotations.extend([name]);
        }
        let written =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let digest = document.digest.to_string();
        index.manifests.retain(|entry| {
            let annotations = entry.get("annotations");
            let name = annotations.and_then(|annotations| written(annotations, NAME));
            let is_same = written(entry, "digest").as_deref() == Some(&*digest);
            match tag {
                Some(tag) => name.as_deref() != Some(tag.as_str()),
                None => !(is_same && name.is_none()),
            }
        });
        let entry = serde_json::to_value(&descriptor);
        index.manifests.extend(entry);
        let text = serde_json::to_vec(&index).map_err(|error| self.broken(error.to_string()))?;
        replace(&path, &text)
    }
}

impl ImageFiles for Layout {
    fn path(&self) -> &Path {
        &self.root
    }

    fn entries(&self) -> Result<Vec<Descriptor>, CopyError> {
        let index = self.read_index()?;
        let entries = index.manifests.into_iter();
        Ok(entries
            .filter_map(|entry| serde_json::from_value(entry).ok())
            .collect())
    }

    fn size(&self, digest: &Digest) -> Result<u64, CopyError> {
        let path = self.blob(digest);
        let found = fs::metadata(&path);
        let found = found.map_err(CopyError::file(path, "the blob can't be read"))?;
        Ok(found.len())
    }

    fn read(&self, digest: &Digest, offset: u64, max: usize) -> Result<Bytes, CopyError> {
        let path = self.blob(digest);
        let mut bytes = vec![0; max.min(PIECE)];
        let read = File::open(&path).and_then(|file| file.read_at(&mut bytes, offset));
        let length = read.map_err(CopyError::file(path, "the blob can't be read"))?;
        bytes.truncate(length);
        Ok(bytes.into())
    }
}

impl Partial {
    /// Appends bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let written = self.file.write_all_at(bytes, self.at);
        written.map_err(CopyError::file(&self.path, "the blob can't be written"))?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), CopyError> {
        let emptied = self.file.set_len(0);
        emptied.map_err(CopyError::file(&self.path, "the blob can't be written"))?;
        self.hasher = Hasher::new(self.digest.algorithm());
        self.at = 0;
        Ok(())
    }

    /// Gives the blob its name if the bytes are right; forgets them if not.
    pub(super) fn commit(mut self) -> Result<(), CopyError> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.digest.algorithm()));
        if hasher.finish() != self.digest {
            self.restart()?;
            return Err(CopyError::WrongBytes(Box::new(self.digest)));
        }
        let renamed = self.file.sync_data();
        let renamed = renamed.and_then(|()| fs::rename(&self.path, &self.target));
        renamed.map_err(CopyError::file(self.target, "the blob can't be written"))
    }
}

/// All of a file of at most `limit` bytes.
fn read_all(path: &Path, limit: u64) -> Result<Vec<u8>, CopyError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        let length = file.take(limit + 1).read_to_end(&mut bytes)?;
        let fits = length as u64 <= limit;
        fits.then_some(())
            .ok_or_else(|| io::Error::other("it is too large"))
    });
    read.map_err(CopyError::file(path, "it can't be read"))?;
    Ok(bytes)
}

/// Writes a file under another name, and renames it once it is synced.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), CopyError> {
    // Not that of a blob: a hostile image may have one digest as both.
    let temporary = path.with_extension("new");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    });
    written.map_err(CopyError::file(path, "it can't be written"))
}

#[cfg(test)]
mod tests {
    use super::super::files::FileImage;
    use super::*;
    use crate::oci::Manifest;
    use serde_json::json;

    fn document(n: u8) -> Document {
        let config = Digest::of(Algorithm::Sha256, &[n]).to_string();
        let config = json!({"mediaType": "a/b", "digest": config, "size": 1});
        let bytes = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        Document {
            digest: Digest::of(Algorithm::Sha256, bytes.as_bytes()),
            manifest: Manifest::parse(bytes.as_bytes()).unwrap(),
            bytes: bytes.into(),
        }
    }

    #[test]
    fn images_are_found_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(&directory.path().join("new"));
        layout.create().unwrap();
        let (one, other) = (document(1), document(2));
        let tag: Tag = "one".parse().unwrap();
        let files: &dyn ImageFiles = &layout;
        let named = |name: &str| FileImage::Name(name.to_owned());
        assert!(files.find(&FileImage::Only).is_err());
        for document in [&one, &other] {
            layout.put_manifest(document).unwrap();
            layout.enter(document, Some(&tag)).unwrap();
        }
        assert_eq!(
            files.named(&tag).unwrap(),
            Some(other.digest),
            "it has moved"
        );
        assert_eq!(files.find(&FileImage::Only).unwrap().digest, other.digest);
        layout.enter(&one, Some(&"two".parse().unwrap())).unwrap();
        assert_eq!(files.find(&named("two")).unwrap().digest, one.digest);
        assert_eq!(
            files.find(&FileImage::Digest(one.digest)).unwrap().bytes,
            one.bytes
        );
        assert!(files.find(&FileImage::Only).is_err(), "which of them?");
        assert!(files.find(&named("three")).is_err());
        assert_eq!(files.names().unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_blob_is_resumed_and_has_its_name_only_when_it_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        layout.create().unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(2 * PIECE + 7).collect();
        let (digest, size) = (Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
        let mut partial = layout.partial(&digest, size).unwrap();
        partial.append(&bytes[..=PIECE]).unwrap();
        drop(partial);
        let mut partial = layout.partial(&digest, size).unwrap();
        assert_eq!(partial.at, PIECE as u64 + 1);
        partial.append(&bytes[PIECE + 1..]).unwrap();
        assert!(!layout.has(&digest, size));
        partial.commit().unwrap();
        assert!(layout.has(&digest, size) && !layout.has(&digest, size - 1));
        // Wrong bytes, and too many.
        let wrong = Digest::of(Algorithm::Sha256, b"x");
        let mut partial = layout.partial(&wrong, 1).unwrap();
        partial.append(b"y").unwrap();
        assert!(matches!(partial.commit(), Err(CopyError::WrongBytes(_))));
        assert!(!layout.has(&wrong, 1));
        let mut partial = layout.partial(&wrong, 1).unwrap();
        assert_eq!(partial.at, 0, "they are forgotten");
        partial.append(b"xyz").unwrap();
        drop(partial);
        assert_eq!(layout.partial(&wrong, 1).unwrap().at, 0);
    }

    #[test]
    fn a_layout_of_others_gets_the_directories_that_it_lacks() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("oci-layout"), "{}").unwrap();
        let layout = Layout::new(directory.path());
        layout.create().unwrap();
        let digest = Digest::of(Algorithm::Sha512, b"x");
        let mut partial = layout.partial(&digest, 1).unwrap();
        partial.append(b"x").unwrap();
        partial.commit().unwrap();
        assert!(layout.has(&digest, 1));
    }

    #[test]
    fn a_manifest_leaves_a_blob_of_its_digest_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        layout.create().unwrap();
        let document = document(1);
        let (size, middle) = (document.bytes.len() as u64, document.bytes.len() / 2);
        let mut partial = layout.partial(&document.digest, size).unwrap();
        partial.append(&document.bytes[..middle]).unwrap();
        layout.put_manifest(&document).unwrap();
        partial.append(&document.bytes[middle..]).unwrap();
        partial.commit().unwrap();
        let files: &dyn ImageFiles = &layout;
        assert_eq!(
            files.manifest(&document.digest).unwrap().bytes,
            document.bytes
        );
    }

    #[test]
    fn what_isnt_of_the_layout_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("layout");
        let layout = Layout::new(&root);
        layout.lock().unwrap();
        layout.lock().unwrap();
        assert!(Layout::new(&root).lock().is_err());
        layout.create().unwrap();
        layout.enter(&document(1), None).unwrap();
        fs::write(root.join("mine"), "x").unwrap();
        layout.remove().unwrap();
        let left = fs::read_dir(&root).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine"]);
    }

    #[test]
    fn a_layout_of_others_keeps_what_isnt_known() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        layout.create().unwrap();
        let index = json!({"schemaVersion": 2, "annotations": {"a": "b"},
            "manifests": [{"mediaType": "x/y", "digest": "blake3:1", "size": 1}]});
        fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
        layout.put_manifest(&document(1)).unwrap();
        layout.enter(&document(1), None).unwrap();
        layout.enter(&document(1), None).unwrap();
        let written = fs::read(directory.path().join("index.json")).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["annotations"]["a"], "b");
        assert_eq!(written["manifests"].as_array().unwrap().len(), 2);
        assert_eq!(written["manifests"][0]["digest"], "blake3:1");
    }
}
