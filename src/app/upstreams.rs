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
use crate::upstream::{Peers, SetupError, TlsFiles, Upstream, UpstreamTls};

/// The clients of all upstreams, with what each was made from.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    default: Client,
    others: Vec<Client>,
}

#[derive(Debug, Clone)]
struct Client {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
    /// Reads its files again when they change.
    renewal: Arc<CertificateFiles>,
}

impl Clients {
    /// Reads the files and makes the clients, which ask `peers` first, but for those of `known` that are made
    /// from the same. Blocks.
    pub(super) fn open(
        proxy: &config::Proxy,
        (known, peers): (Option<&Self>, Option<&Arc<Peers>>),
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let known: Vec<&Client> = known.iter().flat_map(|known| known.all()).collect();
        let open = |upstream: &config::Upstream| {
            let is_same = |known: &&&Client| {
                *known.upstream.config == *upstream
                    && known.timeouts == proxy.timeouts
                    && known.upstream.is_offline() == proxy.offline
            };
            match known.iter().find(is_same) {
                Some(known) => Ok(Client::clone(known)),
                None => Client::open(upstream, (proxy, peers), clock, metrics),
            }
        };
        Ok(Self {
            default: open(&proxy.default)?,
            others: proxy.upstreams.iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.default).chain(&self.others)
    }

    /// The clients: the default upstream's, and the others in the order of the configuration.
    pub(super) fn list(&self) -> Vec<Arc<Upstream>> {
        let clients = self.all();
        clients.map(|client| Arc::clone(&client.upstream)).collect()
    }

    /// What is read again when its files change.
    pub(super) fn renewals(&self) -> impl Iterator<Item = Arc<dyn Renewable>> {
        let with_files = self.all().filter(|client| !client.renewal.files.is_empty());
        with_files.map(|client| Arc::clone(&client.renewal) as _)
    }

    /// `everybody_reads`: anonymous callers may read everything, as far as this mirror decides.
    pub(super) fn upstreams(&self, everybody_reads: bool) -> Upstreams {
        let others = self.others.iter();
        let others = others.map(|client| Arc::clone(&client.upstream));
        Upstreams::new(Arc::clone(&self.default.upstream), others, everybody_reads)
    }
}

/// The client of one upstream, whose files are read once.
pub fn client(
    upstream: &config::Upstream,
    timeouts: Timeouts,
    clock: Clock,
    metrics: &Metrics,
) -> Result<Upstream, StartError> {
    let client = Upstream::new(
        upstream.clone(),
        &tls_files(upstream)?,
        timeouts,
        clock,
        metrics,
    );
    client.map_err(unusable(upstream))
}

impl Client {
    fn open(
        upstream: &config::Upstream,
        (proxy, peers): (&config::Proxy, Option<&Arc<Peers>>),
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        // Before they are read.
        let files = WatchedFiles::new(certificate_files(upstream));
        let timeouts = proxy.timeouts;
        let client = client(upstream, timeouts, clock, metrics)?;
        let client = client.offline(proxy.offline).with_peers(peers);
        let renewal = CertificateFiles {
            files,
            tls: client.tls(),
            upstream: upstream.clone(),
        };
        Ok(Self {
            upstream: Arc::new(client),
            timeouts,
            renewal: Arc::new(renewal),
        })
    }
}

fn unusable(upstream: &config::Upstream) -> impl FnOnce(SetupError) -> StartError {
    let upstream = upstream.name.clone();
    |source| StartError::Upstream { upstream, source }
}

/// The paths of the files that [`tls_files`] reads.
fn certificate_files(upstream: &config::Upstream) -> Vec<PathBuf> {
    let identity = upstream.client_certificate.iter();
    let identity = identity.flat_map(|files| [files.certificate.clone(), files.key.clone()]);
    let endpoints = upstream.endpoints.iter();
    let endpoints = endpoints.flat_map(|endpoint| certificate_files(&endpoint.registry));
    let ca = upstream.ca.clone().into_iter();
    ca.chain(identity).chain(endpoints).collect()
}

/// The CA and the client certificate of an upstream and its endpoints.
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
        endpoints: upstream
            .endpoints
            .iter()
            .map(|endpoint| tls_files(&endpoint.registry))
            .collect::<Result<_, _>>()?,
    })
}
