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
/// The directory inside a repository in which the reference registry keeps what is being pushed.
pub(super) const UPLOADS: &str = "_uploads";

const STAGED: &str = ".part";
const SIDECAR: &str = ".part.json";
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

    /// The directory that the reference registry keeps everything but the expiry state in.
    pub fn registry(&self) -> PathBuf {
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

    /// Which upstream the content came from.
    pub fn origins(&self) -> PathBuf {
        self.root.join("millpond").join("upstreams.json")
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
        self.spool().join(stem(digest, unique) + STAGED)
    }

    /// What says how much of a staged write is there, so that it outlives its process.
    pub fn sidecar(&self, digest: &Digest, unique: u64) -> PathBuf {
        let name = stem(digest, unique) + SIDECAR;
        self.spool().join(name)
    }

    /// A small file (a link, a sidecar, the probe) before it has its name.
    pub fn draft(&self, unique: u64) -> PathBuf {
        self.spool().join(format!("{unique}{DRAFT}"))
    }
}

fn stem(digest: &Digest, unique: u64) -> String {
    format!("{}-{}.{unique}", digest.algorithm(), digest.hex())
}

/// What the name of a file in the spool says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spooled {
    Staged(Digest, u64),
    Sidecar(Digest, u64),
    /// One of ours that is of no use to a later process.
    Leftover,
}

/// The greatest number that a staged file is known by, so that there are always greater ones.
const MAX_UNIQUE: u64 = u64::MAX / 2;

/// None for a file that isn't ours.
pub(super) fn spooled(name: &str) -> Option<Spooled> {
    if let Some(stem) = name.strip_suffix(SIDECAR) {
        let known = parse_stem(stem).map(|(digest, unique)| Spooled::Sidecar(digest, unique));
        return Some(known.unwrap_or(Spooled::Leftover));
    }
    if let Some(stem) = name.strip_suffix(STAGED) {
        let known = parse_stem(stem).map(|(digest, unique)| Spooled::Staged(digest, unique));
        return Some(known.unwrap_or(Spooled::Leftover));
    }
    name.ends_with(DRAFT).then_some(Spooled::Leftover)
}

/// Only what [`stem`] makes, so that the parts give the name again.
fn parse_stem(text: &str) -> Option<(Digest, u64)> {
    let (digest, unique) = text.rsplit_once('.')?;
    let digest = digest.replacen('-', ":", 1).parse().ok()?;
    let unique = unique.parse().ok()?;
    (unique <= MAX_UNIQUE && stem(&digest, unique) == text).then_some((digest, unique))
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
            (
                layout.sidecar(&digest, 7),
                format!("/r/millpond/spool/sha256-{hex}.7.part.json"),
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
    fn names_in_the_spool_fit_a_file_system_and_are_read_back() {
        let layout = Layout::new("/r");
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"");
            for unique in [0, 7, MAX_UNIQUE] {
                let staged = name(layout.staged(&digest, unique));
                let sidecar = name(layout.sidecar(&digest, unique));
                assert!(sidecar.len() <= 255);
                assert_eq!(spooled(&staged), Some(Spooled::Staged(digest, unique)));
                assert_eq!(spooled(&sidecar), Some(Spooled::Sidecar(digest, unique)));
            }
            for leftover in [
                name(layout.draft(3)),
                name(layout.staged(&digest, u64::MAX)),
                format!("{}-{}.07.part", digest.algorithm(), digest.hex()),
                format!("{}-{}.+7.part.json", digest.algorithm(), digest.hex()),
                "sha256-12.7.part".to_owned(),
            ] {
                assert_eq!(spooled(&leftover), Some(Spooled::Leftover), "{leftover}");
            }
        }
        assert_eq!(spooled("notes.txt"), None);
    }
}
