//! Wires the clients of the upstreams, with the files of certificates that the configuration names.

use std::path::PathBuf;
use std::sync::Arc;

use super::StartError;
use crate::clock::Clock;
use crate::config::{self, Timeouts};
use crate::metrics::Metrics;
use crate::mirror::Upstreams;
use crate::upstream::{TlsFiles, Upstream};

/// The clients of all upstreams, with what each was made from.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    default: Client,
    others: Vec<Client>,
}

#[derive(Debug, Clone)]
struct Client {
    upstream: Arc<Upstream>,
    files: TlsFiles,
    timeouts: Timeouts,
}

impl Clients {
    /// Reads the files and makes the clients, but for those of `known` that are made from the same.
    /// Blocks.
    pub(super) fn open(
        proxy: &config::Proxy,
        known: Option<&Self>,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let known: Vec<&Client> = known.iter().flat_map(|known| known.all()).collect();
        let open = |upstream| client(upstream, proxy.timeouts, &known, clock, metrics);
        Ok(Self {
            default: open(&proxy.default)?,
            others: proxy.upstreams.iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.default).chain(&self.others)
    }

    /// `everybody_reads`: anonymous callers may read everything, as far as this mirror decides.
    pub(super) fn upstreams(&self, everybody_reads: bool) -> Upstreams {
        let others = self.others.iter();
        let others = others.map(|client| Arc::clone(&client.upstream));
        Upstreams::new(Arc::clone(&self.default.upstream), others, everybody_reads)
    }
}

fn client(
    config: &config::Upstream,
    timeouts: Timeouts,
    known: &[&Client],
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Result<Client, StartError> {
    let files = tls_files(config)?;
    let is_same = |known: &&&Client| {
        *known.upstream.config == *config && known.files == files && known.timeouts == timeouts
    };
    if let Some(known) = known.iter().find(is_same) {
        return Ok(Client::clone(known));
    }
    let metrics = Arc::clone(metrics);
    let client = Upstream::new(config.clone(), &files, timeouts, clock, metrics);
    let upstream = client.map_err(|source| StartError::Upstream {
        upstream: config.name.clone(),
        source,
    })?;
    Ok(Client {
        upstream: Arc::new(upstream),
        files,
        timeouts,
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
