//! Images of one platform, and indexes of them.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::content::{digest, noise};

/// Media types that registries use.
pub mod media_type {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

/// An image: a config, layers, and the manifest that refers to them.
#[derive(Debug, Clone)]
pub struct Image {
    pub media_type: &'static str,
    pub config: Bytes,
    pub layers: Vec<Bytes>,
    pub manifest: Bytes,
}

impl Image {
    /// An OCI image with two layers of 3,000 and 70,000 bytes.
    pub fn oci(seed: u64) -> Self {
        Self::small(seed, media_type::OCI_MANIFEST, &json!({}))
    }

    /// The same with Docker's media type.
    pub fn docker(seed: u64) -> Self {
        Self::small(seed, media_type::DOCKER_MANIFEST, &json!({}))
    }

    /// An artifact that is attached to `subject`.
    pub fn artifact(seed: u64, subject: &Self, artifact_type: &str) -> Self {
        let more = json!({
            "artifactType": artifact_type,
            "subject": subject.descriptor(),
        });
        Self::small(seed, media_type::OCI_MANIFEST, &more)
    }

    /// An OCI image with these layers, whose descriptors `change` may change.
    pub fn layered(seed: u64, layers: Vec<Bytes>, change: impl Fn(usize, &mut Value)) -> Self {
        Self::new(
            media_type::OCI_MANIFEST,
            config(seed),
            layers,
            &json!({}),
            change,
        )
    }

    fn small(seed: u64, media_type: &'static str, more: &Value) -> Self {
        let layers = vec![noise(seed, 3_000), noise(seed + 1_000_000, 70_000)];
        Self::new(media_type, config(seed), layers, more, |_, _| ())
    }

    fn new(
        media_type: &'static str,
        config: Bytes,
        layers: Vec<Bytes>,
        more: &Value,
        change: impl Fn(usize, &mut Value),
    ) -> Self {
        let describe = |(n, bytes): (usize, &Bytes)| {
            let mut layer = descriptor(media_type::LAYER, bytes);
            change(n, &mut layer);
            layer
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(media_type::CONFIG, &config),
            "layers": layers.iter().enumerate().map(describe).collect::<Vec<_>>(),
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

    /// Of the manifest.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The layers, then the config.
    pub fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers.iter().chain([&self.config])
    }

    /// Of the manifest.
    pub fn descriptor(&self) -> Value {
        descriptor(self.media_type, &self.manifest)
    }

    /// An index, or a manifest list, of images.
    pub fn index(media_type: &str, images: &[&Self]) -> Bytes {
        let manifests: Vec<_> = images.iter().map(|image| image.descriptor()).collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        index.to_string().into()
    }
}

fn config(seed: u64) -> Bytes {
    format!(r#"{{"architecture":"amd64","seed":{seed}}}"#).into()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}
