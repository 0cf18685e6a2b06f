//! The `storage` section: where content is stored, and its limits.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::print;
use super::report::shown;
use super::section::Section;
use super::size::{self, SizeLimit};

const DEFAULT_ROOT: &str = "./millpond-data";
/// Slow compared to any disk, in bytes per second.
const DEFAULT_RATE: u64 = 20 << 20;
/// Smaller caps, in bytes, are most likely numbers without their unit.
const SMALL_CAP: u64 = 1 << 20;

/// Where blobs, manifests and tags are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    Filesystem {
        /// May be relative to the working directory, and need not exist.
        #[serde(rename = "rootdirectory")]
        root: PathBuf,
        /// The permissions of files; directories also get search permission for everyone who may
        /// read them. `None` takes those of the existing directory, or 0640 in a new one.
        #[serde(
            skip_serializing_if = "Option::is_none",
            serialize_with = "print::octal"
        )]
        mode: Option<u32>,
    },
    /// In memory, until the process ends.
    #[serde(rename = "inmemory", serialize_with = "print::empty_map")]
    Memory,
}

/// Limits of the stored content, and its background check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// The largest total size of blobs and manifests; never 0. `None` is no cap.
    #[serde(rename = "maxsize", skip_serializing_if = "Option::is_none")]
    pub max_size: Option<SizeLimit>,
    /// The space that must stay free on the data directory's file system; `Off` in memory.
    #[serde(rename = "minfree", skip_serializing_if = "MinFree::is_default")]
    pub min_free: MinFree,
    /// `None` is no background check.
    #[serde(serialize_with = "print::scrub")]
    pub scrub: Option<Scrub>,
}

/// The value of `storage.minfree`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Not configured: the smaller of 5 % and 10 GiB. The cache stops growing at that point, but
    /// evicts nothing for it.
    Default,
    /// 0: the cache may fill the file system.
    Off,
    /// Never 0. Images are evicted to keep this much free.
    Limit(SizeLimit),
}

impl Serialize for MinFree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_none(),
            Self::Off => serializer.serialize_str("0"),
            Self::Limit(limit) => limit.serialize(serializer),
        }
    }
}

impl MinFree {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// The background check that hashes every blob again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scrub {
    /// Between the starts of two passes; never 0.
    #[serde(serialize_with = "print::duration")]
    pub interval: Duration,
    /// Bytes read per second; never 0.
    #[serde(serialize_with = "print::size")]
    pub rate: u64,
}

/// `from_file` tells whether there is a file, whose driver should name its directory.
pub(super) fn read(section: &Section<'_>, from_file: bool) -> Storage {
    let filesystem = section.section("filesystem");
    if section.has("inmemory") {
        if section.has("filesystem") {
            section.reject(
                "",
                "names two drivers, `filesystem` and `inmemory`; keep one",
            );
        }
        return Storage::Memory;
    }
    let root = filesystem.text("rootdirectory");
    if root.is_none() && from_file && section.has("filesystem") {
        let path = filesystem.path("rootdirectory");
        let message = format!(
            "`{path}` is not set: data goes to {DEFAULT_ROOT} (the reference registry's default \
             is /var/lib/registry)"
        );
        filesystem.warning("", &message);
    }
    Storage::Filesystem {
        root: PathBuf::from(root.unwrap_or(DEFAULT_ROOT)),
        mode: filesystem.value("mode", file_mode),
    }
}

/// The permissions of files, as three or four octal digits.
fn file_mode(text: &str) -> Result<u32, &'static str> {
    let mode = match text.len() {
        3 | 4 if !text.starts_with('+') => u32::from_str_radix(text, 8).ok(),
        _ => None,
    };
    // Readable and writable for the owner; executable or special for nobody.
    mode.filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0)
        .ok_or(
            "write the permissions of files as octal digits such as 0640: readable and writable \
             for the owner, and executable for nobody",
        )
}

pub(super) fn limits(section: &Section<'_>, storage: &Storage) -> Limits {
    let max_size = limit(section, "maxsize", 1..=100, storage);
    match max_size {
        Some(SizeLimit::Bytes(0)) => section.reject(
            "maxsize",
            "must be more than 0; without the key, there is no cap",
        ),
        Some(SizeLimit::Bytes(bytes)) if bytes < SMALL_CAP => section.doubt(
            "maxsize",
            format_args!("is only {bytes} bytes: hardly anything fits"),
        ),
        _ => {}
    }
    Limits {
        max_size,
        min_free: min_free(section, storage),
        scrub: scrub(&section.section("scrub")),
    }
}

fn min_free(section: &Section<'_>, storage: &Storage) -> MinFree {
    let min_free = match limit(section, "minfree", 0..=99, storage) {
        None => MinFree::Default,
        Some(SizeLimit::Bytes(0) | SizeLimit::Percent(0)) => MinFree::Off,
        Some(limit) => MinFree::Limit(limit),
    };
    if *storage != Storage::Memory {
        return min_free;
    }
    if matches!(min_free, MinFree::Limit(_)) {
        section.doubt(
            "minfree",
            "has no effect: `storage.inmemory` uses no file system",
        );
    }
    MinFree::Off
}

/// The limit at `key`; a percentage must be within `percents`.
fn limit(
    section: &Section<'_>,
    key: &str,
    percents: RangeInclusive<u8>,
    storage: &Storage,
) -> Option<SizeLimit> {
    let limit = section.value(key, |text| {
        size::limit(text, percents).map_err(|error| format!("it {error}"))
    })?;
    if matches!(limit, SizeLimit::Percent(_)) && *storage == Storage::Memory {
        let reason = format!(
            "is {}, but `storage.inmemory` uses no file system; write a size such as 4GiB",
            shown(section.text(key).unwrap_or_default())
        );
        section.reject(key, reason);
        return None;
    }
    Some(limit)
}

fn scrub(scrub: &Section<'_>) -> Option<Scrub> {
    let interval = scrub.duration("interval", Duration::ZERO);
    let rate = scrub.size("rate", DEFAULT_RATE);
    if rate == 0 {
        scrub.reject(
            "rate",
            "must be more than 0; `storage.scrub.interval: 0` turns the check off",
        );
    }
    (!interval.is_zero()).then_some(Scrub { interval, rate })
}
