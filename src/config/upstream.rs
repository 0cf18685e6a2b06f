//! What the default upstream and the named ones have in common.

use std::path::PathBuf;

use url::Url;

use super::address;
use super::authorize::{self, Authorize, CallerAccess};
use super::credentials::{self, Credentials, RepositoryCredentials};
use super::forward_proxy::{self, ForwardProxy};
use super::host_pattern::HostPattern;
use super::http::web_url;
use super::rate_limit::{self, RateLimit};
use super::registry_url::{HUB_NAME, NO_PASSWORDS, authority, is_hub, is_loopback};
use super::section::Section;
use super::tls::TlsVersion;
use crate::oci::RepoName;

/// The longest scope, in bytes: it becomes a part of a URL.
const MAX_SCOPE: usize = 1024;

/// A registry that is mirrored.
#[expect(
    clippy::struct_excessive_bools,
    reason = "keys of the configuration, which don't depend on each other"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// One component of a repository name, such as `ghcr.io`; the default upstream's, which only
    /// logs and metrics show, may have a port.
    pub name: String,
    /// Scheme `http` or `https`, host and port; nothing more.
    pub url: Url,
    pub credentials: Option<Credentials>,
    /// The credentials for some of its repositories, instead of `credentials`; the first match
    /// counts.
    pub repository_credentials: Vec<RepositoryCredentials>,
    /// Whether a request that needs credentials fails when they can't be had; else it is sent
    /// without.
    pub credentials_required: bool,
    /// Whether anonymous callers may pull what the credentials can read, where no rule of `access`
    /// exists.
    pub anonymous: bool,
    /// A file of certificate authorities (PEM), readable when the configuration was loaded.
    pub ca: Option<PathBuf>,
    /// Trust only `ca`, which is set, and not the system's authorities.
    pub ca_only: bool,
    /// What the mirror shows to a server that asks for a client certificate.
    pub client_certificate: Option<ClientCertificate>,
    pub minimum_tls: TlsVersion,
    /// The forward proxy of its requests.
    pub proxy: ForwardProxy,
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
    /// Whose account it is asked with.
    pub caller: CallerAccess,
    /// The group of upstreams with which it shares blobs that not everybody may read. None: with no
    /// other one.
    pub trust: Option<String>,
    /// Further accounts for the repositories without credentials of their own. They share the requests
    /// with `credentials`, which is there if they are.
    pub accounts: Vec<Credentials>,
    pub rate_limit: RateLimit,
    /// Where it is asked, in the order of preference. Empty: at `url`.
    pub endpoints: Vec<Endpoint>,
    pub endpoint_selection: EndpointSelection,
}

impl Upstream {
    /// Whether everybody may read what is cached from it: it is asked without credentials.
    pub fn is_public(&self) -> bool {
        self.caller.authorize == Authorize::Shared && !self.has_account()
    }

    /// Whether whoever may pull from it uses an account of the operator's.
    pub fn lends_account(&self) -> bool {
        self.caller.authorize == Authorize::Shared && self.has_account()
    }

    /// Where it is asked first, and its other endpoints, in the order of preference.
    pub fn ordered_endpoints(&self) -> (Endpoint, Vec<Endpoint>) {
        if let Some((first, others)) = self.endpoints.split_first() {
            return (first.clone(), others.to_vec());
        }
        let own = Endpoint {
            registry: self.clone(),
            prefix: None,
            weight: 0,
            fallback_on_404: false,
        };
        (own, Vec::new())
    }

    /// Whether that is so and nobody has said that everybody may.
    pub(super) fn lends_by_accident(&self) -> bool {
        self.lends_account() && !self.anonymous
    }

    /// Whether the mirror has an account there, if only for some repositories.
    fn has_account(&self) -> bool {
        self.credentials.is_some()
            || !self.repository_credentials.is_empty()
            || self.client_certificate.is_some()
            || self
                .endpoints
                .iter()
                .any(|endpoint| endpoint.registry.has_account())
    }
}

/// One of the places where an upstream is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The upstream with the URL, credentials, TLS and proxy of this endpoint, and without endpoints.
    pub registry: Upstream,
    /// Comes before the repository's name there.
    pub prefix: Option<RepoName>,
    /// Its share of the streams of blobs, in relation to the other weights. 0: none while an endpoint
    /// before it answers.
    pub weight: usize,
    /// Whether its 404 doesn't count as the upstream's answer.
    pub fallback_on_404: bool,
}

impl Endpoint {
    /// `host[:port]` and the prefix: what it is called in logs and metrics.
    pub fn label(&self) -> String {
        let host = authority(&self.registry.url);
        match &self.prefix {
            Some(prefix) => format!("{host}/{prefix}"),
            None => host,
        }
    }
}

/// Which endpoint of an upstream is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointSelection {
    /// The first one in the configuration.
    #[default]
    Order,
    /// The one that answers in the shortest time.
    Latency,
}

/// The files (PEM) of a client certificate with its chain, and of its key; readable when the
/// configuration was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Reads the keys that all upstreams have, without `endpoints`. The aliases are those that the operator
/// gave it, its name included; [`hosts`](super::registry_url::hosts) has the others.
///
/// `inherited`: the defaults of `authorize`, `accessttl` and `accessstale`.
pub(super) fn read(
    section: &Section<'_>,
    name: String,
    url: Url,
    inherited: &CallerAccess,
) -> Upstream {
    let caller = authorize::read(section, inherited);
    let connection = connection(section, name, url, caller);
    let aliases = aliases(section, &connection.name);
    Upstream {
        is_docker_hub: is_hub(&connection.url) || aliases.iter().any(|alias| alias == HUB_NAME),
        anonymous: section.bool("anonymous", false),
        aliases,
        trust: authorize::trust(section),
        rate_limit: section.section("ratelimit", rate_limit::read),
        ..connection
    }
}

/// Reads how a registry is asked: credentials, TLS, proxy. An upstream's own keys, and those of each of
/// its endpoints.
pub(super) fn connection(
    section: &Section<'_>,
    name: String,
    url: Url,
    caller: CallerAccess,
) -> Upstream {
    let credentials = credentials::read(section);
    let repository_credentials = credentials::of_repositories(section);
    let accounts = credentials::accounts(section, credentials.as_ref());
    let has_credentials = credentials.is_some() || !repository_credentials.is_empty();
    let credentials_required = section.bool("credentialsrequired", true);
    let ca = credentials::file(section, "ca");
    let insecure = section.bool("insecure", false);
    let sends_credentials = has_credentials || caller.authorize == Authorize::Caller;
    if insecure && url.scheme() == "https" && sends_credentials {
        let host = authority(&url);
        let message = format!(
            "the credentials for {host} are sent to a server whose certificate isn't checked"
        );
        section.warning("username", message);
    }
    let plain_http = match caller.authorize {
        Authorize::Shared => plain_http(section, &url, has_credentials, "username"),
        Authorize::Caller => plain_http(section, &url, true, "authorize"),
    };
    if caller.authorize == Authorize::Caller && has_credentials {
        let message = "isn't used: with `authorize: caller` each client uses its own account";
        section.doubt("username", message);
    }
    let client_certificate = client_certificate(section);
    if caller.authorize == Authorize::Caller && client_certificate.is_some() {
        let reason = "is an identity of the mirror's, which every client would use with `authorize: \
                      caller`; remove it";
        section.reject("certificate", reason);
    }
    Upstream {
        name,
        url,
        credentials,
        repository_credentials,
        credentials_required,
        anonymous: false,
        ca,
        ca_only: ca_only(section),
        client_certificate,
        minimum_tls: minimum_tls(section),
        proxy: forward_proxy::read(section),
        insecure,
        plain_http,
        realm: realm(section, plain_http),
        scope: section.value("scope", scope),
        redirects: section.values("redirects", |text, _| text.parse()),
        aliases: Vec::new(),
        is_docker_hub: false,
        caller,
        trust: None,
        accounts,
        rate_limit: RateLimit::default(),
        endpoints: Vec::new(),
        endpoint_selection: EndpointSelection::default(),
    }
}

fn aliases(section: &Section<'_>, name: &str) -> Vec<String> {
    let mut aliases = section.values("aliases", |text, _| {
        address::alias(text).ok_or("write host or host:port")
    });
    aliases.push(name.to_owned());
    aliases.sort();
    aliases.dedup();
    aliases
}

fn ca_only(section: &Section<'_>) -> bool {
    let ca_only = section.bool("caonly", false);
    if ca_only && section.text("ca").is_none() {
        let ca = section.path("ca");
        let reason = format!("is true, but `{ca}` isn't set: no certificate would be trusted");
        section.reject("caonly", reason);
    }
    ca_only
}

fn client_certificate(section: &Section<'_>) -> Option<ClientCertificate> {
    let certificate = credentials::file(section, "certificate");
    let key = credentials::file(section, "key");
    for (given, missing) in [("certificate", "key"), ("key", "certificate")] {
        if section.text(given).is_some() && section.text(missing).is_none() {
            let missing = section.path(missing);
            let reason = format!("is set, but `{missing}` isn't; write both or none");
            section.reject(given, reason);
        }
    }
    Some(ClientCertificate {
        certificate: certificate?,
        key: key?,
    })
}

fn minimum_tls(section: &Section<'_>) -> TlsVersion {
    let versions = [("tls1.2", TlsVersion::Tls12), ("tls1.3", TlsVersion::Tls13)];
    let advice = "write tls1.2 or tls1.3";
    section.choice("minimumtls", advice, &versions, TlsVersion::default())
}

/// Whether credentials and redirects may use plain HTTP. Credentials for a plain HTTP upstream on
/// another machine need it.
///
/// `source`: the key because of which there are credentials.
fn plain_http(
    section: &Section<'_>,
    url: &Url,
    has_credentials: bool,
    source: &'static str,
) -> bool {
    let plain_http = section.bool("plainhttp", false);
    if has_credentials && url.scheme() == "http" && !is_loopback(url) {
        let host = url.host_str().unwrap_or_default();
        if plain_http {
            let message = format!("the credentials for {host} are sent over plain HTTP");
            section.warning(source, message);
        } else {
            let key = section.path("plainhttp");
            let message = format!(
                "the credentials for {host} would be sent over plain HTTP; use an https:// URL, or \
                 write `{key}: true` to permit it"
            );
            section.problem(source, message);
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
