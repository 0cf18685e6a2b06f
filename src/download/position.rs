//! One follower's place in a download, and which repositories' followers may have bytes at all.

use std::collections::HashMap;

use super::DownloadError;
use crate::oci::RangeSet;

/// Where a follower is.
#[derive(Debug)]
pub(super) struct Position {
    /// The repository that it reads for.
    pub(super) member: u64,
    pub(super) at: u64,
    pub(super) end: Option<u64>,
    /// Its wait's place in the order of waits.
    pub(super) waits: Option<u64>,
    /// The ranges that it reads, one after the other.
    pub(super) announced: RangeSet,
    /// The blob's length as it was told.
    pub(super) told: Option<Announced>,
    /// What it was given.
    pub(super) given: RangeSet,
    /// It waits until all that it was given has come again, and is found the same.
    pub(super) compares: bool,
    /// It gets no more.
    pub(super) error: Option<DownloadError>,
}

/// The blob's length as the upstream announced it; none where it didn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announced(pub(super) Option<u64>);

impl Position {
    pub(super) fn new(start: u64, member: u64) -> Self {
        Self {
            member,
            at: start,
            end: None,
            waits: None,
            announced: RangeSet::new(),
            told: None,
            given: RangeSet::new(),
            compares: false,
            error: None,
        }
    }

    /// The lowest byte that this follower is served with next, or compared at.
    pub(super) fn first(&self) -> u64 {
        let given = self.given.ranges().first().filter(|_| self.compares);
        given.map_or(self.at, |given| given.start.min(self.at))
    }

    /// The download begins anew. Whether this follower has bytes to be compared.
    pub(super) fn restarts(&mut self, known: &RangeSet, error: &DownloadError) -> bool {
        let mut given = self.given.ranges().iter();
        // Twice is too much: what it was given is in neither of the two files alone.
        if self.compares || !given.all(|range| known.contains(range.start, range.end)) {
            self.compares = false;
            self.error.get_or_insert_with(|| error.clone());
            return false;
        }
        self.compares = !self.given.is_empty() && self.error.is_none();
        self.compares
    }

    pub(super) fn compared(
        &mut self,
        agreed: &RangeSet,
        differs: &RangeSet,
        error: &DownloadError,
    ) {
        if !self.compares {
            return;
        }
        let touches = |start: u64, end: u64| {
            let ranges = self.given.ranges();
            ranges
                .iter()
                .any(|given| given.start < end && start < given.end)
        };
        let mut given = self.given.ranges().iter();
        if differs
            .ranges()
            .iter()
            .any(|range| touches(range.start, range.end))
        {
            self.compares = false;
            self.error = Some(error.clone());
        } else if given.all(|range| agreed.contains(range.start, range.end)) {
            self.compares = false;
        }
    }
}

/// Which repositories' followers may be given bytes.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// The upstream has said that they have the blob.
    pub(super) proved: Vec<u64>,
    /// How their sources failed.
    pub(super) failures: HashMap<u64, DownloadError>,
}

impl Members {
    /// Whether a follower may be told of the blob: none before its repository is proved, and never
    /// when its source has failed before that.
    pub(super) fn admits(&self, member: u64) -> Result<bool, DownloadError> {
        if self.proved.contains(&member) {
            return Ok(true);
        }
        self.failures
            .get(&member)
            .map_or(Ok(false), |error| Err(error.clone()))
    }
}
