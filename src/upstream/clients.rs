//! The HTTP clients of one upstream.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Proxy, tls};

use super::connect_time::ConnectTime;
use super::error::SetupError;
use super::guard::{Guard, GuardedResolver, Route};
use super::reply::shared;
use crate::config::{self, ForwardProxy, TlsVersion};
use crate::metrics::UpstreamMetrics;

pub(super) const USER_AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));
/// Connections to one host that are kept open while idle.
const MAX_IDLE: usize = 32;

/// The files (PEM) that an upstream's TLS is set up with.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that are trusted.
    pub ca: Option<Vec<u8>>,
    /// The client certificate with its chain, and its key.
    pub identity: Option<Vec<u8>>,
    /// Those of each of its `endpoints`, if it has any.
    pub endpoints: Vec<TlsFiles>,
}

impl TlsFiles {
    /// Those of one endpoint.
    pub(super) fn of(&self, endpoint: usize) -> &Self {
        self.endpoints.get(endpoint).unwrap_or(self)
    }
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsFiles")
    }
}

/// Pairs, which share no connections: what was connected without the guard's check is never
/// used for a host that the upstream named.
pub(super) struct Clients {
    open: Pair,
    /// Like `open`, without the client certificate; none where there is none.
    proxied: Option<Pair>,
    /// Connects only to addresses that the guard permits, and through no proxy.
    guarded: Pair,
}

struct Pair {
    /// Small answers: HTTP/2 where it is offered, so that many share one connection.
    metadata: Client,
    /// Blobs: one HTTP/1.1 connection each, so that no flow-control window is shared.
    blobs: Client,
}

impl Clients {
    pub(super) fn new(
        config: &config::Upstream,
        files: &TlsFiles,
        connect: Duration,
        guard: &Arc<Guard>,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Result<Self, SetupError> {
        let setup = Setup {
            authorities: files.ca.as_deref().map(authorities).transpose()?,
            identity: files.identity.as_deref().map(identity).transpose()?,
            proxy: proxy(config)?,
            config,
            connect,
            guard,
            metrics,
        };
        let pair = |route| {
            Ok::<_, SetupError>(Pair {
                metadata: setup.client(route, false)?,
                blobs: setup.client(route, true)?,
            })
        };
        Ok(Self {
            open: pair(Route::Open)?,
            proxied: setup
                .identity
                .is_some()
                .then(|| pair(Route::Proxied))
                .transpose()?,
            guarded: pair(Route::Guarded)?,
        })
    }

    pub(super) fn get(&self, route: Route, is_blob: bool) -> &Client {
        let pair = match route {
            Route::Open => &self.open,
            Route::Proxied => self.proxied.as_ref().unwrap_or(&self.open),
            Route::Guarded => &self.guarded,
        };
        if is_blob { &pair.blobs } else { &pair.metadata }
    }
}

/// What clients are made from.
struct Setup<'a> {
    config: &'a config::Upstream,
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    proxy: Option<Proxy>,
    connect: Duration,
    guard: &'a Arc<Guard>,
    metrics: &'a Arc<UpstreamMetrics>,
}

impl Setup<'_> {
    fn client(&self, route: Route, is_blob: bool) -> Result<Client, SetupError> {
        let builder = || self.builder(route, is_blob);
        let built = match &self.authorities {
            Some(authorities) if self.config.ca_only => {
                builder().tls_certs_only(authorities.clone()).build()
            }
            Some(authorities) => builder().tls_certs_merge(authorities.clone()).build(),
            // A system without CA certificates can still speak to a plain http upstream; only a
            // redirect to https would fail, for want of somebody to trust.
            None if self.config.url.scheme() == "http" => builder()
                .build()
                .or_else(|_| builder().tls_certs_only([]).build()),
            None => builder().build(),
        };
        built.map_err(|error| match &self.identity {
            Some(_) => SetupError::Identity(shared(error)),
            None => SetupError::Tls(shared(error)),
        })
    }

    fn builder(&self, route: Route, is_blob: bool) -> ClientBuilder {
        let encoding = (ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let minimum = match self.config.minimum_tls {
            TlsVersion::Tls12 => tls::Version::TLS_1_2,
            TlsVersion::Tls13 => tls::Version::TLS_1_3,
        };
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(HeaderMap::from_iter([encoding]))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.connect)
            .connector_layer(ConnectTime::new(self.metrics))
            .pool_max_idle_per_host(MAX_IDLE)
            .tls_version_min(minimum)
            .tls_danger_accept_invalid_certs(self.config.insecure);
        if route == Route::Guarded {
            let resolver = Arc::new(GuardedResolver(Arc::clone(self.guard)));
            builder = builder.no_proxy().dns_resolver(resolver);
        } else {
            match (&self.config.proxy, &self.proxy) {
                (ForwardProxy::Direct, _) => builder = builder.no_proxy(),
                (_, Some(proxy)) => builder = builder.proxy(proxy.clone()),
                (_, None) => {}
            }
        }
        if route == Route::Open {
            // The client certificate is for the upstream and the configured token service, and for no
            // host that the upstream names.
            if let Some(identity) = &self.identity {
                builder = builder.identity(identity.clone());
            }
        }
        if is_blob {
            builder = builder.http1_only();
        }
        builder
    }
}

fn identity(pem: &[u8]) -> Result<Identity, SetupError> {
    Identity::from_pem(pem).map_err(|error| SetupError::Identity(shared(error)))
}

fn proxy(config: &config::Upstream) -> Result<Option<Proxy>, SetupError> {
    let ForwardProxy::Url(url) = &config.proxy else {
        return Ok(None);
    };
    let proxy = Proxy::all(url.secret().as_str());
    let proxy = proxy.map_err(|error| SetupError::Proxy(shared(error.without_url())));
    proxy.map(Some)
}

pub(super) fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, SetupError> {
    let bundle = Certificate::from_pem_bundle(pem);
    let bundle = bundle.map_err(|error| SetupError::Authority(shared(error)))?;
    if bundle.is_empty() {
        return Err(SetupError::NoCertificate);
    }
    Ok(bundle)
}
