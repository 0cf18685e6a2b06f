//! What the log says of an upstream that fails: one WARN for each kind of failure, at most once a
//! minute. Thousands of clients that pull from a failing upstream don't make thousands of lines.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::{ShownUrl, UpstreamError};
use crate::error_chain::on_one_line;

/// The least time between two lines about the same kind of failure.
const INTERVAL: Duration = Duration::from_mins(1);

/// What has been logged of one upstream.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    /// By a constant name, so there are few.
    kinds: Mutex<BTreeMap<&'static str, Logged>>,
}

#[derive(Debug)]
struct Logged {
    at: Instant,
    /// Failures since then.
    unlogged: u64,
}

impl FailureLog {
    /// Whether a failure of this kind is to be logged now: how many weren't, since the last line.
    pub(super) fn admit(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = self.kinds.lock();
        let first = Logged {
            at: now,
            unlogged: 0,
        };
        match kinds.get_mut(kind) {
            None => {
                kinds.insert(kind, first);
                Some(0)
            }
            Some(logged) if now.duration_since(logged.at) >= INTERVAL => {
                let unlogged = logged.unlogged;
                *logged = first;
                Some(unlogged)
            }
            Some(logged) => {
                logged.unlogged = logged.unlogged.saturating_add(1);
                None
            }
        }
    }

    /// Logs a failure, and what was done instead of what was asked for.
    pub(super) fn report(&self, upstream: &str, error: &UpstreamError, instead: &str) {
        if is_ordinary(error) {
            return;
        }
        let Some(unlogged) = self.admit(error.class()) else {
            return;
        };
        let url = url(error).map(tracing::field::display);
        tracing::warn!(
            upstream,
            status = status(error),
            url,
            error = %on_one_line(error),
            instead,
            unlogged,
            "the upstream failed"
        );
    }
}

/// Answers that registries give every day, to clients that ask for what isn't there.
const fn is_ordinary(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::NotFound { .. }) || error.is_out_of_range()
}

const fn status(error: &UpstreamError) -> Option<u16> {
    match error {
        UpstreamError::NotFound { .. } => Some(404),
        UpstreamError::Unauthorized { .. } => Some(401),
        UpstreamError::Denied { .. } => Some(403),
        UpstreamError::RateLimited { .. } => Some(429),
        UpstreamError::CredentialsRefused { status, .. }
        | UpstreamError::Unavailable { status, .. }
        | UpstreamError::Unexpected { status, .. } => Some(*status),
        UpstreamError::Unreachable { .. }
        | UpstreamError::Timeout { .. }
        | UpstreamError::Broken { .. }
        | UpstreamError::Protocol { .. }
        | UpstreamError::Schema1 { .. }
        | UpstreamError::Manifest { .. }
        | UpstreamError::Busy { .. }
        | UpstreamError::Setup { .. } => None,
    }
}

const fn url(error: &UpstreamError) -> Option<&ShownUrl> {
    match error {
        UpstreamError::NotFound { url, .. }
        | UpstreamError::Unauthorized { url, .. }
        | UpstreamError::CredentialsRefused { url, .. }
        | UpstreamError::Denied { url, .. }
        | UpstreamError::RateLimited { url, .. }
        | UpstreamError::Unavailable { url, .. }
        | UpstreamError::Unexpected { url, .. }
        | UpstreamError::Unreachable { url, .. }
        | UpstreamError::Timeout { url, .. }
        | UpstreamError::Broken { url, .. }
        | UpstreamError::Protocol { url, .. }
        | UpstreamError::Schema1 { url }
        | UpstreamError::Manifest { url, .. } => Some(url),
        UpstreamError::Busy { .. } | UpstreamError::Setup { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_once_a_minute() {
        let log = FailureLog::default();
        assert_eq!(log.admit("timeout"), Some(0));
        assert_eq!(log.admit("denied"), Some(0));
        for _ in 0..5 {
            assert_eq!(log.admit("timeout"), None);
        }
        tokio::time::advance(INTERVAL).await;
        assert_eq!(log.admit("timeout"), Some(5));
        assert_eq!(log.admit("timeout"), None);
        assert_eq!(log.admit("denied"), Some(0));
    }
}
