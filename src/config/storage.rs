//! The `storage` section: where content is stored, and its limits.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::report::shown;
use super::section::Section;
use super::size::{self, SizeLimit};

const DEFAULT_ROOT: &str = "./millpond-data";
/// Slow compared to any disk, in bytes per second.
const DEFAULT_RATE: u64 = 20 << 20;
/// Smaller caps, in bytes, are most likely numbers without their unit.
const SMALL_CAP: u64 = 1 << 20;

/// Where blobs, manifests and tags are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    Filesystem {
        /// May be relative to the working directory, and need not exist.
        root: PathBuf,
        /// The permissions of files; directories also get search permission for everyone who may
        /// read them. `None` takes those of the existing directory, or 0640 in a new one.
        mode: Option<u32>,
    },
    /// In memory, until the process ends.
    Memory,
}

/// Limits of the stored content, and its background check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest total size of blobs and manifests; never 0. `None` is no cap.
    pub max_size: Option<SizeLimit>,
    /// The space that must stay free on the data directory's file system; `Off` in memory.
    pub min_free: MinFree,
    /// `None` is no background check.
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

/// The background check that hashes every blob again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// Between the starts of two passes; never 0.
    pub interval: Duration,
    /// Bytes read per second; never 0.
    pub rate: u64,
}

/// Also returns whether the operator names the data directory. `from_file` tells whether there is a
/// file, whose driver should name it.
pub(super) fn read(section: &Section<'_>, from_file: bool) -> (Storage, Limits, bool) {
    section.ignore(&[
        ("cache", "descriptors are cached in its own way"),
        ("tag", "tags are looked up in its own way"),
    ]);
    for driver in ["swift", "oss"] {
        section.refuse_driver(driver);
    }
    let is_memory = section.has("inmemory");
    section.section("inmemory", |_| ());
    if is_memory && section.has("filesystem") {
        section.reject(
            "",
            "names two drivers, `filesystem` and `inmemory`; keep one",
        );
    }
    let needs_directory = from_file && section.has("filesystem");
    let (root, mode) = section.section("filesystem", |filesystem| {
        filesystem.ignore(&[("maxthreads", "the number of threads is not limited by it")]);
        let root = filesystem.text("rootdirectory");
        if root.is_none() && needs_directory {
            let path = filesystem.path("rootdirectory");
            let message = format!(
                "`{path}` is not set: data goes to {DEFAULT_ROOT} (the reference registry's \
                 default is /var/lib/registry)"
            );
            filesystem.warning("", message);
        }
        filesystem.print("rootdirectory", root.as_deref().unwrap_or(DEFAULT_ROOT));
        let mode = filesystem.parsed("mode", file_mode);
        if let Some(mode) = mode {
            filesystem.print("mode", format!("0{mode:o}"));
        }
        (root, mode)
    });
    let is_named = root.is_some() && !is_memory;
    let storage = if is_memory {
        section.print_nothing("filesystem");
        section.print("inmemory", serde_yaml::Mapping::new());
        Storage::Memory
    } else {
        let root = root.unwrap_or_else(|| DEFAULT_ROOT.to_owned());
        let root = PathBuf::from(root);
        Storage::Filesystem { root, mode }
    };
    let limits = limits(section, &storage);
    (storage, limits, is_named)
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

fn limits(section: &Section<'_>, storage: &Storage) -> Limits {
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
        scrub: section.section("scrub", scrub),
    }
}

fn min_free(section: &Section<'_>, storage: &Storage) -> MinFree {
    let min_free = match limit(section, "minfree", 0..=99, storage) {
        None => MinFree::Default,
        Some(SizeLimit::Bytes(0) | SizeLimit::Percent(0)) => {
            section.print("minfree", "0");
            MinFree::Off
        }
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
    section.print("minfree", "0");
    MinFree::Off
}

/// The limit at `key`; a percentage must be within `percents`.
fn limit(
    section: &Section<'_>,
    key: &'static str,
    percents: RangeInclusive<u8>,
    storage: &Storage,
) -> Option<SizeLimit> {
    let limit = section.value(key, |text| {
        size::limit(text, percents).map_err(|error| format!("it {error}"))
    })?;
    if matches!(limit, SizeLimit::Percent(_)) && *storage == Storage::Memory {
        let reason = format!(
            "is {}, but `storage.inmemory` uses no file system; write a size such as 4GiB",
            shown(&section.text(key).unwrap_or_default())
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
    if interval.is_zero() {
        scrub.print_nothing("rate");
        return None;
    }
    Some(Scrub { interval, rate })
}
