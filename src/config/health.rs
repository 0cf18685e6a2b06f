//! The `health` section: the reference registry's checks. While one of them fails, the registry API
//! answers 503.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::header::HeaderMap;
use url::Url;

use super::address::Listen;
use super::credentials::HIDDEN;
use super::duration::format;
use super::http::{headers, web_url};
use super::section::Section;
use super::storage::Storage;

/// The reference registry's, which takes 0 for it, too.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);
/// The reference registry waits without end by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(10);
const MAX_THRESHOLD: usize = 1000;

/// The configured checks; their names differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthConfig {
    pub checks: Vec<HealthCheck>,
}

/// Something that is tried again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The reference registry's: the file, the URI or the address; `storagedriver_` and the driver.
    pub name: String,
    pub probe: HealthProbe,
    pub timing: HealthTiming,
}

/// When a check is tried, and when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthTiming {
    /// Between two tries; never 0.
    pub interval: Duration,
    /// How long one try may take; never 0.
    pub timeout: Duration,
    /// How many tries in succession must fail for the check to fail.
    pub threshold: NonZeroU32,
}

/// What a check tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProbe {
    /// The store reads and writes.
    Store,
    /// The file doesn't exist.
    File(PathBuf),
    /// A HEAD request is answered with this status.
    Http {
        url: Url,
        /// Sent with the request. Their values are secrets.
        headers: HeaderMap,
        status: u16,
    },
    /// `host:port` accepts a connection.
    Tcp(String),
}

pub(super) fn read(health: &Section<'_>, storage: &Storage) -> HealthConfig {
    let store = health.section("storagedriver", |section| {
        let is_enabled = section.bool("enabled", false);
        let driver = match storage {
            Storage::Filesystem { .. } => "filesystem",
            Storage::Memory => "inmemory",
        };
        let check = HealthCheck {
            name: format!("storagedriver_{driver}"),
            probe: HealthProbe::Store,
            timing: timing(section, DEFAULT_TIMEOUT),
        };
        is_enabled.then_some(check)
    });
    let mut names = BTreeSet::new();
    let checks = [
        store.into_iter().collect(),
        listed(health, "file", &mut names, file),
        listed(health, "http", &mut names, http),
        listed(health, "tcp", &mut names, tcp),
    ];
    let checks = checks.into_iter().flatten().collect();
    HealthConfig { checks }
}

/// The checks of a list. `names` are those of other checks.
fn listed(
    health: &Section<'_>,
    key: &'static str,
    names: &mut BTreeSet<String>,
    read: fn(&Section<'_>) -> Option<HealthCheck>,
) -> Vec<HealthCheck> {
    let checks = health.sections(key, |section| {
        let check = read(section)?;
        if names.insert(check.name.clone()) {
            return Some(check);
        }
        let name = &check.name;
        section.problem("", format!("{name} is checked twice; keep one"));
        None
    });
    checks.into_iter().flatten().collect()
}

fn file(section: &Section<'_>) -> Option<HealthCheck> {
    let file = section.value("file", |text| Ok::<_, &str>(text.to_owned()));
    if file.is_none() {
        section.missing("file", "the path of a file that must not exist");
    }
    let timing = timing(section, DEFAULT_TIMEOUT);
    let name = file?;
    Some(HealthCheck {
        probe: HealthProbe::File(PathBuf::from(&name)),
        name,
        timing,
    })
}

fn http(section: &Section<'_>) -> Option<HealthCheck> {
    let name = section.text("uri");
    let url = match &name {
        None => {
            section.missing("uri", "the URL to send HEAD requests to");
            None
        }
        // A login would be shown, as part of the check's name.
        Some(text) if text.contains('@') => {
            section.reject(
                "uri",
                "contains an @; write the credentials as an Authorization header in `headers`",
            );
            None
        }
        Some(_) => section.value("uri", |text| {
            web_url(text).ok_or("write a URL such as https://auth.example/healthy")
        }),
    };
    let mut headers = headers(section);
    let mut shown = serde_yaml::Mapping::new();
    for (name, value) in &mut headers {
        value.set_sensitive(true);
        shown.insert(name.as_str().into(), vec![HIDDEN].into());
    }
    section.print("headers", shown);
    let status = section.number("statuscode", 100..=599, 200);
    let timeout = within(section, "timeout", DEFAULT_TIMEOUT, &TIMEOUTS);
    let timing = timing(section, timeout);
    Some(HealthCheck {
        name: name?,
        probe: HealthProbe::Http {
            url: url?,
            headers,
            status: u16::try_from(status).ok()?,
        },
        timing,
    })
}

fn tcp(section: &Section<'_>) -> Option<HealthCheck> {
    let address = section.value("addr", |text| {
        let is_whole = !text.starts_with(':') && Listen::tcp(text).is_some();
        is_whole.then(|| text.to_owned()).ok_or("write host:port")
    });
    if section.text("addr").is_none() {
        section.missing("addr", "host:port to connect to");
    }
    let timeout = within(section, "timeout", DEFAULT_TIMEOUT, &TIMEOUTS);
    let timing = timing(section, timeout);
    let name = address?;
    Some(HealthCheck {
        probe: HealthProbe::Tcp(name.clone()),
        name,
        timing,
    })
}

/// What every kind of check has.
fn timing(section: &Section<'_>, timeout: Duration) -> HealthTiming {
    let threshold = section.number("threshold", 0..=MAX_THRESHOLD, 1);
    let threshold = u32::try_from(threshold).ok().and_then(NonZeroU32::new);
    HealthTiming {
        interval: within(section, "interval", DEFAULT_INTERVAL, &INTERVALS),
        timeout,
        threshold: threshold.unwrap_or(NonZeroU32::MIN),
    }
}

/// A duration with bounds; 0 is the default, as in the reference registry.
fn within(
    section: &Section<'_>,
    key: &'static str,
    default: Duration,
    bounds: &RangeInclusive<Duration>,
) -> Duration {
    let duration = section.duration(key, default);
    if duration.is_zero() {
        section.print(key, format(default));
        return default;
    }
    if !bounds.contains(&duration) {
        let (from, to) = (format(*bounds.start()), format(*bounds.end()));
        section.reject(key, format_args!("must be from {from} to {to}"));
    }
    duration
}
