//! Any number of images, each the same whenever it is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use millpond::oci::Digest;
use testkit::{Image, noise};

use crate::Upstream;

/// Sizes of layers, in MiB. Each layer is up to 100,000 bytes larger.
const SIZES: [u64; 12] = [1, 1, 2, 2, 3, 5, 8, 8, 12, 20, 32, 48];
/// Layers that no other image has.
const OWN_LAYERS: u64 = 3;
/// Images that share their first layer.
const FAMILY: u64 = 3;
/// All layers are windows of this many random bytes.
const NOISE: usize = 80 << 20;
/// Distance between the starts of two windows.
const STRIDE: u64 = 4_099;

#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) repository: String,
    pub(crate) manifest: Bytes,
    /// The config, then the layers.
    pub(crate) blobs: Vec<(Digest, Bytes)>,
}

/// Makes images and puts them into the upstream.
pub(crate) struct Gallery {
    noise: Bytes,
    upstream: Arc<Upstream>,
    images: Mutex<HashMap<u64, Arc<Pushed>>>,
}

impl Gallery {
    pub(crate) fn new(upstream: &Arc<Upstream>) -> Self {
        Self {
            noise: noise(1, NOISE),
            upstream: Arc::clone(upstream),
            images: Mutex::default(),
        }
    }

    pub(crate) fn image(&self, number: u64) -> Arc<Pushed> {
        let mut images = self.images.lock().unwrap();
        let image = images
            .entry(number)
            .or_insert_with(|| Arc::new(self.push(number)));
        Arc::clone(image)
    }

    fn push(&self, number: u64) -> Pushed {
        let repository = format!("library/image-{number}");
        let shared = number / FAMILY * FAMILY * (OWN_LAYERS + 1);
        let own = (1..=OWN_LAYERS).map(|layer| number * (OWN_LAYERS + 1) + layer);
        let layers = std::iter::once(shared).chain(own).map(|id| self.layer(id));
        let image = Image::layered(number, layers.collect(), |_, _| ());
        let blobs = std::iter::once(&image.config).chain(&image.layers);
        let blobs = blobs.map(|blob| (self.upstream.put_blob(&repository, blob), blob.clone()));
        let blobs = blobs.collect();
        self.upstream
            .tag(&repository, "latest", image.media_type, &image.manifest);
        Pushed {
            repository,
            manifest: image.manifest,
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
