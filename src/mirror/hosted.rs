//! Hosted repositories that another replica writes: this one reads them from the bucket, and caches their
//! content like any other. The writer has promised that what it has accepted is there.

use std::sync::Arc;

use url::Url;

use super::blobs::{ATTEMPTS, ATTEMPTS_AT_STORE};
use super::bucket_blob::stream;
use super::{BlobAnswer, ManifestAnswer, Mirror, MirrorError, ReadMode};
use crate::bucket::{Bucket, BucketError, Hosted};
use crate::cache::{LinkKind, Opened};
use crate::download::{BlobRequest, Client, DownloadError, Joined, Party, Source};
use crate::error_chain::on_one_line;
use crate::metrics::Outcome;
use crate::oci::{Digest, Reference, RepoName, Requested};
use crate::upstream::{BlobStream, UpstreamError};

/// In the place of an upstream's name, which has no space.
const HOSTED: &str = "hosted repositories";

impl Mirror {
    /// Whether there is a bucket that hasn't failed lately.
    pub fn bucket_answers(&self) -> bool {
        let bucket = self.bucket.as_ref();
        bucket.is_some_and(|bucket| !bucket.is_missing())
    }

    /// A manifest of a hosted repository. None: the bucket doesn't have it, or can't be asked.
    pub async fn hosted_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Option<ManifestAnswer> {
        let (bucket, digest) = self.hosted_content(repo, reference).await?;
        if let Some(manifest) = self.cache.manifest(repo, &digest).await {
            return Some(ManifestAnswer::whole(manifest, Outcome::Hit));
        }
        let (bytes, parsed, is_linked) = self.verified(&bucket, repo, &digest).await?;
        if !is_linked {
            return None;
        }
        let (manifest, stored) = self.cache.put_manifest(repo, digest, bytes, parsed).await;
        self.note_manifest(&manifest);
        let mut answer = ManifestAnswer::whole(manifest, Outcome::Miss);
        answer.exchange.stored = stored;
        Some(answer)
    }

    /// A blob of a hosted repository. None: the bucket doesn't have it, or can't be asked.
    pub async fn hosted_blob(
        &self,
        repo: &RepoName,
        digest: Digest,
        want: ReadMode,
        ranges: Option<&Requested>,
        client: Client,
    ) -> Result<Option<BlobAnswer>, MirrorError> {
        let link = Hosted::Link(LinkKind::Layer, &digest);
        let Some(bucket) = &self.bucket else {
            return Ok(None);
        };
        let linked = logged(bucket.hosted_pointer(repo, link).await);
        if linked.flatten() != Some(digest) {
            return Ok(None);
        }
        let source = HostedBlob::new(bucket, digest, self.sizes.get(&digest));
        let source = Arc::new(source?);
        let mut wanted = whole_or_first(ranges, client);
        let party = Party {
            repository: repo.clone(),
            account: None,
        };
        for attempt in 0..ATTEMPTS {
            wanted.refetch = attempt >= ATTEMPTS_AT_STORE;
            match self.cache.open(repo, &digest, want).await {
                Opened::Linked(blob) => return Ok(Some(BlobAnswer::cached(blob, Outcome::Hit))),
                Opened::Unlinked(blob) => {
                    self.cache.link(repo, &digest, &blob).await;
                    return Ok(Some(BlobAnswer::cached(blob, Outcome::Revalidated)));
                }
                Opened::Missing if want == ReadMode::Head => {
                    let size = logged(bucket.size(&digest).await).flatten();
                    return Ok(size.map(|size| BlobAnswer::new(Some(size), None, Outcome::Miss)));
                }
                Opened::Missing => {}
            }
            let source = Arc::clone(&source) as Arc<dyn Source>;
            let proof = async { Ok::<(), MirrorError>(()) };
            let joined = self
                .downloader
                .join(digest, &party, source, wanted, proof)
                .await?;
            let (follower, outcome) = match joined {
                Joined::Leader(follower) => (follower, Outcome::Miss),
                Joined::Follower(follower) => (follower, Outcome::Joined),
                Joined::Committed | Joined::Circular => continue,
            };
            match BlobAnswer::following(follower, ranges, outcome).await {
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) | Err(MirrorError::Fetch(DownloadError::Lost)) => {}
                // The writer has it, too.
                Err(error) => {
                    tracing::warn!(%repo, %digest, error = %on_one_line(&error), "a hosted blob can't be read from the bucket; asking its writer");
                    return Ok(None);
                }
            }
        }
        Err(MirrorError::Lost)
    }

    /// What a reference names, if the repository has it.
    async fn hosted_content(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Option<(Arc<Bucket>, Digest)> {
        let bucket = self.bucket.as_ref()?;
        let named = match reference {
            Reference::Digest(digest) => Hosted::Link(LinkKind::Revision, digest),
            Reference::Tag(tag) => Hosted::Tag(tag),
        };
        let digest = logged(bucket.hosted_pointer(repo, named).await)??;
        match reference {
            Reference::Digest(expected) if *expected != digest => None,
            _ => Some((Arc::clone(bucket), digest)),
        }
    }
}

/// The whole blob, from where the client reads it first.
fn whole_or_first(ranges: Option<&Requested>, client: Client) -> BlobRequest {
    let first = ranges.map(|ranges| ranges.one().unwrap_or((0, Some(1))));
    let (start, end) = first.unwrap_or((0, None));
    BlobRequest {
        start,
        end,
        client,
        ..BlobRequest::WHOLE
    }
}

fn logged<T>(result: Result<T, BucketError>) -> Option<T> {
    let log = |error: &BucketError| tracing::debug!(error = %on_one_line(error), "the bucket has no answer; asking the writer of the hosted repositories");
    result.inspect_err(log).ok()
}

/// A blob of the bucket that the repository is known to have.
#[derive(Debug)]
struct HostedBlob {
    bucket: Arc<Bucket>,
    digest: Digest,
    described_size: Option<u64>,
    /// For errors.
    url: Url,
}

impl HostedBlob {
    fn new(
        bucket: &Arc<Bucket>,
        digest: Digest,
        described_size: Option<u64>,
    ) -> Result<Self, MirrorError> {
        let parsed = Url::parse("bucket:/hosted");
        Ok(Self {
            bucket: Arc::clone(bucket),
            digest,
            described_size,
            url: parsed.map_err(|_never| MirrorError::Lost)?,
        })
    }
}

#[async_trait::async_trait]
impl Source for HostedBlob {
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError> {
        let asking = self.bucket.content_alone(&self.digest, (offset, end));
        let found = asking
            .await
            .and_then(|found| found.ok_or(BucketError::Gone));
        let content = found.map_err(|error| UpstreamError::elsewhere(&self.url, error))?;
        Ok(stream(&self.url, content))
    }

    fn distrust(&self, error: &DownloadError) -> bool {
        tracing::error!(digest = %self.digest, error = %on_one_line(error), "the bucket sent wrong bytes of a hosted blob; pushing it again heals that");
        false
    }

    fn upstream(&self) -> &str {
        HOSTED
    }

    fn described_size(&self) -> Option<u64> {
        self.described_size
    }
}
