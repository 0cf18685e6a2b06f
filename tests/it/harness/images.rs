//! Images made on the spot.

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest};
use serde_json::json;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// Bytes that look like nothing: the same for the same seed.
pub(crate) fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// One platform's image: a config, layers, and the manifest that names them.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) media_type: &'static str,
    pub(crate) config: Bytes,
    pub(crate) layers: Vec<Bytes>,
    pub(crate) manifest: Bytes,
}

impl Image {
    pub(crate) fn oci(seed: u64) -> Self {
        Self::new(seed, media_type::OCI_MANIFEST, &json!({}))
    }

    pub(crate) fn docker(seed: u64) -> Self {
        Self::new(seed, media_type::DOCKER_MANIFEST, &json!({}))
    }

    /// Attached to `subject`.
    pub(crate) fn artifact(seed: u64, subject: &Image, artifact_type: &str) -> Self {
        let more = json!({
            "artifactType": artifact_type,
            "subject": subject.descriptor(),
        });
        Self::new(seed, media_type::OCI_MANIFEST, &more)
    }

    /// With layers of the test's own, whose descriptors `change` may change.
    pub(crate) fn layered(
        seed: u64,
        layers: Vec<Bytes>,
        change: impl Fn(usize, &mut serde_json::Value),
    ) -> Self {
        let image = Self::oci(seed);
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let mut descriptors: Vec<_> = layers.iter().map(layer).collect();
        for (n, descriptor) in descriptors.iter_mut().enumerate() {
            change(n, descriptor);
        }
        manifest["layers"] = descriptors.into();
        let manifest = manifest.to_string().into();
        Self {
            layers,
            manifest,
            ..image
        }
    }

    fn new(seed: u64, media_type: &'static str, more: &serde_json::Value) -> Self {
        let config = Bytes::from(format!(r#"{{"architecture":"amd64","seed":{seed}}}"#));
        let layers = vec![noise(seed, 3_000), noise(seed + 1_000_000, 70_000)];
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let more = more.as_object().unwrap().clone();
        manifest.as_object_mut().unwrap().extend(more);
        Self {
            media_type,
            config,
            layers,
            manifest: manifest.to_string().into(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.manifest)
    }

    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers.iter().chain([&self.config])
    }

    pub(crate) fn descriptor(&self) -> serde_json::Value {
        descriptor(self.media_type, &self.manifest)
    }

    /// An index, or a manifest list, of images.
    pub(crate) fn index(media_type: &str, images: &[&Image]) -> Bytes {
        let manifests: Vec<_> = images.iter().map(|image| image.descriptor()).collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        index.to_string().into()
    }
}

fn layer(bytes: &Bytes) -> serde_json::Value {
    descriptor("application/vnd.oci.image.layer.v1.tar", bytes)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len()})
}
