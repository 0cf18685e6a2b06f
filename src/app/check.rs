//! What `millpond check` does: builds what the server is built of, and creates nothing.

use super::cache::Space;
use super::{StartError, upstreams};
use crate::clock::Clock;
use crate::config::{Config, MinFree, SizeLimit, Storage};
use crate::metrics::Metrics;
use crate::server::listener::BindError;
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

/// A warning of a `storage.minfree` that not even an empty file system satisfies.
pub fn warn_of_min_free(config: &Config) -> Option<String> {
    let (Storage::Filesystem { root, .. }, MinFree::Limit(limit)) =
        (&config.storage, config.limits.min_free)
    else {
        return None;
    };
    // The directory may be yet to be made: where it will be.
    let path = std::path::absolute(root).unwrap_or_else(|_empty| root.clone());
    let space = path.ancestors().find_map(|path| Space::of(path).ok())?;
    let wanted = match limit {
        SizeLimit::Bytes(bytes) => bytes,
        SizeLimit::Percent(percent) => space.share(percent),
    };
    // Some of it is always taken by the file system itself.
    (wanted >= space.share(99)).then(|| {
        format!(
            "`storage.minfree` wants {wanted} bytes free, but the whole file system of {} has \
             {}: nothing can be cached; use less than that",
            root.display(),
            space.total
        )
    })
}

impl StartError {
    /// The key of the configuration that the error is about, where there is one.
    pub fn key(&self, config: &Config) -> Option<String> {
        let is_debug = |address: &String| {
            let debug = config.http.debug.as_ref();
            debug.is_some_and(|debug| debug.listen.to_string() == *address)
        };
        let key = match self {
            Self::Bind(BindError::Tcp { address, .. }) if is_debug(address) => "http.debug.addr",
            Self::Bind(_) => "http.addr",
            Self::Store(_) => "storage.filesystem.rootdirectory",
            Self::Upstream { upstream, .. } | Self::CaFile { upstream, .. } => {
                return Some(upstream_key(config, upstream));
            }
            Self::Address(_) => return None,
            Self::Auth(_) => "auth",
        };
        Some(key.to_owned())
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
