//! Generated content on disk, in the reference registry's layout: what an upstream serves.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use millpond::oci::{Algorithm, Digest, Hasher, RepoName, Tag};
use millpond::storage::{Layout, Link, LinkKind};
use serde_json::{Value, json};

/// The media type of every index made here.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of every image manifest made here.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Bytes generated and hashed at a time.
pub(crate) const PIECE: usize = 1 << 20;

/// Fills `piece` with the piece of this number of the blob with this seed, or with the beginning of the
/// piece. A client that knows the seed can compare any piece. Nothing compresses it.
pub(crate) fn fill(seed: u64, number: u64, piece: &mut [u8]) {
    fastrand::Rng::with_seed((seed << 32) ^ number).fill(piece);
}

/// A directory of content.
#[derive(Debug, Clone)]
pub(crate) struct ContentDir {
    layout: Layout,
}

impl ContentDir {
    pub(crate) fn new(root: &Path) -> Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self {
            layout: Layout::new(root),
        })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The file of a blob or a manifest.
    pub(crate) fn file(&self, digest: &Digest) -> PathBuf {
        self.layout.blob(digest)
    }

    /// The digest that a tag names.
    pub(crate) fn tagged(&self, repo: &RepoName, tag: &Tag) -> Result<Digest> {
        let text = fs::read_to_string(self.layout.tag_current(repo, tag))?;
        Ok(text.trim().parse()?)
    }

    /// Makes a blob, of which `write` makes each piece, given its number.
    pub(crate) fn blob(
        &self,
        repo: &RepoName,
        bytes: u64,
        mut write: impl FnMut(u64, &mut [u8]),
    ) -> Result<Digest> {
        let staged = self.root().join("staged");
        let mut file = File::create(&staged)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut piece = vec![0; PIECE];
        let (mut left, mut number) = (bytes, 0);
        while left > 0 {
            let size = usize::try_from(left)?.min(PIECE);
            let part = piece.get_mut(..size).context("at most a piece")?;
            write(number, part);
            hasher.update(part);
            file.write_all(part)?;
            left -= size as u64;
            number += 1;
        }
        if bytes > PIECE as u64 {
            // Written back now, not during a measurement.
            file.sync_data()?;
        }
        let digest = hasher.finish();
        fs::create_dir_all(self.layout.blob_dir(&digest))?;
        fs::rename(&staged, self.layout.blob(&digest))?;
        self.link(repo, LinkKind::Layer, digest)?;
        Ok(digest)
    }

    /// Makes the file of a blob or a manifest, and its link.
    pub(crate) fn place(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<()> {
        put(&self.layout.blob(&digest), bytes)?;
        self.link(repo, kind, digest)
    }

    /// Makes a manifest of a JSON document.
    pub(crate) fn manifest(&self, repo: &RepoName, document: &Value) -> Result<Digest> {
        let bytes = serde_json::to_vec_pretty(document)?;
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        self.place(repo, LinkKind::Revision, digest, &bytes)?;
        Ok(digest)
    }

    /// Makes an image manifest of a config and layers that exist.
    pub(crate) fn image(
        &self,
        repo: &RepoName,
        config: (Digest, u64),
        layers: &[(Digest, u64)],
    ) -> Result<Digest> {
        let part = |kind: &str, (digest, size): &(Digest, u64)| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest.to_string(),
                "size": size,
            })
        };
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| part("layer.v1.tar+gzip", layer))
            .collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": part("config.v1+json", &config),
            "layers": layers,
        });
        self.manifest(repo, &document)
    }

    /// Makes an index of manifests, the first for this platform and the rest for others.
    pub(crate) fn index(
        &self,
        repo: &RepoName,
        manifests: &[Digest],
        name: &str,
    ) -> Result<Digest> {
        const PLATFORMS: [&str; 8] = [
            "amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64", "mips64le",
        ];
        let manifests: Vec<_> = manifests
            .iter()
            .zip(PLATFORMS)
            .map(|(digest, architecture)| {
                json!({
                    "mediaType": MANIFEST,
                    "digest": digest.to_string(),
                    "size": fs::metadata(self.file(digest)).map_or(0, |file| file.len()),
                    "platform": { "architecture": architecture, "os": "linux" },
                })
            })
            .collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": manifests,
            "annotations": { "org.opencontainers.image.title": name },
        });
        self.manifest(repo, &document)
    }

    /// Points a tag at a manifest.
    pub(crate) fn tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<()> {
        for path in [
            self.layout.tag_current(repo, tag),
            self.layout.tag_index(repo, tag, digest),
        ] {
            put(&path, digest.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Links a blob or a manifest into a repository.
    pub(crate) fn link(&self, repo: &RepoName, kind: LinkKind, digest: Digest) -> Result<()> {
        let link = Link {
            repo: repo.clone(),
            kind,
            digest,
        };
        put(&self.layout.link(&link), digest.to_string().as_bytes())
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory)?;
    fs::write(path, bytes)?;
    Ok(())
}
