//! The position of a follower, and which members may receive bytes.

use std::collections::HashMap;

use super::DownloadError;
use crate::oci::{ByteRange, RangeSet};

/// How a download that a client has joined begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The upstream has answered. The blob's size in bytes, if the upstream has announced it.
    Size(Option<u64>),
    /// The download has ended without a result, for a reason that says nothing about the blob, such as
    /// that another one has committed it. The cache is to be asked again.
    Superseded,
}

/// Position and state of a follower.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The member that it reads for.
    pub(super) member: u64,
    pub(super) at: u64,
    pub(super) end: Option<u64>,
    /// Number of its wait, in order of arrival; none when it doesn't wait.
    pub(super) waits: Option<u64>,
    /// The ranges that it has announced.
    pub(super) announced: RangeSet,
    /// What it was told of the size.
    pub(super) told: Option<Opened>,
    /// The ranges that it has received.
    pub(super) given: RangeSet,
    /// Whether it waits until the bytes that it has received have arrived again and are equal.
    pub(super) compares: bool,
    /// Why it receives no more bytes.
    pub(super) error: Option<DownloadError>,
}

impl Position {
    /// The lowest offset that this follower reads or compares next.
    pub(super) fn first(&self) -> u64 {
        let given = self.given.ranges().first().filter(|_| self.compares);
        given.map_or(self.at, |given| given.start.min(self.at))
    }

    /// The download starts again. Bytes that this follower has received are to be compared, if `known`
    /// has them; otherwise it gets the error.
    pub(super) fn restarts(&mut self, known: &RangeSet, error: &DownloadError) {
        let mut given = self.given.ranges().iter();
        // A second restart: its bytes are spread over two discarded files and can't be compared.
        if self.compares || !given.all(|range| known.contains(range.start, range.end)) {
            self.compares = false;
            self.error.get_or_insert_with(|| error.clone());
            return;
        }
        self.compares = !self.given.is_empty() && self.error.is_none();
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
        let mut given = self.given.ranges().iter();
        let differs = |given: &ByteRange| {
            let next = differs.next_start(given.start);
            next.is_some_and(|next| next < given.end)
        };
        if given.clone().any(differs) {
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
