//! Host names with ports: where to listen, and what an upstream is called.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use super::section::Section;
use crate::oci::digits;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `host:port` as given, resolved when it is bound; `:port` is every interface.
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

impl Listen {
    /// Whether only this machine can reach it. A name other than `localhost` may mean any address.
    pub fn is_loopback(&self) -> bool {
        let Self::Tcp(address) = self else {
            return true;
        };
        let host = address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// A TCP address with a port.
    pub(super) fn tcp(text: &str) -> Option<Self> {
        has_port(text, true)?.then(|| Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// An upstream's other name: `host` or `host:port`, in lower case.
pub(super) fn alias(text: &str) -> Option<String> {
    has_port(text, false)?;
    Some(text.to_ascii_lowercase())
}

/// Whether `host[:port]` has a port; `None` for other texts. An IPv6 address stands in brackets.
fn has_port(text: &str, may_lack_host: bool) -> Option<bool> {
    let (is_host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        (address.parse::<Ipv6Addr>().is_ok(), port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let is_host = host.bytes().all(named) && (may_lack_host || !host.is_empty());
        (is_host, port)
    };
    if !is_host {
        return None;
    }
    if port.is_empty() {
        return Some(false);
    }
    let port: Option<u16> = digits(port.strip_prefix(':')?);
    port.map(|_| true)
}

/// A list of networks at a key.
pub(super) fn networks(section: &Section<'_>, key: &'static str) -> Vec<ipnet::IpNet> {
    section.values(key, |text, _| {
        let network = text.parse::<ipnet::IpNet>().ok();
        let address = || text.parse::<IpAddr>().ok().map(ipnet::IpNet::from);
        let network = network.or_else(address);
        network.ok_or("write a network such as 10.0.0.0/8, or an address")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_out_of_reach() {
        let is = |text: &str| Listen::tcp(text).unwrap().is_loopback();
        for near in [
            "127.0.0.1:1",
            "127.9.9.9:0",
            "localhost:5000",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is(near), "{near}");
        }
        for far in [
            ":5000",
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.1:1",
            "localhost.example:1",
        ] {
            assert!(!is(far), "{far}");
        }
        assert!(Listen::Unix("/run/millpond".into()).is_loopback());
    }

    #[test]
    fn listen_addresses_have_a_port() {
        for good in [
            ":5000",
            "0.0.0.0:5000",
            "localhost:0",
            "[::1]:80",
            "[::]:65535",
        ] {
            assert_eq!(Listen::tcp(good), Some(Listen::Tcp(good.to_owned())));
        }
        for bad in [
            "",
            ":",
            "5000",
            "localhost",
            "localhost:",
            ":65536",
            ":+80",
            ":http",
            "::1:80",
            "[::1]",
            "[::1]80",
            "[x]:80",
            "a b:80",
            "http://a:80",
            "a/b:80",
        ] {
            assert_eq!(Listen::tcp(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn aliases_are_hosts_with_or_without_a_port() {
        for (good, lower) in [
            ("GHCR.io", "ghcr.io"),
            ("registry.local:5000", "registry.local:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(alias(good).as_deref(), Some(lower));
        }
        for bad in [
            "",
            ":5000",
            "https://ghcr.io",
            "ghcr.io/",
            "a b",
            "user@host",
        ] {
            assert_eq!(alias(bad), None, "{bad:?}");
        }
    }
}
