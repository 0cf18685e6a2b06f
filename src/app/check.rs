//! What `millpond check` does: builds what the server is built of, and creates nothing.

use std::sync::Arc;

use super::cache::Space;
use super::listeners::{self, ListenersTls};
use super::{StartError, replicas};
use crate::clock::Clock;
use crate::config::{Config, MinFree, SizeLimit, Storage};
use crate::metrics::Metrics;
use crate::server::listener::BindError;
use crate::storage::FsStore;
use crate::tls::TlsError;
use crate::upstream::{Lookup, PeersError, SetupError};

impl super::App {
    /// Builds the upstreams' clients, the TLS of the listeners and the cache's settings, with all their
    /// files of certificates, and looks
    /// whether the data directory could be used. Listens nowhere and creates nothing.
    pub async fn check(config: &Config) -> Result<(), StartError> {
        let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()));
        ListenersTls::load(config, clock, &metrics)?;
        replicas::open(config, Lookup::default(), clock, &metrics).await?;
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
            Self::Bind(error) => {
                let address = match error {
                    BindError::Tcp { address, .. } => address.clone(),
                    BindError::Unix { path, .. } => path.display().to_string(),
                };
                return Some(listeners::section(&config.http, &address) + ".addr");
            }
            Self::Tls { listener, source } => {
                let section = listeners::section(&config.http, listener);
                return Some(format!("{section}.tls{}", key_of(source)));
            }
            Self::Collector(_) => "tracing.endpoint",
            Self::Store(_) => "storage.filesystem.rootdirectory",
            Self::Upstream { upstream, source } => {
                let key = match source {
                    SetupError::Identity(_) => "certificate",
                    SetupError::Proxy(_) => "proxyurl",
                    SetupError::Authority(_) | SetupError::NoCertificate | SetupError::Tls(_) => {
                        "ca"
                    }
                    SetupError::Random => "authorize",
                };
                return Some(upstream_key(config, upstream, key));
            }
            Self::PemFile { upstream, key, .. } => {
                return Some(upstream_key(config, upstream, key));
            }
            Self::Bucket(_) => "storage",
            Self::Replicas(PeersError::NoSelf | PeersError::ManySelves(_)) => "replicas.self",
            Self::Replicas(PeersError::Setup(_)) => "replicas.peers",
            Self::ReplicaCertificate { .. } => "http.tls.certificate",
            Self::Auth(_) => "auth",
            Self::Audit(_) => "log.audit.file",
            Self::Health(_) => "health.http",
            Self::Address(_) | Self::Deny(_) | Self::Sockets(_) | Self::NoCommands => {
                return None;
            }
        };
        Some(key.to_owned())
    }
}

/// The key, below `tls`, that an error of TLS is about.
fn key_of(error: &TlsError) -> &'static str {
    match error {
        TlsError::NoKey { .. } | TlsError::Key { .. } | TlsError::Mismatch { .. } => ".key",
        TlsError::Certificate { .. } | TlsError::Expired { .. } => ".certificate",
        TlsError::Authority { .. } => ".clientcas",
        // The message names the file.
        TlsError::Read { .. }
        | TlsError::TooLarge { .. }
        | TlsError::Pem { .. }
        | TlsError::NoCertificate { .. }
        | TlsError::Setup(_) => "",
    }
}

/// The path of an upstream's key; of its URL where the CA file is meant and it has none; of its endpoints
/// where it has some.
fn upstream_key(config: &Config, name: &str, key: &str) -> String {
    let others = &config.proxy.upstreams;
    let (section, upstream) = match others.iter().position(|other| other.name == *name) {
        Some(index) => (format!("proxy.upstreams[{index}]"), others.get(index)),
        None => ("proxy".to_owned(), Some(&config.proxy.default)),
    };
    if upstream.is_some_and(|upstream| !upstream.endpoints.is_empty()) {
        return format!("{section}.endpoints");
    }
    let has_ca = upstream.is_some_and(|upstream| upstream.ca.is_some());
    let key = if key == "ca" && !has_ca {
        "remoteurl"
    } else {
        key
    };
    format!("{section}.{key}")
}
