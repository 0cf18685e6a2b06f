//! A client that pushes images and doesn't give up: when a connection breaks because the server was killed,
//! it continues the upload or begins again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest};
use reqwest::{Body, Client, Method, Response};
use serde_json::{Value, json};
use testkit::noise;
use tokio::sync::watch;

use crate::puller::Life;

/// How long the server may be silent.
const SILENCE: Duration = Duration::from_mins(1);
/// Sizes of layers, in KiB; each is up to 10,000 bytes larger.
const SIZES: [usize; 5] = [10, 300, 1_000, 4_000, 9_000];
/// All layers are windows of this many random bytes.
const NOISE: usize = 32 << 20;

/// An image to be pushed.
#[derive(Debug)]
pub(crate) struct ToPush {
    pub(crate) repository: String,
    pub(crate) manifest: Bytes,
    /// The config and the layers.
    pub(crate) blobs: Vec<(Digest, Bytes)>,
}

/// Makes images of random layers.
pub(crate) struct Images {
    noise: Bytes,
    random: Mutex<fastrand::Rng>,
}

impl Images {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            noise: noise(seed, NOISE),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    /// The next image of a repository.
    pub(crate) fn make(&self, repository: &str) -> ToPush {
        let mut random = self.random.lock().unwrap();
        let mut layer = || {
            let size = random.choice(SIZES).unwrap() * 1024 + random.usize(..10_000);
            let start = random.usize(..NOISE - size);
            self.noise.slice(start..start + size)
        };
        let layers = [layer(), layer(), layer()];
        let config = Bytes::from(format!(r#"{{"seed":{}}}"#, random.u64(..)));
        let describe = |kind: &str, bytes: &Bytes| -> Value {
            let digest = Digest::of(Algorithm::Sha256, bytes).to_string();
            json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
        };
        let layer_type = "application/vnd.oci.image.layer.v1.tar";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| describe(layer_type, layer)).collect::<Vec<_>>(),
        });
        let blobs = layers.into_iter().chain([config]);
        let blobs = blobs.map(|blob| (Digest::of(Algorithm::Sha256, &blob), blob));
        ToPush {
            repository: repository.to_owned(),
            manifest: manifest.to_string().into(),
            blobs: blobs.collect(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Pusher {
    base: String,
    client: Client,
    life: watch::Receiver<Life>,
    random: Arc<Mutex<fastrand::Rng>>,
}

/// An upload that the server has promised to keep.
#[derive(Debug)]
struct Session {
    location: String,
    /// Bytes that the server has acknowledged.
    acknowledged: usize,
}

impl Pusher {
    pub(crate) fn new(server: SocketAddr, life: watch::Receiver<Life>, seed: u64) -> Self {
        // A connection that is kept may be one to the process that was killed.
        let client = Client::builder()
            .tls_certs_only([])
            .read_timeout(SILENCE)
            .pool_max_idle_per_host(0);
        Self {
            base: format!("http://{server}"),
            client: client.build().unwrap(),
            life,
            random: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        }
    }

    /// Pushes an image until its manifest is acknowledged.
    pub(crate) async fn push(&self, image: &ToPush) {
        for (digest, blob) in &image.blobs {
            let mut session = None;
            loop {
                let before = self.alive().await;
                let pushing = self.blob(&image.repository, digest, blob, &mut session);
                let Err(why) = pushing.await else { break };
                self.assert_killed_since(before, &why);
            }
        }
        let digest = Digest::of(Algorithm::Sha256, &image.manifest);
        for reference in ["latest".to_owned(), digest.to_string()] {
            let path = format!("/v2/{}/manifests/{reference}", image.repository);
            loop {
                let before = self.alive().await;
                let pushing = self.manifest(&path, &image.manifest);
                let Err(why) = pushing.await else { break };
                self.assert_killed_since(before, &why);
            }
        }
    }

    async fn manifest(&self, path: &str, manifest: &Bytes) -> Result<(), String> {
        let body = manifest.clone().into();
        let answer = self.send(Method::PUT, path, None, body).await?;
        expect(answer, 201).await.map(drop)
    }

    /// Waits until the server lives.
    async fn alive(&self) -> Life {
        let mut life = self.life.clone();
        *life.wait_for(Life::lives).await.unwrap()
    }

    fn assert_killed_since(&self, before: Life, why: &str) {
        let killed = self.life.borrow().has_ended_since(before);
        assert!(killed, "{why}, and nobody killed the server");
    }

    /// Everything of an image whose manifest was acknowledged is there, every byte the right one.
    pub(crate) async fn verify(&self, image: &ToPush) {
        let repository = &image.repository;
        let digest = Digest::of(Algorithm::Sha256, &image.manifest);
        let manifest = (format!("manifests/{digest}"), &image.manifest);
        let blobs = image.blobs.iter();
        let blobs = blobs.map(|(digest, blob)| (format!("blobs/{digest}"), blob));
        for (path, wanted) in blobs.chain([manifest]) {
            let path = format!("/v2/{repository}/{path}");
            let answer = self.send(Method::GET, &path, None, Body::default()).await;
            let mut answer = expect(answer.unwrap(), 200).await.unwrap();
            let mut found = Vec::new();
            while let Some(chunk) = answer.chunk().await.unwrap() {
                found.extend_from_slice(&chunk);
            }
            assert!(found == wanted[..], "{path} isn't what was pushed");
        }
    }

    async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        blob: &Bytes,
        session: &mut Option<Session>,
    ) -> Result<(), String> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let head = self
            .send(Method::HEAD, &path, None, Body::default())
            .await?;
        if head.status() == 200 {
            return Ok(());
        }
        expect(head, 404).await?;
        let mut at = 0;
        if let Some(Session {
            location,
            acknowledged,
        }) = session
        {
            let status = self.send(Method::GET, location, None, Body::default());
            let status = expect(status.await?, 204).await?;
            at = received(&status);
            assert!(at >= *acknowledged, "{at} of {acknowledged} bytes are left");
        } else {
            let path = format!("/v2/{repository}/blobs/uploads/");
            let started = self.send(Method::POST, &path, None, Body::default());
            let started = expect(started.await?, 202).await?;
            *session = Some(Session {
                location: location(&started),
                acknowledged: 0,
            });
        }
        let Some(open) = session.as_mut() else {
            return Ok(());
        };
        // In chunks, or all at once.
        while at < blob.len() && self.random.lock().unwrap().bool() {
            let end = self
                .random
                .lock()
                .unwrap()
                .usize((at + 1).max(2)..=blob.len());
            let range = format!("{at}-{}", end - 1);
            let body = Body::from(blob.slice(at..end));
            let patched = self.send(Method::PATCH, &open.location, Some(&range), body);
            let patched = expect(patched.await?, 202).await?;
            at = received(&patched);
            assert_eq!(at, end);
            open.acknowledged = end;
        }
        let Some(open) = session.take() else {
            return Ok(());
        };
        let line = format!("{}?digest={digest}", open.location);
        let closed = self.send(Method::PUT, &line, None, Body::from(blob.slice(at..)));
        expect(closed.await?, 201).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        range: Option<&str>,
        body: Body,
    ) -> Result<Response, String> {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = match range {
            Some(range) => request.header("Content-Range", range),
            None => request,
        };
        let sent = request.body(body).send().await;
        sent.map_err(|error| format!("{error:?}"))
    }
}

/// The answer, if it has this status.
async fn expect(answer: Response, status: u16) -> Result<Response, String> {
    if answer.status() == status {
        return Ok(answer);
    }
    let (found, url) = (answer.status(), answer.url().to_string());
    let text = whole(answer).await;
    let text = String::from_utf8_lossy(&text);
    Err(format!("{url}: {found} instead of {status}: {text}"))
}

/// The body of an answer, or what came of it.
async fn whole(mut answer: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
    }
    body
}

fn location(answer: &Response) -> String {
    answer.headers()["location"].to_str().unwrap().to_owned()
}

/// The bytes that an upload has received. One byte looks like none: no chunk of a blob here has so few.
fn received(answer: &Response) -> usize {
    let range = answer.headers()["range"].to_str().unwrap();
    let last: usize = range.strip_prefix("0-").unwrap().parse().unwrap();
    if last == 0 { 0 } else { last + 1 }
}
