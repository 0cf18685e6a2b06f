//! Wires what replicas know of each other.

use std::sync::Arc;

use super::upstreams::Clients;
use super::{Shared, StartError};
use crate::clock::Clock;
use crate::config::{self, Config, Listen};
use crate::metrics::Metrics;
use crate::replicas::Marks;
use crate::server::PeerGate;
use crate::upstream::{Lookup, Peers, PeersOptions};

/// The other replicas, and what recognises their requests.
#[derive(Debug, Clone)]
pub(super) struct Replication {
    pub(super) peers: Arc<Peers>,
    marks: Arc<Marks>,
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
        let tls = config.http.tls.as_ref();
        let tls = tls.map(|tls| {
            config::read_pem(&tls.certificate).map_err(|source| StartError::ReplicaCertificate {
                path: tls.certificate.clone(),
                source,
            })
        });
        let marks = Arc::new(Marks::new(replicas.secret.expose()));
        let options = PeersOptions {
            config: replicas,
            marks: Arc::clone(&marks),
            port: port(&config.http.listen),
            tls: tls.transpose()?,
            prefix: &config.http.prefix,
            lookup,
            clock,
            metrics,
        };
        let peers = Arc::new(Peers::new(options).await?);
        Ok(Some(Self { peers, marks }))
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
