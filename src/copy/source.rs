//! Where images are copied from: a registry, or files.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::OnceCell;

use super::bundle::reader::BundleReader;
use super::docker_archive::DockerArchive;
use super::error::CopyError;
use super::files::{Attached, FileImage, ImageFiles};
use super::host::Host;
use super::layout::{Layout, PIECE};
use super::location::{FilesForm, FilesLocation};
use super::plan::Document;
use crate::oci::{Accept, Descriptor, Digest, Reference, RepoName, Tag};
use crate::upstream::{BlobRoute, Upstream};

/// The suffixes of the tags under which cosign stored signatures, attestations and SBOMs before registries
/// could list referrers.
const ATTACHED: [&str; 3] = ["sig", "att", "sbom"];

/// Where an image is copied from.
#[derive(Debug, Clone)]
pub enum Source {
    Registry(RegistrySource),
    Files(FileSource),
}

/// Files with images.
#[derive(Debug, Clone)]
pub struct FileSource {
    files: Arc<dyn ImageFiles>,
    /// Once it was asked for.
    attached: Arc<OnceCell<Attached>>,
}

/// A repository of a registry.
#[derive(Debug, Clone)]
pub struct RegistrySource {
    pub upstream: Arc<Upstream>,
    pub repository: RepoName,
    pub host: Arc<Host>,
}

/// The image that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Of a registry.
    Reference(Reference),
    InFiles(FileImage),
}

/// A blob on its way.
pub(super) struct Stream {
    /// Where in the blob it begins, in bytes: what was asked for, or 0.
    pub offset: u64,
    /// Bytes of the whole blob, where that is known.
    pub total: Option<u64>,
    pub body: BoxStream<'static, Result<Bytes, CopyError>>,
}

impl Source {
    /// Files that have images. Blocks.
    pub fn open(location: &FilesLocation) -> Result<Self, CopyError> {
        let path = &location.path;
        let files: Arc<dyn ImageFiles> = match location.form {
            FilesForm::Layout => Arc::new(Layout::new(path)),
            FilesForm::OciArchive => Arc::new(BundleReader::open(path)?),
            FilesForm::DockerArchive => Arc::new(DockerArchive::open(path)?),
        };
        let attached = Arc::default();
        Ok(Self::Files(FileSource { files, attached }))
    }

    /// The image that is meant, verified.
    pub(super) async fn find(&self, wanted: &Wanted) -> Result<Document, CopyError> {
        match (self, wanted) {
            (Self::Registry(registry), Wanted::Reference(reference)) => {
                registry.manifest(reference.clone()).await
            }
            (Self::Files(FileSource { files, .. }), Wanted::InFiles(image)) => {
                let image = image.clone();
                blocking(files, move |files| files.find(&image)).await
            }
            // The caller takes both from one location.
            (Self::Registry(_), Wanted::InFiles(_)) | (Self::Files(_), Wanted::Reference(_)) => {
                Err(CopyError::Files {
                    path: PathBuf::new(),
                    problem: "the image isn't one of its source".to_owned(),
                })
            }
        }
    }

    pub(super) async fn manifest(&self, digest: Digest) -> Result<Document, CopyError> {
        match self {
            Self::Registry(registry) => registry.manifest(Reference::Digest(digest)).await,
            Self::Files(FileSource { files, .. }) => {
                blocking(files, move |files| files.manifest(&digest)).await
            }
        }
    }

    /// A blob from `offset` on, or all of it. It isn't asked for again if it fails.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<Stream, CopyError> {
        match self {
            Self::Registry(registry) => registry.blob(blob, offset).await,
            Self::Files(FileSource { files, .. }) => {
                let digest = blob.digest;
                let size = blocking(files, move |files| files.size(&digest)).await?;
                Ok(Stream {
                    offset,
                    total: Some(size),
                    body: pieces(files, digest, offset),
                })
            }
        }
    }

    /// The names of all images.
    pub async fn names(&self) -> Result<Vec<String>, CopyError> {
        match self {
            Self::Registry(registry) => registry.tags().await,
            Self::Files(FileSource { files, .. }) => blocking(files, |files| files.names()).await,
        }
    }

    /// The manifests whose subject is this one.
    pub(super) async fn referrers(&self, subject: Digest) -> Result<Vec<Digest>, CopyError> {
        match self {
            Self::Registry(registry) => registry.referrers(subject).await,
            Self::Files(source) => source.referrers(&subject).await,
        }
    }

    /// A manifest that is listed among the referrers of `subject`. None if it is gone, as it may be where the
    /// list is a tag, or refers to something else.
    pub(super) async fn referrer(
        &self,
        digest: Digest,
        subject: Digest,
    ) -> Result<Option<Document>, CopyError> {
        let found = match self.manifest(digest).await {
            Err(CopyError::Source(error)) if error.status() == Some(404) => None,
            found => Some(found?),
        };
        Ok(found.filter(|document| {
            let of = document.manifest.subject.as_ref();
            of.is_some_and(|of| of.digest == subject)
        }))
    }

    /// What is attached to a manifest under tags of its own.
    pub(super) async fn attached(
        &self,
        subject: Digest,
    ) -> Result<Vec<(Tag, Document)>, CopyError> {
        let mut found = Vec::new();
        for tag in ATTACHED
            .iter()
            .filter_map(|suffix| tag_of(&subject, suffix))
        {
            let document = match self {
                Self::Registry(registry) => registry.tagged(&tag).await?,
                Self::Files(FileSource { files, .. }) => {
                    let wanted = tag.clone();
                    let named = blocking(files, move |files| files.named(&wanted)).await?;
                    match named {
                        Some(digest) => Some(self.manifest(digest).await?),
                        None => None,
                    }
                }
            };
            found.extend(document.map(|document| (tag, document)));
        }
        Ok(found)
    }

    /// What is tried again at the source waits as this registry says.
    pub(super) fn host(&self) -> Option<&Arc<Host>> {
        match self {
            Self::Registry(registry) => Some(&registry.host),
            Self::Files(_) => None,
        }
    }
}

/// `sha256-<hex>.<suffix>`, if that is a tag: it isn't for SHA-512.
fn tag_of(subject: &Digest, suffix: &str) -> Option<Tag> {
    let algorithm = subject.algorithm();
    format!("{algorithm}-{}.{suffix}", subject.hex())
        .parse()
        .ok()
}

/// The tag whose index lists the referrers of a manifest where the registry has no API for that
/// (distribution-spec, "Referrers Tag Schema").
pub(super) fn referrers_tag(subject: &Digest) -> Option<Tag> {
    let tag = format!("{}-{}", subject.algorithm(), subject.hex());
    // At most 128 characters: of a SHA-512 digest, the first ones.
    tag.get(..tag.len().min(128))?.parse().ok()
}

impl FileSource {
    /// All entries are read for this, and once: an image has many manifests, and files have many images.
    async fn referrers(&self, subject: &Digest) -> Result<Vec<Digest>, CopyError> {
        let read = || blocking(&self.files, |files| files.attached());
        let attached = self.attached.get_or_try_init(read).await?;
        Ok(attached.get(subject).cloned().unwrap_or_default())
    }
}

impl RegistrySource {
    async fn manifest(&self, reference: Reference) -> Result<Document, CopyError> {
        let accept = Accept::everything();
        let ask = async || {
            let got = self
                .upstream
                .get_manifest(&self.repository, &reference, &accept);
            got.await?.verify()
        };
        let fetched = self.host.ask(ask).await.map_err(CopyError::source)?;
        Ok(Document {
            digest: fetched.digest,
            bytes: fetched.bytes,
            manifest: fetched.manifest,
        })
    }

    /// The manifest of a tag, if there is one. Asks by HEAD first, which registries don't count as a pull.
    async fn tagged(&self, tag: &Tag) -> Result<Option<Document>, CopyError> {
        let (reference, accept) = (Reference::Tag(tag.clone()), Accept::everything());
        let ask = async || {
            self.upstream
                .head_manifest(&self.repository, &reference, &accept, None)
                .await
        };
        match self.host.ask(ask).await {
            Ok(_) => self.manifest(reference).await.map(Some),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(CopyError::source(error)),
        }
    }

    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<Stream, CopyError> {
        let route = Arc::new(BlobRoute::default());
        let (upstream, repository) = (&self.upstream, &self.repository);
        let got = upstream.get_blob(repository, &blob.digest, offset, None, &route);
        let stream = got.await.map_err(CopyError::source)?;
        let body = stream.body.map(|piece| piece.map_err(CopyError::source));
        Ok(Stream {
            offset: stream.offset,
            total: stream.total,
            body: body.boxed(),
        })
    }

    async fn tags(&self) -> Result<Vec<String>, CopyError> {
        let ask = async || self.upstream.tags(&self.repository).await?.tags();
        let tags = self.host.ask(ask).await.map_err(CopyError::source)?;
        Ok(tags.iter().map(Tag::to_string).collect())
    }

    async fn referrers(&self, subject: Digest) -> Result<Vec<Digest>, CopyError> {
        let ask = async || {
            self.upstream
                .referrers(&self.repository, &subject, None)
                .await
        };
        let listed = match self.host.ask(ask).await {
            Ok(Some(list)) => list.referrers().map_err(CopyError::source)?,
            // The fallback of registries without the API.
            Ok(None) => match referrers_tag(&subject) {
                Some(tag) => {
                    let index = self.tagged(&tag).await?;
                    index
                        .map(|index| index.manifest.manifests)
                        .unwrap_or_default()
                }
                None => Vec::new(),
            },
            Err(error) => return Err(CopyError::source(error)),
        };
        Ok(listed.iter().map(|entry| entry.digest).collect())
    }
}

/// The bytes of a blob in files from `offset` on.
fn pieces(
    files: &Arc<dyn ImageFiles>,
    digest: Digest,
    offset: u64,
) -> BoxStream<'static, Result<Bytes, CopyError>> {
    let files = Arc::clone(files);
    let pieces = stream::try_unfold(offset, move |at| {
        let files = Arc::clone(&files);
        async move {
            let bytes = blocking(&files, move |files| files.read(&digest, at, PIECE)).await?;
            let next = at + bytes.len() as u64;
            Ok((!bytes.is_empty()).then_some((bytes, next)))
        }
    });
    pieces.boxed()
}

/// Works on files, off the runtime's threads.
pub(super) async fn blocking<F: Clone + Send + 'static, T: Send + 'static>(
    files: &F,
    work: impl FnOnce(&F) -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    let files = files.clone();
    let worked = tokio::task::spawn_blocking(move || work(&files)).await;
    worked.unwrap_or_else(|lost| Err(CopyError::Lost(Arc::new(lost))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;
    use crate::oci::Algorithm;

    /// Counts how often manifests are read.
    #[derive(Debug)]
    struct Counted(Vec<(Digest, Bytes)>, AtomicUsize);

    impl ImageFiles for Counted {
        fn path(&self) -> &Path {
            Path::new("")
        }

        fn entries(&self) -> Result<Vec<Descriptor>, CopyError> {
            let entry = |(digest, _): &(Digest, Bytes)| {
                let entry = json!({"mediaType": "a/b", "digest": digest, "size": 1});
                serde_json::from_value(entry).unwrap()
            };
            Ok(self.0.iter().map(entry).collect())
        }

        fn size(&self, digest: &Digest) -> Result<u64, CopyError> {
            Ok(self.read(digest, 0, usize::MAX)?.len() as u64)
        }

        fn read(&self, digest: &Digest, offset: u64, _: usize) -> Result<Bytes, CopyError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let (_, bytes) = self.0.iter().find(|(known, _)| known == digest).unwrap();
            Ok(bytes.slice(usize::try_from(offset).unwrap()..))
        }
    }

    #[tokio::test]
    async fn referrers_in_files_are_looked_for_once() {
        let blob = |n: u8| json!({"mediaType": "a/b", "digest": Digest::of(Algorithm::Sha256, &[n]), "size": 1});
        let referrer = |subject: u8| {
            let bytes = json!({"schemaVersion": 2, "config": blob(0), "layers": [], "subject": blob(subject)});
            let bytes = Bytes::from(bytes.to_string());
            (Digest::of(Algorithm::Sha256, &bytes), bytes)
        };
        let files = Arc::new(Counted(vec![referrer(1), referrer(2)], AtomicUsize::new(0)));
        let source = Source::Files(FileSource {
            files: Arc::clone(&files) as _,
            attached: Arc::default(),
        });
        let referrers = async |subject: u8| {
            let subject = Digest::of(Algorithm::Sha256, &[subject]);
            source.referrers(subject).await.unwrap()
        };
        assert_eq!(referrers(1).await, [referrer(1).0]);
        let reads = files.1.load(Ordering::Relaxed);
        assert_eq!(referrers(2).await, [referrer(2).0]);
        assert_eq!(referrers(3).await, []);
        assert_eq!(files.1.load(Ordering::Relaxed), reads);
    }

    #[test]
    fn tags_that_stand_for_digests() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let tag = referrers_tag(&digest).unwrap();
        assert_eq!(tag.as_str(), format!("sha256-{}", digest.hex()));
        let signature = tag_of(&digest, "sig").unwrap();
        assert_eq!(signature.as_str(), format!("{tag}.sig"));
        let long = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(referrers_tag(&long).unwrap().as_str().len(), 128);
        assert_eq!(tag_of(&long, "sig"), None);
    }
}
