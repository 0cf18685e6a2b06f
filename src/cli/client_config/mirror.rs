//! The mirror as clients see it, and the registries that they pull through it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use http::uri::Authority;
use url::Url;

use super::edit::{FileEdit, Pem};
use crate::config::{self, Config, Upstream};

/// The name of Docker Hub in the names of images.
pub(super) const HUB: &str = "docker.io";
const HUB_SERVER: &str = "https://registry-1.docker.io";
/// The value of `--upstream` for all registries.
const ALL: &str = "all";

/// The mirror's address, and the certificates for the connection to it.
#[derive(Debug)]
pub(super) struct Mirror {
    is_https: bool,
    /// Host, and port unless it is the scheme's.
    authority: String,
    ca: Option<Pem>,
    /// Certificate and key.
    client: Option<(Pem, Pem)>,
}

/// Where a client finds the certificates.
#[derive(Debug, Default, Clone)]
pub(super) struct Placed {
    pub(super) ca: Option<String>,
    /// Certificate and key.
    pub(super) client: Option<(String, String)>,
}

impl Mirror {
    /// `client` is the certificate and its key.
    pub(super) fn new(
        url: &str,
        ca: Option<&Path>,
        client: Option<(&Path, &Path)>,
    ) -> anyhow::Result<Self> {
        let parsed = Url::parse(url).ok();
        let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(parsed) = parsed.filter(Url::has_host) else {
            bail!("--mirror {url}: write http://HOST[:PORT] or https://HOST[:PORT]");
        };
        let is_bare = parsed.path() == "/" && parsed.query().is_none();
        let has_account = !parsed.username().is_empty() || parsed.password().is_some();
        ensure!(
            is_bare && parsed.fragment().is_none() && !has_account,
            "--mirror: the URL has a scheme, a host and a port only"
        );
        let is_https = parsed.scheme() == "https";
        ensure!(
            is_https || (ca.is_none() && client.is_none()),
            "--ca, --cert and --key need an https:// URL in --mirror"
        );
        let read_client = |(certificate, key): (&Path, &Path)| {
            let certificate = pem(certificate, "CERTIFICATE")?;
            anyhow::Ok((certificate, pem(key, "PRIVATE KEY")?))
        };
        Ok(Self {
            is_https,
            authority: config::authority(&parsed),
            ca: ca.map(|path| pem(path, "CERTIFICATE")).transpose()?,
            client: client.map(read_client).transpose()?,
        })
    }

    pub(super) fn is_https(&self) -> bool {
        self.is_https
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Scheme, host and port, without a slash at the end.
    pub(super) fn url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// Copies the certificates into a folder of the client's; `names` are those of the authorities, the
    /// client's certificate and its key.
    pub(super) fn place(&self, folder: &str, names: [&str; 3]) -> (Placed, Vec<FileEdit>) {
        let [ca, certificate, key] = names.map(|name| format!("{folder}/{name}"));
        let mut files = Vec::new();
        if let Some(pem) = &self.ca {
            files.push(FileEdit::copy(PathBuf::from(&ca), pem, false));
        }
        if let Some((pem, key_pem)) = &self.client {
            files.push(FileEdit::copy(PathBuf::from(&certificate), pem, false));
            files.push(FileEdit::copy(PathBuf::from(&key), key_pem, true));
        }
        let placed = Placed {
            ca: self.ca.as_ref().map(|_| ca),
            client: self.client.as_ref().map(|_| (certificate, key)),
        };
        (placed, files)
    }
}

/// Reads a file that has a PEM section whose label ends with `label`.
fn pem(path: &Path, label: &str) -> anyhow::Result<Pem> {
    let bytes = config::read_pem(path).with_context(|| format!("{}", path.display()))?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let is_label = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    let has_section = text.lines().any(is_label);
    ensure!(has_section, "{}: no {label} in PEM form", path.display());
    let path = path.to_owned();
    Ok(Pem { path, text })
}

/// A registry that a client pulls from through the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registry {
    /// As in the names of images: `docker.io`, `registry.example:5000`.
    pub(super) name: String,
    /// What clients that don't send the registry's name put before the repository's name; none for the
    /// mirror's default upstream.
    pub(super) prefix: Option<String>,
    /// The URL of the registry itself.
    pub(super) server: String,
}

/// The registries that a client pulls from through the mirror.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registries {
    listed: Vec<Registry>,
    all: bool,
}

impl Registries {
    /// Those that are `wanted`, else those of the mirror's configuration, else Docker Hub.
    pub(super) fn new(wanted: &[String], config: Option<&Config>) -> anyhow::Result<Self> {
        let known = config.map(configured);
        let all = wanted.iter().any(|name| name == ALL);
        let mut listed = Vec::new();
        for name in wanted.iter().filter(|name| *name != ALL) {
            let registry = match &known {
                Some(known) => find(known, name)?,
                None => assumed(name)?,
            };
            if !listed.contains(&registry) {
                listed.push(registry);
            }
        }
        if wanted.is_empty() || (all && listed.is_empty()) {
            match known {
                Some(known) => listed = known,
                None if !all => listed.push(assumed(HUB)?),
                None => {}
            }
        }
        Ok(Self { listed, all })
    }

    pub(super) fn listed(&self) -> &[Registry] {
        &self.listed
    }

    /// Whether every further registry is meant, too.
    pub(super) fn all(&self) -> bool {
        self.all
    }

    /// For a client that has no entry for all registries: those that have names.
    pub(super) fn named(&self, client: &str) -> anyhow::Result<&[Registry]> {
        ensure!(
            !self.listed.is_empty(),
            "{client} has no entry for all registries: name each with --upstream, or give the mirror's \
             configuration with --config"
        );
        Ok(&self.listed)
    }
}

fn find(known: &[Registry], name: &str) -> anyhow::Result<Registry> {
    let found = known.iter().find(|registry| registry.name == name);
    found.cloned().with_context(|| {
        let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
        let names = names.join(", ");
        format!("--upstream {name}: the configuration has no such upstream, but {names}")
    })
}

/// A registry of a mirror whose default upstream is Docker Hub and which has each other one by its
/// own name.
fn assumed(name: &str) -> anyhow::Result<Registry> {
    let is_host = name.contains(['.', ':']) || name == "localhost";
    let is_lower = !name.contains(|character: char| character.is_ascii_uppercase());
    let is_valid = name.parse::<Authority>().is_ok() && !name.contains('@');
    ensure!(
        is_host && is_lower && is_valid,
        "--upstream {name}: write the registry as in the names of images, such as docker.io, or {ALL}"
    );
    let is_hub = name == HUB;
    Ok(Registry {
        name: name.to_owned(),
        prefix: (!is_hub).then(|| name.to_owned()),
        server: if is_hub {
            HUB_SERVER.to_owned()
        } else {
            format!("https://{name}")
        },
    })
}

/// The upstreams of a configuration, by the names that images have: the registry's host, and the
/// upstream's own name where that looks like one.
fn configured(config: &Config) -> Vec<Registry> {
    let mut registries: Vec<Registry> = Vec::new();
    let proxy = &config.proxy;
    let named = proxy.upstreams.iter().map(|upstream| (upstream, true));
    for (upstream, is_named) in std::iter::once((&proxy.default, false)).chain(named) {
        for name in image_names(upstream) {
            if registries.iter().all(|registry| registry.name != name) {
                registries.push(Registry {
                    name,
                    prefix: is_named.then(|| upstream.name.clone()),
                    server: upstream.url.origin().ascii_serialization(),
                });
            }
        }
    }
    registries
}

fn image_names(upstream: &Upstream) -> Vec<String> {
    if upstream.is_docker_hub {
        return vec![HUB.to_owned()];
    }
    let own = Some(upstream.name.clone()).filter(|name| name.contains('.'));
    let mut names = vec![config::authority(&upstream.url)];
    names.extend(own.filter(|name| *name != config::authority(&upstream.url)));
    names
}
