//! URLs of registries: how they are written, and which of them mean Docker Hub or this machine.

use url::{Host, Url};

use super::http::web_url;
use super::section::Section;

/// The name of the upstream Docker Hub.
pub(super) const HUB_NAME: &str = "docker.io";
/// The host that serves Docker Hub's images.
const HUB_HOST: &str = "registry-1.docker.io";
/// Hosts that mean Docker Hub, as aliases.
const HUB_ALIASES: [&str; 3] = [HUB_NAME, "index.docker.io", HUB_HOST];
/// The website, which people write for the registry.
const HUB_WEBSITE: &str = "hub.docker.com";

/// The names that clients may use for an upstream because of its URL.
pub(super) fn hosts(url: &Url) -> Vec<String> {
    let mut hosts = vec![authority(url)];
    if is_hub(url) {
        hosts.extend(HUB_ALIASES.map(str::to_owned));
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The URL at `remoteurl`, if there is a valid one.
pub(super) fn remote_url(section: &Section<'_>) -> Option<Url> {
    registry_url(section, "remoteurl")
}

/// The URL of a registry at a key, if there is a valid one. Messages don't repeat one that holds a
/// password.
pub(super) fn registry_url(section: &Section<'_>, key: &'static str) -> Option<Url> {
    if section.text(key)?.contains('@') {
        section.reject(key, NO_PASSWORDS);
        return None;
    }
    section.value(key, |text| {
        let url = web_url(text).ok_or("write a URL such as https://registry-1.docker.io")?;
        if is_hub(&url) {
            return Ok(hub());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("write only the scheme, host and port");
        }
        Ok(url)
    })
}

/// The reason to reject a URL that may hold a password, which no message repeats.
pub(super) const NO_PASSWORDS: &str =
    "contains an @; write the credentials as `username` and `password` beside it";

#[expect(
    clippy::expect_used,
    reason = "a constant, which every test of defaults parses"
)]
pub(super) fn hub() -> Url {
    Url::parse(&format!("https://{HUB_HOST}")).expect("a valid URL")
}

/// A URL that leads nowhere (RFC 6761, section 6.4).
#[expect(
    clippy::expect_used,
    reason = "a constant, which a test of hosted repositories parses"
)]
pub(super) fn nowhere() -> Url {
    Url::parse("https://none.invalid").expect("a valid URL")
}

/// Whether a URL means Docker Hub, with any path (`/v1/` is seen often).
pub(super) fn is_hub(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    url.port().is_none() && (HUB_ALIASES.contains(&host) || host == HUB_WEBSITE)
}

/// `host[:port]`; a scheme's own port is left out.
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether requests to a URL stay on this machine: its host is an address of the loopback network, or
/// a name for one (RFC 6761, section 6.3).
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback() {
        let is = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(is("http://localhost:1") && is("http://127.9.9.9") && is("http://[::1]:5"));
        assert!(is("http://a.localhost"));
        assert!(!is("http://localhost.example") && !is("http://10.0.0.1"));
    }
}
