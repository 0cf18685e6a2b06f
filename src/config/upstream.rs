//! What the default upstream and the named ones have in common.

use std::path::PathBuf;

use secrecy::SecretString;
use url::{Host, Url};

use super::address;
use super::host_pattern::HostPattern;
use super::http::web_url;
use super::section::Section;

/// The name of the upstream Docker Hub.
pub(super) const HUB_NAME: &str = "docker.io";
/// The host that serves Docker Hub's images.
const HUB_HOST: &str = "registry-1.docker.io";
/// Hosts that mean Docker Hub, as aliases.
const HUB_ALIASES: [&str; 3] = [HUB_NAME, "index.docker.io", HUB_HOST];
/// What stands for a password in print.
const HIDDEN: &str = "<hidden>";
/// The website, which people write for the registry.
const HUB_WEBSITE: &str = "hub.docker.com";
/// The longest scope, in bytes: it becomes a part of a URL.
const MAX_SCOPE: usize = 1024;

/// A registry that is mirrored.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the operator's, which don't depend on each other"
)]
pub struct Upstream {
    /// One component of a repository name, such as `ghcr.io`; the default upstream's, which only
    /// logs and metrics show, may have a port.
    pub name: String,
    /// Scheme `http` or `https`, host and port; nothing more.
    pub url: Url,
    pub credentials: Option<Credentials>,
    /// Whether anonymous callers may pull what the credentials can read, where no rule of `access`
    /// exists.
    pub anonymous: bool,
    /// A file of certificate authorities (PEM), readable when the configuration was loaded.
    pub ca: Option<PathBuf>,
    /// Don't check the server's certificate.
    pub insecure: bool,
    /// Permit credentials over plain HTTP to other machines, and redirects and token services that
    /// lead from https to http.
    pub plain_http: bool,
    /// The token service (scheme `http` or `https`, host, port) that receives the credentials
    /// although it is on another site than the upstream.
    pub realm: Option<Url>,
    /// The scope of all tokens, in which `{name}` stands for the repository's name.
    pub scope: Option<String>,
    /// Hosts that redirects and token services may lead to although their addresses are internal.
    pub redirects: Vec<HostPattern>,
    /// The names that clients may use for it (`host[:port]`, lower case, sorted): its name, its
    /// URL's host and more.
    pub aliases: Vec<String>,
    /// Whether it answers to `docker.io`: names of one component get `library/`.
    pub is_docker_hub: bool,
}

impl Upstream {
    /// Whether requests to it carry an account of the operator's, of whatever kind.
    pub const fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }
}

/// User name and password. They go to the upstream's own origin and to a token service that belongs
/// to it or that the operator named, and to nobody else.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Without a colon, which separates it from the password (RFC 7617).
    pub username: String,
    pub password: SecretString,
}

/// Reads the keys that all upstreams have.
pub(super) fn read(section: &Section<'_>, name: String, url: Url) -> Upstream {
    let credentials = credentials(section);
    let ca = authorities(section);
    let insecure = section.bool("insecure", false);
    if insecure && url.scheme() == "https" && credentials.is_some() {
        let host = authority(&url);
        let message = format!(
            "the credentials for {host} are sent to a server whose certificate isn't checked"
        );
        section.warning("username", message);
    }
    let plain_http = plain_http(section, &url, credentials.is_some());
    let realm = realm(section, plain_http);
    let scope = section.value("scope", scope);
    let redirects = section.values("redirects", |text, _| text.parse());
    let aliases = aliases(section, &name, &url);
    Upstream {
        is_docker_hub: aliases.iter().any(|alias| alias == HUB_NAME),
        name,
        url,
        credentials,
        anonymous: section.bool("anonymous", false),
        ca,
        insecure,
        plain_http,
        realm,
        scope,
        redirects,
        aliases,
    }
}

fn aliases(section: &Section<'_>, name: &str, url: &Url) -> Vec<String> {
    let mut aliases = section.values("aliases", |text, _| {
        address::alias(text).ok_or("write host or host:port")
    });
    aliases.extend([name.to_owned(), authority(url)]);
    if is_hub(url) {
        aliases.extend(HUB_ALIASES.map(str::to_owned));
    }
    aliases.sort();
    aliases.dedup();
    section.print("aliases", aliases.clone());
    aliases
}

fn credentials(section: &Section<'_>) -> Option<Credentials> {
    let (given, missing) = match (section.text("username"), section.text("password")) {
        (Some(username), Some(_)) if username.contains(':') => {
            section.reject(
                "username",
                "contains a colon, which would separate it from the password; remove it",
            );
            return None;
        }
        (Some(username), Some(password)) => {
            section.print("username", username.as_str());
            section.print("password", HIDDEN);
            return Some(Credentials {
                username,
                password: SecretString::from(password),
            });
        }
        (Some(_), None) => ("username", "password"),
        (None, Some(_)) => ("password", "username"),
        (None, None) => return None,
    };
    let missing = section.path(missing);
    let reason = format!("is set, but `{missing}` isn't; write both or none");
    section.reject(given, reason);
    None
}

/// The file of certificate authorities; opened once, so that a wrong path shows at the start.
fn authorities(section: &Section<'_>) -> Option<PathBuf> {
    let path = section.value("ca", |text| {
        match std::fs::File::open(text).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Ok(text.to_owned()),
            Ok(_) => Err("it is not a file".to_owned()),
            Err(error) => Err(format!("it can't be read: {error}")),
        }
    });
    path.map(PathBuf::from)
}

/// Whether credentials and redirects may use plain HTTP. Credentials for a plain HTTP upstream on
/// another machine need it.
fn plain_http(section: &Section<'_>, url: &Url, has_credentials: bool) -> bool {
    let plain_http = section.bool("plainhttp", false);
    if has_credentials && url.scheme() == "http" && !is_loopback(url) {
        let host = url.host_str().unwrap_or_default();
        if plain_http {
            let message = format!("the credentials for {host} are sent over plain HTTP");
            section.warning("username", message);
        } else {
            let key = section.path("plainhttp");
            let message = format!(
                "the credentials for {host} would be sent over plain HTTP; use an https:// URL, or \
                 write `{key}: true` to permit it"
            );
            section.problem("username", message);
        }
    }
    plain_http
}

/// The token service that receives the credentials although it is on another site.
fn realm(section: &Section<'_>, plain_http: bool) -> Option<Url> {
    if section.text("realm")?.contains('@') {
        section.reject("realm", NO_PASSWORDS);
        return None;
    }
    section.value("realm", |text| {
        let url = web_url(text)
            .ok_or_else(|| "write a URL such as https://auth.example.com/token".to_owned())?;
        if url.scheme() == "http" && !is_loopback(&url) && !plain_http {
            let key = section.path("plainhttp");
            return Err(format!(
                "credentials would be sent there over plain HTTP: use an https:// URL, or write \
                 `{key}: true` to permit it"
            ));
        }
        Ok(url)
    })
}

/// The scope of all tokens of an upstream.
fn scope(text: &str) -> Result<String, &'static str> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let valid = printable && !text.trim().is_empty() && text.len() <= MAX_SCOPE;
    let scope = valid.then(|| text.to_owned());
    scope.ok_or("write a scope such as repository:{name}:pull")
}

/// The URL at `remoteurl`, if there is a valid one. Messages don't repeat one that holds a password.
pub(super) fn remote_url(section: &Section<'_>) -> Option<Url> {
    if section.text("remoteurl")?.contains('@') {
        section.reject("remoteurl", NO_PASSWORDS);
        return None;
    }
    section.value("remoteurl", |text| {
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
const NO_PASSWORDS: &str =
    "contains an @; write the credentials as `username` and `password` beside it";

#[expect(
    clippy::expect_used,
    reason = "a constant, which every test of defaults parses"
)]
pub(super) fn hub() -> Url {
    Url::parse(&format!("https://{HUB_HOST}")).expect("a valid URL")
}

/// Whether a URL means Docker Hub, with any path (`/v1/` is seen often).
pub(super) fn is_hub(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    url.port().is_none() && (HUB_ALIASES.contains(&host) || host == HUB_WEBSITE)
}

/// `host[:port]`; a scheme's own port is left out.
pub(super) fn authority(url: &Url) -> String {
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
