//! When a request is worth another try, and after how long. Pure: the caller sleeps.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, RETRY_AFTER};

use super::error::{Failure, Phase, UpstreamError};
use crate::oci::Classified as _;

/// Attempts in all, the first included.
pub(super) const ATTEMPTS: u32 = 3;
/// The first wait is at most this long; each further one at most twice the one before.
pub(super) const BASE: Duration = Duration::from_millis(200);
/// No wait of our own choice is longer.
pub(super) const CAP: Duration = Duration::from_secs(2);
/// The longest `Retry-After` that is waited for here; longer ones are passed on to the client.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is believed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// How long to wait before the next attempt, after attempt number `attempt` (from 1) failed with
/// `error`. `None`: give up. `jitter` is between 0 and 1 and spreads requests that failed together.
pub(super) fn delay(attempt: u32, error: &UpstreamError, jitter: f64) -> Option<Duration> {
    if attempt >= ATTEMPTS || !is_retried(error) {
        return None;
    }
    let doubled = BASE.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    let backoff = doubled.min(CAP).mul_f64(jitter.clamp(0.0, 1.0));
    match error.retry_after() {
        Some(wanted) if wanted > PATIENCE => None,
        Some(wanted) => Some(wanted + backoff),
        None => Some(backoff),
    }
}

/// Only what a second attempt can change: nothing that the upstream decided (401, 403, 404), and
/// not a rate limit, which more requests make worse. A silent upstream has cost a full header
/// timeout already.
const fn is_retried(error: &UpstreamError) -> bool {
    matches!(
        error.failure,
        Failure::Unavailable {
            status: 502..=504,
            ..
        } | Failure::Timeout {
            phase: Phase::Connect,
            ..
        } | Failure::Unreachable(_)
            | Failure::Broken { received: 0, .. }
    )
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3), counted from `now`. At most
/// [`MAX_RETRY_AFTER`]; a date that has passed is zero.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wanted = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are simply very long.
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(now).unwrap_or_default()
    };
    Some(wanted.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(failure: Failure) -> UpstreamError {
        UpstreamError::new(&"https://registry.example/v2/".parse().unwrap(), failure)
    }

    fn unavailable(status: u16, retry_after: Option<u64>) -> UpstreamError {
        let retry_after = retry_after.map(Duration::from_secs);
        error(Failure::Unavailable {
            status,
            retry_after,
        })
    }

    #[test]
    fn three_attempts_with_growing_waits() {
        let error = unavailable(503, None);
        assert_eq!(delay(1, &error, 1.0), Some(Duration::from_millis(200)));
        assert_eq!(delay(2, &error, 1.0), Some(Duration::from_millis(400)));
        assert_eq!(delay(2, &error, 0.0), Some(Duration::ZERO));
        assert_eq!(delay(3, &error, 1.0), None);
    }

    #[test]
    fn only_a_short_retry_after_is_waited_for() {
        assert_eq!(delay(1, &unavailable(503, Some(5)), 0.0), Some(PATIENCE));
        assert_eq!(delay(1, &unavailable(503, Some(6)), 0.0), None);
    }

    #[test]
    fn only_failures_that_another_attempt_can_change_are_retried() {
        let timeout = |phase| Failure::Timeout { phase, after: CAP };
        let broken = |received| Failure::Broken {
            received,
            source: None,
        };
        let retry_after = None;
        for (error, is_retried) in [
            (error(Failure::RateLimited { retry_after }), false),
            (error(Failure::Denied(None)), false),
            (error(Failure::NotFound(None)), false),
            (error(timeout(Phase::Header)), false),
            (error(broken(1)), false),
            (unavailable(500, None), false),
            (error(broken(0)), true),
            (error(timeout(Phase::Connect)), true),
            (unavailable(502, None), true),
            (unavailable(504, None), true),
        ] {
            assert_eq!(delay(1, &error, 0.5).is_some(), is_retried, "{error}");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = |ahead| httpdate::fmt_http_date(now + Duration::from_secs(ahead));
        let past = httpdate::fmt_http_date(now - Duration::from_secs(5));
        for (text, expected) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(3600)),
            ("3601", Some(3600)),
            (date(90).as_str(), Some(90)),
            (date(90_000).as_str(), Some(3600)),
            (past.as_str(), Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    proptest! {
        #[test]
        fn no_wait_is_out_of_bounds(attempt in 0u32..100, jitter: f64, wanted in proptest::option::of(0u64..10)) {
            if let Some(wait) = delay(attempt, &unavailable(503, wanted), jitter) {
                prop_assert!(wait <= PATIENCE + CAP);
                prop_assert!(attempt < ATTEMPTS);
            }
        }
    }
}
