//! The position of a follower, and which members may receive bytes.

use std::collections::HashMap;

use super::DownloadError;
use crate::oci::RangeSet;

/// Position and state of a follower.
#[derive(Debug)]
pub(super) struct Position {
    /// The member that it reads for.
    pub(super) member: u64,
    pub(super) at: u64,
    pub(super) end: Option<u64>,
    /// Number of its wait, in order of arrival; none when it doesn't wait.
    pub(super) waits: Option<u64>,
    /// The ranges that it has announced.
    pub(super) announced: RangeSet,
    /// The size that it was told.
    pub(super) told: Option<Announced>,
    /// The ranges that it has received.
    pub(super) given: RangeSet,
    /// Whether it waits until the bytes that it has received have arrived again and are equal.
    pub(super) compares: bool,
    /// Why it receives no more bytes.
    pub(super) error: Option<DownloadError>,
}

/// The size that the upstream announced; none when it announced none.
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

    /// The lowest offset that this follower reads or compares next.
    pub(super) fn first(&self) -> u64 {
        let given = self.given.ranges().first().filter(|_| self.compares);
        given.map_or(self.at, |given| given.start.min(self.at))
    }

    /// The download starts again. Returns whether this follower has bytes to compare.
    pub(super) fn restarts(&mut self, known: &RangeSet, error: &DownloadError) -> bool {
        let mut given = self.given.ranges().iter();
        // A second restart: its bytes are spread over two discarded files and can't be compared.
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

/// Which members may receive bytes.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Members whose repository has the blob, by the upstream's answer.
    pub(super) proved: Vec<u64>,
    /// Errors of the sources that were tried, by member.
    pub(super) failures: HashMap<u64, DownloadError>,
}

impl Members {
    /// Whether followers of a member may receive bytes. False while its repository isn't proved; the
    /// source's error when that failed before it proved anything.
    pub(super) fn admits(&self, member: u64) -> Result<bool, DownloadError> {
        if self.proved.contains(&member) {
            return Ok(true);
        }
        self.failures
            .get(&member)
            .map_or(Ok(false), |error| Err(error.clone()))
    }
}
