//! Every path of the store, and nothing else: no function here touches the disk.
//!
//! The layout is the reference registry's, version 2 (distribution,
//! `registry/storage/paths.go`), with millpond's own files below `millpond/`. Paths are built from
//! parsed types only, so none of them can leave the root.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Link, LinkKind};
use crate::oci::{Algorithm, Digest, RepoName, Tag, UploadId};

/// The longest repository name that is looked for on disk, in bytes: a client's longest name below
/// the longest name of an upstream. It bounds the depth of a walk.
pub const MAX_STORED_NAME: usize = 512;

/// Directories inside a repository that prove it is one. No repository name has such a component.
pub(super) const REPOSITORY_MARKS: [&str; 2] = ["_layers", "_manifests"];
/// The directory inside a repository in which the reference registry keeps what is being pushed.
pub(super) const UPLOADS: &str = "_uploads";

const STAGED: &str = ".part";
const CHECKPOINT: &str = ".checkpoint";
const DRAFT: &str = ".draft";
/// The checkpoints of earlier versions, which none reads any more.
const OLD_CHECKPOINT: &str = ".part.json";

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
        self.root.join("docker/registry/v2")
    }

    /// The directory that holds one blob and nothing else.
    pub fn blob_dir(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm(), digest.first_byte())
            .join(digest.hex())
    }

    /// The directory of the blobs of one algorithm whose digest's first byte is `first`, named by
    /// hexadecimal.
    pub fn blobs(&self, algorithm: Algorithm, first: u8) -> PathBuf {
        let below = format!("blobs/{algorithm}/{first:02x}");
        self.registry().join(below)
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
        let below = match kind {
            LinkKind::Layer => "_layers",
            LinkKind::Revision => "_manifests/revisions",
        };
        self.repository(repo).join(below).join(algorithm.as_str())
    }

    /// The file that is a link: it holds the digest as text.
    pub fn link(&self, link: &Link) -> PathBuf {
        self.links(&link.repo, link.kind, link.digest.algorithm())
            .join(link.digest.hex())
            .join("link")
    }

    /// The directory of a repository's tags, named by tag.
    pub fn tags(&self, repo: &RepoName) -> PathBuf {
        self.repository(repo).join("_manifests/tags")
    }

    pub fn tag(&self, repo: &RepoName, tag: &Tag) -> PathBuf {
        self.tags(repo).join(tag.as_str())
    }

    /// The file that says what a tag names now.
    pub fn tag_current(&self, repo: &RepoName, tag: &Tag) -> PathBuf {
        self.tag(repo, tag).join("current/link")
    }

    /// The file that says that a tag has named this digest.
    pub fn tag_index(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> PathBuf {
        let below = format!("index/{}/{}/link", digest.algorithm(), digest.hex());
        self.tag(repo, tag).join(below)
    }

    /// The directory of an upload: `data`, what was received; `startedat`, when it began; and, of the
    /// reference registry, `hashstates`, which isn't read.
    pub fn upload(&self, repo: &RepoName, id: &UploadId) -> PathBuf {
        let below = format!("{UPLOADS}/{id}");
        self.repository(repo).join(below)
    }

    /// When entries expire, in the reference registry's format; belongs to `cache`.
    pub fn scheduler_state(&self) -> PathBuf {
        self.root.join("scheduler-state.json")
    }

    /// The directory of the files that the reference registry knows nothing of.
    pub(super) fn own(&self) -> PathBuf {
        self.root.join("millpond")
    }

    /// Which upstream the content came from.
    pub fn origins(&self) -> PathBuf {
        self.own().join("upstreams.json")
    }

    /// The patterns of the repositories that the last process hosted.
    pub(super) fn hosted(&self) -> PathBuf {
        self.own().join("hosted.json")
    }

    /// What operators have denied; belongs to `access`.
    pub fn denied(&self) -> PathBuf {
        self.own().join("denied.json")
    }

    /// The pins that operators have made at run time; belongs to `cache`.
    pub fn pins(&self) -> PathBuf {
        self.own().join("pins.json")
    }

    /// The bytes that upstreams have sent in this month; belongs to `app`.
    pub fn usage(&self) -> PathBuf {
        self.own().join("usage.json")
    }

    /// What is to be uploaded to the bucket; belongs to `bucket`.
    pub fn uploads_to_bucket(&self) -> PathBuf {
        self.own().join("uploads.json")
    }

    /// The name by which this store's server notes in the bucket that it writes hosted repositories; belongs to
    /// `hosted`.
    pub fn hosted_writer(&self) -> PathBuf {
        self.own().join("writer.json")
    }

    /// Locked by the process that uses the store.
    pub fn lock(&self) -> PathBuf {
        self.own().join("lock")
    }

    /// The key of the tokens of callers; belongs to `auth`.
    pub fn token_key(&self) -> PathBuf {
        self.own().join("token.key")
    }

    /// The socket at which a running mirror answers the operators' commands.
    pub fn admin_socket(&self) -> PathBuf {
        self.own().join("admin.sock")
    }

    /// A blob that was found corrupt. Nothing reads it, and nothing but an operator removes it.
    pub fn quarantined(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.own().join("quarantine").join(name)
    }

    /// Where files are written before they have a name. On the root's own file system, so that
    /// they can be renamed.
    pub fn spool(&self) -> PathBuf {
        self.own().join("spool")
    }

    /// The file of a staged write.
    pub(super) fn staged(&self, name: StageName) -> PathBuf {
        self.spool().join(format!("{name}{STAGED}"))
    }

    /// The checkpoint of a staged write.
    pub(super) fn checkpoint(&self, name: StageName) -> PathBuf {
        self.spool().join(format!("{name}{CHECKPOINT}"))
    }

    /// A small file (a link, a checkpoint, the probe) before it has its name.
    pub fn draft(&self, unique: u64) -> PathBuf {
        self.spool().join(format!("{unique}{DRAFT}"))
    }
}

/// The name that the two files of a staged write share: the digest, and the start of the SHA-256 of the
/// upstream's name, which may have characters that no file name has. A checkpoint has both in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StageName {
    pub(super) digest: Digest,
    upstream: u64,
}

impl StageName {
    pub(super) fn new(digest: &Digest, upstream: &str) -> Self {
        let hash = Digest::of(Algorithm::Sha256, upstream.as_bytes()).hex();
        let start = hash.get(..16).unwrap_or_default();
        Self {
            digest: *digest,
            upstream: u64::from_str_radix(start, 16).unwrap_or_default(),
        }
    }

    /// Only what [`Display`](fmt::Display) makes.
    fn parse(text: &str) -> Option<Self> {
        let (digest, upstream) = text.rsplit_once('.')?;
        let name = Self {
            digest: digest.replacen('-', ":", 1).parse().ok()?,
            upstream: u64::from_str_radix(upstream, 16).ok()?,
        };
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, upstream } = self;
        write!(f, "{}-{}.{upstream:016x}", digest.algorithm(), digest.hex())
    }
}

/// What a file in the spool is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spooled {
    Staged(StageName),
    Checkpoint(StageName),
    /// One of ours that is of no use to a later process.
    Leftover,
}

/// None for a file that isn't ours.
pub(super) fn spooled(name: &str) -> Option<Spooled> {
    let known = if let Some(stem) = name.strip_suffix(STAGED) {
        StageName::parse(stem).map(Spooled::Staged)
    } else if let Some(stem) = name.strip_suffix(CHECKPOINT) {
        StageName::parse(stem).map(Spooled::Checkpoint)
    } else if name.ends_with(DRAFT) || name.ends_with(OLD_CHECKPOINT) {
        None
    } else {
        return None;
    };
    Some(known.unwrap_or(Spooled::Leftover))
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
        let link = |kind| Link::new(&repo, kind, &digest);
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
                layout.staged(StageName::new(&digest, "")),
                format!("/r/millpond/spool/sha256-{hex}.e3b0c44298fc1c14.part"),
            ),
            (
                layout.checkpoint(StageName::new(&digest, "")),
                format!("/r/millpond/spool/sha256-{hex}.e3b0c44298fc1c14.checkpoint"),
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
            let stage = StageName::new(&digest, "https://a/very:strange*name");
            let (staged, checkpoint) = (name(layout.staged(stage)), name(layout.checkpoint(stage)));
            assert!(checkpoint.len() <= 255);
            assert_eq!(spooled(&staged), Some(Spooled::Staged(stage)));
            assert_eq!(spooled(&checkpoint), Some(Spooled::Checkpoint(stage)));
            for leftover in [
                name(layout.draft(3)),
                format!("{}-{}.7.part", digest.algorithm(), digest.hex()),
                format!("{}-{}.7.part.json", digest.algorithm(), digest.hex()),
                format!(
                    "{}-{}.+00000000000000f.part",
                    digest.algorithm(),
                    digest.hex()
                ),
                format!(
                    "{}-{}.000000000000000F.checkpoint",
                    digest.algorithm(),
                    digest.hex()
                ),
                "sha256-12.7.part".to_owned(),
            ] {
                assert_eq!(spooled(&leftover), Some(Spooled::Leftover), "{leftover}");
            }
        }
        assert_eq!(spooled("notes.txt"), None);
    }
}
