//! Content, links and tags of the bucket.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::timeout;

use super::client::{Body, SMALL_TIME};
use super::error::BucketError;
use super::pointers::Pointer;
use super::{Bucket, keys};
use crate::cache::LinkKind;
use crate::oci::{Digest, RepoName, Tag};

/// Content of the bucket on its way. Nothing of it is verified.
#[expect(missing_debug_implementations, reason = "a body has nothing to show")]
pub struct SharedContent {
    /// Whether the repository links it. Otherwise it may be served only after proof that the repository has
    /// it.
    pub is_linked: bool,
    /// Bytes of all of it.
    pub total: u64,
    /// The bytes of it that the body has.
    pub range: Range<u64>,
    /// Ends with an error, unless all bytes of the range have come.
    pub body: BoxStream<'static, Result<Bytes, BucketError>>,
}

impl Bucket {
    /// Content from `start` on, up to `end` (exclusive) or its own end, and whether the repository links it,
    /// which is asked at the same time. None where the bucket doesn't have it.
    pub async fn content(
        self: &Arc<Self>,
        (repo, kind): (&RepoName, LinkKind),
        digest: &Digest,
        (start, end): (u64, Option<u64>),
    ) -> Result<Option<SharedContent>, BucketError> {
        let content = self.content_alone(digest, (start, end));
        let (content, is_linked) = tokio::join!(content, self.links(repo, kind, digest));
        let Some(content) = content? else {
            return Ok(None);
        };
        let is_linked = is_linked?;
        if is_linked {
            self.on_held((repo, kind), digest, content.total);
        }
        Ok(Some(SharedContent {
            is_linked,
            ..content
        }))
    }

    /// The same of content that the repository is known to have.
    pub async fn content_alone(
        self: &Arc<Self>,
        digest: &Digest,
        (start, end): (u64, Option<u64>),
    ) -> Result<Option<SharedContent>, BucketError> {
        self.circuit.permit()?;
        let got = self.objects.get(&keys::blob(digest), start, end).await;
        self.circuit.note(&got);
        let Some(got) = got? else {
            self.on_missing(digest);
            return Ok(None);
        };
        Ok(Some(SharedContent {
            is_linked: true,
            total: got.object.size,
            range: got.range.clone(),
            body: self.whole(got),
        }))
    }

    /// All of a small object, which has this size.
    pub async fn read_all(content: SharedContent, limit: u64) -> Result<Bytes, BucketError> {
        if content.total > limit {
            return Err(BucketError::TooLarge { limit });
        }
        let reading = async {
            let mut body = content.body;
            let mut bytes = BytesMut::new();
            while let Some(piece) = body.try_next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        };
        let read = timeout(SMALL_TIME, reading).await;
        read.unwrap_or(Err(BucketError::Late(SMALL_TIME)))
    }

    /// Whether a repository links content.
    pub async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<bool, BucketError> {
        let linked = self.pointer(&keys::link(repo, kind, digest), None).await?;
        Ok(matches!(linked, Pointer::To(named, _) if named == *digest))
    }

    /// What a tag names.
    pub async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, BucketError> {
        match self.pointer(&keys::tag_current(repo, tag), None).await? {
            Pointer::To(digest, _) => Ok(Some(digest)),
            Pointer::Missing | Pointer::Unchanged => Ok(None),
        }
    }

    /// A link or a tag, unless it still has the etag `known`.
    async fn pointer(&self, key: &str, known: Option<String>) -> Result<Pointer, BucketError> {
        self.circuit.permit()?;
        let read = self.objects.pointer(key, known).await;
        self.circuit.note(&read);
        read
    }

    /// What a link or tag of a hosted repository names now. What is remembered costs an answer without a body.
    pub async fn hosted_pointer(
        &self,
        repo: &RepoName,
        reference: Hosted<'_>,
    ) -> Result<Option<Digest>, BucketError> {
        let key = match reference {
            Hosted::Link(kind, digest) => keys::link(repo, kind, digest),
            Hosted::Tag(tag) => keys::tag_current(repo, tag),
        };
        let known = self.pointers.get(&key);
        let etag = known.as_ref().map(|(etag, _)| etag.clone());
        Ok(match self.pointer(&key, etag).await? {
            Pointer::Missing => {
                self.pointers.remove(&key);
                None
            }
            Pointer::Unchanged => known.map(|(_, digest)| digest),
            Pointer::To(digest, etag) => {
                if let Some(etag) = etag {
                    self.pointers.insert(key, (etag, digest));
                }
                Some(digest)
            }
        })
    }

    /// Bytes of content, if the bucket has it.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>, BucketError> {
        self.circuit.permit()?;
        let head = self.objects.head(&keys::blob(digest)).await;
        self.circuit.note(&head);
        Ok(head?.map(|object| object.size))
    }

    /// The body, which ends with an error where bytes are missing, or too many.
    fn whole(self: &Arc<Self>, got: Body) -> BoxStream<'static, Result<Bytes, BucketError>> {
        let expected = got.range.end - got.range.start;
        let state = (Some(got.stream), 0_u64, Arc::clone(self));
        let next = move |(stream, received, bucket): (Option<_>, u64, Arc<Self>)| async move {
            let mut stream: BoxStream<'static, _> = stream?;
            let next = match stream.next().await {
                Some(Ok(piece)) => {
                    let piece: Bytes = piece;
                    let received = received.saturating_add(piece.len() as u64);
                    if received <= expected {
                        bucket.metrics.source().received(piece.len());
                        return Some((Ok(piece), (Some(stream), received, bucket)));
                    }
                    Err(BucketError::Short { received, expected })
                }
                Some(Err(error)) => Err(error),
                None if received == expected => return None,
                None => Err(BucketError::Short { received, expected }),
            };
            bucket.circuit.note(&next);
            Some((next, (None, received, bucket)))
        };
        stream::unfold(state, next).boxed()
    }
}

/// A link or a tag of a hosted repository.
#[derive(Debug, Clone, Copy)]
pub enum Hosted<'a> {
    Link(LinkKind, &'a Digest),
    Tag(&'a Tag),
}
