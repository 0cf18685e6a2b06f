//! What a check tries, once: the store, a file, an HTTP server or a TCP server.
//!
//! The results are those of the reference registry's checks (`health/checks`); the reason of a failure
//! says what was found, and the check's name says where. Whoever calls bounds the time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;
use reqwest::{Client, redirect};
use tokio::net::TcpStream;
use url::Url;

use crate::cache::{Cache, StoreError};
use crate::config::{HealthCheck, HealthConfig, HealthProbe, HealthTiming};
use crate::error_chain::on_one_line;

const USER_AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));
/// As many as the reference registry follows.
const MAX_REDIRECTS: usize = 10;

/// Why the checks can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client of the health checks can't be set up")]
pub struct HealthSetupError(#[source] reqwest::Error);

/// The configured checks, ready to be started.
#[derive(Debug)]
pub struct Probes {
    checks: Vec<(String, Probe, HealthTiming)>,
}

impl Probes {
    /// Of the configured checks; `cache` has the store.
    pub fn new(config: &HealthConfig, cache: &Cache) -> Result<Self, HealthSetupError> {
        let mut client = None;
        let mut checks = Vec::new();
        for check in &config.checks {
            let probe = match &check.probe {
                HealthProbe::Store => Probe::Store(cache.clone()),
                HealthProbe::File(path) => Probe::File(path.clone()),
                HealthProbe::Tcp(address) => Probe::Tcp(address.clone()),
                HealthProbe::Http {
                    url,
                    headers,
                    status,
                } => {
                    let client = match &client {
                        Some(client) => client,
                        None => client.insert(new_client(&config.checks)?),
                    };
                    Probe::Http(HttpProbe {
                        client: client.clone(),
                        url: url.clone(),
                        headers: headers.clone(),
                        status: *status,
                    })
                }
            };
            checks.push((check.name.clone(), probe, check.timing));
        }
        Ok(Self { checks })
    }

    pub(super) fn into_checks(self) -> impl Iterator<Item = (String, Probe, HealthTiming)> {
        self.checks.into_iter()
    }
}

/// A client whose every request connects anew, through the proxy of the environment.
fn new_client(checks: &[HealthCheck]) -> Result<Client, HealthSetupError> {
    let builder = || {
        Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::limited(MAX_REDIRECTS))
            .pool_max_idle_per_host(0)
    };
    let needs_tls = checks.iter().any(
        |check| matches!(&check.probe, HealthProbe::Http { url, .. } if url.scheme() == "https"),
    );
    let built = builder().build();
    // A system without CA certificates can still ask plain http servers.
    let built = built.or_else(|error| {
        let plain = || builder().tls_certs_only([]).build();
        if needs_tls { Err(error) } else { plain() }
    });
    built.map_err(HealthSetupError)
}

/// What is tried.
#[derive(Debug)]
pub(super) enum Probe {
    Store(Cache),
    File(PathBuf),
    Http(HttpProbe),
    /// `host:port`
    Tcp(String),
}

#[derive(Debug)]
pub(super) struct HttpProbe {
    client: Client,
    url: Url,
    headers: HeaderMap,
    status: u16,
}

impl Probe {
    /// Whether a try that nobody waits for any more still has a thread of the blocking pool.
    pub(super) const fn holds_a_thread(&self) -> bool {
        matches!(self, Self::Store(_) | Self::File(_))
    }

    /// Tries once. Returns the reason of a failure.
    pub(super) async fn attempt(self: Arc<Self>) -> Result<(), String> {
        match &*self {
            Self::Store(cache) => match cache.check_store().await {
                // Pulls are served all the same; the metric `millpond_degraded` shows it.
                Err(error) if !is_degraded(&error) => Err(on_one_line(&error)),
                Ok(()) | Err(_) => Ok(()),
            },
            Self::File(path) => {
                let path = path.clone();
                let looked = tokio::task::spawn_blocking(move || absent(&path)).await;
                looked.unwrap_or_else(|panicked| Err(panicked.to_string()))
            }
            Self::Http(probe) => probe.attempt().await,
            Self::Tcp(address) => {
                let connected = TcpStream::connect(address).await;
                connected
                    .map(drop)
                    .map_err(|error| format!("connection failed: {error}"))
            }
        }
    }
}

fn is_degraded(error: &StoreError) -> bool {
    error.is_full() || error.is_read_only()
}

/// Whether there is nothing at a path.
fn absent(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(_) => Err("file exists".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

impl HttpProbe {
    async fn attempt(&self) -> Result<(), String> {
        let request = self.client.head(self.url.clone());
        let sent = request.headers(self.headers.clone()).send().await;
        let response = sent.map_err(|error| on_one_line(&error.without_url()))?;
        let status = response.status().as_u16();
        if status == self.status {
            Ok(())
        } else {
            Err(format!("status {status} instead of {}", self.status))
        }
    }
}
