//! Content of the cache on the admin socket, for bundles: read, and written under its digest.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::Uri;
use http::uri::InvalidUri;
use url::form_urlencoded;

use crate::cache::{Cache, Opened, ReadMode};
use crate::copy::import::{Chunks, ImportError, Importer};
use crate::oci::{Digest, RepoName};
use crate::server::{Body, BodyError, RequestBody};

/// Where it is asked for.
pub(super) const CONTENT: &str = "/content";

/// Bytes of a blob that are read at once.
const PIECE: usize = 1024 * 1024;

/// Which content is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentQuery {
    /// By its stored name.
    pub repository: RepoName,
    pub digest: Digest,
    pub is_manifest: bool,
    /// Bytes. Only matters for what is written.
    pub size: u64,
}

impl ContentQuery {
    pub(super) fn parse(query: &str) -> Result<Self, ImportError> {
        let (mut repository, mut digest, mut is_manifest, mut size) = (None, None, false, 0);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "repository" => repository = RepoName::from_stored(&value).ok(),
                "digest" => digest = value.parse().ok(),
                "kind" => is_manifest = value == "manifest",
                "size" => size = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let (Some(repository), Some(digest)) = (repository, digest) else {
            return Err(ImportError::Query);
        };
        Ok(Self {
            repository,
            digest,
            is_manifest,
            size,
        })
    }

    pub(super) fn uri(&self) -> Result<Uri, InvalidUri> {
        format!("{CONTENT}?{self}").parse()
    }
}

/// As a query; names and digests have nothing that needs an escape.
impl fmt::Display for ContentQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            digest,
            is_manifest,
            size,
        } = self;
        let kind = if *is_manifest { "manifest" } else { "blob" };
        write!(
            f,
            "repository={repository}&digest={digest}&kind={kind}&size={size}"
        )
    }
}

/// All of a blob or manifest, verified.
pub(super) async fn read(cache: &Cache, query: &ContentQuery) -> Result<Body, ImportError> {
    let ContentQuery {
        repository, digest, ..
    } = query;
    let missing = || ImportError::Missing((*digest).into());
    let mut blob = match cache.open(repository, digest, ReadMode::Content).await {
        Opened::Linked(blob) | Opened::Unlinked(blob) => blob,
        Opened::Missing => return Err(missing()),
    };
    if !blob.become_verified().await {
        return Err(missing());
    }
    let pieces = stream::try_unfold((Arc::new(blob), 0), async |(blob, at)| {
        let piece = blob.content().reader.read_at(at, PIECE).await?;
        if piece.is_empty() {
            return Ok(None);
        }
        let next = at + piece.len() as u64;
        Ok::<_, BodyError>(Some((piece, (blob, next))))
    });
    Ok(Body::stream(pieces))
}

/// Stores what a request brings.
pub(super) async fn write(
    cache: &Cache,
    query: &ContentQuery,
    body: RequestBody,
) -> Result<(), ImportError> {
    let ContentQuery {
        digest,
        is_manifest,
        size,
        ..
    } = *query;
    let importer = Importer::new(cache, query.repository.clone())?;
    let mut upload = Upload(body);
    if is_manifest {
        importer.manifest(digest, size, &mut upload).await
    } else {
        importer.blob(digest, size, &mut upload).await
    }
}

/// The body of a request.
struct Upload(RequestBody);

#[async_trait::async_trait]
impl Chunks for Upload {
    async fn next(&mut self) -> Result<Option<Bytes>, ImportError> {
        let next = self.0.next().await;
        next.map_err(|error| ImportError::BrokeOff(error.into()))
    }
}
