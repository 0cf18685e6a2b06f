//! The cap and the TTL beside what the cache holds.

use std::time::Duration;

use super::super::table::bytes;
use super::finding::Findings;
use crate::admin::operate::Image;
use crate::app::{self, Space};
use crate::clock::Clock;
use crate::config::{Config, Storage};

/// The share of the cap, in percent, from which on images are evicted every now and then.
const FULL: u64 = 90;
/// The share of the space, in percent, below which nothing is short.
const HALF: u64 = 50;
/// What is evicted sooner after its last use is likely to be wanted again.
const TOO_SOON: Duration = Duration::from_hours(1);

/// What a cache holds.
#[derive(Debug)]
pub(super) struct Cached<'a> {
    pub(super) images: &'a [Image],
    /// Bytes of all files.
    pub(super) used: u64,
    /// Downloads for which there was no space, since the server started.
    pub(super) full: u64,
}

pub(super) fn compare(cached: &Cached<'_>, config: &Config, clock: Clock, found: &mut Findings) {
    let settings = app::cache_settings(config);
    let reserve = settings.min_free.map_or(0, |min_free| min_free.bytes);
    let Storage::Filesystem { root, .. } = &config.storage else {
        return;
    };
    let free = Space::of(root).map_or(u64::MAX, |space| space.free.saturating_sub(reserve));
    let room = cached.used.saturating_add(free);
    // What the cache can grow to.
    let cap = settings.max_size.unwrap_or(u64::MAX).min(room);
    let shown = format!("{} of {} are used", bytes(cached.used), bytes(cap));
    if let Some(wanted) = settings.max_size.filter(|wanted| *wanted > room) {
        let text = format!(
            "the disk is full before `storage.maxsize` ({}) is reached: {} are left for the cache",
            bytes(wanted),
            bytes(room)
        );
        let fix = format!("lower it to {}, or free space", bytes(room));
        found.warn("cap", text, fix);
    }
    let larger = "raise `storage.maxsize`, or use a larger disk";
    if cached.full > 0 {
        let text = format!(
            "{} downloads found no space and weren't cached; {shown}",
            cached.full
        );
        found.warn("cap", text, larger);
        return;
    }
    let is_full = cached.used >= share(cap, FULL);
    let pinned = cached.images.iter().filter(|image| image.pinned);
    let pinned: u64 = pinned.map(|image| image.size).sum();
    let idle = oldest(cached.images, clock);
    match idle {
        _ if is_full && pinned >= share(cap, FULL) => {
            let text = format!(
                "pinned images take {}, and leave no space; {shown}",
                bytes(pinned)
            );
            found.warn(
                "cap",
                text,
                "remove some of `proxy.pins`, `millpond unpin` some, or raise `storage.maxsize`",
            );
        }
        Some(idle) if is_full && idle < TOO_SOON => {
            let text = format!(
                "the cap is too small for the use: {shown}, and images are evicted {} after their last \
                 use",
                rounded(idle)
            );
            found.warn("cap", text, larger);
        }
        _ => found.ok("cap", shown),
    }
    ttl(cached, config, cap, found);
}

fn ttl(cached: &Cached<'_>, config: &Config, cap: u64, found: &mut Findings) {
    let Some(ttl) = config.proxy.ttl else { return };
    let is_roomy = cached.used < share(cap, HALF);
    if ttl < TOO_SOON && is_roomy {
        let text = format!(
            "unused content expires after {} (`proxy.ttl`), although the cache is half empty",
            rounded(ttl)
        );
        found.warn(
            "ttl",
            text,
            "raise `proxy.ttl`, or remove it: the cap evicts what is unused",
        );
    } else {
        found.ok(
            "ttl",
            format!("unused content expires after {}", rounded(ttl)),
        );
    }
}

/// How long the image wasn't used that is evicted next.
fn oldest(images: &[Image], clock: Clock) -> Option<Duration> {
    let evictable = images.iter().filter(|image| !image.pinned);
    let uses = evictable.filter_map(|image| humantime::parse_rfc3339(&image.last_use).ok());
    let oldest = uses.min()?;
    Some(clock.wall().duration_since(oldest).unwrap_or_default())
}

fn share(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent
}

fn rounded(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MinFree, SizeLimit};
    use crate::oci::{Algorithm, Digest};
    use std::path::PathBuf;
    use std::time::SystemTime;

    const NOW: Duration = Duration::from_hours(500_000);

    fn image(idle: Duration, pinned: bool) -> Image {
        let last_use = SystemTime::UNIX_EPOCH + NOW - idle;
        Image {
            names: vec!["app:1".to_owned()],
            digest: Digest::of(Algorithm::Sha256, b"app"),
            kind: "image".to_owned(),
            size: 950,
            shared: 0,
            last_use: humantime::format_rfc3339_seconds(last_use).to_string(),
            expiry: None,
            pinned,
            pinned_until: None,
        }
    }

    /// The lines about a cache with a cap of 1,000 bytes.
    fn compared(cached: &Cached<'_>, ttl: Option<Duration>) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default_config();
        config.storage = Storage::Filesystem {
            root: PathBuf::from(directory.path()),
            mode: None,
        };
        config.limits.max_size = Some(SizeLimit::Bytes(1000));
        config.limits.min_free = MinFree::Off;
        config.proxy.ttl = ttl;
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH + NOW);
        let mut found = Findings::about("server");
        compare(cached, &config, clock, &mut found);
        let list = found.into_list().into_iter();
        list.map(|finding| format!("{:?} {}", finding.status, finding.text))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_is_judged_by_what_is_evicted_next() {
        let hour = TOO_SOON;
        let old = "Ok 950 B of 1000 B are used";
        for (idle, pinned, full, expected) in [
            (hour * 2, false, 0, old),
            (
                hour / 4,
                false,
                0,
                "Warn the cap is too small for the use: 950 B of 1000 B are used, and images are \
                 evicted 15m after their last use",
            ),
            (
                hour * 2,
                true,
                0,
                "Warn pinned images take 950 B, and leave no space; 950 B of 1000 B are used",
            ),
            (
                hour * 2,
                false,
                3,
                "Warn 3 downloads found no space and weren't cached; 950 B of 1000 B are used",
            ),
        ] {
            let images = [image(idle, pinned)];
            let (images, used) = (&images[..], 950);
            let cached = Cached { images, used, full };
            assert_eq!(compared(&cached, None), [expected]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_ttl_is_a_warning_only_where_there_is_space() {
        let short = Some(Duration::from_mins(10));
        let cached = |used| Cached {
            images: &[],
            used,
            full: 0,
        };
        let roomy = compared(&cached(100), short);
        assert!(
            roomy[1].starts_with("Warn unused content expires after 10m"),
            "{roomy:?}"
        );
        let busy = compared(&cached(800), short);
        assert_eq!(busy[1], "Ok unused content expires after 10m");
        let long = compared(&cached(100), Some(TOO_SOON * 24));
        assert_eq!(long[1], "Ok unused content expires after 1day");
    }
}
