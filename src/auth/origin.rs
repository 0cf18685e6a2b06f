//! Where a caller is and how it reaches the server, behind reverse proxies.
//!
//! `Forwarded` (RFC 7239) and `X-Forwarded-*` count only when they come from a trusted proxy. Each
//! proxy appends an entry for whom it serves: so the caller is the last address that is no trusted
//! proxy's, and what stands before it may be made up. A caller whose address the proxies don't tell
//! has none: it must never be taken for the proxy.

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
    /// None if they don't tell.
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
        Ok(hops.map_or(address, |hops| hops.address))
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
            hops = self.hops(presented.headers).ok()?.unwrap_or_default();
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

    /// None without such headers: then the proxy itself is the caller.
    fn hops(&self, headers: &HeaderMap) -> Result<Option<Hops>, AuthError> {
        let forwarded = self.forwarded(headers)?;
        let x_forwarded = self.x_forwarded(headers)?;
        match (forwarded, x_forwarded) {
            // A proxy that knows one of them passes the other on as the client made it up.
            (Some(one), Some(other)) if one.address.is_none() || one.address != other.address => {
                Err(AuthError::Malformed(CONTRADICTION))
            }
            (Some(one), Some(other)) => Ok(Some(Hops {
                proto: one.proto.or(other.proto),
                host: one.host.or(other.host),
                address: one.address,
            })),
            (one, other) => Ok(one.or(other)),
        }
    }

    fn forwarded(&self, headers: &HeaderMap) -> Result<Option<Hops>, AuthError> {
        if !headers.contains_key(FORWARDED) {
            return Ok(None);
        }
        let entries = list(headers, FORWARDED.as_str(), quoted)?;
        let mut hops = Hops::default();
        // From the nearest proxy to the caller: each entry is believed because its writer is trusted.
        for entry in entries.iter().rev() {
            let mut node = None;
            for pair in quoted(entry, ';')? {
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
            if self.follow(node, &mut hops)? {
                break;
            }
        }
        Ok(Some(hops))
    }

    fn x_forwarded(&self, headers: &HeaderMap) -> Result<Option<Hops>, AuthError> {
        const NAMES: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
        if !NAMES.iter().any(|name| headers.contains_key(*name)) {
            return Ok(None);
        }
        let [nodes, scheme, name] = NAMES.map(|name| list(headers, name, plain));
        let (scheme, name) = (scheme?.pop(), name?.pop());
        let mut hops = Hops {
            address: None,
            proto: scheme.as_deref().map(proto).transpose()?,
            host: name.as_deref().map(host).transpose()?,
        };
        for node in nodes?.iter().rev() {
            if self.follow(Some(node), &mut hops)? {
                break;
            }
        }
        Ok(Some(hops))
    }

    /// Takes over whom a trusted proxy serves. Returns whether that is the caller, and not another
    /// trusted proxy.
    fn follow(&self, node: Option<&str>, hops: &mut Hops) -> Result<bool, AuthError> {
        hops.address = node.map(address).transpose()?.flatten();
        Ok(!hops.address.is_some_and(|address| self.trusts(address)))
    }
}

/// Cuts a text at a separator into its parts, trimmed, without empty ones.
type Split = for<'a> fn(&'a str, char) -> Result<Vec<&'a str>, AuthError>;

/// All entries of a field that is a list, in their order.
fn list(headers: &HeaderMap, name: &str, split: Split) -> Result<Vec<String>, AuthError> {
    let mut entries = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().ok().filter(|text| text.len() <= MAX_FIELD);
        let text = text.ok_or(AuthError::Malformed(MALFORMED))?;
        entries.extend(split(text, ',')?.into_iter().map(str::to_owned));
    }
    if entries.len() > MAX_ENTRIES {
        return Err(AuthError::Malformed(MALFORMED));
    }
    Ok(entries)
}

/// For `X-Forwarded-*`, where quotes mean nothing.
#[expect(clippy::unnecessary_wraps, reason = "one type with `quoted`")]
fn plain(text: &str, separator: char) -> Result<Vec<&str>, AuthError> {
    Ok(trimmed(text.split(separator)))
}

/// For `Forwarded`: not at separators in quoted strings (RFC 9110, section 5.6.4). A quote without an
/// end would hide the entries that the proxies appended.
fn quoted(text: &str, separator: char) -> Result<Vec<&str>, AuthError> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let parts = text.split(|c| {
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = is_quoted && c == '\\' && !is_escaped;
        c == separator && !is_quoted
    });
    let parts = trimmed(parts);
    let is_complete = !is_quoted;
    is_complete
        .then_some(parts)
        .ok_or(AuthError::Malformed(MALFORMED))
}

fn trimmed<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    parts
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

/// The address of a node (RFC 7239, section 6); None for `unknown` and for a name that a proxy made up.
fn address(node: &str) -> Result<Option<IpAddr>, AuthError> {
    let name = node.split(':').next().unwrap_or_default();
    if name.starts_with('_') || name.eq_ignore_ascii_case("unknown") {
        return Ok(None);
    }
    // A port may be made up, too.
    let node = node.rsplit_once(":_").map_or(node, |(node, _port)| node);
    let address = ip(node).ok_or(AuthError::Malformed(MALFORMED))?;
    Ok(Some(address))
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
mod tests;
