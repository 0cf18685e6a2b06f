//! The labels of series: fixed sets, and the upstreams' names.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Base,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Catalog,
    /// A request for a token; only ever sent upstream.
    Token,
    /// A request without a route.
    Other,
}

impl Kind {
    /// How many there are.
    pub(super) const COUNT: usize = Self::Other as usize + 1;

    /// The word used in logs and as the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Catalog => "catalog",
            Self::Token => "token",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The store alone.
    Hit,
    /// The store, after the upstream confirmed it.
    Revalidated,
    /// The store, because the upstream couldn't answer.
    Stale,
    /// A download that another client's request had started.
    Joined,
    /// The upstream.
    Miss,
    /// Neither: the request was refused or failed.
    Error,
}

impl Outcome {
    /// How many there are.
    pub(super) const COUNT: usize = Self::Error as usize + 1;

    /// The word used in logs and as the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Joined => "joined",
            Self::Miss => "miss",
            Self::Error => "error",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// Why a client's connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedConnection {
    /// The listener's limit of open connections.
    Total,
    /// The limit of open connections from one address.
    Address,
    /// The system's limits: no file descriptor, no memory.
    System,
}

impl RefusedConnection {
    pub(super) const ALL: [Self; 3] = [Self::Total, Self::Address, Self::System];

    /// The word used in logs and as the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
            Self::System => "system",
        }
    }
}

impl EncodeLabelValue for RefusedConnection {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfReason {
    pub(super) reason: RefusedConnection,
}

/// How a request to an upstream ended: a status, or no status at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    Status(u16),
    /// The class of the error, a fixed word.
    Error(&'static str),
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Status(status) => write!(encoder, "{status}"),
            Self::Error(class) => encoder.write_str(class),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamRequest {
    pub(super) upstream: String,
    pub(super) kind: Kind,
    pub(super) method: &'static str,
    pub(super) status: Ending,
}

/// A condition under which the server serves, with less than usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Degraded {
    /// The file system of the cache has no space left.
    StoreFull,
    /// The file system of the cache can't be written.
    StoreReadOnly,
}

impl EncodeLabelValue for Degraded {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::StoreFull => "store_full",
            Self::StoreReadOnly => "store_read_only",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DegradedBy {
    pub(super) condition: Degraded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamBytes {
    pub(super) upstream: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfUpstream {
    pub(super) upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Served {
    pub(super) kind: Kind,
    pub(super) result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServedStatus {
    pub(super) kind: Kind,
    pub(super) status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfKind {
    pub(super) kind: Kind,
}
