//! How much an upstream is asked for: what is saved of its own rate limit, and the operator's limits.

use std::fmt;

use super::section::Section;
use super::size::{self, SizeLimit};

/// The most requests per second, and at once, that can be written.
const MAX_REQUESTS: usize = 10_000;

/// How much an upstream is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Of the upstream's own limit.
    pub reserve: Reserve,
    /// Requests per second; at most 10,000, and 0 is no limit.
    pub requests: usize,
    /// Requests at once after a time with fewer; 1 to 10,000.
    pub burst: usize,
    /// Bytes of blobs per second; 0 is no limit.
    pub bandwidth: u64,
    /// Bytes of blobs per calendar month, in UTC; 0 is no limit.
    pub monthly: u64,
}

/// The part of a rate limit below which requests are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Of the limit; at most 100.
    Percent(u8),
    Requests(u64),
}

impl Reserve {
    /// The reserve of a limit, rounded up. Both are in requests.
    pub fn of(self, limit: u64) -> u64 {
        match self {
            Self::Percent(percent) => limit.saturating_mul(percent.into()).div_ceil(100),
            Self::Requests(requests) => requests.min(limit),
        }
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Requests(requests) => write!(f, "{requests}"),
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            reserve: Reserve::Percent(20),
            requests: 0,
            burst: 1,
            bandwidth: 0,
            monthly: 0,
        }
    }
}

pub(super) fn read(section: &Section<'_>) -> RateLimit {
    let default = RateLimit::default();
    let reserve = section.parsed("reserve", reserve);
    let reserve = reserve.unwrap_or(default.reserve);
    section.print("reserve", reserve.to_string());
    let requests = section.number("requests", 0..=MAX_REQUESTS, default.requests);
    RateLimit {
        reserve,
        requests,
        burst: section.number("burst", 1..=MAX_REQUESTS, requests.max(1)),
        bandwidth: section.size("bandwidth", default.bandwidth),
        monthly: section.size("monthly", default.monthly),
    }
}

fn reserve(text: &str) -> Result<Reserve, &'static str> {
    let syntax = "write a number of requests, or a percentage of the limit from 0% to 100%";
    let number = |text: &str| crate::oci::digits::<u64>(text.trim()).ok_or(syntax);
    if !text.trim().ends_with('%') {
        return number(text).map(Reserve::Requests);
    }
    match size::limit(text, 0..=100) {
        Ok(SizeLimit::Percent(percent)) => Ok(Reserve::Percent(percent)),
        _ => Err(syntax),
    }
}
