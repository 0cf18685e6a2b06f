//! Who a download is for, as far as fairness among clients is concerned.

use std::net::{IpAddr, Ipv6Addr};

/// A client by its network address. IPv6 clients of one /64 network count as one, because a single
/// machine can use all of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(Option<IpAddr>);

impl Client {
    /// A client without an address, or no client.
    pub const UNKNOWN: Self = Self(None);

    /// The client at an address; none is a client of a unix socket.
    pub fn at(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_ids_do_not_count() {
        let client = |text: &str| Client::at(Some(text.parse().unwrap()));
        assert_eq!(client("10.0.0.1"), client("::ffff:10.0.0.1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::2:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(Client::at(None), Client::UNKNOWN);
    }
}
