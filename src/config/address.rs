//! Host names with ports: where to listen, and what an upstream is called.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

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
    /// A TCP address with a port.
    pub(super) fn tcp(text: &str) -> Option<Self> {
        host_port(text, true)?.1?;
        Some(Self::Tcp(text.to_owned()))
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

impl Serialize for Listen {
    /// The two keys that it is read from.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let net = match self {
            Self::Tcp(_) => "tcp",
            Self::Unix(_) => "unix",
        };
        serializer.collect_map([("addr", self.to_string().as_str()), ("net", net)])
    }
}

/// An upstream's other name: `host` or `host:port`, in lower case.
pub(super) fn alias(text: &str) -> Option<String> {
    host_port(text, false)?;
    Some(text.to_ascii_lowercase())
}

/// Splits `host[:port]`; an IPv6 address stands in brackets.
fn host_port(text: &str, may_lack_host: bool) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        match port {
            "" => (address, None),
            _ => (address, Some(port.strip_prefix(':')?)),
        }
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !host.bytes().all(named) || (host.is_empty() && !may_lack_host) {
            return None;
        }
        (host, port)
    };
    let port = match port {
        Some(port) => Some(digits(port)?),
        None => None,
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening() {
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
    fn aliases() {
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
