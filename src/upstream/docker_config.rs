//! The file in which Docker (`~/.docker/config.json`) and containers (`auth.json`) keep accounts. Pure.
//!
//! Of an upstream's host, `credHelpers` counts first, then the entry of `auths` with the longest
//! namespace that the repository is in, then `credsStore`. Entries without a secret, which Docker
//! writes beside a `credsStore`, are passed over.
//!
//! Sources: docker/cli `config`; containers-auth.json(5).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::Url;

use super::account::{LoginError, Secret};
use crate::config::{Upstream, authority};

/// Docker Hub's key in the file, and its name for credential helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Hosts that mean Docker Hub.
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The start of the names of the programs that the file's helpers are.
const HELPER_PREFIX: &str = "docker-credential-";

/// Why the file, or an entry of it, can't be used. Shows nothing of the file but keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    #[error("it is not the JSON of a Docker configuration")]
    Json,
    #[error("`auth` of the entry {0:?} is not the base64 of user:password")]
    Auth(String),
    #[error("the entry {key:?}: {error}")]
    Login { key: String, error: LoginError },
    #[error("{0:?} is not the name of a credential helper")]
    Helper(String),
}

/// The file's content. No `Debug`: it holds secrets.
#[derive(Deserialize)]
pub(super) struct DockerConfig {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<SecretString>,
    username: Option<String>,
    password: Option<SecretString>,
    identitytoken: Option<SecretString>,
}

/// Where an upstream's secret is.
pub(super) enum Found<'a> {
    /// In the entry of this key.
    Secret(&'a str, Secret),
    /// At the helper that is this program.
    Helper(String),
}

/// The names of an upstream in the file.
#[derive(Debug)]
pub(super) struct Server {
    hosts: Vec<String>,
    /// What a credential helper is asked for.
    pub key: String,
}

impl Server {
    pub(super) fn of(upstream: &Upstream) -> Self {
        Self::at(&upstream.url)
    }

    fn at(url: &Url) -> Self {
        let host = authority(url);
        if HUB_HOSTS.contains(&host.as_str()) {
            return Self {
                hosts: HUB_HOSTS.map(str::to_owned).into(),
                key: HUB_KEY.to_owned(),
            };
        }
        // A scheme's own port may be written.
        let with_port = match url.port() {
            Some(_) => None,
            None => url
                .port_or_known_default()
                .map(|port| format!("{host}:{port}")),
        };
        Self {
            key: host.clone(),
            hosts: std::iter::once(host).chain(with_port).collect(),
        }
    }

    /// The namespace of a key, if the key is for this host. The path of a URL is no namespace: old
    /// versions of Docker wrote that of the API.
    fn namespace<'a>(&self, key: &'a str) -> Option<&'a str> {
        let url = key
            .strip_prefix("https://")
            .or_else(|| key.strip_prefix("http://"));
        let (host, path) = url
            .unwrap_or(key)
            .split_once('/')
            .unwrap_or((url.unwrap_or(key), ""));
        let is_own = self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
        let namespace = if url.is_some() { "" } else { path };
        is_own.then(|| namespace.trim_end_matches('/'))
    }
}

impl DockerConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        // The library's error may repeat a part of the file.
        serde_json::from_slice(bytes).map_err(|_private| DockerConfigError::Json)
    }

    /// Where the secret for a repository of a server is; `None` when the file has none.
    pub(super) fn find(
        &self,
        server: &Server,
        repo: &str,
    ) -> Result<Option<Found<'_>>, DockerConfigError> {
        let mut helpers = self.helpers.iter().flatten();
        let helper = helpers.find(|(key, _)| server.namespace(key) == Some(""));
        if let Some((_, name)) = helper.filter(|(_, name)| !name.is_empty()) {
            return program(name).map(Some);
        }
        let entries = self.auths.iter().flatten();
        let entries = entries.filter_map(|(key, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.has_secret())?;
            let namespace = server.namespace(key)?;
            is_within(repo, namespace).then_some((namespace.len(), key, entry))
        });
        if let Some((_, key, entry)) = entries.max_by_key(|(length, ..)| *length) {
            return Ok(Some(Found::Secret(key, entry.secret(key)?)));
        }
        let store = self.store.as_ref().filter(|name| !name.is_empty());
        store.map(|name| program(name)).transpose()
    }
}

/// Whether a repository is a namespace or in it; all are in the empty one.
fn is_within(repo: &str, namespace: &str) -> bool {
    let rest = repo.strip_prefix(namespace);
    namespace.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The program of a helper. A name with a slash would be another program.
fn program<'a>(name: &str) -> Result<Found<'a>, DockerConfigError> {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.bytes().all(is_of_names) {
        return Ok(Found::Helper(format!("{HELPER_PREFIX}{name}")));
    }
    Err(DockerConfigError::Helper(name.to_owned()))
}

impl Entry {
    fn has_secret(&self) -> bool {
        let secrets = [&self.auth, &self.password, &self.identitytoken];
        let mut secrets = secrets.into_iter().flatten();
        secrets.any(is_set)
    }

    fn secret(&self, key: &str) -> Result<Secret, DockerConfigError> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| is_set(token)) {
            return Ok(Secret::Refresh(token.clone()));
        }
        let login = |username: &str, password: &str| {
            let key = key.to_owned();
            Secret::basic(username, password)
                .map_err(|error| DockerConfigError::Login { key, error })
        };
        if let Some(auth) = self.auth.as_ref().filter(|auth| is_set(auth)) {
            let decoded = BASE64_STANDARD.decode(auth.expose_secret().trim()).ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = text.as_deref().and_then(|text| text.split_once(':'));
            let (username, password) =
                pair.ok_or_else(|| DockerConfigError::Auth(key.to_owned()))?;
            // Old versions of Docker padded it.
            return login(username, password.trim_end_matches('\0'));
        }
        let password = self.password.as_ref();
        login(
            self.username.as_deref().unwrap_or_default(),
            password.map_or("", |password| password.expose_secret()),
        )
    }
}

fn is_set(secret: &SecretString) -> bool {
    !secret.expose_secret().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Server {
        Server::at(&Url::parse(url).unwrap())
    }

    /// What the file has for a repository: the header, the token, or the helper's program.
    fn found(config: &str, url: &str, repo: &str) -> Option<String> {
        let config = DockerConfig::parse(config.as_bytes()).unwrap();
        let found = config.find(&server(url), repo).unwrap()?;
        Some(match found {
            Found::Secret(_, Secret::Basic(header)) => {
                let encoded = header.to_str().unwrap().strip_prefix("Basic ").unwrap();
                String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap()
            }
            Found::Secret(_, Secret::Refresh(token)) => format!("token {}", token.expose_secret()),
            Found::Helper(program) => program,
        })
    }

    #[test]
    fn a_host_has_several_spellings() {
        let entry = r#"{"auth": "dTpw"}"#;
        for (key, url, is_its) in [
            ("ghcr.io", "https://ghcr.io", true),
            ("GHCR.io/", "https://ghcr.io", true),
            ("https://ghcr.io/v1/", "https://ghcr.io", true),
            ("ghcr.io:443", "https://ghcr.io", true),
            ("ghcr.io:80", "https://ghcr.io", false),
            ("ghcr.io.evil.example", "https://ghcr.io", false),
            ("registry:5000", "http://registry:5000", true),
            ("registry", "http://registry:5000", false),
            (
                "https://index.docker.io/v1/",
                "https://registry-1.docker.io",
                true,
            ),
            ("docker.io", "https://registry-1.docker.io", true),
            ("registry-1.docker.io", "https://registry-1.docker.io", true),
            ("https://index.docker.io/v1/", "https://ghcr.io", false),
        ] {
            let config = format!(r#"{{"auths": {{"{key}": {entry}}}}}"#);
            let expected = is_its.then(|| "u:p".to_owned());
            assert_eq!(found(&config, url, "a/b"), expected, "{key} {url}");
        }
        assert_eq!(server("https://registry-1.docker.io").key, HUB_KEY);
        assert_eq!(server("http://registry:5000").key, "registry:5000");
    }

    #[test]
    fn the_longest_namespace_counts() {
        let config = r#"{"auths": {
            "quay.io": {"auth": "aG9zdDpw"},
            "quay.io/team": {"auth": "dGVhbTpw"},
            "quay.io/team/app": {"username": "app", "password": "p"},
            "quay.io/team/app/empty": {}
        }}"#;
        for (repo, account) in [
            ("other/app", "host:p"),
            ("teams/app", "host:p"),
            ("team", "team:p"),
            ("team/other", "team:p"),
            ("team/app", "app:p"),
            ("team/app/empty", "app:p"),
        ] {
            let found = found(config, "https://quay.io", repo);
            assert_eq!(found.as_deref(), Some(account), "{repo}");
        }
    }

    #[test]
    fn helpers_of_a_host_count_before_entries_and_the_store_after_them() {
        let config = r#"{
            "auths": {"a": {"auth": "dTpw"}, "b": {"auth": "dTpw"}, "c": {}, "d": null,
                      "e": {"auth": "", "identitytoken": "t", "username": "x"}},
            "credHelpers": {"a": "ecr-login", "e.example": "x"},
            "credsStore": "desktop"
        }"#;
        let of = |host: &str| found(config, &format!("https://{host}"), "app");
        assert_eq!(of("a").as_deref(), Some("docker-credential-ecr-login"));
        assert_eq!(of("b").as_deref(), Some("u:p"));
        assert_eq!(of("e").as_deref(), Some("token t"));
        for host in ["c", "d", "unknown"] {
            assert_eq!(of(host).as_deref(), Some("docker-credential-desktop"));
        }
        assert_eq!(found("{}", "https://a", "app"), None);
        assert_eq!(
            found(r#"{"auths": null, "HttpHeaders": {}}"#, "https://a", "app"),
            None
        );
    }

    #[test]
    fn what_cannot_be_used_is_named_without_a_secret() {
        for wrong in [
            "",
            "[]",
            "null",
            r#"{"auths": {"a": {"auth": 5}}}"#,
            r#"{"auths": "s3cret"}"#,
        ] {
            let error = DockerConfig::parse(wrong.as_bytes()).err();
            assert_eq!(error, Some(DockerConfigError::Json), "{wrong}");
        }
        for (entry, expected) in [
            (
                r#"{"auth": "s3cret!"}"#,
                "`auth` of the entry \"a\" is not the base64 of user:password",
            ),
            (
                r#"{"auth": "c2VjcmV0"}"#,
                "`auth` of the entry \"a\" is not the base64 of user:password",
            ),
            (
                r#"{"username": "u:v", "password": "s3cret"}"#,
                "the entry \"a\": the user name contains a colon",
            ),
        ] {
            let config = format!(r#"{{"auths": {{"a": {entry}}}}}"#);
            let config = DockerConfig::parse(config.as_bytes()).unwrap();
            let error = config.find(&server("https://a"), "app").err().unwrap();
            assert_eq!(error.to_string(), expected);
        }
        let config = DockerConfig::parse(br#"{"credHelpers": {"a": "../evil"}}"#).unwrap();
        assert!(config.find(&server("https://a"), "app").is_err());
    }
}
