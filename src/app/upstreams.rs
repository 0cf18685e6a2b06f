//! Wires the clients of the upstreams, with the files of certificates that the configuration names.

use std::path::PathBuf;
use std::sync::Arc;

use super::StartError;
use crate::clock::Clock;
use crate::config;
use crate::metrics::Metrics;
use crate::mirror::Upstreams;
use crate::upstream::{TlsFiles, Upstream};

pub(super) fn upstreams(
    proxy: &config::Proxy,
    clock: Clock,
    metrics: &Arc<Metrics>,
    everybody_reads: bool,
) -> Result<Upstreams, StartError> {
    let default = client(&proxy.default, proxy, clock, metrics)?;
    let others = proxy.upstreams.iter();
    let others = others.map(|upstream| client(upstream, proxy, clock, metrics));
    Ok(Upstreams::new(
        default,
        others.collect::<Result<_, _>>()?,
        everybody_reads,
    ))
}

fn client(
    upstream: &config::Upstream,
    proxy: &config::Proxy,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Result<Upstream, StartError> {
    let client = Upstream::new(
        upstream.clone(),
        &tls_files(upstream)?,
        proxy.timeouts,
        clock,
        metrics,
    );
    client.map_err(|source| StartError::Upstream {
        upstream: upstream.name.clone(),
        source,
    })
}

fn tls_files(upstream: &config::Upstream) -> Result<TlsFiles, StartError> {
    let read = |key, path: &PathBuf| {
        config::read_pem(path).map_err(|source| StartError::PemFile {
            upstream: upstream.name.clone(),
            path: path.clone(),
            key,
            source,
        })
    };
    let identity = upstream.client_certificate.as_ref().map(|files| {
        let (certificate, key) = (
            read("certificate", &files.certificate)?,
            read("key", &files.key)?,
        );
        Ok::<_, StartError>([certificate, key].join(&b'\n'))
    });
    Ok(TlsFiles {
        ca: upstream
            .ca
            .as_ref()
            .map(|path| read("ca", path))
            .transpose()?,
        identity: identity.transpose()?,
    })
}
