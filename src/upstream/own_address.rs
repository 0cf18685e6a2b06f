//! Which addresses are this replica's.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::lookup::Lookup;

/// The entries of a list that are this machine's.
pub(super) async fn own_entries(
    list: &[String],
    port: Option<u16>,
    lookup: &Lookup,
) -> Vec<String> {
    let mut own = Vec::new();
    for entry in list {
        let addresses = lookup.addresses(entry).await.unwrap_or_default();
        if own_address(&addresses, port).is_some() {
            own.push(entry.clone());
        }
    }
    own
}

/// The first of the addresses that is this machine's and, where that is known, has the port that this
/// replica listens on.
pub(super) fn own_address(addresses: &[SocketAddr], port: Option<u16>) -> Option<String> {
    let mut addresses = addresses.iter();
    let own = addresses
        .find(|address| port.is_none_or(|port| port == address.port()) && is_local(address.ip()));
    own.map(ToString::to_string)
}

/// Whether all addresses are those of this replica, so that a name of several replicas is none's: `own`,
/// where the operator writes it, or addresses of this machine with the port that it listens on.
pub(super) fn are_own(
    addresses: &[SocketAddr],
    own: Option<SocketAddr>,
    port: Option<u16>,
    is_local: impl Fn(IpAddr) -> bool,
) -> bool {
    let port = own.map(|own| own.port()).or(port);
    let is_mine = |address: &SocketAddr| {
        own == Some(*address) || port == Some(address.port()) && is_local(address.ip())
    };
    let has_own = own.is_none_or(|own| addresses.contains(&own));
    !addresses.is_empty() && has_own && addresses.iter().all(is_mine)
}

/// Whether an address is this machine's: only then can a socket have it.
pub(super) fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_own_only_if_all_of_them_are() {
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        let local = |address: IpAddr| {
            let mut own = ["10.0.0.1", "fd00::1"].into_iter();
            own.any(|own| address == own.parse::<IpAddr>().unwrap())
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
