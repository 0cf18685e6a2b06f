//! Every path of the store, and nothing else: no function here touches the disk.
//!
//! The layout is the reference registry's, version 2 (distribution,
//! `registry/storage/paths.go`), with millpond's own files below `millpond/`. Paths are built from
//! parsed types only, so none of them can leave the root.

use std::path::{Path, PathBuf};

use super::{Link, LinkKind};
use crate::oci::{Algorithm, Digest, RepoName, Tag};

/// The longest repository name that is looked for on disk, in bytes: a client's longest name below
/// the longest name of an upstream. It bounds the depth of a walk.
pub const MAX_STORED_NAME: usize = 512;

/// Directories inside a repository that prove it is one. No repository name has such a component.
pub(super) const REPOSITORY_MARKS: [&str; 2] = ["_layers", "_manifests"];

const STAGED: &str = ".part";
const DRAFT: &str = ".draft";

/// The paths below one root directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn registry(&self) -> PathBuf {
        self.root.join("docker").join("registry").join("v2")
    }

    /// The directory that holds one blob and nothing else.
    pub fn blob_dir(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.registry().join("blobs");
        path.push(digest.algorithm().as_str());
        path.push(hex.get(..2).unwrap_or_default());
        path.push(hex);
        path
    }

    /// The directory of the blobs of one algorithm whose digest's first byte is `first`, named by
    /// hexadecimal.
    pub fn blobs(&self, algorithm: Algorithm, first: u8) -> PathBuf {
        let mut path = self.registry().join("blobs");
        path.push(algorithm.as_str());
        path.push(format!("{first:02x}"));
        path
    }

    /// The content of a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_dir(digest).join("data")
    }

    /// The directory below which the names of repositories are directories.
    pub fn repositories(&self) -> PathBuf {
        self.registry().join("repositories")
    }

    pub fn repository(&self, repo: &RepoName) -> PathBuf {
        let mut path = self.repositories();
        path.extend(repo.components());
        path
    }

    /// The directory of a repository's links of one kind and algorithm, named by hexadecimal.
    pub fn links(&self, repo: &RepoName, kind: LinkKind, algorithm: Algorithm) -> PathBuf {
        let mut path = self.repository(repo);
        match kind {
            LinkKind::Layer => path.push("_layers"),
            LinkKind::Revision => path.extend(["_manifests", "revisions"]),
        }
        path.push(algorithm.as_str());
        path
    }

    /// The file that is a link: it holds the digest as text.
    pub fn link(&self, link: &Link) -> PathBuf {
        let mut path = self.links(&link.repo, link.kind, link.digest.algorithm());
        path.push(link.digest.hex());
        path.push("link");
        path
    }

    /// The directory of a repository's tags, named by tag.
    pub fn tags(&self, repo: &RepoName) -> PathBuf {
        self.repository(repo).join("_manifests").join("tags")
    }

    pub fn tag(&self, repo: &RepoName, tag: &Tag) -> PathBuf {
        self.tags(repo).join(tag.as_str())
    }

    /// The file that says what a tag names now.
    pub fn tag_current(&self, repo: &RepoName, tag: &Tag) -> PathBuf {
        self.tag(repo, tag).join("current").join("link")
    }

    /// The file that says that a tag has named this digest.
    pub fn tag_index(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> PathBuf {
        let mut path = self.tag(repo, tag).join("index");
        path.push(digest.algorithm().as_str());
        path.push(digest.hex());
        path.push("link");
        path
    }

    /// When entries expire, in the reference registry's format; belongs to `retention`.
    pub fn scheduler_state(&self) -> PathBuf {
        self.root.join("scheduler-state.json")
    }

    /// What has changed since the scheduler state was written; belongs to `retention`.
    pub fn scheduler_journal(&self) -> PathBuf {
        self.root.join("scheduler-state.journal")
    }

    /// Locked by the process that uses the store.
    pub fn lock(&self) -> PathBuf {
        self.root.join("millpond").join("lock")
    }

    /// The socket at which a running mirror answers the operators' commands.
    pub fn admin_socket(&self) -> PathBuf {
        self.root.join("millpond").join("admin.sock")
    }

    /// A blob that was found corrupt. Nothing reads it, and nothing but an operator removes it.
    pub fn quarantined(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.root.join("millpond").join("quarantine").join(name)
    }

    /// Where files are written before they have a name. On the root's own file system, so that
    /// they can be renamed.
    pub fn spool(&self) -> PathBuf {
        self.root.join("millpond").join("spool")
    }

    /// A staged write. `unique` keeps two of one digest apart.
    pub fn staged(&self, digest: &Digest, unique: u64) -> PathBuf {
        self.spool().join(format!(
            "{}-{}.{unique}{STAGED}",
            digest.algorithm(),
            digest.hex()
        ))
    }

    /// A small file (a link, the probe) before it has its name.
    pub fn draft(&self, unique: u64) -> PathBuf {
        self.spool().join(format!("{unique}{DRAFT}"))
    }
}

/// Whether a file in the spool is one that a process before this one left behind.
pub(super) fn is_leftover(name: &str) -> bool {
    name.ends_with(STAGED) || name.ends_with(DRAFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_reference_registrys() {
        let layout = Layout::new("/r");
        let digest = Digest::of(Algorithm::Sha256, b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let repo: RepoName = "ghcr.io/owner/app".parse().unwrap();
        let tag: Tag = "1.0".parse().unwrap();
        let link = |kind| Link {
            repo: repo.clone(),
            kind,
            digest,
        };
        let here = "/r/docker/registry/v2/repositories/ghcr.io/owner/app";
        for (path, expected) in [
            (
                layout.blob(&digest),
                format!("/r/docker/registry/v2/blobs/sha256/e3/{hex}/data"),
            ),
            (
                layout.link(&link(LinkKind::Layer)),
                format!("{here}/_layers/sha256/{hex}/link"),
            ),
            (
                layout.link(&link(LinkKind::Revision)),
                format!("{here}/_manifests/revisions/sha256/{hex}/link"),
            ),
            (
                layout.tag_current(&repo, &tag),
                format!("{here}/_manifests/tags/1.0/current/link"),
            ),
            (
                layout.tag_index(&repo, &tag, &digest),
                format!("{here}/_manifests/tags/1.0/index/sha256/{hex}/link"),
            ),
            (layout.scheduler_state(), "/r/scheduler-state.json".into()),
            (
                layout.staged(&digest, 7),
                format!("/r/millpond/spool/sha256-{hex}.7.part"),
            ),
            (layout.lock(), "/r/millpond/lock".into()),
            (
                layout.quarantined(&digest),
                format!("/r/millpond/quarantine/sha256-{hex}"),
            ),
        ] {
            assert_eq!(path, PathBuf::from(expected));
        }
    }

    #[test]
    fn names_in_the_spool_fit_a_file_system() {
        let longest = Layout::new("/r").staged(&Digest::of(Algorithm::Sha512, b""), u64::MAX);
        let name = longest.file_name().unwrap().to_str().unwrap();
        assert!(name.len() <= 255);
        assert!(is_leftover(name));
        assert!(!is_leftover("notes.txt"));
    }
}
