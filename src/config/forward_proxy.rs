//! The forward proxy of an upstream.

use std::fmt;

use url::Url;

use super::registry_url::authority;
use super::section::Section;

/// What stands for the user name and password in a printed URL.
const HIDDEN_ACCOUNT: &str = "<hidden>@";

/// The forward proxy of an upstream's requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ForwardProxy {
    /// The one that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` name, if any.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    Url(ProxyUrl),
}

/// The URL of a proxy, scheme `http`, `https`, `socks5` or `socks5h`. It may hold the user name and
/// password for the proxy, which aren't printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// `None` for what isn't the URL of a proxy.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let is_known = matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h");
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
        let is_valid = is_known && is_bare && url.fragment().is_none() && url.has_host();
        is_valid.then_some(Self(url))
    }

    /// With the user name and password.
    pub fn secret(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = if has_account(&self.0) {
            HIDDEN_ACCOUNT
        } else {
            ""
        };
        write!(f, "{}://{account}{}", self.0.scheme(), authority(&self.0))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Messages don't repeat the URL, which may hold a password.
pub(super) fn read(section: &Section<'_>) -> ForwardProxy {
    let Some(text) = section.text("proxyurl") else {
        return ForwardProxy::Environment;
    };
    if text == "none" {
        section.print("proxyurl", text);
        return ForwardProxy::Direct;
    }
    if let Some(url) = ProxyUrl::parse(&text) {
        section.print("proxyurl", url.to_string());
        ForwardProxy::Url(url)
    } else {
        let reason = "is not the URL of a proxy; write one such as http://proxy.example:3128 \
                          (http, https, socks5 or socks5h; without a path), or none";
        section.reject("proxyurl", reason);
        ForwardProxy::Environment
    }
}

fn has_account(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_at_a_proxy_is_not_printed() {
        let proxy = ProxyUrl::parse("http://user:hunter2@proxy.example:3128/").unwrap();
        assert_eq!(proxy.to_string(), "http://<hidden>@proxy.example:3128");
        assert_eq!(format!("{proxy:?}"), proxy.to_string());
        assert_eq!(proxy.secret().password(), Some("hunter2"));
        let printed = ProxyUrl::parse(&proxy.to_string()).unwrap();
        assert_eq!(printed.to_string(), proxy.to_string());
        for wrong in [
            "ftp://proxy",
            "http://proxy/path",
            "http://proxy?x",
            "mailto:x",
        ] {
            assert_eq!(ProxyUrl::parse(wrong), None, "{wrong}");
        }
    }
}
