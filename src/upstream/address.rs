//! What kind of network an IP address belongs to, and which kinds an upstream may lead to. Pure.
//!
//! An upstream chooses where its redirects and token services are. If it could choose any address,
//! it would use this mirror to reach what only this mirror can reach: services of this machine,
//! metadata services of the cloud, the private network.
//!
//! Source: the IANA special-purpose address registries (RFC 6890), RFC 6052 (NAT64), RFC 3056 (6to4),
//! RFC 4380 (Teredo).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// (first address, bits of the prefix, network); the first that matches counts, and everything else is
/// public.
const V4: &[([u8; 4], u32, Network)] = &[
    // Metadata services of clouds that answer only on the machine itself, although their addresses
    // aren't link-local: Azure, Oracle, Alibaba.
    ([168, 63, 129, 16], 32, Network::LinkLocal),
    ([192, 0, 0, 192], 32, Network::LinkLocal),
    ([100, 100, 100, 200], 32, Network::LinkLocal),
    // The system connects 0.0.0.0 to itself.
    ([0, 0, 0, 0], 8, Network::Loopback),
    ([127, 0, 0, 0], 8, Network::Loopback),
    ([169, 254, 0, 0], 16, Network::LinkLocal),
    // Multicast has no place in HTTP, and 255.255.255.255 is everybody on the link.
    ([224, 0, 0, 0], 4, Network::LinkLocal),
    ([255, 255, 255, 255], 32, Network::LinkLocal),
    ([10, 0, 0, 0], 8, Network::Private),
    ([172, 16, 0, 0], 12, Network::Private),
    ([192, 168, 0, 0], 16, Network::Private),
    // Carrier-grade NAT, protocol assignments, benchmarks, reserved.
    ([100, 64, 0, 0], 10, Network::Private),
    ([192, 0, 0, 0], 24, Network::Private),
    ([198, 18, 0, 0], 15, Network::Private),
    ([240, 0, 0, 0], 4, Network::Private),
];

/// The same for IPv6.
const V6: &[([u16; 8], u32, Network)] = &[
    // Metadata services of AWS and Google.
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 48, Network::LinkLocal),
    ([0xfd20, 0xce, 0, 0, 0, 0, 0, 0], 48, Network::LinkLocal),
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, Network::Loopback),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Network::Loopback),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Network::LinkLocal),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Network::LinkLocal),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Network::Private),
    // Site-local, which is deprecated; discard-only.
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Network::Private),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Network::Private),
];

/// Prefixes of IPv6 addresses that hold an IPv4 address in their last 32 bits: IPv4-compatible,
/// IPv4-mapped, IPv4-translated, and the well-known prefix of NAT64.
const EMBEDDING: [[u16; 6]; 4] = [
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0xffff],
    [0, 0, 0, 0, 0xffff, 0],
    [0x64, 0xff9b, 0, 0, 0, 0],
];

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Public,
    /// Private, unique local, carrier-grade NAT, and what else isn't routed on the internet.
    Private,
    /// Link-local, multicast, and metadata services of clouds.
    LinkLocal,
    /// This machine.
    Loopback,
}

impl Network {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    /// The one bit that stands for it in a reach.
    pub(super) const fn bit(self) -> u8 {
        match self {
            Self::Public => 1,
            Self::Private => 2,
            Self::LinkLocal => 4,
            Self::Loopback => 8,
        }
    }

    /// The bits of the networks that an upstream in this one may lead to: loopback and link-local
    /// addresses only from the same kind, private ones from all but public ones.
    pub(super) const fn reach(self) -> u8 {
        match self {
            Self::Public => self.bit(),
            _ => self.bit() | Self::Private.bit() | Self::Public.bit(),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Loopback => "loopback",
        })
    }
}

fn of_v4(address: Ipv4Addr) -> Network {
    let address = u32::from(address);
    let found = V4.iter().find(|(prefix, bits, _)| {
        let differing = address ^ u32::from_be_bytes(*prefix);
        differing.leading_zeros() >= *bits
    });
    found.map_or(Network::Public, |(_, _, network)| *network)
}

fn of_v6(address: Ipv6Addr) -> Network {
    let bits = u128::from(address);
    let found = V6.iter().find(|(prefix, length, _)| {
        let differing = bits ^ u128::from(Ipv6Addr::from(*prefix));
        differing.leading_zeros() >= *length
    });
    if let Some((_, _, network)) = found {
        return *network;
    }
    let segments = address.segments();
    let embedded =
        |high: u16, low: u16| of_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    let [.., high, low] = segments;
    if EMBEDDING.iter().any(|prefix| segments.starts_with(prefix)) {
        return embedded(high, low);
    }
    match segments {
        // NAT64 with a local prefix: the operator's own network, whatever it leads to.
        [0x64, 0xff9b, 1, ..] => match embedded(high, low) {
            Network::Public => Network::Private,
            network => network,
        },
        // Teredo: the address of the client, inverted.
        [0x2001, 0, ..] => embedded(!high, !low),
        // 6to4: the address of the router.
        [0x2002, high, low, ..] => embedded(high, low),
        _ => Network::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses by their networks.
    const ADDRESSES: [(Network, &str); 4] = [
        (
            Network::Public,
            "1.1.1.1 11.0.0.1 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 \
             2606:4700::1111 64:ff9b::1.1.1.1 ::ffff:1.1.1.1 2002:101:101::1",
        ),
        (
            Network::Private,
            "10.255.0.1 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 198.19.0.1 240.0.0.1 \
             fc00::1 fdff::1 fec0::1 64:ff9b:1::1.1.1.1 ::ffff:10.0.0.1 64:ff9b::192.168.1.1 \
             2002:a00:1::1",
        ),
        (
            Network::LinkLocal,
            "169.254.169.254 168.63.129.16 192.0.0.192 100.100.100.200 239.1.1.1 \
             255.255.255.255 fe80::1 ff02::1 fd00:ec2::254 fd20:ce::254 ::ffff:169.254.169.254 \
             64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe 2002:a9fe:a9fe::",
        ),
        (
            Network::Loopback,
            // The last is Teredo's: 127.0.0.1, inverted.
            "127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 ::1 :: ::127.0.0.1 ::ffff:127.0.0.1 \
             ::ffff:0:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:0:1:1::80ff:fffe",
        ),
    ];

    #[test]
    fn every_address_has_its_network() {
        for (network, addresses) in ADDRESSES {
            for address in addresses.split_ascii_whitespace() {
                assert_eq!(Network::of(address.parse().unwrap()), network, "{address}");
            }
        }
    }

    #[test]
    fn an_upstream_reaches_its_own_kind_of_network_and_more_public_ones() {
        use Network::{LinkLocal, Loopback, Private, Public};
        for (from, to) in [
            (Public, &[Public][..]),
            (Private, &[Public, Private]),
            (LinkLocal, &[Public, Private, LinkLocal]),
            (Loopback, &[Public, Private, Loopback]),
        ] {
            for network in [Public, Private, LinkLocal, Loopback] {
                let is_reached = from.reach() & network.bit() != 0;
                assert_eq!(is_reached, to.contains(&network), "{from} {network}");
            }
        }
    }
}
