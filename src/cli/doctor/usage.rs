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
                "remove some of `proxy.pins`, or raise `storage.maxsize`",
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
