//! Where a caller is and how it reaches the server, behind reverse proxies.
//!
//! `Forwarded` (RFC 7239) and `X-Forwarded-*` count only when they come from a trusted proxy. Each
//! proxy appends an entry for whom it serves: so the caller is the last address that is no trusted
//! proxy's, and what stands before it may be made up.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap};
use http::uri::Authority;
use ipnet::IpNet;

use super::{AuthError, Presented};

/// Entries that are read, and the longest field, in bytes.
const MAX_ENTRIES: usize = 32;
const MAX_FIELD: usize = 4096;

const CONTRADICTION: &str = "Forwarded and X-Forwarded-For contradict each other";
const MALFORMED: &str = "the Forwarded or X-Forwarded headers are malformed";

/// Knows the address of the server, and whose headers count.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// `http.host`, without a slash at its end.
    pub(super) configured: Option<String>,
    pub(super) trusted: Vec<IpNet>,
}

/// What the proxies say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hops {
    address: Option<IpAddr>,
    proto: Option<String>,
    host: Option<String>,
}

impl Origins {
    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The address of the caller: the connection's, unless that is a trusted proxy's.
    pub(super) fn address(&self, presented: &Presented<'_>) -> Result<Option<IpAddr>, AuthError> {
        let address = presented.address;
        if self.trusted.is_empty() || !address.is_some_and(|address| self.trusts(address)) {
            return Ok(address);
        }
        let hops = self.hops(presented.headers)?;
        Ok(hops.address.or(address))
    }

    /// Scheme and host at which the caller reaches the server.
    pub(super) fn origin(&self, presented: &Presented<'_>) -> Option<String> {
        if let Some(configured) = &self.configured {
            return Some(configured.clone());
        }
        let mut hops = Hops::default();
        if presented
            .address
            .is_some_and(|address| self.trusts(address))
        {
            hops = self.hops(presented.headers).ok()?;
        }
        let own = if presented.secure { "https" } else { "http" };
        let scheme = hops.proto.as_deref().unwrap_or(own);
        let host = hops.host.or_else(|| {
            let host = presented
                .headers
                .get(HOST)
                .and_then(|host| host.to_str().ok());
            host.or(presented.authority).and_then(valid_host)
        })?;
        Some(format!("{scheme}://{host}"))
    }

    fn hops(&self, headers: &HeaderMap) -> Result<Hops, AuthError> {
        let forwarded = self.forwarded(headers)?;
        let x_forwarded = self.x_forwarded(headers)?;
        match (forwarded, x_forwarded) {
            // A proxy that knows one of them passes the other on as the client made it up.
            (Some(one), Some(other)) if other.address.is_some() && one.address != other.address => {
                Err(AuthError::Malformed(CONTRADICTION))
            }
            (Some(one), Some(other)) => Ok(Hops {
                proto: one.proto.or(other.proto),
                host: one.host.or(other.host),
                address: one.address,
            }),
            (one, other) => Ok(one.or(other).unwrap_or_default()),
        }
    }

    fn forwarded(&self, headers: &HeaderMap) -> Result<Option<Hops>, AuthError> {
        let entries = list(headers, FORWARDED.as_str())?;
        if entries.is_empty() {
            return Ok(None);
        }
        let mut hops = Hops::default();
        // From the nearest proxy to the caller: each entry is believed because its writer is trusted.
        for entry in entries.iter().rev() {
            let mut node = None;
            for pair in split(entry, ';') {
                let (name, value) = pair
                    .split_once('=')
                    .ok_or(AuthError::Malformed(MALFORMED))?;
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "for" => node = Some(value),
                    "proto" => hops.proto = Some(proto(value)?),
                    "host" => hops.host = Some(host(value)?),
                    _ => {}
                }
            }
            // `unknown` and names made up by a proxy (RFC 7239, section 6) are no address.
            let Some(address) = node.and_then(ip) else {
                break;
            };
            hops.address = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        Ok(Some(hops))
    }

    fn x_forwarded(&self, headers: &HeaderMap) -> Result<Option<Hops>, AuthError> {
        let nodes = list(headers, "x-forwarded-for")?;
        let last = |name| Ok::<_, AuthError>(list(headers, name)?.pop());
        let (scheme, name) = (last("x-forwarded-proto")?, last("x-forwarded-host")?);
        if nodes.is_empty() && scheme.is_none() && name.is_none() {
            return Ok(None);
        }
        let mut hops = Hops {
            address: None,
            proto: scheme.as_deref().map(proto).transpose()?,
            host: name.as_deref().map(host).transpose()?,
        };
        for node in nodes.iter().rev() {
            let Some(address) = ip(node) else { break };
            hops.address = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        Ok(Some(hops))
    }
}

/// All entries of a field that is a list, in their order.
fn list(headers: &HeaderMap, name: &str) -> Result<Vec<String>, AuthError> {
    let mut entries = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().ok().filter(|text| text.len() <= MAX_FIELD);
        let text = text.ok_or(AuthError::Malformed(MALFORMED))?;
        entries.extend(split(text, ',').map(str::to_owned));
    }
    if entries.len() > MAX_ENTRIES {
        return Err(AuthError::Malformed(MALFORMED));
    }
    Ok(entries)
}

/// The parts between separators outside of quotes, trimmed, without empty ones.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let parts = text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// An address, with or without a port and brackets.
fn ip(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address
        .or_else(bracketed)
        .map(|address| address.to_canonical())
}

fn proto(text: &str) -> Result<String, AuthError> {
    let scheme = text.to_ascii_lowercase();
    let valid = matches!(scheme.as_str(), "http" | "https").then_some(scheme);
    valid.ok_or(AuthError::Malformed(MALFORMED))
}

fn host(text: &str) -> Result<String, AuthError> {
    valid_host(text).ok_or(AuthError::Malformed(MALFORMED))
}

/// A host with or without a port, and nothing that could end a quoted string or a URL's authority.
fn valid_host(text: &str) -> Option<String> {
    let authority: Authority = text.parse().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let valid = !authority.host().is_empty() && text.len() <= 261 && text.bytes().all(is_plain);
    valid.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    /// The address and the origin.
    fn seen(peer: &str, lines: &[&str]) -> String {
        let origins = Origins {
            configured: None,
            trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        };
        let headers = headers(lines);
        let presented = Presented {
            headers: &headers,
            address: peer.parse().ok(),
            certificate: None,
            secure: false,
            authority: None,
        };
        match origins.address(&presented) {
            Ok(address) => {
                let origin = origins.origin(&presented).unwrap_or_else(|| "-".to_owned());
                format!("{} {origin}", address.unwrap())
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one row for each case")]
    fn proxies_are_believed_only_if_trusted() {
        const P: &str = "10.0.0.1";
        for (peer, lines, expected) in [
            (
                "192.0.2.1",
                &["Host: m:5000"][..],
                "192.0.2.1 http://m:5000",
            ),
            // A client that isn't a proxy makes it up.
            (
                "192.0.2.1",
                &["Host: m", "Forwarded: for=10.1.1.1;proto=https;host=evil"],
                "192.0.2.1 http://m",
            ),
            (
                "192.0.2.1",
                &[
                    "Host: m",
                    "X-Forwarded-For: 10.1.1.1",
                    "X-Forwarded-Host: evil",
                ],
                "192.0.2.1 http://m",
            ),
            (P, &["Host: m"], "10.0.0.1 http://m"),
            (
                P,
                &[
                    "Host: m",
                    "Forwarded: for=192.0.2.7;proto=https;host=mirror.example",
                ],
                "192.0.2.7 https://mirror.example",
            ),
            (
                P,
                &[
                    "Host: m",
                    "Forwarded: for=\"[2001:db8::1]:47011\";proto=HTTPS",
                ],
                "2001:db8::1 https://m",
            ),
            // The first entry is the client's own invention.
            (
                P,
                &[
                    "Host: m",
                    "Forwarded: for=10.9.9.9;host=evil, for=192.0.2.7;host=a, for=10.0.0.2",
                ],
                "192.0.2.7 http://a",
            ),
            (
                P,
                &[
                    "Host: m",
                    "X-Forwarded-For: 10.9.9.9, 192.0.2.7",
                    "X-Forwarded-For: 10.0.0.2",
                    "X-Forwarded-Proto: https",
                    "X-Forwarded-Host: mirror.example:8443",
                ],
                "192.0.2.7 https://mirror.example:8443",
            ),
            (
                P,
                &["Host: m", "Forwarded: for=unknown"],
                "10.0.0.1 http://m",
            ),
            (
                P,
                &["Host: m", "Forwarded: for=_secret, for=10.0.0.2"],
                "10.0.0.2 http://m",
            ),
            (P, &["Host: m", "X-Forwarded-For: x"], "10.0.0.1 http://m"),
            (
                P,
                &[
                    "Host: m",
                    "Forwarded: for=192.0.2.7",
                    "X-Forwarded-For: 192.0.2.7",
                ],
                "192.0.2.7 http://m",
            ),
            (
                P,
                &[
                    "Host: m",
                    "Forwarded: for=10.1.1.1",
                    "X-Forwarded-For: 192.0.2.7",
                ],
                CONTRADICTION,
            ),
            (P, &["Host: m", "Forwarded: for"], MALFORMED),
            (
                P,
                &["Host: m", "Forwarded: for=192.0.2.7;proto=ftp"],
                MALFORMED,
            ),
            (
                P,
                &["Host: m", "Forwarded: for=192.0.2.7;host=\"a b\""],
                MALFORMED,
            ),
            (P, &["Host: m", "X-Forwarded-Host: a\",x=\"b"], MALFORMED),
            (P, &["Host: m", "X-Forwarded-Host: user@evil"], MALFORMED),
            ("192.0.2.1", &["Host: a\"b"], "192.0.2.1 -"),
        ] {
            assert_eq!(seen(peer, lines), expected, "{peer} {lines:?}");
        }
        let many = format!("X-Forwarded-For: {}", vec!["192.0.2.7"; 33].join(","));
        assert_eq!(seen(P, &[&many]), MALFORMED);
    }
}
