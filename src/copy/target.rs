//! Where images are copied to: a registry, an image layout, or an archive of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Mutex as TurnMutex, OnceCell};

use super::error::CopyError;
use super::events::BlobEnd;
use super::files::ImageFiles;
use super::host::Host;
use super::layout::Layout;
use super::plan::Document;
use super::source::{blocking, referrers_tag};
use super::upload_mode::UploadMode;
use crate::oci::manifest::media_type;
use crate::oci::{Accept, Descriptor, Digest, Manifest, ManifestType, Reference, RepoName, Tag};
use crate::upstream::{Upstream, UpstreamError};

/// Where an image is copied to.
#[derive(Debug, Clone)]
pub enum Target {
    Registry(Arc<RegistryTarget>),
    Layout(Arc<LayoutTarget>),
}

/// A repository of a registry.
pub struct RegistryTarget {
    pub(super) upstream: Arc<Upstream>,
    pub(super) repository: RepoName,
    pub(super) host: Arc<Host>,
    /// How uploads are sent: what the registry has accepted.
    pub(super) mode: Mutex<UploadMode>,
    known: Known,
    /// Held while the tag with the referrers of a manifest changes.
    listing: TurnMutex<()>,
}

/// An image layout. An archive is written from a layout beside it, whose content a later run uses again.
#[derive(Debug)]
pub struct LayoutTarget {
    pub(super) layout: Layout,
    archive: Option<PathBuf>,
    known: Known,
    /// Whether the layout is there.
    created: OnceCell<()>,
}

/// The blobs that this run has dealt with, each once.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<Digest, Arc<OnceCell<BlobEnd>>>>);

impl Known {
    pub(super) fn of(&self, digest: &Digest) -> Arc<OnceCell<BlobEnd>> {
        Arc::clone(self.0.lock().entry(*digest).or_default())
    }
}

impl std::fmt::Debug for RegistryTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RegistryTarget")
            .field(&self.repository)
            .finish()
    }
}

impl RegistryTarget {
    pub fn new(upstream: Arc<Upstream>, repository: RepoName, host: Arc<Host>) -> Self {
        Self {
            upstream,
            repository,
            host,
            mode: Mutex::new(UploadMode::Streamed),
            known: Known::default(),
            listing: TurnMutex::default(),
        }
    }

    /// The digest that the repository has under a reference, if it has one.
    async fn digest_of(&self, reference: &Reference) -> Result<Option<Digest>, CopyError> {
        let accept = Accept::everything();
        let ask = async || {
            let head = self
                .upstream
                .head_manifest(&self.repository, reference, &accept, None)
                .await?;
            // A registry that names no digest is asked for the manifest itself.
            match head.digest {
                Some(digest) => Ok(digest),
                None => Ok(self.get(reference).await?.0),
            }
        };
        match self.host.ask(ask).await {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(CopyError::Destination(error)),
        }
    }

    async fn get(&self, reference: &Reference) -> Result<(Digest, Bytes, Manifest), UpstreamError> {
        let accept = Accept::everything();
        let got = self
            .upstream
            .get_manifest(&self.repository, reference, &accept);
        let fetched = got.await?.verify()?;
        Ok((fetched.digest, fetched.bytes, fetched.manifest))
    }

    async fn put(
        &self,
        reference: &Reference,
        kind: ManifestType,
        bytes: &Bytes,
    ) -> Result<bool, CopyError> {
        let ask = async || {
            let (upstream, bytes) = (&self.upstream, bytes.clone());
            upstream
                .put_manifest(&self.repository, reference, kind, bytes)
                .await
        };
        let pushed = self.host.ask(ask).await.map_err(CopyError::Destination)?;
        Ok(pushed.is_listed)
    }

    /// Lists a manifest among the referrers of its subject, under the tag that stands for an API that the
    /// registry lacks (distribution-spec, "Pushing Manifests with Subject").
    async fn list(&self, document: &Document, subject: &Digest) -> Result<(), CopyError> {
        let Some(tag) = referrers_tag(subject) else {
            return Ok(());
        };
        let _listing = self.listing.lock().await;
        let reference = Reference::Tag(tag);
        let ask = async || match self.get(&reference).await {
            Ok((_, bytes, _)) => Ok(Some(bytes)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let current = self.host.ask(ask).await.map_err(CopyError::Destination)?;
        if let Some(index) = with_entry(current.as_deref(), document) {
            self.put(&reference, ManifestType::OciIndex, &index.into())
                .await?;
        }
        Ok(())
    }
}

/// The index `current`, or a new one, with an entry for a manifest; None if it has that already.
fn with_entry(current: Option<&[u8]>, document: &Document) -> Option<Vec<u8>> {
    let Document {
        digest,
        bytes,
        manifest,
    } = document;
    let entry = serde_json::to_value(manifest.descriptor(*digest, bytes.len() as u64)).ok()?;
    let empty = || json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []});
    let current = current.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let mut index = current.filter(Value::is_object).unwrap_or_else(empty);
    let entries = index
        .as_object_mut()?
        .entry("manifests")
        .or_insert_with(|| json!([]));
    let entries = entries.as_array_mut()?;
    let is_same = |other: &Value| other.get("digest") == entry.get("digest");
    if entries.iter().any(is_same) {
        return None;
    }
    entries.push(entry);
    serde_json::to_vec(&index).ok()
}

/// Added to an archive's name for the directory that it is written from.
const UNPACKED: &str = ".unpacked";

fn is_missing(error: &UpstreamError) -> bool {
    error.status() == Some(404)
}

impl LayoutTarget {
    pub fn directory(path: &Path) -> Self {
        Self {
            layout: Layout::new(path),
            archive: None,
            known: Known::default(),
            created: OnceCell::new(),
        }
    }

    pub fn archive(path: &Path) -> Self {
        let mut directory = path.as_os_str().to_owned();
        directory.push(UNPACKED);
        Self {
            archive: Some(path.to_owned()),
            ..Self::directory(directory.as_ref())
        }
    }

    /// Creates the layout. That of an archive has only the images of this run.
    pub(super) async fn create(&self) -> Result<(), CopyError> {
        let is_archive = self.archive.is_some();
        let create = async || {
            let create = move |layout: &Layout| {
                layout.lock()?;
                if is_archive {
                    layout.forget()?;
                }
                layout.create()
            };
            blocking(&self.layout, create).await
        };
        self.created.get_or_try_init(create).await.copied()
    }

    /// Writes the archive, if it is one and images were copied. Removes what it was written from if that
    /// is complete.
    pub(super) async fn finish(&self, is_complete: bool) -> Result<(), CopyError> {
        let Some(archive) = self.archive.clone().filter(|_| self.created.initialized()) else {
            return Ok(());
        };
        let finish = move |layout: &Layout| {
            if layout.exists() {
                layout.pack(&archive)?;
            }
            if is_complete { layout.remove() } else { Ok(()) }
        };
        blocking(&self.layout, finish).await
    }
}

impl Target {
    pub(super) fn known(&self) -> &Known {
        match self {
            Self::Registry(registry) => &registry.known,
            Self::Layout(layout) => &layout.known,
        }
    }

    pub(super) fn host(&self) -> Option<&Arc<Host>> {
        match self {
            Self::Registry(registry) => Some(&registry.host),
            Self::Layout(_) => None,
        }
    }

    /// Whether it is an archive that is there already: it would be replaced as a whole.
    pub(super) fn is_archived(&self) -> bool {
        match self {
            Self::Registry(_) => false,
            Self::Layout(target) => target.archive.as_ref().is_some_and(|path| path.exists()),
        }
    }

    /// The digest that a tag names there, if it does.
    pub(super) async fn tagged(&self, tag: &Tag) -> Result<Option<Digest>, CopyError> {
        match self {
            Self::Registry(registry) => registry.digest_of(&Reference::Tag(tag.clone())).await,
            Self::Layout(files) => {
                let tag = tag.clone();
                // What an archive's layout has is of an earlier run.
                if files.archive.is_some() || !files.layout.exists() {
                    return Ok(None);
                }
                blocking(&files.layout, move |layout| {
                    (layout as &dyn ImageFiles).named(&tag)
                })
                .await
            }
        }
    }

    /// Whether a manifest is there.
    pub(super) async fn has_manifest(&self, document: &Document) -> Result<bool, CopyError> {
        match self {
            Self::Registry(registry) => {
                let found = registry
                    .digest_of(&Reference::Digest(document.digest))
                    .await?;
                Ok(found == Some(document.digest))
            }
            Self::Layout(_) => Ok(false),
        }
    }

    /// Whether a blob is there. The caller has a slot of the host.
    pub(super) async fn has_blob(&self, blob: &Descriptor) -> Result<bool, CopyError> {
        match self {
            Self::Registry(registry) => {
                let ask = async || {
                    registry
                        .upstream
                        .head_blob(&registry.repository, &blob.digest)
                        .await
                };
                match registry.host.ask_within(ask).await {
                    Ok(size) => Ok(size.is_none_or(|size| size == blob.size)),
                    Err(error) if is_missing(&error) => Ok(false),
                    Err(error) => Err(CopyError::Destination(error)),
                }
            }
            Self::Layout(files) => {
                let blob = blob.clone();
                blocking(&files.layout, move |layout| {
                    Ok(layout.has(&blob.digest, blob.size))
                })
                .await
            }
        }
    }

    /// Writes a manifest, under a tag or only its digest. `is_root`: it is the image, and not a part of it.
    pub(super) async fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
        is_root: bool,
    ) -> Result<(), CopyError> {
        let subject = document
            .manifest
            .subject
            .as_ref()
            .map(|subject| subject.digest);
        match self {
            Self::Registry(registry) => {
                let by_digest = || Reference::Digest(document.digest);
                let reference = tag.cloned().map_or_else(by_digest, Reference::Tag);
                let kind = document.manifest.media_type;
                let is_listed = registry.put(&reference, kind, &document.bytes).await?;
                match subject.filter(|_| !is_listed) {
                    Some(subject) => registry.list(document, &subject).await,
                    None => Ok(()),
                }
            }
            Self::Layout(files) => {
                let (document, tag) = (document.clone(), tag.cloned());
                blocking(&files.layout, move |layout| {
                    layout.put_manifest(&document)?;
                    let is_entry = is_root || tag.is_some() || subject.is_some();
                    if is_entry {
                        layout.enter(&document, tag.as_ref())
                    } else {
                        Ok(())
                    }
                })
                .await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn referrer() -> Document {
        let bytes = json!({"schemaVersion": 2, "artifactType": "a/b",
            "config": {"mediaType": "x", "digest": Digest::of(Algorithm::Sha256, b""), "size": 0}, "layers": []});
        let bytes = Bytes::from(bytes.to_string());
        Document {
            digest: Digest::of(Algorithm::Sha256, &bytes),
            manifest: Manifest::parse(&bytes).unwrap(),
            bytes,
        }
    }

    #[test]
    fn a_referrer_is_listed_once_beside_the_others() {
        let referrer = referrer();
        let first = with_entry(None, &referrer).unwrap();
        let index: Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(index["manifests"][0]["artifactType"], "a/b");
        assert_eq!(index["manifests"][0]["digest"], referrer.digest.to_string());
        assert!(with_entry(Some(&first), &referrer).is_none());
        let others =
            json!({"schemaVersion": 2, "x": 1, "manifests": [{"digest": "sha256:1"}]}).to_string();
        let more = with_entry(Some(others.as_bytes()), &referrer).unwrap();
        let more: Value = serde_json::from_slice(&more).unwrap();
        assert_eq!(
            (more["manifests"].as_array().unwrap().len(), &more["x"]),
            (2, &json!(1))
        );
        for broken in ["", "[]", "7"] {
            assert!(
                with_entry(Some(broken.as_bytes()), &referrer).is_some(),
                "{broken}"
            );
        }
    }
}
