//! What `millpond check` does: builds what the server is built of, and creates nothing.

use std::path::Path;

use super::{StartError, upstreams};
use crate::clock::Clock;
use crate::config::{Config, Storage};
use crate::metrics::Metrics;
use crate::storage::FsStore;

impl super::App {
    /// Builds the upstreams' clients, with their CA files, and the cache's settings, and looks
    /// whether the data directory could be used. Listens nowhere and creates nothing.
    pub async fn check(config: &Config) -> Result<(), StartError> {
        upstreams(&config.proxy, Clock::system(), &Metrics::new().into())?;
        if let Storage::Filesystem { root, .. } = &config.storage {
            FsStore::check_root(root).await?;
        }
        Ok(())
    }
}

/// What the configuration asks for and can't have, with the key that asks.
pub fn warnings(config: &Config) -> Vec<(String, String)> {
    let unsatisfiable = min_free(config).map(|text| ("storage.minfree".to_owned(), text));
    unsatisfiable.into_iter().collect()
}

/// A `minfree` that not even an empty file system satisfies.
fn min_free(config: &Config) -> Option<String> {
    use crate::config::{MinFree, SizeLimit};
    let (Storage::Filesystem { root, .. }, MinFree::Limit(limit)) =
        (&config.storage, config.limits.min_free)
    else {
        return None;
    };
    // The directory may be yet to be made: where it will be.
    let there = absolute(root).ancestors().find_map(|path| {
        let seen = rustix::fs::statvfs(path).ok()?;
        Some(seen.f_blocks.saturating_mul(seen.f_frsize))
    });
    let total = there?;
    let wanted = match limit {
        SizeLimit::Bytes(bytes) => bytes,
        SizeLimit::Percent(percent) => total / 100 * u64::from(percent),
    };
    // Some of it is always taken by the file system itself.
    (wanted >= total / 100 * 99).then(|| {
        format!(
            "`storage.minfree` wants {wanted} bytes free, but the whole file system of {} has \
             {total}: nothing can be cached; use less than that",
            root.display()
        )
    })
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_empty| path.to_owned())
}

impl StartError {
    /// The key of the configuration that the error is about, where there is one.
    pub fn key(&self, config: &Config) -> Option<String> {
        use crate::server::listener::BindError;
        match self {
            Self::Bind(BindError::Tcp { address, .. }) => {
                let debug = config.http.debug.as_ref().map(|debug| &debug.listen);
                let is_debug = debug.is_some_and(|debug| debug.to_string() == *address);
                Some(
                    if is_debug {
                        "http.debug.addr"
                    } else {
                        "http.addr"
                    }
                    .to_owned(),
                )
            }
            Self::Bind(BindError::Unix { .. }) => Some("http.addr".to_owned()),
            Self::Store(_) => Some("storage.filesystem.rootdirectory".to_owned()),
            Self::Upstream { upstream, .. } | Self::CaFile { upstream, .. } => {
                Some(upstream_key(config, upstream))
            }
            Self::Address(_) => None,
        }
    }
}

/// The key of an upstream's CA file, or of its URL where it has none.
fn upstream_key(config: &Config, name: &str) -> String {
    let others = &config.proxy.upstreams;
    let (section, upstream) = match others.iter().position(|other| other.name == *name) {
        Some(index) => (format!("proxy.upstreams[{index}]"), others.get(index)),
        None => ("proxy".to_owned(), Some(&config.proxy.default)),
    };
    let has_ca = upstream.is_some_and(|upstream| upstream.ca.is_some());
    format!("{section}.{}", if has_ca { "ca" } else { "remoteurl" })
}
