//! Listings of the store. What can't be read is remembered ([`UnreadableEntries`]) and left out.
//!
//! [`UnreadableEntries`]: crate::storage::unreadable::UnreadableEntries

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::SystemTime;

use crate::error_chain::on_one_line;
use crate::oci::name::is_component;
use crate::oci::{Algorithm, Digest, Hasher, RepoName, Tag};
use crate::storage::disk::{self, LinkText};
use crate::storage::error::Context as _;
use crate::storage::layout::{MAX_STORED_NAME, REPOSITORY_MARKS, UPLOADS};
use crate::storage::spool::Spool;
use crate::storage::unreadable::UnreadableEntry;
use crate::storage::{Link, LinkKind, StoreError, Upload};

/// How deep the directory of an upload is looked through. The reference registry's is two deep.
const MAX_UPLOAD_DEPTH: u32 = 4;
/// Bytes that are hashed at a time.
const HASH_STEP: usize = 1024 * 1024;

/// Keeps account of whether `path` could be read. A failed read is none.
fn readable<T>(
    spool: &Spool,
    path: &Path,
    result: Result<T, StoreError>,
    entry: impl FnOnce() -> UnreadableEntry,
) -> Option<T> {
    match result {
        Ok(value) => {
            spool.unreadable.remove(path);
            Some(value)
        }
        Err(error) => {
            spool.unreadable.add(entry(), path, &error);
            None
        }
    }
}

/// The names in a directory of repositories, links or tags.
fn names(spool: &Spool, directory: &Path) -> Vec<(String, fs::FileType)> {
    let listed = disk::list(directory);
    readable(spool, directory, listed, || UnreadableEntry::Repositories).unwrap_or_default()
}

/// The digest in the file of a link or a tag. An empty file is removed.
fn listed(spool: &Spool, path: &Path, entry: impl FnOnce() -> UnreadableEntry) -> Option<Digest> {
    match readable(spool, path, disk::read_link_text(path), entry)? {
        LinkText::Digest(digest) => Some(digest),
        LinkText::Empty => {
            spool.remove_empty(path);
            None
        }
        LinkText::None => None,
    }
}

pub(super) fn tags(spool: &Spool, repo: &RepoName) -> Vec<Tag> {
    let mut tags: Vec<Tag> = Vec::new();
    for (name, _) in names(spool, &spool.layout.tags(repo)) {
        let Ok(tag) = name.parse::<Tag>() else {
            continue;
        };
        let path = spool.layout.tag_current(repo, &tag);
        let damaged = || UnreadableEntry::Tag(repo.clone(), tag.clone());
        // A tag of another upstream is left: it is written anew, or goes with its repository.
        if listed(spool, &path, damaged).is_some() && spool.is_proved(repo, &path) {
            tags.push(tag);
        }
    }
    tags.sort_unstable();
    tags
}

pub(super) fn links(spool: &Spool, repo: &RepoName, kind: LinkKind) -> Vec<Digest> {
    let mut digests = Vec::new();
    for algorithm in Algorithm::ALL {
        for (hex, _) in names(spool, &spool.layout.links(repo, kind, algorithm)) {
            let Ok(digest) = Digest::from_parts(algorithm, &hex) else {
                continue;
            };
            let link = Link::new(repo, kind, &digest);
            let path = spool.layout.link(&link);
            let target = listed(spool, &path, || UnreadableEntry::Link(link.clone()));
            if target.is_some_and(|target| names_blob(spool, &link, &path, &target)) {
                digests.push(digest);
            }
        }
    }
    digests.sort_unstable();
    digests
}

/// The links that were written while the repository had another upstream.
pub(super) fn unproved(spool: &Spool, repo: &RepoName, kind: LinkKind) -> Vec<Digest> {
    if spool.changed(repo).is_none() {
        return Vec::new();
    }
    let mut links = links(spool, repo, kind);
    links.retain(|digest| {
        let path = spool.layout.link(&Link::new(repo, kind, digest));
        !spool.is_proved(repo, &path)
    });
    links
}

/// Whether the link's file holds the digest that it is named by.
pub(super) fn is_link(spool: &Spool, link: &Link) -> Result<bool, StoreError> {
    let path = spool.layout.link(link);
    let target = disk::read_link(&path)?;
    Ok(target.is_some_and(|target| {
        names_blob(spool, link, &path, &target) && spool.is_proved(&link.repo, &path)
    }))
}

/// Whether a link that holds `target` is one to the digest that it is named by.
fn names_blob(spool: &Spool, link: &Link, path: &Path, target: &Digest) -> bool {
    if *target == link.digest {
        return true;
    }
    // The reference registry stores all content by SHA-256, and names it so in the links that other
    // algorithms have.
    match adopt_alias(spool, &link.digest, target) {
        Ok(true) => return true,
        Ok(false) => {
            tracing::warn!(path = %path.display(), %target, "a link holds another digest and is ignored");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %on_one_line(&error), "a link to content under another digest can't be used");
        }
    }
    false
}

/// Gives content that is stored by one digest its name by another one, too, as a second name of the
/// same file. False when it hasn't that digest, or isn't there, or both are of one algorithm.
fn adopt_alias(spool: &Spool, digest: &Digest, stored: &Digest) -> Result<bool, StoreError> {
    if stored.algorithm() == digest.algorithm() {
        return Ok(false);
    }
    let (from, to) = (spool.layout.blob(stored), spool.layout.blob(digest));
    if disk::file_size(&to)?.is_some() {
        return Ok(true);
    }
    if disk::file_size(&from)?.is_none() {
        return Ok(false);
    }
    if spool.inspected {
        return Ok(true);
    }
    if hash(&from, digest.algorithm())? != *digest {
        return Ok(false);
    }
    spool.link_file(&from, &to)?;
    Ok(true)
}

fn hash(path: &Path, algorithm: Algorithm) -> Result<Digest, StoreError> {
    let mut file = File::open(path).context("read", path)?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; HASH_STEP];
    loop {
        let count = file.read(&mut buffer).context("read", path)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            return Ok(hasher.finish());
        };
        hasher.update(read);
    }
}

pub(super) fn blobs(spool: &Spool, first: u8) -> Vec<(Digest, u64)> {
    let mut blobs = Vec::new();
    for algorithm in Algorithm::ALL {
        let directory = spool.layout.blobs(algorithm, first);
        let listed = disk::list(&directory);
        let listed = readable(spool, &directory, listed, || UnreadableEntry::Blobs(first));
        for (hex, _) in listed.unwrap_or_default() {
            let Ok(digest) = Digest::from_parts(algorithm, &hex) else {
                continue;
            };
            // A blob in another blob's directory can't be opened by its name: it isn't there.
            if digest.first_byte() != first {
                continue;
            }
            let path = spool.layout.blob(&digest);
            let size = disk::file_size(&path);
            let size = readable(spool, &path, size, || UnreadableEntry::Blob(digest));
            if let Some(size) = size.flatten() {
                blobs.push((digest, size));
            }
        }
    }
    blobs.sort_unstable();
    blobs
}

pub(super) fn repositories(spool: &Spool) -> Result<Vec<RepoName>, StoreError> {
    let mut found = Vec::new();
    walk(spool, |_, name, entries| {
        let mark = |(entry, _): &(String, _)| REPOSITORY_MARKS.contains(&entry.as_str());
        if entries.iter().any(mark)
            && let Ok(repo) = RepoName::from_stored(name)
        {
            found.push(repo);
        }
    })?;
    found.sort_unstable();
    Ok(found)
}

/// Walks the tree of names: `visit` is given each directory, its name as a repository, and the
/// directories in it. Symbolic links aren't followed, so there is no way round in a circle.
fn walk(
    spool: &Spool,
    mut visit: impl FnMut(&Path, &str, &[(String, fs::FileType)]),
) -> Result<(), StoreError> {
    let root = spool.layout.repositories();
    let mut entries = disk::list(&root)?;
    let mut unseen = Vec::new();
    let (mut directory, mut name) = (root, String::new());
    loop {
        entries.retain(|(_, kind)| kind.is_dir());
        visit(&directory, &name, &entries);
        for (entry, _) in entries {
            let separator = if name.is_empty() { "" } else { "/" };
            let below = format!("{name}{separator}{entry}");
            if is_component(&entry) && below.len() <= MAX_STORED_NAME {
                unseen.push((directory.join(entry), below));
            }
        }
        let Some(next) = unseen.pop() else {
            return Ok(());
        };
        (directory, name) = next;
        entries = names(spool, &directory);
    }
}

/// What pushes to the reference registry have left, finished or not.
pub(super) fn uploads(spool: &Spool) -> Result<Vec<Upload>, StoreError> {
    let mut directories = Vec::new();
    walk(spool, |directory, name, entries| {
        if entries.iter().any(|(entry, _)| entry == UPLOADS) {
            directories.push((directory.join(UPLOADS), RepoName::from_stored(name).ok()));
        }
    })?;
    let mut uploads = Vec::new();
    for (directory, repo) in directories {
        for (entry, _) in names(spool, &directory) {
            let path = directory.join(&entry);
            let mut upload = Upload {
                path: path.clone(),
                session: repo.clone().zip(entry.parse().ok()),
                bytes: 0,
                modified: SystemTime::UNIX_EPOCH,
            };
            measure(&path, &mut upload, MAX_UPLOAD_DEPTH);
            uploads.push(upload);
        }
    }
    uploads.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(uploads)
}

/// Adds the size and the last write of what is at `path`, as far as they can be read.
fn measure(path: &Path, upload: &mut Upload, depth: u32) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    upload.modified = upload.modified.max(modified);
    if metadata.is_file() {
        upload.bytes = upload.bytes.saturating_add(metadata.len());
    }
    if metadata.is_dir() && depth > 0 {
        for (entry, _) in disk::list(path).unwrap_or_default() {
            measure(&path.join(entry), upload, depth - 1);
        }
    }
}

pub(super) fn remove_upload(spool: &Spool, upload: &Upload) -> Result<bool, StoreError> {
    let removed = disk::remove_tree(&upload.path)?;
    disk::prune(&upload.path, &spool.layout.repositories());
    Ok(removed)
}

/// Removes what [`UnreadableEntries`](crate::storage::unreadable::UnreadableEntries) has: a link or a
/// tag. False when it isn't there any more, or is nothing that can be removed alone.
pub(super) fn remove_unreadable(
    spool: &Spool,
    entry: &UnreadableEntry,
    path: &Path,
) -> Result<bool, StoreError> {
    let directory = match entry {
        UnreadableEntry::Link(_) => path.parent().unwrap_or(path).to_owned(),
        UnreadableEntry::Tag(repo, tag) => spool.layout.tag(repo, tag),
        UnreadableEntry::Blob(_) | UnreadableEntry::Blobs(_) | UnreadableEntry::Repositories => {
            return Ok(false);
        }
    };
    let removed = disk::remove_tree(&directory)?;
    disk::prune(&directory, &spool.layout.repositories());
    spool.unreadable.remove(path);
    Ok(removed)
}
