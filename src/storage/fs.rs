//! The store on a file system, in the reference registry's layout: what that registry wrote is
//! read as it is, and what is written here it reads.
//!
//! Every call to the file system that may wait for a disk runs on the blocking pool, as one step for
//! each method.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::error::Context as _;
use super::layout::{Layout, StageName};
use super::partials::{self, StageFiles};
use super::spool::Spool;
use super::stage::FileStage;
use super::{
    Content, Link, LinkKind, Modified, Partial, Reader, Resumed, Stage, Store, StoreError,
    SyncError, Tagging, Unreadable, Upload, UploadFile, UpstreamChange, blocking, disk,
};
use crate::metrics::Histogram;
use crate::oci::{Digest, Pattern, RepoName, Tag, UploadId};

mod list;
mod open;
mod publish;
mod uploads;

use open::OpenFiles;

/// A store below one root directory, which it has for itself. Clones share it.
#[derive(Debug, Clone)]
pub struct FsStore {
    spool: Arc<Spool>,
    open: Arc<OpenFiles>,
    reads: Arc<OnceLock<Histogram>>,
    /// What an earlier process has written is durable.
    settled: Arc<tokio::sync::OnceCell<()>>,
}

/// What an open upload shares with its store.
#[derive(Debug, Clone)]
struct FsShared {
    spool: Arc<Spool>,
    open: Arc<OpenFiles>,
}

impl FsStore {
    /// Opens the store below `root`, which is made when it isn't there (it may be a symbolic link).
    /// Fails when it can't be written, or when another process has it open.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(root, None).await
    }

    /// The same, with the permissions that files get; see [`Modes::of`](super::Modes::of).
    pub async fn open_with(
        root: impl Into<PathBuf>,
        mode: Option<u32>,
    ) -> Result<Self, StoreError> {
        let layout = Layout::new(root);
        let open = move || {
            let spool = Arc::new(Spool::open(layout, mode)?);
            // Before the probe, because it may make room on a full disk.
            partials::sweep(&spool)?;
            spool.probe()?;
            Ok(spool)
        };
        blocking(open).await.map(Self::over)
    }

    /// Says which upstreams the repositories belong to: by name, and the default one with an empty
    /// name. Returns those that have another URL than at the last start. Links and tags that were
    /// written before then don't count any more; content stays.
    pub async fn set_upstreams(
        &self,
        upstreams: BTreeMap<String, String>,
    ) -> Result<Vec<UpstreamChange>, StoreError> {
        self.run(move |spool| spool.set_upstreams(&upstreams)).await
    }

    /// Opens an existing store, to look at it or to remove something: nothing is created or
    /// tidied. Fails when there is no directory, or when another process has it open.
    pub async fn inspect(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let layout = Layout::new(root);
        let inspect = move || Spool::inspect(layout).map(Arc::new);
        blocking(inspect).await.map(Self::over)
    }

    fn over(spool: Arc<Spool>) -> Self {
        Self {
            spool,
            open: Arc::new(OpenFiles::new()),
            reads: Arc::default(),
            settled: Arc::default(),
        }
    }

    /// Whether [`open`](Self::open) could make or use the directory `root`, without making or locking
    /// anything.
    pub async fn check_root(root: impl Into<PathBuf>) -> Result<(), StoreError> {
        let root = root.into();
        blocking(move || disk::check_root(&root)).await
    }

    fn shared(&self) -> FsShared {
        FsShared {
            spool: Arc::clone(&self.spool),
            open: Arc::clone(&self.open),
        }
    }

    /// Makes durable, once, what an earlier process has written.
    async fn settle(&self) -> Result<(), StoreError> {
        let settle = || self.run(uploads::settle);
        self.settled.get_or_try_init(settle).await?;
        Ok(())
    }

    async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Arc<Spool>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let spool = Arc::clone(&self.spool);
        blocking(move || step(&spool)).await
    }
}

#[async_trait::async_trait]
impl Store for FsStore {
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError> {
        if let Some(content) = self.open_warm(digest) {
            return Ok(Some(content));
        }
        let (digest, open) = (*digest, Arc::clone(&self.open));
        let reads = self.reads.get().cloned();
        self.run(move |spool| {
            let before = open.removals();
            let content = open_blob(&spool.layout, &digest, reads)?;
            if let Some(content) = &content {
                open.keep(&digest, content, before);
            }
            Ok(content)
        })
        .await
    }

    fn open_warm(&self, digest: &Digest) -> Option<Content> {
        self.open.get(digest)
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let digest = *digest;
        self.run(move |spool| disk::file_size(&spool.layout.blob(&digest)))
            .await
    }

    async fn stage(&self, digest: &Digest, upstream: &str) -> Result<Box<dyn Stage>, StoreError> {
        let files = StageFiles::lock(&self.spool, StageName::new(digest, upstream)).await;
        let upstream = upstream.into();
        let stage = self.run(move |_| FileStage::create(files, upstream));
        Ok(Box::new(stage.await?))
    }

    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError> {
        let files = StageFiles::lock(&self.spool, StageName::new(digest, upstream)).await;
        let upstream = upstream.into();
        let resumed = self
            .run(move |_| FileStage::resume(files, upstream))
            .await?;
        Ok(resumed.map(|(stage, partial)| (stage.take(), partial)))
    }

    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        self.run(partials::list).await
    }

    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        let name = StageName::new(digest, upstream);
        self.run(move |spool| {
            StageFiles::try_lock(spool, name).map_or(Ok(false), |files| files.remove())
        })
        .await
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (digest, open) = (*digest, Arc::clone(&self.open));
        self.run(move |spool| {
            let path = spool.layout.blob(&digest);
            let removed = disk::remove_file(&path)?;
            open.removed(&digest);
            spool.unsynced.remove(&path);
            prune_blob(spool, &digest, &path);
            Ok(removed)
        })
        .await
    }

    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (digest, open) = (*digest, Arc::clone(&self.open));
        self.run(move |spool| {
            let aside = set_aside(spool, &digest);
            open.removed(&digest);
            aside
        })
        .await
    }

    async fn linked(&self, link: &Link) -> Result<bool, StoreError> {
        let link = link.clone();
        self.run(move |spool| list::is_link(spool, &link)).await
    }

    async fn link(&self, link: &Link) -> Result<(), StoreError> {
        let link = link.clone();
        // Not synced: a link that is lost with the power is proven anew by one upstream HEAD.
        self.run(move |spool| {
            let path = spool.layout.link(&link);
            let written = spool.write_link(&link.repo, &path, &link.digest, false)?;
            if let Some(created) = written.filter(|_| spool.is_hosted(&link.repo)) {
                spool.unsynced.add(path, &created);
            }
            Ok(())
        })
        .await
    }

    async fn unlink(&self, link: &Link) -> Result<bool, StoreError> {
        let link = link.clone();
        self.run(move |spool| {
            let path = spool.layout.link(&link);
            let removed = disk::remove_file(&path)?;
            spool.unsynced.remove(&path);
            disk::prune(&path, &spool.layout.repositories());
            Ok(removed)
        })
        .await
    }

    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |spool| {
            let path = spool.layout.tag_current(&repo, &tag);
            let digest = disk::read_link(&path)?;
            Ok(digest.filter(|_| spool.is_proved(&repo, &path)))
        })
        .await
    }

    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let (repo, tag, digest) = (repo.clone(), tag.clone(), *digest);
        self.run(move |spool| {
            let layout = &spool.layout;
            let index = layout.tag_index(&repo, &tag, &digest);
            spool.write_link(&repo, &index, &digest, false)?;
            // Synced: the last known digest is what is served while the upstream is down.
            let current = layout.tag_current(&repo, &tag);
            spool.write_link(&repo, &current, &digest, true).map(drop)
        })
        .await
    }

    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |spool| {
            let layout = &spool.layout;
            let directory = layout.tag(&repo, &tag);
            // First what names the tag, so that a crash in between leaves only its history.
            let current = layout.tag_current(&repo, &tag);
            let removed = disk::remove_file(&current)?;
            spool.unsynced.remove(&current);
            disk::remove_tree(&directory)?;
            disk::prune(&directory, &layout.repositories());
            Ok(removed)
        })
        .await
    }

    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError> {
        let repo = repo.clone();
        self.run(move |spool| Ok(list::tags(spool, &repo))).await
    }

    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        let repo = repo.clone();
        self.run(move |spool| Ok(list::links(spool, &repo, kind)))
            .await
    }

    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.run(move |spool| Ok(list::blobs(spool, first))).await
    }

    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        self.run(|spool| list::repositories(spool)).await
    }

    async fn unproved(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        let repo = repo.clone();
        self.run(move |spool| Ok(list::unproved(spool, &repo, kind)))
            .await
    }

    fn may_have_unproved(&self) -> bool {
        self.spool.has_changed_upstreams()
    }

    async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        self.run(|spool| Ok(spool.unreadable.all())).await
    }

    async fn remove_unreadable(&self, unreadable: &Unreadable) -> Result<bool, StoreError> {
        let Unreadable { entry, path, .. } = unreadable.clone();
        self.run(move |spool| list::remove_unreadable(spool, &entry, &path))
            .await
    }

    fn set_hosted(&self, patterns: Vec<Pattern>) {
        self.spool.set_hosted(patterns);
    }

    async fn hosted_before(&self) -> Result<Vec<Pattern>, StoreError> {
        self.run(|spool| uploads::hosted_before(spool)).await
    }

    async fn start_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        started: SystemTime,
    ) -> Result<Box<dyn UploadFile>, StoreError> {
        let (shared, repo, id) = (self.shared(), repo.clone(), *id);
        let upload = self.run(move |_| uploads::start(&shared, &repo, &id, started));
        Ok(Box::new(upload.await?))
    }

    async fn open_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError> {
        let (shared, repo, id) = (self.shared(), repo.clone(), *id);
        let upload = self.run(move |_| uploads::open(shared, &repo, &id)).await?;
        Ok(upload.map(|upload| Box::new(upload) as Box<dyn UploadFile>))
    }

    async fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError> {
        let (repo, id) = (repo.clone(), *id);
        self.run(move |spool| uploads::cancel(spool, &repo, &id))
            .await
    }

    async fn write_blob(&self, digest: &Digest, content: Bytes) -> Result<bool, StoreError> {
        let (shared, digest) = (self.shared(), *digest);
        self.run(move |_| publish::write_blob(&shared, &digest, &content))
            .await
    }

    async fn publish(
        &self,
        blobs: &[Digest],
        links: &[Link],
        tagging: Option<&Tagging>,
    ) -> Result<(), SyncError> {
        self.settle().await.map_err(publish::failed)?;
        publish::publish(&self.spool, blobs, links, tagging).await
    }

    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        self.run(|spool| list::uploads(spool)).await
    }

    async fn remove_upload(&self, upload: &Upload) -> Result<bool, StoreError> {
        let upload = upload.clone();
        self.run(move |spool| list::remove_upload(spool, &upload))
            .await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.run(|spool| spool.check()).await
    }

    async fn free_space(&self) -> Option<u64> {
        let seen = self.run(|spool| Ok(rustix::fs::statvfs(spool.layout.root()).ok()));
        let seen = seen.await.ok()??;
        Some(seen.f_bavail.saturating_mul(seen.f_frsize))
    }

    fn measure_reads(&self, reads: Histogram) {
        // One cache owns the store: what is set first stays.
        drop(self.reads.set(reads));
    }
}

fn open_blob(
    layout: &Layout,
    digest: &Digest,
    reads: Option<Histogram>,
) -> Result<Option<Content>, StoreError> {
    let path = layout.blob(digest);
    let Some(file) = disk::found(File::open(&path)).context("open", &path)? else {
        return Ok(None);
    };
    let metadata = file.metadata().context("open", &path)?;
    // Where there are no times, a file that is replaced by one of its size isn't told from it.
    let modified = Modified::of(&metadata).unwrap_or(Modified::from_bits(1));
    Ok(metadata.is_file().then(|| Content {
        size: metadata.len(),
        modified,
        reader: Reader::measured(file, &path, reads),
    }))
}

/// A rename: readers that are open keep the file. One that can't even be looked at is renamed with
/// its directory.
fn set_aside(spool: &Spool, digest: &Digest) -> Result<bool, StoreError> {
    let (path, aside) = (spool.layout.blob(digest), spool.layout.quarantined(digest));
    if let Ok(None) = disk::found(fs::symlink_metadata(&path)) {
        return Ok(false);
    }
    let renamed = match disk::place(&path, &aside, &spool.modes) {
        Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => return Ok(false),
        Err(_first) if disk::file_size(&path).is_err() => {
            let directory = spool.layout.blob_dir(digest);
            disk::remove_tree(&aside).and_then(|_| disk::place(&directory, &aside, &spool.modes))
        }
        renamed => renamed,
    };
    drop(renamed?);
    spool.unreadable.remove(&path);
    spool.unsynced.remove(&path);
    prune_blob(spool, digest, &path);
    Ok(true)
}

/// Removes the directory of a blob that has gone.
fn prune_blob(spool: &Spool, digest: &Digest, path: &Path) {
    let shared = spool.layout.blobs(digest.algorithm(), digest.first_byte());
    disk::prune(path, &shared);
}

#[cfg(test)]
mod tests;
