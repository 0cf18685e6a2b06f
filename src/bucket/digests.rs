//! Lists of digests, in objects of our own: uses, and what is marked for deletion.
//!
//! ```text
//! millpond digests 1 whole 2 1\n     format, version; `part` where some are missing; counts
//! 32 bytes each                      SHA-256, ascending
//! 64 bytes each                      SHA-512, ascending
//! ```
//!
//! The counts, the length and the order together show whether an object is whole: anything else is broken,
//! and whoever reads it has to assume that it may have listed any digest.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::client::{Objects, Small};
use super::error::BucketError;
use crate::oci::Digest;

/// Digests in one list, at most.
pub(super) const MAX_DIGESTS: usize = 500_000;
/// The longest list, in bytes.
const MAX_LIST: u64 = MAX_HEADER as u64 + 64 * MAX_DIGESTS as u64;
const MAX_HEADER: usize = 64;
/// Digests that are sorted and checked in less than a millisecond.
const QUICK: usize = 8192;
const FORMAT: &str = "millpond digests 1 ";

/// A list of digests as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Digests {
    /// Without the header.
    body: Bytes,
    /// Bytes of the digests with SHA-256.
    short: usize,
    is_whole: bool,
}

/// What an object that should be a list is.
#[derive(Debug)]
pub(super) enum Read {
    Missing,
    /// Something else, or a list that has lost a part.
    Broken,
    List(Digests),
}

impl Digests {
    /// The bytes of a list. With more than [`MAX_DIGESTS`] it says that some are missing, as it does without
    /// `is_whole`.
    pub(super) fn encode(mut digests: Vec<Digest>, is_whole: bool) -> Bytes {
        digests.sort_unstable();
        digests.dedup();
        let has_all = is_whole && digests.len() <= MAX_DIGESTS;
        let word = if has_all { "whole" } else { "part" };
        digests.truncate(MAX_DIGESTS);
        let is_short = |digest: &Digest| matches!(digest, Digest::Sha256(_));
        let short = digests.partition_point(is_short);
        let header = format!("{FORMAT}{word} {short} {}\n", digests.len() - short);
        let mut bytes = BytesMut::with_capacity(header.len() + 32 * digests.len());
        bytes.put_slice(header.as_bytes());
        for digest in &digests {
            match digest {
                Digest::Sha256(digest) => bytes.put_slice(digest),
                Digest::Sha512(digest) => bytes.put_slice(digest),
            }
        }
        bytes.freeze()
    }

    /// The same; many digests are sorted off the runtime's threads.
    pub(super) async fn encoded(
        digests: Vec<Digest>,
        is_whole: bool,
    ) -> Result<Bytes, BucketError> {
        if digests.len() <= QUICK {
            return Ok(Self::encode(digests, is_whole));
        }
        let encoding = tokio::task::spawn_blocking(move || Self::encode(digests, is_whole));
        encoding.await.map_err(BucketError::failed)
    }

    /// None where the bytes are no list, or not all of it.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let head = bytes.get(..bytes.len().min(MAX_HEADER))?;
        let end = head.iter().position(|byte| *byte == b'\n')?;
        let header = str::from_utf8(head.get(..end)?).ok()?;
        let mut words = header.strip_prefix(FORMAT)?.split(' ');
        let is_whole = match words.next()? {
            "whole" => true,
            "part" => false,
            _ => return None,
        };
        let mut count = || -> Option<usize> {
            let count = words.next()?.parse().ok()?;
            (count <= MAX_DIGESTS).then_some(count)
        };
        let (short, long) = (count()? * 32, count()? * 64);
        let list = Self {
            body: bytes.slice(end + 1..),
            short,
            is_whole,
        };
        let is_read = words.next().is_none() && list.body.len() == short + long;
        let is_sorted =
            list.sha256().is_sorted_by(|a, b| a < b) && list.sha512().is_sorted_by(|a, b| a < b);
        (is_read && is_sorted).then_some(list)
    }

    /// Reads a list from the bucket.
    pub(super) async fn read(objects: &Objects, key: &str) -> Result<Read, BucketError> {
        let bytes = match objects.get_small(key, MAX_LIST, None).await {
            Ok(Small::Whole(bytes, _)) => bytes,
            Ok(Small::Missing | Small::Unchanged) => return Ok(Read::Missing),
            Err(BucketError::TooLarge { .. }) => return Ok(Read::Broken),
            Err(error) => return Err(error),
        };
        let list = if bytes.len() <= QUICK * 32 {
            Self::decode(&bytes)
        } else {
            let decoding = tokio::task::spawn_blocking(move || Self::decode(&bytes));
            decoding.await.map_err(BucketError::failed)?
        };
        Ok(list.map_or(Read::Broken, Read::List))
    }

    /// Whether no digest was left out of it.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn len(&self) -> usize {
        self.sha256().len() + self.sha512().len()
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        match digest {
            Digest::Sha256(digest) => self.sha256().binary_search(digest).is_ok(),
            Digest::Sha512(digest) => self.sha512().binary_search(digest).is_ok(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Digest> {
        let short = self.sha256().iter().copied().map(Digest::Sha256);
        short.chain(self.sha512().iter().copied().map(Digest::Sha512))
    }

    fn sha256(&self) -> &[[u8; 32]] {
        let short = self.body.get(..self.short).unwrap_or_default();
        short.as_chunks().0
    }

    fn sha512(&self) -> &[[u8; 64]] {
        let long = self.body.get(self.short..).unwrap_or_default();
        long.as_chunks().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn some(count: u32) -> Vec<Digest> {
        let digest = |number: u32| {
            let algorithm = match number % 3 {
                0 => Algorithm::Sha512,
                _ => Algorithm::Sha256,
            };
            Digest::of(algorithm, &number.to_be_bytes())
        };
        (0..count).map(digest).collect()
    }

    #[test]
    fn a_list_is_read_back() {
        let mut digests = some(50);
        let bytes = Digests::encode([digests.clone(), some(7)].concat(), true);
        let list = Digests::decode(&bytes).unwrap();
        digests.sort_unstable();
        assert_eq!(list.iter().collect::<Vec<_>>(), digests);
        assert!(digests.iter().all(|digest| list.contains(digest)));
        assert!(!list.contains(&Digest::of(Algorithm::Sha256, b"other")));
        assert!(list.is_whole() && list.len() == 50);
        let part = Digests::decode(&Digests::encode(digests, false)).unwrap();
        assert!(!part.is_whole());
        let none = Digests::decode(&Digests::encode(Vec::new(), true)).unwrap();
        assert_eq!(none.len(), 0);
    }

    #[test]
    fn what_is_cut_or_changed_is_broken() {
        let bytes = Digests::encode(some(9), true);
        for end in 0..bytes.len() {
            assert!(Digests::decode(&bytes.slice(..end)).is_none(), "{end}");
        }
        let header = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            Digests::decode(&bytes.into()).is_none()
        };
        // Out of order.
        assert!(changed(header + 1, 0xff));
        assert!(changed(0, b'M'));
        assert!(changed(header - 1, b'9'));
        assert!(Digests::decode(&[&bytes[..], b"x"].concat().into()).is_none());
        assert!(
            Digests::decode(&Bytes::from_static(
                b"millpond digests 1 whole 99999999999 0\n"
            ))
            .is_none()
        );
    }

    #[test]
    fn too_many_are_a_part() {
        let digests: Vec<_> = (0..=MAX_DIGESTS)
            .map(|number| {
                let mut digest = [0; 32];
                digest[..8].copy_from_slice(&number.to_be_bytes());
                Digest::Sha256(digest)
            })
            .collect();
        let list = Digests::decode(&Digests::encode(digests, true)).unwrap();
        assert!(!list.is_whole());
        assert_eq!(list.len(), MAX_DIGESTS);
    }
}
