//! Images, and the sequence of pulls. All from one seed.

use anyhow::{Context, Result};
use millpond::oci::RepoName;
use millpond::storage::LinkKind;
use serde::{Deserialize, Serialize};

use super::super::common::content::ContentDir;
use super::Scale;

/// Bytes of an image's config.
const CONFIG: u64 = 4096;
/// Layers that many images begin with.
const BASES: usize = 8;
/// Of a hundred sessions, those that end with the look at the tag, and with the manifest.
const ONLY_TAG: u32 = 35;
const ONLY_MANIFEST: u32 = 35;

/// A blob's digest and its size in bytes.
pub(crate) type Part = (String, u64);

/// An image, as a client finds its way through it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) repo: String,
    pub(crate) index: String,
    pub(crate) manifest: String,
    pub(crate) config: Part,
    pub(crate) layers: Vec<Part>,
}

/// How far a session goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Depth {
    Tag,
    Manifest,
    Whole,
}

/// Everything that happens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct World {
    pub(crate) images: Vec<Image>,
    /// Which image, and how far.
    pub(crate) sessions: Vec<(usize, Depth)>,
    /// New images, each with the milliseconds after which its nodes come.
    pub(crate) storms: Vec<(Image, Vec<u64>)>,
    pub(crate) workers: usize,
}

impl World {
    pub(crate) fn make(content_dir: &ContentDir, scale: Scale) -> Result<Self> {
        let mut maker = Maker::new(content_dir, scale.largest);
        let first = "library/bases".parse()?;
        for _ in 0..BASES {
            let size = maker.size();
            let base = maker.layer(&first, size)?;
            maker.bases.push(base);
        }
        let images = (0..scale.images)
            .map(|n| {
                let own = maker.random.usize(2..=5);
                maker.image(&format!("library/application-{n}"), own, None)
            })
            .collect::<Result<Vec<_>>>()?;
        let storms = (0..scale.storms)
            .map(|n| {
                // The layer that a storm is about.
                let own = maker.random.usize(2..=5);
                let largest = Some(scale.largest);
                let image = maker.image(&format!("library/release-{n}"), own, largest)?;
                let late = 0..scale.join_ms;
                let joiners = (0..scale.joiners).map(|_| maker.random.u64(late.clone()));
                Ok((image, joiners.collect()))
            })
            .collect::<Result<Vec<_>>>()?;
        let sums = zipf(images.len());
        let sessions = (0..scale.sessions)
            .map(|_| maker.session(&sums))
            .collect::<Vec<_>>();
        Ok(Self {
            images,
            sessions,
            storms,
            workers: scale.workers,
        })
    }

    /// One new image of `layers` layers, and so many nodes that pull it.
    pub(crate) fn rollout(content_dir: &ContentDir, scale: Scale, layers: usize) -> Result<Self> {
        let mut maker = Maker::new(content_dir, scale.largest);
        let image = maker.image("library/rollout", layers, None)?;
        let late = (0..scale.joiners).map(|_| maker.random.u64(0..scale.join_ms.max(1)));
        let mut late: Vec<_> = late.collect();
        late.sort_unstable();
        Ok(Self {
            images: Vec::new(),
            sessions: Vec::new(),
            storms: vec![(image, late)],
            workers: 0,
        })
    }

    /// The sizes of all distinct layers.
    pub(crate) fn sizes(&self) -> Vec<u64> {
        let storms = self.storms.iter().map(|(image, _)| image);
        let layers = self
            .images
            .iter()
            .chain(storms)
            .flat_map(|image| &image.layers);
        let mut layers: Vec<_> = layers.collect();
        layers.sort();
        layers.dedup();
        layers.into_iter().map(|(_, size)| *size).collect()
    }

    /// Of a hundred layers, those that are smaller.
    pub(crate) fn share_below(&self, bytes: u64) -> f64 {
        let sizes = self.sizes();
        let below = sizes.iter().filter(|size| **size < bytes).count();
        100.0 * below as f64 / sizes.len() as f64
    }
}

/// Running sums of 1 / n.
fn zipf(count: usize) -> Vec<f64> {
    let sums = (1..=count).scan(0.0, |sum, n| {
        *sum += 1.0 / n as f64;
        Some(*sum)
    });
    sums.collect()
}

struct Maker<'a> {
    content_dir: &'a ContentDir,
    random: fastrand::Rng,
    largest: u64,
    bases: Vec<Part>,
}

impl<'a> Maker<'a> {
    fn new(content_dir: &'a ContentDir, largest: u64) -> Self {
        Self {
            content_dir,
            random: fastrand::Rng::with_seed(0x7461_6365),
            largest,
            bases: Vec::new(),
        }
    }

    /// A layer's size: 65 % under 1 MB, 15 % up to 10 MB, the rest a tail; spread evenly over the
    /// orders of magnitude within each.
    fn size(&mut self) -> u64 {
        let (low, high) = match self.random.u32(..100) {
            0..65 => (1e3, 1e6),
            65..80 => (1e6, 1e7),
            _ => (1e7, self.largest as f64),
        };
        (low * (high / low).powf(self.random.f64())) as u64
    }

    fn layer(&mut self, repo: &RepoName, size: u64) -> Result<Part> {
        let digest = self
            .content_dir
            .blob(repo, size, |_, piece| self.random.fill(piece))?;
        Ok((digest.to_string(), size))
    }

    /// One to three layers of what many have, then `own` of its own.
    fn image(&mut self, repo: &str, own: usize, also: Option<u64>) -> Result<Image> {
        let name: RepoName = repo.parse()?;
        let config = self.layer(&name, CONFIG)?;
        let bases = self.random.usize(1..=3);
        let mut layers: Vec<_> = self.bases.iter().take(bases).cloned().collect();
        for (digest, _) in &layers {
            self.content_dir
                .link(&name, LinkKind::Layer, digest.parse()?)?;
        }
        for _ in 0..own {
            let size = self.size();
            layers.push(self.layer(&name, size)?);
        }
        if let Some(size) = also {
            layers.push(self.layer(&name, size)?);
        }
        let parsed = layers
            .iter()
            .chain([&config])
            .map(|(digest, size)| Ok((digest.parse()?, *size)))
            .collect::<Result<Vec<_>>>()?;
        let (last, rest) = parsed.split_last().context("there is a config")?;
        let manifest = self.content_dir.image(&name, *last, rest)?;
        let index = self.content_dir.index(&name, &[manifest], repo)?;
        self.content_dir.tag(&name, &"latest".parse()?, &index)?;
        Ok(Image {
            repo: repo.to_owned(),
            index: index.to_string(),
            manifest: manifest.to_string(),
            config,
            layers,
        })
    }

    fn session(&mut self, sums: &[f64]) -> (usize, Depth) {
        let at = self.random.f64() * sums.last().copied().unwrap_or_default();
        let image = sums.partition_point(|sum| *sum < at);
        let depth = match self.random.u32(..100) {
            0..ONLY_TAG => Depth::Tag,
            share if share < ONLY_TAG + ONLY_MANIFEST => Depth::Manifest,
            _ => Depth::Whole,
        };
        (image, depth)
    }
}
