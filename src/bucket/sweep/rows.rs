//! What a sweep knows of each object of content: 56 bytes, by digest.
//!
//! They are in 256 parts, by the first byte of the digest, so that nothing here sorts, copies or visits more
//! than some thousands at a time. At most [`MAX_ROWS`] are kept (224 MiB): of a larger bucket, some parts are
//! only counted, and are swept on another day.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bucket::day::Day;
use crate::oci::Digest;

/// Rows at most.
pub(super) const MAX_ROWS: usize = 4_000_000;
/// Parts of the rows.
pub(super) const PARTS: usize = 256;

/// A repository links it that clients push into.
pub(super) const HOSTED: u8 = 1;
/// A repository links it as a manifest.
pub(super) const MANIFEST: u8 = 1 << 1;
/// It is marked, and not due.
pub(super) const MARKED: u8 = 1 << 2;
/// It was marked long enough ago.
pub(super) const DUE: u8 = 1 << 3;
/// Something has linked it since it was marked.
pub(super) const LINKED: u8 = 1 << 4;
/// This sweep has deleted it, or it was gone already.
pub(super) const DELETED: u8 = 1 << 5;
/// What it refers to has been read.
pub(super) const READ: u8 = 1 << 6;

/// Facts about content. They are only ever added, so that a step that failed can be repeated.
#[derive(Debug, Default)]
pub(super) struct Facts(AtomicU8);

impl Facts {
    pub(super) fn add(&self, facts: u8) {
        self.0.fetch_or(facts, Relaxed);
    }

    /// Whether one of them holds.
    pub(super) fn any(&self, facts: u8) -> bool {
        self.0.load(Relaxed) & facts != 0
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Compact {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// An object of content.
#[derive(Debug)]
pub(super) struct Row {
    digest: Compact,
    /// Bytes.
    pub(super) size: u64,
    /// In seconds since 1970; enough until 2106.
    modified: u32,
    /// When it was last used or written.
    pub(super) last: Day,
    pub(super) facts: Facts,
}

impl Row {
    pub(super) fn new(digest: &Digest, size: u64, modified: SystemTime) -> Self {
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            digest: match digest {
                Digest::Sha256(digest) => Compact::Sha256(*digest),
                Digest::Sha512(digest) => Compact::Sha512(Box::new(*digest)),
            },
            size,
            modified: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
            last: Day::of(modified),
            facts: Facts::default(),
        }
    }

    pub(super) fn digest(&self) -> Digest {
        match &self.digest {
            Compact::Sha256(digest) => Digest::Sha256(*digest),
            Compact::Sha512(digest) => Digest::Sha512(**digest),
        }
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.modified.into())
    }

    pub(super) fn used(&mut self, day: Day) {
        self.last = self.last.max(day);
    }
}

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    part: u8,
    at: u32,
}

/// What is known of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    At(Place),
    /// The bucket doesn't have it.
    Missing,
    /// Nothing: its part isn't swept this time.
    Unlisted,
}

/// All rows.
#[derive(Debug)]
pub(super) struct Rows {
    /// Sorted by digest; none for those that aren't swept this time.
    parts: Vec<Option<Vec<Row>>>,
    kept: usize,
    /// Objects of content, and their bytes, of all parts.
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl Rows {
    pub(super) fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| None).collect(),
            kept: 0,
            objects: 0,
            bytes: 0,
        }
    }

    /// Adds all rows of the digests that begin with this byte. False where they are only counted.
    pub(super) fn fill(&mut self, first: u8, mut rows: Vec<Row>) -> bool {
        rows.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        // A list that changes while it is read may give an object twice.
        rows.dedup_by(|later, first| {
            let is_same = later.digest == first.digest;
            if is_same {
                first.modified = first.modified.max(later.modified);
                first.last = first.last.max(later.last);
            }
            is_same
        });
        rows.shrink_to_fit();
        self.objects += rows.len() as u64;
        self.bytes += rows.iter().map(|row| row.size).sum::<u64>();
        if self.kept + rows.len() > MAX_ROWS {
            return false;
        }
        self.kept += rows.len();
        if let Some(part) = self.parts.get_mut(usize::from(first)) {
            *part = Some(rows);
        }
        true
    }

    pub(super) fn find(&self, digest: &Digest) -> Found {
        let first = digest.first_byte();
        let Some(Some(rows)) = self.parts.get(usize::from(first)) else {
            return Found::Unlisted;
        };
        let at = match digest {
            Digest::Sha256(digest) => rows.binary_search_by(|row| match &row.digest {
                Compact::Sha256(other) => other.cmp(digest),
                Compact::Sha512(_) => std::cmp::Ordering::Greater,
            }),
            Digest::Sha512(digest) => rows.binary_search_by(|row| match &row.digest {
                Compact::Sha256(_) => std::cmp::Ordering::Less,
                Compact::Sha512(other) => (**other).cmp(digest),
            }),
        };
        match at.map(u32::try_from) {
            Ok(Ok(at)) => Found::At(Place { part: first, at }),
            _ => Found::Missing,
        }
    }

    pub(super) fn get(&self, place: Place) -> Option<&Row> {
        let rows = self.parts.get(usize::from(place.part))?.as_ref()?;
        rows.get(place.at as usize)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Row> {
        let rows = self.parts.get_mut(usize::from(place.part))?.as_mut()?;
        rows.get_mut(place.at as usize)
    }

    /// Content was used on this day, if the bucket has it.
    pub(super) fn used(&mut self, digest: &Digest, day: Day) {
        if let Found::At(place) = self.find(digest)
            && let Some(row) = self.get_mut(place)
        {
            row.used(day);
        }
    }

    /// One part that has rows after the other, with the places of its rows.
    pub(super) fn parts(&self) -> impl Iterator<Item = impl Iterator<Item = (Place, &Row)>> {
        let parts = (0..=u8::MAX).zip(&self.parts);
        let parts = parts.filter_map(|(part, rows)| Some((part, rows.as_ref()?)));
        parts
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(part, rows)| {
                let rows = (0..).zip(rows);
                rows.map(move |(at, row)| (Place { part, at }, row))
            })
    }

    /// One part that has rows after the other.
    pub(super) fn parts_mut(&mut self) -> impl Iterator<Item = &mut [Row]> {
        let parts = self.parts.iter_mut().flatten();
        parts.map(Vec::as_mut_slice).filter(|rows| !rows.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_row_has_56_bytes() {
        assert_eq!(size_of::<Row>(), 56);
    }

    #[test]
    fn rows_of_both_algorithms_are_found() {
        let mut rows = Rows::new();
        let digest = |algorithm, number: u32| Digest::of(algorithm, &number.to_be_bytes());
        let all: Vec<_> = Algorithm::ALL
            .into_iter()
            .flat_map(|algorithm| (0..500).map(move |number| digest(algorithm, number)))
            .collect();
        let at = UNIX_EPOCH + Duration::from_hours(24 * 20_000);
        // All but one part.
        for first in 0..255 {
            let own = all.iter().filter(|digest| digest.first_byte() == first);
            let twice = own.clone().chain(own);
            assert!(rows.fill(first, twice.map(|digest| Row::new(digest, 3, at)).collect()));
        }
        let listed = all.iter().filter(|digest| digest.first_byte() < 255);
        assert_eq!(rows.objects, listed.count() as u64);
        assert_eq!(rows.bytes, 3 * rows.objects);
        let used = all.iter().find(|digest| digest.first_byte() < 255).unwrap();
        rows.used(used, Day::of(at + Duration::from_hours(48)));
        for digest in &all {
            let found = rows.find(digest);
            if digest.first_byte() == 255 {
                assert_eq!(found, Found::Unlisted);
                continue;
            }
            let Found::At(place) = found else {
                panic!("{digest}")
            };
            let row = rows.get(place).unwrap();
            assert_eq!((row.digest(), row.modified()), (*digest, at));
            assert_eq!(row.last > Day::of(at), digest == used);
        }
        let missing = (0..).map(|number| digest(Algorithm::Sha512, 1_000 + number));
        let mut missing = missing.filter(|digest| digest.first_byte() < 255);
        assert_eq!(rows.find(&missing.next().unwrap()), Found::Missing);
        let counted: usize = rows.parts().map(Iterator::count).sum();
        assert_eq!(counted as u64, rows.objects);
    }
}
