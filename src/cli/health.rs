//! `millpond health`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use url::Url;

use super::handshake::{self, Trust};
use super::{Located, load, print, read_ca};
use crate::admin::ask::{AskError, Place};
use crate::admin::health::Readiness;
use crate::config::{Config, Http, Listen, Serves, Storage};
use crate::storage::Layout;

/// Longer than the server takes for its checks at most.
const ANSWER_TIME: Duration = Duration::from_secs(15);

const READY: &str = "/readyz";
const ALIVE: &str = "/healthz";

/// What is asked, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// Ask only whether the server is alive: it answers, whatever its checks say
    #[arg(long)]
    live: bool,
    /// Where to ask: http://HOST:PORT or https://HOST:PORT of a listener for operators, or unix:SOCKET
    /// [default: found in the configuration]
    #[arg(long, value_name = "URL", value_parser = server_at)]
    url: Option<Server>,
    /// With https: trust the certificate authorities in this file (PEM), too
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    located: Located,
}

/// Where a server answers operators, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    place: Place,
    /// None without TLS.
    https: Option<Url>,
}

impl Server {
    const fn plain(place: Place) -> Self {
        Self { place, https: None }
    }

    async fn get(
        &self,
        path: &str,
        ca: Option<Vec<u8>>,
        tasks: &TaskTracker,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let (Some(url), Place::Tcp(address)) = (&self.https, &self.place) else {
            return self.place.get(path, tasks).await;
        };
        let trust = Trust {
            ca,
            ..Trust::default()
        };
        let connected = async {
            let stream = TcpStream::connect(address).await?;
            handshake::connect(stream, url, &trust).await
        };
        let connected = connected.await;
        let stream = connected.map_err(|error| self.place.unreachable(error))?;
        self.place.get_on(stream, path, tasks).await
    }
}

pub(super) fn health(asked: &Asked) -> anyhow::Result<()> {
    let server = match &asked.url {
        Some(server) => server.clone(),
        None => Server::plain(place_of(&load(asked.located.config.as_deref())?.config)?),
    };
    let place = &server.place;
    let ca = asked.ca.as_deref().map(read_ca).transpose()?;
    let path = if asked.live { ALIVE } else { READY };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let (status, body) = runtime.block_on(async {
        let tasks = TaskTracker::new();
        let answer = server.get(path, ca, &tasks);
        let answer = tokio::time::timeout(ANSWER_TIME, answer).await;
        let late = || format!("{place} gives no answer within {} s", ANSWER_TIME.as_secs());
        answer.with_context(late)?.context("the server isn't there")
    })?;
    if asked.live && status == StatusCode::OK {
        return print("alive\n");
    }
    let readiness: Option<Readiness> = serde_json::from_slice(&body).ok();
    match readiness {
        Some(readiness) if !asked.live => judge(&readiness),
        _ => bail!("{place} isn't a place where millpond answers operators: status {status}"),
    }
}

/// Fails with what isn't ready.
fn judge(readiness: &Readiness) -> anyhow::Result<()> {
    if readiness.ready {
        return print("ready\n");
    }
    let failing = readiness.checks.iter().filter_map(|(name, part)| {
        let reason = part.error.as_ref()?;
        Some(format!("{name}: {reason}"))
    });
    bail!("not ready: {}", failing.collect::<Vec<_>>().join("; "))
}

/// The server that a URL names.
fn server_at(text: &str) -> Result<Server, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Server::plain(Place::Unix(path.into())));
    }
    let url = Url::parse(text).ok().filter(|url| {
        let plain = url.query().or(url.fragment()).is_none() && url.username().is_empty();
        plain && url.path() == "/" && matches!(url.scheme(), "http" | "https")
    });
    let server = url.and_then(|url| {
        let address = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        Some(Server {
            place: Place::Tcp(address),
            https: (url.scheme() == "https").then_some(url),
        })
    });
    server.ok_or_else(|| "write http://HOST:PORT, https://HOST:PORT or unix:SOCKET".to_owned())
}

/// Where a server with this configuration answers.
fn place_of(config: &Config) -> anyhow::Result<Place> {
    if let Storage::Filesystem { root, .. } = &config.storage {
        return Ok(Place::Unix(Layout::new(root).admin_socket()));
    }
    let listener = operators(&config.http).map(|listen| match listen {
        Listen::Unix(path) => Place::Unix(path.clone()),
        Listen::Tcp(address) => Place::Tcp(reachable(address)),
    });
    listener.context(
        "a server with storage.inmemory has no admin socket, and this one has no listener for \
         operators without TLS: set `http.debug.addr`, or write --url",
    )
}

/// A listener for operators without TLS.
fn operators(http: &Http) -> Option<&Listen> {
    let debug = http.debug.as_ref().map(|debug| &debug.listen);
    let mut others = http.listeners.iter();
    let plain = |serves, has_tls: bool| serves == Serves::Operators && !has_tls;
    debug.or_else(|| {
        let other = others.find(|other| plain(other.serves, other.tls.is_some()));
        other.map(|other| &other.listen)
    })
}

/// An address to connect to, of one to listen on.
fn reachable(address: &str) -> String {
    match address.rsplit_once(':') {
        Some(("" | "0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found() {
        let tcp = |address: &str| Place::Tcp(address.to_owned());
        let unix = |path: &str| Place::Unix(path.into());
        for (url, place) in [
            ("http://127.0.0.1:5001", Some(tcp("127.0.0.1:5001"))),
            ("http://[::1]:5001/", Some(tcp("[::1]:5001"))),
            ("https://mirror.example", Some(tcp("mirror.example:443"))),
            ("unix:/run/millpond", Some(unix("/run/millpond"))),
            ("http://127.0.0.1:5001/metrics", None),
            ("https://u:p@127.0.0.1:5001", None),
            ("ftp://127.0.0.1:5001", None),
            ("127.0.0.1:5001", None),
        ] {
            let server = server_at(url).ok();
            let is_https = server.as_ref().map(|server| server.https.is_some());
            let expected = place.is_some().then(|| url.starts_with("https"));
            assert_eq!(is_https, expected, "{url}");
            assert_eq!(server.map(|server| server.place), place, "{url}");
        }
        for (yaml, place) in [
            (
                "storage: {filesystem: {rootdirectory: /d}}",
                Some(unix("/d/millpond/admin.sock")),
            ),
            (
                "storage: inmemory\nhttp: {debug: {addr: ':5001'}}",
                Some(tcp("127.0.0.1:5001")),
            ),
            (
                "storage: inmemory\nhttp: {listeners: [{addr: '[::]:5001', serves: operators}]}",
                Some(tcp("[::1]:5001")),
            ),
            ("storage: inmemory", None),
        ] {
            let yaml = format!("version: 0.1\n{yaml}\nproxy: {{remoteurl: 'https://a'}}\n");
            let loaded = crate::config::parse(&yaml, "test", std::iter::empty()).unwrap();
            assert_eq!(place_of(&loaded.config).ok(), place, "{yaml}");
        }
    }
}
