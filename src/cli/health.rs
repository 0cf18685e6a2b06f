//! `millpond health`

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{StatusCode, Uri};
use tokio_util::task::TaskTracker;

use super::{Located, load, print};
use crate::admin::ask::Place;
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
    /// Where to ask: http://HOST:PORT of a listener for operators without TLS, or unix:SOCKET
    /// [default: found in the configuration]
    #[arg(long, value_name = "URL", value_parser = place_at)]
    url: Option<Place>,
    #[command(flatten)]
    located: Located,
}

pub(super) fn health(asked: &Asked) -> anyhow::Result<()> {
    let place = match &asked.url {
        Some(place) => place.clone(),
        None => place_of(&load(asked.located.config.as_deref())?.config)?,
    };
    let path = if asked.live { ALIVE } else { READY };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let (status, body) = runtime.block_on(async {
        let tasks = TaskTracker::new();
        let answer = place.get(path, &tasks);
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

/// The place that a URL names.
fn place_at(text: &str) -> Result<Place, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Place::Unix(path.into()));
    }
    let uri = text.parse::<Uri>().ok();
    let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.path() == "/");
    let address = uri.and_then(|uri| Some((uri.host()?.to_owned(), uri.port_u16()?)));
    let address = address.map(|(host, port)| Place::Tcp(format!("{host}:{port}")));
    address.ok_or_else(|| "write http://HOST:PORT or unix:SOCKET".to_owned())
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
            ("unix:/run/millpond", Some(unix("/run/millpond"))),
            ("https://127.0.0.1:5001", None),
            ("http://127.0.0.1:5001/metrics", None),
            ("127.0.0.1:5001", None),
        ] {
            assert_eq!(place_at(url).ok(), place, "{url}");
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
