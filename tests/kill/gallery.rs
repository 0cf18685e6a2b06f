//! As many images as anybody wants to pull, each the same whenever it is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest};
use serde_json::json;

use crate::upstream::{Content, Contents};

/// Sizes of layers, in MiB; each gets some odd bytes more.
const SIZES: [u64; 12] = [1, 1, 2, 2, 3, 5, 8, 8, 12, 20, 32, 48];
/// Layers that no other image has.
const OWN_LAYERS: u64 = 3;
/// Images that share their first layer.
const FAMILY: u64 = 3;
/// All content is a window of this many random bytes.
const NOISE: usize = 80 << 20;
/// How far two windows begin from each other.
const STRIDE: u64 = 4_099;

#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) repository: String,
    pub(crate) manifest: Bytes,
    /// The config, then the layers.
    pub(crate) blobs: Vec<Blob>,
}

/// Makes images, and puts them into the upstream.
pub(crate) struct Gallery {
    noise: Bytes,
    contents: Contents,
    images: Mutex<HashMap<u64, Arc<Image>>>,
}

impl Gallery {
    pub(crate) fn new(upstream: &crate::Upstream) -> Self {
        let mut noise = vec![0; NOISE];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        Self {
            noise: noise.into(),
            contents: Arc::clone(&upstream.contents),
            images: Mutex::default(),
        }
    }

    pub(crate) fn image(&self, number: u64) -> Arc<Image> {
        let mut images = self.images.lock().unwrap();
        let image = images
            .entry(number)
            .or_insert_with(|| Arc::new(self.make(number)));
        Arc::clone(image)
    }

    fn make(&self, number: u64) -> Image {
        let repository = format!("library/image-{number}");
        let config = Bytes::from(format!(r#"{{"architecture":"amd64","number":{number}}}"#));
        let shared = number / FAMILY * FAMILY * (OWN_LAYERS + 1);
        let own = (1..=OWN_LAYERS).map(|layer| number * (OWN_LAYERS + 1) + layer);
        let layers = std::iter::once(shared).chain(own).map(|id| self.layer(id));
        let blobs: Vec<_> = std::iter::once(config)
            .chain(layers)
            .map(|bytes| Blob {
                digest: Digest::of(Algorithm::Sha256, &bytes),
                bytes,
            })
            .collect();
        let manifest = manifest(&blobs);
        let mut contents = self.contents.lock().unwrap();
        for blob in &blobs {
            let path = format!("/v2/{repository}/blobs/{}", blob.digest);
            let content = Content::new(&blob.bytes, "application/octet-stream", true);
            contents.insert(path, content);
        }
        let digest = Digest::of(Algorithm::Sha256, &manifest).to_string();
        for reference in ["latest", &digest] {
            let path = format!("/v2/{repository}/manifests/{reference}");
            let content = Content::new(&manifest, media_type::OCI_MANIFEST, false);
            contents.insert(path, content);
        }
        Image {
            repository,
            manifest,
            blobs,
        }
    }

    fn layer(&self, id: u64) -> Bytes {
        let mut random = fastrand::Rng::with_seed(id);
        let size = random.choice(SIZES).unwrap() * (1 << 20) + random.u64(..100_000);
        let size = usize::try_from(size).unwrap();
        let start = usize::try_from(id * STRIDE).unwrap() % (NOISE - size);
        self.noise.slice(start..start + size)
    }
}

fn manifest(blobs: &[Blob]) -> Bytes {
    let descriptors: Vec<_> = blobs
        .iter()
        .map(|blob| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": blob.digest.to_string(),
                "size": blob.bytes.len(),
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptors[0],
        "layers": descriptors[1..],
    });
    manifest.to_string().into()
}
