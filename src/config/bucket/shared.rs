//! `storage.shared`: how the bucket is used.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::section::Section;
use crate::config::{duration, size};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
const DEFAULT_REDIRECT_ABOVE: usize = 500;
const MAX_REDIRECT_ABOVE: usize = 1_000_000;
const DEFAULT_TTL: Duration = Duration::from_hours(720);
/// Content that is used is renewed from four days before its end on: with a TTL near that, each use
/// renews it.
const SHORT_TTL: Duration = Duration::from_hours(7 * 24);
/// Smaller limits, in bytes, are most likely numbers without their unit.
const SMALL_MAX: u64 = 1 << 20;

/// How the bucket is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStorage {
    /// How long the headers of a response may take, 100 ms to 1 min.
    pub timeout: Duration,
    pub redirect: RedirectMode,
    /// With [`RedirectMode::Busy`], the number of bodies in transfer above which clients are redirected; at
    /// least 1.
    pub redirect_above: usize,
    /// Whether clients are also redirected to content that not every caller may pull.
    pub redirect_private: bool,
    /// How long unused content stays; never 0. None is forever.
    pub ttl: Option<Duration>,
    /// Of all blobs together, in bytes; never 0. None is no limit.
    pub max_size: Option<u64>,
}

/// Which requests for blobs are answered with a signed URL of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectMode {
    Never,
    /// Those that come while many bodies are sent.
    Busy,
    Always,
}

/// Reads the section. `is_disabled` tells whether the reference registry's key forbids redirects.
pub(super) fn read(shared: &Section<'_>, has_bucket: bool, is_disabled: bool) -> SharedStorage {
    let timeout = shared.duration("timeout", DEFAULT_TIMEOUT);
    if !TIMEOUTS.contains(&timeout) {
        shared.reject("timeout", "must be from 100ms to 1m");
    }
    let redirect = redirect(shared, has_bucket, is_disabled);
    let redirect_above = shared.number(
        "redirectabove",
        1..=MAX_REDIRECT_ABOVE,
        DEFAULT_REDIRECT_ABOVE,
    );
    let redirect_private = shared.bool("redirectprivate", false);
    let ttl = shared.duration("ttl", DEFAULT_TTL);
    let max_size = max_size(shared);
    let read = SharedStorage {
        timeout,
        redirect,
        redirect_above,
        redirect_private,
        ttl: (!ttl.is_zero()).then_some(ttl),
        max_size,
    };
    if has_bucket {
        doubts(shared, &read);
    } else {
        let keys = [
            "timeout",
            "redirectabove",
            "redirectprivate",
            "ttl",
            "maxsize",
        ];
        for key in keys {
            if shared.text(key).is_some() {
                shared.doubt(key, "has no effect: there is no bucket");
            }
        }
    }
    read
}

fn redirect(shared: &Section<'_>, has_bucket: bool, is_disabled: bool) -> RedirectMode {
    let choices = [
        ("never", RedirectMode::Never),
        ("busy", RedirectMode::Busy),
        ("always", RedirectMode::Always),
    ];
    let advice = "write never, busy or always";
    let redirect = shared.choice("redirect", advice, &choices, RedirectMode::Never);
    if redirect == RedirectMode::Never {
        return redirect;
    }
    if !has_bucket {
        let reason =
            "needs a bucket; write `storage.s3`, `storage.gcs` or `storage.azure`, or remove it";
        shared.reject("redirect", reason);
    } else if is_disabled {
        shared.doubt(
            "redirect",
            "has no effect: `storage.redirect.disable` is true",
        );
        shared.print("redirect", "never");
        return RedirectMode::Never;
    }
    redirect
}

fn max_size(shared: &Section<'_>) -> Option<u64> {
    let max_size = shared.parsed("maxsize", |text| {
        if text.trim_end().ends_with('%') {
            return Err("write a size such as 10TiB: a bucket has no size of its own".to_owned());
        }
        size::bytes(text).map_err(|error| format!("it {error}"))
    })?;
    shared.print("maxsize", size::format(max_size));
    if max_size == 0 {
        let reason = "must be more than 0; without the key, there is no limit";
        shared.reject("maxsize", reason);
    } else if max_size < SMALL_MAX {
        let reason = format!("is only {max_size} bytes: hardly anything fits");
        shared.doubt("maxsize", reason);
    }
    Some(max_size)
}

fn doubts(shared: &Section<'_>, read: &SharedStorage) {
    if read.redirect != RedirectMode::Busy && shared.text("redirectabove").is_some() {
        shared.doubt("redirectabove", "has no effect: `redirect` isn't busy");
    }
    if read.redirect == RedirectMode::Never && read.redirect_private {
        shared.doubt("redirectprivate", "has no effect: `redirect` is never");
    }
    if let Some(ttl) = read.ttl.filter(|ttl| *ttl < SHORT_TTL) {
        let shown = duration::format(ttl);
        let reason = format!("is only {shown}: content is written again at nearly every use");
        shared.doubt("ttl", reason);
    }
}
