//! What an upstream says of its rate limit: `RateLimit-Limit` and `RateLimit-Remaining`, as Docker Hub
//! sends them (`100;w=21600`: 100 pulls in 21,600 seconds), and `RateLimit-Reset` of other registries.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;

use super::budget::Allowance;
use crate::oci::digits;

pub(super) const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The largest limit that is believed, in requests.
const MAX_LIMIT: u64 = 1_000_000_000;
/// The longest window that is believed.
const MAX_WINDOW: Duration = Duration::from_hours(31 * 24);
/// The window where a registry names none.
const DEFAULT_WINDOW: Duration = Duration::from_hours(1);

/// None where a header is missing or malformed, or the limit is 0.
pub(super) fn parse(headers: &HeaderMap) -> Option<Allowance> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let (limit, window) = quantity(text(&LIMIT)?)?;
    let (remaining, other_window) = quantity(text(&REMAINING)?)?;
    let reset = || text(&RESET).and_then(seconds);
    let window = window.or(other_window).or_else(reset);
    (limit > 0).then(|| Allowance {
        limit,
        remaining: remaining.min(limit),
        window: window.unwrap_or(DEFAULT_WINDOW),
    })
}

/// `100;w=21600`, of a list the first item: a number of requests, and the window.
fn quantity(text: &str) -> Option<(u64, Option<Duration>)> {
    let first = text.split(',').next()?;
    let mut parts = first.split(';').map(str::trim);
    let count: u64 = digits(parts.next()?)?;
    let window = parts.find_map(|parameter| seconds(parameter.strip_prefix("w=")?));
    Some((count.min(MAX_LIMIT), window))
}

/// None for 0: a window without length says nothing.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: u64 = digits(text.trim())?;
    let window = Duration::from_secs(seconds).min(MAX_WINDOW);
    (!window.is_zero()).then_some(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hubs_form_and_others_are_read() {
        let hours = Duration::from_hours;
        for (limit, remaining, reset, expected) in [
            ("100;w=21600", "76;w=21600", "", Some((100, 76, hours(6)))),
            ("100;w=21600", "0;w=21600", "", Some((100, 0, hours(6)))),
            ("200", "7", "3600", Some((200, 7, hours(1)))),
            ("200", "7", "", Some((200, 7, DEFAULT_WINDOW))),
            ("10, 10;w=1, 50;w=60", "9", "7200", Some((10, 9, hours(2)))),
            ("10 ; w=7200", "11", "", Some((10, 10, hours(2)))),
            ("10;burst=5;w=7200", "1", "", Some((10, 1, hours(2)))),
            (
                "99999999999",
                "5;w=99999999",
                "",
                Some((MAX_LIMIT, 5, MAX_WINDOW)),
            ),
            ("100;w=0", "5", "0", Some((100, 5, DEFAULT_WINDOW))),
            ("0;w=10", "0;w=10", "", None),
            ("", "1", "", None),
            ("-1", "1", "", None),
            ("10", "many", "", None),
            ("99999999999999999999999", "1", "", None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, text) in [(LIMIT, limit), (REMAINING, remaining), (RESET, reset)] {
                if !text.is_empty() {
                    headers.insert(name, text.parse().unwrap());
                }
            }
            let expected = expected.map(|(limit, remaining, window)| Allowance {
                limit,
                remaining,
                window,
            });
            assert_eq!(parse(&headers), expected, "{limit}, {remaining}");
        }
    }
}
