//! Pulls through millpond alone, beside the same pulls straight from the upstream: what the detour costs,
//! and what it is worth where the line, the clients or the upstream make a download hard. The upstream is
//! the benches' own, because it can be held to a rate and made to cut connections.

mod clients;
mod cuts;
mod endpoints;
mod first_byte;
mod joins;
mod ranges;
mod storm;
mod throttled;

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value};

use super::common::server::Server;
use super::common::upstream::Upstream;
use super::common::{self, GIB, MIB};
use super::results::Results;

/// How much is measured, in bytes and bytes per second where nothing else is said.
#[derive(Debug)]
struct Sizes {
    rounds: u32,
    /// The blob of a storm, of joins and of cuts.
    large: u64,
    /// The blob that is throttled or read in ranges.
    medium: u64,
    /// Blobs whose first byte is timed.
    first_bytes: usize,
    /// A connection's rate where connections are throttled, and the layers of the image.
    throttled_rate: u64,
    layers: [u64; 6],
    /// How many clients join.
    joiners: u32,
    /// How much of a range each request takes.
    range_chunk: u64,
}

const FULL: Sizes = Sizes {
    rounds: 3,
    large: GIB,
    medium: 512 * MIB,
    first_bytes: 31,
    throttled_rate: 20 * MIB,
    layers: [40 * MIB, 100 * MIB, 52 * MIB, 88 * MIB, 64 * MIB, 76 * MIB],
    joiners: 63,
    range_chunk: 8 * MIB,
};

const QUICK: Sizes = Sizes {
    rounds: 1,
    large: 128 * MIB,
    medium: 64 * MIB,
    first_bytes: 9,
    throttled_rate: 60 * MIB,
    layers: [6 * MIB, 15 * MIB, 8 * MIB, 13 * MIB, 9 * MIB, 11 * MIB],
    joiners: 15,
    range_chunk: MIB,
};

/// What every row is given.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    sizes: Sizes,
    binary: &'a Path,
    /// Keys for the section `proxy` of the mirror's configuration.
    proxy: &'a Map<String, Value>,
}

/// A row's name on the command line, and what measures it.
type Row = (&'static str, fn(&Bench<'_>, &mut Results) -> Result<()>);

pub(crate) const ROWS: [Row; 7] = [
    ("first-byte", first_byte::measure),
    ("storm", storm::measure),
    ("throttled", throttled::measure),
    ("endpoints", endpoints::measure),
    ("joins", joins::measure),
    ("cuts", cuts::measure),
    ("ranges", ranges::measure),
];

impl<'a> Bench<'a> {
    pub(crate) fn new(
        quick: bool,
        rounds: Option<u32>,
        binary: &'a Path,
        proxy: &'a Map<String, Value>,
    ) -> Self {
        let mut sizes = if quick { QUICK } else { FULL };
        sizes.rounds = rounds.unwrap_or(sizes.rounds).max(1);
        Self {
            sizes,
            binary,
            proxy,
        }
    }

    /// A new mirror with an empty cache.
    fn mirror(&self, upstream: &Upstream) -> Result<Server> {
        Server::mirror(self.binary, upstream.addr(), self.proxy)
    }

    fn rounds<T>(&self, what: &str, measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        common::rounds(what, self.sizes.rounds, measure)
    }
}
