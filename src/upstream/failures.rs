//! What the log says of an upstream that fails: one WARN for each kind of failure, at most once a
//! minute. Thousands of clients that pull from a failing upstream don't make thousands of lines.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::{Failure, UpstreamError};
use crate::error_chain::on_one_line;
use crate::oci::RepoName;

/// The kind of failure of bytes that weren't the blob's.
pub(super) const WRONG_CONTENT: &str = "wrong_content";
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
        match kinds.get_mut(kind) {
            Some(logged) if now.duration_since(logged.at) < INTERVAL => {
                logged.unlogged = logged.unlogged.saturating_add(1);
                None
            }
            before => {
                let unlogged = before.map_or(0, |logged| logged.unlogged);
                let logged = Logged {
                    at: now,
                    unlogged: 0,
                };
                kinds.insert(kind, logged);
                Some(unlogged)
            }
        }
    }

    /// Logs a failure, and what was done instead of what was asked for.
    pub(super) fn report(&self, upstream: &str, error: &UpstreamError, instead: &str) {
        // Registries answer so every day, to clients that ask for what they don't have; and what isn't
        // asked doesn't fail.
        if matches!(error.failure, Failure::NotFound(_) | Failure::Offline) {
            return;
        }
        let Some(unlogged) = self.admit(error.class()) else {
            return;
        };
        let url = &error.url;
        tracing::warn!(
            upstream,
            status = error.status(),
            %url,
            error = %on_one_line(error),
            instead,
            unlogged,
            "the upstream failed"
        );
    }

    /// Logs bytes of a repository's blob that weren't the blob's.
    pub(super) fn report_wrong(
        &self,
        upstream: &str,
        repository: &RepoName,
        error: &dyn Error,
        instead: &str,
    ) {
        let Some(unlogged) = self.admit(WRONG_CONTENT) else {
            return;
        };
        tracing::warn!(
            upstream,
            %repository,
            error = %on_one_line(error),
            instead,
            unlogged,
            "the upstream failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_failure_is_logged_once_a_minute() {
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
