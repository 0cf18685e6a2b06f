//! The client against a scripted registry on the loopback interface.

mod auth;
mod blobs;
mod budgets;
mod callers;
mod circuit;

#[cfg(unix)]
mod credentials;
mod endpoints;
mod interleavings;
mod leading;
mod lists;
mod manifests;
mod proxies;
mod ranges;
mod rate_limits;
#[cfg(unix)]
pub(super) mod script;
mod setup;
mod time;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use url::Url;

use super::*;
use crate::config::Credentials;
use crate::oci::{Accept, Algorithm, Digest, Reference, RepoName};
use testkit::time::{freeze, passing};
use testkit::{ALWAYS, Gate, Identity, Options, Reply, Seen};

type Server = testkit::Registry<Digest>;

const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

pub(super) fn config(url: &str) -> config::Upstream {
    config::Upstream {
        caller: config::CallerAccess::default(),
        trust: None,
        name: "test".into(),
        url: Url::parse(url).unwrap(),
        credentials: None,
        repository_credentials: Vec::new(),
        credentials_required: true,
        anonymous: false,
        ca: None,
        ca_only: false,
        client_certificate: None,
        minimum_tls: config::TlsVersion::default(),
        proxy: config::ForwardProxy::default(),
        insecure: false,
        plain_http: false,
        realm: None,
        scope: None,
        redirects: Vec::new(),
        aliases: Vec::new(),
        is_docker_hub: false,
        accounts: Vec::new(),
        rate_limit: config::RateLimit::default(),
        endpoints: Vec::new(),
        endpoint_selection: config::EndpointSelection::default(),
    }
}

fn credentials(username: &str, password: &str) -> Credentials {
    Credentials::Fixed {
        username: username.into(),
        password: password.into(),
    }
}

/// Wall time at the start of each test.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn set_up(config: config::Upstream, ca_pem: Option<&[u8]>) -> Result<Upstream, SetupError> {
    let files = TlsFiles {
        ca: ca_pem.map(<[u8]>::to_vec),
        ..TlsFiles::default()
    };
    set_up_with(config, &files)
}

fn set_up_with(config: config::Upstream, files: &TlsFiles) -> Result<Upstream, SetupError> {
    let clock = Clock::starting_at(wall());
    Upstream::new(config, files, Timeouts::default(), clock, &Metrics::new())
}

fn connect(config: config::Upstream) -> Upstream {
    set_up(config, None).unwrap()
}

fn client(server: &Server) -> Upstream {
    connect(config(&server.url()))
}

/// A server that always replies so.
async fn replying(reply: Reply) -> Server {
    Server::in_turn([reply]).await
}

fn repo() -> RepoName {
    "library/app".parse().unwrap()
}

fn tag() -> Reference {
    "latest".parse().unwrap()
}

fn digest_of(bytes: impl AsRef<[u8]>) -> Digest {
    Digest::of(Algorithm::Sha256, bytes.as_ref())
}

async fn get_tag(upstream: &Upstream) -> Result<FetchedManifest, UpstreamError> {
    upstream
        .get_manifest(&repo(), &tag(), &Accept::everything())
        .await?
        .verify()
}

/// Reads a stream to its end: what arrived, and how it ended.
async fn read<T>(
    mut stream: BoxStream<'_, Result<T, UpstreamError>>,
) -> (Vec<T>, Result<(), UpstreamError>) {
    let mut arrived = Vec::new();
    loop {
        match stream.next().await {
            Some(Ok(piece)) => arrived.push(piece),
            Some(Err(error)) => {
                assert!(stream.next().await.is_none(), "an error is the end");
                return (arrived, Err(error));
            }
            None => return (arrived, Ok(())),
        }
    }
}

/// Reads a blob's body to its end.
async fn read_blob(body: BlobChunks) -> (Vec<u8>, Result<(), UpstreamError>) {
    let (chunks, end) = read(body).await;
    (chunks.concat(), end)
}

/// How many token requests came, and how many others.
fn counts(server: &Server) -> (usize, usize) {
    let tokens = server.count("GET /token");
    (tokens, server.count("") - tokens)
}
