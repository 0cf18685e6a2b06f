//! What all servers serve: one large blob, some of 1 MiB and of 1 KiB, some indexes and their tags.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use millpond::oci::{Digest, RepoName};

use super::common::content::ContentDir;

/// Blobs of each small size.
const BLOBS: u64 = 32;
/// Indexes, each with a tag.
const INDEXES: u64 = 16;
/// Platforms of an index: it comes to about 2.5 KB.
const PLATFORMS: usize = 8;

/// The content, and the paths at which the API has it.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) content_dir: ContentDir,
    /// The same files, below the paths of the API.
    pub(crate) files: PathBuf,
    pub(crate) large: String,
    pub(crate) medium: Vec<String>,
    pub(crate) small: Vec<String>,
    pub(crate) manifests: Vec<String>,
    pub(crate) tags: Vec<String>,
}

impl Library {
    /// Makes the content below `directory`; the large blob has `large` bytes.
    pub(crate) fn make(directory: &Path, large: u64) -> Result<Self> {
        let repo: RepoName = "library/bench".parse()?;
        let content_dir = ContentDir::new(&directory.join("content"))?;
        // The same bytes in every run.
        let mut random = fastrand::Rng::with_seed(0x6d69_6c6c);
        let mut library = Self {
            content_dir,
            files: directory.join("files"),
            large: String::new(),
            medium: Vec::new(),
            small: Vec::new(),
            manifests: Vec::new(),
            tags: Vec::new(),
        };
        let blob =
            |library: &Self, bytes, random: &mut fastrand::Rng| -> Result<(Digest, String)> {
                let digest = library
                    .content_dir
                    .blob(&repo, bytes, |_, piece| random.fill(piece))?;
                let path = format!("/v2/{repo}/blobs/{digest}");
                library.show(&digest, &path)?;
                Ok((digest, path))
            };
        library.large = blob(&library, large, &mut random)?.1;
        let mut config = None;
        for _ in 0..BLOBS {
            let path = blob(&library, 1 << 20, &mut random)?.1;
            library.medium.push(path);
            let (digest, path) = blob(&library, 1 << 10, &mut random)?;
            library.small.push(path);
            config = Some((digest, 1 << 10));
        }
        let config = config.context("there are blobs")?;
        let image = library.content_dir.image(&repo, config, &[config])?;
        for n in 0..INDEXES {
            let name = format!("t{n}");
            let index = library
                .content_dir
                .index(&repo, &[image; PLATFORMS], &name)?;
            library.content_dir.tag(&repo, &name.parse()?, &index)?;
            for reference in [index.to_string(), name] {
                let path = format!("/v2/{repo}/manifests/{reference}");
                library.show(&index, &path)?;
                let paths = if reference.starts_with('t') {
                    &mut library.tags
                } else {
                    &mut library.manifests
                };
                paths.push(path);
            }
        }
        Ok(library)
    }

    /// Gives a file a name below the paths of the API.
    fn show(&self, digest: &Digest, path: &str) -> Result<()> {
        let link = self.files.join(path.trim_start_matches('/'));
        fs::create_dir_all(link.parent().context("a path has a directory")?)?;
        fs::hard_link(self.content_dir.file(digest), link)?;
        Ok(())
    }
}
