//! The TLS of the configured listeners, in the order of the configuration.

use std::sync::Arc;

use super::StartError;
use crate::clock::Clock;
use crate::config::{Config, Http, Listen, Tls};
use crate::metrics::Metrics;
use crate::tls::ServerTls;

/// The TLS of `http.addr`, and of each of `http.listeners`.
pub(super) struct ListenersTls {
    pub(super) main: Option<Arc<ServerTls>>,
    pub(super) others: Vec<Option<Arc<ServerTls>>>,
}

impl ListenersTls {
    /// Reads the files of all listeners.
    pub(super) fn load(
        config: &Config,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let http = &config.http;
        let load = |(listen, tls): (&Listen, &Option<Tls>)| {
            let Some(settings) = tls else { return Ok(None) };
            let (listener, metrics) = (listen.to_string(), Arc::clone(metrics));
            let loaded = ServerTls::load(settings.clone(), listener, http.http2, clock, metrics);
            let loaded = loaded.map_err(|source| StartError::Tls {
                listener: listen.to_string(),
                source,
            });
            loaded.map(|tls| Some(Arc::new(tls)))
        };
        let others = http
            .listeners
            .iter()
            .map(|other| (&other.listen, &other.tls));
        Ok(Self {
            main: load((&http.listen, &http.tls))?,
            others: others.map(load).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        [&self.main].into_iter().chain(&self.others).flatten()
    }
}

/// The section of the listener with this address.
pub(super) fn section(http: &Http, address: &str) -> String {
    let has_address = |listen: &Listen| listen.to_string() == address;
    let others = &mut http.listeners.iter();
    let position = others.position(|other| has_address(&other.listen));
    match position.filter(|_| !has_address(&http.listen)) {
        Some(index) => format!("http.listeners[{index}]"),
        None => "http".to_owned(),
    }
}
