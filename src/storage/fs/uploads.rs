//! Uploads on disk, in the reference registry's layout.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::FsShared;
use crate::oci::{Digest, Pattern, RepoName, UploadId};
use crate::storage::error::Context as _;
use crate::storage::spool::Spool;
use crate::storage::stage::write_chunks;
use crate::storage::{Modified, Placing, Reader, StoreError, UploadFile, disk};

/// How often an upload is started when its directory is pruned meanwhile.
const START_ATTEMPTS: u32 = 4;
/// The largest list of patterns that is read, in bytes.
const MAX_PATTERNS: u64 = 1024 * 1024;

/// An upload whose file is open.
#[derive(Debug)]
pub(super) struct FsUpload {
    store: FsShared,
    directory: PathBuf,
    file: File,
    reader: Reader,
    size: u64,
    /// An append has failed and couldn't be undone.
    broken: bool,
}

fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

pub(super) fn start(
    store: &FsShared,
    repo: &RepoName,
    id: &UploadId,
    started: SystemTime,
) -> Result<FsUpload, StoreError> {
    let spool = &store.spool;
    let directory = spool.layout.upload(repo, id);
    let path = data(&directory);
    let mut retries = 1..START_ATTEMPTS;
    loop {
        let made = disk::create_dirs(&directory, &spool.modes);
        match made.and_then(|_| {
            spool.modes.open(
                File::options().read(true).write(true).create_new(true),
                &path,
            )
        }) {
            // The end of another upload pruned the directory between the two calls.
            Err(error) if error.kind() == io::ErrorKind::NotFound && retries.next().is_some() => {}
            made => {
                let file = made.context("create", &path)?;
                let text = humantime::format_rfc3339_seconds(started).to_string();
                let noted = directory.join("startedat");
                disk::write_small(&noted, text.as_bytes(), false, &spool.modes)?;
                return opened(store.clone(), directory, file);
            }
        }
    }
}

pub(super) fn open(
    store: FsShared,
    repo: &RepoName,
    id: &UploadId,
) -> Result<Option<FsUpload>, StoreError> {
    let directory = store.spool.layout.upload(repo, id);
    let path = data(&directory);
    let file = disk::found(File::options().read(true).write(true).open(&path));
    let file = file.context("open", &path)?;
    file.map(|file| opened(store, directory, file)).transpose()
}

fn opened(store: FsShared, directory: PathBuf, file: File) -> Result<FsUpload, StoreError> {
    let path = data(&directory);
    let size = file.metadata().context("open", &path)?.len();
    let reader = file.try_clone().context("open", &path)?;
    Ok(FsUpload {
        store,
        directory,
        file,
        reader: Reader::of_file(reader, &path),
        size,
        broken: false,
    })
}

/// Removes an upload. False when it wasn't there.
pub(super) fn cancel(spool: &Spool, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError> {
    let directory = spool.layout.upload(repo, id);
    let removed = disk::remove_tree(&directory)?;
    disk::prune(&directory, &spool.layout.repositories());
    Ok(removed)
}

impl UploadFile for FsUpload {
    fn size(&self) -> u64 {
        self.size
    }

    fn content(&self) -> Reader {
        self.reader.clone()
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let path = data(&self.directory);
        if self.broken {
            return Err(StoreError::Incomplete { path });
        }
        let written = write_chunks(&self.file, self.size, chunks).context("write", &path);
        if written.is_err() {
            self.broken = self.file.set_len(self.size).is_err();
            return written;
        }
        self.size += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        Ok(())
    }

    fn commit(
        self: Box<Self>,
        digest: &Digest,
        placing: Placing,
    ) -> Result<Option<Modified>, StoreError> {
        let path = data(&self.directory);
        if self.broken {
            return Err(StoreError::Incomplete { path });
        }
        let FsShared { spool, open } = &self.store;
        let target = spool.layout.blob(digest);
        let known = disk::file_size(&target)?;
        let mut modified = None;
        if placing.replace || known != Some(self.size) {
            if placing.sync {
                self.file.sync_data().context("sync", &path)?;
            }
            let created = disk::place(&path, &target, &spool.modes)?;
            open.removed(digest);
            if placing.sync {
                for name in created.iter().map(PathBuf::as_path).chain([&*target]) {
                    disk::sync_names_in(name.parent().unwrap_or(name))?;
                }
                spool.unsynced.remove(&target);
            } else {
                spool.unsynced.add(target, &created);
            }
            modified = self.file.metadata().ok().as_ref().and_then(Modified::of);
        }
        // The directory above stays for the next upload.
        disk::discard(disk::remove_tree(&self.directory));
        Ok(modified)
    }
}

/// The patterns that the last process noted; notes others in their place.
pub(super) fn hosted_before(spool: &Spool) -> Result<Vec<Pattern>, StoreError> {
    let path = spool.layout.hosted();
    let text = disk::read_small(&path, MAX_PATTERNS)?.unwrap_or_default();
    let before: Vec<String> = serde_json::from_slice(&text).unwrap_or_default();
    let now: Vec<_> = spool.hosted().iter().map(ToString::to_string).collect();
    if before != now && !spool.inspected {
        let text = serde_json::to_vec(&now).map_err(io::Error::from);
        spool.write_file(&path, &text.context("write", &path)?, true)?;
    }
    let patterns = before.iter().filter_map(|text| text.parse().ok());
    Ok(patterns.collect())
}

/// Makes everything durable that an earlier process has written.
pub(super) fn settle(spool: &Arc<Spool>) -> Result<(), StoreError> {
    let root = spool.layout.root();
    let file = File::open(root).context("sync", root)?;
    #[cfg(target_os = "linux")]
    let synced = rustix::fs::syncfs(&file).map_err(io::Error::from);
    #[cfg(not(target_os = "linux"))]
    let synced = {
        drop(file);
        rustix::fs::sync();
        Ok(())
    };
    synced.context("sync", root)
}
