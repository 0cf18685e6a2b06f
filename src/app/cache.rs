//! The cache's settings, from the configuration.

use std::path::Path;
use std::sync::Arc;

use crate::cache::{CacheSettings, HostedRole, MinFree, TtlPolicy, Upkeep};
use crate::config::{self, Config, SizeLimit, Storage};
use crate::error_chain::on_one_line;
use crate::storage::Layout;

/// The configured settings of the cache.
pub fn settings(config: &Config) -> CacheSettings {
    let root = match &config.storage {
        Storage::Filesystem { root, .. } => Some(root.as_path()),
        Storage::Memory => None,
    };
    let proxy = &config.proxy;
    let max_size = config.limits.max_size.and_then(|limit| bytes(limit, root));
    CacheSettings {
        ttl: ttl(proxy),
        hosted: super::hosted::policies(config),
        pins: proxy.pins.clone(),
        max_size,
        min_free: root.and_then(|root| min_free(config.limits.min_free, root)),
        state: root.map(|root| Layout::new(root).scheduler_state()),
        upkeep: Upkeep::Full,
        // Where there is a bucket, it may have more than is here.
        hosted_role: if config.bucket.is_some() {
            HostedRole::Learns
        } else {
            HostedRole::Decides
        },
    }
}

fn ttl(proxy: &config::Proxy) -> TtlPolicy {
    if proxy.offline {
        // What expires couldn't be fetched again.
        return TtlPolicy::sliding(None);
    }
    TtlPolicy {
        default: proxy.ttl,
        rules: proxy.ttl_rules.clone(),
        mode: proxy.ttl_mode,
    }
}

/// The default of `storage.minfree`: the smaller of 5 % of the file system and 10 GiB.
const DEFAULT_MIN_FREE: (u8, u64) = (5, 10 << 30);

fn min_free(limit: config::MinFree, root: &Path) -> Option<MinFree> {
    let (bytes, evicts) = match limit {
        config::MinFree::Off => return None,
        config::MinFree::Limit(limit) => (bytes(limit, Some(root))?, true),
        config::MinFree::Default => {
            let (percent, most) = DEFAULT_MIN_FREE;
            let share = bytes(SizeLimit::Percent(percent), Some(root))?;
            (share.min(most), false)
        }
    };
    let root = root.to_owned();
    Some(MinFree {
        bytes,
        evicts,
        free_space: Arc::new(move || Some(space(&root)?.free)),
    })
}

/// A limit in bytes. None, with a warning, where the size of the file system isn't known.
fn bytes(limit: SizeLimit, root: Option<&Path>) -> Option<u64> {
    match limit {
        SizeLimit::Bytes(bytes) => Some(bytes),
        SizeLimit::Percent(percent) => {
            let space = root.and_then(space);
            if space.is_none() {
                tracing::warn!(
                    percent,
                    "the file system's size can't be told; its limit is ignored"
                );
            }
            space.map(|space| space.share(percent))
        }
    }
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub total: u64,
    /// For processes of users other than root.
    pub free: u64,
}

impl Space {
    /// Of the file system that has this path.
    pub fn of(path: &Path) -> rustix::io::Result<Self> {
        let seen = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
        Ok(Self {
            total: bytes(seen.f_blocks),
            free: bytes(seen.f_bavail),
        })
    }

    pub(super) fn share(&self, percent: u8) -> u64 {
        self.total / 100 * u64::from(percent)
    }
}

fn space(root: &Path) -> Option<Space> {
    let warn = |error: &rustix::io::Errno| tracing::warn!(root = %root.display(), error = %on_one_line(error), "can't tell the free space");
    Space::of(root).inspect_err(warn).ok()
}
