//! How many connections listeners serve at the same time, and what is said of those it refuses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::RefusedConnection;

/// How often a listener reports refused connections and failed accepts at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Bits of an IPv6 address that name a client's network: one client has all addresses below.
const IPV6_PREFIX: u32 = 64;

/// The most connections of listeners that share an [`Admission`].
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// All together.
    pub total: usize,
    /// From one IPv4 address or one IPv6 /64 network. Unix sockets have no address.
    pub per_address: Option<NonZeroUsize>,
}

/// Counts the open connections of the listeners that share it.
#[derive(Debug)]
pub struct Admission {
    total: AtomicUsize,
    /// 0 is no limit.
    per_address: AtomicUsize,
    open: AtomicUsize,
    /// Only filled where there is a limit per address. Held for a few instructions, once when a
    /// connection opens and once when it closes.
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// The right to serve one connection, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Admission {
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            total: AtomicUsize::new(limits.total),
            per_address: AtomicUsize::new(limits.per_address.map_or(0, NonZeroUsize::get)),
            open: AtomicUsize::new(0),
            by_address: Mutex::default(),
        })
    }

    /// Applies other limits. Connections beyond them stay open; those that were opened without a limit
    /// per address don't count towards one.
    pub fn configure(&self, limits: ConnectionLimits) {
        let per_address = limits.per_address.map_or(0, NonZeroUsize::get);
        self.total.store(limits.total, Ordering::Relaxed);
        self.per_address.store(per_address, Ordering::Relaxed);
    }

    /// Admits a connection, or tells which limit it exceeds.
    pub(super) fn admit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<Permit, RefusedConnection> {
        let total = self.total.load(Ordering::Relaxed);
        if self.open.fetch_add(1, Ordering::Relaxed) >= total {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(RefusedConnection::Total);
        }
        let mut counted = None;
        let limit = NonZeroUsize::new(self.per_address.load(Ordering::Relaxed));
        if let (Some(limit), Some(address)) = (limit, address) {
            let key = network(address);
            let mut by_address = self.by_address.lock();
            let open = by_address.entry(key).or_default();
            if *open >= limit.get() {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(RefusedConnection::Address);
            }
            *open += 1;
            counted = Some(key);
        }
        Ok(Permit {
            admission: Arc::clone(self),
            address: counted,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Admission {
            open, by_address, ..
        } = &*self.admission;
        if let Some(address) = self.address {
            let mut by_address = by_address.lock();
            if let Some(open) = by_address.get_mut(&address) {
                *open -= 1;
                if *open == 0 {
                    by_address.remove(&address);
                }
            }
        }
        open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the limit per address counts together.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let prefix = u128::MAX << (Ipv6Addr::BITS - IPV6_PREFIX);
            Ipv6Addr::from_bits(address.to_bits() & prefix).into()
        }
    }
}

/// Decides when a repeated event is logged: at most once a second.
#[derive(Debug, Default)]
pub(super) struct Reports {
    last: Option<Instant>,
    unreported: u64,
}

impl Reports {
    /// Counts an event. Returns how many there were since the last report if it is time for one.
    pub(super) fn count(&mut self) -> Option<u64> {
        self.unreported += 1;
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < REPORT_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(total: usize, per_address: usize) -> Arc<Admission> {
        Admission::new(ConnectionLimits {
            total,
            per_address: NonZeroUsize::new(per_address),
        })
    }

    #[test]
    fn connections_are_admitted_up_to_the_total() {
        let admission = admission(2, 0);
        let first = admission.admit(None).unwrap();
        let _second = admission.admit(Some([127, 0, 0, 1].into())).unwrap();
        assert_eq!(admission.admit(None).unwrap_err(), RefusedConnection::Total);
        drop(first);
        assert!(admission.admit(None).is_ok());
    }

    #[test]
    fn connections_are_admitted_up_to_the_limit_of_their_address() {
        let admission = admission(100, 2);
        let one = |last: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]));
        let held = [
            admission.admit(one(1)).unwrap(),
            admission.admit(one(2)).unwrap(),
        ];
        assert_eq!(
            admission.admit(one(3)).unwrap_err(),
            RefusedConnection::Address
        );
        let other = Some(IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1]));
        for address in [
            other,
            Some([10, 0, 0, 1].into()),
            Some([10, 0, 0, 2].into()),
            None,
        ] {
            assert!(admission.admit(address).is_ok(), "{address:?}");
        }
        drop(held);
        assert!(admission.by_address.lock().is_empty());
        assert_eq!(admission.open.load(Ordering::Relaxed), 0);
        assert!(admission.admit(one(3)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_is_reported_once_a_second() {
        let mut reports = Reports::default();
        assert_eq!(reports.count(), Some(1));
        for _ in 0..500 {
            assert_eq!(reports.count(), None);
        }
        tokio::time::advance(REPORT_INTERVAL).await;
        assert_eq!(reports.count(), Some(501));
        assert_eq!(reports.count(), None);
    }
}
