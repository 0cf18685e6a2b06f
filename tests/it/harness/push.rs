//! A client that pushes into hosted repositories.

use std::sync::Arc;

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest};
use millpond::storage::{FsStore, MemoryStore, Store};
use serde_json::{Value, json};

use super::{Answer, Mirror, Registry, Setup, noise, read};

/// Everyone may push into `ci/`.
pub(crate) const OPEN: &str = "root.access: [{anyone: true, effect: allow}]";
/// The hosted repositories of most tests.
pub(crate) const SPACE: &str = "root.hosted: [{name: ci, repositories: ['ci/**']}]";

/// A mirror with hosted repositories below `ci/`, and a client whose digests are of one algorithm.
pub(crate) struct Pusher {
    pub(crate) m: Mirror,
    pub(crate) up: Registry,
    pub(crate) algorithm: Algorithm,
    _directory: Option<tempfile::TempDir>,
}

/// An image whose digests are of one algorithm.
#[derive(Debug, Clone)]
pub(crate) struct PushedImage {
    pub(crate) config: Bytes,
    pub(crate) layers: Vec<Bytes>,
    pub(crate) manifest: Bytes,
    pub(crate) digest: Digest,
}

impl PushedImage {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers.iter().chain([&self.config])
    }
}

/// Runs a test with each algorithm, in memory and on disk.
pub(crate) async fn everywhere(test: impl AsyncFn(&Pusher)) {
    for algorithm in Algorithm::ALL {
        for on_disk in [false, true] {
            test(&Pusher::start(algorithm, on_disk, &[SPACE]).await).await;
        }
    }
}

impl Pusher {
    /// In memory, with sha256 and these lines of the configuration.
    pub(crate) async fn with(lines: &[&str]) -> Self {
        Self::start(Algorithm::Sha256, false, lines).await
    }

    pub(crate) async fn start(algorithm: Algorithm, on_disk: bool, lines: &[&str]) -> Self {
        let directory = on_disk.then(|| tempfile::tempdir().unwrap());
        let store: Arc<dyn Store> = match &directory {
            Some(directory) => Arc::new(FsStore::open(directory.path()).await.unwrap()),
            None => Arc::new(MemoryStore::new()),
        };
        let up = Registry::start().await;
        let is_set = lines.iter().any(|line| line.starts_with("root.access"));
        let access = Some(OPEN).filter(|_| !is_set);
        let lines: Vec<&str> = lines.iter().copied().chain(access).collect();
        let m = Setup::new(&up).with(&lines).store(store).start().await;
        Self {
            m,
            up,
            algorithm,
            _directory: directory,
        }
    }

    /// A client of a server that runs, with sha256.
    pub(crate) async fn over(m: Mirror) -> Self {
        Self {
            m,
            up: Registry::start().await,
            algorithm: Algorithm::Sha256,
            _directory: None,
        }
    }

    pub(crate) fn digest(&self, bytes: &[u8]) -> Digest {
        Digest::of(self.algorithm, bytes)
    }

    /// Sends a request with a body.
    pub(crate) async fn send(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let request = self.m.request(line, headers).body(body);
        read(request.send().await.unwrap()).await
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&self, line: &str) -> Answer {
        self.send(line, &[], Bytes::new()).await
    }

    /// Starts an upload, and returns where it is.
    pub(crate) async fn begin(&self, repo: &str) -> String {
        let line = match self.algorithm {
            Algorithm::Sha256 => format!("POST /v2/{repo}/blobs/uploads/"),
            Algorithm::Sha512 => {
                format!("POST /v2/{repo}/blobs/uploads/?digest-algorithm=sha512")
            }
        };
        let started = self.ask(&line).await;
        started.expect(202, b"");
        started.has("range", "0-0");
        started.header("location").to_owned()
    }

    /// Pushes a blob as most clients do.
    pub(crate) async fn blob(&self, repo: &str, blob: &Bytes) -> Digest {
        let digest = self.digest(blob);
        let location = self.begin(repo).await;
        let patched = self
            .send(&format!("PATCH {location}"), &[], blob.clone())
            .await;
        patched.expect(202, b"");
        let location = patched.header("location");
        let closed = self.ask(&format!("PUT {location}?digest={digest}")).await;
        closed.expect(201, b"");
        closed.has("docker-content-digest", digest);
        digest
    }

    /// Pushes a manifest, and returns the answer.
    pub(crate) async fn manifest(&self, repo: &str, reference: &str, body: &Bytes) -> Answer {
        let kind = kind(body);
        let line = format!("PUT /v2/{repo}/manifests/{reference}");
        self.send(&line, &[("content-type", &kind)], body.clone())
            .await
    }

    /// An image with two layers.
    pub(crate) fn image(&self, seed: u64) -> PushedImage {
        self.image_with(seed, &json!({}))
    }

    /// The same with more fields in its manifest.
    pub(crate) fn image_with(&self, seed: u64, more: &Value) -> PushedImage {
        let config: Bytes = format!(r#"{{"architecture":"amd64","seed":{seed}}}"#).into();
        let layers = vec![noise(seed, 3_000), noise(seed + 1_000_000, 70_000)];
        let layer = |bytes: &Bytes| self.descriptor(LAYER, bytes);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": self.descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let more = more.as_object().unwrap().clone();
        manifest.as_object_mut().unwrap().extend(more);
        let manifest: Bytes = manifest.to_string().into();
        PushedImage {
            digest: self.digest(&manifest),
            config,
            layers,
            manifest,
        }
    }

    pub(crate) fn descriptor(&self, kind: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": kind, "digest": self.digest(bytes).to_string(), "size": bytes.len()})
    }

    /// An index of manifests.
    pub(crate) fn index(&self, manifests: &[&Bytes]) -> Bytes {
        let manifests: Vec<_> = manifests
            .iter()
            .map(|manifest| self.descriptor(&kind(manifest), manifest))
            .collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
        });
        index.to_string().into()
    }

    /// Pushes all of an image by a tag.
    pub(crate) async fn push(&self, repo: &str, tag: &str, image: &PushedImage) {
        for blob in image.blobs() {
            self.blob(repo, blob).await;
        }
        self.tag(repo, tag, image).await;
    }

    /// Pushes the manifest of an image by a tag. A tag alone doesn't say which algorithm is meant.
    pub(crate) async fn tag(&self, repo: &str, tag: &str, image: &PushedImage) {
        let reference = match self.algorithm {
            Algorithm::Sha256 => tag.to_owned(),
            Algorithm::Sha512 => format!("{}?tag={tag}", image.digest),
        };
        let pushed = self.manifest(repo, &reference, &image.manifest).await;
        pushed.expect(201, b"");
        pushed.has("docker-content-digest", image.digest);
    }

    /// Everything of an image can be pulled, by its tag and by its digest.
    pub(crate) async fn serves(&self, repo: &str, tag: &str, image: &PushedImage) {
        for reference in [tag, &image.digest.to_string()] {
            let path = format!("/v2/{repo}/manifests/{reference}");
            self.m.serves(&path, &image.manifest).await;
        }
        for blob in image.blobs() {
            let path = format!("/v2/{repo}/blobs/{}", self.digest(blob));
            self.m.serves(&path, blob).await;
        }
    }
}

pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The media type that a manifest declares.
fn kind(manifest: &[u8]) -> String {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let kind = manifest["mediaType"].as_str();
    kind.unwrap_or(media_type::OCI_MANIFEST).to_owned()
}
