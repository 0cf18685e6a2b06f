//! The client against a scripted registry on the loopback interface.

mod auth;
mod blobs;
mod leading;
mod lists;
mod manifests;
mod ranges;
mod setup;
mod time;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::*;
use crate::oci::{Accept, Algorithm, Digest, Reference};
use testkit::time::{freeze, passing};
use testkit::{ALWAYS, Gate, Identity, Options, Reply, Seen};

type Server = testkit::Registry<Digest>;

const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

fn settings(url: &str) -> UpstreamSettings {
    UpstreamSettings {
        name: "test".into(),
        url: Url::parse(url).unwrap(),
        credentials: None,
        ca_pem: None,
        insecure: false,
        plain_http: false,
        realm: None,
        scope: None,
        redirects: Vec::new(),
        timeouts: Timeouts::default(),
    }
}

/// Wall time at the start of each test.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn connect(settings: UpstreamSettings) -> Upstream {
    Upstream::new(settings, Clock::starting_at(wall()), Arc::default()).unwrap()
}

fn client(server: &Server) -> Upstream {
    connect(settings(&server.url()))
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

/// Reads a blob's body to its end: what came, and how it ended.
async fn drink(mut body: BlobChunks) -> (Vec<u8>, Result<(), UpstreamError>) {
    let mut bytes = Vec::new();
    loop {
        match body.next().await {
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(error)) => {
                assert!(body.next().await.is_none(), "an error is the end");
                return (bytes, Err(error));
            }
            None => return (bytes, Ok(())),
        }
    }
}

/// How many token requests came, and how many others.
fn counts(server: &Server) -> (usize, usize) {
    let tokens = server.count("GET /token");
    (tokens, server.count("") - tokens)
}
