//! The other replicas, before the endpoints of an upstream: who is asked, in which order, and when the
//! upstream is asked instead.
//!
//! ```text
//! question ─► the members ahead of this replica in the order of the question's key, at most two
//!                │ answers, also 404, 429, 502, 504: passed on     │ silent, unmarked, 421, 500
//!                ▼                                                 ▼
//!             answer                              the next member, at last the upstream's endpoints
//! ```
//!
//! A request of another replica is never answered from a third: it is given an [`Upstream`] without peers
//! ([`Upstream::direct`]), and so is every question that this replica owns. A download goes from the peers to
//! the upstream once, and never back (`one_way`): whoever waits for it then waits
//! for no replica.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Upstream;
use super::endpoint::Endpoint;
use super::error::{Failure, SetupError, UpstreamError};
use super::lookup::Lookup;
use super::own_address::{own_address, own_entries};
use super::peer::{Peer, PeerOptions};
use super::peer_client::PeerTrust;
use super::relay::RelayRequest;
use super::relay_answer::{RelayAnswer, RelayError};
use super::writer::Writer;
use crate::clock::Clock;
use crate::config::{ReplicaPeers, Replicas};
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, RepoName, Tag};
use crate::replicas::{Marks, Members};

/// How often the members are looked up.
const INTERVAL: Duration = Duration::from_secs(5);
/// The first pause before a replica is asked again that still waits for one that has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What decides who owns a question.
#[derive(Debug, Clone, Copy)]
pub enum OwnerKey<'a> {
    Content(&'a Digest),
    /// The repository has the upstream's name for it.
    Tag(&'a RepoName, &'a Tag),
}

impl<'a> OwnerKey<'a> {
    pub fn of(repo: &'a RepoName, reference: &'a Reference) -> Self {
        match reference {
            Reference::Digest(digest) => Self::Content(digest),
            Reference::Tag(tag) => Self::Tag(repo, tag),
        }
    }

    /// The text that [scores](crate::replicas::score) are of.
    fn text(self, upstream: &str) -> String {
        match self {
            Self::Content(digest) => digest.to_string(),
            Self::Tag(repo, tag) => format!("{upstream}/{repo}:{tag}"),
        }
    }
}

/// What is needed to reach the other replicas.
#[derive(Debug)]
pub struct PeersOptions<'a> {
    pub config: &'a Replicas,
    pub marks: Arc<Marks>,
    /// The port that this replica listens on, if it is known.
    pub port: Option<u16>,
    /// Certificates (PEM) that replicas are trusted by beside the system's. None: they speak plain HTTP.
    pub tls: Option<Vec<u8>>,
    /// The path before `/v2/`.
    pub prefix: &'a str,
    pub lookup: Lookup,
    pub clock: Clock,
    pub metrics: &'a Arc<Metrics>,
}

/// Why the replicas can't be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeersError {
    #[error("none of the replicas has an address of this machine; write this server's own entry")]
    NoSelf,
    #[error("{0}: several replicas have an address of this machine; write this server's own entry")]
    ManySelves(String),
    #[error("the connections to the replicas can't be set up")]
    Setup(#[from] SetupError),
}

/// The other replicas.
pub struct Peers {
    /// Resolved again and again; none for a fixed list.
    dns: Option<String>,
    /// This replica's entry, if the operator names it.
    own: Option<String>,
    port: Option<u16>,
    lookup: Lookup,
    known: RwLock<Arc<Known>>,
    /// The replica that writes hosted content; none where nothing is hosted.
    writer: Option<Writer>,
    options: Arc<PeerOptions>,
}

/// How the last look-up ended, so that the log has changes only.
#[derive(Default)]
struct LastLookup {
    is_empty: bool,
    left_out: usize,
}

#[derive(Default)]
struct Known {
    members: Members,
    peers: HashMap<Arc<str>, Arc<Peer>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peers")
            .field(&self.known.read().members)
            .finish()
    }
}

impl Peers {
    /// Sets up the connections; of a DNS name, the addresses are looked up by [`watch`](Self::watch).
    /// Blocks: certificates are read.
    pub async fn new(options: PeersOptions<'_>) -> Result<Self, PeersError> {
        let PeersOptions {
            config,
            marks,
            port,
            tls,
            prefix,
            lookup,
            clock,
            metrics,
        } = options;
        let dns = match &config.peers {
            ReplicaPeers::Dns(name) => Some(name.clone()),
            ReplicaPeers::List(_) => None,
        };
        let host = dns.as_deref().and_then(|name| name.rsplit_once(':'));
        let host = host.map(|(host, _)| host.to_owned());
        let options = Arc::new(PeerOptions {
            marks,
            timeout: config.timeout,
            server_name: config.server_name.clone().or(host),
            tls: tls.as_deref().map(PeerTrust::new).transpose()?,
            prefix: prefix.to_owned(),
            clock,
            metrics: Arc::clone(metrics),
            counts: metrics.peers(),
        });
        let writer = config.hosted_writer.as_ref();
        let writer = writer.map(|writer| Writer::new(writer, &options));
        let peers = Self {
            dns,
            own: config.own.clone(),
            port,
            lookup,
            known: RwLock::default(),
            writer: writer.transpose()?,
            options,
        };
        if let ReplicaPeers::List(list) = &config.peers {
            let own = match &config.own {
                Some(own) => own.clone(),
                None => only(own_entries(list, port, &peers.lookup).await)?,
            };
            let names = list.iter().map(String::as_str);
            peers.set(Members::new(names, Some(&own)))?;
            if let Some(writer) = &peers.writer {
                writer.set_own(writer.name() == own);
            }
        } else {
            peers.find_writer().await;
        }
        Ok(peers)
    }

    /// Keeps the members of a DNS name, and finds out whether those that have failed are there again. Never
    /// returns.
    pub async fn watch(self: Arc<Self>) {
        let mut last = LastLookup::default();
        loop {
            if let Some(name) = &self.dns {
                self.look_up(name, &mut last).await;
                self.find_writer().await;
            }
            self.probe().await;
            self.show();
            sleep(INTERVAL).await;
        }
    }

    /// Looks up the members.
    async fn look_up(self: &Arc<Self>, name: &str, last: &mut LastLookup) {
        let (addresses, reason) = match self.lookup.addresses(name).await {
            Ok(addresses) => (addresses, "it has no addresses".to_owned()),
            Err(error) => (Vec::new(), on_one_line(&error)),
        };
        let own = self.own.clone();
        let own = own.or_else(|| own_address(&addresses, self.port));
        let Some((members, left_out)) = Members::resolved(addresses, own.as_deref()) else {
            if !std::mem::replace(&mut last.is_empty, true) {
                tracing::warn!(
                    name,
                    reason,
                    "the replicas can't be looked up; keeping those that are known"
                );
            }
            return;
        };
        last.is_empty = false;
        if left_out > 0 && last.left_out == 0 {
            tracing::warn!(
                name,
                left_out,
                "too many replicas: only those with the lowest addresses count"
            );
        }
        last.left_out = left_out;
        self.change(members).await;
    }

    /// Asks those that have failed, and aren't skipped any more, whether they are there.
    async fn probe(&self) {
        let known = Arc::clone(&self.known.read());
        let writer = self.writer.iter().map(Writer::peer);
        let all = known.peers.values().chain(writer);
        let failed = all.filter(|peer| peer.has_failed() && !peer.is_skipped());
        join_all(failed.map(|peer| peer.probe())).await;
    }

    /// Uses these members, if they aren't the known ones.
    async fn change(self: &Arc<Self>, members: Members) {
        if self.known.read().members == members {
            return;
        }
        tracing::info!(
            replicas = members.names().len(),
            "the replicas have changed"
        );
        let peers = Arc::clone(self);
        // Certificates are read.
        let set = tokio::task::spawn_blocking(move || peers.set(members)).await;
        if let Ok(Err(error)) = set {
            tracing::error!(error = %on_one_line(&error), "the connections to the replicas can't be set up");
        }
    }

    fn set(&self, members: Members) -> Result<(), SetupError> {
        let before = Arc::clone(&self.known.read());
        let peer = |name: &Arc<str>| {
            let peer = match before.peers.get(name) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Peer::new(name, &self.options)?),
            };
            Ok((Arc::clone(name), peer))
        };
        let peers = members
            .others()
            .map(peer)
            .collect::<Result<_, SetupError>>()?;
        *self.known.write() = Arc::new(Known { members, peers });
        self.show();
        // Certificates may have been renewed meanwhile.
        self.follow_trust()
    }

    /// Trusts the certificates (PEM) that their file has now, for new connections. After an error, what was
    /// trusted before stays in use. Blocks.
    pub fn renew(&self, pem: &[u8]) -> Result<(), SetupError> {
        if let Some(trust) = &self.options.tls {
            trust.replace(pem)?;
        }
        self.follow_trust()
    }

    fn follow_trust(&self) -> Result<(), SetupError> {
        let known = Arc::clone(&self.known.read());
        let writer = self.writer.as_ref().map(Writer::peer);
        let mut peers = known.peers.values().chain(writer);
        peers.try_for_each(|peer| peer.follow_trust())
    }

    /// Finds out whether this replica is the writer of hosted content, where DNS names the replicas.
    async fn find_writer(&self) {
        if let Some(writer) = &self.writer {
            let own = self.own.as_ref().and_then(|own| own.parse().ok());
            writer.look_up(own, self.port, &self.lookup).await;
        }
    }

    /// Whether this replica comes first for what `key` stands for.
    pub fn owns(&self, key: &str) -> bool {
        self.ahead(key).0.is_empty()
    }

    /// Whether this replica writes hosted content.
    pub fn writes_hosted(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_own)
    }

    /// The same, now and from then on. None where no replica writes hosted content.
    pub fn follow_writer(&self) -> Option<watch::Receiver<bool>> {
        self.writer.as_ref().map(Writer::follow)
    }

    /// Relays a request to the replica that writes hosted content. What that one refuses is an answer; an
    /// error means that there is none.
    pub async fn relay(&self, request: RelayRequest) -> Result<RelayAnswer, RelayError> {
        let writer = self.writer.as_ref().ok_or(RelayError::NoWriter)?;
        let member = self.known.read().peers.get(writer.name()).cloned();
        let peer = member.as_ref().unwrap_or(writer.peer());
        peer.relay(request).await
    }

    /// How many other replicas there are, and those of them that have failed and haven't answered since.
    pub fn status(&self) -> (usize, Vec<String>) {
        let known = Arc::clone(&self.known.read());
        let skipped = known.peers.values().filter(|peer| peer.has_failed());
        let mut skipped: Vec<_> = skipped.map(|peer| peer.name.to_string()).collect();
        skipped.sort_unstable();
        (known.peers.len(), skipped)
    }

    fn show(&self) {
        let (known, skipped) = self.status();
        self.options
            .metrics
            .replicas()
            .members(known, skipped.len());
    }

    /// The members to ask before the upstream is, and whether one that comes before them has failed.
    fn ahead(&self, key: &str) -> (Vec<Arc<Peer>>, bool) {
        let known = Arc::clone(&self.known.read());
        let ahead = known.members.ahead(key);
        let peers = ahead.iter().filter_map(|name| known.peers.get(name));
        let (skipped, asked): (Vec<_>, Vec<_>) = peers.cloned().partition(|peer| peer.is_skipped());
        (asked, !skipped.is_empty())
    }
}

/// The members to ask about one question.
pub(super) struct Ahead {
    endpoints: Vec<Endpoint>,
    /// One that comes before them has failed.
    has_failed: bool,
}

impl Upstream {
    /// The same client, which asks the other replicas first.
    #[must_use]
    pub fn with_peers(self, peers: Option<&Arc<Peers>>) -> Self {
        // The credentials of callers are sent over TLS only.
        let peers = peers.filter(|peers| self.caller.is_none() || peers.options.tls.is_some());
        Self {
            peers: peers.cloned(),
            ..self
        }
    }

    /// Whether it may ask other replicas.
    pub fn asks_peers(&self) -> bool {
        self.peers.is_some()
    }

    /// The same client, which asks no other replica.
    pub fn direct(self: &Arc<Self>) -> Arc<Self> {
        if self.peers.is_none() {
            return Arc::clone(self);
        }
        Arc::new(Self {
            config: Arc::clone(&self.config),
            endpoints: Arc::clone(&self.endpoints),
            caller: self.caller,
            callers: None,
            peers: None,
        })
    }

    /// The client for a question: one that asks no other replica where this one is the owner.
    pub fn routed(self: &Arc<Self>, key: OwnerKey<'_>) -> Arc<Self> {
        match &self.peers {
            Some(peers) if peers.ahead(&key.text(self.name())).0.is_empty() => self.direct(),
            _ => Arc::clone(self),
        }
    }

    /// The members to ask about a question, before the upstream is asked.
    pub(super) fn ahead(&self, key: OwnerKey<'_>) -> Ahead {
        let asked = self.peers.as_ref().filter(|_| !self.is_offline());
        let (peers, has_failed) = asked
            .map(|peers| peers.ahead(&key.text(self.name())))
            .unwrap_or_default();
        let endpoint = |peer| self.endpoints.first.at_peer(peer);
        Ahead {
            endpoints: peers.into_iter().map(endpoint).collect(),
            has_failed,
        }
    }

    /// Asks the members. None: the upstream is to be asked.
    pub(super) async fn ask_peers<'a, T, F, Asking>(
        &self,
        ahead: &'a Ahead,
        question: &F,
    ) -> Result<Option<T>, UpstreamError>
    where
        T: Send + 'a,
        F: Fn(&'a Endpoint) -> Asking + Send + Sync,
        Asking: Future<Output = Result<T, UpstreamError>> + Send + 'a,
    {
        let mut has_failed = ahead.has_failed;
        let patience = self.peers.as_ref().map(|peers| peers.options.timeout);
        for endpoint in &ahead.endpoints {
            let until = Instant::now() + patience.unwrap_or_default();
            let mut pause = FIRST_PAUSE;
            loop {
                let error = match Box::pin(question(endpoint)).await {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(error) if error.peer.is_some() => return Err(error),
                    Err(error) => error,
                };
                tracing::debug!(upstream = self.name(), error = %on_one_line(&error), "a replica has no answer; asking the next source");
                let is_misdirected = matches!(error.failure, Failure::Unexpected(421));
                // It is the next owner, and about to notice that the one before it has failed. All replicas
                // notice at the same time, and each would go to the upstream.
                if is_misdirected && has_failed && Instant::now() + pause < until {
                    sleep(pause).await;
                    pause *= 2;
                    continue;
                }
                has_failed |= !is_misdirected;
                break;
            }
        }
        Ok(None)
    }
}

/// This replica's entry of a list, of which these entries are this machine's.
fn only(mut own: Vec<String>) -> Result<String, PeersError> {
    match own.len() {
        0 => Err(PeersError::NoSelf),
        1 => Ok(own.swap_remove(0)),
        _ => Err(PeersError::ManySelves(own.join(", "))),
    }
}
