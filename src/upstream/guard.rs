//! Keeps an upstream from leading this mirror to internal addresses.
//!
//! The upstream's own origin and the configured token service are the operator's choice. Every
//! other URL is the upstream's choice: a redirect, or the realm of a challenge. Such a host is
//! resolved by [`Guard`] itself, which gives the HTTP library only the addresses that are permitted;
//! a name can't change its address between the check and the connection. A literal address is
//! checked before the request.
//!
//! What is permitted follows from the address that the upstream's own responses come from. It only
//! ever narrows: an upstream that has once answered from a public address has the reach of a public
//! one until the mirror is restarted. Otherwise it could gain a wider reach by changing its own
//! address. Hosts that `redirects` names are permitted whatever their address is.
//!
//! A forward proxy resolves names itself, so there only literal addresses can be checked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::address::Network;
use super::redirect::same_origin;
use crate::config;

/// Why a host isn't asked: the upstream named it, and it has an internal address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} has the {network} address {address}, where this upstream may not lead; to permit it, \
     add `redirects: [\"{host}\"]` to the upstream {upstream} in the configuration"
)]
pub struct InternalTarget {
    host: Box<str>,
    address: IpAddr,
    network: Network,
    upstream: Box<str>,
}

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// To a host of the operator's choice.
    Open,
    /// To another host, through a proxy, which is left to find its address.
    Proxied,
    /// Only to addresses that the guard permits.
    Guarded,
}

/// Every bit, so that the first response narrows it to the reach of its address.
const UNKNOWN: u8 = u8::MAX;

/// Judges hosts that one upstream names.
pub(super) struct Guard {
    upstream: Arc<config::Upstream>,
    /// Bits of [`Network::reach`]; [`UNKNOWN`] until the upstream has answered.
    reach: AtomicU8,
    /// The proxies of the configuration or the environment, as the HTTP library reads them, too.
    proxies: Matcher,
}

impl Guard {
    pub(super) fn new(upstream: Arc<config::Upstream>, proxies: Matcher) -> Self {
        Self {
            upstream,
            reach: AtomicU8::new(UNKNOWN),
            proxies,
        }
    }

    /// How a request for `url` is sent, if at all.
    pub(super) fn route(&self, url: &Url) -> Result<Route, InternalTarget> {
        let mut chosen = std::iter::once(&self.upstream.url).chain(&self.upstream.realm);
        if chosen.any(|own| same_origin(own, url)) {
            return Ok(Route::Open);
        }
        if let (Some(host), Some(address)) = (url.host(), literal(url)) {
            self.check(&host, address)?;
        }
        Ok(if self.is_proxied(url) {
            Route::Proxied
        } else {
            Route::Guarded
        })
    }

    /// Notes where a response to a request for `url` came from.
    pub(super) fn answered(&self, url: &Url, remote: Option<SocketAddr>) {
        if !same_origin(&self.upstream.url, url) {
            return;
        }
        let address = if self.is_proxied(url) {
            literal(url)
        } else {
            remote.map(|remote| remote.ip())
        };
        // What isn't known is taken for public, which permits the least.
        let network = address.map_or(Network::Public, Network::of);
        self.narrow(network.reach());
    }

    pub(super) fn narrow(&self, reach: u8) {
        let current = self.reach.load(Ordering::Acquire);
        // Rarely: otherwise each request would write to memory that all of them share.
        if current & reach != current {
            self.reach.fetch_and(reach, Ordering::AcqRel);
        }
    }

    /// Whether a proxy could read what is sent to `url`. For https, it only passes a connection on.
    pub(super) fn exposes(&self, url: &Url) -> bool {
        url.scheme() != "https" && self.is_proxied(url)
    }

    pub(super) fn is_proxied(&self, url: &Url) -> bool {
        let uri = url.as_str().parse::<http::Uri>();
        uri.is_ok_and(|uri| self.proxies.intercept(&uri).is_some())
    }

    /// Whether the upstream may lead to a host that has this address.
    fn check(&self, host: &Host<&str>, address: IpAddr) -> Result<(), InternalTarget> {
        let reach = match self.reach.load(Ordering::Acquire) {
            UNKNOWN => Network::Public.reach(),
            reach => reach,
        };
        let network = Network::of(address);
        let mut named = self.upstream.redirects.iter();
        if reach & network.bit() != 0 || named.any(|pattern| pattern.matches(host)) {
            return Ok(());
        }
        Err(InternalTarget {
            host: host.to_string().into(),
            address,
            network,
            upstream: self.upstream.name.as_str().into(),
        })
    }

    /// The addresses of `host` that are permitted; at least one.
    fn permitted(
        &self,
        host: &str,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, InternalTarget> {
        let mut permitted = Vec::new();
        let mut refused = None;
        for address in found {
            match self.check(&Host::Domain(host), address.ip()) {
                Ok(()) => permitted.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if permitted.is_empty() => Err(error),
            _ => Ok(permitted),
        }
    }
}

/// The address that a URL names without the help of DNS.
fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Resolves names for the guarded clients.
pub(super) struct GuardedResolver(pub Arc<Guard>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str();
            let found = tokio::net::lookup_host((host, 0)).await?;
            let permitted = guard.permitted(host, found)?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// The guard's refusal among the causes of the HTTP library's error.
pub(super) fn refusal(error: &reqwest::Error) -> Option<InternalTarget> {
    let first = std::error::Error::source(error);
    let mut causes = std::iter::successors(first, |cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn guard(own: &str, named: &[&str], proxies: Matcher) -> Guard {
        let mut config = crate::upstream::tests::config(own);
        config.realm = Some(url("http://10.9.9.9/token"));
        config.redirects = named.iter().map(|host| host.parse().unwrap()).collect();
        Guard::new(Arc::new(config), proxies)
    }

    fn direct(own: &str, named: &[&str]) -> Guard {
        guard(own, named, Matcher::builder().build())
    }

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 443)
    }

    const TARGETS: [&str; 4] = [
        "http://1.1.1.1/",
        "http://10.0.0.1/",
        "http://169.254.169.254/",
        "http://127.0.0.1:8080/",
    ];

    fn permitted(guard: &Guard) -> Vec<bool> {
        TARGETS
            .iter()
            .map(|target| guard.route(&url(target)).is_ok())
            .collect()
    }

    #[test]
    fn the_upstreams_own_address_decides_which_addresses_are_permitted() {
        for (address, expected) in [
            ("1.2.3.4", [true, false, false, false]),
            ("10.0.0.9", [true, true, false, false]),
            ("fd00::9", [true, true, false, false]),
            ("169.254.1.1", [true, true, true, false]),
            ("127.0.0.1", [true, true, false, true]),
            ("::ffff:127.0.0.1", [true, true, false, true]),
        ] {
            let guard = direct("https://registry.example", &[]);
            let unknown = [true, false, false, false];
            assert_eq!(permitted(&guard), unknown);
            // Another host's response says nothing about the upstream.
            guard.answered(&url("https://cdn.example"), Some(at("127.0.0.1")));
            assert_eq!(permitted(&guard), unknown);
            guard.answered(&url("https://registry.example/v2/"), Some(at(address)));
            assert_eq!(permitted(&guard), expected, "{address}");
        }
    }

    #[test]
    fn any_spelling_of_an_internal_address_is_refused() {
        let guard = direct("https://registry.example", &[]);
        for target in [
            "http://2130706433/",
            "http://0x7f.1/",
            "http://127.1./",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://0/",
            "http://[::]/",
        ] {
            assert!(guard.route(&url(target)).is_err(), "{target}");
        }
    }

    #[test]
    fn the_reach_only_narrows() {
        let own = url("https://registry.example");
        let guard = direct(own.as_str(), &[]);
        guard.answered(&own, Some(at("127.0.0.1")));
        assert_eq!(permitted(&guard), [true, true, false, true]);
        guard.answered(&own, Some(at("10.0.0.1")));
        assert_eq!(permitted(&guard), [true, true, false, false]);
        guard.answered(&own, None);
        for address in ["127.0.0.1", "10.0.0.1", "169.254.1.1"] {
            guard.answered(&own, Some(at(address)));
            assert_eq!(permitted(&guard), [true, false, false, false]);
        }
    }

    #[test]
    fn hosts_that_the_operator_configured_are_permitted() {
        let guard = direct("http://127.0.0.1:5000", &["10.0.0.1", "*.internal"]);
        assert_eq!(permitted(&guard), [true, true, false, false]);
        for chosen in ["http://127.0.0.1:5000/x", "http://10.9.9.9/other"] {
            assert_eq!(guard.route(&url(chosen)), Ok(Route::Open), "{chosen}");
        }
        assert!(guard.route(&url("http://10.9.9.9:81/")).is_err());
        let found = || std::iter::once(at("10.0.0.8"));
        assert!(guard.permitted("s3.internal", found()).is_ok());
        assert!(guard.permitted("s3.example", found()).is_err());
    }

    #[test]
    fn only_the_permitted_addresses_of_a_name_are_used() {
        let guard = direct("https://registry.example", &[]);
        let both = [at("10.0.0.8"), at("1.1.1.1"), at("::1")];
        let permitted = guard.permitted("cdn.example", both.into_iter());
        assert_eq!(permitted.unwrap(), [at("1.1.1.1")]);
        let none = guard.permitted("cdn.example", std::iter::once(at("64:ff9b::a9fe:a9fe")));
        assert_eq!(
            none.unwrap_err().to_string(),
            "cdn.example has the link-local address 64:ff9b::a9fe:a9fe, where this upstream may not \
             lead; to permit it, add `redirects: [\"cdn.example\"]` to the upstream test in the \
             configuration"
        );
        assert_eq!(
            guard.permitted("cdn.example", std::iter::empty()),
            Ok(vec![])
        );
    }

    #[test]
    fn a_proxy_resolves_names_but_literal_addresses_are_checked() {
        let proxies = Matcher::builder().all("http://10.0.0.2:3128");
        let own = url("https://registry.example");
        let guard = guard(own.as_str(), &[], proxies.no("direct.example").build());
        // The address is the proxy's.
        guard.answered(&own, Some(at("10.0.0.2")));
        assert_eq!(permitted(&guard), [true, false, false, false]);
        let route = |target| guard.route(&url(target)).unwrap();
        assert_eq!(route("https://cdn.example/"), Route::Proxied);
        assert_eq!(route("https://direct.example/"), Route::Guarded);
    }
}
