//! The HTTP clients of one upstream.

use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder};

use super::UpstreamSettings;
use super::error::SetupError;
use super::guard::{Guard, GuardedResolver, Route};
use super::reply::shared;

const USER_AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));
/// Connections to one host that are kept open while idle.
const MAX_IDLE: usize = 32;

/// Two pairs, which share no connections: what was connected without the guard's check is never
/// used for a host that the upstream named.
pub(super) struct Clients {
    open: Pair,
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
    pub(super) fn new(settings: &UpstreamSettings, guard: &Arc<Guard>) -> Result<Self, SetupError> {
        let guarded = |builder: ClientBuilder| {
            let resolver = Arc::new(GuardedResolver(Arc::clone(guard)));
            builder.no_proxy().dns_resolver(resolver)
        };
        Ok(Self {
            open: Pair::new(settings, |builder| builder)?,
            guarded: Pair::new(settings, guarded)?,
        })
    }

    pub(super) const fn get(&self, route: Route, is_blob: bool) -> &Client {
        let pair = match route {
            Route::Open => &self.open,
            Route::Guarded => &self.guarded,
        };
        if is_blob { &pair.blobs } else { &pair.metadata }
    }
}

impl Pair {
    fn new(
        settings: &UpstreamSettings,
        how: impl Fn(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            metadata: client(settings, &how)?,
            blobs: client(settings, |builder| how(builder).http1_only())?,
        })
    }
}

fn client(
    settings: &UpstreamSettings,
    how: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, SetupError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let builder = || {
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers.clone())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(settings.timeouts.connect)
            .pool_max_idle_per_host(MAX_IDLE)
            .tls_danger_accept_invalid_certs(settings.insecure);
        how(builder)
    };
    let tls = |error| SetupError::Tls(shared(error));
    if let Some(pem) = &settings.ca_pem {
        let bundle = Certificate::from_pem_bundle(pem);
        let bundle = bundle.map_err(|error| SetupError::Authority(shared(error)))?;
        if bundle.is_empty() {
            return Err(SetupError::NoCertificate);
        }
        return builder().tls_certs_merge(bundle).build().map_err(tls);
    }
    match builder().build() {
        // A system without CA certificates can still speak to a plain http upstream; only a
        // redirect to https would fail, for want of somebody to trust.
        Err(_) if settings.url.scheme() == "http" => {
            builder().tls_certs_only([]).build().map_err(tls)
        }
        built => built.map_err(tls),
    }
}
