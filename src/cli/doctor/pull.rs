//! A sample pull through a mirror: manifest, config and the start of a layer, each verified; then the
//! same once more, from the cache.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::finding::Findings;
use super::mirror::MirrorCheck;
use crate::oci::{Accept, Descriptor, Digest, Hasher, Reference};
use crate::upstream::{FetchedManifest, UpstreamError};

/// Bytes of a layer that are read; of a config, at most as many.
const SAMPLE: u64 = 1 << 20;
/// The last bytes of a download are committed after the client has them.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Why a pull ends.
enum Broken {
    Upstream(UpstreamError),
    /// What was found, and what to do.
    Content(String, &'static str),
}

impl From<UpstreamError> for Broken {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

/// What a fix is for bytes that aren't those of their digest.
const WRONG_BYTES: &str =
    "pull without a proxy between, and run `millpond scrub --repair` at the mirror";

impl MirrorCheck {
    /// Pulls the sample image.
    pub(super) async fn pull(&self, found: &mut Findings) {
        let pulled = self.pull_all(found).await;
        let (text, fix) = match pulled {
            Ok(()) => return,
            Err(Broken::Upstream(error)) => self.explain(&error),
            Err(Broken::Content(text, fix)) => (text, fix.to_owned()),
        };
        found.fail("pull", text, fix);
    }

    async fn pull_all(&self, found: &mut Findings) -> Result<(), Broken> {
        let image = self.image();
        let named = self.manifest(&image.reference).await?;
        // By its digest as well, which is what most clients do next.
        let digest = Reference::Digest(named.digest);
        let mut fetched = self.manifest(&digest).await?;
        // Of an index, the first image.
        if let Some(child) = fetched.manifest.manifests.first() {
            fetched = self.manifest(&Reference::Digest(child.digest)).await?;
        }
        let text = format!("{image} has the manifest {}, verified", named.digest);
        found.ok("manifest", text);
        let Some(config) = &fetched.manifest.config else {
            found.ok("pull", "the image has no config and no layer");
            return Ok(());
        };
        let whole = self.blob(config).await?;
        let mut text = "the config is verified".to_owned();
        let layer = fetched.manifest.blobs.first();
        if let Some(layer) = layer.filter(|layer| !layer.is_foreign()) {
            let is_whole = self.blob(layer).await?;
            text = match (whole, is_whole) {
                (true, true) => "the config and a layer are verified".to_owned(),
                _ => format!("the config is verified, and {SAMPLE} bytes of a layer arrive"),
            };
        }
        found.ok("pull", text);
        self.pull_again(config, found).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, UpstreamError> {
        let accept = Accept::everything();
        let repo = &self.image().repo;
        let fetched = self.client.get_manifest(repo, reference, &accept).await?;
        fetched.verify()
    }

    /// Reads a blob, or its start where it is large. Whether all of it was read and verified.
    async fn blob(&self, blob: &Descriptor) -> Result<bool, Broken> {
        let repo = &self.image().repo;
        let end = (blob.size > SAMPLE).then_some(SAMPLE);
        let route = Arc::default();
        let asking = self.client.get_blob(repo, &blob.digest, 0, end, &route);
        let stream = asking.await?;
        let mut body = stream.body;
        let mut hash = Hasher::new(blob.digest.algorithm());
        let (mut read, limit) = (0_u64, end.unwrap_or(blob.size));
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            read += chunk.len() as u64;
            hash.update(&chunk);
            // A server that ignores ranges sends all of it.
            if read >= limit && end.is_some() {
                return Ok(false);
            }
            if read > limit {
                let text = format!("the blob {} has more than its {limit} bytes", blob.digest);
                return Err(Broken::Content(text, WRONG_BYTES));
            }
        }
        let actual: Digest = hash.finish();
        if actual != blob.digest {
            let text = format!("the blob {} arrives as {actual}", blob.digest);
            return Err(Broken::Content(text, WRONG_BYTES));
        }
        Ok(true)
    }

    /// Whether what was just pulled comes from the cache now.
    async fn pull_again(&self, blob: &Descriptor, found: &mut Findings) -> Result<(), Broken> {
        let repo = &self.image().repo;
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let observed = self.client.observe_blob(repo, &blob.digest).await?;
            last = observed.cache_status;
            let parameters = last.iter().flat_map(|status| status.split([';', ',']));
            if { parameters }.any(|parameter| parameter.trim() == "hit") {
                found.ok("cache", "a second pull comes from the cache");
                return Ok(());
            }
        }
        if let Some(status) = last {
            let text = format!("a second pull doesn't come from the cache ({status})");
            let fix = "run `millpond doctor CONFIG` where the mirror runs: is its disk full, or \
                       `proxy.ttl` 0?";
            found.warn("cache", text, fix);
        } else {
            let text = "responses have no Cache-Status: no millpond, or a proxy removes it";
            found.warn("cache", text, "use the mirror's own address");
        }
        Ok(())
    }
}
