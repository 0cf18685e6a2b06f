//! Objects that hold a digest: links and tags.

use std::str;

use bytes::Bytes;

use super::client::{Objects, Small};
use super::error::BucketError;
use crate::oci::Digest;

/// The longest link that is read, in bytes: the longest digest and some space.
const MAX_LINK: u64 = 256;

/// What a link or a tag names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pointer {
    Missing,
    /// It still has the etag that was asked with.
    Unchanged,
    /// The digest, and the object's etag.
    To(Digest, Option<String>),
}

impl Objects {
    /// Reads a link or a tag, unless it still has the etag `known`. One that holds no digest is missing.
    pub(super) async fn pointer(
        &self,
        key: &str,
        known: Option<String>,
    ) -> Result<Pointer, BucketError> {
        let read = match self.get_small(key, MAX_LINK, known).await {
            Err(BucketError::TooLarge { .. }) => Ok(Small::Missing),
            read => read,
        };
        Ok(match read? {
            Small::Missing => Pointer::Missing,
            Small::Unchanged => Pointer::Unchanged,
            Small::Whole(text, etag) => {
                let digest = str::from_utf8(&text).ok().map(str::trim_ascii);
                if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
                    Pointer::To(digest, etag)
                } else {
                    tracing::warn!(key, "a link in the bucket holds no digest");
                    Pointer::Missing
                }
            }
        })
    }

    /// Whether a link or a tag names this digest.
    pub(super) async fn names(&self, key: &str, digest: &Digest) -> Result<bool, BucketError> {
        let named = self.pointer(key, None).await?;
        Ok(matches!(named, Pointer::To(named, _) if named == *digest))
    }

    /// Makes a link or a tag name this digest.
    pub(super) async fn put_pointer(&self, key: &str, to: &Digest) -> Result<(), BucketError> {
        self.put(key, vec![Bytes::from(to.to_string())]).await
    }
}
