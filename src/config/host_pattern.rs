//! Patterns of hosts, as `redirects` has them.

use url::Host;

/// One host (a name or an IP address), all hosts below a domain (`*.example.com`), or every host
/// (`*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Any,
    /// The domain; not the host of that name itself.
    Below(String),
    Exact(Host<String>),
}

/// A text that is no host pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a host pattern is a host without scheme and port, *.domain or *")]
pub struct HostPatternError;

impl std::str::FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        if text == "*" {
            return Ok(Self(Kind::Any));
        }
        if let Some(domain) = text.strip_prefix("*.") {
            return match parse(domain)? {
                Host::Domain(domain) => Ok(Self(Kind::Below(domain))),
                Host::Ipv4(_) | Host::Ipv6(_) => Err(HostPatternError),
            };
        }
        parse(text).map(|host| Self(Kind::Exact(host)))
    }
}

/// An IPv6 address may stand in brackets, as in a URL, or without.
fn parse(text: &str) -> Result<Host<String>, HostPatternError> {
    if let Ok(address) = text.parse() {
        return Ok(Host::Ipv6(address));
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte);
    let bracketed = text.starts_with('[');
    if !text.bytes().all(known) || (text.contains(':') && !bracketed) {
        return Err(HostPatternError);
    }
    Host::parse(text.strip_suffix('.').unwrap_or(text)).or(Err(HostPatternError))
}

impl HostPattern {
    /// Whether `host`, as a URL has it, is meant. A dot at the end of a name makes no difference.
    pub fn matches(&self, host: &Host<&str>) -> bool {
        let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match (&self.0, host) {
            (Kind::Any, _) => true,
            (Kind::Below(domain), Host::Domain(name)) => {
                let name = bare(name);
                let above = name.strip_suffix(domain.as_str());
                above.is_some_and(|above| above.len() > 1 && above.ends_with('.'))
            }
            (Kind::Below(_), _) => false,
            (Kind::Exact(Host::Domain(domain)), Host::Domain(name)) => *domain == bare(name),
            (Kind::Exact(one), other) => one == other,
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Kind::Any => f.write_str("*"),
            Kind::Below(domain) => write!(f, "*.{domain}"),
            Kind::Exact(host) => host.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use url::Url;

    #[test]
    fn a_pattern_matches_the_hosts_that_it_means() {
        for (pattern, meant, others) in [
            ("*", &["a", "a.b", "10.0.0.1", "[::1]"][..], &[][..]),
            (
                "CDN.example",
                &["cdn.example", "CDN.EXAMPLE", "cdn.example."],
                &["a.cdn.example", "example", "xcdn.example"],
            ),
            (
                "*.cdn.example",
                &["a.cdn.example", "a.b.cdn.example."],
                &["cdn.example", "xcdn.example", "cdn.example.org"],
            ),
            (
                "10.0.0.7",
                &["10.0.0.7", "0xa.7"],
                &["10.0.0.70", "a.10.0.0.7x"],
            ),
            (
                "fd00::7",
                &["[fd00::7]", "[fd00:0::7]"],
                &["[fd00::8]", "fd00"],
            ),
            ("[fd00::7]", &["[fd00::7]"], &["[::ffff:10.0.0.7]"]),
        ] {
            let pattern: HostPattern = pattern.parse().unwrap();
            let matches = |host: &&str| {
                let url = Url::parse(&format!("http://{host}/")).unwrap();
                pattern.matches(&url.host().unwrap())
            };
            assert!(meant.iter().all(matches), "{pattern}");
            assert!(!others.iter().any(matches), "{pattern}");
            assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "*.",
            "a.*",
            "*a",
            "*.10.0.0.1",
            "*.[::1]",
            "host:80",
            "[::1]:80",
            "https://a",
            "a/b",
            "a b",
            "u@a",
            "10.0.0.0/8",
            "[::1",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }
}
