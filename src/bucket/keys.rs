//! The names of objects: those of the reference registry's files, as on disk, and millpond's own below
//! `millpond/`.

use std::path::Path;

use crate::cache::{Link, LinkKind};
use crate::oci::{Algorithm, Digest, RepoName, Tag};
use crate::storage::Layout;

/// The content with a digest.
pub(super) fn blob(digest: &Digest) -> String {
    text(Layout::new("").blob(digest))
}

/// What the names of the contents of one algorithm begin with, or of those of them whose digest begins with
/// this byte.
pub(super) fn blobs(algorithm: Algorithm, first: Option<u8>) -> String {
    let mut path = Layout::new("").blobs(algorithm, first.unwrap_or_default());
    if first.is_none() {
        path.pop();
    }
    text(path)
}

/// What the names of all links and tags begin with.
pub(super) fn repositories() -> String {
    text(Layout::new("").repositories())
}

/// The link of a repository to content.
pub(super) fn link(repo: &RepoName, kind: LinkKind, digest: &Digest) -> String {
    text(Layout::new("").link(&Link::new(repo, kind, digest)))
}

/// What a tag names now.
pub(super) fn tag_current(repo: &RepoName, tag: &Tag) -> String {
    text(Layout::new("").tag_current(repo, tag))
}

/// That a tag has named this digest.
pub(super) fn tag_index(repo: &RepoName, tag: &Tag, digest: &Digest) -> String {
    text(Layout::new("").tag_index(repo, tag, digest))
}

/// Which server was the last to write hosted repositories.
pub(super) const HOSTED_WRITER: &str = "millpond/hosted/writer";

/// Content that was found to be wrong.
pub(super) fn quarantined(digest: &Digest) -> String {
    text(Layout::new("").quarantined(digest))
}

/// Names, tags and digests are ASCII.
fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
