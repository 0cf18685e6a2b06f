//! The one replica that writes hosted content: whether it is this one, and the connections to it.
//!
//! The operator names it. In a list, it is this replica if that is the list's own entry. Where DNS names the
//! replicas, the writer's name is looked up like theirs, and the writer is this replica if all of its
//! addresses are this replica's. In doubt, it is another one: then requests are relayed, perhaps in vain, and
//! no two replicas write.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::error::SetupError;
use super::peer::{Peer, PeerOptions};
use super::peers::{INTERVAL, Peers, is_local};
use super::relay::{RelayAnswer, RelayError, RelayRequest};

/// The replica that writes hosted content.
pub(super) struct Writer {
    /// `host:port`, as the operator writes it.
    name: Arc<str>,
    /// The connections to it where its name isn't a member's.
    peer: Arc<Peer>,
    /// Whether it is this replica.
    is_own: watch::Sender<bool>,
}

impl Writer {
    /// Blocks: certificates are read.
    pub(super) fn new(name: &str, options: &Arc<PeerOptions>) -> Result<Self, SetupError> {
        let name = Arc::from(name);
        Ok(Self {
            peer: Arc::new(Peer::of_writer(&name, options)?),
            name,
            is_own: watch::Sender::new(false),
        })
    }

    /// Notes whether the writer is this replica.
    pub(super) fn set_own(&self, is_own: bool) {
        let has_changed = self
            .is_own
            .send_if_modified(|known| std::mem::replace(known, is_own) != is_own);
        if has_changed && is_own {
            tracing::info!(writer = &*self.name, "this replica writes hosted content");
        } else if has_changed {
            tracing::warn!(
                writer = &*self.name,
                "this replica doesn't write hosted content any more: another one has the writer's address"
            );
        }
    }

    /// Whether it is the member of a list with this name.
    pub(super) fn is_member(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// Looks it up. None where that fails.
    pub(super) async fn addresses(&self) -> Option<Vec<SocketAddr>> {
        let looked_up = timeout(INTERVAL, tokio::net::lookup_host(&*self.name)).await;
        Some(looked_up.ok()?.ok()?.collect())
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Peers {
    /// Whether this replica writes hosted content.
    pub fn writes_hosted(&self) -> bool {
        let writer = self.writer.as_ref();
        writer.is_some_and(|writer| *writer.is_own.borrow())
    }

    /// Whether this replica writes hosted content, now and from then on. None where no replica does.
    pub fn follow_writer(&self) -> Option<watch::Receiver<bool>> {
        let writer = self.writer.as_ref()?;
        Some(writer.is_own.subscribe())
    }

    /// Relays a request to the writer. An error is one without an answer of the writer's: its own errors are
    /// answers.
    pub async fn relay(&self, request: RelayRequest) -> Result<RelayAnswer, RelayError> {
        let writer = self.writer.as_ref().ok_or(RelayError::NoWriter)?;
        let member = self.member(&writer.name);
        member.as_ref().unwrap_or(&writer.peer).relay(request).await
    }
}

/// Whether addresses are those of this replica, which has `own`, where that is known, or an address of this
/// machine with the port that it listens on. All have to be: a name of several replicas is none's.
pub(super) fn are_own(
    addresses: &[SocketAddr],
    own: Option<SocketAddr>,
    port: Option<u16>,
    is_local: impl Fn(&SocketAddr) -> bool,
) -> bool {
    let port = own.map(|own| own.port()).or(port);
    let is_mine = |address: &SocketAddr| {
        own == Some(*address) || port == Some(address.port()) && is_local(address)
    };
    let has_own = own.is_none_or(|own| addresses.contains(&own));
    !addresses.is_empty() && has_own && addresses.iter().all(is_mine)
}

impl Peers {
    /// Finds out whether this replica is the writer, where DNS names it. An unknown name changes nothing.
    pub(super) async fn find_writer(&self) {
        let Some(writer) = self.writer.as_ref().filter(|_| self.is_dns()) else {
            return;
        };
        let Some(addresses) = writer.addresses().await else {
            return;
        };
        let (own, port) = self.own_socket();
        let is_local = |address: &SocketAddr| is_local(address.ip());
        writer.set_own(are_own(&addresses, own, port, is_local));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_the_writer_only_if_all_of_the_writers_addresses_are_its_own() {
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        let local = |address: &SocketAddr| {
            let own = ["10.0.0.1", "fd00::1"];
            own.iter()
                .any(|own| address.ip() == own.parse::<std::net::IpAddr>().unwrap())
        };
        for (addresses, own, port, expected) in [
            (&["10.0.0.1:5000"][..], None, Some(5000), true),
            (&["10.0.0.1:5000", "[fd00::1]:5000"], None, Some(5000), true),
            // All replicas, by one name.
            (&["10.0.0.1:5000", "10.0.0.2:5000"], None, Some(5000), false),
            (&["10.0.0.2:5000"], None, Some(5000), false),
            // Another one on this machine.
            (&["10.0.0.1:5001"], None, Some(5000), false),
            // The port that the system has chosen isn't known.
            (&["10.0.0.1:5000"], None, None, false),
            (&[], None, Some(5000), false),
            // Behind a translated address.
            (&["192.0.2.7:80"], Some("192.0.2.7:80"), Some(5000), true),
            (&["10.0.0.1:80"], Some("192.0.2.7:80"), Some(80), false),
            (
                &["192.0.2.7:80", "[fd00::1]:80"],
                Some("192.0.2.7:80"),
                None,
                true,
            ),
            (
                &["192.0.2.7:80", "192.0.2.8:80"],
                Some("192.0.2.7:80"),
                None,
                false,
            ),
        ] {
            let sockets: Vec<_> = addresses.iter().map(|text| socket(text)).collect();
            let found = are_own(&sockets, own.map(socket), port, local);
            assert_eq!(found, expected, "{addresses:?} {own:?} {port:?}");
        }
    }
}
