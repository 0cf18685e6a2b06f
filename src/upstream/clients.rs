//! The HTTP clients of one upstream.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client};

use super::error::SetupError;
use super::guard::{Guard, GuardedResolver, Route};
use super::reply::shared;
use crate::config;

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
    pub(super) fn new(
        config: &config::Upstream,
        ca_pem: Option<&[u8]>,
        connect: Duration,
        guard: &Arc<Guard>,
    ) -> Result<Self, SetupError> {
        let authorities = ca_pem.map(authorities).transpose()?;
        let client = |route, is_blob| {
            let builder = || {
                let identity = (ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                let mut builder = Client::builder()
                    .user_agent(USER_AGENT)
                    .default_headers(HeaderMap::from_iter([identity]))
                    .redirect(reqwest::redirect::Policy::none())
                    .connect_timeout(connect)
                    .pool_max_idle_per_host(MAX_IDLE)
                    .tls_danger_accept_invalid_certs(config.insecure);
                if route == Route::Guarded {
                    let resolver = Arc::new(GuardedResolver(Arc::clone(guard)));
                    builder = builder.no_proxy().dns_resolver(resolver);
                }
                if is_blob {
                    builder = builder.http1_only();
                }
                builder
            };
            let built = match &authorities {
                Some(authorities) => builder().tls_certs_merge(authorities.clone()).build(),
                // A system without CA certificates can still speak to a plain http upstream; only a
                // redirect to https would fail, for want of somebody to trust.
                None if config.url.scheme() == "http" => builder()
                    .build()
                    .or_else(|_| builder().tls_certs_only([]).build()),
                None => builder().build(),
            };
            built.map_err(|error| SetupError::Tls(shared(error)))
        };
        let pair = |route| {
            Ok::<_, SetupError>(Pair {
                metadata: client(route, false)?,
                blobs: client(route, true)?,
            })
        };
        Ok(Self {
            open: pair(Route::Open)?,
            guarded: pair(Route::Guarded)?,
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

pub(super) fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, SetupError> {
    let bundle = Certificate::from_pem_bundle(pem);
    let bundle = bundle.map_err(|error| SetupError::Authority(shared(error)))?;
    if bundle.is_empty() {
        return Err(SetupError::NoCertificate);
    }
    Ok(bundle)
}
