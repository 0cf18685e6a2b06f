//! Wires what replicas know of each other.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::upstreams::Clients;
use super::{Shared, StartError};
use crate::clock::Clock;
use crate::config::{self, Config, Listen};
use crate::metrics::Metrics;
use crate::renewal::{Renewable, WatchedFiles};
use crate::replicas::Marks;
use crate::server::PeerGate;
use crate::upstream::{Lookup, Peers, PeersOptions};

/// The other replicas, and what recognises their requests.
#[derive(Debug, Clone)]
pub(super) struct Replication {
    pub(super) peers: Arc<Peers>,
    marks: Arc<Marks>,
    /// Reads the certificates of the replicas again. None where they speak plain HTTP.
    renewal: Option<Arc<PeerCertificates>>,
}

impl Replication {
    /// None where this server works alone.
    async fn open(
        config: &Config,
        lookup: Lookup,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, StartError> {
        let Some(replicas) = &config.replicas else {
            return Ok(None);
        };
        let path = config.http.tls.as_ref().map(|tls| tls.certificate.clone());
        // Before it is read.
        let files = WatchedFiles::new(path.clone());
        let tls = path.as_deref().map(certificates).transpose()?;
        let marks = Arc::new(Marks::new(replicas.secret.expose()));
        let options = PeersOptions {
            config: replicas,
            marks: Arc::clone(&marks),
            port: port(&config.http.listen),
            tls,
            prefix: &config.http.prefix,
            lookup,
            clock,
            metrics,
        };
        let peers = Arc::new(Peers::new(options).await?);
        let renewal = path.map(|path| PeerCertificates {
            path,
            files,
            peers: Arc::clone(&peers),
        });
        Ok(Some(Self {
            peers,
            marks,
            renewal: renewal.map(Arc::new),
        }))
    }

    /// What is read again when its file changes.
    pub(super) fn renewal(&self) -> Option<Arc<dyn Renewable>> {
        let renewal = self.renewal.as_ref()?;
        Some(Arc::clone(renewal) as _)
    }
}

/// The certificates that replicas trust each other by.
fn certificates(path: &Path) -> Result<Vec<u8>, StartError> {
    config::read_pem(path).map_err(|source| StartError::ReplicaCertificate {
        path: path.to_owned(),
        source,
    })
}

/// The file of those certificates.
#[derive(Debug)]
struct PeerCertificates {
    path: PathBuf,
    files: WatchedFiles,
    peers: Arc<Peers>,
}

impl Renewable for PeerCertificates {
    fn what(&self) -> String {
        "the certificates that other replicas are trusted by".to_owned()
    }

    fn files(&self) -> &WatchedFiles {
        &self.files
    }

    fn renew(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.peers.renew(&certificates(&self.path)?)?)
    }
}

/// Sets up the connections to the replicas, and the clients of the upstreams, which ask those first.
pub(super) async fn open(
    config: &Config,
    lookup: Lookup,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Result<(Option<Replication>, Clients), StartError> {
    let replication = Replication::open(config, lookup, clock, metrics).await?;
    let peers = replication.as_ref().map(|replication| &replication.peers);
    let clients = Clients::open(&config.proxy, (None, peers), clock, metrics)?;
    Ok((replication, clients))
}

impl Shared {
    /// Follows who the replicas are, until the stop.
    pub(super) fn follow_replicas(&self) {
        let Some(Replication { peers, .. }) = &self.replication else {
            return;
        };
        let peers = Arc::clone(peers);
        let watch = move || Arc::clone(&peers).watch();
        self.background
            .spawn_restarted("replicas", self.stop_now.clone(), watch);
    }

    /// What recognises the requests of replicas.
    pub(super) fn peer_gate(&self) -> Option<PeerGate> {
        let replication = self.replication.as_ref()?;
        Some(PeerGate {
            marks: Arc::clone(&replication.marks),
            clock: self.clock,
        })
    }
}

/// The port that clients connect to, unless the system chooses it.
fn port(listen: &Listen) -> Option<u16> {
    let Listen::Tcp(address) = listen else {
        return None;
    };
    let (_, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|port| *port > 0)
}
