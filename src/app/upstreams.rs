//! Wires the clients of the upstreams, with the files of certificates that the configuration names.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use super::StartError;
use crate::clock::Clock;
use crate::config::{self, Timeouts};
use crate::metrics::Metrics;
use crate::mirror::Upstreams;
use crate::renewal::{Renewable, WatchedFiles};
use crate::upstream::{SetupError, TlsFiles, Upstream, UpstreamTls};

/// The upstreams, and those whose files are read again when they change.
pub(super) fn upstreams(
    proxy: &config::Proxy,
    clock: Clock,
    metrics: &Arc<Metrics>,
    everybody_reads: bool,
) -> Result<(Upstreams, Vec<Arc<dyn Renewable>>), StartError> {
    let mut renewals = Vec::new();
    let mut client = |upstream| {
        let (client, renewal) = watched_client(upstream, proxy.timeouts, clock, metrics)?;
        if !renewal.files.is_empty() {
            renewals.push(Arc::new(renewal) as Arc<dyn Renewable>);
        }
        Ok::<_, StartError>(client)
    };
    let default = client(&proxy.default)?;
    let others = proxy.upstreams.iter().map(client);
    let others = others.collect::<Result<_, _>>()?;
    let upstreams = Upstreams::new(default, others, everybody_reads);
    Ok((upstreams, renewals))
}

/// The client of one upstream, whose files are read once.
pub fn client(
    upstream: &config::Upstream,
    timeouts: Timeouts,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Result<Upstream, StartError> {
    watched_client(upstream, timeouts, clock, metrics).map(|(client, _renewal)| client)
}

fn watched_client(
    upstream: &config::Upstream,
    timeouts: Timeouts,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Result<(Upstream, CertificateFiles), StartError> {
    let identity = upstream.client_certificate.iter();
    let identity = identity.flat_map(|files| [files.certificate.clone(), files.key.clone()]);
    let files = WatchedFiles::new(upstream.ca.clone().into_iter().chain(identity));
    let client = Upstream::new(
        upstream.clone(),
        &tls_files(upstream)?,
        timeouts,
        clock,
        metrics,
    );
    let client = client.map_err(unusable(upstream))?;
    let renewal = CertificateFiles {
        files,
        tls: client.tls(),
        upstream: upstream.clone(),
    };
    Ok((client, renewal))
}

fn unusable(upstream: &config::Upstream) -> impl FnOnce(SetupError) -> StartError {
    let upstream = upstream.name.clone();
    |source| StartError::Upstream { upstream, source }
}

/// The CA and the client certificate of an upstream.
#[derive(Debug)]
struct CertificateFiles {
    files: WatchedFiles,
    tls: UpstreamTls,
    upstream: config::Upstream,
}

impl Renewable for CertificateFiles {
    fn what(&self) -> String {
        format!("the certificates of the upstream {}", self.upstream.name)
    }

    fn files(&self) -> &WatchedFiles {
        &self.files
    }

    fn renew(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let renewed = self.tls.renew(&tls_files(&self.upstream)?);
        Ok(renewed.map_err(unusable(&self.upstream))?)
    }
}

/// What the files hold that the upstream's configuration names.
pub fn tls_files(upstream: &config::Upstream) -> Result<TlsFiles, StartError> {
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
