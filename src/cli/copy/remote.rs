//! The options of one side of a copy, and the client of its registry.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use url::Url;

use super::UsageError;
use crate::app;
use crate::clock::Clock;
use crate::config::{
    self, CallerAccess, ClientCertificate, Config, Credentials, ForwardProxy, Listen, RateLimit,
    Written, is_loopback,
};
use crate::copy::HUB;
use crate::metrics::Metrics;
use crate::oci::RepoName;
use crate::upstream::{Upstream, find_account};

/// How long a server of this machine may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The options of one side.
#[derive(Debug, Clone, Default)]
pub(super) struct RemoteOptions {
    username: Option<String>,
    password_file: Option<PathBuf>,
    authfile: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    insecure: bool,
    plain_http: bool,
}

/// Declares the options of a side, whose names begin with `$prefix`.
macro_rules! side {
    ($name:ident, $prefix:literal, $side:literal) => {
        #[derive(Debug, clap::Args)]
        #[group(id = concat!($prefix, "-options"))]
        pub(super) struct $name {
            #[doc = concat!("Log in to the ", $side, " as this user")]
            #[arg(long = concat!($prefix, "-username"), id = concat!($prefix, "-username"), value_name = "NAME", requires = concat!($prefix, "-password-file"))]
            username: Option<String>,
            /// The file with the user's password
            #[arg(long = concat!($prefix, "-password-file"), id = concat!($prefix, "-password-file"), value_name = "FILE", requires = concat!($prefix, "-username"))]
            password_file: Option<PathBuf>,
            /// A config.json of Docker or auth.json of containers [default: those of the user]
            #[arg(long = concat!($prefix, "-authfile"), id = concat!($prefix, "-authfile"), value_name = "FILE", conflicts_with = concat!($prefix, "-username"))]
            authfile: Option<PathBuf>,
            /// Trust the certificate authorities in this file (PEM), too
            #[arg(long = concat!($prefix, "-ca"), id = concat!($prefix, "-ca"), value_name = "FILE")]
            ca: Option<PathBuf>,
            /// A client certificate (PEM)
            #[arg(long = concat!($prefix, "-cert"), id = concat!($prefix, "-cert"), value_name = "FILE", requires = concat!($prefix, "-key"))]
            certificate: Option<PathBuf>,
            /// The key of the client certificate (PEM)
            #[arg(long = concat!($prefix, "-key"), id = concat!($prefix, "-key"), value_name = "FILE", requires = concat!($prefix, "-cert"))]
            key: Option<PathBuf>,
            /// Don't check the certificate of the registry
            #[arg(long = concat!($prefix, "-insecure"), id = concat!($prefix, "-insecure"))]
            insecure: bool,
            /// Use plain HTTP, also for credentials; the default for registries of this machine, unless TLS
            /// options are given
            #[arg(long = concat!($prefix, "-plain-http"), id = concat!($prefix, "-plain-http"))]
            plain_http: bool,
        }

        impl $name {
            pub(super) fn options(&self) -> RemoteOptions {
                RemoteOptions {
                    username: self.username.clone(),
                    password_file: self.password_file.clone(),
                    authfile: self.authfile.clone(),
                    ca: self.ca.clone(),
                    certificate: self.certificate.clone(),
                    key: self.key.clone(),
                    insecure: self.insecure,
                    plain_http: self.plain_http,
                }
            }
        }
    };
}

side!(SourceOptions, "src", "source");
side!(DestinationOptions, "dst", "destination");

impl RemoteOptions {
    fn has_tls(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.insecure
    }

    /// The URL of a registry.
    fn url(&self, host: &str) -> anyhow::Result<Url> {
        let address = if host == HUB {
            "registry-1.docker.io"
        } else {
            host
        };
        let url = Url::parse(&format!("https://{address}")).context("the host isn't one")?;
        if self.plain_http || (is_loopback(&url) && !self.has_tls()) {
            return Url::parse(&format!("http://{address}")).context("the host isn't one");
        }
        Ok(url)
    }

    /// How a registry is asked: as the configuration says if that names it, and as these options say.
    pub(super) async fn upstream(
        &self,
        host: &str,
        repository: &RepoName,
        config: Option<&Config>,
    ) -> anyhow::Result<config::Upstream> {
        let configured = config.and_then(|config| named(config, host));
        let mut upstream = match configured {
            Some(configured) => configured.clone(),
            None => unconfigured(host, self.url(host)?),
        };
        // A copy has its own account, and asks one place.
        upstream.caller = CallerAccess::default();
        upstream.rate_limit = RateLimit::default();
        upstream.endpoints.clear();
        upstream.plain_http |= self.plain_http;
        upstream.insecure |= self.insecure;
        upstream.ca = self.ca.clone().or(upstream.ca);
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            upstream.client_certificate = Some(ClientCertificate {
                certificate: certificate.clone(),
                key: key.clone(),
            });
        }
        self.give_account(&mut upstream, repository).await?;
        Ok(upstream)
    }

    /// The server of a configuration, if it runs on this machine: what is pulled from its upstreams through
    /// it is cached.
    pub(super) async fn server(
        &self,
        config: &Config,
        repository: &RepoName,
    ) -> anyhow::Result<Option<config::Upstream>> {
        let Some(mut server) = server(config).await else {
            return Ok(None);
        };
        self.give_account(&mut server, repository).await?;
        Ok(Some(server))
    }

    async fn give_account(
        &self,
        upstream: &mut config::Upstream,
        repository: &RepoName,
    ) -> anyhow::Result<()> {
        if let (Some(username), Some(password)) = (&self.username, &self.password_file) {
            if username.contains(':') {
                return Err(UsageError("a user name has no colon".to_owned()).into());
            }
            upstream.repository_credentials.clear();
            upstream.credentials = Some(Credentials::Files {
                username: Written::Text(SecretString::from(username.clone())),
                password: Written::File(password.clone()),
            });
            return Ok(());
        }
        if upstream.credentials.is_some() && self.authfile.is_none() {
            return Ok(());
        }
        let files = match &self.authfile {
            Some(file) => vec![file.clone()],
            None => config::account_files(),
        };
        if let Some((file, is_sure)) = find_account(&files, upstream, repository).await? {
            upstream.credentials = Some(Credentials::DockerConfig(file));
            // A helper for all registries may have nothing for this one.
            upstream.credentials_required = is_sure;
        }
        Ok(())
    }
}

/// A registry that no configuration names.
fn unconfigured(host: &str, url: Url) -> config::Upstream {
    config::Upstream {
        name: host.to_owned(),
        is_docker_hub: host == HUB,
        aliases: vec![host.to_owned()],
        url,
        ..Config::default_config().proxy.default
    }
}

/// The upstream that a host is the name of.
pub(super) fn named<'a>(config: &'a Config, host: &str) -> Option<&'a config::Upstream> {
    let mut all = config.proxy.all_upstreams();
    all.find(|upstream| upstream.aliases.iter().any(|alias| alias == host))
}

/// The client of a registry.
pub(super) fn client(upstream: &config::Upstream) -> anyhow::Result<Arc<Upstream>> {
    let timeouts = config::Timeouts::default();
    let client = app::upstream_client(upstream, timeouts, Clock::system(), &Metrics::new())?;
    Ok(Arc::new(client))
}

/// The server of a configuration as a registry, if it runs on this machine.
async fn server(config: &Config) -> Option<config::Upstream> {
    let Listen::Tcp(address) = &config.http.listen else {
        return None;
    };
    let (host, port) = address.rsplit_once(':')?;
    let host = if matches!(host, "" | "0.0.0.0" | "[::]") {
        "127.0.0.1"
    } else {
        host
    };
    let authority = format!("{host}:{port}");
    let connected = tokio::net::TcpStream::connect(&authority);
    tokio::time::timeout(CONNECT, connected).await.ok()?.ok()?;
    let is_secured = config.http.tls.is_some();
    let scheme = if is_secured { "https" } else { "http" };
    let url = Url::parse(&format!("{scheme}://{authority}")).ok()?;
    Some(config::Upstream {
        // It is this machine, whatever name its certificate has.
        insecure: is_secured,
        proxy: ForwardProxy::Direct,
        ..unconfigured(&authority, url)
    })
}
