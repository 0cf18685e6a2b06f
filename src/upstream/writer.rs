//! The one replica that writes hosted content: whether it is this one, and the connections to it.
//!
//! The operator names it. In a list, it is this replica if that is the list's own entry. Where DNS names the
//! replicas, the writer's name is looked up like theirs, and the writer is this replica if all of its
//! addresses are this replica's. In doubt, it is another one: then requests are relayed, perhaps in vain, and
//! no two replicas write.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::error::SetupError;
use super::lookup::Lookup;
use super::own_address::{are_own, is_local};
use super::peer::{Peer, PeerOptions};

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

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether it is this replica.
    pub(super) fn is_own(&self) -> bool {
        *self.is_own.borrow()
    }

    /// The same, now and from then on.
    pub(super) fn follow(&self) -> watch::Receiver<bool> {
        self.is_own.subscribe()
    }

    /// Looks it up, and notes whether it is this replica, which has `own` and `port`, where they are known.
    /// Where the look-up fails, nothing changes.
    pub(super) async fn look_up(
        &self,
        own: Option<SocketAddr>,
        port: Option<u16>,
        lookup: &Lookup,
    ) {
        let addresses = lookup.addresses(&self.name).await.unwrap_or_default();
        if !addresses.is_empty() {
            self.set_own(are_own(&addresses, own, port, is_local));
        }
    }

    /// Notes whether it is this replica.
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
}
